//! As many lines of one kind as a log can bear, where somebody else can cause them. What isn't written is counted, and told with the next.

use std::sync::Mutex;
use std::sync::PoisonError;

use tokio::time::Instant;

use crate::observe::bucket::Bucket;
use crate::observe::bucket::Rate;

/// Lines of each kind.
const LINES: Rate = Rate {
    burst: 200,
    per_second: 50,
};

/// Lines of one kind.
#[derive(Debug)]
pub struct Ration(Mutex<Lines>);

#[derive(Debug)]
struct Lines {
    bucket: Bucket,
    unlogged: u64,
}

impl Ration {
    /// None was written yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self(Mutex::new(Lines {
            bucket: Bucket::new(LINES, now),
            unlogged: 0,
        }))
    }

    /// Whether a line may be written now; then with how many weren't since the one before, if any.
    pub fn line(&self, now: Instant) -> Option<Option<u64>> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.bucket.take(1, now) {
            let unlogged = std::mem::take(&mut lines.unlogged);
            Some((unlogged > 0).then_some(unlogged))
        } else {
            lines.unlogged += 1;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::LINES;
    use super::Ration;
    use std::time::Duration;
    use tokio::time::Instant;

    #[test]
    fn what_is_not_logged_is_told_with_the_next_line() {
        let now = Instant::now();
        let ration = Ration::new(now);
        for _ in 0..LINES.burst {
            assert_eq!(ration.line(now), Some(None));
        }
        for _ in 0..3 {
            assert_eq!(ration.line(now), None);
        }
        let later = now + Duration::from_secs(1);
        assert_eq!(ration.line(later), Some(Some(3)));
        assert_eq!(ration.line(later), Some(None));
    }
}
