//! The catalogue: every documented operation, as data (`catalogue.toml`), with the operator's overrides on top.

use std::collections::BTreeMap;

use figment::Figment;
use figment::providers::Format;
use figment::providers::Toml;
use serde::Deserialize;

use crate::answers::Answer;
use crate::answers::AnswerClass;
use crate::answers::Answers;
use crate::operation::Class;
use crate::operation::Operation;
use crate::operation::OperationName;
use crate::operation::Repeat;

/// The catalogue that ships in the binary.
const SHIPPED: &str = include_str!("catalogue.toml");

/// The operations that are in force, by canonical name.
#[derive(Clone, Debug)]
pub struct Catalogue {
    operations: BTreeMap<OperationName, Operation>,
    unsupported: Vec<Unsupported>,
    answers: Answers,
}

/// A documented path under another prefix, which is never forwarded.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unsupported {
    /// The path as the vendor prints it.
    pub path: String,
    /// The operation to call instead.
    pub instead: String,
}

/// What an operator may say of an operation; `None` leaves what ships.
#[derive(Clone, Debug, Default)]
pub struct Override {
    /// What a call does.
    pub class: Option<Class>,
    /// Granted by exact name alone.
    pub explicit: Option<bool>,
    /// Whether it may be repeated when it may have left.
    pub repeat: Option<Repeat>,
    /// A read that tells whether a write took effect.
    pub lookup: Option<OperationName>,
    /// Kill switch.
    pub paused: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    operations: BTreeMap<String, Entry>,
    unsupported: Vec<Unsupported>,
    answers: Vec<Known>,
}

/// A known answer as the file has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    code: Option<i64>,
    message: Option<String>,
    class: AnswerClass,
    #[serde(rename = "meaning")]
    _meaning: String,
}

/// One operation as the file has it. What only documents it is read too, so that the file can't rot.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    class: Class,
    #[serde(rename = "kybio")]
    _kybio: bool,
    #[serde(default)]
    explicit: bool,
    lookup: Option<String>,
    #[serde(default, rename = "fields")]
    _fields: Vec<String>,
    #[serde(default, rename = "limits")]
    _limits: Vec<Limit>,
    #[serde(rename = "note")]
    _note: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Limit {
    #[serde(rename = "field")]
    _field: Option<String>,
    #[serde(rename = "from")]
    _from: Option<String>,
    #[serde(rename = "to")]
    _to: Option<String>,
    #[serde(rename = "items_max")]
    _items_max: Option<u32>,
    #[serde(rename = "length_max")]
    _length_max: Option<u32>,
    #[serde(rename = "days_max")]
    _days_max: Option<u32>,
    #[serde(rename = "min")]
    _min: Option<i64>,
    #[serde(rename = "max")]
    _max: Option<i64>,
}

impl Catalogue {
    /// The one that ships.
    ///
    /// # Panics
    /// Never: the file is part of the binary, and a test reads it.
    #[must_use]
    pub fn shipped() -> Self {
        let file: File = Figment::from(Toml::string(SHIPPED))
            .extract()
            .expect("the shipped catalogue is well formed");
        let name =
            |text: &str| OperationName::new(text).expect("the shipped names are well formed");
        let operations = file.operations.into_iter().map(|(key, entry)| {
            let operation = Operation {
                name: name(&key),
                class: entry.class,
                explicit: entry.explicit,
                repeat: Repeat::Never,
                lookup: entry.lookup.as_deref().map(name),
                paused: false,
            };
            (operation.name.clone(), operation)
        });
        let answers = file.answers.into_iter().map(|known| Answer {
            code: known.code,
            message: known.message,
            class: known.class,
        });
        Self {
            operations: operations.collect(),
            unsupported: file.unsupported,
            answers: Answers::new(answers.collect()),
        }
    }

    /// Changes an entry, or adds one: what isn't in the catalogue counts as a non-idempotent write, granted by exact name alone.
    pub fn set(&mut self, name: OperationName, changes: Override) -> &Operation {
        let unlisted = || Operation {
            name: name.clone(),
            class: Class::NonIdempotentWrite,
            explicit: true,
            repeat: Repeat::Never,
            lookup: None,
            paused: false,
        };
        let operation = self.operations.entry(name.clone()).or_insert_with(unlisted);
        operation.class = changes.class.unwrap_or(operation.class);
        operation.explicit = changes.explicit.unwrap_or(operation.explicit);
        operation.repeat = changes.repeat.unwrap_or(operation.repeat);
        operation.paused = changes.paused.unwrap_or(operation.paused);
        operation.lookup = changes.lookup.or_else(|| operation.lookup.clone());
        operation
    }

    /// The entry whose name is this one when letter case is put aside.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Operation> {
        self.iter()
            .find(|operation| operation.name.as_str().eq_ignore_ascii_case(name))
    }

    /// All operations, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Operation> {
        self.operations.values()
    }

    /// Documented paths that are never forwarded.
    #[must_use]
    pub fn unsupported(&self) -> &[Unsupported] {
        &self.unsupported
    }

    /// Business answers that are known.
    #[must_use]
    pub fn answers(&self) -> &Answers {
        &self.answers
    }

    /// Puts the operator's own before those that ship.
    pub fn know(&mut self, answers: Vec<Answer>) {
        self.answers.put_first(answers);
    }
}

#[cfg(test)]
mod tests {
    use super::Catalogue;
    use super::Override;
    use crate::operation::Class;
    use crate::operation::OperationName;

    #[test]
    fn the_shipped_catalogue_is_whole() {
        let catalogue = Catalogue::shipped();
        assert!(catalogue.iter().count() >= 80);
        for operation in catalogue.iter() {
            if let Some(lookup) = &operation.lookup {
                assert_ne!(operation.class, Class::Read, "{}", operation.name);
                assert_eq!(
                    catalogue.get(lookup.as_str()).map(|read| read.class),
                    Some(Class::Read),
                    "{}",
                    operation.name
                );
            }
            let reads = operation.name.as_str().contains("/query");
            assert_eq!(operation.class == Class::Read, reads, "{}", operation.name);
        }
        assert_eq!(catalogue.unsupported().len(), 2);
        assert!(
            catalogue
                .unsupported()
                .iter()
                .all(|path| catalogue.get(&path.instead).is_some())
        );
        let explicit: Vec<_> = catalogue
            .iter()
            .filter(|operation| operation.explicit)
            .map(|operation| operation.name.as_str())
            .collect();
        assert_eq!(
            explicit,
            [
                "customerOpenApi/updateCustomerPassword",
                "openNotificationOpenApi/updatePushUrl"
            ]
        );
    }

    #[test]
    fn an_override_changes_what_it_names_and_nothing_else() {
        let mut catalogue = Catalogue::shipped();
        let name = OperationName::new("customerOpenApi/add").expect("a name");
        catalogue.set(
            name,
            Override {
                paused: Some(true),
                ..Override::default()
            },
        );
        let add = catalogue.get("customeropenapi/ADD").expect("there");
        assert!(add.paused && add.class == Class::NaturallyKeyedWrite && add.lookup.is_some());
    }

    #[test]
    fn an_unlisted_operation_is_a_non_idempotent_write_and_explicit() {
        let mut catalogue = Catalogue::shipped();
        catalogue.set(
            OperationName::new("newOpenApi/doIt").expect("a name"),
            Override::default(),
        );
        let added = catalogue.get("newOpenApi/doIt").expect("there");
        assert!(added.explicit && added.class == Class::NonIdempotentWrite);
    }
}
