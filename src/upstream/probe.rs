//! Looks whether a host that's held to be down is back: TCP and TLS alone, which costs no call.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep_until;

use crate::clock::Clock;
use crate::observe::log::chain;
use crate::upstream::Error;
use crate::upstream::Upstream;
use crate::upstream::breaker::State;
use crate::upstream::connect::connect;

/// Between two probes, give or take a fifth.
const INTERVAL: Duration = Duration::from_millis(250);

/// A probe that takes longer is given up. One that was lost on the way must not hide that the host is back: the next ones don't wait
/// for it.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Probes on their way at a time.
const PROBES_MAX: usize = 8;

/// Why it can't be reached is said at once, and then so often.
const SAID_AGAIN: Duration = Duration::from_secs(30);

/// Runs until the upstream is retired, or its runtime ends; while the breaker is closed it only waits for it to open.
pub async fn run(upstream: Arc<Upstream>, clock: Clock) {
    tokio::select! {
        () = watch(Arc::clone(&upstream), clock) => {}
        () = upstream.retired.cancelled() => {}
    }
}

async fn watch(upstream: Arc<Upstream>, clock: Clock) {
    loop {
        upstream.breaker.opened().await;
        let mut probes = JoinSet::new();
        let (mut next, mut number) = (clock.now() + pause(), 0);
        let mut said = None;
        while upstream.breaker.state() == State::Open {
            tokio::select! {
                () = sleep_until(next) => {
                    next = clock.now() + pause();
                    if probes.len() < PROBES_MAX {
                        probes.spawn(probe(Arc::clone(&upstream), clock.clone(), number));
                        number += 1;
                    }
                }
                Some(probe) = probes.join_next() => {
                    // A probe that panicked has found out nothing.
                    let Ok(probe) = probe else { continue };
                    upstream.count_probe(probe.is_ok());
                    match probe {
                        Ok(()) => upstream.breaker.half_open(),
                        Err(error) if said.is_none_or(|said| clock.now() - said >= SAID_AGAIN) => {
                            said = Some(clock.now());
                            tracing::warn!(upstream = %upstream.settings.name, cause = chain(&error), "the upstream can't be reached");
                        }
                        Err(_) => {}
                    }
                }
            }
        }
        // Those that are still on their way end with the set.
    }
}

/// TCP and TLS with the host, within its connect timeout.
///
/// # Errors
/// Why it can't be reached, or isn't who it should be.
pub async fn reach(upstream: &Upstream, clock: &Clock) -> Result<(), Error> {
    let deadline = clock.now() + upstream.settings.connect_timeout;
    connect(upstream, clock, deadline, 0).await.map(drop)
}

/// Of several addresses each begins with another: one that is dead hides none that is well.
async fn probe(upstream: Arc<Upstream>, clock: Clock, number: usize) -> Result<(), Error> {
    let deadline = clock.now() + TIMEOUT;
    connect(&upstream, &clock, deadline, number).await.map(drop)
}

/// With jitter, so that gateways that saw a host go don't all knock at once.
fn pause() -> Duration {
    INTERVAL.mul_f64(0.8 + 0.4 * fastrand::f64())
}
