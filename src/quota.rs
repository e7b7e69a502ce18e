//! The quota latch: once KYBIO has said that an account's calls for the day are used up, further calls would be refused there and
//! still be charged. They're refused here until the vendor's midnight, but for a trial now and then: quotas can be bought.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::SystemTime;

use prometheus::IntGauge;
use tokio::time::Instant;

use crate::account::Account;
use crate::account::AppId;
use crate::clock::Moment;
use crate::name::AccountName;
use crate::name::UpstreamName;
use crate::observe::metrics::Metrics;

/// What configuration says of one upstream's day.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Seconds by which the vendor's midnight is before UTC's; UTC+8 by default (contract, section 5).
    pub utc_offset: i32,
    /// Between two trial calls.
    pub trial_interval: Duration,
}

/// The account's calls for the day are used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("KYBIO has said that the account's calls for today are used up")]
pub struct UsedUp {
    /// Until the vendor's midnight.
    pub retry_after: Duration,
}

/// Leave to make a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Nothing is known against it.
    Free,
    /// It finds out whether there are calls again. Not before then is there another.
    Trial(Instant),
}

/// All latches of the process. They go by appId, so that they outlive a change of configuration and don't outlive a change of account.
pub struct Latches {
    /// How many there are: mostly none, and then nothing is locked.
    count: AtomicUsize,
    latches: Mutex<HashMap<(UpstreamName, AppId), Latch>>,
    gauges: prometheus::IntGaugeVec,
}

struct Latch {
    /// Wall time since 1970-01-01 UTC.
    until: Duration,
    next_trial: Instant,
    /// Of each account with this appId that has met it.
    gauges: Vec<(AccountName, IntGauge)>,
}

impl Drop for Latch {
    fn drop(&mut self) {
        for (_, gauge) in &self.gauges {
            gauge.set(0);
        }
    }
}

/// A day.
const DAY: Duration = Duration::from_secs(86_400);

/// Just after midnight the vendor's clock may still say yesterday. Then trials come often, or a difference of a second would cost a
/// whole interval.
const EARLY: Duration = Duration::from_secs(300);

/// How often.
const EARLY_TRIAL_INTERVAL: Duration = Duration::from_secs(15);

impl Latches {
    /// None.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        Self {
            count: AtomicUsize::new(0),
            latches: Mutex::default(),
            gauges: metrics.quota_used_up.clone(),
        }
    }

    /// The upstream is another host now: what was said there says nothing.
    pub fn forget(&self, upstream: &UpstreamName) {
        let mut latches = self.latches();
        latches.retain(|(of, _), _| of != upstream);
        self.count.store(latches.len(), Ordering::Release);
    }

    /// The account's name isn't configured any more, and its gauge is gone. That its calls are used up stays known, for a name to come.
    pub fn hide(&self, name: &AccountName) {
        for latch in self.latches().values_mut() {
            latch.gauges.retain(|(shown, _)| shown != name);
        }
    }

    /// Whether a call would have leave. Takes no trial. `now` is asked only where something is known of any account.
    ///
    /// # Errors
    /// When the account's calls are used up, and no trial is due.
    pub fn check(&self, account: &Account, now: impl FnOnce() -> Moment) -> Result<(), UsedUp> {
        self.decide(account, now, None).map(drop)
    }

    /// Asks for leave to make a call, which may be a trial. `now` is asked as in [`check`](Self::check).
    ///
    /// # Errors
    /// When the account's calls are used up, and no trial is due.
    pub fn enter(
        &self,
        account: &Account,
        now: impl FnOnce() -> Moment,
        rules: &Rules,
    ) -> Result<Leave, UsedUp> {
        self.decide(account, now, Some(rules))
    }

    fn decide(
        &self,
        account: &Account,
        now: impl FnOnce() -> Moment,
        taken_by: Option<&Rules>,
    ) -> Result<Leave, UsedUp> {
        if self.count.load(Ordering::Acquire) == 0 {
            return Ok(Leave::Free);
        }
        let now = now();
        let mut latches = self.latches();
        let Some(latch) = latches.get_mut(&key(account)) else {
            return Ok(Leave::Free);
        };
        if now.wall >= latch.until {
            return Ok(Leave::Free);
        }
        self.show(latch, account);
        if now.monotonic < latch.next_trial {
            return Err(UsedUp {
                retry_after: latch.until - now.wall,
            });
        }
        if let Some(rules) = taken_by {
            latch.next_trial = now.monotonic + rules.trial_interval(now.wall);
        }
        Ok(Leave::Trial(latch.next_trial))
    }

    /// KYBIO has said that the calls are used up, to a call that was made at wall time `asked`. An answer of yesterday says nothing of
    /// today.
    pub fn close(&self, account: &Account, asked: Duration, now: Moment, rules: &Rules) {
        let until = rules.next_midnight(asked);
        if until <= now.wall {
            return;
        }
        let next_trial = now.monotonic + rules.trial_interval(now.wall);
        let mut latches = self.latches();
        let latch = latches.entry(key(account)).or_insert_with(|| Latch {
            until: Duration::ZERO,
            next_trial,
            gauges: Vec::new(),
        });
        let fresh = latch.until < until;
        (latch.until, latch.next_trial) = (until, next_trial);
        self.show(latch, account);
        self.count.store(latches.len(), Ordering::Release);
        drop(latches);
        if fresh {
            let until = humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + until);
            tracing::warn!(account = %account.name, %until, next_trial_seconds = (next_trial - now.monotonic).as_secs(), "the account's calls for today are used up: its calls are refused until the vendor's midnight, but for a trial now and then");
        }
    }

    /// A trial was answered otherwise: there are calls again.
    pub fn open(&self, account: &Account) {
        let mut latches = self.latches();
        if latches.remove(&key(account)).is_some() {
            self.count.store(latches.len(), Ordering::Release);
            tracing::info!(account = %account.name, "the account has calls again");
        }
    }

    /// A trial has provably not reached the host: the next call may be it, unless another one has been since.
    pub fn give_back(&self, account: &Account, leave: Leave, now: Moment) {
        if let Some(latch) = self.latches().get_mut(&key(account))
            && leave == Leave::Trial(latch.next_trial)
        {
            latch.next_trial = now.monotonic;
        }
    }

    fn show(&self, latch: &mut Latch, account: &Account) {
        if !latch.gauges.iter().any(|(name, _)| *name == account.name) {
            let gauge = self.gauges.with_label_values(&[account.name.as_str()]);
            gauge.set(1);
            latch.gauges.push((account.name.clone(), gauge));
        }
    }

    /// Forgets those whose day is over. Called each second.
    pub fn sweep(&self, wall: Duration) {
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut latches = self.latches();
        latches.retain(|_, latch| wall < latch.until);
        self.count.store(latches.len(), Ordering::Release);
    }

    fn latches(&self) -> MutexGuard<'_, HashMap<(UpstreamName, AppId), Latch>> {
        // Nothing that holds it can panic half-way through a change.
        self.latches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn key(account: &Account) -> (UpstreamName, AppId) {
    (account.upstream.clone(), account.app_id.clone())
}

impl Rules {
    /// How far the vendor's day has come.
    fn time_of_day(&self, wall: Duration) -> Duration {
        let local = i128::try_from(wall.as_nanos()).unwrap_or(i128::MAX)
            + i128::from(self.utc_offset) * 1_000_000_000;
        let day = i128::try_from(DAY.as_nanos()).unwrap_or(i128::MAX);
        let nanos = u64::try_from(local.rem_euclid(day)).unwrap_or_default();
        Duration::from_nanos(nanos)
    }

    /// The first midnight after.
    fn next_midnight(&self, wall: Duration) -> Duration {
        wall + (DAY - self.time_of_day(wall))
    }

    fn trial_interval(&self, wall: Duration) -> Duration {
        if self.time_of_day(wall) < EARLY {
            self.trial_interval.min(EARLY_TRIAL_INTERVAL)
        } else {
            self.trial_interval
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Latches;
    use super::Leave;
    use super::Moment;
    use super::Rules;
    use super::UsedUp;
    use crate::account::Account;
    use crate::account::AppId;
    use crate::account::KeyFault;
    use crate::name::AccountName;
    use crate::name::UpstreamName;
    use crate::observe::metrics::Metrics;
    use std::time::Duration;
    use tokio::time::Instant;

    const RULES: Rules = Rules {
        utc_offset: 8 * 3_600,
        trial_interval: Duration::from_secs(900),
    };

    /// 2026-11-23 00:00:00 UTC, which is 08:00:00 at the vendor's.
    const MORNING: u64 = 1_795_392_000;

    fn account(name: &str, app_id: &str) -> Account {
        Account {
            name: AccountName::new(name).expect("a name"),
            app_id: AppId::new(app_id).expect("an appId"),
            upstream: UpstreamName::new("kybio").expect("a name"),
            key: Err(KeyFault::Missing),
            paused: false,
            in_flight_max: 1,
        }
    }

    fn moments() -> impl Fn(u64) -> Moment {
        let start = Instant::now();
        move |seconds| Moment {
            wall: Duration::from_secs(MORNING + seconds),
            monotonic: start + Duration::from_secs(seconds),
        }
    }

    fn is_trial(leave: Result<Leave, UsedUp>) -> bool {
        matches!(leave, Ok(Leave::Trial(_)))
    }

    #[test]
    fn midnight_is_the_vendors() {
        let check = |offset: i32, seconds: u64, expected: u64| {
            let rules = Rules {
                utc_offset: offset,
                ..RULES
            };
            let wall = Duration::from_secs(MORNING + seconds);
            assert_eq!(
                (rules.next_midnight(wall) - wall).as_secs(),
                expected,
                "{offset} {seconds}"
            );
        };
        check(8 * 3_600, 0, 16 * 3_600);
        check(8 * 3_600, 16 * 3_600 - 1, 1);
        check(8 * 3_600, 16 * 3_600, 24 * 3_600);
        check(0, 0, 24 * 3_600);
        check(-5 * 3_600, 0, 5 * 3_600);
        check(5 * 3_600 + 1_800, 60, 18 * 3_600 + 1_800 - 60);
    }

    #[test]
    fn a_latched_account_is_refused_until_midnight_with_one_trial_each_interval() {
        let (latches, at) = (Latches::new(&Metrics::new()), moments());
        let (main, other) = (account("main", "a"), account("other", "b"));
        // Of nobody anything is known: the clock isn't asked.
        let unasked = || unreachable!("the clock is asked");
        assert_eq!(latches.check(&main, unasked), Ok(()));
        assert_eq!(latches.enter(&main, unasked, &RULES), Ok(Leave::Free));
        latches.close(&main, at(0).wall, at(10), &RULES);
        let refused = Err(UsedUp {
            retry_after: Duration::from_secs(16 * 3_600 - 20),
        });
        assert_eq!(latches.enter(&main, || at(20), &RULES), refused);
        assert_eq!(latches.check(&other, || at(20)), Ok(()));
        assert_eq!(latches.enter(&other, || at(20), &RULES), Ok(Leave::Free));
        // To look doesn't take the trial, and only one gets it.
        assert_eq!(latches.check(&main, || at(911)), Ok(()));
        assert!(is_trial(latches.enter(&main, || at(911), &RULES)));
        assert!(latches.enter(&main, || at(912), &RULES).is_err());
        assert!(latches.check(&main, || at(1_810)).is_err());
        assert!(is_trial(latches.enter(&main, || at(1_811), &RULES)));
        assert_eq!(
            latches.enter(&main, || at(16 * 3_600), &RULES),
            Ok(Leave::Free)
        );
    }

    #[test]
    fn a_trial_that_is_answered_opens_it_and_so_does_midnight() {
        let (latches, at) = (Latches::new(&Metrics::new()), moments());
        let main = account("main", "a");
        let gauge = latches.gauges.with_label_values(&["main"]);
        latches.close(&main, at(0).wall, at(0), &RULES);
        assert_eq!(gauge.get(), 1);
        latches.open(&main);
        assert_eq!(gauge.get(), 0);
        assert_eq!(latches.enter(&main, || at(1), &RULES), Ok(Leave::Free));
        latches.close(&main, at(1).wall, at(1), &RULES);
        latches.sweep(at(16 * 3_600 - 1).wall);
        assert_eq!(gauge.get(), 1);
        latches.sweep(at(16 * 3_600).wall);
        assert_eq!(gauge.get(), 0);
        assert_eq!(latches.count.load(super::Ordering::Acquire), 0);
    }

    #[test]
    fn a_trial_that_was_not_sent_is_given_back() {
        let (latches, at) = (Latches::new(&Metrics::new()), moments());
        let main = account("main", "a");
        latches.close(&main, at(0).wall, at(0), &RULES);
        let first = latches.enter(&main, || at(900), &RULES).expect("a trial");
        assert!(latches.check(&main, || at(901)).is_err());
        latches.give_back(&main, first, at(902));
        let second = latches.enter(&main, || at(902), &RULES).expect("a trial");
        assert!(matches!(second, Leave::Trial(_)) && second != first);
        // One that another has overtaken gives nothing back.
        latches.give_back(&main, first, at(903));
        assert!(latches.check(&main, || at(903)).is_err());
    }

    #[test]
    fn accounts_with_one_app_id_share_its_latch_and_each_is_shown() {
        let (latches, at) = (Latches::new(&Metrics::new()), moments());
        let (main, alias) = (account("main", "a"), account("alias", "a"));
        let shown =
            || ["main", "alias"].map(|name| latches.gauges.with_label_values(&[name]).get());
        latches.close(&main, at(0).wall, at(0), &RULES);
        latches.close(&main, at(1).wall, at(1), &RULES);
        assert_eq!(shown(), [1, 0]);
        assert!(latches.check(&alias, || at(1)).is_err());
        assert_eq!(shown(), [1, 1]);
        latches.open(&alias);
        assert_eq!(shown(), [0, 0]);
    }

    #[test]
    fn an_answer_of_yesterday_says_nothing_of_today() {
        let (latches, at) = (Latches::new(&Metrics::new()), moments());
        let main = account("main", "a");
        latches.close(&main, at(16 * 3_600 - 1).wall, at(16 * 3_600 + 1), &RULES);
        assert_eq!(latches.check(&main, || at(16 * 3_600 + 2)), Ok(()));
        assert_eq!(latches.gauges.with_label_values(&["main"]).get(), 0);
    }

    #[test]
    fn just_after_midnight_trials_come_often() {
        let (latches, at) = (Latches::new(&Metrics::new()), moments());
        let main = account("main", "a");
        let midnight = 16 * 3_600;
        latches.close(&main, at(midnight + 1).wall, at(midnight + 1), &RULES);
        assert!(latches.enter(&main, || at(midnight + 15), &RULES).is_err());
        assert!(is_trial(latches.enter(&main, || at(midnight + 16), &RULES)));
    }
}
