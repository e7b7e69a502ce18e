//! The daily quota: who has used how many calls on which local day. Failed calls count, and so do questions about the quota.

use std::collections::BTreeMap;

/// Calls used, by appId and local day.
#[derive(Debug)]
pub(super) struct Quota {
    per_day: u32,
    used: BTreeMap<(String, String), u32>,
}

/// One day of one account.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Day {
    /// Whose.
    pub(super) app_id: String,
    /// Which, `yyyy-MM-dd`.
    pub(super) date: String,
    /// Calls used on it.
    pub(super) used: u32,
}

impl Quota {
    /// Nobody has called yet.
    pub(super) fn new(per_day: u32) -> Self {
        Self {
            per_day,
            used: BTreeMap::new(),
        }
    }

    /// Calls that each account has for a day.
    pub(super) fn per_day(&self) -> u32 {
        self.per_day
    }

    /// Writes down a day of the past.
    pub(super) fn remember(&mut self, day: Day) {
        self.used.insert((day.app_id, day.date), day.used);
    }

    /// Takes one call from the day's quota; false when there is none left.
    pub(super) fn take(&mut self, app_id: &str, date: &str) -> bool {
        let used = self
            .used
            .entry((app_id.to_owned(), date.to_owned()))
            .or_default();
        if *used >= self.per_day {
            return false;
        }
        *used += 1;
        true
    }

    /// Every counted day of every account from `first` to `last`; `yyyy-MM-dd` sorts as it reads.
    pub(super) fn days(&self, first: &str, last: &str) -> Vec<Day> {
        let within = self
            .used
            .iter()
            .filter(|((_, date), _)| first <= date.as_str() && date.as_str() <= last);
        within
            .map(|((app_id, date), used)| Day {
                app_id: app_id.clone(),
                date: date.clone(),
                used: *used,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::simulator::bench::Answered;
    use crate::simulator::bench::Bench;
    use crate::simulator::quota::Quota;

    const CATEGORIES: &str = "customerOpenApi/queryAllCustomerCategory";

    #[test]
    fn each_account_has_its_own_calls_for_each_day() {
        let mut quota = Quota::new(2);
        assert!(quota.take("a", "2026-01-01"));
        assert!(quota.take("a", "2026-01-01"));
        assert!(!quota.take("a", "2026-01-01"));
        assert!(quota.take("b", "2026-01-01"));
        assert!(quota.take("a", "2026-01-02"));
        let used: Vec<u32> = quota
            .days("2026-01-01", "2026-01-01")
            .iter()
            .map(|day| day.used)
            .collect();
        assert_eq!(used, [2, 1]);
    }

    #[test]
    fn a_quota_used_up_stays_so_until_local_midnight_and_for_this_account_only() {
        let mut bench = Bench::with_quota(2);
        let message =
            |answered: &Answered| (answered.status() == "error").then(|| answered.message());
        assert_eq!(message(&bench.call(CATEGORIES, json!({}))), None);
        // A refused call counts.
        assert!(message(&bench.call("customerOpenApi/add", json!({}))).is_some());
        let third = bench.call(CATEGORIES, json!({}));
        assert_eq!(
            third.text(),
            r#"{"status":"error","messages":["您已用完当日请求量"],"errorCode":null}"#
        );
        assert_eq!(third.header("x-kybio-simulator-answer"), "documented");
        assert_eq!(message(&bench.second().call(CATEGORIES, json!({}))), None);
        bench.pass_midnight();
        assert_eq!(message(&bench.call(CATEGORIES, json!({}))), None);
    }
}
