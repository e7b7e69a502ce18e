//! What is wrong with a body, where, and what to do about it: in full, for a person.

use crate::payload::scan::DEPTH_MAX;
use crate::payload::scan::KEYS_MAX;
use crate::payload::scan::NUMBER_LENGTH_MAX;

/// What is wrong with a body, and at which byte (counted from 0).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct Fault {
    /// Offset of the first byte that can't be accepted.
    pub offset: usize,
    /// Its line, counted from 1.
    pub line: usize,
    /// Its column in bytes, counted from 1.
    pub column: usize,
    /// What is wrong with it.
    pub problem: Problem,
    /// What to do about it, for a person.
    pub hint: Option<&'static str>,
}

/// The kinds of fault in a body.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's message says what it is")]
pub enum Problem {
    #[error("the body isn't UTF-8")]
    NotUtf8,
    #[error("the body starts with a byte order mark")]
    ByteOrderMark,
    #[error("the body must be one JSON object, which starts with '{{', but {0} was found")]
    NotAnObject(Found),
    #[error("expected {0}, but {1} was found")]
    Unexpected(&'static str, Found),
    #[error("bytes follow after the end of the JSON object: {0}")]
    Trailing(Found),
    #[error("objects and arrays nest deeper than {DEPTH_MAX}")]
    TooDeep,
    #[error("the object has more than {KEYS_MAX} members")]
    TooManyKeys,
    #[error("a number has more than {NUMBER_LENGTH_MAX} characters")]
    NumberTooLong,
    #[error("a key stands twice in the top level: two parsers may read it differently")]
    DuplicateKey,
    #[error("a key of the top level could be taken for `appId`, but isn't written so")]
    LooksLikeAppId,
    #[error("`appId` must be a string without escapes")]
    AppIdNotPlain,
}

/// What stood where something else was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The body ended.
    End,
    /// This character.
    Character(char),
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::End => f.write_str("the end of the body"),
            Self::Character(quote @ ('"' | '\'' | '\\')) => write!(f, "'{quote}'"),
            // Control characters and the like don't reach a terminal or a log as they are.
            Self::Character(character) => write!(f, "'{}'", character.escape_debug()),
        }
    }
}

/// Where and why the scanner stops. It's small, because each step on the way may return it; [`Fault`] says it in full.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stop {
    /// Offset of the first byte that can't be accepted.
    pub(super) at: usize,
    /// What rule that byte breaks.
    pub(super) why: Why,
}

/// The rules that the scanner knows.
#[derive(Clone, Copy, Debug)]
pub(super) enum Why {
    ByteOrderMark,
    NotUtf8,
    NotAnObject,
    Trailing,
    TooDeep,
    TooManyKeys,
    NumberTooLong,
    DuplicateKey,
    LooksLikeAppId,
    AppIdNotPlain,
    LeadingZero,
    ControlCharacter,
    Expected(Expected),
}

/// What must stand at a place where something else was found.
#[derive(Clone, Copy, Debug)]
pub(super) enum Expected {
    Key,
    KeyOrEnd,
    Colon,
    CommaOrBrace,
    CommaOrBracket,
    Value,
    Digit,
    ClosingQuote,
    Escape,
    HexDigit,
    Word(Word),
}

/// The values that are words.
#[derive(Clone, Copy, Debug)]
pub(super) enum Word {
    True,
    False,
    Null,
}

impl Word {
    /// How it's written.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::True => "true",
            Self::False => "false",
            Self::Null => "null",
        }
    }
}

impl Expected {
    fn text(self) -> &'static str {
        match self {
            Self::Key => "a key in double quotes",
            Self::KeyOrEnd => "a key in double quotes, or '}'",
            Self::Colon => "':'",
            Self::CommaOrBrace => "',' or '}'",
            Self::CommaOrBracket => "',' or ']'",
            Self::Value => "a value",
            Self::Digit => "a digit",
            Self::ClosingQuote => "the closing quote of a string",
            Self::Escape => "one of \" \\ / b f n r t u after a backslash",
            Self::HexDigit => "a hex digit of \\uXXXX",
            Self::Word(word) => word.text(),
        }
    }
}

impl Fault {
    /// What the scanner has stopped for in this body.
    pub(super) fn of(body: &[u8], stop: Stop) -> Self {
        let (before, rest) = body.split_at(stop.at);
        let line_start = before
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        let (problem, hint) = said(stop.why, before, rest);
        Self {
            offset: stop.at,
            line: before.iter().filter(|byte| **byte == b'\n').count() + 1,
            column: stop.at - line_start + 1,
            problem,
            hint,
        }
    }
}

/// A rule in words, where it's broken: these bytes stand before that place, and those behind it.
fn said(why: Why, before: &[u8], rest: &[u8]) -> (Problem, Option<&'static str>) {
    let character = rest
        .utf8_chunks()
        .next()
        .and_then(|text| text.valid().chars().next());
    let found = character.map_or(Found::End, Found::Character);
    match why {
        Why::ByteOrderMark => (
            Problem::ByteOrderMark,
            Some("save or send the body as UTF-8 without a byte order mark"),
        ),
        Why::NotUtf8 if before == b"\x1f" && rest.starts_with(b"\x8b") => (
            Problem::NotUtf8,
            Some("the body is compressed: send it as plain JSON"),
        ),
        Why::NotUtf8 => (
            Problem::NotUtf8,
            Some("encode the body as UTF-8 (not GBK or Latin-1)"),
        ),
        Why::NotAnObject => (Problem::NotAnObject(found), hint_for_start(rest)),
        Why::Trailing => (
            Problem::Trailing(found),
            Some("send one object, and nothing after it"),
        ),
        Why::TooDeep => (Problem::TooDeep, None),
        Why::TooManyKeys => (Problem::TooManyKeys, None),
        Why::NumberTooLong => (Problem::NumberTooLong, None),
        Why::DuplicateKey => (Problem::DuplicateKey, Some("send each key once")),
        Why::LooksLikeAppId => (
            Problem::LooksLikeAppId,
            Some("write the key as `appId`, or leave it out: the gateway puts it in"),
        ),
        Why::AppIdNotPlain => (
            Problem::AppIdNotPlain,
            Some(
                "write it as the account's appId in double quotes, or leave it out: the gateway puts it in",
            ),
        ),
        Why::LeadingZero => (
            Problem::Unexpected("the end of the number", found),
            Some("a number has no leading zeros: write it as a string if it's a code"),
        ),
        Why::ControlCharacter => (
            Problem::Unexpected("a character of a string", found),
            Some(
                "inside a string, write line breaks as \\n, tabs as \\t, and other control characters as \\u00XX",
            ),
        ),
        Why::Expected(expected) => (
            Problem::Unexpected(expected.text(), found),
            hint_for(expected, before, rest),
        ),
    }
}

fn hint_for(expected: Expected, before: &[u8], rest: &[u8]) -> Option<&'static str> {
    use Expected::{CommaOrBrace, CommaOrBracket, Key, KeyOrEnd};
    let after_comma = || before.trim_ascii_end().ends_with(b",");
    match rest.first() {
        None => Some("the body is cut off: is Content-Length right, and was all of it sent?"),
        Some(b'"') if matches!(expected, CommaOrBrace | CommaOrBracket) => Some(
            "a comma is missing before this quote (the vendor's documentation prints bodies that aren't JSON: check what was copied)",
        ),
        Some(b'}' | b']') if after_comma() => Some("remove the comma before it"),
        Some(b'\'') => Some("JSON uses double quotes"),
        Some(b'/' | b'#') => Some("JSON has no comments"),
        Some(b'T' | b'F' | b'N' | b'u' | b'I') => {
            Some("write true, false or null; JSON has no None, NaN, undefined or Infinity")
        }
        Some(b'+' | b'.') => Some("a number starts with a digit or '-'"),
        Some(byte) if byte.is_ascii_alphabetic() && matches!(expected, Key | KeyOrEnd) => {
            Some("put keys in double quotes")
        }
        Some(_) => None,
    }
}

fn hint_for_start(rest: &[u8]) -> Option<&'static str> {
    match rest.first()? {
        b'[' => Some("KYBIO takes one object: put the list into a member"),
        b'<' => Some("this looks like XML or HTML: send JSON"),
        b'\'' => Some("the shell's quotes were sent too: check how the body is quoted"),
        b'@' => Some("with curl, --data-binary @FILE sends a file's content"),
        byte if byte.is_ascii_alphanumeric() && rest.contains(&b'=') => {
            Some("this looks like form data: send a JSON object")
        }
        _ => None,
    }
}
