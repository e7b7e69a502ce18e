//! The table of keys as a JSON Schema, with which editors complete, explain and underline. It says what the table says of one key; what
//! only other keys or files can tell is for `check`, which has the last word. Does no IO.
//!
//! An editor sees one file, and the gateway all of them with the environment and `--set`. Hence no table is required: an included file
//! may have accounts alone. But in the table of an account, a caller and so on its required keys are, because to forget one is the
//! usual mistake and nearly nobody spreads such a table over two files; and so are those of `[listener]`, where it's written in a file
//! that includes none.

use std::time::Duration;

use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use crate::config::keys;
use crate::config::keys::Fallback;
use crate::config::keys::Key;
use crate::config::keys::Kind;
use crate::name::BadName;
use crate::name::NAME_LENGTH_MAX;
use crate::operation::BadOperationName;
use crate::operation::OperationName;

/// Draft 7, because Taplo, which is what Even Better TOML in VS Code and others ask, has a validator that knows drafts 4, 6 and 7, and
/// SchemaStore calls it the one that editors support best. Drafts before it have no `if`.
const DIALECT: &str = "http://json-schema.org/draft-07/schema#";

const ABOUT: &str = "Configuration of kybio-gateway. `kybio-gateway check` has the last word: it also sees included files, the \
                     environment and the files that keys name.";

/// The text of `config/gateway.schema.json`.
#[must_use]
pub fn schema() -> String {
    let mut text = format!("{:#}", root());
    text.push('\n');
    text
}

fn root() -> Value {
    let mut properties = Map::new();
    let mut required = Map::new();
    for (table, keys) in keys::tables() {
        match table.split_once('.') {
            Some((table, _)) => {
                properties.insert(table.to_owned(), named_tables(table, keys));
            }
            None if table.is_empty() => properties.extend(values(keys)),
            None => {
                if let Some(part) = required_in(keys) {
                    required.insert(table.to_owned(), open(part));
                }
                properties.insert(table.to_owned(), closed(values(keys)));
            }
        }
    }
    let mut root = closed(properties);
    root["$schema"] = json!(DIALECT);
    root["title"] = json!("kybio-gateway");
    root["description"] = json!(ABOUT);
    root["if"] = open(json!({ "required": ["include"] }));
    root["else"] = open(json!({ "properties": required }));
    root
}

/// The tables whose entries the operator names.
fn named_tables(table: &str, keys: &[Key]) -> Value {
    let (pattern, length_max, rule) = match table {
        "operations" => (
            "^[A-Za-z0-9]+(/[A-Za-z0-9]+){1,2}$".to_owned(),
            Some(OperationName::LENGTH_MAX),
            format!("Tables with names of operations: {BadOperationName}."),
        ),
        // Nothing but this file ever names one.
        "answers" => (
            "^".to_owned(),
            None,
            "Tables with names of your own, whatever you like.".to_owned(),
        ),
        _ => (
            format!("^[a-z0-9][a-z0-9-]{{0,{}}}$", NAME_LENGTH_MAX - 1),
            None,
            format!("Tables with names of your own: {BadName}."),
        ),
    };
    let mut entry = closed(values(keys));
    entry["required"] = json!(required_names(keys));
    let mut tables = json!({
        "type": "object",
        "description": rule,
        "patternProperties": { pattern: entry },
        "additionalProperties": false,
    });
    if let Some(length_max) = length_max {
        tables["propertyNames"] = json!({ "maxLength": length_max });
    }
    tables
}

/// Part of what holds for a table, which says nothing of its other keys. Tombi, the other server for TOML, warns of each one unless
/// that's said.
fn open(mut part: Value) -> Value {
    part["additionalProperties"] = json!(true);
    part
}

fn closed(properties: Map<String, Value>) -> Value {
    json!({ "type": "object", "properties": properties, "additionalProperties": false })
}

fn values(keys: &[Key]) -> Map<String, Value> {
    keys.iter()
        .map(|key| (key.name().to_owned(), value(key)))
        .collect()
}

fn required_names(keys: &[Key]) -> Vec<&'static str> {
    let required = |key: &&Key| matches!(key.default, Fallback::Required(_));
    keys.iter().filter(required).map(Key::name).collect()
}

/// What must be written in a table that there's one of, if anything must; some of it only where there is TLS.
fn required_in(keys: &[Key]) -> Option<Value> {
    let names = required_names(keys);
    let with_tls = |key: &&Key| matches!(key.default, Fallback::RequiredWithTls(_));
    let with_tls: Vec<_> = keys.iter().filter(with_tls).map(Key::name).collect();
    let mut part = json!({});
    if !names.is_empty() {
        part["required"] = json!(names);
    }
    if !with_tls.is_empty() {
        let unix = json!({ "properties": { "address": { "pattern": "^unix:" } }, "required": ["address"] });
        let plain =
            json!({ "properties": { "plaintext": { "const": true } }, "required": ["plaintext"] });
        part["if"] = open(json!({ "anyOf": [open(unix), open(plain)] }));
        part["else"] = open(json!({ "required": with_tls }));
    }
    part.as_object()
        .is_some_and(|part| !part.is_empty())
        .then_some(part)
}

/// One key. All is written out where it's used: what stands beside a `$ref` doesn't count in draft 7, and Taplo would show no
/// description.
fn value(key: &Key) -> Value {
    let mut value = match key.kind {
        Kind::Duration(min, _) => json!({ "type": "string", "pattern": duration(min) }),
        Kind::Integer(min, max) => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Kind::Boolean => json!({ "type": "boolean" }),
        Kind::Choice(words) => json!({ "type": "string", "enum": words }),
        Kind::Address => json!({ "type": "string", "pattern": address() }),
        Kind::Listen => {
            let either = format!("{}|^unix:(.|\\s)", address());
            json!({ "type": "string", "pattern": either })
        }
        Kind::Addresses => {
            json!({ "type": "array", "items": { "type": "string", "pattern": address() } })
        }
        Kind::Text | Kind::File => json!({ "type": "string" }),
        Kind::Texts | Kind::Files => json!({ "type": "array", "items": { "type": "string" } }),
        // Any text is one of the two, but the words are offered while one writes.
        Kind::Roots => json!({
            "anyOf": [{ "type": "string", "enum": ["system", "bundled"] }, { "type": "string" }],
        }),
    };
    value["description"] = json!(format!("{} ({})", key.doc, key.bounds()));
    match key.default {
        Fallback::Value(text) => value["default"] = written(text),
        Fallback::Required(text) | Fallback::RequiredWithTls(text) | Fallback::Absent(text) => {
            value["examples"] = json!([written(text)]);
        }
    }
    value
}

/// Texts, numbers and lists as the table has them are spelled alike in TOML and JSON.
fn written(text: &str) -> Value {
    serde_json::from_str(text).expect("a test reads every default and example")
}

/// What humantime takes: one or more numbers, each with its unit, white space nearly everywhere. That the sum is within its bounds no
/// pattern can tell.
fn duration(min: Duration) -> String {
    // Zero alone needs no unit.
    let zero = if min.is_zero() { "0|" } else { "" };
    format!(r"^({zero}\s*([0-9][0-9\s]*(\.\s*[0-9][0-9\s]*)?({UNITS})\s*)+)$")
}

const UNITS: &str = "nanos|nsec|ns|usec|us|µs|millis|msec|ms|seconds|second|secs|sec|s|minutes|minute|mins|min|m|\
                     hours|hour|hrs|hr|h|days|day|d|weeks|week|wks|wk|w|months|month|M|years|year|yrs|yr|y";

/// An IP address with a port. What's inside of the brackets is looked at more closely by `check`.
fn address() -> String {
    let byte = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])";
    let port =
        "0*([0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])";
    format!(r"^({byte}(\.{byte}){{3}}|\[[0-9A-Fa-f:.]+(%[0-9]+)?\]):{port}$")
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::LazyLock;
    use std::time::Duration;

    use figment::Figment;
    use figment::providers::Format;
    use figment::providers::Toml;
    use humantime::DurationError;
    use jsonschema::Validator;
    use proptest::prelude::*;
    use serde_json::Value;
    use serde_json::json;

    use super::address;
    use super::duration;
    use super::root;
    use super::schema;
    use super::value;
    use crate::config::keys::KEYS;
    use crate::config::keys::Key;
    use crate::config::keys::Kind;
    use crate::config::value::from_value;

    fn validator(schema: &Value) -> Validator {
        jsonschema::draft7::new(schema).unwrap()
    }

    /// As the loader sees it in a file.
    fn loader_takes(key: &Key, value: &Value) -> bool {
        let file = Figment::from(Toml::string(&format!("value = {value}")));
        from_value(key, &file.find_value("value").unwrap()).is_ok()
    }

    #[test]
    fn the_shipped_schema_is_what_the_table_says() {
        let written = include_str!("../../config/gateway.schema.json");
        assert!(
            written == schema(),
            "write it anew: kybio-gateway config schema > config/gateway.schema.json"
        );
    }

    #[test]
    fn it_is_a_schema() {
        assert!(jsonschema::draft7::meta::validate(&root()).is_ok());
    }

    /// All that could be meant or mistaken for a value, for every key: the loader takes nothing that the schema doesn't, and the schema
    /// knows no less than the loader but for the bounds of durations. (And but for a whole number written as 10.0: to JSON that's 10.)
    #[test]
    fn schema_and_loader_agree_on_every_key() {
        let texts = [
            "",
            "0",
            "5",
            "5s",
            "1h 30m",
            "1h30m",
            "1.5m",
            "99days",
            "5 parsecs",
            "system",
            "deny",
            "header",
            "transient",
            "tls/a.pem",
            "127.0.0.1:8443",
            "[::1]:80",
            "[::1%2]:80",
            "127.0.0.1",
            "127.0.0.1:65536",
            "256.0.0.1:1",
            "localhost:80",
            "unix:",
            "unix:/run/a.sock",
        ];
        let mut common: Vec<Value> = texts.iter().map(|text| json!(text)).collect();
        common.extend(texts.iter().map(|text| json!([text])));
        common.extend([
            json!([]),
            json!([1]),
            json!(["a", 1]),
            json!({}),
            json!(true),
            json!(false),
            json!(-1),
            json!(0),
            json!(1.5),
            json!(i64::MAX),
        ]);
        let mut taken = 0;
        for key in KEYS {
            let validator = validator(&value(key));
            let mut candidates = common.clone();
            let example = serde_json::from_str(key.default.example()).unwrap();
            assert!(loader_takes(key, &example), "{}: {example}", key.path);
            candidates.push(example);
            match key.kind {
                Kind::Integer(min, max) => {
                    candidates.extend([min - 1, min, max, max + 1].map(|bound| json!(bound)));
                }
                Kind::Choice(words) => candidates.extend(words.iter().map(|word| json!(word))),
                Kind::Duration(min, max) => candidates.extend(
                    [min, max].map(|bound| json!(humantime::format_duration(bound).to_string())),
                ),
                _ => {}
            }
            for candidate in candidates {
                let (loader, schema) = (
                    loader_takes(key, &candidate),
                    validator.is_valid(&candidate),
                );
                let out_of_bounds = matches!(key.kind, Kind::Duration(..))
                    && candidate
                        .as_str()
                        .is_some_and(|text| humantime::parse_duration(text).is_ok());
                assert!(
                    loader == schema || (schema && out_of_bounds),
                    "{}: {candidate}: loader {loader}, schema {schema}",
                    key.path
                );
                taken += usize::from(loader);
            }
        }
        assert!(taken > 5 * KEYS.len(), "{taken}");
    }

    static DURATION: LazyLock<Validator> =
        LazyLock::new(|| validator(&json!({ "pattern": duration(Duration::ZERO) })));
    static ADDRESS: LazyLock<Validator> =
        LazyLock::new(|| validator(&json!({ "pattern": address() })));

    proptest! {
        #[test]
        fn the_pattern_of_a_duration_is_humantimes_grammar(
            text in "[059]?( ?[059]{1,2}|[.]|\t|ms|[smhdMyµux]|min|hours?|secs?){0,5}",
        ) {
            let has_its_form = match humantime::parse_duration(&text) {
                // Too long or too fine, but well written.
                Ok(_) | Err(DurationError::NumberOverflow) => true,
                Err(_) => false,
            };
            assert_eq!(DURATION.is_valid(&json!(text)), has_its_form, "{text:?}");
        }

        #[test]
        fn the_pattern_of_an_address_takes_every_address(address: SocketAddr) {
            assert!(ADDRESS.is_valid(&json!(address.to_string())), "{address}");
        }
    }
}
