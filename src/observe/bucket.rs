//! How much of something is allowed: so much at once, and so much a second for ever. Reads no clock.

use std::time::Duration;

use tokio::time::Instant;

/// A token bucket, in thousandths of a token so that a short time fills it too.
#[derive(Debug)]
pub struct Bucket {
    rate: Rate,
    filled: u64,
    since: Instant,
}

/// How large a bucket is, and how fast it fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// At once, and never more.
    pub burst: u32,
    /// Each second.
    pub per_second: u32,
}

const THOUSAND: u64 = 1_000;

impl Bucket {
    /// A full one.
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self {
            rate,
            filled: u64::from(rate.burst) * THOUSAND,
            since: now,
        }
    }

    /// Takes so many at `now`; `false` if there are fewer, and then none is taken.
    pub fn take(&mut self, count: u32, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.since);
        let earned = elapsed.as_millis() * u128::from(self.rate.per_second);
        if earned > 0 {
            self.fill(u64::try_from(earned).unwrap_or(u64::MAX));
            // What is short of a millisecond is counted the next time.
            let counted = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
            self.since += Duration::from_millis(counted);
        }
        let rest = self.filled.checked_sub(u64::from(count) * THOUSAND);
        self.filled = rest.unwrap_or(self.filled);
        rest.is_some()
    }

    /// Puts so many in.
    pub fn earn(&mut self, count: u32) {
        self.fill(u64::from(count) * THOUSAND);
    }

    fn fill(&mut self, thousandths: u64) {
        let full = u64::from(self.rate.burst) * THOUSAND;
        self.filled = self.filled.saturating_add(thousandths).min(full);
    }
}

#[cfg(test)]
mod tests {
    use super::Bucket;
    use super::Rate;
    use proptest::prelude::*;
    use std::time::Duration;
    use tokio::time::Instant;

    const RATE: Rate = Rate {
        burst: 10,
        per_second: 4,
    };

    #[test]
    fn a_burst_is_allowed_at_once_and_the_rate_for_ever() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut bucket = Bucket::new(RATE, start);
        assert!(bucket.take(7, at(0)));
        assert!(!bucket.take(4, at(0)), "three are left");
        assert!(bucket.take(3, at(0)));
        assert!(!bucket.take(1, at(249)));
        assert!(bucket.take(1, at(250)));
        assert!(!bucket.take(1, at(499)), "a refusal costs nothing");
        assert!(bucket.take(1, at(500)));
        assert!(!bucket.take(11, at(3_600_000)), "never more than a burst");
        assert!(bucket.take(10, at(3_600_000)));
        bucket.earn(2);
        assert!(bucket.take(2, at(3_600_000)));
        assert!(
            !bucket.take(1, at(0)),
            "a clock that goes back gives nothing"
        );
    }

    proptest! {
        /// However it's asked: never more than a burst and what its time gives.
        #[test]
        fn it_never_gives_more(steps in proptest::collection::vec((0u64..3_000, 1u32..6), 1..200)) {
            let start = Instant::now();
            let mut bucket = Bucket::new(RATE, start);
            let (mut ms, mut taken) = (0, 0);
            for (pause, count) in steps {
                ms += pause;
                if bucket.take(count, start + Duration::from_millis(ms)) {
                    taken += u64::from(count);
                }
            }
            prop_assert!(taken * 1_000 <= 10_000 + ms * 4, "{taken} in {ms} ms");
        }
    }
}
