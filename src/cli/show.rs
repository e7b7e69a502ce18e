//! `config show`: what holds, and where it comes from; and which keys the gateway beside it uses, if there is one.

use std::collections::BTreeMap;
use std::io;
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use http::StatusCode;

use crate::cli::Configured;
use crate::cli::ask;
use crate::cli::say_faults;
use crate::config;
use crate::config::show;
use crate::config::show::KeyInUse;
use crate::config::show::Running;

pub(super) fn run(configured: &Configured) -> anyhow::Result<ExitCode> {
    let (path, flags) = (&configured.config, &configured.set);
    // What is wrong with it is told with all the rest.
    let admin = config::admin_address(path, flags).ok();
    let running = admin.map(ask::reachable).map(|address| Running {
        address,
        keys: keys_in_use(address),
    });
    match show::merged(path, flags, running.as_ref()) {
        Ok(text) => {
            io::stdout().lock().write_all(text.as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
        Err(faults) => Ok(say_faults(&faults)),
    }
}

/// Those of ten thousand accounts are some megabytes.
const METRICS_BYTES_MAX: usize = 64 * 1024 * 1024;

/// `None` if no gateway answers there.
fn keys_in_use(address: SocketAddr) -> Option<BTreeMap<String, KeyInUse>> {
    let (status, metrics) = ask::get(address, "/metrics", METRICS_BYTES_MAX).ok()?;
    // Something else may have its address.
    let is_ours = status == StatusCode::OK && metrics.contains("\nkybio_gateway_build_info{");
    is_ours.then(|| metrics.lines().filter_map(key_in_use).collect())
}

/// A line such as `kybio_gateway_account_key_taken_timestamp_seconds{account="main",fingerprint="d42ae0"} 1764000000.5`. Names of accounts
/// need no escaping. What another program may say there isn't repeated.
fn key_in_use(line: &str) -> Option<(String, KeyInUse)> {
    let rest = line.strip_prefix("kybio_gateway_account_key_taken_timestamp_seconds{account=\"")?;
    let (account, rest) = rest.split_once("\",fingerprint=\"")?;
    let (fingerprint, taken) = rest.split_once("\"} ")?;
    let taken = Duration::try_from_secs_f64(taken.parse().ok()?).ok()?;
    let hexadecimal = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    (fingerprint.len() == 6 && hexadecimal(fingerprint)).then(|| {
        let key = KeyInUse {
            fingerprint: fingerprint.to_owned(),
            taken,
        };
        (account.to_owned(), key)
    })
}

#[cfg(test)]
mod tests {
    use super::key_in_use;
    use std::time::Duration;

    #[test]
    fn keys_in_use_are_read_from_the_metrics() {
        let line = |labels: &str, value: &str| {
            format!("kybio_gateway_account_key_taken_timestamp_seconds{{{labels}}} {value}")
        };
        let labels = "account=\"store-1\",fingerprint=\"d42ae0\"";
        for value in ["1764000000.5", "1.7640000005e9"] {
            let (account, key) = key_in_use(&line(labels, value)).expect("a key");
            assert_eq!((&*account, &*key.fingerprint), ("store-1", "d42ae0"));
            assert_eq!(key.taken, Duration::from_millis(1_764_000_000_500));
        }
        for other in [
            line(labels, "-1"),
            line(labels, "NaN"),
            line("account=\"a\",fingerprint=\"\u{1b}[31m\"", "1"),
            "# TYPE kybio_gateway_account_key_taken_timestamp_seconds gauge".to_owned(),
        ] {
            assert!(key_in_use(&other).is_none(), "{other}");
        }
    }
}
