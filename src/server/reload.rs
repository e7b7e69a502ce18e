//! Another configuration under running calls: read as one set and checked, then swapped whole, or not at all.
//!
//! What didn't change is carried over. What is under way finishes by what it began with.

use std::collections::HashMap;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::oneshot;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::account::Account;
use crate::account::AppKey;
use crate::admin::Facts;
use crate::admin::Standing;
use crate::clock::Clock;
use crate::config::Config;
use crate::config::Runtime;
use crate::config::changes::Change;
use crate::config::changes::Written;
use crate::config::changes::summary;
use crate::config::fault::Fault;
use crate::config::fault::Faults;
use crate::config::reader::Reader;
use crate::config::reader::Seen;
use crate::identity::Callers;
use crate::keyring::Keyring;
use crate::keyring::Rotation;
use crate::listener::Listener;
use crate::name::AccountName;
use crate::observe::log;
use crate::observe::metrics::Metrics;
use crate::observe::ration::Ration;
use crate::observe::series::Series;
use crate::payload::room::Room;
use crate::policy::Policy;
use crate::proxy::Proxy;
use crate::proxy::Worker;
use crate::proxy::route::Route;
use crate::proxy::route::Routes;
use crate::quota::Latches;
use crate::server::Error;
use crate::server::check_descriptors;
use crate::server::notify;
use crate::slots::Slots;
use crate::upstream::BaseUrl;
use crate::upstream::probe;

/// Reads a whole configuration, and blocks while it does.
pub type Load = dyn Fn(&Reader) -> Result<Config, Faults> + Send + Sync;

/// Where configurations come from, and who asks for one.
pub struct Source {
    /// Reads everything anew.
    pub load: Arc<Load>,
    /// What it reads with, from the first time on.
    pub reader: Arc<Reader>,
    /// Rings when the operator wants a reload.
    pub asked: Arc<Notify>,
    /// The log's level.
    pub log: Arc<log::Control>,
}

/// Between two looks at files that are just being changed.
const REST: Duration = Duration::from_millis(500);

/// How long all files together may take to be read. A file server that doesn't answer takes for ever.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// After so many they're taken as they are: a set that isn't whole is refused, and looked at again.
const LOOKS_MAX: usize = 20;

/// Faults and accounts that are named, each in a line of its own; of more, their number.
const LINES_MAX: usize = 20;

/// What serves now, and all that has to hear of a change.
pub(super) struct Reloader {
    pub(super) source: Source,
    pub(super) in_force: InForce,
    pub(super) listener: Arc<Listener>,
    pub(super) workers: Vec<Arc<Worker>>,
    pub(super) standing: Arc<Standing>,
    pub(super) runtime: watch::Sender<Runtime>,
    pub(super) draining: CancellationToken,
    /// A reading that took too long.
    pub(super) hanging: Option<JoinHandle<()>>,
}

/// The configuration that requests go by.
pub(super) struct InForce {
    pub(super) proxy: Arc<Proxy>,
    pub(super) accounts: Vec<Arc<Account>>,
    pub(super) written: Written,
    /// Since the start.
    pub(super) connections_max: usize,
}

impl InForce {
    /// The key of an account, if it's the same merchant at the same host: a key goes nowhere else.
    fn key(&self, account: &Account, host: &BaseUrl) -> Option<Arc<AppKey>> {
        let mut accounts = self.accounts.iter();
        let had = accounts.find(|had| had.name == account.name)?;
        let same = is_same_merchant(&self.proxy, had, account, host);
        had.key.as_ref().ok().filter(|_| same).cloned()
    }
}

/// The same appId at the same host: what is known of a key of the one holds for the other. The upstream's name is the operator's own.
fn is_same_merchant(before: &Proxy, had: &Account, account: &Account, host: &BaseUrl) -> bool {
    let route = before.routes.named(&had.upstream);
    let at = route.map(|route| &route.upstream.settings().base_url);
    had.app_id == account.app_id && had.upstream == account.upstream && at == Some(host)
}

/// Why what is written isn't taken.
enum Refusal {
    Faults(Faults),
    Server(Error),
    /// A file that's being opened or read, if it's known which.
    Hangs(Option<PathBuf>),
    Lost,
}

/// What came of a reload.
enum Taken {
    Unchanged,
    Reloaded(Vec<Change>),
}

/// What decides about requests, from a configuration. What is remembered of the one before is carried over.
///
/// # Errors
/// When the TLS library refuses an upstream's settings.
pub(super) fn proxy(
    config: &Config,
    before: Option<&Proxy>,
    metrics: &Arc<Metrics>,
    clock: &Clock,
) -> Result<Arc<Proxy>, Error> {
    metrics.room.set_max(config.series_max);
    let routes = config.upstreams.iter().map(|settings| {
        let name = &settings.upstream.name;
        let before = before.and_then(|before| before.routes.named(name));
        let route = Route::new(settings.clone(), before, metrics);
        route.map_err(|cause| Error::Upstream {
            name: name.to_string(),
            cause,
        })
    });
    let routes = Routes::new(routes.collect::<Result<_, _>>()?, &config.accounts);
    let is_same = |had: &Account, account: &Account| {
        let now = routes.named(&account.upstream);
        let host = now.map(|route: &Route| &route.upstream.settings().base_url);
        let before = before.zip(host);
        before.is_some_and(|(before, host)| is_same_merchant(before, had, account, host))
    };
    let keyring = Keyring::new(
        &config.accounts,
        before.map(|before| &before.keyring),
        is_same,
        clock.since_epoch(),
    );
    Ok(Arc::new(Proxy {
        callers: Callers::new(config.identities.iter().cloned()),
        policy: Policy::new(&config.catalogue, &config.accounts, &config.callers),
        routes,
        keyring,
        slots: before.map_or_else(Slots::default, |before| before.slots.clone()),
        bodies: before.map_or_else(
            || Room::new(metrics.bodies_bytes.clone()),
            |before| before.bodies.clone(),
        ),
        strangers: before.map_or_else(
            || Arc::new(Ration::new(clock.now())),
            |before| Arc::clone(&before.strangers),
        ),
        latches: before.map_or_else(
            || Arc::new(Latches::new(metrics)),
            |before| Arc::clone(&before.latches),
        ),
        answers: config.catalogue.answers().clone(),
        settings: config.body,
        series: Arc::new(Series::new(
            metrics,
            config.catalogue.answers().codes(),
            config
                .catalogue
                .iter()
                .map(|operation| operation.name.clone()),
            config.callers.iter().map(|caller| caller.name.clone()),
            config.accounts.iter().map(|account| account.name.clone()),
        )),
        clock: clock.clone(),
    }))
}

/// Shows what metrics have of a configuration that is in force.
pub(super) fn show(config: &Config, metrics: &Metrics, standing: &Standing) {
    let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let accounts = &config.accounts;
    let disabled = accounts.iter().filter(|account| account.key.is_err());
    let disabled = disabled.count();
    metrics.accounts.set(number(accounts.len()));
    metrics.accounts_disabled.set(number(disabled));
    metrics
        .bodies_bytes_max
        .set(number(config.body.sizes.bodies_bytes_max));
    let endings = &config.door.endings;
    let of = |key: &'static str| {
        let ends = endings.iter().filter(move |ending| ending.key == key);
        ends.map(|ending| ending.at)
    };
    standing.set(Facts {
        accounts: accounts.len(),
        usable: accounts.len() - disabled,
        certificate_ends: of("listener.certificate").min(),
        authorities_end: of("listener.client_ca").max(),
    });
    for of in CERTIFICATES {
        let key = format!("listener.{of}");
        let ends = endings.iter().filter(|ending| ending.key == key);
        let labels = [of];
        match ends.map(|ending| ending.at).min() {
            Some(first) => metrics
                .certificate_ends
                .with_label_values(&labels)
                .set(first.as_secs_f64()),
            // There may be none any more.
            None => drop(metrics.certificate_ends.remove_label_values(&labels)),
        }
    }
}

/// Of which keys of the listener it's shown when what they name ends.
const CERTIFICATES: [&str; 3] = ["certificate", "client_ca", "client_crl"];

/// Looks whether a host is back, for as long as it's one of ours.
pub(super) fn watch_upstream(route: &Route, clock: &Clock) {
    let upstream = Arc::clone(&route.upstream);
    tokio::spawn(probe::run(upstream, clock.clone()));
}

impl Reloader {
    /// Runs for as long as its runtime does; once the process is ending, nothing is reloaded any more.
    pub(super) async fn run(mut self) {
        let mut seen = self.in_force.written.seen().clone();
        loop {
            let interval = self.runtime.borrow().reload_interval;
            tokio::select! {
                biased;
                () = self.draining.cancelled() => break,
                () = self.source.asked.notified() => {}
                () = sleep(interval), if !interval.is_zero() => {
                    if !self.has_changed(&seen).await {
                        continue;
                    }
                }
            }
            if self.draining.is_cancelled() {
                break;
            }
            seen = self.reload().await;
        }
        loop {
            self.source.asked.notified().await;
            tracing::info!("SIGHUP: the process is ending, nothing is reloaded");
        }
    }

    /// Reads files in a thread of its own, for as long as that may take. One that hangs isn't waited for, and nothing is read beside it.
    async fn reading<T: Send + 'static>(
        &mut self,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let hangs = |source: &Source| Refusal::Hangs(source.reader.opening());
        if self
            .hanging
            .as_ref()
            .is_some_and(|task| !task.is_finished())
        {
            return Err(hangs(&self.source));
        }
        let (tell, told) = oneshot::channel();
        // Nobody listens once it has taken too long.
        let task = spawn_blocking(move || drop(tell.send(read())));
        match timeout(READ_TIMEOUT, told).await {
            Ok(Ok(content)) => Ok(content),
            Ok(Err(_)) => Err(Refusal::Lost),
            Err(_) => {
                self.hanging = Some(task);
                Err(hangs(&self.source))
            }
        }
    }

    /// What is written now isn't taken.
    fn refused(&self, refusal: &Refusal) {
        refusal.say();
        let metrics = self.in_force.proxy.series.metrics();
        metrics.reloads.with_label_values(&["refused"]).inc();
        metrics.reload_successful.set(0);
    }

    /// Something has, and has come to rest since.
    async fn has_changed(&mut self, seen: &Seen) -> bool {
        let mut before = seen.clone();
        for look in 0..LOOKS_MAX {
            let reader = Arc::clone(&self.source.reader);
            let last = before.clone();
            let now = match self.reading(move || reader.look_again(&last)).await {
                Ok(now) => now,
                Err(refusal) => {
                    self.refused(&refusal);
                    return false;
                }
            };
            if now == *seen {
                return false;
            }
            if look > 0 && now == before {
                return true;
            }
            before = now;
            tokio::select! {
                biased;
                () = self.draining.cancelled() => return false,
                // Who asks doesn't wait for the files to come to rest.
                () = self.source.asked.notified() => return true,
                () = sleep(REST) => {}
            }
        }
        true
    }

    /// Reads everything, and takes it or not. Returns what it has read.
    async fn reload(&mut self) -> Seen {
        let began = self.in_force.proxy.clock.now();
        notify::reloading();
        let metrics = Arc::clone(self.in_force.proxy.series.metrics());
        let (load, reader) = (
            Arc::clone(&self.source.load),
            Arc::clone(&self.source.reader),
        );
        let loaded = self.reading(move || load(&reader)).await;
        let seen = self.source.reader.seen();
        let taken = match loaded {
            // Whatever it is, nobody goes by it any more.
            _ if self.draining.is_cancelled() => return seen,
            Ok(Ok(config)) => self.settle(config),
            Ok(Err(faults)) => Err(Refusal::Faults(faults)),
            Err(refusal) => Err(refusal),
        };
        let took = self.in_force.proxy.clock.now() - began;
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        // systemd asks whether it's over, not how it went; that's in the status. Of a process that's ending it hears something else.
        if !self.draining.is_cancelled() {
            notify::status(if taken.is_ok() {
                "serving what is configured"
            } else {
                "serving what was configured before: what is written now was refused, see the log"
            });
            notify::ready();
        }
        let result = match &taken {
            Ok(Taken::Unchanged) => {
                tracing::info!(took_ms, "configuration unchanged");
                "unchanged"
            }
            Ok(Taken::Reloaded(changes)) => {
                let changes = summary(changes);
                tracing::info!(changes, took_ms, "configuration reloaded");
                "reloaded"
            }
            Err(refusal) => {
                self.refused(refusal);
                return seen;
            }
        };
        metrics.reloads.with_label_values(&[result]).inc();
        metrics.reload_successful.set(1);
        let now = self.in_force.proxy.clock.since_epoch();
        metrics.reload_success_time.set(now.as_secs_f64());
        if matches!(taken, Ok(Taken::Reloaded(_))) {
            let callers = &self.in_force.proxy.callers;
            let knows = |presented: &_| callers.identify(presented).is_ok();
            self.listener.review(knows).await;
        }
        seen
    }

    /// A configuration without faults: what of it can be taken is.
    fn settle(&mut self, mut config: Config) -> Result<Taken, Refusal> {
        let hosts: HashMap<_, _> = config
            .upstreams
            .iter()
            .map(|route| (route.upstream.name.clone(), route.upstream.base_url.clone()))
            .collect();
        let kept = config
            .settle_keys(|account| {
                let host = hosts.get(&account.upstream)?;
                self.in_force.key(account, host)
            })
            .map_err(Refusal::Faults)?;
        for account in &mut config.accounts {
            let had = hosts
                .get(&account.upstream)
                .and_then(|host| self.in_force.key(account, host));
            // The same key twice would be in memory twice.
            if let (Some(had), Ok(key)) = (had, &account.key)
                && had.is(key)
            {
                *account = Arc::new(account.with_key(Ok(had)));
            }
        }
        if let Some(fault) = config.written.other_door(&self.in_force.written) {
            return Err(Refusal::Faults(Faults(vec![fault])));
        }
        config.door.settings.connections_max = self.in_force.connections_max;
        let waiting = config.written.keep_until_restart(&self.in_force.written);
        if !waiting.is_empty() {
            let needs_restart = waiting.join(", ");
            tracing::warn!(needs_restart, "configuration: a change waits for a restart");
        }
        let changes = self.in_force.written.changes(&config.written);
        if changes.is_empty() {
            return Ok(Taken::Unchanged);
        }
        check_descriptors(&config).map_err(Refusal::Server)?;
        let Proxy { series, clock, .. } = &*self.in_force.proxy;
        let proxy = proxy(&config, Some(&self.in_force.proxy), series.metrics(), clock)
            .map_err(Refusal::Server)?;
        self.swap(proxy, config, &kept, &changes);
        Ok(Taken::Reloaded(changes))
    }

    /// From here on nothing fails.
    fn swap(
        &mut self,
        proxy: Arc<Proxy>,
        config: Config,
        kept: &[(AccountName, Fault)],
        changes: &[Change],
    ) {
        let (metrics, clock) = (Arc::clone(proxy.series.metrics()), proxy.clock.clone());
        show(&config, &metrics, &self.standing);
        let new_terms = changes.iter().any(Change::is_of_terms);
        self.listener.reload(
            config.door.settings,
            config.door.terms.filter(|_| new_terms),
        );
        for worker in &self.workers {
            worker.reload(Arc::clone(&proxy));
        }
        self.source.log.set(config.log.level);
        self.runtime.send_replace(config.runtime);
        let connections_max = self.in_force.connections_max;
        let before = std::mem::replace(
            &mut self.in_force,
            InForce {
                proxy,
                accounts: config.accounts,
                written: config.written,
                connections_max,
            },
        );
        let routes = &self.in_force.proxy.routes;
        for route in before.proxy.routes.iter() {
            let name = route.name();
            let now = routes.named(name).map(|route| &route.upstream);
            if now.is_none_or(|now| !Arc::ptr_eq(now, &route.upstream)) {
                route.upstream.retire();
                let url = &route.upstream.settings().base_url;
                if now.is_none_or(|now| now.settings().base_url != *url) {
                    before.proxy.latches.forget(name);
                }
                if now.is_none() {
                    metrics.forget_upstream(name.as_str());
                }
            }
        }
        for route in routes.iter() {
            let known = before.proxy.routes.named(route.name());
            if known.is_none_or(|known| !Arc::ptr_eq(&known.upstream, &route.upstream)) {
                watch_upstream(route, &clock);
            }
        }
        let accounts = self.in_force.accounts.iter();
        let accounts: HashSet<_> = accounts.map(|account| &account.name).collect();
        for gone in before
            .accounts
            .iter()
            .filter(|had| !accounts.contains(&had.name))
        {
            let labels = [gone.name.as_str()];
            // It's there only if they ever were.
            let _ = metrics.quota_used_up.remove_label_values(&labels);
            self.in_force.proxy.latches.hide(&gone.name);
        }
        before.proxy.series.retire();
        metrics.forget_all_but(&self.in_force.proxy.series);
        self.in_force.proxy.series.begin();
        let keyring = &self.in_force.proxy.keyring;
        let rotations = keyring.replaces(&before.proxy.keyring, &metrics);
        keyring.show(&metrics);
        for Rotation {
            account,
            before,
            now,
        } in rotations.iter().take(LINES_MAX)
        {
            match before {
                Some(before) => {
                    tracing::info!(%account, %before, fingerprint = %now, "account has another key");
                }
                None => tracing::info!(%account, fingerprint = %now, "account has a key"),
            }
        }
        say_rest(rotations.len(), "accounts have other keys");
        metrics
            .accounts_keeping_key
            .set(i64::try_from(kept.len()).unwrap_or(i64::MAX));
        for (account, fault) in kept.iter().take(LINES_MAX) {
            tracing::warn!(%account, %fault, "account goes on with the key it had");
        }
        say_rest(kept.len(), "accounts go on with the keys they had");
        for notice in config.notices.iter().take(LINES_MAX) {
            tracing::warn!(%notice, "configuration");
        }
        say_rest(config.notices.len(), "notices");
    }
}

impl Refusal {
    /// Why, and that all stays as it is.
    fn say(&self) {
        const MESSAGE: &str = "configuration not reloaded";
        match self {
            Self::Faults(Faults(faults)) => {
                for fault in faults.iter().take(LINES_MAX) {
                    tracing::error!(%fault, "{MESSAGE}");
                }
                say_rest(faults.len(), "faults");
            }
            Self::Server(error) => tracing::error!(fault = %error, "{MESSAGE}"),
            Self::Hangs(path) => {
                let path = path
                    .as_ref()
                    .map_or_else(|| "a file".to_owned(), |path| path.display().to_string());
                let fault = format!(
                    "{path}: reading it takes longer than {READ_TIMEOUT:?}; nothing more is read until that is over"
                );
                tracing::error!(fault, "{MESSAGE}");
            }
            Self::Lost => tracing::error!(
                fault = "the gateway failed while it read; please report it",
                "{MESSAGE}"
            ),
        }
    }
}

fn say_rest(count: usize, what: &str) {
    if count > LINES_MAX {
        tracing::warn!(
            count,
            "configuration: {what}, of which {LINES_MAX} are told"
        );
    }
}
