//! `check`: every fault of the configuration at once, what `serve` would go on without among them.

use std::io;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::runtime;

use crate::cli::Configured;
use crate::cli::say_faults;
use crate::clock::Clock;
use crate::config;
use crate::config::Config;
use crate::config::Ending;
use crate::config::fault::Faults;
use crate::config::reader::Reader;
use crate::observe::log::chain;
use crate::observe::metrics::Metrics;
use crate::upstream::Upstream;
use crate::upstream::probe;

/// What is checked.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    configured: Configured,
    /// Connect to each upstream too, and verify its certificate; no call is made. Exit 1 if one can't be reached so
    #[arg(long)]
    connect: bool,
    /// Print the fingerprint of each account's key too, as the metrics of a gateway that uses it have it
    #[arg(long)]
    keys: bool,
}

/// Ends that are told, the first ones first.
const ENDINGS_MAX: usize = 10;

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let (configured, clock) = (&arguments.configured, Clock::system());
    let now = clock.since_epoch();
    let loaded = config::load(&configured.config, &configured.set, &Reader::default(), now);
    let mut config = match loaded {
        Ok(config) => config,
        Err(faults) => return Ok(say_faults(&faults)),
    };
    // What `serve` would go on without is a fault to whoever asks.
    let bad_keys = config.bad_keys.drain(..).map(|(_, fault)| fault);
    let faults: Vec<_> = bad_keys.chain(config.notices.drain(..)).collect();
    if !faults.is_empty() {
        return Ok(say_faults(&Faults::in_order(faults)));
    }
    let counted =
        |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    let accounts = counted(config.accounts.len(), "account");
    let callers = counted(config.callers.len(), "caller");
    let operations = counted(config.catalogue.iter().count(), "operation");
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "{}: good ({accounts}, {callers}, {operations})",
        configured.config.display()
    )?;
    config.door.endings.sort_by_key(|ending| ending.at);
    for ending in config.door.endings.iter().take(ENDINGS_MAX) {
        writeln!(out, "{}", until(ending, now))?;
    }
    if config.door.endings.len() > ENDINGS_MAX {
        let more = config.door.endings.len() - ENDINGS_MAX;
        writeln!(out, "and {more} more, later")?;
    }
    if arguments.keys {
        for account in &config.accounts {
            if let Ok(key) = &account.key {
                writeln!(out, "accounts.{}: key {}", account.name, key.fingerprint())?;
            }
        }
    }
    if arguments.connect && !reach(&config, &clock, &mut out)? {
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// When something ends, for people.
fn until(Ending { key, of, at }: &Ending, now: Duration) -> String {
    let day = config::day(*at);
    let days = at.saturating_sub(now).as_secs() / (24 * 3_600);
    format!("{key}: {of} ends on {day}, in {days} days")
}

/// Whether every upstream takes a connection, and its certificate is good.
fn reach(config: &Config, clock: &Clock, out: &mut impl Write) -> anyhow::Result<bool> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let metrics = Metrics::new();
    let mut good = true;
    for route in &config.upstreams {
        let name = &route.upstream.name;
        let upstream = Arc::new(Upstream::new(route.upstream.clone(), &metrics)?);
        let reached = runtime.block_on(probe::reach(&upstream, clock));
        match reached {
            Ok(()) if route.upstream.base_url.is_tls() => {
                writeln!(out, "upstreams.{name}: reached, its certificate is good")?;
            }
            Ok(()) => writeln!(out, "upstreams.{name}: reached")?,
            Err(error) => {
                good = false;
                let cause = chain(&error);
                writeln!(io::stderr().lock(), "upstreams.{name}: {cause}")?;
            }
        }
    }
    Ok(good)
}
