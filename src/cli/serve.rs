//! `serve`: the gateway itself. Logs to standard error; prints nothing to standard output.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use tokio::runtime;
use tokio::signal::unix::Signal;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::sync::Notify;

use crate::cli::Configured;
use crate::cli::EXIT_CONFIGURATION;
use crate::cli::say_error;
use crate::cli::say_faults;
use crate::cli::signals::Signals;
use crate::clock::Clock;
use crate::config;
use crate::config::reader::Reader;
use crate::observe::log;
use crate::server::Server;
use crate::server::notify;
use crate::server::reload::Source;
use crate::server::socket::Passed;
use crate::stop::Stop;

pub(super) fn run(configured: &Configured) -> anyhow::Result<ExitCode> {
    // First of all: there's no other thread yet.
    let passed = Passed::take();
    // A wish to reload that comes while it starts is no wish to end.
    let hang_up = hang_up_watched().context("watching for signals")?;
    let reader = Arc::new(Reader::default());
    let (path, set) = (configured.config.clone(), configured.set.clone());
    let clock = Clock::system();
    let now = clock.clone();
    let load = move |reader: &Reader| config::load(&path, &set, reader, now.since_epoch());
    let loaded = load(&reader).and_then(|mut config| {
        config.settle_keys(|_| None)?;
        Ok(config)
    });
    let config = match loaded {
        Ok(config) => config,
        Err(faults) => return Ok(say_faults(&faults)),
    };
    let (subscriber, log, _writer) = log::subscriber(&config.log);
    let _ = tracing::subscriber::set_global_default(subscriber);
    for notice in &config.notices {
        tracing::warn!(%notice, "configuration");
    }
    let stop = Stop::default();
    let asked = Arc::new(Notify::new());
    let source = Source {
        load: Arc::new(load),
        reader,
        asked: Arc::clone(&asked),
        log: Arc::new(log),
    };
    let bound =
        passed.and_then(|passed| Server::bind(config, Some(source), clock, stop.clone(), passed));
    let server = match bound {
        Ok(server) => server,
        Err(error) => {
            say_error(&error.to_string());
            return Ok(if error.is_configuration() {
                ExitCode::from(EXIT_CONFIGURATION)
            } else {
                ExitCode::FAILURE
            });
        }
    };
    let address = server.address().context("the listener's address")?;
    let admin = server.admin_address().context("the admin's address")?;
    let passed = server.is_passed().then_some(true);
    let beside = async move {
        match Signals::watch() {
            Ok(signals) => {
                // Whoever reads this may send signals: it's said once they're watched.
                tracing::info!(version = env!("CARGO_PKG_VERSION"), %address, %admin, passed, "listening");
                notify::status(&format!("serving at {address}"));
                notify::ready();
                tokio::spawn(hang_ups(hang_up, asked));
                ends(signals, stop).await;
            }
            Err(error) => {
                // To end now is better than to be deaf to every wish to end.
                stop.draining.cancel();
                tracing::error!(%error, "signals can't be watched");
            }
        }
    };
    let cut = server.run(beside).context("serving")?;
    if cut.connections + cut.calls > 0 {
        tracing::error!(
            connections = cut.connections,
            calls = cut.calls,
            "cut off: what was under way when the time was up, or a second signal came"
        );
        return Ok(ExitCode::FAILURE);
    }
    tracing::info!("ended");
    Ok(ExitCode::SUCCESS)
}

/// From now on a SIGHUP doesn't end the process by itself. That needs a runtime for a moment; what comes is told to those that run later.
fn hang_up_watched() -> io::Result<Signal> {
    let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
    let _within = runtime.enter();
    signal(SignalKind::hangup())
}

/// The first SIGTERM or SIGINT starts the end, a second one is the end.
async fn ends(mut signals: Signals, stop: Stop) {
    signals.wish_to_end().await;
    // First what matters, then the word on it.
    stop.draining.cancel();
    notify::stopping();
    notify::status("ending: calls under way are answered");
    tracing::info!("asked to end");
    signals.wish_to_end().await;
    stop.cut.cancel();
    tracing::warn!("asked to end at once");
}

/// A SIGHUP, which would end the process if nobody watched for it, asks for a reload. Several before it begins are one.
async fn hang_ups(mut hang_up: Signal, asked: Arc<Notify>) {
    while hang_up.recv().await.is_some() {
        asked.notify_one();
    }
}
