//! From checked values to what is true: parsed names, loaded files, resolved references. What can't be is a fault; nothing stops at
//! the first.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;

use crate::account::Account;
use crate::account::AppId;
use crate::answers::Answer;
use crate::answers::AnswerClass;
use crate::config::Config;
use crate::config::Door;
use crate::config::Runtime;
use crate::config::check::Checked;
use crate::config::environment;
use crate::config::fault::Fault;
use crate::config::files;
use crate::identity::Identity;
use crate::listener;
use crate::listener::tls::Error;
use crate::listener::tls::Material;
use crate::name::AccountName;
use crate::name::CallerName;
use crate::name::UpstreamName;
use crate::observe::log;
use crate::operation::Class;
use crate::operation::OperationName;
use crate::operation::Repeat;
use crate::operations::Catalogue;
use crate::operations::Override;
use crate::pattern::Pattern;
use crate::policy::AccountBy;
use crate::policy::CallerRules;
use crate::proxy;
use crate::proxy::route;
use crate::quota;
use crate::retry;
use crate::upstream;
use crate::upstream::BaseUrl;
use crate::upstream::breaker;

/// Collects what is true and what is wrong.
pub(super) struct Builder<'a> {
    pub(super) checked: &'a Checked<'a>,
    pub(super) faults: &'a mut Vec<Fault>,
    /// Worth a word, but no reason not to start.
    pub(super) notices: &'a mut Vec<Fault>,
}

impl Builder<'_> {
    /// `None` when a part is missing; why is among the faults.
    pub(super) fn config(mut self) -> Option<Config> {
        let door = self.door();
        let upstreams = self.upstreams();
        let catalogue = self.catalogue();
        let accounts = self.accounts();
        let (callers, identities) = self.callers(&accounts, &catalogue);
        let checked = self.checked;
        let admin = checked.address(&["admin", "address"])?;
        if checked.address(&["listener", "address"]) == Some(admin) && admin.port() != 0 {
            self.fault(&["admin", "address"], "it's the same as listener.address");
        }
        let runtime = Runtime {
            workers: checked.integer(&["runtime", "workers"]),
            drain_delay: checked.duration(&["runtime", "drain_delay"]),
            drain_timeout: checked.duration(&["runtime", "drain_timeout"]),
        };
        let body = proxy::Settings {
            body_bytes_max: checked.integer(&["listener", "body_bytes_max"]),
            body_timeout: checked.duration(&["listener", "body_timeout"]),
        };
        let log = self.log();
        Some(Config {
            door: door?,
            body,
            admin,
            upstreams,
            accounts,
            callers,
            identities,
            catalogue,
            log,
            runtime,
            notices: Vec::new(),
        })
    }

    fn fault(&mut self, path: &[&str], message: impl Into<String>) {
        self.faults.push(self.checked.fault(path, message, None));
    }

    fn fault_with_hint(
        &mut self,
        path: &[&str],
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.faults
            .push(self.checked.fault(path, message, Some(hint.into())));
    }

    /// Keeps what was read, or reports why it couldn't be.
    fn keep<T>(&mut self, path: &[&str], read: Result<T, String>) -> Option<T> {
        read.map_err(|message| self.fault(path, message)).ok()
    }

    fn log(&self) -> log::Settings {
        let format = if self.checked.text(&["log", "format"]) == Some("human") {
            log::Format::Human
        } else {
            log::Format::Json
        };
        let level = match self.checked.text(&["log", "level"]) {
            Some("error") => log::Level::Error,
            Some("warn") => log::Level::Warn,
            Some("debug") => log::Level::Debug,
            Some("trace") => log::Level::Trace,
            _ => log::Level::Info,
        };
        log::Settings {
            format,
            level,
            plain: environment::no_color(),
        }
    }

    fn door(&mut self) -> Option<Door> {
        let checked = self.checked;
        let path = |name| checked.text(&["listener", name]).map(Path::new);
        let chain = path("certificate").map(files::certificates);
        let chain = chain.and_then(|chain| self.keep(&["listener", "certificate"], chain));
        let key = path("private_key").map(files::private_key);
        let key = key.and_then(|key| self.keep(&["listener", "private_key"], key));
        let client_roots = path("client_ca").map(files::roots);
        let client_roots =
            client_roots.and_then(|roots| self.keep(&["listener", "client_ca"], roots));
        let mut client_crls = Vec::new();
        for path in checked.texts(&["listener", "client_crl"]) {
            let lists = files::revocation_lists(Path::new(path));
            client_crls.extend(
                self.keep(&["listener", "client_crl"], lists)
                    .unwrap_or_default(),
            );
        }
        if checked.is_empty_list(&["listener", "client_crl"]) {
            self.fault(
                &["listener", "client_crl"],
                "the list is empty: leave the key out to go without revocation",
            );
        }
        if path("private_key").is_some_and(files::is_open_to_others) {
            let message =
                "the file is open to others: chmod 0400, or 0440 with the process's group";
            self.notices
                .push(checked.fault(&["listener", "private_key"], message, None));
        }
        let settings = listener::Settings {
            handshake_timeout: checked.duration(&["listener", "handshake_timeout"]),
            header_timeout: checked.duration(&["listener", "header_timeout"]),
            idle_timeout: checked.duration(&["listener", "idle_timeout"]),
            write_timeout: checked.duration(&["listener", "write_timeout"]),
            connections_max: checked.integer(&["listener", "connections_max"]),
            connection_age_max: checked.duration(&["listener", "connection_age_max"]),
            leaving_timeout: self.leaving_timeout(),
        };
        let refuse_expired_crl = checked.text(&["listener", "crl_expired"]) != Some("warn");
        let material = Material {
            chain: chain?,
            key: key?,
            client_roots: client_roots?,
            client_crls,
            refuse_expired_crl,
        };
        let tls = match listener::tls::server_config(&material) {
            Ok(tls) => tls,
            Err(Error::Certificate(rustls::Error::InconsistentKeys(_))) => {
                self.fault(
                    &["listener", "certificate"],
                    "certificate and private_key don't belong together",
                );
                return None;
            }
            Err(Error::Certificate(error)) => {
                self.fault(&["listener", "certificate"], error.to_string());
                return None;
            }
            Err(Error::Clients(error)) => {
                self.fault(&["listener", "client_ca"], error.to_string());
                return None;
            }
        };
        let address = checked.address(&["listener", "address"])?;
        let reuse_port = checked.boolean(&["listener", "reuse_port"]) == Some(true);
        Some(Door {
            address,
            reuse_port,
            tls,
            settings,
        })
    }

    /// A body, the longest call, and its answer.
    fn leaving_timeout(&self) -> Duration {
        let upstreams = self.checked.names("upstreams").into_iter();
        let total = upstreams
            .map(|name| self.checked.duration(&["upstreams", name, "total_timeout"]))
            .max();
        let listener = |name| self.checked.duration(&["listener", name]);
        listener("body_timeout") + total.unwrap_or_default() + listener("write_timeout")
    }

    fn upstreams(&mut self) -> Vec<route::Settings> {
        let checked = self.checked;
        let mut upstreams = Vec::new();
        for name in checked.names("upstreams") {
            let key = |key| ["upstreams", name, key];
            let roots = self.roots(&key("roots"));
            let base_url = checked
                .text(&key("base_url"))
                .map(|text| BaseUrl::parse(text).map_err(|error| error.to_string()));
            let base_url = base_url.and_then(|url| self.keep(&key("base_url"), url));
            let parsed = self.keep(
                &["upstreams", name],
                UpstreamName::new(name).map_err(|error| error.to_string()),
            );
            let (Some(name), Some(base_url), Some(roots)) = (parsed, base_url, roots) else {
                continue;
            };
            let elsewhere = checked
                .addresses(&key("resolve"))
                .iter()
                .any(|address| !address.ip().is_loopback());
            if !base_url.is_tls() && elsewhere {
                self.fault_with_hint(
                    &key("resolve"),
                    "with http:// only this machine's own addresses are allowed",
                    "use https://",
                );
            }
            let utc_offset = checked.text(&key("utc_offset")).map(utc_offset);
            let utc_offset = utc_offset.and_then(|offset| self.keep(&key("utc_offset"), offset));
            let settings = upstream::Settings {
                name,
                base_url,
                roots,
                resolve: checked.addresses(&key("resolve")).to_vec(),
                connect_timeout: checked.duration(&key("connect_timeout")),
                attempt_timeout: checked.duration(&key("attempt_timeout")),
                total_timeout: checked.duration(&key("total_timeout")),
                idle_timeout: checked.duration(&key("idle_timeout")),
                connection_age_max: checked.duration(&key("connection_age_max")),
                connections_max: checked.integer(&key("connections_max")),
                reply_bytes_max: checked.integer(&key("reply_bytes_max")),
                breaker: breaker::Rules {
                    failures: checked.small(&key("breaker_failures")),
                    percent: checked.small(&key("breaker_percent")),
                    volume: checked.small(&key("breaker_volume")),
                    window: checked.duration(&key("breaker_window")),
                },
            };
            if checked.duration(&key("backoff_min")) > checked.duration(&key("backoff_max")) {
                self.fault(&key("backoff_min"), "is longer than backoff_max");
            }
            let in_flight_max = checked.number(&key("in_flight_max"));
            if in_flight_max.is_some_and(|max| {
                usize::try_from(max).is_ok_and(|max| max > settings.connections_max)
            }) {
                self.fault(&key("in_flight_max"), "is more than connections_max: those beyond would wait for a connection while their time runs");
            }
            let rules = route::Rules {
                retry: retry::Rules {
                    attempts_max: checked.small(&key("attempts_max")),
                    backoff_min: checked.duration(&key("backoff_min")),
                    backoff_max: checked.duration(&key("backoff_max")),
                    attempt_time_min: attempt_time_min(
                        settings.attempt_timeout.min(settings.total_timeout),
                    ),
                },
                quota: quota::Rules {
                    utc_offset: utc_offset.unwrap_or_default(),
                    trial_interval: checked.duration(&key("quota_trial_interval")),
                },
                in_flight_max: in_flight_max
                    .and_then(|number| usize::try_from(number).ok())
                    .unwrap_or(settings.connections_max),
                queue_max: checked.integer(&key("queue_max")),
                queue_timeout: checked.duration(&key("queue_timeout")),
            };
            upstreams.push(route::Settings {
                upstream: settings,
                rules,
            });
        }
        if checked.names("upstreams").is_empty() {
            self.fault_with_hint(
                &["upstreams"],
                "there is no upstream",
                "write a table such as [upstreams.kybio] with its base_url",
            );
        }
        upstreams
    }

    fn roots(&mut self, path: &[&str; 3]) -> Option<Arc<RootCertStore>> {
        let roots = match self.checked.text(path) {
            None => return None,
            Some("system") => system_roots(),
            Some("bundled") => Ok(RootCertStore {
                roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
            }),
            Some(path) => files::roots(Path::new(path)),
        };
        self.keep(path, roots).map(Arc::new)
    }

    fn catalogue(&mut self) -> Catalogue {
        let checked = self.checked;
        let mut catalogue = Catalogue::shipped();
        for written in checked.names("operations") {
            let key = |key| ["operations", written, key];
            // Written in any letter case, an operation that's known keeps its canonical name.
            let known = catalogue
                .get(written)
                .map(|operation| Ok(operation.name.clone()));
            let unknown = known.is_none();
            let name = known
                .unwrap_or_else(|| OperationName::new(written).map_err(|error| error.to_string()));
            let Some(name) = self.keep(&["operations", written], name) else {
                continue;
            };
            // To pause or change a misspelled operation would do nothing; one of that very name says its class.
            if unknown
                && checked.text(&key("class")).is_none()
                && let Some(near) = nearest(written, &catalogue)
            {
                let hint = format!(
                    "did you mean {:?}? If there is one of this name too, write its class",
                    near.as_str()
                );
                self.fault_with_hint(&["operations", written], "isn't in the catalogue", hint);
            }
            let lookup = checked
                .text(&key("lookup"))
                .map(|text| OperationName::new(text).map_err(|error| error.to_string()));
            let changes = Override {
                class: checked.text(&key("class")).and_then(word::<Class>),
                explicit: checked.boolean(&key("explicit")),
                repeat: checked.text(&key("repeat")).and_then(word::<Repeat>),
                lookup: lookup.and_then(|lookup| self.keep(&key("lookup"), lookup)),
                paused: checked.boolean(&key("paused")),
            };
            let trusted = changes.repeat == Some(Repeat::IdenticalBytes);
            let operation = catalogue.set(name, changes);
            if trusted && operation.class != Class::DeduplicatedWrite {
                let message = format!(
                    "this is a {}, of which KYBIO would take a repeat for a call of its own",
                    operation.class.as_str()
                );
                self.fault_with_hint(
                    &key("repeat"),
                    message,
                    "identical-bytes is for a deduplicated-write alone",
                );
            }
        }
        for written in checked.names("operations") {
            let key = ["operations", written, "lookup"];
            let lookup = checked.text(&key).map(|lookup| catalogue.get(lookup));
            if lookup.is_some_and(|lookup| lookup.is_none_or(|found| found.class != Class::Read)) {
                self.fault_with_hint(
                    &key,
                    "is no read that there is",
                    "name the operation that shows whether the write took effect",
                );
            }
        }
        catalogue.know(self.answers());
        catalogue
    }

    /// Error answers that the operator knows.
    fn answers(&mut self) -> Vec<Answer> {
        let checked = self.checked;
        let mut answers = Vec::new();
        for written in checked.names("answers") {
            let key = |key| ["answers", written, key];
            let class = checked.text(&key("class")).and_then(word::<AnswerClass>);
            if checked.is_empty_list(&key("match")) {
                self.fault(&key("match"), "the list is empty: no answer would fit");
            }
            for text in checked.texts(&key("match")) {
                if text.trim().is_empty() {
                    self.fault(
                        &key("match"),
                        "a blank text says nothing: it may be part of any message",
                    );
                }
                let code = text.parse().ok();
                let message = code.is_none().then(|| text.clone());
                let Some(class) = class else { continue };
                let answer = Answer {
                    code,
                    message,
                    class,
                };
                let same = |other: &&Answer| {
                    (other.code, &other.message) == (answer.code, &answer.message)
                };
                if answers
                    .iter()
                    .any(|other| same(&other) && other.class != class)
                {
                    self.fault(
                        &key("match"),
                        format!("{text:?} has another class in another [answers.*]"),
                    );
                }
                answers.push(answer);
            }
        }
        answers
    }

    fn accounts(&mut self) -> Vec<Arc<Account>> {
        let checked = self.checked;
        let refuse = checked.text(&["runtime", "on_bad_key"]) == Some("refuse");
        let mut accounts = Vec::new();
        for written in checked.names("accounts") {
            let key = |key| ["accounts", written, key];
            let name = self.keep(
                &["accounts", written],
                AccountName::new(written).map_err(|error| error.to_string()),
            );
            let upstream = checked.text(&key("upstream")).and_then(|upstream| {
                let known = checked.names("upstreams");
                if !known.contains(&upstream) {
                    let message = format!("there is no [upstreams.{upstream}]");
                    self.faults.push(checked.fault(
                        &key("upstream"),
                        message,
                        closest(upstream, &known),
                    ));
                    return None;
                }
                UpstreamName::new(upstream).ok()
            });
            let app_id = checked
                .text(&key("app_id"))
                .map(|text| AppId::new(text).map_err(|error| error.to_string()));
            let app_id = app_id.and_then(|app_id| self.keep(&key("app_id"), app_id));
            let app_key = checked
                .text(&key("app_key_file"))
                .map(|path| files::app_key(Path::new(path)));
            if let Some(Err(fault)) = &app_key {
                let place = key("app_key_file");
                let hint = (!refuse).then(|| "this account is disabled".to_owned());
                let fault = checked.fault(&place, fault.to_string(), hint);
                if refuse {
                    self.faults.push(fault)
                } else {
                    self.notices.push(fault)
                }
            }
            let (Some(name), Some(upstream), Some(app_id), Some(app_key)) =
                (name, upstream, app_id, app_key)
            else {
                continue;
            };
            let paused = checked.boolean(&key("paused")) == Some(true);
            accounts.push(Arc::new(Account {
                name,
                app_id,
                upstream,
                key: app_key,
                paused,
                in_flight_max: checked.integer(&key("in_flight_max")),
            }));
        }
        if checked.names("accounts").is_empty() {
            self.fault_with_hint(
                &["accounts"],
                "there is no account",
                "write a table such as [accounts.main] with upstream, app_id and app_key_file",
            );
        }
        accounts
    }

    fn callers(
        &mut self,
        accounts: &[Arc<Account>],
        catalogue: &Catalogue,
    ) -> (Vec<CallerRules>, Vec<(Identity, CallerName)>) {
        let checked = self.checked;
        let mut callers = Vec::new();
        let mut identities: BTreeMap<Identity, CallerName> = BTreeMap::new();
        for written in checked.names("callers") {
            let Some(name) = self.keep(
                &["callers", written],
                CallerName::new(written).map_err(|error| error.to_string()),
            ) else {
                continue;
            };
            for text in checked.texts(&["callers", written, "identities"]) {
                let path = ["callers", written, "identities"];
                let identity = Identity::parse(text).map_err(|error| format!("{text:?}: {error}"));
                let Some(identity) = self.keep(&path, identity) else {
                    continue;
                };
                if let Some(other) = identities.insert(identity, name.clone()) {
                    self.fault(
                        &path,
                        format!("{text:?} is also an identity of the caller {other}"),
                    );
                }
            }
            if let Some(rules) = self.rules(written, name, accounts, catalogue) {
                callers.push(rules);
            }
        }
        if checked.names("callers").is_empty() {
            let hint =
                "write a table such as [callers.orders] with identities, accounts and operations";
            self.fault_with_hint(&["callers"], "there is no caller", hint);
        }
        (callers, identities.into_iter().collect())
    }

    fn rules(
        &mut self,
        written: &str,
        name: CallerName,
        accounts: &[Arc<Account>],
        catalogue: &Catalogue,
    ) -> Option<CallerRules> {
        let checked = self.checked;
        let key = |key| ["callers", written, key];
        let patterns = |name| {
            checked
                .texts(&key(name))
                .iter()
                .map(|text| Pattern::new(text))
                .collect::<Vec<_>>()
        };
        let (account_patterns, operations) = (patterns("accounts"), patterns("operations"));
        for (pattern, text) in account_patterns.iter().zip(checked.texts(&key("accounts"))) {
            // An account whose table has faults is among those already.
            if !checked
                .names("accounts")
                .iter()
                .any(|name| pattern.matches(name))
            {
                let hint = closest(text, &checked.names("accounts"));
                self.faults.push(checked.fault(
                    &key("accounts"),
                    format!("{text:?} matches no account"),
                    hint,
                ));
            }
        }
        for (pattern, text) in operations.iter().zip(checked.texts(&key("operations"))) {
            let path = key("operations");
            let mut matching = catalogue
                .iter()
                .filter(|operation| pattern.matches(operation.name.as_str()))
                .peekable();
            if matching.peek().is_none() {
                let near = nearest(text, catalogue).map_or_else(
                    || "an operation outside the catalogue needs its own [operations.\"module/method\"]".to_owned(),
                    |near| format!("did you mean {:?}?", near.as_str()),
                );
                self.fault_with_hint(&path, format!("{text:?} matches no operation"), near);
            } else if !pattern.is_exact() && matching.all(|operation| operation.explicit) {
                self.fault_with_hint(
                    &path,
                    format!("{text:?} grants nothing"),
                    "what it matches is granted by its exact name alone",
                );
            }
        }
        let mine: Vec<_> = accounts
            .iter()
            .filter(|account| {
                account_patterns
                    .iter()
                    .any(|pattern| pattern.matches(account.name.as_str()))
            })
            .collect();
        let account_by = if checked.text(&key("account_by")) == Some("app-id") {
            AccountBy::AppId
        } else {
            AccountBy::Header
        };
        if account_by == AccountBy::AppId {
            self.refuse_shared_app_ids(&key("account_by"), &mine);
        }
        let default_account = match checked.text(&key("default_account")) {
            None => None,
            Some(default)
                if checked.names("accounts").contains(&default)
                    && account_patterns
                        .iter()
                        .any(|pattern| pattern.matches(default)) =>
            {
                AccountName::new(default).ok()
            }
            Some(default) => {
                self.fault(
                    &key("default_account"),
                    format!("{default:?} isn't one of this caller's accounts"),
                );
                None
            }
        };
        for list in ["identities", "accounts", "operations"] {
            if checked.texts(&key(list)).is_empty()
                && !self
                    .faults
                    .iter()
                    .any(|fault| fault.key == format!("callers.{written}.{list}"))
            {
                self.fault(
                    &key(list),
                    "the list is empty: this caller could do nothing",
                );
            }
        }
        let paused = checked.boolean(&key("paused")) == Some(true);
        Some(CallerRules {
            name,
            accounts: account_patterns,
            default_account,
            account_by,
            operations,
            paused,
            in_flight_max: checked.integer(&key("in_flight_max")),
        })
    }

    /// Where the body's appId chooses, it must choose one.
    fn refuse_shared_app_ids(&mut self, path: &[&str], accounts: &[&Arc<Account>]) {
        let mut seen: HashMap<&AppId, &AccountName> = HashMap::new();
        for account in accounts {
            if let Some(other) = seen.insert(&account.app_id, &account.name) {
                self.fault(path, format!("the accounts {other} and {} have the same app_id, so that it can't choose between them", account.name));
            }
        }
    }
}

/// Too little time to hear an answer: a tenth of what an attempt has, and never more than a second.
fn attempt_time_min(attempt_timeout: Duration) -> Duration {
    (attempt_timeout / 10).min(Duration::from_secs(1))
}

/// Seconds east of UTC, as RFC 3339 writes an offset.
fn utc_offset(text: &str) -> Result<i32, String> {
    let seconds = || {
        let (sign, rest) = match text.split_at_checked(1)? {
            ("+", rest) => (1, rest),
            ("-", rest) => (-1, rest),
            _ => return None,
        };
        let (hours, minutes) = rest.split_once(':')?;
        let number = |text: &str, max: i32| {
            let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
            let number: i32 = if digits {
                text.parse().ok()?
            } else {
                return None;
            };
            (number <= max).then_some(number)
        };
        Some(sign * (number(hours, 14)? * 3_600 + number(minutes, 59)? * 60))
    };
    seconds().ok_or_else(|| "write the hours and minutes before UTC as \"+08:00\", after it as \"-05:00\"; at most 14 hours".to_owned())
}

fn nearest(text: &str, catalogue: &Catalogue) -> Option<OperationName> {
    let names = catalogue
        .iter()
        .map(|operation| (&operation.name, operation.name.as_str()));
    most_alike(text, names, 0.9).cloned()
}

fn closest(text: &str, names: &[&str]) -> Option<String> {
    let near = most_alike(text, names.iter().map(|name| (*name, *name)), 0.7)?;
    Some(format!("did you mean {near:?}?"))
}

/// What was most likely meant, if any of it is alike enough.
fn most_alike<'a, T>(
    text: &str,
    names: impl Iterator<Item = (T, &'a str)>,
    likeness_min: f64,
) -> Option<T> {
    let scored = names.map(|(item, name)| (strsim::jaro_winkler(name, text), item));
    let (likeness, item) = scored.max_by(|one, other| one.0.total_cmp(&other.0))?;
    (likeness > likeness_min).then_some(item)
}

/// A word of a closed set, in the spelling that the catalogue has too.
fn word<T: serde::de::DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_value(serde_json::Value::String(text.to_owned())).ok()
}

fn system_roots() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err("the system has no certificates (on Debian: apt-get install ca-certificates); or write \"bundled\", or a PEM file".to_owned());
    }
    Ok(roots)
}
