//! One value: from what was written to the kind that the table asks for.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use figment::value::Value;
use toml_edit::ImDocument;
use toml_edit::Item;
use toml_edit::TomlError;

use crate::account::AppKey;
use crate::config::environment;
use crate::config::keys::Key;
use crate::config::keys::Kind;
use crate::listener::socket::Address;
use crate::listener::socket::UNIX;

/// The longest path that a unix socket can have (unix(7)), without the zero at its end.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// A value of the kind that the table asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Data {
    Duration(Duration),
    Integer(i64),
    Boolean(bool),
    Text(String),
    Texts(Vec<String>),
    Address(SocketAddr),
    Addresses(Vec<SocketAddr>),
    Listen(Address),
}

/// Why a value can't be used; of a list, why each of its items can't, counted from nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrong(pub(super) Vec<(Option<usize>, String)>);

impl From<String> for Wrong {
    fn from(message: String) -> Self {
        Self(vec![(None, message)])
    }
}

/// A text that was found, unless it looks as keys do: it may be one in the wrong place.
pub(super) fn shown(text: &str) -> String {
    if AppKey::may_be(text) {
        format!("a text of {} letters and digits", text.len())
    } else {
        format!("{text:?}")
    }
}

/// A file in a fault, unless its name may be a key that was written in the place of one.
pub(super) fn shown_path(path: &Path) -> String {
    let name = path.file_name().and_then(OsStr::to_str);
    if name.is_some_and(AppKey::may_be) {
        "the file".to_owned()
    } else {
        path.display().to_string()
    }
}

/// A number that may be a key without its quotes.
fn has_a_keys_digits(number: &str) -> bool {
    let digits: String = number.chars().filter(char::is_ascii_digit).collect();
    AppKey::may_be(&digits)
}

fn describe(value: &Value) -> String {
    match value {
        Value::String(_, text) if AppKey::may_be(text) => shown(text),
        Value::String(_, text) => format!("the text {text:?}"),
        Value::Char(_, character) => format!("the text \"{character}\""),
        Value::Bool(_, value) => format!("{value}"),
        Value::Num(_, number) => {
            let written = number.to_f64().map_or_else(
                || number.to_i128().unwrap_or_default().to_string(),
                |number| format!("{number:?}"),
            );
            if has_a_keys_digits(&written) {
                "a long number".to_owned()
            } else {
                format!("the number {written}")
            }
        }
        Value::Empty(..) | Value::Dict(..) | Value::Array(..) => kind_of(value).to_owned(),
    }
}

/// What it is without what it says: it may be a secret in the wrong place.
pub(super) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::String(..) | Value::Char(..) => "a text",
        Value::Bool(..) => "true or false",
        Value::Num(..) => "a number",
        Value::Empty(..) => "nothing",
        // As the layer below hands dates on.
        Value::Dict(_, table) if table.contains_key("$__toml_private_datetime") => "a date",
        Value::Dict(..) => "a table",
        Value::Array(..) => "a list",
    }
}

/// What a default or an environment variable says, whose text is in the spelling of a file or plain.
pub(super) fn from_toml(key: &Key, text: &str) -> Result<Data, Wrong> {
    let document =
        ImDocument::parse(format!("value = {text}")).map_err(|error| not_toml(&error))?;
    match document.get("value") {
        Some(Item::Value(toml_edit::Value::Array(items))) => {
            let text = |item: &toml_edit::Value| {
                let text = item.as_str().map(str::to_owned);
                text.ok_or_else(|| "a list of texts is wanted: write each in quotes".to_owned())
            };
            list(key, items.iter().map(text).collect::<Result<_, _>>()?)
        }
        Some(Item::Value(toml_edit::Value::String(text))) => from_text(key, text.value()),
        _ => from_text(key, text),
    }
}

/// What the parser says, in one line. It repeats no value, but names of keys, in backticks.
pub(super) fn not_toml(error: &TomlError) -> String {
    let message = error.message().trim().replace('\n', ", ");
    let parts = message.split('`');
    let masked = parts.map(|part| if AppKey::may_be(part) { "***" } else { part });
    format!("not TOML: {}", masked.collect::<Vec<_>>().join("`"))
}

/// A plain text, as the environment and flags have it.
pub(super) fn from_text(key: &Key, text: &str) -> Result<Data, Wrong> {
    let data = match key.kind {
        Kind::Integer(min, max) => {
            let number = text
                .trim()
                .parse::<i64>()
                .map_err(|_| format!("a whole number is wanted, but {} was found", shown(text)))?;
            integer(number, min, max)?
        }
        Kind::Boolean => text
            .trim()
            .parse()
            .map(Data::Boolean)
            .map_err(|_| format!("true or false is wanted, but {} was found", shown(text)))?,
        Kind::Addresses | Kind::Texts | Kind::Files if text.trim_start().starts_with('[') => {
            from_toml(key, text)?
        }
        Kind::Addresses | Kind::Texts | Kind::Files => list(
            key,
            text.split(',').map(|item| item.trim().to_owned()).collect(),
        )?,
        Kind::Duration(min, max) => duration(text, min, max)?,
        Kind::Choice(words) => choice(text, words)?,
        Kind::Address => Data::Address(address(text)?),
        Kind::Listen => Data::Listen(listen(text)?),
        Kind::Text | Kind::File | Kind::Roots => Data::Text(text.to_owned()),
    };
    Ok(data)
}

pub(super) fn from_value(key: &Key, value: &Value) -> Result<Data, Wrong> {
    match (key.kind, value) {
        (Kind::Integer(min, max), Value::Num(_, number)) => {
            let number = number
                .to_i128()
                .and_then(|number| i64::try_from(number).ok())
                .ok_or_else(|| {
                    format!(
                        "a whole number is wanted, but {} was found",
                        describe(value)
                    )
                })?;
            Ok(integer(number, min, max)?)
        }
        (Kind::Boolean, Value::Bool(_, value)) => Ok(Data::Boolean(*value)),
        (Kind::Duration(..), Value::Num(..)) => Err(Wrong::from(format!(
            "a duration is wanted, in quotes and with its unit, such as \"5s\", but {} was found",
            describe(value)
        ))),
        (
            Kind::Duration(..)
            | Kind::Choice(_)
            | Kind::Address
            | Kind::Listen
            | Kind::Text
            | Kind::File
            | Kind::Roots,
            Value::String(_, text),
        ) => from_text(key, text),
        (Kind::Addresses | Kind::Texts | Kind::Files, Value::Array(_, items)) => {
            let text = |item: &Value| {
                let text = item.as_str().map(str::to_owned);
                text.ok_or_else(|| {
                    let found = kind_of(item);
                    format!("a text in quotes is wanted, but {found} was found")
                })
            };
            list(key, each(items, text)?)
        }
        (kind, value) => {
            let wanted = match kind {
                Kind::Integer(..) => "a whole number".to_owned(),
                Kind::Boolean => "true or false, without quotes,".to_owned(),
                Kind::Duration(..) => "a duration such as \"5s\"".to_owned(),
                Kind::Choice(words) => one_of(words),
                Kind::Text | Kind::File | Kind::Roots => "a text in quotes".to_owned(),
                Kind::Address | Kind::Listen => "a text such as \"127.0.0.1:8443\"".to_owned(),
                Kind::Addresses | Kind::Texts | Kind::Files => "a list of texts".to_owned(),
            };
            let found = match kind {
                Kind::File | Kind::Files | Kind::Text => kind_of(value).to_owned(),
                _ => describe(value),
            };
            Err(Wrong::from(format!(
                "{wanted} is wanted, but {found} was found"
            )))
        }
    }
}

fn list(key: &Key, texts: Vec<String>) -> Result<Data, Wrong> {
    match key.kind {
        Kind::Addresses => Ok(Data::Addresses(each(&texts, |text| address(text))?)),
        Kind::Texts | Kind::Files => Ok(Data::Texts(texts)),
        _ => Err(Wrong::from(
            "one value is wanted, but a list was found".to_owned(),
        )),
    }
}

/// All items of a list, or all that are wrong.
fn each<T, U>(items: &[T], read: impl Fn(&T) -> Result<U, String>) -> Result<Vec<U>, Wrong> {
    let (mut good, mut wrong) = (Vec::new(), Vec::new());
    for (number, item) in items.iter().enumerate() {
        match read(item) {
            Ok(item) => good.push(item),
            Err(message) => wrong.push((Some(number), message)),
        }
    }
    if wrong.is_empty() {
        Ok(good)
    } else {
        Err(Wrong(wrong))
    }
}

fn integer(number: i64, min: i64, max: i64) -> Result<Data, String> {
    if (min..=max).contains(&number) {
        Ok(Data::Integer(number))
    } else {
        let written = number.to_string();
        let found = if has_a_keys_digits(&written) {
            "a long number".to_owned()
        } else {
            written
        };
        Err(format!("{found} isn't between {min} and {max}"))
    }
}

fn duration(text: &str, min: Duration, max: Duration) -> Result<Data, String> {
    let duration = humantime::parse_duration(text).map_err(|_| {
        format!(
            "a duration such as \"5s\", \"500ms\" or \"10m\" is wanted, but {} was found",
            shown(text)
        )
    })?;
    let name = humantime::format_duration;
    if (min..=max).contains(&duration) {
        Ok(Data::Duration(duration))
    } else {
        Err(format!(
            "{} isn't between {} and {}",
            shown(text),
            name(min),
            name(max)
        ))
    }
}

fn choice(text: &str, words: &[&str]) -> Result<Data, String> {
    if words.contains(&text) {
        return Ok(Data::Text(text.to_owned()));
    }
    let wanted = one_of(words);
    Err(format!("{wanted} is wanted, but {} was found", shown(text)))
}

fn one_of(words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    format!("one of {}", words.join(", "))
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!(
            "an IP address with its port is wanted, such as \"127.0.0.1:8443\", but {} was found",
            shown(text)
        )
    })
}

/// Where to listen; what the path of a unix socket is relative to isn't known yet.
fn listen(text: &str) -> Result<Address, String> {
    let Some(path) = text.strip_prefix(UNIX) else {
        return text.parse().map(Address::Tcp).map_err(|_| {
            format!("an IP address with its port is wanted, such as \"127.0.0.1:8443\", or \"{UNIX}\" and a path, but {} was found", shown(text))
        });
    };
    if path.is_empty() || path.contains('\0') {
        return Err(format!(
            "a path is wanted, such as \"{UNIX}/run/kybio-gateway/gateway.sock\", but {text:?} was found"
        ));
    }
    if path.starts_with('@') {
        return Err(format!(
            "an abstract socket has no permissions, so everybody could connect: name a file (one that is really called {path:?} as \"{UNIX}./{path}\")"
        ));
    }
    Ok(Address::Unix(path.into()))
}

/// Makes paths of files absolute, or relative to where the process is.
pub(super) fn resolve(kind: Kind, data: Data, folder: &Path) -> Result<Data, Wrong> {
    match (kind, data) {
        (Kind::Roots, Data::Text(word)) if word == "system" || word == "bundled" => {
            Ok(Data::Text(word))
        }
        (Kind::File | Kind::Roots, Data::Text(text)) => Ok(Data::Text(file(&text, folder)?)),
        (Kind::Files, Data::Texts(texts)) => {
            Ok(Data::Texts(each(&texts, |text| file(text, folder))?))
        }
        (Kind::Listen, Data::Listen(Address::Unix(path))) => {
            let path = folder.join(path);
            let length = path.as_os_str().as_bytes().len();
            if length > SOCKET_PATH_BYTES_MAX {
                return Err(Wrong::from(format!(
                    "the path of a unix socket has at most {SOCKET_PATH_BYTES_MAX} bytes, but {} has {length}",
                    path.display()
                )));
            }
            Ok(Data::Listen(Address::Unix(path)))
        }
        (_, data) => Ok(data),
    }
}

/// A file's path, relative to the one that names it; `$CREDENTIALS_DIRECTORY/` is where systemd puts credentials.
fn file(text: &str, folder: &Path) -> Result<String, String> {
    if text.is_empty() {
        return Err("a file is wanted, but an empty text was found".to_owned());
    }
    // Not repeated: it may be the file's content, which may be a secret.
    if text.contains(['\n', '\r']) {
        return Err(
            "the path of a file is wanted, but a text with line breaks was found".to_owned(),
        );
    }
    let path = match text.strip_prefix("$CREDENTIALS_DIRECTORY/") {
        Some(rest) => environment::credentials_directory()
            .ok_or(
                "CREDENTIALS_DIRECTORY isn't set: systemd sets it where LoadCredential= is used",
            )?
            .join(rest),
        None => folder.join(text),
    };
    path.into_os_string()
        .into_string()
        .map_err(|_| "the path isn't UTF-8".to_owned())
}
