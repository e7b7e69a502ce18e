//! The keys in use, as people may see them: by fingerprint, since when, and whether KYBIO takes them. Prints nothing else of a key.

use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prometheus::IntGauge;
use tokio::time::Instant;

use crate::account::Account;
use crate::account::AppKey;
use crate::account::Fingerprint;
use crate::name::AccountName;
use crate::observe::metrics::Metrics;

/// Between two lines about one account's key that KYBIO refuses.
const REFUSED_INTERVAL: Duration = Duration::from_secs(60);

/// What to look at when a key has never been taken.
const CHECK_NEW: &str = "is this the key of this app_id at this host, or another account's, or are the two swapped? is it active there yet? (line breaks and spaces around it in its file don't count)";

/// What to look at when it has been.
const CHECK_OLD: &str =
    "KYBIO took it before: was it replaced or withdrawn there? put the new one into its file";

/// All accounts' keys that calls are signed with from some reload on. What stays is carried over from the ring before.
#[derive(Debug, Default)]
pub struct Keyring {
    by_name: HashMap<AccountName, Arc<Entry>>,
    /// By the accounts' numbers in this configuration, which mean nothing in another.
    by_number: Vec<Numbered>,
}

#[derive(Debug)]
struct Numbered {
    /// None, where the account has no key.
    entry: Option<Arc<Entry>>,
    /// It's known to be accepted: beside the number, so that the entry needn't be fetched to see it.
    accepted: AtomicBool,
}

#[derive(Debug)]
struct Entry {
    account: Arc<Account>,
    key: Arc<AppKey>,
    accepted: AtomicBool,
    /// Another one has its name by now.
    replaced: AtomicBool,
    /// When it was read first, in wall time since 1970-01-01 UTC.
    taken: Duration,
    /// Nothing, if there's no room for it in the metrics.
    shown: OnceLock<Option<IntGauge>>,
    refused: Mutex<Refused>,
}

/// Refusals that the log hasn't told yet, and when it told the last.
#[derive(Debug, Default)]
struct Refused {
    untold: u64,
    told: Option<Instant>,
}

/// An account's calls are signed with another key from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Whose.
    pub account: AccountName,
    /// The one before; none if there was none.
    pub before: Option<Fingerprint>,
    /// The one that's taken now.
    pub now: Fingerprint,
}

impl Keyring {
    /// The keys of these accounts, shown as taken at `now`, which is wall time since 1970-01-01 UTC. What is known of a key stays known if
    /// an account of the same name had it `before`, and it `is_same` merchant: the one of before comes first.
    #[must_use]
    pub fn new(
        accounts: &[Arc<Account>],
        before: Option<&Self>,
        is_same: impl Fn(&Account, &Account) -> bool,
        now: Duration,
    ) -> Self {
        let entry = |account: &Arc<Account>| {
            let key = account.key.as_ref().ok()?;
            let kept = before.and_then(|before| before.by_name.get(&account.name));
            let kept = kept.filter(|kept| kept.key.is(key) && is_same(&kept.account, account));
            Some(kept.map_or_else(|| Arc::new(Entry::new(account, key, now)), Arc::clone))
        };
        let numbered = |account| Numbered {
            entry: entry(account),
            accepted: AtomicBool::new(false),
        };
        let by_number: Vec<_> = accounts.iter().map(numbered).collect();
        let named = accounts.iter().zip(&by_number);
        let named = named.filter_map(|(account, numbered)| {
            Some((account.name.clone(), numbered.entry.clone()?))
        });
        Self {
            by_name: named.collect(),
            by_number,
        }
    }

    /// This ring has taken the place of the one `before`: what's only of that isn't shown any more. Returns who has another key now, by name.
    #[must_use]
    pub fn replaces(&self, before: &Self, metrics: &Metrics) -> Vec<Rotation> {
        for (name, entry) in &before.by_name {
            let kept = self
                .by_name
                .get(name)
                .is_some_and(|now| Arc::ptr_eq(now, entry));
            entry.replaced.store(!kept, Ordering::Release);
        }
        let labels = |ring: &Self| -> HashSet<_> {
            let entries = ring.by_name.values();
            entries
                .map(|entry| {
                    (
                        entry.account.name.clone(),
                        entry.key.fingerprint().to_string(),
                    )
                })
                .collect()
        };
        for (account, fingerprint) in labels(before).difference(&labels(self)) {
            metrics.forget_account_key(account.as_str(), fingerprint);
        }
        let rotation = |(name, entry): (&AccountName, &Arc<Entry>)| {
            let had = before.by_name.get(name).map(|had| &had.key);
            let another = had.is_none_or(|had| !had.is(&entry.key));
            another.then(|| Rotation {
                account: name.clone(),
                before: had.map(|had| had.fingerprint()),
                now: entry.key.fingerprint(),
            })
        };
        let mut rotations: Vec<_> = self.by_name.iter().filter_map(rotation).collect();
        rotations.sort_unstable_by(|one, other| one.account.cmp(&other.account));
        rotations
    }

    /// Shows those that aren't shown yet.
    pub fn show(&self, metrics: &Metrics) {
        for entry in self.by_name.values() {
            entry.shown.get_or_init(|| {
                let fingerprint = entry.key.fingerprint().to_string();
                let shown = metrics.account_key(entry.account.name.as_str(), &fingerprint);
                shown.map(|(taken, accepted)| {
                    taken.set(entry.taken.as_secs_f64());
                    accepted.set(i64::from(entry.accepted.load(Ordering::Acquire)));
                    accepted
                })
            });
        }
    }

    /// KYBIO has answered a call with success: its signature, with the key of the account of this number, was right.
    pub fn accepted(&self, account_number: usize) {
        let Some(numbered) = self.by_number.get(account_number) else {
            return;
        };
        // Nearly always it was before.
        if numbered.accepted.load(Ordering::Relaxed) {
            return;
        }
        let Some(entry) = &numbered.entry else { return };
        if entry.replaced.load(Ordering::Acquire) {
            return;
        }
        numbered.accepted.store(true, Ordering::Relaxed);
        if !entry.accepted.swap(true, Ordering::AcqRel) {
            if let Some(Some(shown)) = entry.shown.get() {
                shown.set(1);
            }
            tracing::info!(account = %entry.account.name, fingerprint = %entry.key.fingerprint(), "KYBIO takes the account's key");
        }
    }

    /// KYBIO has answered that it doesn't take the `appId` or the signature. Told at once, and then once a minute for each account.
    pub fn refused(&self, account_number: usize, now: Instant) {
        let Some(entry) = self.entry(account_number) else {
            return;
        };
        let mut refused = entry.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.untold += 1;
        let recent = |told| now.saturating_duration_since(told) < REFUSED_INTERVAL;
        if refused.told.is_some_and(recent) {
            return;
        }
        refused.told = Some(now);
        let answers = std::mem::take(&mut refused.untold);
        drop(refused);
        let check = if entry.accepted.load(Ordering::Acquire) {
            CHECK_OLD
        } else {
            CHECK_NEW
        };
        tracing::warn!(account = %entry.account.name, fingerprint = %entry.key.fingerprint(), answers, check, "KYBIO doesn't take the account's key");
    }

    fn entry(&self, account_number: usize) -> Option<&Entry> {
        self.by_number.get(account_number)?.entry.as_deref()
    }
}

impl Entry {
    fn new(account: &Arc<Account>, key: &Arc<AppKey>, taken: Duration) -> Self {
        Self {
            account: Arc::clone(account),
            key: Arc::clone(key),
            accepted: AtomicBool::new(false),
            replaced: AtomicBool::new(false),
            taken,
            shown: OnceLock::new(),
            refused: Mutex::default(),
        }
    }
}
