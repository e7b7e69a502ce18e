//! The listener: its address, certificates, clocks and limits.

use std::path::Path;
use std::time::Duration;

use rustls::CertRevocationListError;
use rustls::CertificateError;
use rustls::InconsistentKeys;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::VerifierBuilderError;
use rustls::sign::CertifiedKey;

use crate::config::Door;
use crate::config::Ending;
use crate::config::build::Builder;
use crate::config::build::trust::Trust;
use crate::config::fault::Fault;
use crate::config::files;
use crate::config::layers::At;
use crate::config::value::shown;
use crate::identity::Identity;
use crate::listener;
use crate::listener::socket::Address;
use crate::listener::tls::Error;
use crate::listener::tls::Material;
use crate::listener::tls::Terms;

/// What the listener knows its callers by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KnownBy {
    Certificates,
    Users,
    Loopback,
}

impl KnownBy {
    /// Whether somebody of this identity can come.
    pub(super) fn fits(self, identity: &Identity) -> bool {
        match identity {
            Identity::Spiffe(_) | Identity::Dns(_) => self == Self::Certificates,
            Identity::Uid(_) => self == Self::Users,
            Identity::Loopback => self == Self::Loopback,
        }
    }

    /// How it is here, and what identities look like.
    pub(super) fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Certificates => (
                "the listener has TLS, where callers are known by their certificates",
                "\"spiffe://shop.example/orders\" or \"dns:orders.internal\"",
            ),
            Self::Users => (
                "the listener is a unix socket, where callers are known by their users",
                "\"uid:1000\"",
            ),
            Self::Loopback => (
                "the listener has no TLS, and can't tell callers apart",
                "\"loopback\"",
            ),
        }
    }
}

/// What nothing but TLS makes use of.
const TLS_FILES: [&str; 3] = ["certificate", "private_key", "client_ca"];

/// Who may connect to a unix socket unless something else is written: its user and its group.
const SOCKET_MODE: u32 = 0o660;

/// How long a new connection's first request may be on its way, and an answer to the question whether an HTTP/2 caller is there.
const FIRST_LINGER: Duration = Duration::from_secs(1);

/// How long a request may be on its way to a connection that is idle here.
const LINGER: Duration = Duration::from_millis(500);

impl Builder<'_> {
    pub(super) fn door(&mut self) -> Option<Door> {
        let checked = self.checked;
        let tls = match self.known_by() {
            Some(KnownBy::Certificates) => {
                self.demand_tls_files();
                self.tls().map(Some)
            }
            Some(KnownBy::Users) => {
                self.refuse_tls_keys("a unix socket has no TLS: remove it");
                Some(None)
            }
            Some(KnownBy::Loopback) => {
                self.refuse_tls_keys(
                    "with plaintext = true there is no TLS: remove one of the two",
                );
                Some(None)
            }
            // Whether it's needed can't be told, but what is written can be looked at.
            None => self.tls().map(Some),
        };
        let address = checked.listen(&["listener", "address"]);
        let reuse_port = checked.boolean(&["listener", "reuse_port"]) == Some(true);
        let plaintext = checked.boolean(&["listener", "plaintext"]) == Some(true);
        match address {
            Some(Address::Unix(_)) if reuse_port => {
                self.fault_with_hint(
                    &["listener", "reuse_port"],
                    "is for TCP: only one process can have the file of a unix socket",
                    "pass the socket to both (systemd.socket(5)) for a restart that refuses nobody",
                );
            }
            Some(Address::Tcp(address)) if plaintext && !address.ip().is_loopback() => {
                self.fault_with_hint(
                    &["listener", "plaintext"],
                    format!("{address} isn't this machine's alone: whoever reaches it could call"),
                    "write 127.0.0.1 or unix: into listener.address, or use TLS",
                );
            }
            _ => {}
        }
        let socket_mode = self.socket_mode(address);
        let drain_timeout = checked.duration(&["runtime", "drain_timeout"]);
        let connections_max = checked.integer(&["listener", "connections_max"]);
        let known_by = self.known_by();
        let share = |name| {
            let written = checked.number(&["listener", name]);
            written.and_then(|share| usize::try_from(share).ok())
        };
        let per_address = share("connections_per_address_max");
        let per_caller = share("connections_per_caller_max");
        for (name, share) in [
            ("connections_per_address_max", per_address),
            ("connections_per_caller_max", per_caller),
        ] {
            if share.is_some_and(|share| share > connections_max) {
                let remark = format!(
                    "more than connections_max, which is {connections_max}: it keeps nobody out"
                );
                let notice = checked.fault(&["listener", name], At::Value, remark, None);
                self.notices.push(notice);
            }
        }
        if per_address.is_some() && known_by == Some(KnownBy::Users) {
            self.fault_with_hint(
                &["listener", "connections_per_address_max"],
                "isn't used",
                "a unix socket has no addresses: remove it; connections_per_caller_max counts users",
            );
        }
        // Who shares a machine's loopback can't be told apart: to divide among them would be to lose half.
        let half = match known_by {
            Some(KnownBy::Loopback) => connections_max,
            _ => connections_max.div_ceil(2),
        };
        let settings = listener::Settings {
            handshake_timeout: checked.duration(&["listener", "handshake_timeout"]),
            header_timeout: checked.duration(&["listener", "header_timeout"]),
            idle_timeout: checked.duration(&["listener", "idle_timeout"]),
            write_timeout: checked.duration(&["listener", "write_timeout"]),
            connections_max,
            connections_per_address_max: per_address.unwrap_or(half),
            connections_per_caller_max: per_caller.unwrap_or(half),
            connection_age_max: checked.duration(&["listener", "connection_age_max"]),
            leaving_timeout: self.leaving_timeout(),
            first_linger: FIRST_LINGER.min(drain_timeout / 4),
            linger: LINGER.min(drain_timeout / 4),
        };
        let (terms, endings) = match tls {
            Some(Some((terms, endings))) => (Some(Some(terms)), endings),
            Some(None) => (Some(None), Vec::new()),
            None => (None, Vec::new()),
        };
        Some(Door {
            address: address?.clone(),
            reuse_port,
            socket_mode,
            terms: terms?,
            endings,
            settings,
        })
    }

    /// What callers are known by; `None` if the address can't be read.
    pub(super) fn known_by(&self) -> Option<KnownBy> {
        let plaintext = self.checked.boolean(&["listener", "plaintext"]) == Some(true);
        match self.checked.listen(&["listener", "address"])? {
            Address::Unix(_) => Some(KnownBy::Users),
            Address::Tcp(_) if plaintext => Some(KnownBy::Loopback),
            Address::Tcp(_) => Some(KnownBy::Certificates),
        }
    }

    /// Reports each file that TLS needs and that isn't written.
    fn demand_tls_files(&mut self) {
        for name in TLS_FILES {
            let path = ["listener", name];
            let known = |fault: &Fault| ["listener", &path.join(".")].contains(&&*fault.key);
            // One that is written badly, as the whole table may be, is among the faults already.
            if self.checked.text(&path).is_none() && !self.faults.iter().any(known) {
                let fault = self.checked.missing(&path.map(str::to_owned));
                self.faults.push(fault);
            }
        }
    }

    /// Who writes a certificate or an authority believes that it's used.
    fn refuse_tls_keys(&mut self, hint: &str) {
        let crl = ["listener", "client_crl"];
        for name in TLS_FILES {
            if self.checked.text(&["listener", name]).is_some() {
                self.fault_with_hint(&["listener", name], "isn't used", hint);
            }
        }
        if !self.checked.texts(&crl).is_empty() || self.checked.is_empty_list(&crl) {
            self.fault_with_hint(&crl, "isn't used", hint);
        }
    }

    fn socket_mode(&mut self, address: Option<&Address>) -> u32 {
        let path = ["listener", "socket_mode"];
        let Some(text) = self.checked.text(&path) else {
            return SOCKET_MODE;
        };
        if matches!(address, Some(Address::Tcp(_))) {
            self.fault_with_hint(
                &path,
                "isn't used",
                "it's for the file of a unix: address; remove it",
            );
        }
        self.keep(&path, mode(text)).unwrap_or(SOCKET_MODE)
    }

    /// Our certificate, and whom we let in; why not is among the faults.
    fn tls(&mut self) -> Option<(Terms, Vec<Ending>)> {
        let (checked, reader) = (self.checked, self.reader);
        let path = |name| checked.text(&["listener", name]).map(Path::new);
        let chain = path("certificate").map(|path| files::certificates(reader, path));
        let chain = chain.and_then(|chain| self.keep(&["listener", "certificate"], chain));
        let key = path("private_key").map(|path| files::private_key(reader, path));
        let key = key.and_then(|key| self.keep(&["listener", "private_key"], key));
        let authorities = path("client_ca").map(|path| files::certificates(reader, path));
        let authorities = authorities.and_then(|list| self.keep(&["listener", "client_ca"], list));
        let client_roots = authorities.as_deref().map(files::store);
        let client_roots =
            client_roots.and_then(|roots| self.keep(&["listener", "client_ca"], roots));
        let mut lists_by_item = Vec::new();
        let key_of_crls = ["listener", "client_crl"];
        for (item, path) in checked.texts(&key_of_crls).iter().enumerate() {
            let lists = files::revocation_lists(reader, Path::new(path));
            let lists = self.keep_at(&key_of_crls, At::Item(item), lists);
            lists_by_item.push(lists.unwrap_or_default());
        }
        if checked.is_empty_list(&key_of_crls) {
            self.fault(
                &key_of_crls,
                "the list is empty: leave the key out to go without revocation",
            );
        }
        if key.as_ref().is_some_and(|key| key.open_to_others) {
            let message =
                "the file is open to others: chmod 0400, or 0440 with the process's group";
            let notice = checked.fault(&["listener", "private_key"], At::Value, message, None);
            self.notices.push(notice);
        }
        let pair_is_good = match (&chain, &key) {
            (Some(chain), Some(key)) => self.is_pair(chain, &key.der),
            _ => false,
        };
        let refuse_expired_crl = checked.text(&["listener", "crl_expired"]) != Some("warn");
        let (chain, authorities) = (chain?, authorities?);
        let client_crls = lists_by_item.concat();
        let trust = Trust {
            chain: &chain,
            authorities: &authorities,
            lists: &client_crls,
            expired_list_refuses: refuse_expired_crl,
            now: self.now,
        };
        for (key, remark) in trust.remarks() {
            let notice = checked.fault(&["listener", key], At::Value, remark, None);
            self.notices.push(notice);
        }
        let endings = trust.endings();
        let mut material = Material {
            chain,
            key: key?.der,
            client_roots: client_roots?,
            client_crls,
            refuse_expired_crl,
        };
        match listener::tls::terms(&material) {
            Ok(terms) => Some((terms, endings)),
            Err(Error::Certificate(error)) => {
                if pair_is_good {
                    self.fault(&["listener", "certificate"], error.to_string());
                }
                None
            }
            Err(Error::Clients(VerifierBuilderError::InvalidCrl(_))) => {
                // The library doesn't say which one.
                for (item, lists) in lists_by_item.into_iter().enumerate() {
                    material.client_crls = lists;
                    if let Err(Error::Clients(error)) = listener::tls::terms(&material) {
                        let message = format!("a list in it can't be used: {}", reason(&error));
                        self.report(&key_of_crls, At::Item(item), message, None);
                    }
                }
                None
            }
            Err(Error::Clients(error)) => {
                self.fault(&["listener", "client_ca"], error.to_string());
                None
            }
        }
    }

    /// Whether they can be used together, also when there's more that is missing.
    fn is_pair(&mut self, chain: &[CertificateDer<'static>], key: &PrivateKeyDer<'_>) -> bool {
        let (certificate, private_key) = (["listener", "certificate"], ["listener", "private_key"]);
        let provider = aws_lc_rs::default_provider().key_provider;
        let Ok(key) = provider.load_private_key(key.clone_key()) else {
            let message = "it isn't a key that TLS can use: RSA of 2048 bits or more, ECDSA on P-256, P-384 or P-521, or Ed25519";
            self.fault(&private_key, message);
            return false;
        };
        match CertifiedKey::new(chain.to_vec(), key).keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => true,
            Err(rustls::Error::InconsistentKeys(_)) => {
                let message = "certificate and private_key don't belong together";
                self.fault(&certificate, message);
                false
            }
            Err(rustls::Error::InvalidCertificate(error)) => {
                let why = match error {
                    CertificateError::Other(other) => other.to_string(),
                    error => format!("{error:?}"),
                };
                let message = format!("its first certificate can't be used: {why}");
                self.fault(&certificate, message);
                false
            }
            Err(error) => {
                self.fault(&certificate, error.to_string());
                false
            }
        }
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
}

/// What the parser of revocation lists says, without the library's wrappers around it.
fn reason(error: &VerifierBuilderError) -> String {
    match error {
        VerifierBuilderError::InvalidCrl(CertRevocationListError::Other(error)) => {
            error.to_string()
        }
        VerifierBuilderError::InvalidCrl(error) => format!("{error:?}"),
        error => error.to_string(),
    }
}

/// Permissions as chmod(1) takes them.
fn mode(text: &str) -> Result<u32, String> {
    let octal =
        matches!(text.len(), 3 | 4) && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    let mode = u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| octal && *mode <= 0o777);
    let mode = mode.ok_or_else(|| {
        format!(
            "permissions are wanted in octal, such as \"0660\", but {} was found",
            shown(text)
        )
    })?;
    if mode & 0o222 == 0 {
        return Err(format!(
            "nobody may write to it with {text:?}, so that nobody could connect"
        ));
    }
    Ok(mode)
}

#[cfg(test)]
mod tests {
    use super::mode;

    #[test]
    fn permissions_are_octal_and_let_somebody_in() {
        for (text, expected) in [("0660", 0o660), ("600", 0o600), ("0777", 0o777)] {
            assert_eq!(mode(text), Ok(expected), "{text}");
        }
        for bad in [
            "",
            "66",
            "0680",
            "rw-rw----",
            "4660",
            "00660",
            "+660",
            "0440",
            "0o660",
        ] {
            assert!(mode(bad).is_err(), "{bad}");
        }
    }
}
