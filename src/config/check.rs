//! From the merged tree to values of the right kinds, key by key against the table, with every fault reported at once.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use figment::value::Dict;
use figment::value::Value;

use crate::account::AppKey;
use crate::config::fault::Fault;
use crate::config::fault::Place;
use crate::config::fault::dotted;
use crate::config::keys::Fallback;
use crate::config::keys::KEYS;
use crate::config::keys::Key;
use crate::config::keys::NAMED_TABLES;
use crate::config::layers::At;
use crate::config::layers::Layers;
use crate::config::layers::Origin;
use crate::config::reader::Reader;
use crate::config::value::Data;
use crate::config::value::Wrong;
use crate::config::value::from_text;
use crate::config::value::from_toml;
use crate::config::value::from_value;
use crate::config::value::kind_of;
use crate::config::value::resolve;
use crate::listener::socket::Address;

/// All values, the defaults among them, by their path.
pub(super) struct Checked<'a> {
    layers: &'a Layers,
    tree: Dict,
    values: BTreeMap<Vec<String>, Data>,
    tables: BTreeMap<&'static str, BTreeSet<String>>,
    /// No file will be opened.
    blind: bool,
}

impl<'a> Checked<'a> {
    /// Walks the tree.
    pub(super) fn new(layers: &'a Layers, reader: &Reader, faults: &mut Vec<Fault>) -> Self {
        let tree = layers.tree().unwrap_or_else(|error| {
            faults.push(Fault {
                place: Place::Nowhere,
                key: String::new(),
                message: error.to_string(),
                hint: None,
            });
            Dict::new()
        });
        let mut checked = Self {
            layers,
            tree: Dict::new(),
            values: BTreeMap::new(),
            tables: BTreeMap::new(),
            blind: reader.is_blind(),
        };
        checked.table(&mut Vec::new(), &tree, faults);
        checked.tree = tree;
        checked.fill(faults);
        checked
    }

    fn table(&mut self, path: &mut Vec<String>, table: &Dict, faults: &mut Vec<Fault>) {
        for (name, value) in table {
            path.push(name.clone());
            match (find(path), value) {
                (Found::Key(key), value) => self.value(path, key, value, faults),
                (Found::Table, Value::Dict(_, inner)) => {
                    if let (2, Some(named)) = (
                        path.len(),
                        NAMED_TABLES.into_iter().find(|named| *named == path[0]),
                    ) {
                        self.tables.entry(named).or_default().insert(name.clone());
                    }
                    self.table(path, inner, faults);
                }
                (Found::Table, value) => {
                    let message = format!("a table is wanted, but {} was found", kind_of(value));
                    let named = NAMED_TABLES.contains(&path[0].as_str());
                    let hint = match (path.len(), value) {
                        (1, _) if named => format!("write [{}.name]", path[0]),
                        (2, value) if named && !is_list_of_tables(value) => format!(
                            "write it in a table with a name of its own: [{}.name]",
                            path[0]
                        ),
                        _ => format!("write [{}]", dotted(path)),
                    };
                    faults.push(self.fault_at(path, value, At::Value, message, Some(hint)));
                }
                (Found::Nothing, value) => {
                    let hint = suggestion(path).map_or_else(
                        || "`kybio-gateway config reference` shows every key".to_owned(),
                        |near| format!("did you mean {near}?"),
                    );
                    let place = self.layers.place(path, value, At::Key);
                    let mut shown = path.clone();
                    // It may be a key of another kind.
                    if let Some(name) = shown.last_mut().filter(|name| AppKey::may_be(name)) {
                        "***".clone_into(name);
                    }
                    faults.push(Fault {
                        place,
                        key: dotted(&shown),
                        message: "unknown key".to_owned(),
                        hint: Some(hint),
                    });
                }
            }
            path.pop();
        }
    }

    fn value(&mut self, path: &[String], key: &Key, value: &Value, faults: &mut Vec<Fault>) {
        let by_text = matches!(
            self.layers.origin(value),
            Some(Origin::Environment | Origin::Flag)
        );
        if key.path == "include" && by_text {
            let message = "only a file can include others".to_owned();
            let hint = Some("write it into the configuration file".to_owned());
            faults.push(self.fault_at(path, value, At::Value, message, hint));
            return;
        }
        let typed = Typed::new(self.layers, key, value);
        let resolved = typed.and_then(|Typed { data, folder }| {
            if self.blind && key.kind.is_of_files() {
                // Where a file is matters only to who opens it.
                return Ok(data);
            }
            resolve(key.kind, data, &folder)
        });
        match resolved {
            Ok(data) => drop(self.values.insert(path.to_vec(), data)),
            Err(Wrong(all)) => faults.extend(all.into_iter().map(|(item, message)| {
                let at = item.map_or(At::Value, At::Item);
                self.fault_at(path, value, at, message, None)
            })),
        }
    }

    /// Puts in defaults, and reports what must be written and isn't.
    fn fill(&mut self, faults: &mut Vec<Fault>) {
        let told: BTreeSet<String> = faults.iter().map(|fault| fault.key.clone()).collect();
        // A fault of the key, or of what stands where its table should.
        let is_told = |path: &[String]| {
            (1..=path.len()).any(|length| told.contains(&dotted(&path[..length])))
        };
        for key in KEYS {
            let segments: Vec<&str> = key.path.split('.').collect();
            let paths: Vec<Vec<String>> = match segments.as_slice() {
                [table, "*", name] => {
                    let names = self.tables.get(table).into_iter().flatten();
                    names
                        .map(|entry| vec![(*table).to_owned(), entry.clone(), (*name).to_owned()])
                        .collect()
                }
                segments => vec![
                    segments
                        .iter()
                        .map(|segment| (*segment).to_owned())
                        .collect(),
                ],
            };
            // Read once, however many have to be filled in.
            let read = |default| from_toml(key, default).expect("a test reads every default");
            let mut default = None;
            for path in paths
                .into_iter()
                .filter(|path| !self.values.contains_key(path))
                .collect::<Vec<_>>()
            {
                match key.default {
                    Fallback::Value(text) => {
                        let data = default.get_or_insert_with(|| read(text)).clone();
                        self.values.insert(path, data);
                    }
                    Fallback::Required(_) if !is_told(&path) => {
                        faults.push(self.missing(&path));
                    }
                    Fallback::Required(_) | Fallback::RequiredWithTls(_) | Fallback::Absent(_) => {}
                }
            }
        }
    }

    /// All values, and which of them name files.
    pub(super) fn into_values(self) -> (BTreeMap<Vec<String>, Data>, BTreeSet<Vec<String>>) {
        let is_file =
            |path: &&Vec<String>| matches!(find(path), Found::Key(key) if key.kind.is_of_files());
        let files = self.values.keys().filter(is_file).cloned().collect();
        (self.values, files)
    }

    /// The fault of a key that must be written and isn't, with an example.
    pub(super) fn missing(&self, path: &[String]) -> Fault {
        let example = match find(path) {
            Found::Key(key) => key.default.example(),
            Found::Table | Found::Nothing => "",
        };
        let name = path.last().map_or("", String::as_str);
        Fault {
            place: self.layers.find(path, At::Key),
            key: dotted(path),
            message: "must be written".to_owned(),
            hint: Some(format!("for example: {name} = {example}")),
        }
    }

    fn fault_at(
        &self,
        path: &[String],
        value: &Value,
        at: At,
        message: String,
        hint: Option<String>,
    ) -> Fault {
        Fault {
            place: self.layers.place(path, value, at),
            key: dotted(path),
            message,
            hint,
        }
    }

    /// A fault of meaning, at the value of a key or at one of its items.
    pub(super) fn fault(
        &self,
        path: &[&str],
        at: At,
        message: impl Into<String>,
        hint: Option<String>,
    ) -> Fault {
        let path = owned(path);
        let written = self.written(&path);
        Fault {
            place: written.map_or_else(
                || self.layers.find(&path, at),
                |value| self.layers.place(&path, value, at),
            ),
            key: dotted(&path),
            message: message.into(),
            hint,
        }
    }

    /// Whether a key was written, and not left to its default.
    pub(super) fn is_written(&self, path: &[&str]) -> bool {
        self.written(&owned(path)).is_some()
    }

    /// What was written for a key, if anything was.
    pub(super) fn written(&self, path: &[String]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        rest.iter()
            .try_fold(self.tree.get(first)?, |value, segment| {
                value.as_dict()?.get(segment)
            })
    }

    /// The names in a table of the operator's.
    pub(super) fn names(&self, table: &'static str) -> Vec<&str> {
        self.tables
            .get(table)
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect()
    }

    fn data(&self, path: &[&str]) -> Option<&Data> {
        let path = owned(path);
        debug_assert!(!matches!(find(&path), Found::Nothing), "{path:?}");
        self.values.get(&path)
    }

    /// A duration; all have defaults.
    pub(super) fn duration(&self, path: &[&str]) -> Duration {
        if let Some(Data::Duration(duration)) = self.data(path) {
            *duration
        } else {
            Duration::ZERO
        }
    }

    /// A whole number that isn't negative and has a default.
    pub(super) fn integer(&self, path: &[&str]) -> usize {
        let number = self.number(path).unwrap_or_default();
        usize::try_from(number).unwrap_or_default()
    }

    /// A whole number that its bounds keep small and that has a default.
    pub(super) fn small(&self, path: &[&str]) -> u32 {
        u32::try_from(self.integer(path)).unwrap_or(u32::MAX)
    }

    /// A whole number, if written or with a default.
    pub(super) fn number(&self, path: &[&str]) -> Option<i64> {
        if let Some(Data::Integer(number)) = self.data(path) {
            Some(*number)
        } else {
            None
        }
    }

    /// A switch, if written or with a default.
    pub(super) fn boolean(&self, path: &[&str]) -> Option<bool> {
        if let Some(Data::Boolean(value)) = self.data(path) {
            Some(*value)
        } else {
            None
        }
    }

    /// A text, if written or with a default.
    pub(super) fn text(&self, path: &[&str]) -> Option<&str> {
        if let Some(Data::Text(text)) = self.data(path) {
            Some(text)
        } else {
            None
        }
    }

    /// A list of texts; empty if it isn't written.
    pub(super) fn texts(&self, path: &[&str]) -> &[String] {
        if let Some(Data::Texts(texts)) = self.data(path) {
            texts
        } else {
            &[]
        }
    }

    /// A list that was written, and has nothing in it.
    pub(super) fn is_empty_list(&self, path: &[&str]) -> bool {
        matches!(self.data(path), Some(Data::Texts(texts)) if texts.is_empty())
    }

    /// An address, if written rightly.
    pub(super) fn address(&self, path: &[&str]) -> Option<SocketAddr> {
        if let Some(Data::Address(address)) = self.data(path) {
            Some(*address)
        } else {
            None
        }
    }

    /// Where to listen, if written rightly.
    pub(super) fn listen(&self, path: &[&str]) -> Option<&Address> {
        if let Some(Data::Listen(address)) = self.data(path) {
            Some(address)
        } else {
            None
        }
    }

    /// A list of addresses; empty if it isn't written.
    pub(super) fn addresses(&self, path: &[&str]) -> &[SocketAddr] {
        if let Some(Data::Addresses(addresses)) = self.data(path) {
            addresses
        } else {
            &[]
        }
    }
}

/// A value as it was written, of the kind that its key asks for.
pub(super) struct Typed {
    /// Paths of files among it are as they were written.
    pub(super) data: Data,
    /// What these are relative to: the folder of the file that has it, or where the process is.
    pub(super) folder: PathBuf,
}

impl Typed {
    /// Texts of the environment and of flags may mean a number or a list; a file says which it is.
    pub(super) fn new(layers: &Layers, key: &Key, value: &Value) -> Result<Self, Wrong> {
        let origin = layers.origin(value);
        let data = match (value, &origin) {
            (Value::String(_, text), Some(Origin::Environment | Origin::Flag)) => {
                from_text(key, text)
            }
            _ => from_value(key, value),
        };
        let folder = match &origin {
            Some(Origin::File(file)) => file.parent().unwrap_or_else(|| Path::new("")).to_owned(),
            Some(Origin::Environment | Origin::Flag) | None => PathBuf::new(),
        };
        data.map(|data| Self { data, folder })
    }
}

/// `[[name]]`, or one that looks like it.
fn is_list_of_tables(value: &Value) -> bool {
    let is_table = |item: &Value| matches!(item, Value::Dict(..));
    matches!(value, Value::Array(_, items) if !items.is_empty() && items.iter().all(is_table))
}

fn owned(path: &[&str]) -> Vec<String> {
    path.iter().map(|segment| (*segment).to_owned()).collect()
}

enum Found {
    Key(&'static Key),
    Table,
    Nothing,
}

fn find(path: &[String]) -> Found {
    for key in KEYS {
        let mut pattern = key.path.split('.');
        let fits = path.iter().all(|segment| {
            let pattern = pattern.next();
            pattern.is_some_and(|pattern| pattern == "*" || pattern == segment)
        });
        if fits {
            return if pattern.next().is_none() {
                Found::Key(key)
            } else {
                Found::Table
            };
        }
    }
    Found::Nothing
}

/// What was meant: the same name in other tables, the one here that has it as a part, or the nearest one that could stand here.
fn suggestion(path: &[String]) -> Option<String> {
    let (last, parents) = path.split_last()?;
    let fits = |key: &&str| key.rsplit('.').next() == Some(last) || key.replace('.', "_") == *last;
    let elsewhere: Vec<String> = KEYS
        .iter()
        .map(|key| key.path)
        .filter(fits)
        .map(|key| format!("`{key}`"))
        .collect();
    if !elsewhere.is_empty() {
        return Some(elsewhere.join(" or "));
    }
    let candidates = KEYS.iter().filter_map(|key| {
        let pattern: Vec<&str> = key.path.split('.').collect();
        let same = pattern.len() > parents.len()
            && pattern
                .iter()
                .zip(parents)
                .all(|(pattern, segment)| *pattern == "*" || pattern == segment);
        same.then(|| pattern[parents.len()])
    });
    let candidates: Vec<&str> = candidates.collect();
    let has_it = |candidate: &&&str| candidate.split('_').any(|part| part == last);
    if let [one] = candidates.iter().filter(has_it).collect::<Vec<_>>()[..] {
        return Some(format!("`{one}`"));
    }
    let scored = candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(candidate, last), candidate));
    let (likeness, best) = scored.max_by(|one, other| one.0.total_cmp(&other.0))?;
    (likeness > 0.8).then(|| format!("`{best}`"))
}

#[cfg(test)]
mod tests {
    use super::Found;
    use super::find;
    use crate::config::keys::KEYS;

    fn path(text: &str) -> Vec<String> {
        text.split('.').map(str::to_owned).collect()
    }

    #[test]
    fn keys_are_found_by_their_paths_and_tables_by_what_is_above_them() {
        for key in KEYS {
            let path = path(&key.path.replace('*', "some-name"));
            assert!(
                matches!(find(&path), Found::Key(found) if found.path == key.path),
                "{}",
                key.path
            );
            for above in 1..path.len() {
                assert!(matches!(find(&path[..above]), Found::Table), "{}", key.path);
            }
        }
        for nothing in [
            "no-such",
            "listener.no-such",
            "listener.address.more",
            "accounts.a.b",
        ] {
            assert!(matches!(find(&path(nothing)), Found::Nothing), "{nothing}");
        }
    }
}
