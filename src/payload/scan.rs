//! One strict pass over a body: is it one JSON object (RFC 8259), and what does it say of `appId` at its top level?
//!
//! Our own scanner, because the refusals need exact byte offsets and the keys as they were written; it never copies or changes a
//! byte. That it accepts what a well-known parser accepts is held by a property test at the foot of this file.

use std::borrow::Cow;
use std::ops::Range;

use wide::u8x16;

use crate::payload::fault::Expected;
use crate::payload::fault::Fault;
use crate::payload::fault::Stop;
use crate::payload::fault::Why;
use crate::payload::fault::Word;
use crate::payload::key::decoded;
use crate::payload::key::reads_as_app_id;

/// How deep objects and arrays may nest. The vendor's own bodies nest four deep; 128 is where common parsers stop.
pub const DEPTH_MAX: usize = 128;

/// How many members the top level may have.
pub const KEYS_MAX: usize = 1_000;

/// Room for so many is there from the first; for more it grows.
const KEYS_EXPECTED: usize = 16;

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

/// Reads the whole body. `Ok(None)` is an empty one (or white space alone).
///
/// # Errors
/// The first fault, with its offset.
pub fn scan(body: &[u8]) -> Result<Option<Object>, Fault> {
    read(body).map_err(|stop| Fault::of(body, stop))
}

fn read(body: &[u8]) -> Result<Option<Object>, Stop> {
    if body.starts_with(b"\xEF\xBB\xBF") {
        let (at, why) = (0, Why::ByteOrderMark);
        return Err(Stop { at, why });
    }
    let text = simdutf8::compat::from_utf8(body).map_err(|error| {
        let (at, why) = (error.valid_up_to(), Why::NotUtf8);
        Stop { at, why }
    })?;
    let mut place = Place::first(text);
    let first = place.token();
    let start = place.at;
    match first {
        None => return Ok(None),
        Some(b'{') => {}
        Some(_) => return Err(place.stop(Why::NotAnObject)),
    }
    let mut members = Members {
        keys: Vec::with_capacity(KEYS_EXPECTED),
        app_id: None,
    };
    values(&mut place, &mut members)?;
    let end = place.at;
    if place.token().is_some() {
        return Err(place.stop(Why::Trailing));
    }
    members.refuse_duplicates()?;
    Ok(Some(Object {
        span: start..end,
        empty: members.keys.is_empty(),
        app_id: members.app_id,
    }))
}

/// From the first byte of a value to the end of the outermost one. Not recursive: a deep body can't use up the stack.
fn values<'a>(place: &mut Place<'a>, members: &mut Members<'a>) -> Result<(), Stop> {
    let mut nesting = Nesting::none();
    loop {
        match place.peek() {
            Some(b'"') => {
                place.string()?;
            }
            Some(b'-' | b'0'..=b'9') => place.number()?,
            Some(open @ (b'{' | b'[')) => {
                let closing = if open == b'{' { b'}' } else { b']' };
                if !nesting.open(closing) {
                    return Err(place.stop(Why::TooDeep));
                }
                place.at += 1;
                if place.token() == Some(closing) {
                    place.at += 1;
                    nesting.close();
                } else {
                    if closing == b'}' {
                        member(place, members, nesting.depth, Expected::KeyOrEnd)?;
                    }
                    continue;
                }
            }
            Some(b't') => place.word(Word::True)?,
            Some(b'f') => place.word(Word::False)?,
            Some(b'n') => place.word(Word::Null)?,
            _ => return Err(place.expected(Expected::Value)),
        }
        // A value has ended: close what ends with it, up to the comma before the next one.
        loop {
            let Some(closing) = nesting.innermost else {
                return Ok(());
            };
            match place.token() {
                Some(b',') => {
                    place.at += 1;
                    place.token();
                    if closing == b'}' {
                        member(place, members, nesting.depth, Expected::Key)?;
                    }
                    break;
                }
                Some(byte) if byte == closing => {
                    place.at += 1;
                    nesting.close();
                }
                _ if closing == b'}' => return Err(place.expected(Expected::CommaOrBrace)),
                _ => return Err(place.expected(Expected::CommaOrBracket)),
            }
        }
    }
}

/// A member's key and colon, up to the first byte of its value. It's inlined, as all that moves a place over what bodies are mostly made of:
/// so the place stays in registers, which makes the pass a quarter faster.
#[inline(always)]
fn member<'a>(
    place: &mut Place<'a>,
    members: &mut Members<'a>,
    depth: usize,
    expected: Expected,
) -> Result<(), Stop> {
    let quote = place.at;
    if place.peek() != Some(b'"') {
        return Err(place.expected(expected));
    }
    let escaped = place.string()?;
    let end = place.at;
    if place.token() != Some(b':') {
        return Err(place.expected(Expected::Colon));
    }
    place.at += 1;
    place.token();
    if depth == 1 {
        let key = Text {
            span: quote + 1..end - 1,
            escaped,
        };
        members.see(&key, *place)?;
    }
    Ok(())
}

/// The containers that are open, each as the byte that closes it.
struct Nesting {
    outer: [u8; DEPTH_MAX],
    depth: usize,
    innermost: Option<u8>,
}

impl Nesting {
    fn none() -> Self {
        Self {
            outer: [0; DEPTH_MAX],
            depth: 0,
            innermost: None,
        }
    }

    fn open(&mut self, closing: u8) -> bool {
        let Some(outer) = self.outer.get_mut(self.depth) else {
            return false;
        };
        *outer = self.innermost.replace(closing).unwrap_or_default();
        self.depth += 1;
        true
    }

    fn close(&mut self) {
        self.depth -= 1;
        self.innermost = (self.depth > 0).then(|| self.outer[self.depth]);
    }
}

/// A string's text between its quotes.
struct Text {
    span: Range<usize>,
    escaped: bool,
}

/// The members of the top level.
struct Members<'a> {
    /// Decoded keys and where each stands.
    keys: Vec<(Cow<'a, [u8]>, usize)>,
    app_id: Option<Range<usize>>,
}

impl<'a> Members<'a> {
    /// The next key, with the place of its value.
    fn see(&mut self, key: &Text, value: Place<'a>) -> Result<(), Stop> {
        let at = key.span.start - 1;
        if self.keys.len() == KEYS_MAX {
            let why = Why::TooManyKeys;
            return Err(Stop { at, why });
        }
        let raw = &value.text[key.span.clone()];
        if raw == "appId" {
            self.app_id = Some(app_id(value)?);
        } else if reads_as_app_id(raw, key.escaped) {
            let why = Why::LooksLikeAppId;
            return Err(Stop { at, why });
        }
        let key = if key.escaped {
            Cow::Owned(decoded(raw))
        } else {
            Cow::Borrowed(raw.as_bytes())
        };
        self.keys.push((key, at));
        Ok(())
    }

    fn refuse_duplicates(&mut self) -> Result<(), Stop> {
        // Equal keys end up side by side, in the order in which they stand in the body.
        self.keys.sort_unstable();
        let second = self
            .keys
            .windows(2)
            .filter(|pair| pair[0].0 == pair[1].0)
            .map(|pair| pair[1].1)
            .min();
        let why = Why::DuplicateKey;
        second.map_or(Ok(()), |at| Err(Stop { at, why }))
    }
}

/// The text of `appId`, whose value stands here.
fn app_id(mut value: Place<'_>) -> Result<Range<usize>, Stop> {
    let start = value.at;
    let not_plain = value.stop(Why::AppIdNotPlain);
    if value.peek() != Some(b'"') || value.string()? {
        return Err(not_plain);
    }
    Ok(start + 1..value.at - 1)
}

/// A place in a body. Whoever moves it over something stops where that breaks off.
#[derive(Clone, Copy)]
struct Place<'a> {
    text: &'a str,
    at: usize,
    block: Block,
}

impl<'a> Place<'a> {
    fn first(text: &'a str) -> Self {
        Self {
            text,
            at: 0,
            block: Block::of(text.as_bytes(), 0),
        }
    }
}

impl Place<'_> {
    /// Over a string, from quote to quote, and whether there are escapes in it. Lone surrogates in them pass: they are the caller's own
    /// (promise B3).
    #[inline(always)]
    fn string(&mut self) -> Result<bool, Stop> {
        self.at += 1;
        let mut escaped = false;
        loop {
            self.over(|block| block.special);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(escaped);
                }
                Some(b'\\') => {
                    escaped = true;
                    self.at = self.escape_end()?;
                }
                Some(_) => return Err(self.stop(Why::ControlCharacter)),
                None => return Err(self.expected(Expected::ClosingQuote)),
            }
        }
    }

    /// Up to the next byte that's marked.
    #[inline(always)]
    fn over(&mut self, marked: impl Fn(&Block) -> u64) {
        while self.at < self.text.len() {
            let number = self.at / Block::SIZE;
            if number != self.block.number {
                self.block = Block::of(self.text.as_bytes(), number);
            }
            let ahead = marked(&self.block) >> (self.at % Block::SIZE);
            if ahead != 0 {
                self.at += ahead.trailing_zeros() as usize;
                return;
            }
            self.at = (number + 1) * Block::SIZE;
        }
        self.at = self.text.len();
    }

    /// Where an escape ends that begins here.
    fn escape_end(self) -> Result<usize, Stop> {
        let rest = &self.rest()[1..];
        let hex_digits = match rest.first() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 0,
            Some(b'u') => 4,
            _ => return Err(self.ahead(1).expected(Expected::Escape)),
        };
        let digits = rest[1..].iter().take(hex_digits);
        let right = digits.take_while(|byte| byte.is_ascii_hexdigit()).count();
        let end = self.ahead(2 + right);
        if right < hex_digits {
            return Err(end.expected(Expected::HexDigit));
        }
        Ok(end.at)
    }

    fn number(&mut self) -> Result<(), Stop> {
        let start = *self;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
            if self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
                return Err(self.stop(Why::LeadingZero));
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
        if self.at - start.at > NUMBER_LENGTH_MAX {
            return Err(start.stop(Why::NumberTooLong));
        }
        Ok(())
    }

    #[inline(always)]
    fn digits(&mut self) -> Result<(), Stop> {
        let start = self.at;
        self.over(|block| block.other_than_digits);
        if self.at == start {
            return Err(self.expected(Expected::Digit));
        }
        Ok(())
    }

    fn word(&mut self, word: Word) -> Result<(), Stop> {
        for expected in word.text().bytes() {
            if self.peek() != Some(expected) {
                return Err(self.expected(Expected::Word(word)));
            }
            self.at += 1;
        }
        Ok(())
    }

    /// Over white space, and the byte behind it.
    fn token(&mut self) -> Option<u8> {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
        self.peek()
    }

    fn peek(self) -> Option<u8> {
        self.rest().first().copied()
    }

    fn rest(&self) -> &[u8] {
        self.text.as_bytes().get(self.at..).unwrap_or_default()
    }

    fn ahead(self, bytes: usize) -> Self {
        Self {
            at: self.at + bytes,
            ..self
        }
    }

    fn expected(self, expected: Expected) -> Stop {
        self.stop(Why::Expected(expected))
    }

    fn stop(self, why: Why) -> Stop {
        Stop { at: self.at, why }
    }
}

/// A stretch of a body, in which a bit stands for each byte: what is searched for is found without looking at each.
#[derive(Clone, Copy)]
struct Block {
    /// How many stand before it.
    number: usize,
    /// The bytes that mean something in a string: quotes, backslashes and control characters.
    special: u64,
    other_than_digits: u64,
}

impl Block {
    const SIZE: usize = 64;

    /// Behind the end of the body all bytes are NULs.
    fn of(body: &[u8], number: usize) -> Self {
        let rest = &body[number * Self::SIZE..];
        let bytes = rest.first_chunk().copied().unwrap_or_else(|| {
            let mut last = [0; Self::SIZE];
            last[..rest.len()].copy_from_slice(rest);
            last
        });
        let [quote, backslash, control_end] = [b'"', b'\\', 0x20].map(u8x16::splat);
        let [zero, nine] = [b'0', b'9'].map(u8x16::splat);
        Self {
            number,
            special: bits(&bytes, |bytes| {
                bytes.simd_lt(control_end) | bytes.simd_eq(quote) | bytes.simd_eq(backslash)
            }),
            other_than_digits: bits(&bytes, |bytes| bytes.simd_lt(zero) | bytes.simd_gt(nine)),
        }
    }
}

fn bits(bytes: &[u8; Block::SIZE], are: impl Fn(u8x16) -> u8x16) -> u64 {
    let sixteens = bytes.as_chunks().0.iter().rev();
    sixteens.fold(0, |bits, sixteen| {
        bits << 16 | u64::from(are(u8x16::new(*sixteen)).to_bitmask())
    })
}

#[cfg(test)]
mod tests {
    use super::Block;
    use super::DEPTH_MAX;
    use super::KEYS_MAX;
    use super::Object;
    use super::scan;
    use crate::payload::fault::Problem;
    use proptest::prelude::*;
    use serde::de::IgnoredAny;

    #[test]
    fn bytes_together_are_as_good_as_one_by_one() {
        let body: Vec<_> = (0..=u8::MAX).chain(0..=u8::MAX).skip(7).collect();
        for number in 0..body.len() / Block::SIZE + 1 {
            let block = Block::of(&body, number);
            for nth in 0..Block::SIZE {
                // Behind the end there are NULs.
                let byte = body.get(number * Block::SIZE + nth).copied().unwrap_or(0);
                let (special, other) =
                    (block.special >> nth & 1, block.other_than_digits >> nth & 1);
                assert_eq!(
                    special == 1,
                    matches!(byte, b'"' | b'\\' | ..0x20),
                    "{byte}"
                );
                assert_eq!(other == 1, !byte.is_ascii_digit(), "{byte}");
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
        let is_compressed = |body| {
            let hint = scan(body).expect_err("not UTF-8").hint;
            hint.is_some_and(|hint| hint.contains("compressed"))
        };
        assert!(is_compressed(b"\x1f\x8b\x08"));
        assert!(!is_compressed(b"\x1fx\x8b"));
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
        assert!(scan(nested(DEPTH_MAX).as_bytes()).is_ok());
        assert_eq!(
            scan(nested(DEPTH_MAX + 1).as_bytes())
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

        /// Bytes are looked at in blocks: where these begin says nothing of a body, nor how long its texts and numbers are.
        #[test]
        fn where_a_body_stands_makes_no_difference(before in 0usize..70, body in "\\{\"[a-z]{0,70}\": ?([0-9]{1,70}|\"[a-z]{0,70}(\\\\(n|u00e9|x|u0g))?[é\t]?\"?)(,\"b\":\\[1\\])?\\}?") {
            let moved = " ".repeat(before) + &body;
            match (scan(body.as_bytes()), scan(moved.as_bytes())) {
                (Ok(Some(here)), Ok(Some(there))) => prop_assert_eq!(there.span, here.span.start + before..here.span.end + before),
                (Err(here), Err(there)) => prop_assert_eq!((there.offset, there.problem), (here.offset + before, here.problem)),
                (here, there) => prop_assert!(false, "{here:?} {there:?}"),
            }
            let theirs = serde_json::from_str::<IgnoredAny>(&body).is_ok();
            prop_assert_eq!(scan(body.as_bytes()).is_ok(), theirs, "{}", body);
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
