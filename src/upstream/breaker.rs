//! The breaker of one upstream: once it's plainly down, calls are refused at once rather than each waiting for its own failure. Knows
//! times and results alone; who looks whether the host is back is `probe`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prometheus::IntCounter;
use prometheus::IntGauge;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::name::UpstreamName;

/// What opens it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Transport failures in a row, all of attempts that began after the last success. The others say nothing of what is now: hung calls
    /// end last, and would look like a row.
    pub failures: u32,
    /// Or this share of the attempts, in percent,
    pub percent: u32,
    /// of at least so many,
    pub volume: u32,
    /// within this time.
    pub window: Duration,
}

/// How an attempt speaks of the host's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It answered, whatever it said.
    Well,
    /// It couldn't be reached, or the connection broke, or time was up.
    Ill,
    /// The attempt says nothing of the host.
    Unknown,
}

/// As metrics and log name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// All calls pass.
    Closed,
    /// One call at a time passes; its result decides.
    HalfOpen,
    /// None passes.
    Open,
}

/// The host is held to be down: nothing was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open;

/// Shared by all workers.
pub struct Breaker {
    name: UpstreamName,
    rules: Rules,
    inner: Mutex<Inner>,
    /// Rings when it opens.
    opened: Notify,
    falls: AtomicU64,
    gauge: IntGauge,
    opens: IntCounter,
}

struct Inner {
    state: State,
    /// The last call that was let through to decide, and when.
    trial: Option<(u64, Instant)>,
    trials: u64,
    /// Rises with each fall from closed: a success after one says nothing of the next.
    outage: u64,
    /// Rises with each change, so that what began before one doesn't count after it.
    era: u64,
    in_a_row: u32,
    last_success: Option<Instant>,
    /// Attempts of the window, oldest first, in slices of time.
    slices: VecDeque<Slice>,
    since: Option<Instant>,
    /// Another one has taken its place.
    retired: bool,
}

#[derive(Clone, Copy)]
struct Slice {
    began: Instant,
    attempts: u32,
    failures: u32,
}

/// The window moves in tenths.
const SLICES: u32 = 10;

/// A trial that hasn't decided by then doesn't keep the next one waiting: it may hang in a host that has recovered since. Less than the
/// second within which such a host is to be served again; much less, and a host that hangs would get all the connections there are.
pub const TRIAL_WAIT: Duration = Duration::from_millis(800);

/// Leave to make one attempt. Its result is told, or it says nothing of the host.
#[must_use]
pub struct Pass {
    breaker: Arc<Breaker>,
    outage: u64,
    era: u64,
    began: Instant,
    /// Its number, if it decides.
    trial: Option<u64>,
    told: bool,
}

impl Breaker {
    /// A closed one.
    #[must_use]
    pub fn new(name: UpstreamName, rules: Rules, gauge: IntGauge, opens: IntCounter) -> Self {
        gauge.set(0);
        Self {
            name,
            rules,
            inner: Mutex::new(Inner {
                state: State::Closed,
                trial: None,
                trials: 0,
                outage: 0,
                era: 0,
                in_a_row: 0,
                last_success: None,
                slices: VecDeque::new(),
                since: None,
                retired: false,
            }),
            opened: Notify::new(),
            falls: AtomicU64::new(0),
            gauge,
            opens,
        }
    }

    /// What it is now.
    #[must_use]
    pub fn state(&self) -> State {
        self.inner().state
    }

    /// Asks for leave to make one attempt.
    ///
    /// # Errors
    /// When it's open, or half open and another call is deciding.
    pub fn enter(self: &Arc<Self>, now: Instant) -> Result<Pass, Open> {
        let mut inner = self.inner();
        let trial = match inner.state {
            State::Closed => None,
            State::Open => return Err(Open),
            State::HalfOpen => {
                if inner.is_deciding(now) {
                    return Err(Open);
                }
                inner.trials += 1;
                inner.trial = Some((inner.trials, now));
                Some(inner.trials)
            }
        };
        Ok(Pass {
            breaker: Arc::clone(self),
            outage: inner.outage,
            era: inner.era,
            began: now,
            trial,
            told: false,
        })
    }

    /// Rises each time that the host is found to be down. A connection of an earlier count may lead to what is no more.
    #[must_use]
    pub fn falls(&self) -> u64 {
        self.falls.load(Ordering::Acquire)
    }

    /// Whether a call would be refused now. Takes no trial.
    #[must_use]
    pub fn refuses(&self, now: Instant) -> bool {
        let inner = self.inner();
        match inner.state {
            State::Closed => false,
            State::Open => true,
            State::HalfOpen => inner.is_deciding(now),
        }
    }

    /// Waits until it's open.
    pub async fn opened(&self) {
        loop {
            let opened = self.opened.notified();
            if self.state() == State::Open {
                return;
            }
            opened.await;
        }
    }

    /// The host can be reached again: one call may try.
    pub fn half_open(&self) {
        let mut inner = self.inner();
        if inner.state == State::Open && !inner.retired {
            self.change(&mut inner, State::HalfOpen);
            tracing::info!(upstream = %self.name, "the host can be reached again: one call at a time may try it");
        }
    }

    fn record(&self, pass: &Pass, health: Health, cause: &str, now: Instant) {
        let mut inner = self.inner();
        if inner.retired {
            return;
        }
        if let Some(number) = pass.trial {
            if inner.trial.is_some_and(|(latest, _)| latest == number) {
                inner.trial = None;
            }
            match health {
                // Whenever it was let through, that was after this fall.
                Health::Well if inner.state != State::Closed && pass.outage == inner.outage => {
                    self.change(&mut inner, State::Closed);
                    let down = inner.since.take().map(|since| now.duration_since(since));
                    tracing::info!(upstream = %self.name, down_seconds = down.map(|down| down.as_secs_f64()), "the upstream is back");
                }
                Health::Ill if pass.era == inner.era => {
                    self.change(&mut inner, State::Open);
                    tracing::warn!(upstream = %self.name, cause, "the call that tried the upstream failed: it's still held to be down");
                    self.fell();
                }
                // The next one decides, or another has.
                Health::Well | Health::Ill | Health::Unknown => {}
            }
            return;
        }
        if pass.era != inner.era {
            // It began before the breaker changed, and says nothing of what is now.
            return;
        }
        if health == Health::Unknown {
            return;
        }
        let failed = health == Health::Ill;
        inner.count(now, failed, self.rules.window);
        if !failed {
            (inner.in_a_row, inner.last_success) = (0, Some(now));
            return;
        }
        if inner.last_success.is_none_or(|last| pass.began >= last) {
            inner.in_a_row += 1;
        }
        let (attempts, failures) = inner.totals();
        if inner.in_a_row >= self.rules.failures {
            self.open(&mut inner, now, "too many attempts in a row failed", cause);
        } else if attempts >= self.rules.volume
            && u64::from(failures) * 100 >= u64::from(self.rules.percent) * u64::from(attempts)
        {
            self.open(
                &mut inner,
                now,
                "too large a share of attempts failed",
                cause,
            );
        }
    }

    fn open(&self, inner: &mut Inner, now: Instant, why: &'static str, cause: &str) {
        inner.since = Some(now);
        inner.outage += 1;
        self.opens.inc();
        self.change(inner, State::Open);
        tracing::warn!(upstream = %self.name, why, cause, "the upstream is held to be down: calls to it are refused until it's back");
        self.fell();
    }

    /// Learns nothing more, and shows nothing: the gauge is another's.
    pub fn retire(&self) {
        self.inner().retired = true;
        self.gauge.set(0);
    }

    fn fell(&self) {
        self.falls.fetch_add(1, Ordering::AcqRel);
        self.opened.notify_waiters();
    }

    fn change(&self, inner: &mut Inner, state: State) {
        inner.state = state;
        inner.era += 1;
        inner.trial = None;
        inner.in_a_row = 0;
        inner.slices.clear();
        self.gauge.set(match state {
            State::Closed => 0,
            State::HalfOpen => 1,
            State::Open => 2,
        });
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing that holds it can panic half-way through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// A trial is under way that others wait for.
    fn is_deciding(&self, now: Instant) -> bool {
        self.trial
            .is_some_and(|(_, since)| now.duration_since(since) < TRIAL_WAIT)
    }

    fn count(&mut self, now: Instant, failed: bool, window: Duration) {
        while self
            .slices
            .front()
            .is_some_and(|slice| now.duration_since(slice.began) > window)
        {
            self.slices.pop_front();
        }
        let current = self
            .slices
            .back()
            .is_some_and(|slice| now.duration_since(slice.began) < window / SLICES);
        if !current {
            self.slices.push_back(Slice {
                began: now,
                attempts: 0,
                failures: 0,
            });
        }
        if let Some(slice) = self.slices.back_mut() {
            slice.attempts += 1;
            slice.failures += u32::from(failed);
        }
    }

    fn totals(&self) -> (u32, u32) {
        self.slices
            .iter()
            .fold((0, 0), |(attempts, failures), slice| {
                (attempts + slice.attempts, failures + slice.failures)
            })
    }
}

impl Pass {
    /// The attempt decides whether the host is back.
    #[must_use]
    pub fn is_trial(&self) -> bool {
        self.trial.is_some()
    }

    /// Tells how the attempt ended, and why if it wasn't well.
    pub fn tell(mut self, health: Health, cause: &str, now: Instant) {
        self.told = true;
        let breaker = Arc::clone(&self.breaker);
        breaker.record(&self, health, cause, now);
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        // An attempt that ended without a word must not hold the one place there is.
        if !self.told && self.trial.is_some() {
            let breaker = Arc::clone(&self.breaker);
            breaker.record(self, Health::Unknown, "", self.began);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Breaker;
    use super::Health;
    use super::Open;
    use super::Rules;
    use super::State;
    use crate::name::UpstreamName;
    use prometheus::IntCounter;
    use prometheus::IntGauge;
    use std::sync::Arc;
    use std::time::Duration;
    use tokio::time::Instant;

    const RULES: Rules = Rules {
        failures: 3,
        percent: 50,
        volume: 10,
        window: Duration::from_secs(10),
    };

    /// A breaker with a time of its own.
    struct Bench {
        breaker: Arc<Breaker>,
        now: Instant,
    }

    impl Bench {
        fn new() -> Self {
            let breaker = Breaker::new(
                UpstreamName::new("kybio").expect("a name"),
                RULES,
                IntGauge::new("state", "state").expect("a gauge"),
                IntCounter::new("opens", "opens").expect("a counter"),
            );
            let now = Instant::now();
            Self {
                breaker: Arc::new(breaker),
                now,
            }
        }

        fn attempt(&mut self, health: Health) -> State {
            let pass = self.breaker.enter(self.now).expect("it lets calls pass");
            pass.tell(health, "", self.now);
            self.breaker.state()
        }
    }

    #[test]
    fn it_opens_after_so_many_failures_in_a_row() {
        let mut bench = Bench::new();
        for health in [
            Health::Ill,
            Health::Ill,
            Health::Well,
            Health::Ill,
            Health::Unknown,
        ] {
            assert_eq!(bench.attempt(health), State::Closed);
        }
        assert_eq!(bench.attempt(Health::Ill), State::Closed);
        assert_eq!(bench.attempt(Health::Ill), State::Open);
        assert_eq!(bench.breaker.enter(bench.now).err(), Some(Open));
        assert_eq!(bench.breaker.opens.get(), 1);
        assert_eq!(bench.breaker.gauge.get(), 2);
    }

    #[test]
    fn calls_that_hung_since_before_the_last_success_are_no_row() {
        let mut bench = Bench::new();
        let hung: Vec<_> = (0..5)
            .map(|_| bench.breaker.enter(bench.now).expect("closed"))
            .collect();
        bench.now += Duration::from_secs(1);
        assert_eq!(bench.attempt(Health::Well), State::Closed);
        bench.now += Duration::from_secs(1);
        for pass in hung {
            pass.tell(Health::Ill, "", bench.now);
        }
        assert_eq!(bench.breaker.state(), State::Closed);
        for _ in 0..3 {
            let _ = bench.attempt(Health::Ill);
        }
        assert_eq!(bench.breaker.state(), State::Open);
    }

    #[test]
    fn it_opens_at_a_share_of_a_volume_within_a_window() {
        let mut bench = Bench::new();
        for _ in 0..4 {
            assert_eq!(bench.attempt(Health::Ill), State::Closed);
            assert_eq!(bench.attempt(Health::Well), State::Closed);
        }
        assert_eq!(bench.attempt(Health::Ill), State::Closed);
        assert_eq!(bench.attempt(Health::Ill), State::Open);

        // The same, but the first ones are long gone.
        let mut bench = Bench::new();
        for _ in 0..4 {
            bench.attempt(Health::Ill);
            bench.attempt(Health::Well);
        }
        bench.now += Duration::from_secs(11);
        assert_eq!(bench.attempt(Health::Ill), State::Closed);
        assert_eq!(bench.attempt(Health::Ill), State::Closed);
    }

    #[test]
    fn half_open_lets_one_call_at_a_time_decide() {
        let mut bench = Bench::new();
        for _ in 0..3 {
            let _ = bench.attempt(Health::Ill);
        }
        bench.breaker.half_open();
        let trial = bench.breaker.enter(bench.now).expect("one may try");
        assert_eq!(bench.breaker.enter(bench.now).err(), Some(Open));
        // Its task is gone without a word: the next one may try.
        drop(trial);
        let trial = bench
            .breaker
            .enter(bench.now)
            .expect("the next one may try");
        trial.tell(Health::Unknown, "", bench.now);
        assert_eq!(bench.attempt(Health::Ill), State::Open);
        assert_eq!(bench.breaker.opens.get(), 1, "it was never back");
        bench.breaker.half_open();
        assert_eq!(bench.attempt(Health::Well), State::Closed);
        assert_eq!(bench.breaker.gauge.get(), 0);
        // It counts from nothing.
        assert_eq!(bench.attempt(Health::Ill), State::Closed);
    }

    #[test]
    fn a_trial_that_hangs_does_not_keep_the_next_one_waiting() {
        let mut bench = Bench::new();
        for _ in 0..3 {
            let _ = bench.attempt(Health::Ill);
        }
        bench.breaker.half_open();
        let hung = bench.breaker.enter(bench.now).expect("one may try");
        bench.now += Duration::from_millis(799);
        assert!(bench.breaker.refuses(bench.now));
        assert_eq!(bench.breaker.enter(bench.now).err(), Some(Open));
        bench.now += Duration::from_millis(1);
        let next = bench.breaker.enter(bench.now).expect("another one");
        // A failure counts however late it comes, or slow failures would never be one; and so does a success.
        hung.tell(Health::Ill, "", bench.now);
        assert_eq!(bench.breaker.state(), State::Open);
        next.tell(Health::Well, "", bench.now);
        assert_eq!(bench.breaker.state(), State::Closed);
        assert_eq!(bench.breaker.falls(), 2);
        assert!(!bench.breaker.refuses(bench.now));
    }

    #[test]
    fn a_success_after_one_fall_says_nothing_of_the_next() {
        let mut bench = Bench::new();
        for _ in 0..3 {
            let _ = bench.attempt(Health::Ill);
        }
        bench.breaker.half_open();
        let hung = bench.breaker.enter(bench.now).expect("one may try");
        bench.now += Duration::from_secs(1);
        assert_eq!(bench.attempt(Health::Well), State::Closed);
        for _ in 0..3 {
            let _ = bench.attempt(Health::Ill);
        }
        hung.tell(Health::Well, "", bench.now);
        assert_eq!(bench.breaker.state(), State::Open);
    }

    #[test]
    fn what_began_before_a_change_does_not_count_after_it() {
        let mut bench = Bench::new();
        let early: Vec<_> = (0..2)
            .map(|_| bench.breaker.enter(bench.now).expect("closed"))
            .collect();
        for _ in 0..3 {
            let _ = bench.attempt(Health::Ill);
        }
        bench.breaker.half_open();
        for (pass, health) in early.into_iter().zip([Health::Well, Health::Ill]) {
            pass.tell(health, "", bench.now);
            assert_eq!(bench.breaker.state(), State::HalfOpen);
        }
        let _trial = bench.breaker.enter(bench.now).expect("the place is free");
    }

    #[test]
    fn a_retired_one_shows_nothing_more() {
        let mut bench = Bench::new();
        for _ in 0..2 {
            bench.attempt(Health::Ill);
        }
        bench.breaker.retire();
        bench.breaker.gauge.set(7);
        for _ in 0..20 {
            bench.attempt(Health::Ill);
        }
        bench.breaker.half_open();
        assert_eq!(bench.breaker.state(), State::Closed);
        assert_eq!(bench.breaker.gauge.get(), 7, "it's another's by now");
    }

    #[tokio::test]
    async fn opening_rings() {
        let mut bench = Bench::new();
        let waiting = tokio::spawn({
            let breaker = Arc::clone(&bench.breaker);
            async move { breaker.opened().await }
        });
        tokio::task::yield_now().await;
        for _ in 0..3 {
            let _ = bench.attempt(Health::Ill);
        }
        waiting.await.expect("it rang");
    }
}
