//! The series that configured names have: of operations, callers and accounts. Each is made when it's first needed and kept, so that to count a
//! request looks nothing up; and all together are no more than the operator wants, whatever is configured.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use prometheus::Histogram;
use prometheus::IntCounter;
use prometheus::IntGauge;

use crate::name::AccountName;
use crate::name::CallerName;
use crate::name::UpstreamName;
use crate::observe::exchange::Signed;
use crate::observe::metrics::Metrics;
use crate::observe::metrics::REQUEST_BUCKETS;
use crate::observe::metrics::RESULTS;
use crate::observe::metrics::SET;
use crate::operation::OperationName;
use crate::outcome::Outcome;

/// Families whose first label is a configured name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// Requests by operation and outcome.
    OperationRequests,
    /// Their time.
    OperationDurations,
    /// KYBIO's answers by operation and code.
    OperationAnswers,
    /// Requests by caller and outcome.
    CallerRequests,
    /// Callers' own signatures.
    CallerSignatures,
    /// Requests by account and outcome.
    AccountRequests,
    /// KYBIO's answers by account and code.
    AccountAnswers,
    /// Answers that don't take the account's key.
    AccountCredentialErrors,
    /// The account's key, when it was taken and whether it's accepted.
    AccountKey,
}

impl Family {
    /// What its names are the values of.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::OperationRequests | Self::OperationDurations | Self::OperationAnswers => {
                "operation"
            }
            Self::CallerRequests | Self::CallerSignatures => "caller",
            Self::AccountRequests
            | Self::AccountAnswers
            | Self::AccountCredentialErrors
            | Self::AccountKey => "account",
        }
    }
}

/// What stands in the place of a name that there's no room for.
pub const FOLDED: &str = "other";

/// What a request is for that is for no operation that its caller may call.
const NOTHING: &str = "none";

/// How many series there may be of configured names.
#[derive(Debug)]
pub struct Room {
    max: AtomicUsize,
    taken: Mutex<Taken>,
    /// How many there are, as metrics have it.
    shown: IntGauge,
    /// How many are folded now, and how often one was.
    folded_now: IntGauge,
    folded: IntCounter,
}

#[derive(Debug, Default)]
struct Taken {
    kept: HashMap<Kept, usize>,
    folded: HashSet<Kept>,
}

/// Family, name, and the other label.
pub(super) type Kept = (Family, Box<str>, Box<str>);

impl Room {
    pub(super) fn new(shown: IntGauge, folded_now: IntGauge, folded: IntCounter) -> Self {
        Self {
            max: AtomicUsize::new(SERIES_MAX),
            taken: Mutex::default(),
            shown,
            folded_now,
            folded,
        }
    }

    /// Whether a name has these series.
    fn has(&self, family: Family, name: &str, other: &str) -> bool {
        let kept = (family, name.into(), other.into());
        self.taken().kept.contains_key(&kept)
    }

    /// From now on there may be so many. What is there stays.
    pub fn set_max(&self, max: usize) {
        self.max.store(max, Ordering::Release);
    }

    /// Takes room for a name's series, which are `count`, counting each bucket; the same ones again take none. Without room they're to be folded.
    pub(super) fn take(&self, family: Family, name: &str, other: &str, count: usize) -> bool {
        let kept = (family, name.into(), other.into());
        let mut taken = self.taken();
        if taken.kept.contains_key(&kept) {
            return true;
        }
        let all: usize = usize::try_from(self.shown.get()).unwrap_or_default();
        let fits = all + count <= self.max.load(Ordering::Acquire);
        if fits {
            taken.folded.remove(&kept);
            taken.kept.insert(kept, count);
            self.shown.add(signed(count));
        } else {
            taken.folded.insert(kept);
            self.folded.inc();
        }
        self.folded_now.set(signed(taken.folded.len()));
        fits
    }

    /// Gives the room of all series back whose name isn't wanted any more, and returns them.
    pub(super) fn give_back(&self, is_gone: impl Fn(Family, &str, &str) -> bool) -> Vec<Kept> {
        let mut taken = self.taken();
        let is_gone = |(family, name, other): &Kept| is_gone(*family, name, other);
        let gone: Vec<_> = taken
            .kept
            .keys()
            .filter(|kept| is_gone(kept))
            .cloned()
            .collect();
        for kept in &gone {
            if let Some(count) = taken.kept.remove(kept) {
                self.shown.sub(signed(count));
            }
        }
        taken.folded.retain(|kept| !is_gone(kept));
        self.folded_now.set(signed(taken.folded.len()));
        gone
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Unless it's configured.
const SERIES_MAX: usize = 20_000;

/// A histogram's: its buckets, the last of them, sum and count.
const HISTOGRAM_SERIES: usize = REQUEST_BUCKETS.len() + 3;

/// The handles of all configured names, by their numbers in the configuration. Made anew by each reload; the series stay.
#[derive(Debug)]
pub struct Series {
    metrics: Arc<Metrics>,
    codes: Arc<[i64]>,
    operations: Vec<OperationSeries>,
    callers: Vec<CallerSeries>,
    accounts: Vec<AccountSeries>,
    /// Of requests for nothing that their caller may call.
    nothing: ByOutcome,
    nothing_durations: [OnceLock<Histogram>; Outcome::ALL.len()],
    /// The answers of all operations, and of all accounts, that have no series of their own.
    folded_operations: ByCode,
    folded_accounts: ByCode,
    retired: AtomicBool,
}

type ByOutcome = OnceLock<[IntCounter; Outcome::ALL.len()]>;

/// A counter for each code that is known, for none, and for any other.
type ByCode = OnceLock<Arc<[IntCounter]>>;

#[derive(Debug)]
struct OperationSeries {
    name: OperationName,
    requests: ByOutcome,
    durations: [OnceLock<Histogram>; Outcome::ALL.len()],
    answers: ByCode,
}

#[derive(Debug)]
struct CallerSeries {
    name: CallerName,
    requests: ByOutcome,
    signatures: OnceLock<[IntCounter; Signed::ALL.len()]>,
}

#[derive(Debug)]
struct AccountSeries {
    name: AccountName,
    requests: ByOutcome,
    answers: ByCode,
    credential_errors: OnceLock<IntCounter>,
}

impl Series {
    /// For these names, in the order of their numbers, and these codes.
    #[must_use]
    pub fn new(
        metrics: &Arc<Metrics>,
        codes: impl IntoIterator<Item = i64>,
        operations: impl Iterator<Item = OperationName>,
        callers: impl Iterator<Item = CallerName>,
        accounts: impl Iterator<Item = AccountName>,
    ) -> Self {
        let codes: BTreeSet<_> = codes.into_iter().collect();
        let codes: Arc<[i64]> = codes.into_iter().collect();
        Self {
            operations: operations
                .map(|name| OperationSeries {
                    name,
                    requests: OnceLock::new(),
                    durations: Default::default(),
                    answers: OnceLock::new(),
                })
                .collect(),
            callers: callers
                .map(|name| CallerSeries {
                    name,
                    requests: OnceLock::new(),
                    signatures: OnceLock::new(),
                })
                .collect(),
            accounts: accounts
                .map(|name| AccountSeries {
                    requests: OnceLock::new(),
                    answers: OnceLock::new(),
                    credential_errors: OnceLock::new(),
                    name,
                })
                .collect(),
            metrics: Arc::clone(metrics),
            codes: Arc::clone(&codes),
            nothing: OnceLock::new(),
            nothing_durations: Default::default(),
            folded_operations: OnceLock::new(),
            folded_accounts: OnceLock::new(),
            retired: AtomicBool::new(false),
        }
    }

    /// What is watched for its first change is there before it. Called once there's room for it: when what was before is gone.
    pub fn begin(&self) {
        for caller in &self.callers {
            self.signatures(caller);
        }
        for account in &self.accounts {
            self.credential_errors(account);
        }
    }

    /// Another one has taken its place. What is still under way by it makes no series that nobody would remove.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    /// Whether a name may have series of this kind.
    fn may_begin(&self, family: Family, name: &str, other: &str) -> bool {
        !self.retired.load(Ordering::Acquire) || self.metrics.room.has(family, name, other)
    }

    fn signatures<'a>(&self, caller: &'a CallerSeries) -> &'a [IntCounter; Signed::ALL.len()] {
        caller.signatures.get_or_init(|| {
            let labels = Signed::ALL.map(Signed::as_str);
            let name = caller.name.as_str();
            self.metrics
                .named_set(Family::CallerSignatures, name, labels)
        })
    }

    fn credential_errors<'a>(&self, account: &'a AccountSeries) -> &'a IntCounter {
        let name = account.name.as_str();
        account
            .credential_errors
            .get_or_init(|| self.metrics.named(Family::AccountCredentialErrors, name))
    }

    /// All families.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The caller of this number.
    #[must_use]
    pub fn caller(&self, number: usize) -> Option<&CallerName> {
        self.callers.get(number).map(|caller| &caller.name)
    }

    /// The account of this number.
    #[must_use]
    pub fn account(&self, number: usize) -> Option<&AccountName> {
        self.accounts.get(number).map(|account| &account.name)
    }

    /// One request for this operation; `None` if it's for nothing that its caller may call.
    pub(super) fn count_request(&self, operation: Option<usize>, outcome: Outcome, seconds: f64) {
        let operation = operation.and_then(|number| self.operations.get(number));
        let (requests, durations, name) = match operation {
            Some(operation) => (
                &operation.requests,
                &operation.durations,
                operation.name.as_str(),
            ),
            None => (&self.nothing, &self.nothing_durations, NOTHING),
        };
        self.by_outcome(requests, Family::OperationRequests, name, outcome);
        let index = outcome as usize;
        let may_begin = || self.may_begin(Family::OperationDurations, name, outcome.as_str());
        if let Some(durations) = durations.get(index)
            && (durations.get().is_some() || may_begin())
        {
            let histogram = durations.get_or_init(|| {
                self.metrics
                    .named_histogram(name, outcome.as_str(), HISTOGRAM_SERIES)
            });
            histogram.observe(seconds);
        }
    }

    pub(super) fn count_caller(&self, caller: usize, outcome: Outcome, signed: Option<Signed>) {
        let Some(caller) = self.callers.get(caller) else {
            return;
        };
        let name = caller.name.as_str();
        self.by_outcome(&caller.requests, Family::CallerRequests, name, outcome);
        let counters = self.signatures(caller);
        if let Some(counter) = signed.and_then(|signed| counters.get(signed as usize)) {
            counter.inc();
        }
    }

    pub(super) fn count_account(&self, account: usize, outcome: Outcome) {
        if let Some(account) = self.accounts.get(account) {
            let name = account.name.as_str();
            self.by_outcome(&account.requests, Family::AccountRequests, name, outcome);
        }
    }

    /// KYBIO's word on a call; `is_of_key` if it doesn't take the key.
    pub(super) fn count_answer(
        &self,
        operation: Option<usize>,
        account: Option<usize>,
        code: Option<i64>,
        is_of_key: bool,
    ) {
        if let Some(operation) = operation.and_then(|number| self.operations.get(number)) {
            let name = operation.name.as_str();
            let made = (&operation.answers, &self.folded_operations);
            self.by_code(made, Family::OperationAnswers, name, code);
        }
        if let Some(account) = account.and_then(|number| self.accounts.get(number)) {
            let name = account.name.as_str();
            let made = (&account.answers, &self.folded_accounts);
            self.by_code(made, Family::AccountAnswers, name, code);
            if is_of_key {
                self.credential_errors(account).inc();
            }
        }
    }

    /// All outcomes of a name begin at the same time: what happens first is no surprise to whoever watches another.
    fn by_outcome(&self, made: &ByOutcome, family: Family, name: &str, outcome: Outcome) {
        if made.get().is_none() && !self.may_begin(family, name, SET) {
            return;
        }
        let counters = made.get_or_init(|| {
            let labels = Outcome::ALL.map(Outcome::as_str);
            self.metrics.named_set(family, name, labels)
        });
        if let Some(counter) = counters.get(outcome as usize) {
            counter.inc();
        }
    }

    /// So do all codes.
    fn by_code(
        &self,
        (made, folded): (&ByCode, &ByCode),
        family: Family,
        name: &str,
        code: Option<i64>,
    ) {
        if made.get().is_none() && !self.may_begin(family, name, SET) {
            return;
        }
        let counters = made.get_or_init(|| {
            let known = self.codes.iter().map(i64::to_string);
            let labels = known.chain(["none".to_owned(), "other".to_owned()]);
            self.metrics.named_list(family, name, labels, folded)
        });
        let index = match code {
            None => self.codes.len(),
            Some(code) => {
                let known = self.codes.binary_search(&code);
                known.unwrap_or(self.codes.len() + 1)
            }
        };
        if let Some(counter) = counters.get(index) {
            counter.inc();
        }
    }

    /// All names, to see which aren't there any more.
    pub(super) fn names(&self) -> Names<'_> {
        let operations = self.operations.iter().map(|each| each.name.as_str());
        Names {
            operations: operations.chain([NOTHING]).collect(),
            callers: self.callers.iter().map(|each| each.name.as_str()).collect(),
            accounts: self
                .accounts
                .iter()
                .map(|each| each.name.as_str())
                .collect(),
        }
    }
}

/// The handles of one host.
#[derive(Debug)]
pub struct HostSeries {
    name: UpstreamName,
    attempts: [IntCounter; RESULTS.len()],
    retries: [IntCounter; RESULTS.len()],
    seconds: Histogram,
}

impl HostSeries {
    /// All results begin at zero, so that the first failure is seen as a change.
    #[must_use]
    pub fn new(name: UpstreamName, metrics: &Metrics) -> Self {
        let labels = |result| [name.as_str(), result];
        Self {
            attempts: RESULTS.map(|result| metrics.attempts.with_label_values(&labels(result))),
            retries: RESULTS.map(|result| metrics.retries.with_label_values(&labels(result))),
            seconds: metrics.attempt_seconds.with_label_values(&[name.as_str()]),
            name,
        }
    }

    /// As it's configured.
    #[must_use]
    pub fn name(&self) -> &UpstreamName {
        &self.name
    }

    /// An attempt, one of [`RESULTS`], and whether it was made again because of what came `before`.
    pub(super) fn count(&self, result: &str, seconds: f64, before: Option<&str>) {
        let of = |counters: &[IntCounter], result: &str| {
            let index = RESULTS.iter().position(|known| *known == result);
            if let Some(counter) = index.and_then(|index| counters.get(index)) {
                counter.inc();
            }
        };
        of(&self.attempts, result);
        self.seconds.observe(seconds);
        if let Some(before) = before {
            of(&self.retries, before);
        }
    }
}

/// The names that there are.
pub(super) struct Names<'a> {
    operations: HashSet<&'a str>,
    callers: HashSet<&'a str>,
    accounts: HashSet<&'a str>,
}

impl Names<'_> {
    /// Whether a family's name is one of them.
    pub(super) fn has(&self, family: Family, name: &str) -> bool {
        match family.label() {
            "operation" => &self.operations,
            "caller" => &self.callers,
            _ => &self.accounts,
        }
        .contains(name)
    }
}

#[cfg(test)]
mod tests {
    use super::Family;
    use super::Series;
    use crate::name::AccountName;
    use crate::name::CallerName;
    use crate::observe::exchange::Signed;
    use crate::observe::metrics::Metrics;
    use crate::operation::OperationName;
    use crate::outcome::Outcome;
    use std::sync::Arc;

    fn series(metrics: &Arc<Metrics>, accounts: &[&str]) -> Series {
        let names = accounts
            .iter()
            .map(|name| AccountName::new(name).expect("a name"));
        Series::new(
            metrics,
            [5001],
            [OperationName::new("a/b").expect("a name")].into_iter(),
            [CallerName::new("orders").expect("a name")].into_iter(),
            names,
        )
    }

    fn count(metrics: &Metrics, series: &str) -> Option<f64> {
        let text = metrics.render();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
        line.parse().ok()
    }

    #[test]
    fn names_have_their_series_and_codes_are_a_closed_set() {
        let metrics = Arc::new(Metrics::new());
        let series = series(&metrics, &["main"]);
        series.count_request(Some(0), Outcome::Done, 0.5);
        series.count_request(None, Outcome::NotSent, 0.5);
        series.count_caller(0, Outcome::Done, Some(Signed::Mismatch));
        series.count_account(0, Outcome::Done);
        for code in [Some(5001), Some(7), None, None] {
            series.count_answer(Some(0), Some(0), code, code.is_none());
        }
        for (name, expected) in [
            ("requests_total{operation=\"a/b\",outcome=\"done\"}", 1.0),
            ("requests_total{operation=\"a/b\",outcome=\"unknown\"}", 0.0),
            (
                "requests_total{operation=\"none\",outcome=\"not-sent\"}",
                1.0,
            ),
            (
                "caller_signatures_total{caller=\"orders\",result=\"mismatch\"}",
                1.0,
            ),
            (
                "caller_signatures_total{caller=\"orders\",result=\"absent\"}",
                0.0,
            ),
            (
                "account_answers_total{account=\"main\",error_code=\"5001\"}",
                1.0,
            ),
            (
                "account_answers_total{account=\"main\",error_code=\"other\"}",
                1.0,
            ),
            (
                "operation_answers_total{error_code=\"none\",operation=\"a/b\"}",
                2.0,
            ),
            ("account_credential_errors_total{account=\"main\"}", 2.0),
        ] {
            let name = format!("kybio_gateway_{name}");
            assert_eq!(count(&metrics, &name), Some(expected), "{name}");
        }
    }

    #[test]
    fn what_there_is_no_room_for_is_folded_and_counted() {
        let metrics = Arc::new(Metrics::new());
        let names: Vec<_> = (0..50).map(|number| format!("store-{number}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let before = |metrics: &Metrics| count(metrics, "kybio_gateway_metrics_series");
        let all = series(&metrics, &names);
        all.begin();
        // Of callers' signatures and accounts' credential errors, which begin at zero.
        assert_eq!(before(&metrics), Some(53.0));
        metrics.room.set_max(53 + 4 * 10 + 1);
        for _ in 0..2 {
            for number in 0..50 {
                all.count_account(number, Outcome::Done);
            }
        }
        let of = |name: &str| {
            let labels = format!("{{account=\"{name}\",outcome=\"done\"}}");
            count(
                &metrics,
                &format!("kybio_gateway_account_requests_total{labels}"),
            )
        };
        assert_eq!(
            (of("store-9"), of("store-10"), of("other")),
            (Some(2.0), None, Some(80.0))
        );
        assert_eq!(
            count(&metrics, "kybio_gateway_metrics_series_folded_total"),
            Some(40.0)
        );

        // Answers too, those of accounts and those of operations each by themselves.
        for number in [10, 11] {
            all.count_answer(None, Some(number), None, false);
            all.count_answer(Some(0), Some(number), Some(9_999_999), false);
        }
        for (answers, expected) in [
            (
                r#"account_answers_total{account="other",error_code="none"}"#,
                2.0,
            ),
            (
                r#"account_answers_total{account="other",error_code="other"}"#,
                2.0,
            ),
            (
                r#"operation_answers_total{error_code="none",operation="other"}"#,
                0.0,
            ),
            (
                r#"operation_answers_total{error_code="other",operation="other"}"#,
                2.0,
            ),
        ] {
            let name = format!("kybio_gateway_{answers}");
            assert_eq!(count(&metrics, &name), Some(expected), "{name}");
        }

        // Names that are gone make room, and those that stay go on.
        let less = series(&metrics, &["store-1", "new"]);
        metrics.forget_all_but(&less);
        less.count_account(0, Outcome::Done);
        less.count_account(1, Outcome::Done);
        assert_eq!(
            (of("store-1"), of("new"), of("store-9")),
            (Some(3.0), Some(1.0), None)
        );
        assert!(
            !metrics
                .room
                .take(Family::AccountAnswers, "x", "none", 1_000)
        );
    }
}
