//! From checked values to what is true: parsed names, loaded files, resolved references. What can't be is a fault; nothing stops at
//! the first. One file for each table.

mod accounts;
mod callers;
mod door;
mod operations;
mod trust;
mod upstreams;

use std::time::Duration;

use crate::config::Config;
use crate::config::OnBadKey;
use crate::config::Runtime;
use crate::config::changes::Written;
use crate::config::check::Checked;
use crate::config::environment;
use crate::config::fault::Fault;
use crate::config::fault::dotted;
use crate::config::layers::At;
use crate::config::reader::Reader;
use crate::listener::socket::Address;
use crate::name::AccountName;
use crate::observe::log;
use crate::operation::OperationName;
use crate::operations::Catalogue;
use crate::payload::Sizes;
use crate::payload::room::SHARES;
use crate::proxy;

pub(super) struct Builder<'a> {
    pub(super) checked: &'a Checked<'a>,
    pub(super) reader: &'a Reader,
    /// Wall time since 1970-01-01 UTC.
    pub(super) now: Duration,
    pub(super) faults: &'a mut Vec<Fault>,
    /// Worth a word, but no reason not to start.
    pub(super) notices: &'a mut Vec<Fault>,
    /// Accounts whose key can't be used.
    pub(super) bad_keys: &'a mut Vec<(AccountName, Fault)>,
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
        self.refuse_one_address_for_both();
        let runtime = Runtime {
            workers: checked.integer(&["runtime", "workers"]),
            reload_interval: checked.duration(&["runtime", "reload_interval"]),
            drain_delay: checked.duration(&["runtime", "drain_delay"]),
            drain_timeout: checked.duration(&["runtime", "drain_timeout"]),
        };
        let body = proxy::Settings {
            sizes: self.sizes(),
            body_timeout: checked.duration(&["listener", "body_timeout"]),
            done_one_in: checked.small(&["log", "done_one_in"]),
        };
        let log = self.log();
        Some(Config {
            door: door?,
            body,
            admin: checked.address(&["admin", "address"])?,
            upstreams,
            accounts,
            callers,
            identities,
            catalogue,
            log,
            series_max: checked.integer(&["metrics", "series_max"]),
            runtime,
            on_bad_key: if checked.text(&["runtime", "on_bad_key"]) == Some("refuse") {
                OnBadKey::Refuse
            } else {
                OnBadKey::Disable
            },
            notices: Vec::new(),
            bad_keys: Vec::new(),
            written: Written::default(),
        })
    }

    /// How large bodies may be, each and all together.
    fn sizes(&mut self) -> Sizes {
        let (each, all) = (
            ["listener", "body_bytes_max"],
            ["listener", "bodies_bytes_max"],
        );
        let sizes = Sizes {
            body_bytes_max: self.checked.integer(&each),
            bodies_bytes_max: self.checked.integer(&all),
        };
        let share = sizes.bodies_bytes_max.div_ceil(SHARES);
        if sizes.body_bytes_max > share && self.are_good(&[&each, &all]) {
            // By default it has room for the largest body that can be written: it's this one that was written too small.
            self.fault_with_hint(
                &all,
                format!(
                    "one caller's half of it, {share}, is less than one body may have: body_bytes_max is {}",
                    sizes.body_bytes_max
                ),
                format!("at least {}", sizes.body_bytes_max * SHARES),
            );
        }
        sizes
    }

    /// Two can't listen at one place. One that listens everywhere is at each.
    fn refuse_one_address_for_both(&mut self) {
        let (admin, listener) = (["admin", "address"], ["listener", "address"]);
        let (Some(one), Some(Address::Tcp(other))) =
            (self.checked.address(&admin), self.checked.listen(&listener))
        else {
            return;
        };
        let everywhere = one.ip().is_unspecified() || other.ip().is_unspecified();
        let shared = one.port() == other.port() && (everywhere || one.ip() == other.ip());
        if shared && one.port() != 0 && self.are_good(&[&admin, &listener]) {
            // One of them may be a default.
            if self.checked.is_written(&admin) {
                let message = format!("{one} is taken by listener.address, which is {other}");
                self.fault_with_hint(&admin, message, "choose another port");
            } else {
                let message = format!("{other} is taken by admin.address, which is {one}");
                self.fault_with_hint(&listener, message, "choose another port");
            }
        }
    }

    /// Something of a table was written, but wrongly: what follows from its absence is no news.
    fn is_mistaken(&self, table: &str) -> bool {
        let belongs = |key: &str| key.split('.').next() == Some(table);
        self.faults.iter().any(|fault| belongs(&fault.key))
    }

    /// None of these keys has a fault, so that what's compared is what was written.
    fn are_good(&self, paths: &[&[&str]]) -> bool {
        let names: Vec<String> = paths.iter().map(|path| dotted(path)).collect();
        !self.faults.iter().any(|fault| names.contains(&fault.key))
    }

    fn fault(&mut self, path: &[&str], message: impl Into<String>) {
        self.report(path, At::Value, message, None);
    }

    fn fault_with_hint(
        &mut self,
        path: &[&str],
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.report(path, At::Value, message, Some(hint.into()));
    }

    fn report(&mut self, path: &[&str], at: At, message: impl Into<String>, hint: Option<String>) {
        let fault = self.checked.fault(path, at, message, hint);
        self.faults.push(fault);
    }

    /// Keeps what was read, or reports why it couldn't be.
    fn keep<T>(&mut self, path: &[&str], read: Result<T, String>) -> Option<T> {
        self.keep_at(path, At::Value, read)
    }

    fn keep_at<T>(&mut self, path: &[&str], at: At, read: Result<T, String>) -> Option<T> {
        read.map_err(|message| self.report(path, at, message, None))
            .ok()
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
