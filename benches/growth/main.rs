//! What a request costs, and how much memory is taken, as things grow: idle connections, callers, accounts, operations, bodies. And how long
//! a start takes with many accounts, and how often a request finds a connection open when there are few requests for many hosts.
//!
//! `cargo bench --bench growth` runs five rounds, some ten minutes; `-- --rounds 3 --only names` fewer, and of them that part alone.
//! Without `--bench`, as `cargo test --bench growth` has it, it's one short round with small numbers that shows that all still works.
#![allow(unreachable_pub, reason = "modules of a program")]
#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a program that measures time, and talks to whoever started it"
)]

#[path = "../street/mod.rs"]
mod street;

mod bodies;
mod connections;
mod names;
mod standing;
mod starts;
mod warmth;

use std::process::ExitCode;

use street::gateway::Gateway;
use street::load::{self, Outcome, Plan};
use street::noise::Noise;
use street::report::{Demand, Report, Samples};
use street::settings::Settings;
use street::stub::Stub;
use street::{BESIDE, Result, Street, machine};

fn main() -> ExitCode {
    if let Some(done) = street::task() {
        return done;
    }
    match run(&Settings::from_arguments(5)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("growth: {error}");
            ExitCode::FAILURE
        }
    }
}

/// How far things grow.
struct Reach {
    /// Connections that ask, each its next as soon as it has its answer.
    active: usize,
    /// Requests that are answered before anything counts, so that all connections are there.
    first: usize,
    /// Idle connections: none, and then more.
    idle: [usize; 3],
    callers: usize,
    accounts: usize,
    /// Accounts that it starts with: few, what is demanded of, more.
    starts: [usize; 3],
    /// For how long nothing is asked, in milliseconds.
    standing_ms: u64,
    /// For how long many hosts are asked little, in milliseconds.
    warmth_ms: u64,
    /// How often, a second.
    warmth_rate: u32,
}

const FULL: Reach = Reach {
    active: 64,
    first: 640,
    idle: [0, 1_000, 10_000],
    callers: 1_000,
    accounts: 10_000,
    starts: [1, 1_000, 10_000],
    standing_ms: 20_000,
    warmth_ms: 300_000,
    warmth_rate: 3,
};

/// Enough to see that all works.
const SMALL: Reach = Reach {
    active: 16,
    first: 64,
    idle: [0, 20, 50],
    callers: 100,
    accounts: 20,
    starts: [1, 10, 20],
    standing_ms: 100,
    warmth_ms: 600,
    warmth_rate: 30,
};

/// Where everything is measured, and how.
struct Scene<'a> {
    street: Street,
    settings: &'a Settings,
    reach: Reach,
}

fn run(settings: &Settings) -> Result<bool> {
    let program = settings.program()?;
    let scene = Scene {
        street: Street::new(&program)?,
        settings,
        reach: if settings.in_earnest { FULL } else { SMALL },
    };
    let mut noise = Noise::begin()?;
    let mut connections = connections::Connections::default();
    let mut names = names::Names::default();
    let mut starts = starts::Starts::default();
    let mut bodies = bodies::Bodies::default();
    for round in 0..settings.rounds {
        noise.spin();
        if settings.wants("connections") {
            connections.measure(&scene, round)?;
        }
        noise.spin();
        if settings.wants("names") {
            names.measure(&scene, round)?;
        }
        noise.spin();
        if settings.wants("starts") {
            starts.measure(&scene, round)?;
        }
        if settings.wants("bodies") {
            bodies.measure(&scene)?;
        }
        eprintln!("round {} of {}", round + 1, settings.rounds);
    }
    let mut report = Report::default();
    report.figures.extend(connections.figures(&scene.reach));
    report.figures.extend(names.figures(&scene.reach));
    report.figures.extend(starts.figures(&scene.reach));
    report.figures.extend(bodies.figures());
    // These two are a matter of time alone, and one time of theirs is long.
    if settings.wants("standing") {
        report.figures.push(standing::measure(&scene)?);
    }
    if settings.wants("warmth") {
        let (figure, note) = warmth::measure(&scene)?;
        report.figures.push(figure);
        report.notes.push(note);
    }
    if report.figures.is_empty() {
        return Err(
            "nothing was measured: --only takes one of connections, names, starts, bodies, standing, warmth".into(),
        );
    }
    if !settings.in_earnest {
        report.notes.push(
            "Small numbers and one short round show that all works. They say nothing of how it is: that takes --bench.".to_owned(),
        );
    }
    report.notes.push(format!(
        "CPU is the scheduler's count of what the gateway's process ran for, divided by its answers. {} rounds, each with freshly started \
         gateways, one after the other, in turn; one core is the gateway's alone, the load and the stub share the other. {} active connections, \
         each with the next request as soon as it has its answer, 1 KiB bodies, HTTP/1.1, access log to a file. What is compared is compared \
         within each round; the median of that is what counts.",
        settings.rounds, scene.reach.active
    ));
    report
        .notes
        .push("1 kB is 1,000 bytes, 1 MB 1,000 kB; memory is VmRSS, peak memory VmHWM.".to_owned());
    report.notes.push(machine::told()?);
    report.notes.push(street::gateway::version(&program)?);
    report.notes.push(noise.told()?);
    let is_met = report.publish(&settings.report("growth"))?;
    Ok(is_met || !settings.demands())
}

impl Scene<'_> {
    /// Asks as always; what is to be different can be changed.
    fn plan(&self, gateway: &Gateway) -> Plan {
        Plan {
            warm_up_ms: self.settings.warm_up_ms,
            window_ms: self.settings.window_ms,
            connections: self.reach.active,
            prepared: self.reach.first,
            ..Plan::new(&self.street, gateway.port, &[gateway.process.pid()])
        }
    }
}

/// Runs a load, all of which has to be answered, and has to have come to the stub with a good signature.
fn ask(plan: &Plan, stub: &mut Stub) -> Result<Outcome> {
    stub.seen()?;
    let outcome = load::measure(plan, BESIDE)?;
    let seen = stub.seen()?;
    if let Some(failure) = &outcome.first_failure {
        return Err(format!(
            "{} requests failed, the first by {failure}; the stub has seen {seen:?}",
            outcome.failed
        )
        .into());
    }
    if outcome.answered == 0 || seen.signed == 0 || seen.unsigned > 0 || seen.forged > 0 {
        return Err(format!(
            "{} requests were answered in the window, and the stub has seen {seen:?}: all should be signed",
            outcome.answered
        )
        .into());
    }
    Ok(outcome)
}

/// What something is of something else, compared within each round.
fn compared(
    what: &Samples,
    with: &Samples,
    of: impl Into<String>,
    must: Option<f64>,
    aim: Option<f64>,
) -> Demand {
    let rounds = what.0.iter().zip(&with.0);
    Demand {
        of: of.into(),
        value: Samples(rounds.map(|(what, with)| what / with).collect()).median(),
        must,
        aim,
        least: false,
    }
}

/// A count as people write it, such as "10,000 accounts".
fn counted(count: usize, what: &str) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    let plural = if count == 1 { "" } else { "s" };
    format!("{text} {what}{plural}")
}
