//! The gateway against real peers that do the same job on the same machine in one run: nginx with Lua, nginx that only passes on, and a
//! direct call. The figure is the processor time of the proxy's process for each request, by the scheduler's own count.
//!
//! `cargo bench --bench peers` builds the gateway as it's shipped and runs nine rounds; `-- --rounds 3 --only "HTTP/2"` fewer, and of them those
//! cells alone, and `--gateway PROGRAM` measures another program. Without `--bench`, as `cargo test --bench peers` has it, it's one short
//! round that shows that all still works.
#![allow(
    clippy::print_stderr,
    reason = "a program that talks to whoever started it"
)]

#[path = "../street/mod.rs"]
mod street;

use std::collections::BTreeMap;
use std::process::ExitCode;

use street::gateway::{Gateway, Shape};
use street::load::{self, Mode, Outcome, Plan};
use street::nginx::{Job, Line, Nginx};
use street::noise::Noise;
use street::report::{Demand, Figure, Report, Samples};
use street::settings::Settings;
use street::stub::{Seen, Stub};
use street::{BESIDE, BOTH, Cores, MEASURED, Result, Street, clock, machine};

const GATEWAY: &str = "gateway";
const LUA: &str = "nginx + Lua";
const PASSES: &str = "nginx that passes on";
/// With a line in the log as long as the gateway's.
const LUA_FULL: &str = "nginx + Lua, full log line";
const PASSES_FULL: &str = "nginx that passes on, full log line";
const DIRECT: &str = "direct call";

/// New connections of each kind that have to come without one failure.
const CONNECTIONS: f64 = 10_000.0;

fn main() -> ExitCode {
    if let Some(done) = street::task() {
        return done;
    }
    match run(&Settings::from_arguments(9)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One thing that each proxy is asked to do.
struct Cell {
    name: &'static str,
    mode: Mode,
    connections: usize,
    body_bytes: usize,
    post_quantum: bool,
}

impl Cell {
    fn is_small(&self) -> bool {
        let kept = matches!(self.mode, Mode::Closed | Mode::Streams { .. });
        kept && self.body_bytes == KEPT.body_bytes
    }
}

const KEPT: Cell = Cell {
    name: "",
    mode: Mode::Closed,
    connections: 64,
    body_bytes: 1_024,
    post_quantum: false,
};

/// Requests a second in the cell that is about latency.
const RATE: u32 = 2_000;

const CELLS: [Cell; 9] = [
    Cell {
        name: "HTTP/1.1, 1 KiB",
        ..KEPT
    },
    Cell {
        name: "HTTP/1.1, 4 KiB",
        body_bytes: 4 * 1_024,
        ..KEPT
    },
    Cell {
        name: "HTTP/1.1, 64 KiB",
        body_bytes: 64 * 1_024,
        connections: 16,
        ..KEPT
    },
    Cell {
        name: "HTTP/1.1, 1 MiB",
        body_bytes: 1_024 * 1_024,
        connections: 8,
        ..KEPT
    },
    Cell {
        name: "HTTP/2, 1 KiB",
        mode: Mode::Streams { streams: 16 },
        connections: 4,
        ..KEPT
    },
    Cell {
        name: "new connection",
        mode: Mode::Fresh { resumed: false },
        connections: 16,
        ..KEPT
    },
    Cell {
        name: "new connection, resumed",
        mode: Mode::Fresh { resumed: true },
        connections: 16,
        ..KEPT
    },
    Cell {
        name: "new connection, hybrid key exchange",
        mode: Mode::Fresh { resumed: false },
        connections: 16,
        post_quantum: true,
        ..KEPT
    },
    Cell {
        name: "2,000 requests a second",
        mode: Mode::Open { rate: RATE },
        ..KEPT
    },
];

const TWO_WORKERS: &str = "HTTP/1.1, 1 KiB, two workers";
/// In a process that has served the sizes before it. What it may be is said of one of its own, in `growth`.
const PEAK: &str = "peak memory, 1 MiB, 8 in flight, after the others";

/// All outcomes, by cell and by whom.
type Outcomes = BTreeMap<(&'static str, &'static str), Vec<Outcome>>;

fn run(settings: &Settings) -> Result<bool> {
    let program = settings.program()?;
    let street = Street::new(&program)?;
    let mut noise = Noise::begin()?;
    let (mut outcomes, mut peaks) = (Outcomes::new(), BTreeMap::<_, Samples>::new());
    for round in 0..settings.rounds {
        noise.spin();
        one_core(&street, settings, round, &mut outcomes, &mut peaks)?;
        noise.spin();
        if settings.wants(TWO_WORKERS) {
            two_workers(&street, settings, round, &mut outcomes)?;
        }
        eprintln!("round {} of {}", round + 1, settings.rounds);
    }
    let mut report = Report {
        figures: figures(&outcomes, &peaks),
        ..Report::default()
    };
    report.notes.push(format!(
        "CPU is the scheduler's count of what the proxy's process ran for, divided by its answers. {} rounds, each with freshly started proxies, in turn; \
         one core is the proxy's alone, the load and the stub share the other. TLS 1.3 with X25519 on both sides unless the line says otherwise, P-256 certificates, access log to a file.",
        settings.rounds
    ));
    report.notes.push(machine::told()?);
    report.notes.push(format!(
        "{}; {}",
        Nginx::version()?,
        street::gateway::version(&program)?
    ));
    report.notes.push(noise.told()?);
    let is_met = report.publish(&settings.report("peers"))?;
    Ok(is_met || !settings.demands())
}

/// Who is measured, where, and whether what it sends on is signed.
struct Proxy {
    name: &'static str,
    port: u16,
    pids: Vec<u32>,
    signs: bool,
}

impl Proxy {
    fn nginx(name: &'static str, nginx: &Nginx, job: Job) -> Result<Self> {
        Ok(Self {
            name,
            port: nginx.port,
            pids: nginx.process.pids()?,
            signs: job == Job::Signs,
        })
    }

    /// What a log line costs is a question of small requests.
    fn is_full(&self) -> bool {
        [LUA_FULL, PASSES_FULL].contains(&self.name)
    }
}

fn one_core(
    street: &Street,
    settings: &Settings,
    round: usize,
    outcomes: &mut Outcomes,
    peaks: &mut BTreeMap<&'static str, Samples>,
) -> Result<()> {
    let mut stub = Stub::start(street, 1, BESIDE)?;
    let host = stub.ports[0];
    let gateway = Gateway::start(street, &stub.ports, Shape::PLAIN, MEASURED)?;
    let gateway_proxy = Proxy {
        name: GATEWAY,
        port: gateway.port,
        pids: gateway.process.pids()?,
        signs: true,
    };
    let peer = |job, line| Nginx::start(street, host, (job, line), 1, MEASURED);
    let (lua, passes) = (
        peer(Job::Signs, Line::Default)?,
        peer(Job::Passes, Line::Default)?,
    );
    let (lua_full, passes_full) = (
        peer(Job::Signs, Line::Full)?,
        peer(Job::Passes, Line::Full)?,
    );
    let mut proxies = [
        gateway_proxy,
        Proxy::nginx(LUA, &lua, Job::Signs)?,
        Proxy::nginx(PASSES, &passes, Job::Passes)?,
        Proxy::nginx(LUA_FULL, &lua_full, Job::Signs)?,
        Proxy::nginx(PASSES_FULL, &passes_full, Job::Passes)?,
    ];
    // Whoever comes first has the caches as the one before left them: they take turns at that.
    proxies.rotate_left(round % 5);
    for cell in CELLS.iter().filter(|cell| settings.wants(cell.name)) {
        let asked = |proxy: &&Proxy| !proxy.is_full() || cell.is_small();
        for proxy in proxies.iter().filter(asked) {
            let is_large = cell.body_bytes == 1_024 * 1_024;
            if is_large {
                proxy
                    .pids
                    .iter()
                    .try_for_each(|pid| clock::forget_peak(*pid))?;
            }
            let outcome = measure(street, settings, cell, proxy, &mut stub, BESIDE)?;
            outcomes
                .entry((cell.name, proxy.name))
                .or_default()
                .push(outcome);
            if is_large {
                let peak: u64 = proxy
                    .pids
                    .iter()
                    .map(|pid| clock::memory(*pid, "VmHWM"))
                    .sum::<Result<_>>()?;
                peaks
                    .entry(proxy.name)
                    .or_default()
                    .0
                    .push(peak as f64 / 1e6);
            }
        }
        if matches!(cell.mode, Mode::Open { .. }) {
            let direct = Proxy {
                name: DIRECT,
                port: host,
                pids: Vec::new(),
                signs: true,
            };
            let outcome = measure(street, settings, cell, &direct, &mut stub, BESIDE)?;
            outcomes
                .entry((cell.name, DIRECT))
                .or_default()
                .push(outcome);
        }
    }
    Ok(())
}

fn two_workers(
    street: &Street,
    settings: &Settings,
    round: usize,
    outcomes: &mut Outcomes,
) -> Result<()> {
    let mut stub = Stub::start(street, 1, BOTH)?;
    let gateway = Gateway::start(
        street,
        &stub.ports,
        Shape {
            workers: 2,
            ..Shape::PLAIN
        },
        BOTH,
    )?;
    let nginx = Nginx::start(street, stub.ports[0], (Job::Signs, Line::Default), 2, BOTH)?;
    let mut proxies = [
        Proxy {
            name: GATEWAY,
            port: gateway.port,
            pids: gateway.process.pids()?,
            signs: true,
        },
        Proxy::nginx(LUA, &nginx, Job::Signs)?,
    ];
    proxies.rotate_left(round % 2);
    for proxy in &proxies {
        let outcome = measure(street, settings, &KEPT, proxy, &mut stub, BOTH)?;
        outcomes
            .entry((TWO_WORKERS, proxy.name))
            .or_default()
            .push(outcome);
    }
    Ok(())
}

fn measure(
    street: &Street,
    settings: &Settings,
    cell: &Cell,
    proxy: &Proxy,
    stub: &mut Stub,
    cores: Cores,
) -> Result<Outcome> {
    let plan = Plan {
        mode: cell.mode,
        connections: cell.connections,
        body_bytes: cell.body_bytes,
        post_quantum: cell.post_quantum,
        signs: proxy.name == DIRECT,
        warm_up_ms: settings.warm_up_ms,
        window_ms: settings.window_ms,
        ..Plan::new(street, proxy.port, &proxy.pids)
    };
    stub.seen()?;
    let outcome = load::measure(&plan, cores)?;
    let seen = stub.seen()?;
    let words = |what: &str| {
        format!(
            "{}, {}: {what}; the stub has seen {seen:?}",
            proxy.name, cell.name
        )
    };
    if let Some(failure) = &outcome.first_failure {
        return Err(words(&format!(
            "{} failed, the first by {failure}",
            outcome.failed
        ))
        .into());
    }
    if outcome.answered == 0 || !does_its_job(proxy, &seen) {
        return Err(words("it doesn't do its job").into());
    }
    if cell.mode == (Mode::Fresh { resumed: true }) && outcome.resumed < outcome.answered {
        return Err(words(&format!(
            "only {} of {} resumed",
            outcome.resumed, outcome.answered
        ))
        .into());
    }
    Ok(outcome)
}

fn does_its_job(proxy: &Proxy, seen: &Seen) -> bool {
    let (all, others) = if proxy.signs {
        (seen.signed, seen.unsigned)
    } else {
        (seen.unsigned, seen.signed)
    };
    all > 0 && others == 0 && seen.forged == 0
}

fn figures(outcomes: &Outcomes, peaks: &BTreeMap<&'static str, Samples>) -> Vec<Figure> {
    let of = |cell: &'static str, unit: &'static str, take: fn(&Outcome) -> f64| {
        let whose = [GATEWAY, LUA, PASSES, LUA_FULL, PASSES_FULL, DIRECT]
            .into_iter()
            .filter_map(|whose| {
                let outcomes = outcomes.get(&(cell, whose))?;
                Some((whose, Samples(outcomes.iter().map(take).collect())))
            });
        let samples: Vec<_> = whose.collect();
        (!samples.is_empty()).then(|| Figure::new(cell, unit, samples))
    };
    let cpu = |cell: &'static str| of(cell, "µs CPU", |outcome| outcome.cpu_us);
    let mut all = Vec::new();
    all.extend(cpu(CELLS[0].name).map(|figure| {
        figure
            .against(LUA, Some(0.85), None)
            .against(PASSES, Some(1.3), Some(1.0))
            .against(LUA_FULL, None, None)
            .against(PASSES_FULL, None, None)
    }));
    for cell in &CELLS[1..4] {
        all.extend(cpu(cell.name).map(|figure| figure.against(LUA, Some(1.0), Some(0.7))));
    }
    if !peaks.is_empty() {
        let samples = [GATEWAY, LUA, PASSES]
            .into_iter()
            .filter_map(|whose| Some((whose, peaks.get(whose)?.clone())));
        all.push(Figure::new(PEAK, "MB", samples.collect()));
    }
    all.extend(cpu(CELLS[4].name).map(|figure| {
        figure
            .against(LUA, Some(0.8), None)
            .against(PASSES, None, Some(1.0))
            .against(LUA_FULL, None, None)
            .against(PASSES_FULL, None, None)
    }));
    for cell in &CELLS[5..8] {
        let must = (!cell.post_quantum).then_some(0.3);
        let count: u64 = outcomes
            .get(&(cell.name, GATEWAY))
            .iter()
            .flat_map(|outcomes| outcomes.iter())
            .map(|outcome| outcome.answered)
            .sum();
        all.extend(cpu(cell.name).map(|figure| {
            let figure = figure.against(PASSES, must, Some(0.2));
            // One failure would have ended the run.
            let without_failure = Demand {
                of: "without a failure".to_owned(),
                value: count as f64,
                must: must.map(|_| CONNECTIONS),
                aim: None,
                least: true,
            };
            figure.demand(without_failure)
        }));
    }
    if let (Some(figure), Some(one)) = (cpu(TWO_WORKERS), outcomes.get(&(CELLS[0].name, GATEWAY))) {
        let one = Samples(one.iter().map(|outcome| outcome.cpu_us).collect()).median();
        let value = figure.median(GATEWAY) / one;
        let own = Demand {
            of: "x its own with one".to_owned(),
            value,
            must: Some(1.6),
            aim: None,
            least: false,
        };
        all.push(figure.demand(own).against(LUA, Some(0.8), None));
    }
    all.extend(cpu(CELLS[8].name));
    all.extend(of(
        CELLS[0].name,
        "requests a second (wall clock)",
        |outcome| outcome.answered as f64 / outcome.seconds,
    ));
    all.extend(of(
        CELLS[8].name,
        "µs at the median (wall clock)",
        |outcome| outcome.p50_us as f64,
    ));
    all.extend(
        of(CELLS[8].name, "µs at p99 (wall clock)", |outcome| {
            outcome.p99_us as f64
        })
        .map(|figure| {
            let added = |whose| figure.median(whose) - figure.median(DIRECT);
            let demand = Demand {
                of: format!("x what {PASSES} adds"),
                value: added(GATEWAY) / added(PASSES),
                must: None,
                aim: Some(1.15),
                least: false,
            };
            figure.demand(demand)
        }),
    );
    all.extend(of(CELLS[8].name, "µs at p99.9 (wall clock)", |outcome| {
        outcome.p999_us as f64
    }));
    all
}
