//! KYBIO hosts.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use humantime::format_duration;
use rustls::RootCertStore;

use crate::config::build::Builder;
use crate::config::build::closest;
use crate::config::files;
use crate::config::layers::At;
use crate::config::reader::SYSTEM_ROOTS;
use crate::config::value::shown;
use crate::name::UpstreamName;
use crate::proxy::route;
use crate::quota;
use crate::retry;
use crate::upstream;
use crate::upstream::BaseUrl;
use crate::upstream::Roots;
use crate::upstream::breaker;
use crate::upstream::destination;
use crate::upstream::destination::Kind;

impl Builder<'_> {
    pub(super) fn upstreams(&mut self) -> Vec<route::Settings> {
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
            for (item, address) in checked.addresses(&key("resolve")).iter().enumerate() {
                if base_url.as_ref().is_some_and(|url| !url.is_tls()) && !address.ip().is_loopback()
                {
                    self.report(
                        &key("resolve"),
                        At::Item(item),
                        "with http:// only this machine's own addresses are allowed",
                        Some("use https://".to_owned()),
                    );
                }
            }
            let utc_offset = checked.text(&key("utc_offset")).map(utc_offset);
            let utc_offset = utc_offset.and_then(|offset| self.keep(&key("utc_offset"), offset));
            self.refuse_what_contradicts(name);
            let (Some(name), Some(base_url), Some(roots)) = (parsed, base_url, roots) else {
                continue;
            };
            let settings = upstream::Settings {
                name,
                base_url,
                roots,
                resolve: checked.addresses(&key("resolve")).to_vec(),
                allow_private: checked.boolean(&key("allow_private")) == Some(true),
                traceparent: checked.boolean(&key("traceparent")) == Some(true),
                connect_timeout: checked.duration(&key("connect_timeout")),
                attempt_timeout: checked.duration(&key("attempt_timeout")),
                total_timeout: checked.duration(&key("total_timeout")),
                idle_timeout: checked.duration(&key("idle_timeout")),
                connection_age_max: checked.duration(&key("connection_age_max")),
                connections_max: checked.integer(&key("connections_max")),
                clock_skew_max: checked.duration(&key("clock_skew_max")),
                reply_bytes_max: checked.integer(&key("reply_bytes_max")),
                breaker: breaker::Rules {
                    failures: checked.small(&key("breaker_failures")),
                    percent: checked.small(&key("breaker_percent")),
                    volume: checked.small(&key("breaker_volume")),
                    window: checked.duration(&key("breaker_window")),
                },
            };
            let in_flight_max = checked.number(&key("in_flight_max"));
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
            self.refuse_an_address_that_is_not_public(&settings);
            upstreams.push(route::Settings {
                upstream: settings,
                rules,
            });
        }
        if checked.names("upstreams").is_empty() && !self.is_mistaken("upstreams") {
            self.fault_with_hint(
                &["upstreams"],
                "there is no upstream",
                "write a table such as [upstreams.kybio] with its base_url",
            );
        }
        upstreams
    }

    /// A URL with an address in it that would never be connected to.
    fn refuse_an_address_that_is_not_public(&mut self, settings: &upstream::Settings) {
        let Some(address) = settings.base_url.address() else {
            return;
        };
        if !settings.resolve.is_empty() || settings.reach().covers(address) {
            return;
        }
        let kind = destination::kind(address);
        let hint = match kind {
            Kind::NoHost => "name the host that the vendor gave you",
            Kind::Public | Kind::Loopback | Kind::Private => {
                "if the host is really there, write allow_private = true"
            }
        };
        let path = ["upstreams", settings.name.as_str(), "base_url"];
        self.fault_with_hint(&path, format!("{address} is {kind}"), hint);
    }

    /// Keys that are good by themselves, but not together.
    fn refuse_what_contradicts(&mut self, name: &str) {
        let checked = self.checked;
        let key = |key| ["upstreams", name, key];
        let shortest = checked.duration(&key("backoff_min"));
        let longest = checked.duration(&key("backoff_max"));
        if shortest > longest && self.are_good(&[&key("backoff_min"), &key("backoff_max")]) {
            let (shortest, longest) = (format_duration(shortest), format_duration(longest));
            // One of them may be a default.
            if checked.is_written(&key("backoff_min")) {
                let message = format!("{shortest} is longer than backoff_max, which is {longest}");
                self.fault(&key("backoff_min"), message);
            } else {
                let message = format!("{longest} is shorter than backoff_min, which is {shortest}");
                self.fault(&key("backoff_max"), message);
            }
        }
        let connections_max = checked.integer(&key("connections_max"));
        let in_flight_max = checked.integer(&key("in_flight_max"));
        if in_flight_max > connections_max && self.are_good(&[&key("connections_max")]) {
            let message = format!(
                "{in_flight_max} is more than connections_max, which is {connections_max}: those beyond would wait for a connection while their time runs"
            );
            self.fault(&key("in_flight_max"), message);
        }
    }

    fn roots(&mut self, path: &[&str; 3]) -> Option<Roots> {
        let roots = match self.checked.text(path) {
            None => return None,
            Some(_) if self.reader.is_blind() => Ok(RootCertStore::empty()),
            Some("system") => self.system_roots(),
            Some("bundled") => Ok(RootCertStore {
                roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
            }),
            Some(file) => {
                let file = Path::new(file);
                let roots = files::roots(self.reader, file);
                if let Err(message) = &roots
                    && let Some(name) = file.file_name().and_then(OsStr::to_str)
                    && let hint @ Some(_) = closest(name, &["system", "bundled"])
                {
                    self.report(path, At::Value, message.as_str(), hint);
                    return None;
                }
                roots
            }
        };
        self.keep(path, roots).map(|roots| Roots(Arc::new(roots)))
    }

    fn system_roots(&self) -> Result<RootCertStore, String> {
        let mut roots = RootCertStore::empty();
        let mut found = rustls_native_certs::load_native_certs().certs;
        // In an order of their own, so that the same ones are the same.
        found.sort_unstable_by(|one, other| one.as_ref().cmp(other.as_ref()));
        self.reader.note(
            SYSTEM_ROOTS,
            &found.iter().map(AsRef::as_ref).collect::<Vec<&[u8]>>(),
        );
        roots.add_parsable_certificates(found);
        if roots.is_empty() {
            return Err("the system has no certificates (on Debian: apt-get install ca-certificates); or write \"bundled\", or a PEM file".to_owned());
        }
        Ok(roots)
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
    seconds().ok_or_else(|| format!("hours and minutes before UTC such as \"+08:00\", or after it such as \"-05:00\", at most 14 hours, are wanted, but {} was found", shown(text)))
}
