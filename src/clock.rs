//! The two clocks: wall time for stamps, monotonic time for deadlines. The only file that asks the machine what time it is.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use tokio::time::Instant;

/// Where the time comes from; passed to whatever needs it, so that a test can choose it.
#[derive(Clone)]
pub struct Clock {
    wall: Arc<dyn Fn() -> Duration + Send + Sync>,
}

impl Clock {
    /// The machine's own clock.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the wall clock"
    )]
    pub fn system() -> Self {
        Self {
            // A machine set to before 1970 gives 0: the vendor doesn't check the stamp, and nothing here depends on it.
            wall: Arc::new(|| {
                SystemTime::now()
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .unwrap_or_default()
            }),
        }
    }

    /// A wall clock that stands still at `since_epoch`; the monotonic clock goes on.
    #[must_use]
    pub fn fixed(since_epoch: Duration) -> Self {
        Self {
            wall: Arc::new(move || since_epoch),
        }
    }

    /// Wall time since 1970-01-01 UTC.
    #[must_use]
    pub fn since_epoch(&self) -> Duration {
        (self.wall)()
    }

    /// Monotonic time, for deadlines and durations.
    #[must_use]
    pub fn now(&self) -> Instant {
        Instant::now()
    }

    /// Both.
    #[must_use]
    pub fn moment(&self) -> Moment {
        Moment {
            wall: self.since_epoch(),
            monotonic: self.now(),
        }
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock").finish_non_exhaustive()
    }
}

/// Both clocks, read together.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Since 1970-01-01 UTC.
    pub wall: Duration,
    /// For intervals.
    pub monotonic: Instant,
}

/// The `time-stamp` header's value: Unix milliseconds, new for each attempt. It isn't signed (contract, section 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp(u64);

impl Stamp {
    /// Of an attempt that starts then, in wall time since 1970-01-01 UTC.
    #[must_use]
    pub fn at(since_epoch: Duration) -> Self {
        Self(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
    }

    /// Milliseconds since 1970-01-01 UTC.
    #[must_use]
    pub fn unix_ms(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
