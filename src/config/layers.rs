//! Files, environment and flags on top of each other, each value with the place where it was written.

use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;

use figment::Error;
use figment::Figment;
use figment::Metadata;
use figment::Profile;
use figment::Provider;
use figment::Source;
use figment::providers::Format;
use figment::providers::Toml;
use figment::value::Dict;
use figment::value::Map;
use figment::value::Value;
use toml_edit::ImDocument;
use toml_edit::Item;
use toml_edit::TableLike;

use crate::config::environment;
use crate::config::fault::Fault;
use crate::config::fault::Place;
use crate::config::fault::dotted;
use crate::config::reader::Reader;
use crate::config::value::not_toml;
use crate::config::value::shown_path;

/// A configuration file is larger than this only by mistake.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// One file, read once: figment merges its text, and this keeps where each value stands.
struct File {
    path: PathBuf,
    text: String,
    document: ImDocument<String>,
}

/// A file that `include` names, and which of its items does.
struct Included {
    path: PathBuf,
    item: usize,
}

/// Everything that was written.
pub(super) struct Layers {
    files: Vec<File>,
    figment: Figment,
    /// Every file could be read.
    pub(super) whole: bool,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    File(PathBuf),
    Environment,
    Flag,
}

/// What of a key is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    Key,
    Value,
    /// One item of a list, counted from nothing.
    Item(usize),
}

struct FileLayer<'a>(&'a File);

impl Provider for FileLayer<'_> {
    fn metadata(&self) -> Metadata {
        Metadata::from("file", Source::File(self.0.path.clone()))
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        Toml::string(&self.0.text).data()
    }
}

/// Texts by dotted key; what they mean depends on the key's kind, so that they're never re-typed by their looks.
struct TextLayer {
    name: &'static str,
    texts: Vec<(String, String)>,
}

impl Provider for TextLayer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name)
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        let mut tree = Dict::new();
        for (key, text) in &self.texts {
            insert(&mut tree, key, Value::from(text.as_str()));
        }
        Ok(Profile::Default.collect(tree))
    }
}

fn insert(table: &mut Dict, key: &str, value: Value) {
    let Some((first, rest)) = key.split_once('.') else {
        table.insert(key.to_owned(), value);
        return;
    };
    let entry = table
        .entry(first.to_owned())
        .or_insert_with(|| Value::from(Dict::new()));
    if let Value::Dict(_, inner) = entry {
        insert(inner, rest, value);
    }
}

const ENVIRONMENT: &str = "environment";
const FLAGS: &str = "flags";

impl Layers {
    /// Reads the file, what it includes, the environment, and `flags` (`key`, `value`), each on top of those before it.
    pub(super) fn read(
        path: &Path,
        flags: &[(String, String)],
        reader: &Reader,
        faults: &mut Vec<Fault>,
    ) -> Self {
        let mut files = Vec::new();
        let mut again = Vec::new();
        if let Some(file) = File::read(path, reader, faults) {
            let mut seen = BTreeSet::from([path.to_owned()]);
            for included in file.includes(reader, faults) {
                if seen.insert(included.path.clone()) {
                    files.extend(File::read(&included.path, reader, faults));
                } else {
                    let message = format!("{} is read a second time", included.path.display());
                    again.push(file.fault_of_include(included.item, message));
                }
            }
            files.insert(0, file);
        }
        let whole = faults.is_empty();
        faults.append(&mut again);
        refuse_twice_defined(&files, faults);
        let mut figment = Figment::new();
        for file in &files {
            figment = figment.merge(FileLayer(file));
        }
        figment = figment.merge(TextLayer {
            name: ENVIRONMENT,
            texts: environment::keys(),
        });
        figment = figment.merge(TextLayer {
            name: FLAGS,
            texts: flags.to_vec(),
        });
        Self {
            files,
            figment,
            whole,
        }
    }

    /// The merged tree.
    pub(super) fn tree(&self) -> Result<Dict, Box<Error>> {
        let data = self.figment.extract::<Value>()?;
        Ok(data.into_dict().unwrap_or_default())
    }

    /// Where a value of the tree was written.
    pub(super) fn origin(&self, value: &Value) -> Option<Origin> {
        let metadata = self.figment.get_metadata(value.tag())?;
        match (&metadata.source, &*metadata.name) {
            (Some(Source::File(path)), _) => Some(Origin::File(path.clone())),
            (_, ENVIRONMENT) => Some(Origin::Environment),
            (_, FLAGS) => Some(Origin::Flag),
            _ => None,
        }
    }

    /// Where a key of the tree was written.
    pub(super) fn place(&self, path: &[String], value: &Value, at: At) -> Place {
        match self.origin(value) {
            Some(Origin::Environment) => Place::Environment(environment::variable(path)),
            Some(Origin::Flag) => Place::Flag,
            // A table's own tag says little of where it stands.
            Some(Origin::File(_)) | None => self.find(path, at),
        }
    }

    /// The place of a key in the last file that has it, or else of the nearest table around it.
    pub(super) fn find(&self, path: &[String], at: At) -> Place {
        for length in (0..=path.len()).rev() {
            let at = if length == path.len() { at } else { At::Key };
            let files = self.files.iter().rev();
            if let Some(place) = files
                .filter_map(|file| file.place(&path[..length], at))
                .next()
            {
                return place;
            }
        }
        self.files
            .first()
            .map_or(Place::Nowhere, |file| Place::File {
                path: file.path.clone(),
                line: None,
            })
    }
}

impl File {
    fn read(path: &Path, reader: &Reader, faults: &mut Vec<Fault>) -> Option<Self> {
        let fault = |line, message: String| Fault {
            place: Place::File {
                path: path.to_owned(),
                line,
            },
            key: String::new(),
            message,
            hint: None,
        };
        let text = match reader.read(path, FILE_BYTES_MAX) {
            Ok(content) => content.bytes.to_vec(),
            Err(error) => {
                faults.push(fault(None, format!("the file can't be read: {error}")));
                return None;
            }
        };
        let text = match String::from_utf8(text) {
            Ok(text) => text,
            Err(error) => {
                let before =
                    String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()])
                        .into_owned();
                faults.push(fault(
                    Some(line_and_column(&before, before.len())),
                    "the file isn't UTF-8".to_owned(),
                ));
                return None;
            }
        };
        match ImDocument::parse(text.clone()) {
            Ok(document) => Some(Self {
                path: path.to_owned(),
                text,
                document,
            }),
            Err(error) => {
                let line = error.span().map(|span| line_and_column(&text, span.start));
                faults.push(fault(line, not_toml(&error)));
                None
            }
        }
    }

    /// The files that `include` names, in the order of their names.
    fn includes(&self, reader: &Reader, faults: &mut Vec<Fault>) -> Vec<Included> {
        let Some(patterns) = self.document.get("include").and_then(Item::as_array) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for (item, pattern) in patterns.iter().enumerate() {
            // What isn't a text is told where kinds are checked.
            let Some(text) = pattern.as_str() else {
                continue;
            };
            let mut fault = |message| faults.push(self.fault_of_include(item, message));
            let full = self
                .path
                .parent()
                .unwrap_or_else(|| Path::new(""))
                .join(text);
            let paths = full.to_str().map(|pattern| reader.matches(pattern));
            match paths {
                Some(Ok(paths)) => {
                    // A folder may be empty; a file that's named must be there.
                    if paths.is_empty() && !text.contains('*') {
                        fault(format!("there is no file {}", shown_path(&full)));
                    }
                    found.extend(paths.into_iter().map(|path| Included { path, item }));
                }
                Some(Err(message)) => fault(message),
                None => fault("the path isn't UTF-8".to_owned()),
            }
        }
        found
    }

    fn fault_of_include(&self, item: usize, message: String) -> Fault {
        let key = "include".to_owned();
        Fault {
            place: self
                .place(std::slice::from_ref(&key), At::Item(item))
                .unwrap_or(Place::Nowhere),
            key,
            message,
            hint: None,
        }
    }

    /// Where a key stands in this file, if it does. Of a table, that's its name.
    fn place(&self, path: &[String], at: At) -> Option<Place> {
        let (last, parents) = path.split_last()?;
        let mut table: &dyn TableLike = self.document.as_table();
        for parent in parents {
            table = table.get(parent)?.as_table_like()?;
        }
        let (key, item) = table.get_key_value(last)?;
        let value = item.as_value();
        let one_of_them = |number| item.as_array().and_then(|items| items.get(number));
        let meant = match at {
            At::Key => None,
            At::Value => value,
            At::Item(number) => one_of_them(number).or(value),
        };
        let span = meant
            .and_then(toml_edit::Value::span)
            .or_else(|| key.span())
            .or_else(|| item.span());
        Some(Place::File {
            path: self.path.clone(),
            line: span.map(|span| line_and_column(&self.text, span.start)),
        })
    }
}

/// Two files that set the same key would hide each other's mistakes.
fn refuse_twice_defined(files: &[File], faults: &mut Vec<Fault>) {
    for (number, file) in files.iter().enumerate().skip(1) {
        let mut leaves = Vec::new();
        collect_leaves(file.document.as_table(), &mut Vec::new(), &mut leaves);
        for path in leaves {
            let mut fault = |message: String| {
                faults.push(Fault {
                    place: file.place(&path, At::Key).unwrap_or(Place::Nowhere),
                    key: dotted(&path),
                    message,
                    hint: None,
                });
            };
            if path.first().is_some_and(|key| key == "include") {
                fault("an included file can't include others".to_owned());
                continue;
            }
            let mut before = files[..number].iter();
            if let Some(first) = before.find_map(|other| other.place(&path, At::Key)) {
                fault(format!("defined a second time; the first is at {first}"));
            }
        }
    }
}

fn collect_leaves(table: &dyn TableLike, path: &mut Vec<String>, leaves: &mut Vec<Vec<String>>) {
    for (key, item) in table.iter() {
        path.push(key.to_owned());
        match item.as_table_like() {
            Some(inner) => collect_leaves(inner, path, leaves),
            None => leaves.push(path.clone()),
        }
        path.pop();
    }
}

/// Counted from 1; columns in characters. A byte order mark is none.
fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let before = before.strip_prefix('\u{feff}').unwrap_or(before);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (
        before.matches('\n').count() + 1,
        before[line_start..].chars().count() + 1,
    )
}
