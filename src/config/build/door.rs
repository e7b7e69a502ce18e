//! The listener: its address, certificates, clocks and limits.

use std::path::Path;
use std::time::Duration;

use crate::config::Door;
use crate::config::build::Builder;
use crate::config::build::trust::Trust;
use crate::config::files;
use crate::listener;
use crate::listener::tls::Error;
use crate::listener::tls::Material;

impl Builder<'_> {
    pub(super) fn door(&mut self) -> Option<Door> {
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
        let mut client_crls = Vec::new();
        for path in checked.texts(&["listener", "client_crl"]) {
            let lists = files::revocation_lists(reader, Path::new(path));
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
        if key.as_ref().is_some_and(|key| key.open_to_others) {
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
        let (chain, authorities) = (chain?, authorities?);
        let trust = Trust {
            chain: &chain,
            authorities: &authorities,
            lists: &client_crls,
            expired_list_refuses: refuse_expired_crl,
            now: self.now,
        };
        for (key, remark) in trust.remarks() {
            let notice = checked.fault(&["listener", key], remark, None);
            self.notices.push(notice);
        }
        let endings = trust.endings();
        let material = Material {
            chain,
            key: key?.der,
            client_roots: client_roots?,
            client_crls,
            refuse_expired_crl,
        };
        let terms = match listener::tls::terms(&material) {
            Ok(terms) => terms,
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
            terms,
            settings,
            endings,
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
}
