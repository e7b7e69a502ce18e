//! One strict pass over a body: is it one JSON object (RFC 8259), and what does it say of `appId` at its top level?
//!
//! Our own scanner, because the refusals need exact byte offsets and the keys as they were written; it never copies or changes a
//! byte. That it accepts what a well-known parser accepts is held by a property test at the foot of this file.

use std::borrow::Cow;
use std::ops::Range;

use crate::payload::key::decoded;
use crate::payload::key::reads_as_app_id;

/// How deep objects and arrays may nest. The vendor's own bodies nest four deep; 128 is where common parsers stop.
pub const DEPTH_MAX: u32 = 128;

/// How many members the top level may have.
pub const KEYS_MAX: usize = 1_000;

/// How many bytes one number may have.
pub const NUMBER_LENGTH_MAX: usize = 1_000;

/// A body that is one JSON object.
#[derive(Debug, PartialEq, Eq)]
pub struct Object {
    /// From `{` to `}`; white space around it is outside.
    pub span: Range<usize>,
    /// No members.
    pub empty: bool,
    /// Where the text between the quotes of the top-level `appId` stands, if there is one.
    pub app_id: Option<Range<usize>>,
}

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

/// Reads the whole body. `Ok(None)` is an empty one (or white space alone).
///
/// # Errors
/// The first fault, with its offset.
pub fn scan(body: &[u8]) -> Result<Option<Object>, Fault> {
    read(body).map_err(|fault| fault.placed(body))
}

impl Fault {
    fn placed(self, body: &[u8]) -> Self {
        let before = body.get(..self.offset).unwrap_or(body);
        let line_start = before
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        Self {
            line,
            column: self.offset - line_start + 1,
            ..self
        }
    }
}

fn read(body: &[u8]) -> Result<Option<Object>, Fault> {
    if body.starts_with(b"\xEF\xBB\xBF") {
        return Err(fault(
            0,
            Problem::ByteOrderMark,
            Some("save or send the body as UTF-8 without a byte order mark"),
        ));
    }
    let text = simdutf8::compat::from_utf8(body).map_err(|error| {
        let hint = if body.starts_with(b"\x1f\x8b") {
            "the body is compressed: send it as plain JSON"
        } else {
            "encode the body as UTF-8 (not GBK or Latin-1)"
        };
        fault(error.valid_up_to(), Problem::NotUtf8, Some(hint))
    })?;
    Scanner {
        text,
        bytes: body,
        at: 0,
        keys: Vec::new(),
        app_id: None,
    }
    .body()
}

fn fault(offset: usize, problem: Problem, hint: Option<&'static str>) -> Fault {
    // Line and column are counted once, when the fault leaves.
    Fault {
        offset,
        line: 0,
        column: 0,
        problem,
        hint,
    }
}

struct Scanner<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    /// Decoded keys of the top level and where each stands.
    keys: Vec<(Cow<'a, [u8]>, usize)>,
    app_id: Option<Range<usize>>,
}

/// Which containers are open: one bit each, so that depth costs no memory.
#[derive(Default)]
struct Nesting {
    objects: u128,
    depth: u32,
}

impl Nesting {
    fn open(&mut self, object: bool) -> bool {
        self.depth += 1;
        self.objects = self.objects << 1 | u128::from(object);
        self.depth <= DEPTH_MAX
    }

    fn close(&mut self) {
        self.depth -= 1;
        self.objects >>= 1;
    }

    fn in_object(&self) -> bool {
        self.objects & 1 == 1
    }
}

impl<'a> Scanner<'a> {
    fn body(mut self) -> Result<Option<Object>, Fault> {
        self.white_space();
        let start = self.at;
        match self.peek() {
            None => return Ok(None),
            Some(b'{') => {}
            Some(_) => {
                return Err(fault(
                    start,
                    Problem::NotAnObject(self.found()),
                    self.hint_for_start(),
                ));
            }
        }
        self.values()?;
        let end = self.at;
        self.white_space();
        if self.at < self.bytes.len() {
            return Err(fault(
                self.at,
                Problem::Trailing(self.found()),
                Some("send one object, and nothing after it"),
            ));
        }
        self.refuse_duplicates()?;
        Ok(Some(Object {
            span: start..end,
            empty: self.keys.is_empty(),
            app_id: self.app_id,
        }))
    }

    /// From the first byte of a value to the end of the outermost one. Not recursive: a deep body can't use up the stack.
    fn values(&mut self) -> Result<(), Fault> {
        let mut nesting = Nesting::default();
        loop {
            match self.peek() {
                Some(open @ (b'{' | b'[')) => {
                    let object = open == b'{';
                    if !nesting.open(object) {
                        return Err(fault(self.at, Problem::TooDeep, None));
                    }
                    self.at += 1;
                    self.white_space();
                    if self.peek() == Some(if object { b'}' } else { b']' }) {
                        self.at += 1;
                        nesting.close();
                    } else {
                        if object {
                            self.key(nesting.depth == 1, "a key in double quotes, or '}'")?;
                        }
                        continue;
                    }
                }
                Some(b'"') => {
                    self.string()?;
                }
                Some(b'-' | b'0'..=b'9') => self.number()?,
                Some(b't') => self.literal("true")?,
                Some(b'f') => self.literal("false")?,
                Some(b'n') => self.literal("null")?,
                _ => return Err(self.unexpected("a value")),
            }
            // A value has ended: close what ends with it, up to the comma before the next one.
            loop {
                if nesting.depth == 0 {
                    return Ok(());
                }
                self.white_space();
                match (self.peek(), nesting.in_object()) {
                    (Some(b','), object) => {
                        self.at += 1;
                        self.white_space();
                        if object {
                            self.key(nesting.depth == 1, "a key in double quotes")?;
                        }
                        break;
                    }
                    (Some(b'}'), true) | (Some(b']'), false) => {
                        self.at += 1;
                        nesting.close();
                    }
                    (_, true) => return Err(self.unexpected("',' or '}'")),
                    (_, false) => return Err(self.unexpected("',' or ']'")),
                }
            }
        }
    }

    /// A key and its colon, up to the first byte of its value.
    fn key(&mut self, top_level: bool, expected: &'static str) -> Result<(), Fault> {
        let offset = self.at;
        if self.peek() != Some(b'"') {
            return Err(self.unexpected(expected));
        }
        let key = self.string()?;
        self.white_space();
        if self.peek() != Some(b':') {
            return Err(self.unexpected("':'"));
        }
        self.at += 1;
        self.white_space();
        if top_level {
            self.top_level_key(offset, key)
        } else {
            Ok(())
        }
    }

    fn top_level_key(&mut self, offset: usize, key: Text) -> Result<(), Fault> {
        if self.keys.len() == KEYS_MAX {
            return Err(fault(offset, Problem::TooManyKeys, None));
        }
        let raw = &self.bytes[key.span.clone()];
        if raw == b"appId" {
            self.app_id = Some(self.app_id_value()?);
        } else if reads_as_app_id(&self.text[key.span.clone()], key.escaped) {
            let hint = "write the key as `appId`, or leave it out: the gateway puts it in";
            return Err(fault(offset, Problem::LooksLikeAppId, Some(hint)));
        }
        let decoded = if key.escaped {
            Cow::Owned(decoded(&self.text[key.span]))
        } else {
            Cow::Borrowed(raw)
        };
        self.keys.push((decoded, offset));
        Ok(())
    }

    /// Looks at the value of `appId` without moving on.
    fn app_id_value(&mut self) -> Result<Range<usize>, Fault> {
        let start = self.at;
        let hint = Some(
            "write it as the account's appId in double quotes, or leave it out: the gateway puts it in",
        );
        if self.peek() != Some(b'"') {
            return Err(fault(start, Problem::AppIdNotPlain, hint));
        }
        let value = self.string()?;
        self.at = start;
        if value.escaped {
            Err(fault(start, Problem::AppIdNotPlain, hint))
        } else {
            Ok(value.span)
        }
    }

    fn refuse_duplicates(&mut self) -> Result<(), Fault> {
        // Equal keys end up side by side, in the order in which they stand in the body.
        self.keys.sort();
        let second = self
            .keys
            .windows(2)
            .filter(|pair| pair[0].0 == pair[1].0)
            .map(|pair| pair[1].1)
            .min();
        second.map_or(Ok(()), |offset| {
            Err(fault(
                offset,
                Problem::DuplicateKey,
                Some("send each key once"),
            ))
        })
    }

    /// A string, from quote to quote. Lone surrogates in escapes pass: they are the caller's own (promise B3).
    fn string(&mut self) -> Result<Text, Fault> {
        self.at += 1;
        let start = self.at;
        let mut escaped = false;
        loop {
            self.at += plain_length(&self.bytes[self.at..]);
            match self.peek() {
                Some(b'"') => {
                    let span = start..self.at;
                    self.at += 1;
                    return Ok(Text { span, escaped });
                }
                Some(b'\\') => {
                    escaped = true;
                    self.escape()?;
                }
                Some(_) => {
                    let hint = "inside a string, write line breaks as \\n, tabs as \\t, and other control characters as \\u00XX";
                    return Err(fault(
                        self.at,
                        Problem::Unexpected("a character of a string", self.found()),
                        Some(hint),
                    ));
                }
                None => return Err(self.unexpected("the closing quote of a string")),
            }
        }
    }

    fn escape(&mut self) -> Result<(), Fault> {
        self.at += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
            Some(b'u') => {
                self.at += 1;
                for _ in 0..4 {
                    if !self.peek().is_some_and(|byte| byte.is_ascii_hexdigit()) {
                        return Err(self.unexpected("a hex digit of \\uXXXX"));
                    }
                    self.at += 1;
                }
            }
            _ => return Err(self.unexpected("one of \" \\ / b f n r t u after a backslash")),
        }
        Ok(())
    }

    fn number(&mut self) -> Result<(), Fault> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
            if self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
                let hint = "a number has no leading zeros: write it as a string if it's a code";
                return Err(fault(
                    self.at,
                    Problem::Unexpected("the end of the number", self.found()),
                    Some(hint),
                ));
            }
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        if self.at - start > NUMBER_LENGTH_MAX {
            return Err(fault(start, Problem::NumberTooLong, None));
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Fault> {
        if !self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            return Err(self.unexpected("a digit"));
        }
        self.at += digits_length(&self.bytes[self.at..]);
        Ok(())
    }

    fn literal(&mut self, word: &'static str) -> Result<(), Fault> {
        for expected in word.bytes() {
            if self.peek() != Some(expected) {
                return Err(self.unexpected(word));
            }
            self.at += 1;
        }
        Ok(())
    }

    fn white_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn found(&self) -> Found {
        // `at` is always on a character's first byte: the scanner only ever steps over whole ASCII characters or inside strings.
        self.text
            .get(self.at..)
            .and_then(|rest| rest.chars().next())
            .map_or(Found::End, Found::Character)
    }

    fn unexpected(&self, expected: &'static str) -> Fault {
        fault(
            self.at,
            Problem::Unexpected(expected, self.found()),
            self.hint_for(expected),
        )
    }

    fn hint_for(&self, expected: &'static str) -> Option<&'static str> {
        let rest = &self.bytes[self.at..];
        let after_comma = || self.bytes[..self.at].trim_ascii_end().ends_with(b",");
        match rest.first() {
            None => Some("the body is cut off: is Content-Length right, and was all of it sent?"),
            Some(b'"') if expected.starts_with("','") => Some(
                "a comma is missing before this quote (the vendor's documentation prints bodies that aren't JSON: check what was copied)",
            ),
            Some(b'}' | b']') if after_comma() => Some("remove the comma before it"),
            Some(b'\'') => Some("JSON uses double quotes"),
            Some(b'/' | b'#') => Some("JSON has no comments"),
            Some(b'T' | b'F' | b'N' | b'u' | b'I') => {
                Some("write true, false or null; JSON has no None, NaN, undefined or Infinity")
            }
            Some(b'+' | b'.') => Some("a number starts with a digit or '-'"),
            Some(byte) if byte.is_ascii_alphabetic() && expected.contains("key") => {
                Some("put keys in double quotes")
            }
            Some(_) => None,
        }
    }

    fn hint_for_start(&self) -> Option<&'static str> {
        match self.peek() {
            Some(b'[') => Some("KYBIO takes one object: put the list into a member"),
            Some(b'<') => Some("this looks like XML or HTML: send JSON"),
            Some(b'\'') => Some("the shell's quotes were sent too: check how the body is quoted"),
            Some(b'@') => Some("with curl, --data-binary @FILE sends a file's content"),
            Some(byte) if byte.is_ascii_alphanumeric() && self.bytes.contains(&b'=') => {
                Some("this looks like form data: send a JSON object")
            }
            _ => None,
        }
    }
}

/// A string's text between its quotes.
struct Text {
    span: Range<usize>,
    escaped: bool,
}

/// How many bytes stand before the first that means something in a string: a quote, a backslash or a control character. Bodies are mostly
/// such text, so that eight bytes are looked at together.
fn plain_length(text: &[u8]) -> usize {
    length_before(text, special_bytes, |byte| {
        matches!(byte, b'"' | b'\\' | ..0x20)
    })
}

/// How many digits stand at its beginning. The vendor's ids have 18 of them.
fn digits_length(text: &[u8]) -> usize {
    length_before(text, others_than_digits, |byte| !byte.is_ascii_digit())
}

/// How many bytes stand before the first that is searched for, of which `among` eight shows the lowest by its top bit.
fn length_before(text: &[u8], among: impl Fn(u64) -> u64, is_one: impl Fn(&u8) -> bool) -> usize {
    let (eights, rest) = text.as_chunks();
    for (number, eight) in eights.iter().enumerate() {
        let found = among(u64::from_le_bytes(*eight));
        if found != 0 {
            return number * 8 + found.trailing_zeros() as usize / 8;
        }
    }
    text.len() - rest.len() + rest.iter().position(is_one).unwrap_or(rest.len())
}

const EACH: u64 = u64::from_le_bytes([1; 8]);
const TOP: u64 = EACH << 7;

/// The top bit of each byte that means something in a string. The lowest that is set is right; above it a borrow can set one too many.
fn special_bytes(eight: u64) -> u64 {
    // A top bit that comes of a subtraction, and wasn't there before, is of a byte that was less.
    let less_than = |bytes: u64, limit: u64| bytes.wrapping_sub(EACH * limit) & !bytes & TOP;
    let quote = eight ^ (EACH * u64::from(b'"'));
    let backslash = eight ^ (EACH * u64::from(b'\\'));
    less_than(eight, 0x20) | less_than(quote, 1) | less_than(backslash, 1)
}

/// The top bit of each byte that isn't a digit. The lowest that is set is right; above it a carry can set one too many.
fn others_than_digits(eight: u64) -> u64 {
    let values = eight ^ (EACH * u64::from(b'0'));
    // What is 10 or more reaches the top bit by this sum, if it isn't there already.
    (values.wrapping_add(EACH * (0x80 - 10)) | values) & TOP
}

#[cfg(test)]
mod tests {
    use super::DEPTH_MAX;
    use super::KEYS_MAX;
    use super::Object;
    use super::Problem;
    use super::digits_length;
    use super::plain_length;
    use super::scan;
    use proptest::prelude::*;
    use serde::de::IgnoredAny;

    /// Each byte after so many of those that are passed over, with others behind it.
    #[test]
    fn eight_bytes_together_are_as_good_as_one_by_one() {
        let is_special = |byte: u8| matches!(byte, b'"' | b'\\' | ..0x20);
        for before in 0..20 {
            for byte in 0..=u8::MAX {
                let with = |filler: u8| [vec![filler; before], vec![byte; 9]].concat();
                let text = if is_special(byte) { before } else { before + 9 };
                assert_eq!(plain_length(&with(b'x')), text, "{before} {byte}");
                assert_eq!(plain_length(&with(0x80)), text, "{before} {byte}");
                let number = if byte.is_ascii_digit() {
                    before + 9
                } else {
                    before
                };
                assert_eq!(digits_length(&with(b'9')), number, "{before} {byte}");
                assert_eq!(digits_length(&with(b'0')), number, "{before} {byte}");
            }
        }
    }

    fn refused(body: &str, offset: usize) -> Problem {
        let fault = scan(body.as_bytes()).expect_err(body);
        assert_eq!(fault.offset, offset, "{body}: {fault:?}");
        fault.problem
    }

    #[test]
    fn objects_are_found_between_white_space() {
        assert_eq!(scan(b""), Ok(None));
        assert_eq!(scan(b" \r\n\t"), Ok(None));
        assert_eq!(
            scan(b"{}"),
            Ok(Some(Object {
                span: 0..2,
                empty: true,
                app_id: None
            }))
        );
        assert_eq!(
            scan(b"\n{ }\n"),
            Ok(Some(Object {
                span: 1..4,
                empty: true,
                app_id: None
            }))
        );
        assert_eq!(
            scan(br#"{"a":[1,{"appId":2}]}"#),
            Ok(Some(Object {
                span: 0..21,
                empty: false,
                app_id: None
            }))
        );
        assert_eq!(
            scan(br#"{"n":"1","appId":"mylinl1"}"#),
            Ok(Some(Object {
                span: 0..27,
                empty: false,
                app_id: Some(18..25)
            }))
        );
    }

    #[test]
    fn the_callers_own_oddities_pass() {
        let bodies = [
            r#"{"n":1e400,"m":123456789012345678901234567890,"d":1.10,"z":-0.0E+5}"#,
            r#"{"a":{"x":1,"x":2,"appId":"other","AppId":1}}"#,
            r#"{"a":"\ud800","b":"\/","c":"\u0000","d":"🍣"}"#,
            r#"{"":0}"#,
            r#"{"appIds":1,"xappId":2,"app":{"Id":3}}"#,
            r#"{"a":[[],{},[{}]],"b":[1,[2]] , "c" : null}"#,
        ];
        for body in bodies {
            assert!(
                scan(body.as_bytes()).is_ok(),
                "{body}: {:?}",
                scan(body.as_bytes())
            );
        }
    }

    #[test]
    fn the_vendors_own_example_is_refused_at_byte_76_with_a_hint() {
        let body =
            include_bytes!("../../tests/vectors/samples/customer-add.doc-verbatim-INVALID.txt");
        let fault = scan(body).expect_err("it isn't JSON");
        assert_eq!(fault.offset, 76);
        assert!(
            fault
                .hint
                .is_some_and(|hint| hint.contains("comma is missing")),
            "{fault:?}"
        );
    }

    #[test]
    fn faults_carry_the_offset_of_the_first_wrong_byte() {
        let cases = [
            ("[1]", 0),
            ("  1", 2),
            ("{", 1),
            ("{\"a\"", 4),
            ("{\"a\" 1}", 5),
            ("{\"a\":}", 5),
            ("{\"a\":1,}", 7),
            ("{,}", 1),
            ("{\"a\":1 \"b\":2}", 7),
            ("{\"a\":1}x", 7),
            ("{}{}", 2),
            ("{\"a\":01}", 6),
            ("{\"a\":1.}", 7),
            ("{\"a\":1e}", 7),
            ("{\"a\":-}", 6),
            ("{\"a\":+1}", 5),
            ("{\"a\":.5}", 5),
            ("{\"a\":tru}", 8),
            ("{\"a\":True}", 5),
            ("{\"a\":NaN}", 5),
            ("{a:1}", 1),
            ("{'a':1}", 1),
            ("{\"a\":\"\t\"}", 6),
            ("{\"a\":\"\\x\"}", 7),
            ("{\"a\":\"\\u12g4\"}", 10),
            ("{\"a\":\"b", 7),
            ("{\"a\":[1,]}", 8),
            ("{\"a\":[1}", 7),
            ("{\"a\":1]", 6),
            ("{\"a\":1}//", 7),
            ("{\"a\":1}\u{0}", 7),
            ("{\"é\":x}", 6),
        ];
        for (body, offset) in cases {
            refused(body, offset);
        }
    }

    #[test]
    fn line_and_column_are_counted_from_one() {
        let fault = scan(b"{\n  \"a\": 1,\n  b\n}").expect_err("no quotes");
        assert_eq!((fault.offset, fault.line, fault.column), (14, 3, 3));
    }

    #[test]
    fn bytes_that_are_not_text_are_refused() {
        assert_eq!(
            scan(b"\xef\xbb\xbf{}").expect_err("a mark").problem,
            Problem::ByteOrderMark
        );
        let fault = scan(b"{\"a\":\"\xff\"}").expect_err("not UTF-8");
        assert_eq!((fault.offset, fault.problem), (6, Problem::NotUtf8));
        assert_eq!(
            scan(b"{\"a\":\"\xed\xa0\x80\"}")
                .expect_err("a raw surrogate")
                .offset,
            6
        );
    }

    #[test]
    fn keys_that_could_be_taken_for_app_id_are_refused() {
        let looks = [
            "AppId",
            "APPID",
            "app_id",
            "app-id",
            "appId ",
            " appId",
            "app\\u0049d",
            "\\u0061ppId",
            "appId\\u0000",
            "app\\tId",
            "appİd",
            "appıd",
            "app\u{200b}Id",
            "App_ID",
            "appId\u{fe0f}",
            "ａｐｐＩｄ",
            "appId\\ud800",
            "appId\\u0000x",
            "\\u0000appId",
            "app\\u0000Id",
            "app\u{2010}Id",
        ];
        for key in looks {
            assert_eq!(
                refused(&format!("{{\"a\":1,\"{key}\":\"x\"}}"), 7),
                Problem::LooksLikeAppId,
                "{key}"
            );
        }
        assert_eq!(refused(r#"{"appId":1}"#, 9), Problem::AppIdNotPlain);
        assert_eq!(refused(r#"{"appId":null}"#, 9), Problem::AppIdNotPlain);
        assert_eq!(refused(r#"{"appId":"\u0061"}"#, 9), Problem::AppIdNotPlain);
        assert_eq!(
            refused(r#"{"appId":"a","appId":"a"}"#, 13),
            Problem::DuplicateKey
        );
    }

    #[test]
    fn a_key_that_stands_twice_in_the_top_level_is_refused() {
        assert_eq!(refused(r#"{"a":1,"b":2,"a":3}"#, 13), Problem::DuplicateKey);
        assert_eq!(refused(r#"{"a":1,"\u0061":3}"#, 7), Problem::DuplicateKey);
        assert_eq!(
            refused(r#"{"🍣":1,"\ud83c\udf63":3}"#, 10),
            Problem::DuplicateKey
        );
        assert!(scan(br#"{"\ud800":1,"\ud801":2,"\udc00":3}"#).is_ok());
        assert!(scan("{\"\\ud800\":1,\"\u{fffd}\":2}".as_bytes()).is_ok());
    }

    #[test]
    fn limits_hold() {
        let nested = |depth: usize| {
            format!(
                "{{\"a\":{}1{}}}",
                "[".repeat(depth - 1),
                "]".repeat(depth - 1)
            )
        };
        assert!(scan(nested(DEPTH_MAX as usize).as_bytes()).is_ok());
        assert_eq!(
            scan(nested(DEPTH_MAX as usize + 1).as_bytes())
                .expect_err("too deep")
                .problem,
            Problem::TooDeep
        );
        assert_eq!(
            scan(nested(1_000_000).as_bytes())
                .expect_err("too deep")
                .problem,
            Problem::TooDeep
        );
        let keys = |count: usize| {
            format!(
                "{{{}}}",
                (0..count)
                    .map(|key| format!("\"{key}\":0"))
                    .collect::<Vec<_>>()
                    .join(",")
            )
        };
        assert!(scan(keys(KEYS_MAX).as_bytes()).is_ok());
        assert_eq!(
            scan(keys(KEYS_MAX + 1).as_bytes())
                .expect_err("too many")
                .problem,
            Problem::TooManyKeys
        );
        assert!(scan(format!("{{\"a\":{}}}", "1".repeat(1_000)).as_bytes()).is_ok());
        assert_eq!(
            refused(&format!("{{\"a\":{}}}", "1".repeat(1_001)), 5),
            Problem::NumberTooLong
        );
    }

    proptest! {
        /// Any text: what the scanner takes, a well-known parser takes, and the other way round but for our own limits and rules.
        #[test]
        fn it_accepts_what_a_well_known_parser_accepts(body in "[{}\\[\\]\",:\\\\0-9.eE+tfnrulasid \\-é🍣\\x00-\\x1f]{0,40}|\\{\"[a-z\\\\\"]{0,3}\":[\\[\\]{}\"0-9,.eE\\- :a-z]{0,20}\\}") {
            let theirs = serde_json::from_str::<IgnoredAny>(&body).is_ok() && body.trim_ascii().starts_with('{');
            match scan(body.as_bytes()) {
                Ok(Some(_)) => prop_assert!(theirs, "only we accept {body:?}"),
                Ok(None) => prop_assert!(body.trim_ascii().is_empty()),
                Err(fault) => {
                    let ours_alone = matches!(fault.problem, Problem::DuplicateKey | Problem::LooksLikeAppId | Problem::AppIdNotPlain);
                    prop_assert!(!theirs || ours_alone, "only we refuse {body:?}: {fault:?}");
                    prop_assert!(fault.offset <= body.len());
                }
            }
        }

        /// Any bytes: no panic, and an offset inside the body.
        #[test]
        fn any_bytes_get_an_answer(body in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Err(fault) = scan(&body) {
                prop_assert!(fault.offset <= body.len());
            }
        }
    }
}
