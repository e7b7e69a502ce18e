//! Configuration: what was written (`layers`), checked key by key (`check`, `keys`), becomes what is true ([`Config`]). Nothing else
//! knows TOML or the environment, and every fault is reported at once.

mod access;
mod build;
pub mod changes;
mod check;
pub mod environment;
pub mod fault;
mod files;
pub mod keys;
mod layers;
pub mod reader;
pub mod schema;
pub mod show;
mod value;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use time::OffsetDateTime;

use crate::account::Account;
use crate::account::AppKey;
use crate::config::build::Builder;
use crate::config::changes::Written;
use crate::config::check::Checked;
use crate::config::fault::Fault;
use crate::config::fault::Faults;
use crate::config::fault::Place;
use crate::config::layers::At;
use crate::config::layers::Layers;
use crate::config::reader::Reader;
use crate::identity::Identity;
use crate::listener;
use crate::listener::socket::Address;
use crate::listener::tls::Terms;
use crate::name::AccountName;
use crate::name::CallerName;
use crate::observe::log;
use crate::operations::Catalogue;
use crate::policy::CallerRules;
use crate::proxy;
use crate::proxy::route;

/// Everything that is configured, parsed and loaded.
#[derive(Debug)]
pub struct Config {
    /// Where callers connect.
    pub door: Door,
    /// Limits of their bodies.
    pub body: proxy::Settings,
    /// Where metrics and health are.
    pub admin: SocketAddr,
    /// KYBIO hosts.
    pub upstreams: Vec<route::Settings>,
    /// Merchant accounts with their keys.
    pub accounts: Vec<Arc<Account>>,
    /// Who may do what.
    pub callers: Vec<CallerRules>,
    /// Who is who.
    pub identities: Vec<(Identity, CallerName)>,
    /// What there is to do.
    pub catalogue: Catalogue,
    /// Where events go.
    pub log: log::Settings,
    /// Series that configured names may have in the metrics.
    pub series_max: usize,
    /// Threads, and how they end.
    pub runtime: Runtime,
    /// Worth a word, but no reason not to start.
    pub notices: Vec<Fault>,
    /// Accounts whose key file can't be used, and why. What is done about that isn't decided yet: see [`Config::settle_keys`].
    pub bad_keys: Vec<(AccountName, Fault)>,
    /// What a bad key means.
    pub on_bad_key: OnBadKey,
    /// For comparison with what is written later.
    pub written: Written,
}

/// The address that callers connect to, and what they meet there.
#[derive(Debug)]
pub struct Door {
    /// To bind.
    pub address: Address,
    /// Whether another process may bind it too.
    pub reuse_port: bool,
    /// Permissions of the file of a unix socket.
    pub socket_mode: u32,
    /// Our certificate, and whom we let in; none on a unix socket and in plaintext on loopback.
    pub terms: Option<Terms>,
    /// Clocks and limits.
    pub settings: listener::Settings,
    /// When what it's made of ends.
    pub endings: Vec<Ending>,
}

/// The end of a certificate, a CA or a revocation list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// The key that names its file.
    pub key: &'static str,
    /// Whose it is.
    pub of: String,
    /// Wall time since 1970-01-01 UTC.
    pub at: Duration,
}

/// A day in UTC, as 2026-12-31. `at` is wall time since 1970-01-01 UTC.
#[must_use]
pub fn day(at: Duration) -> String {
    let at = i64::try_from(at.as_secs()).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(at)
        .map_or_else(|_| "a day far away".to_owned(), |at| at.date().to_string())
}

/// What an account without a usable key means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnBadKey {
    /// It alone is disabled.
    Disable,
    /// None of the configuration is taken.
    Refuse,
}

/// Threads, and how they end.
#[derive(Clone, Copy, Debug)]
pub struct Runtime {
    /// Threads that serve.
    pub workers: usize,
    /// How often files are looked at for a change; zero for never.
    pub reload_interval: Duration,
    /// How long serving goes on after readiness has failed.
    pub drain_delay: Duration,
    /// How long answers under way may take after that.
    pub drain_timeout: Duration,
}

/// Reads `path`, what it includes, the environment, and `flags` (`key`, `value`), and everything that they name. What was read is known to
/// `reader` afterwards, also when there are faults. `now` is wall time since 1970-01-01 UTC: some of it may have ended.
///
/// All of it is of one moment: what changes under the reading is read anew, up to some seconds long, during which this blocks.
///
/// # Errors
/// All faults at once; or that the files never came to rest.
pub fn load(
    path: &Path,
    flags: &[(String, String)],
    reader: &Reader,
    now: Duration,
) -> Result<Config, Faults> {
    for pause in READING_PAUSES_MS {
        let read = load_once(path, flags, reader, now);
        if reader.is_of_one_moment() {
            return read;
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "it reads in a thread of its own, or before anything runs, and nobody says when a file is whole"
        )]
        sleep(Duration::from_millis(pause));
    }
    Err(Faults(vec![Fault {
        place: Place::File {
            path: path.to_owned(),
            line: None,
        },
        key: String::new(),
        message: "files changed while they were read, again and again".to_owned(),
        hint: None,
    }]))
}

/// A set whose files change under the reading is read anew after a pause: it would be of two minds.
const READING_PAUSES_MS: [u64; 6] = [20, 50, 100, 200, 400, 800];

fn load_once(
    path: &Path,
    flags: &[(String, String)],
    reader: &Reader,
    now: Duration,
) -> Result<Config, Faults> {
    reader.forget();
    let mut faults = Vec::new();
    let layers = Layers::read(path, flags, reader, &mut faults);
    if !layers.whole {
        // A file that can't be read hides what it has: to go on would report keys as missing that aren't.
        return Err(Faults::in_order(faults));
    }
    let checked = Checked::new(&layers, reader, &mut faults);
    let (mut notices, mut bad_keys) = (Vec::new(), Vec::new());
    let builder = Builder {
        checked: &checked,
        reader,
        now,
        faults: &mut faults,
        notices: &mut notices,
        bad_keys: &mut bad_keys,
    };
    match builder.config() {
        Some(config) if faults.is_empty() => {
            let listener = layers.find(&["listener".to_owned()], At::Key);
            let (values, files) = checked.into_values();
            let seen = reader.seen();
            Ok(Config {
                notices,
                bad_keys,
                written: Written {
                    values,
                    files,
                    seen,
                    listener,
                },
                ..config
            })
        }
        Some(_) | None => {
            // Who mends the faults wants to know of these too.
            faults.extend(bad_keys.into_iter().map(|(_, fault)| fault));
            faults.append(&mut notices);
            Err(Faults::in_order(faults))
        }
    }
}

impl Config {
    /// Decides about bad keys. An account goes on with the key that it `had`, if it had one; those are returned. Another one is disabled,
    /// with a notice, or all is refused, as configured.
    ///
    /// # Errors
    /// With [`OnBadKey::Refuse`], the bad keys that there's nothing to go on with.
    pub fn settle_keys(
        &mut self,
        had: impl Fn(&Account) -> Option<Arc<AppKey>>,
    ) -> Result<Vec<(AccountName, Fault)>, Faults> {
        let mut kept = Vec::new();
        let mut lost = Vec::new();
        for (name, fault) in std::mem::take(&mut self.bad_keys) {
            let mut accounts = self.accounts.iter_mut();
            let account = accounts.find(|account| account.name == name);
            match account.and_then(|account| Some((had(account)?, account))) {
                Some((key, account)) => {
                    *account = Arc::new(account.with_key(Ok(key)));
                    kept.push((name, fault));
                }
                None => lost.push(fault),
            }
        }
        if self.on_bad_key == OnBadKey::Refuse && !lost.is_empty() {
            return Err(Faults(lost));
        }
        self.notices.extend(lost.into_iter().map(|fault| Fault {
            hint: Some("this account is disabled".to_owned()),
            ..fault
        }));
        Ok(kept)
    }
}

/// The admin address alone, for whoever asks a running gateway how it is. That a file was broken since it was read doesn't matter to
/// the gateway: what can't be read any more counts as not written.
///
/// # Errors
/// When there's no such file, or the address itself or a flag is wrong.
pub fn admin_address(path: &Path, flags: &[(String, String)]) -> Result<SocketAddr, Faults> {
    let mut faults = Vec::new();
    let reader = Reader::default();
    let layers = Layers::read(path, flags, &reader, &mut faults);
    if !path.is_file() {
        return Err(Faults(faults));
    }
    let mut faults = Vec::new();
    let checked = Checked::new(&layers, &reader, &mut faults);
    let matters = |fault: &Fault| fault.place == Place::Flag || fault.key.starts_with("admin");
    match checked.address(&["admin", "address"]) {
        Some(address) if !faults.iter().any(matters) => Ok(address),
        Some(_) | None => Err(Faults(faults.into_iter().filter(matters).collect())),
    }
}

#[cfg(test)]
mod tests {
    use super::keys::KEYS;
    use super::keys::reference;

    #[test]
    fn the_reference_file_is_what_the_table_says() {
        let written = include_str!("../../config/gateway.toml");
        assert!(
            written == reference(),
            "write it anew: kybio-gateway config reference > config/gateway.toml"
        );
        assert!(KEYS.len() > 40);
    }
}
