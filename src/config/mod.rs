//! Configuration: what was written (`layers`), checked key by key (`check`, `keys`), becomes what is true ([`Config`]). Nothing else
//! knows TOML or the environment, and every fault is reported at once.

mod build;
mod check;
pub mod environment;
pub mod fault;
mod files;
pub mod keys;
mod layers;
mod value;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;

use crate::account::Account;
use crate::config::build::Builder;
use crate::config::check::Checked;
use crate::config::fault::Fault;
use crate::config::fault::Faults;
use crate::config::fault::Place;
use crate::config::layers::Layers;
use crate::identity::Identity;
use crate::listener;
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
    /// Threads, and how they end.
    pub runtime: Runtime,
    /// Worth a word, but no reason not to start.
    pub notices: Vec<Fault>,
}

/// The address that callers connect to, and what they meet there.
#[derive(Debug)]
pub struct Door {
    /// To bind.
    pub address: SocketAddr,
    /// Whether another process may bind it too.
    pub reuse_port: bool,
    /// Our certificate, and whom we let in.
    pub tls: ServerConfig,
    /// Clocks and limits.
    pub settings: listener::Settings,
}

/// Threads, and how they end.
#[derive(Clone, Copy, Debug)]
pub struct Runtime {
    /// Threads that serve.
    pub workers: usize,
    /// How long serving goes on after readiness has failed.
    pub drain_delay: Duration,
    /// How long answers under way may take after that.
    pub drain_timeout: Duration,
}

/// Reads `path`, what it includes, the environment, and `flags` (`key`, `value`), and everything that they name.
///
/// # Errors
/// All faults at once.
pub fn load(path: &Path, flags: &[(String, String)]) -> Result<Config, Faults> {
    let mut faults = Vec::new();
    let layers = Layers::read(path, flags, &mut faults);
    if !faults.is_empty() {
        // A file that can't be read hides what it has: to go on would report keys as missing that aren't.
        return Err(Faults(faults));
    }
    let checked = Checked::new(&layers, &mut faults);
    let mut notices = Vec::new();
    let builder = Builder {
        checked: &checked,
        faults: &mut faults,
        notices: &mut notices,
    };
    match builder.config() {
        Some(config) if faults.is_empty() => Ok(Config { notices, ..config }),
        Some(_) | None => {
            // Who mends the faults wants to know of these too.
            faults.append(&mut notices);
            Err(Faults(faults))
        }
    }
}

/// The admin address alone, for whoever asks a running gateway how it is. That a file was broken since it was read doesn't matter to
/// the gateway: what can't be read any more counts as not written.
///
/// # Errors
/// When there's no such file, or the address itself or a flag is wrong.
pub fn admin_address(path: &Path, flags: &[(String, String)]) -> Result<SocketAddr, Faults> {
    let mut faults = Vec::new();
    let layers = Layers::read(path, flags, &mut faults);
    if !path.is_file() {
        return Err(Faults(faults));
    }
    let mut faults = Vec::new();
    let checked = Checked::new(&layers, &mut faults);
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
