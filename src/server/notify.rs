//! What systemd is told (sd_notify(3)): ready, reloading, stopping, and that every worker is alive. Where nobody asks to be told, by
//! `NOTIFY_SOCKET`, nothing is.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::runtime::Handle;
use tokio::time::MissedTickBehavior;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

/// Callers can connect, or the new configuration holds. Without it, `systemctl start` and `systemctl reload` don't come back.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The configuration is being read again; [`ready`] follows, whether or not it was good.
pub fn reloading() {
    tell(&reload_words());
}

/// The end has begun.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// One line for `systemctl status`.
pub fn status(text: &str) {
    tell(&[NotifyState::Status(text)]);
}

/// Tells systemd twice in each `WatchdogSec=` that every worker is alive, for as long as that's so. A worker that hangs answers nobody,
/// while the others may well look healthy: then nothing is said any more, and systemd starts the process anew.
pub(super) async fn watchdog(workers: Vec<Handle>, closing: CancellationToken) {
    let limit = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero());
    if let Some(limit) = limit {
        watch(limit / 2, &workers, &closing, || {
            tell(&[NotifyState::Watchdog]);
        })
        .await;
    }
}

/// Says that all are `alive`, each time once all of them have shown it since the last time.
async fn watch(each: Duration, workers: &[Handle], closing: &CancellationToken, alive: impl Fn()) {
    let mut ticks = interval(each);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for worker in workers {
            // A runtime that turns runs this at once, and one that hangs, never.
            let sign = worker.spawn(async {}).await;
            // Towards the end one worker may have ended before the others.
            if sign.is_err() && !closing.is_cancelled() {
                tracing::error!("a worker is gone: systemd isn't told any more that all are alive");
                return;
            }
        }
        alive();
    }
}

/// systemd orders these by their time, so that the word of an earlier reload isn't taken for that of a later one.
fn reload_words() -> Vec<NotifyState<'static>> {
    let mut words = vec![NotifyState::Reloading];
    words.extend(NotifyState::monotonic_usec_now());
    words
}

fn tell(words: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(words) {
        tracing::warn!(%error, "systemd can't be told");
    }
}

#[cfg(test)]
mod tests {
    use super::reload_words;
    use super::watch;
    use std::sync::mpsc;
    use std::thread;
    use std::thread::JoinHandle;
    use std::time::Duration;
    use tokio::runtime;
    use tokio::runtime::Handle;
    use tokio::sync::oneshot;
    use tokio::time::timeout;
    use tokio_util::sync::CancellationToken;

    const HALF: Duration = Duration::from_millis(5);
    const LONG: Duration = Duration::from_secs(30);

    /// A worker's thread with its runtime, until it's told to end.
    fn worker() -> (Handle, oneshot::Sender<()>, JoinHandle<()>) {
        let runtime = runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        let handle = runtime.handle().clone();
        let (end, ends) = oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            // Either way, it was told.
            let _ = runtime.block_on(ends);
        });
        (handle, end, thread)
    }

    #[tokio::test]
    async fn systemd_is_told_while_every_worker_turns_and_not_while_one_hangs() {
        let workers = [worker(), worker()];
        let handles: Vec<_> = workers.iter().map(|(handle, ..)| handle.clone()).collect();
        let hanging = handles[1].clone();
        let closing = CancellationToken::new();
        let (said, mut hears) = tokio::sync::mpsc::unbounded_channel();
        let watching = tokio::spawn({
            let closing = closing.clone();
            let alive = move || said.send(()).expect("somebody hears");
            async move { watch(HALF, &handles, &closing, alive).await }
        });
        for _ in 0..3 {
            let heard = timeout(LONG, hears.recv()).await.expect("all turn");
            assert!(heard.is_some());
        }
        // The second one blocks until it's released.
        let (blocked, blocks) = oneshot::channel();
        let (release, released) = mpsc::channel::<()>();
        hanging.spawn(async move {
            let _ = blocked.send(());
            let _ = released.recv();
        });
        blocks.await.expect("it blocks");
        // Its last sign may have been given just before.
        while hears.try_recv().is_ok() {}
        let _ = timeout(HALF * 4, hears.recv()).await;
        let silence = timeout(HALF * 20, hears.recv()).await;
        assert!(silence.is_err(), "nothing is said for as long as it hangs");
        drop(release);
        let heard = timeout(LONG, hears.recv()).await.expect("all turn again");
        assert!(heard.is_some());

        // One that ended is missed, unless it's the end of all.
        let [(_, end, thread), (_, last, last_thread)] = workers;
        closing.cancel();
        drop(end);
        thread.join().expect("it ends");
        while hears.try_recv().is_ok() {}
        for _ in 0..3 {
            let heard = timeout(LONG, hears.recv()).await;
            assert!(heard.expect("the other one turns").is_some());
        }
        watching.abort();
        drop(last);
        last_thread.join().expect("it ends");
    }

    #[tokio::test]
    async fn a_worker_that_is_gone_is_missed() {
        let (handle, end, thread) = worker();
        drop(end);
        thread.join().expect("it ends");
        let (workers, closing) = ([handle], CancellationToken::new());
        let watching = watch(HALF, &workers, &closing, || panic!("nobody is alive"));
        timeout(LONG, watching).await.expect("it gives up");
    }

    #[test]
    fn a_reload_has_its_time() {
        let words: Vec<_> = reload_words().iter().map(ToString::to_string).collect();
        let [reloading, at] = words.as_slice() else {
            panic!("{words:?}");
        };
        assert_eq!(reloading, "RELOADING=1");
        let at = at.strip_prefix("MONOTONIC_USEC=").expect("its time");
        assert!(at.parse::<u64>().is_ok_and(|at| at > 0), "{at}");
    }
}
