//! How many retries one upstream gets: promise X4. When everything fails, retries are the storm that keeps it down.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

/// Retries in any [`WINDOW`] that need no calls to go by.
pub const RETRIES_MIN: usize = 10;

/// Of this many calls at least, retries may be a share.
pub const CALLS_MIN: u64 = 100;

/// The time that the promise speaks of.
pub const WINDOW: Duration = Duration::from_secs(10);

/// One upstream's budget, for all workers.
///
/// Of any eleven retries in a row, the last is allowed at least a hundred calls or more than ten seconds after the first. From that alone
/// follows, for *any* ten seconds, not only those that end now: fewer than a hundred calls see at most ten retries, and a hundred or
/// more see at most a fifth as many. No rule that knows nothing of the future can allow more and hold that.
#[derive(Debug)]
pub struct Budget {
    window: Duration,
    /// Calls, not counting retries.
    calls: AtomicU64,
    /// The last retries, at most [`RETRIES_MIN`]: when, and after how many calls.
    retries: Mutex<VecDeque<(Instant, u64)>>,
}

impl Budget {
    /// A full one. `slack` is how long a retry may take from being allowed to reaching the host, so that those of two windows don't
    /// arrive in one.
    #[must_use]
    pub fn new(slack: Duration) -> Self {
        Self {
            window: WINDOW + slack,
            calls: AtomicU64::new(0),
            retries: Mutex::default(),
        }
    }

    /// Counts a call, before its first attempt is sent.
    pub fn count_call(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether there's room for a retry now.
    #[must_use]
    pub fn has_room(&self, now: Instant) -> bool {
        self.is_open(&self.retries(), now)
    }

    /// Takes a retry that is sent now; `false` if there's no room.
    #[must_use]
    pub fn take(&self, now: Instant) -> bool {
        let mut retries = self.retries();
        let open = self.is_open(&retries, now);
        if open {
            if retries.len() >= RETRIES_MIN {
                retries.pop_front();
            }
            retries.push_back((now, self.calls.load(Ordering::Relaxed)));
        }
        open
    }

    fn is_open(&self, retries: &VecDeque<(Instant, u64)>, now: Instant) -> bool {
        if retries.len() < RETRIES_MIN {
            return true;
        }
        let calls = self.calls.load(Ordering::Relaxed);
        retries.front().is_none_or(|(sent, before)| {
            now.duration_since(*sent) > self.window || calls - before >= CALLS_MIN
        })
    }

    fn retries(&self) -> MutexGuard<'_, VecDeque<(Instant, u64)>> {
        // Nothing that holds it can panic half-way through a change.
        self.retries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::Budget;
    use super::CALLS_MIN;
    use super::RETRIES_MIN;
    use super::WINDOW;
    use proptest::prelude::*;
    use std::time::Duration;
    use tokio::time::Instant;

    fn now() -> Instant {
        Instant::now()
    }

    #[test]
    fn ten_retries_need_no_calls_and_the_next_one_needs_a_hundred_or_ten_seconds() {
        let (budget, start) = (Budget::new(Duration::ZERO), now());
        for _ in 0..RETRIES_MIN {
            assert!(budget.take(start));
        }
        assert!(!budget.has_room(start + WINDOW) && !budget.take(start + WINDOW));
        assert!(budget.has_room(start + WINDOW + Duration::from_millis(1)));
        for _ in 1..CALLS_MIN {
            budget.count_call();
        }
        assert!(!budget.has_room(start));
        budget.count_call();
        for _ in 0..RETRIES_MIN {
            assert!(budget.take(start));
        }
        assert!(!budget.take(start));
    }

    proptest! {
        /// X4, literally, over every window that begins or ends with an event.
        #[test]
        fn no_ten_seconds_see_more_retries_than_promised(events in prop::collection::vec((0..400_u64, 0..3_u32), 1..600)) {
            let (budget, start) = (Budget::new(Duration::ZERO), now());
            let mut at = Duration::ZERO;
            let mut sent = Vec::new();
            for (pause, kind) in events {
                at += Duration::from_millis(pause / 8);
                if kind == 0 {
                    budget.count_call();
                    sent.push((at, false));
                } else if budget.take(start + at) {
                    sent.push((at, true));
                }
            }
            for (number, (from, _)) in sent.iter().enumerate() {
                let all = sent[number..].iter().take_while(|(at, _)| *at <= *from + WINDOW);
                let retries = all.clone().filter(|(_, retry)| *retry).count();
                let calls = all.count() - retries;
                let allowed = if calls >= 100 { calls / 5 } else { 10 };
                prop_assert!(retries <= allowed, "{retries} retries among {calls} calls");
            }
        }
    }
}
