//! What holds, written as a configuration again, each key with the place that it comes from. Opens none of the files that keys name, so
//! that it works where they aren't, and prints nothing that may be a secret in the wrong place.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use std::time::SystemTime;

use figment::value::Value;
use humantime::format_rfc3339_seconds;

use crate::config::build::Builder;
use crate::config::check::Checked;
use crate::config::check::Typed;
use crate::config::fault::Fault;
use crate::config::fault::Faults;
use crate::config::fault::dotted;
use crate::config::fault::quoted;
use crate::config::keys;
use crate::config::keys::Fallback;
use crate::config::keys::KEYS;
use crate::config::keys::Key;
use crate::config::keys::Kind;
use crate::config::layers::At;
use crate::config::layers::Layers;
use crate::config::reader::Reader;
use crate::config::value::Data;
use crate::listener::socket::Address;

/// A gateway that may be running.
#[derive(Clone, Debug)]
pub struct Running {
    /// Its admin address.
    pub address: SocketAddr,
    /// Its keys by account; `None` if nobody answers.
    pub keys: Option<BTreeMap<String, KeyInUse>>,
}

/// A key that calls are signed with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyInUse {
    /// Which.
    pub fingerprint: String,
    /// When the gateway read it first, in wall time since 1970-01-01 UTC.
    pub taken: Duration,
}

/// Reads `path`, what it includes, the environment, and `flags` (`key`, `value`), and writes what they come to: tables in the order of
/// the reference file, names sorted, paths of files absolute, because they no longer stand in the file that they're relative to. Of a
/// gateway that is `running`, the keys in use are told too.
///
/// # Errors
/// All faults of what was written. Those of the files that it names are for `check`.
pub fn merged(
    path: &Path,
    flags: &[(String, String)],
    running: Option<&Running>,
) -> Result<String, Faults> {
    let mut faults = Vec::new();
    let layers = Layers::read(path, flags, &Reader::default(), &mut faults);
    let blind = Reader::blind();
    if !layers.whole {
        return Err(Faults::in_order(faults));
    }
    let checked = Checked::new(&layers, &blind, &mut faults);
    refuse_what_is_not_meant(&checked, &blind, &mut faults);
    if !faults.is_empty() {
        return Err(Faults::in_order(faults));
    }
    let shown = Shown {
        layers: &layers,
        checked: &checked,
        running,
    };
    Ok(shown.text(path))
}

/// Adds the faults of meaning: unknown names, addresses that can't be. That the files aren't opened isn't one.
fn refuse_what_is_not_meant(checked: &Checked<'_>, blind: &Reader, faults: &mut Vec<Fault>) {
    let of_values = faults.len();
    let builder = Builder {
        checked,
        reader: blind,
        now: Duration::ZERO,
        faults,
        notices: &mut Vec::new(),
        bad_keys: &mut Vec::new(),
    };
    drop(builder.config());
    let unopened: BTreeSet<String> = KEYS
        .iter()
        .filter(|key| key.kind.is_of_files())
        .flat_map(|key| paths(checked, key))
        .filter(|path| checked.written(path).is_some() && !checked.is_empty_list(&segments(path)))
        .map(|path| dotted(&path))
        .collect();
    let of_meaning = faults.split_off(of_values);
    faults.extend(
        of_meaning
            .into_iter()
            .filter(|fault| !unopened.contains(&fault.key)),
    );
}

/// A key's place in each table that has it.
fn paths(checked: &Checked<'_>, key: &Key) -> Vec<Vec<String>> {
    tables(checked, key.table())
        .into_iter()
        .map(|table| within(&table, key))
        .collect()
}

/// The tables that there are of one in the table of keys.
fn tables(checked: &Checked<'_>, path: &'static str) -> Vec<Vec<String>> {
    match path.strip_suffix(".*") {
        Some(table) => checked
            .names(table)
            .into_iter()
            .map(|name| vec![table.to_owned(), name.to_owned()])
            .collect(),
        None if path.is_empty() => vec![Vec::new()],
        None => vec![vec![path.to_owned()]],
    }
}

fn within(table: &[String], key: &Key) -> Vec<String> {
    let name = key.name().to_owned();
    table.iter().cloned().chain([name]).collect()
}

fn segments(path: &[String]) -> Vec<&str> {
    path.iter().map(String::as_str).collect()
}

/// A configuration without faults.
struct Shown<'a> {
    layers: &'a Layers,
    checked: &'a Checked<'a>,
    running: Option<&'a Running>,
}

impl Shown<'_> {
    fn text(&self, path: &Path) -> String {
        let mut out = format!(
            "# What holds: {}, what it includes, the environment and --set. Each key is followed by its source.\n",
            in_a_comment(&path.display().to_string())
        );
        if let Some(Running { address, keys }) = self.running {
            let _ = match keys {
                Some(_) => writeln!(
                    out,
                    "# The keys in use are those of the gateway at {address}."
                ),
                None => writeln!(
                    out,
                    "# No gateway answers at {address}: which keys are in use isn't known."
                ),
            };
        }
        for (table, keys) in keys::tables() {
            for table in tables(self.checked, table) {
                if !table.is_empty() {
                    let _ = writeln!(out, "\n[{}]", dotted(&table));
                }
                for key in keys {
                    if let Some(line) = self.line(&table, key) {
                        out.push_str(&line);
                        out.push('\n');
                    }
                    if key.path == "accounts.*.app_key_file"
                        && let Some(line) = self.key_in_use(&table)
                    {
                        out.push_str(&line);
                    }
                }
            }
        }
        out
    }

    /// Which key an account's calls are signed with now; `None` if nobody can say.
    fn key_in_use(&self, table: &[String]) -> Option<String> {
        let keys = self.running?.keys.as_ref()?;
        let account = table.last()?;
        Some(match keys.get(account) {
            Some(KeyInUse { fingerprint, taken }) => {
                let taken = SystemTime::UNIX_EPOCH.checked_add(*taken)?;
                let taken = format_rfc3339_seconds(taken);
                format!("# key in use: {fingerprint}, taken {taken}\n")
            }
            None => "# key in use: none\n".to_owned(),
        })
    }

    /// `None` for what isn't written and has no default.
    fn line(&self, table: &[String], key: &Key) -> Option<String> {
        let (name, path) = (key.name(), within(table, key));
        let Some(value) = self.checked.written(&path) else {
            return match key.default {
                Fallback::Value(default) => Some(format!("{name} = {default} # default")),
                Fallback::Required(_) | Fallback::RequiredWithTls(_) | Fallback::Absent(_) => None,
            };
        };
        let written = Typed::new(self.layers, key, value).ok()?;
        let place = self.layers.place(&path, value, At::Value);
        let (text, masked) = text(key.kind, value, &written);
        let masked = if masked {
            ", masked: it may be a secret in the wrong place"
        } else {
            ""
        };
        // What was included is already here, and would be there a second time.
        let (off, merged) = if key.path == "include" {
            ("# ", ", merged in")
        } else {
            ("", "")
        };
        let place = in_a_comment(&place.to_string());
        Some(format!("{off}{name} = {text} # {place}{merged}{masked}"))
    }
}

/// A value in the spelling of a file, and whether some of it isn't shown.
fn text(kind: Kind, value: &Value, written: &Typed) -> (String, bool) {
    let mut masked = false;
    let mut one = |text: &String| {
        let shown = match kind {
            Kind::File | Kind::Files => path(text, &written.folder),
            Kind::Roots if text != "system" && text != "bundled" => path(text, &written.folder),
            _ => word(text),
        };
        masked |= shown.is_none();
        quoted(&shown.unwrap_or_else(|| "***".to_owned()))
    };
    let list = |texts: Vec<String>| format!("[{}]", texts.join(", "));
    let text = match &written.data {
        // As it was written: whoever wrote 120s looks for 120s.
        Data::Duration(_) => quoted(value.as_str().unwrap_or_default()),
        Data::Integer(number) => number.to_string(),
        Data::Boolean(value) => value.to_string(),
        Data::Address(address) => quoted(&address.to_string()),
        Data::Listen(Address::Tcp(address)) => quoted(&address.to_string()),
        Data::Listen(Address::Unix(path)) => {
            let full = written.folder.join(path);
            let full = std::path::absolute(&full).unwrap_or(full);
            quoted(&Address::Unix(full).to_string())
        }
        Data::Addresses(addresses) => list(
            addresses
                .iter()
                .map(|address| quoted(&address.to_string()))
                .collect(),
        ),
        Data::Text(text) => one(text),
        Data::Texts(texts) => list(texts.iter().map(one).collect()),
    };
    (text, masked)
}

/// `None` for what looks as keys do: the vendor's are some 19 digits, a private key is in PEM.
fn word(text: &str) -> Option<String> {
    let digits = text.len() >= 12 && text.bytes().all(|byte| byte.is_ascii_digit());
    (!digits && !has_pem(text)).then(|| text.to_owned())
}

/// Who wrote a key in place of its file must not read it here: what is plainly a path is shown, and else only what is there.
fn path(text: &str, folder: &Path) -> Option<String> {
    if has_pem(text) {
        return None;
    }
    // Where systemd puts it is known to the service alone.
    if text.starts_with("$CREDENTIALS_DIRECTORY/") {
        return Some(text.to_owned());
    }
    let full = folder.join(text);
    if !is_plainly_a_path(text) && !full.exists() {
        return None;
    }
    std::path::absolute(&full)
        .unwrap_or(full)
        .into_os_string()
        .into_string()
        .ok()
}

/// It has a folder, or ends as names of files do. No part is as long as an encoded key.
fn is_plainly_a_path(text: &str) -> bool {
    let extension = |name: &str| {
        name.rsplit_once('.').is_some_and(|(_, extension)| {
            (1..=8).contains(&extension.len())
                && extension.starts_with(|first: char| first.is_ascii_alphabetic())
                && extension.bytes().all(|byte| byte.is_ascii_alphanumeric())
        })
    };
    text.split('/').all(|part| part.len() <= 64) && (text.contains('/') || extension(text))
}

fn has_pem(text: &str) -> bool {
    text.contains("-----") || text.contains(char::is_control)
}

/// A comment ends with its line.
fn in_a_comment(text: &str) -> String {
    text.replace(char::is_control, "?")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::path;
    use super::word;

    #[test]
    fn what_is_plainly_a_path_is_shown_and_what_may_be_a_key_is_not() {
        for shown in [
            "tls/gateway.pem",
            "main.key",
            "secrets/main",
            "/run/secrets/main",
            "my keys/1234567890123456789.key",
            "accounts.d/*.toml",
            "$CREDENTIALS_DIRECTORY/main",
        ] {
            let full = path(shown, Path::new("/nowhere"));
            assert!(full.is_some_and(|full| full.ends_with(shown)), "{shown}");
        }
        let base64 = format!("MIIEvQIBADANBgkqhkiG/{}", "9w0BAQEFAASC".repeat(20));
        for masked in [
            "1234567890123456789",
            "roger1AppKey",
            "roger1AppKey.1234567890",
            "-----BEGIN PRIVATE KEY-----/",
            "secrets/main.key\n",
            &base64,
        ] {
            assert_eq!(path(masked, Path::new("/nowhere")), None, "{masked}");
        }
    }

    #[test]
    fn a_file_that_is_there_is_shown_whatever_its_name() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("main"), "").unwrap();
        assert!(path("main", folder.path()).is_some());
        assert!(path("other", folder.path()).is_none());
    }

    #[test]
    fn an_app_key_in_place_of_a_name_is_not_shown() {
        for masked in ["1234567890123456789", "-----BEGIN CERTIFICATE-----", "a\nb"] {
            assert_eq!(word(masked), None, "{masked}");
        }
        for shown in [
            "abcdefghijklmn",
            "8F1C0D5E2A9B4C7D8F1C0D5E2A9B4C7D",
            "5010",
            "请稍后再试",
            "***",
        ] {
            assert_eq!(word(shown).as_deref(), Some(shown));
        }
    }
}
