//! What differs between two configurations, by the names of keys alone: values may be secrets in the wrong place.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use crate::config::fault::Fault;
use crate::config::fault::Place;
use crate::config::fault::dotted;
use crate::config::keys::AT_START_ALONE;
use crate::config::keys::NAMED_TABLES;
use crate::config::reader::SYSTEM_ROOTS;
use crate::config::reader::Seen;
use crate::config::value::Data;
use crate::listener::socket::Address;

/// What was written and read, kept to be compared with what is written and read later.
#[derive(Debug, Default)]
pub struct Written {
    pub(super) values: BTreeMap<Vec<String>, Data>,
    /// Keys whose values are names of files.
    pub(super) files: BTreeSet<Vec<String>>,
    pub(super) seen: Seen,
    /// Where the listener's table is.
    pub(super) listener: Place,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// The key's path, or that of a whole table of the operator's.
    pub key: String,
    /// What has become of it.
    pub what: What,
}

impl Change {
    /// It concerns who is let in, and by what we're known.
    #[must_use]
    pub fn is_of_terms(&self) -> bool {
        TERMS.contains(&self.key.as_str())
    }
}

/// What the listener's TLS is made of.
const TERMS: [&str; 5] = [
    "listener.certificate",
    "listener.private_key",
    "listener.client_ca",
    "listener.client_crl",
    "listener.crl_expired",
];

/// What has become of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// Another value, or written where it wasn't.
    Changed,
    /// A table that wasn't there.
    Added,
    /// A table that isn't there any more.
    Removed,
    /// The same file with other content.
    Content,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)?;
        f.write_str(match self.what {
            What::Changed => "",
            What::Added => " (added)",
            What::Removed => " (removed)",
            What::Content => " (new content)",
        })
    }
}

impl Written {
    /// What is different in `after`, in the order of keys.
    #[must_use]
    pub fn changes(&self, after: &Self) -> Vec<Change> {
        let (tables, tables_after) = (self.tables(), after.tables());
        let mut changes = BTreeSet::new();
        let mut change = |path: &[String], what| {
            changes.insert(Change {
                key: dotted(path),
                what,
            });
        };
        for path in self.values.keys().chain(after.values.keys()) {
            let entry = entry(path);
            let (value, value_after) = (self.values.get(path), after.values.get(path));
            match entry.map(|entry| (tables.contains(entry), tables_after.contains(entry), entry)) {
                Some((false, true, entry)) => change(entry, What::Added),
                Some((true, false, entry)) => change(entry, What::Removed),
                Some(_) | None if value != value_after => change(path, What::Changed),
                Some(_) | None => {
                    let same = |data: &Data| self.contents(data) == after.contents(data);
                    if self.files.contains(path) && !value.is_none_or(same) {
                        change(path, What::Content);
                    }
                }
            }
        }
        changes.into_iter().collect()
    }

    /// Why nothing of this can be taken by a process that runs with `before`: its listener is of another kind, with TLS or without, and
    /// knows its callers by other names.
    #[must_use]
    pub fn other_door(&self, before: &Self) -> Option<Fault> {
        let kind = |written: &Self| {
            let value = |key: &str| {
                let path = vec!["listener".to_owned(), key.to_owned()];
                written.values.get(&path).cloned()
            };
            let unix = matches!(value("address"), Some(Data::Listen(Address::Unix(_))));
            (
                unix,
                !unix && value("plaintext") == Some(Data::Boolean(true)),
            )
        };
        (kind(self) != kind(before)).then(|| Fault {
            place: self.listener.clone(),
            key: "listener".to_owned(),
            message: "it's of another kind than the one that listens: with TLS, without, or a unix socket".to_owned(),
            hint: Some("nothing of this is taken without a restart".to_owned()),
        })
    }

    /// What can't be changed but by a restart stays as it was in `before`. Returns the keys that wait for one.
    pub fn keep_until_restart(&mut self, before: &Self) -> Vec<String> {
        let mut waiting = Vec::new();
        for key in AT_START_ALONE {
            let path: Vec<String> = key.split('.').map(str::to_owned).collect();
            let was = before.values.get(&path).cloned();
            if was.as_ref() != self.values.get(&path) {
                waiting.push((*key).to_owned());
            }
            match was {
                Some(was) => drop(self.values.insert(path, was)),
                None => drop(self.values.remove(&path)),
            }
        }
        waiting
    }

    /// What was read.
    #[must_use]
    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    /// The tables of the operator's.
    fn tables(&self) -> BTreeSet<&[String]> {
        self.values.keys().filter_map(|path| entry(path)).collect()
    }

    fn contents(&self, data: &Data) -> Vec<Option<u64>> {
        let content = |text: &String| {
            self.seen
                .file(Path::new(text))
                .or_else(|| (text == "system").then(|| self.seen.other(SYSTEM_ROOTS))?)
        };
        match data {
            Data::Text(text) => vec![content(text)],
            Data::Texts(texts) => texts.iter().map(content).collect(),
            Data::Duration(_)
            | Data::Integer(_)
            | Data::Boolean(_)
            | Data::Address(_)
            | Data::Listen(_)
            | Data::Addresses(_) => Vec::new(),
        }
    }
}

/// The table of the operator's that a key belongs to.
fn entry(path: &[String]) -> Option<&[String]> {
    let named = NAMED_TABLES.contains(&path.first()?.as_str()) && path.len() > 2;
    named.then(|| &path[..2])
}

/// A few of them in words, for a line of the log.
#[must_use]
pub fn summary(changes: &[Change]) -> String {
    let mut text = changes
        .iter()
        .take(SUMMARY_MAX)
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    if changes.len() > SUMMARY_MAX {
        text.push_str(&format!(", and {} more", changes.len() - SUMMARY_MAX));
    }
    text
}

/// Differences that a line names; of more, their number.
const SUMMARY_MAX: usize = 20;

#[cfg(test)]
mod tests {
    use super::Written;
    use super::summary;
    use crate::config::reader::Reader;
    use crate::config::value::Data;
    use std::fs;

    fn path(text: &str) -> Vec<String> {
        text.split('.').map(str::to_owned).collect()
    }

    fn written(reader: &Reader, values: &[(&str, &str)], files: &[&str]) -> Written {
        for (_, value) in values {
            let _ = reader.read(value.as_ref(), 100);
        }
        Written {
            values: values
                .iter()
                .map(|(key, value)| (path(key), Data::Text((*value).to_owned())))
                .collect(),
            files: files.iter().map(|key| path(key)).collect(),
            seen: reader.seen(),
            ..Written::default()
        }
    }

    #[test]
    fn differences_are_told_by_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let key_file = folder.path().join("main.key");
        let key_file = key_file.to_str().expect("UTF-8");
        let reader = Reader::default();
        fs::write(key_file, "one").expect("written");
        let files = ["accounts.main.app_key_file"];
        let before = written(
            &reader,
            &[
                ("listener.address", "a"),
                ("accounts.main.app_key_file", key_file),
                ("accounts.main.app_id", "a"),
                ("accounts.old.app_id", "a"),
                ("accounts.old.upstream", "a"),
                ("log.level", "info"),
            ],
            &files,
        );
        fs::write(key_file, "two").expect("written");
        let mut after = written(
            &reader,
            &[
                ("listener.address", "b"),
                ("accounts.main.app_key_file", key_file),
                ("accounts.main.app_id", "a"),
                ("accounts.new.app_id", "a"),
                ("accounts.new.upstream", "a"),
                ("log.level", "debug"),
            ],
            &files,
        );
        let changes = before.changes(&after);
        assert_eq!(
            summary(&changes),
            "accounts.main.app_key_file (new content), accounts.new (added), accounts.old (removed), listener.address, log.level"
        );
        assert_eq!(after.keep_until_restart(&before), ["listener.address"]);
        let changes = before.changes(&after);
        assert!(
            changes
                .iter()
                .all(|change| change.key != "listener.address")
        );
        assert!(after.changes(&after).is_empty());
    }
}
