//! The only file that reads the environment.

use std::ffi::OsString;
use std::path::PathBuf;

use figment::providers::Env;

/// What names of configuration in the environment begin with. The double underscore keeps clear of the `KYBIO_GATEWAY_PORT` that
/// Kubernetes makes for a Service of this name.
pub const PREFIX: &str = "KYBIO_GATEWAY__";

/// Configured keys, as (`section.key`, text). Names are in small letters.
#[must_use]
pub fn keys() -> Vec<(String, String)> {
    Env::prefixed(PREFIX)
        .split("__")
        .iter()
        .map(|(key, value)| (key.to_string(), value))
        .collect()
}

/// The name of the variable that sets a key.
#[must_use]
pub fn variable(path: &[String]) -> String {
    format!("{PREFIX}{}", path.join("__").to_ascii_uppercase())
}

/// Where systemd puts credentials (systemd.exec(5), `LoadCredential=`).
#[must_use]
pub fn credentials_directory() -> Option<PathBuf> {
    set("CREDENTIALS_DIRECTORY").map(PathBuf::from)
}

/// No colours, whatever the terminal can do (no-color.org).
#[must_use]
pub fn no_color() -> bool {
    set("NO_COLOR").is_some()
}

fn set(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}
