//! One upstream as calls meet it: the host, and what is remembered of it for all workers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use prometheus::IntCounter;
use prometheus::IntGauge;

use crate::account::Account;
use crate::name::UpstreamName;
use crate::observe::metrics::Metrics;
use crate::quota;
use crate::retry;
use crate::retry::budget::Budget;
use crate::upstream;
use crate::upstream::Upstream;

/// What configuration says of one upstream.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The host and its connections.
    pub upstream: upstream::Settings,
    /// What calls to it go by.
    pub rules: Rules,
}

/// What calls to one upstream go by.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// When they are sent again.
    pub retry: retry::Rules,
    /// When the host's day begins.
    pub quota: quota::Rules,
    /// How many are under way at a time, in the whole process.
    pub in_flight_max: usize,
    /// How many wait for their turn.
    pub queue_max: usize,
    /// How long they do.
    pub queue_timeout: Duration,
}

/// Shared by all workers.
pub struct Route {
    /// What calls to it go by.
    pub rules: Rules,
    /// How often calls may be sent again.
    pub budget: Arc<Budget>,
    /// Retries that it had no room for.
    pub budget_refusals: IntCounter,
    /// The host.
    pub upstream: Arc<Upstream>,
    /// Calls under way now.
    pub in_flight: IntGauge,
    /// Calls that wait now.
    pub queued: IntGauge,
}

/// The ways to all upstreams of one configuration. An account's number is that of this configuration, and means nothing in another.
pub struct Routes {
    all: Vec<Route>,
    by_name: HashMap<UpstreamName, usize>,
    /// By the accounts' numbers, so that a request needn't look for a name.
    of_accounts: Vec<Option<usize>>,
}

impl Routes {
    /// These, and which of them each of these accounts goes by.
    #[must_use]
    pub fn new(all: Vec<Route>, accounts: &[Arc<Account>]) -> Self {
        let named = all.iter().enumerate();
        let named = named.map(|(number, route)| (route.name().clone(), number));
        let by_name: HashMap<_, _> = named.collect();
        let of = |account: &Arc<Account>| by_name.get(&account.upstream).copied();
        Self {
            of_accounts: accounts.iter().map(of).collect(),
            by_name,
            all,
        }
    }

    /// In their order.
    pub fn iter(&self) -> impl Iterator<Item = &Route> {
        self.all.iter()
    }

    /// To the upstream of this name.
    #[must_use]
    pub fn named(&self, name: &UpstreamName) -> Option<&Route> {
        self.all.get(*self.by_name.get(name)?)
    }

    /// The way that an account's calls take, and its number in their order.
    #[must_use]
    pub fn of_account(&self, account_number: usize) -> Option<(usize, &Route)> {
        let number = (*self.of_accounts.get(account_number)?)?;
        Some((number, self.all.get(number)?))
    }
}

impl Route {
    /// As configuration names the upstream.
    #[must_use]
    pub fn name(&self) -> &UpstreamName {
        &self.upstream.settings().name
    }

    /// What didn't change is carried over from the one before, with all that is remembered of it: connections, the breaker, how
    /// often calls were sent again.
    ///
    /// # Errors
    /// When the TLS library refuses the settings.
    pub fn new(
        settings: Settings,
        before: Option<&Self>,
        metrics: &Metrics,
    ) -> Result<Self, rustls::Error> {
        let name = settings.upstream.name.clone();
        let slack = settings.upstream.connect_timeout;
        let labels = [name.as_str()];
        let known = |before: &&Self| *before.upstream.settings() == settings.upstream;
        let upstream = match before.filter(known) {
            Some(before) => Arc::clone(&before.upstream),
            None => Arc::new(Upstream::new(settings.upstream, metrics)?),
        };
        let limit = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let in_flight_max = metrics.in_flight_max.with_label_values(&labels);
        in_flight_max.set(limit(settings.rules.in_flight_max));
        let queue_max = metrics.queue_max.with_label_values(&labels);
        queue_max.set(limit(settings.rules.queue_max));
        let same_slack = |before: &&Self| before.upstream.settings().connect_timeout == slack;
        let budget = before.filter(same_slack).map_or_else(
            || Arc::new(Budget::new(slack)),
            |before| Arc::clone(&before.budget),
        );
        Ok(Self {
            rules: settings.rules,
            budget,
            budget_refusals: metrics.retry_budget_refusals.with_label_values(&labels),
            upstream,
            in_flight: metrics.in_flight.with_label_values(&labels),
            queued: metrics.queued.with_label_values(&labels),
        })
    }
}
