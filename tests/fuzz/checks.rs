//! What holds for any bytes at all: one check for each reader of bytes that others wrote. The fuzz targets and `tests/fuzzing.rs` share
//! them. Whatever they compare with is read by their own few lines or by another library, never by the gateway's code.

use std::fmt;
use std::io::Read;
use std::net::Ipv6Addr;
use std::sync::LazyLock;

use bytes::Bytes;
use flate2::read::{DeflateEncoder, GzEncoder, ZlibEncoder};
use flate2::{Compression, Crc, Decompress, FlushDecompress, Status};
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HOST};
use http::{HeaderMap, HeaderValue, StatusCode, Uri, Version};
use kybio_gateway::account::AppId;
use kybio_gateway::answers::{Answer, AnswerClass, Answers};
use kybio_gateway::payload::fault::{Fault, Problem};
use kybio_gateway::payload::{self, Draft, Whole};
use kybio_gateway::policy::path::operation_path;
use kybio_gateway::reply;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use serde_json::error::Category;
use serde_json::value::RawValue;

/// The account that bodies are addressed to, as the samples have it.
const APP_ID: &str = "abcdefghijklmn";

/// What JSON knows as white space (RFC 8259 section 2).
const WHITE_SPACE: [char; 4] = [' ', '\t', '\n', '\r'];

// ---- Request bodies

/// Any bytes as a request's body: taken (true) or refused for a reason that holds, and spliced without another byte changed.
pub fn body(bytes: &[u8]) -> bool {
    match checked(bytes) {
        Ok(draft) => {
            accepted(bytes, draft);
            true
        }
        Err(fault) => {
            refused(bytes, &fault);
            false
        }
    }
}

fn checked(bytes: &[u8]) -> Result<Draft, Fault> {
    payload::check(Whole::in_one_piece(Bytes::copy_from_slice(bytes)))
}

fn app_id(text: &str) -> AppId {
    AppId::new(text).expect("an appId")
}

fn accepted(bytes: &[u8], draft: Draft) {
    let text = std::str::from_utf8(bytes).expect("only UTF-8 passes");
    let object = text.trim_matches(WHITE_SPACE);
    if object.is_empty() {
        assert_eq!(draft.app_id(), None);
        let sent = draft.address(&app_id(APP_ID)).expect("it names no account");
        assert_eq!(
            sent.bytes(),
            format!("{{\"appId\":\"{APP_ID}\"}}").as_bytes()
        );
        return;
    }
    assert_eq!(reading(bytes), Reading::Whole, "only we accept it");
    let members = members(text);
    assert!(members.len() <= 1_000, "{} members", members.len());
    assert!(depth(text) <= 128, "too deep");
    assert!(longest_number(text) <= 1_000, "a number is too long");
    assert_eq!(first_repeated(&members), None, "a key stands twice");
    for member in &members {
        assert!(
            member.written == "\"appId\"" || !is_app_id_at_least(&member.key),
            "{} could be taken for appId",
            member.written
        );
    }
    let own = members.iter().find(|member| member.key == b"appId");
    let named = own.map(|member| plain_string(member.value).expect("appId is a plain string"));
    assert_eq!(draft.app_id(), named);
    let Some(named) = named else {
        spliced(object, &members, draft);
        return;
    };
    let good = (1..=64).contains(&named.len())
        && named
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    assert_eq!(AppId::new(named).is_ok(), good, "{named}");
    // Another's is refused, at its first byte; its own passes as it is.
    if named != APP_ID {
        let offset = own.expect("it has one").value_at + 1;
        let foreign = draft.address(&app_id(APP_ID));
        assert!(
            matches!(foreign, Err(payload::Error::ForeignAppId { offset: at }) if at == offset),
            "{foreign:?}"
        );
    }
    if good {
        let draft = checked(bytes).expect("it passed before");
        let sent = draft
            .address(&app_id(named))
            .expect("it names this account");
        assert_eq!(sent.bytes(), object.as_bytes());
    }
}

/// `appId` goes in as the first member, and nothing else changes: by their own splice, and as another parser reads it.
fn spliced(object: &str, members: &[Member<'_>], draft: Draft) {
    let payload = draft.address(&app_id(APP_ID)).expect("it names no account");
    let comma = if members.is_empty() { "" } else { "," };
    let expected = format!("{{\"appId\":\"{APP_ID}\"{comma}{}", &object[1..]);
    assert_eq!(payload.bytes(), expected.as_bytes());
    let seen = self::members(&expected);
    let (first, others) = seen.split_first().expect("appId is there");
    assert_eq!(
        (first.key.as_slice(), first.value),
        (&b"appId"[..], "\"abcdefghijklmn\"")
    );
    let same = |(a, b): (&Member<'_>, &Member<'_>)| a.written == b.written && a.value == b.value;
    assert!(others.len() == members.len() && others.iter().zip(members).all(same));
    // The limit is on what callers write; with appId there may be one member more.
    if seen.len() <= 1_000 {
        let again = checked(payload.bytes()).expect("what was sent would pass again");
        assert_eq!(again.app_id(), Some(APP_ID));
        let sent = again
            .address(&app_id(APP_ID))
            .expect("it names this account");
        assert_eq!(sent.bytes(), payload.bytes());
    }
}

/// A refusal names the first byte that can't be accepted, and is right about it.
fn refused(bytes: &[u8], fault: &Fault) {
    let at = fault.offset;
    assert!(at <= bytes.len(), "{fault:?}");
    let lines: Vec<_> = bytes[..at].split(|byte| *byte == b'\n').collect();
    let column = lines.last().map_or(0, |line| line.len()) + 1;
    assert_eq!((fault.line, fault.column), (lines.len(), column));
    assert!(!fault.to_string().contains(char::is_control), "{fault}");
    if fault.problem == Problem::ByteOrderMark {
        assert!(bytes.starts_with(b"\xef\xbb\xbf") && at == 0);
        return;
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            assert_eq!(
                (&fault.problem, at),
                (&Problem::NotUtf8, error.valid_up_to())
            );
            return;
        }
    };
    let (before, rest) = text.split_at(at);
    let whole = reading(bytes);
    match &fault.problem {
        Problem::NotUtf8 | Problem::ByteOrderMark => panic!("it's UTF-8: {fault:?}"),
        Problem::NotAnObject(_) => {
            assert!(before.trim_matches(WHITE_SPACE).is_empty(), "{fault:?}");
            assert!(
                !rest.starts_with('{') && !rest.starts_with(WHITE_SPACE),
                "{fault:?}"
            );
        }
        Problem::Trailing(_) => {
            assert_eq!(reading(before.as_bytes()), Reading::Whole, "{fault:?}");
            assert!(
                whole == Reading::Wrong && !rest.starts_with(WHITE_SPACE),
                "{fault:?}"
            );
        }
        Problem::Unexpected(..) => {
            could_go_on(before);
            assert_ne!(whole, Reading::Whole, "only we refuse it: {fault:?}");
            if let Some(character) = rest.chars().next() {
                let end = at + character.len_utf8();
                // Another reader takes the four digits of an escape at once.
                let in_escape = before.rfind("\\u").is_some_and(|start| at - start < 6);
                let more = if in_escape { "0000" } else { "" };
                let shown = reading(format!("{}{more}", &text[..end]).as_bytes());
                assert_eq!(shown, Reading::Wrong, "it could go on: {fault:?}");
            }
        }
        Problem::TooDeep => {
            could_go_on(before);
            assert!(
                rest.starts_with(['{', '[']) && depth(before) == 128,
                "{fault:?}"
            );
        }
        Problem::NumberTooLong => {
            could_go_on(before);
            let number = rest.bytes().take_while(is_of_number).count();
            assert!(number > 1_000, "{fault:?}");
        }
        Problem::TooManyKeys => {
            could_go_on(before);
            let closed = format!("{before}\"\":0}}");
            assert_eq!(members(&closed).len(), 1_001, "{fault:?}");
        }
        Problem::AppIdNotPlain => {
            could_go_on(before);
            let closed = format!("{before}0}}");
            let member = members(&closed).pop().expect("appId");
            assert_eq!(member.written, "\"appId\"");
            assert_eq!(plain_string(rest), None, "{fault:?}");
        }
        Problem::LooksLikeAppId => {
            could_go_on(before);
            let mut keys = serde_json::Deserializer::from_str(rest).into_iter::<Key>();
            let Key(key) = keys.next().expect("a key").expect("a key");
            let written = &rest[..keys.byte_offset()];
            assert!(
                written != "\"appId\"" && is_app_id_at_most(&key),
                "{written}"
            );
        }
        Problem::DuplicateKey => {
            assert_eq!(whole, Reading::Whole);
            assert_eq!(first_repeated(&members(text)), Some(at), "{fault:?}");
        }
    }
}

/// How another parser reads a body, all in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// One object.
    Whole,
    /// What could become one.
    CutOff,
    Wrong,
}

fn reading(bytes: &[u8]) -> Reading {
    let start = bytes.trim_ascii_start().first();
    match serde_json::from_slice::<IgnoredAny>(bytes).map_err(|error| error.classify()) {
        Ok(_) if start == Some(&b'{') => Reading::Whole,
        Err(Category::Eof) if start.is_none_or(|start| *start == b'{') => Reading::CutOff,
        _ => Reading::Wrong,
    }
}

/// What stands before the first wrong byte isn't wrong by itself.
fn could_go_on(before: &str) {
    // Another reader calls a number wrong that ends with its sign, its point or its exponent's sign: a digit makes it good.
    let goes_on = |more: &str| reading(format!("{before}{more}").as_bytes()) == Reading::CutOff;
    assert!(
        goes_on("") || goes_on("0"),
        "an earlier byte is wrong: {before}"
    );
}

/// A member of the top level, its key as another parser decodes it and as it's written.
struct Member<'a> {
    key: Vec<u8>,
    key_at: usize,
    written: &'a str,
    value: &'a str,
    value_at: usize,
}

/// The members of a whole object.
fn members(text: &str) -> Vec<Member<'_>> {
    let Entries(entries) = serde_json::from_str(text).expect("an object");
    let mut end = 0;
    let member = |(Key(key), value): (Key, &'_ RawValue)| {
        let value = value.get();
        let value_at = value.as_ptr() as usize - text.as_ptr() as usize;
        let before = text[end..value_at].trim_end_matches(WHITE_SPACE);
        let before = before.strip_suffix(':').expect("a colon");
        let opened = before.trim_start_matches(WHITE_SPACE);
        let opened = opened.strip_prefix(['{', ',']).expect("a comma");
        let written = opened.trim_matches(WHITE_SPACE);
        let key_at = written.as_ptr() as usize - text.as_ptr() as usize;
        end = value_at + value.len();
        Member {
            key,
            key_at,
            written,
            value: &text[value_at..end],
            value_at,
        }
    };
    entries.into_iter().map(member).collect()
}

/// Where the first key stands that has stood before.
fn first_repeated(members: &[Member<'_>]) -> Option<usize> {
    let mut seen = std::collections::HashSet::new();
    let repeated = members.iter().find(|member| !seen.insert(&member.key));
    repeated.map(|member| member.key_at)
}

/// The text of a string without escapes, if that's what stands there.
fn plain_string(value: &str) -> Option<&str> {
    let (text, _) = value.strip_prefix('"')?.split_once('"')?;
    (!text.contains('\\')).then_some(text)
}

/// A key as bytes, lone surrogates as three of them: serde_json's own decoding.
struct Key(Vec<u8>);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl Visitor<'_> for Read {
            type Value = Key;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Key, E> {
                Ok(Key(bytes.to_vec()))
            }
        }
        deserializer.deserialize_bytes(Read)
    }
}

/// Every member of an object, however often its key stands there.
struct Entries<'a>(Vec<(Key, &'a RawValue)>);

impl<'de> Deserialize<'de> for Entries<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Entries<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries<'de>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Read)
    }
}

/// How deep JSON nests at its deepest, also if it's cut off.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0, 0);
    outside_strings(text, |byte| match byte {
        b'{' | b'[' => {
            depth += 1;
            deepest = deepest.max(depth);
        }
        b'}' | b']' => depth -= 1,
        _ => {}
    });
    deepest
}

fn longest_number(text: &str) -> usize {
    let (mut length, mut longest) = (0, 0);
    outside_strings(text, |byte| {
        // The letters of `true` and `false` make runs of one.
        length = if is_of_number(&byte) { length + 1 } else { 0 };
        longest = longest.max(length);
    });
    longest
}

fn is_of_number(byte: &u8) -> bool {
    byte.is_ascii_digit() || b"+-.eE".contains(byte)
}

fn outside_strings(text: &str, mut see: impl FnMut(u8)) {
    let (mut inside, mut escaped) = (false, false);
    for byte in text.bytes() {
        match (inside, escaped, byte) {
            (true, true, _) => escaped = false,
            (true, false, b'\\') => escaped = true,
            (_, _, b'"') => inside = !inside,
            (true, ..) => {}
            (false, ..) => see(byte),
        }
    }
}

/// Letter case and width folded; of what is left, `keep` says.
fn folded(key: &[u8], keep: impl Fn(char) -> bool) -> String {
    let text = String::from_utf8_lossy(key);
    let narrow = |character: char| match character as u32 {
        code @ 0xff01..=0xff5e => char::from_u32(code - 0xfee0).expect("ASCII"),
        _ => character,
    };
    let kept = text
        .chars()
        .map(narrow)
        .filter(|character| keep(*character));
    let folded = kept
        .flat_map(char::to_uppercase)
        .flat_map(char::to_lowercase);
    // A dot above is what the Turkish İ leaves.
    folded.filter(|character| *character != '\u{307}').collect()
}

/// What the gateway must refuse: a key that's `appId` but for letter case, spaces, control and invisible characters, `_` and `-`.
fn is_app_id_at_least(key: &[u8]) -> bool {
    let dropped = |character: char| {
        let invisible = "\u{ad}\u{200b}\u{200c}\u{200d}\u{200e}\u{200f}\u{2060}\u{feff}\u{fe0e}\u{fe0f}\u{fffd}";
        let plain = character.is_whitespace() || character.is_control();
        plain || "_-".contains(character) || invisible.contains(character)
    };
    let until_nul = key.split(|byte| *byte == 0).next().unwrap_or_default();
    [key, until_nul]
        .iter()
        .any(|key| folded(key, |character| !dropped(character)) == "appid")
}

/// What it may refuse at most: nothing whose letters and digits aren't those of `appId`.
fn is_app_id_at_most(key: &[u8]) -> bool {
    let until_nul = key.split(|byte| *byte == 0).next().unwrap_or_default();
    // Hangul's fillers count as letters.
    let keep = |character: char| {
        character.is_alphanumeric() && !"\u{115f}\u{1160}\u{3164}\u{ffa0}".contains(character)
    };
    [key, until_nul]
        .iter()
        .any(|key| folded(key, keep) == "appid")
}

// ---- Paths

/// A request target in the first line, and a `Host` field in each of the others. True if it's an operation on HTTP/1.1.
pub fn path(input: &[u8]) -> bool {
    let mut lines = input.split(|byte| *byte == b'\n');
    let target = lines.next().unwrap_or_default();
    let Ok(uri) = Uri::try_from(target) else {
        return false;
    };
    let hosts: Vec<_> = lines.take(3).collect();
    let mut headers = HeaderMap::new();
    for host in &hosts {
        let Ok(host) = HeaderValue::from_bytes(host) else {
            return false;
        };
        headers.append(HOST, host);
    }
    let (authority, path) = split(target);
    let tried = |version| routed(&uri, &headers, version, authority, path, &hosts);
    let [_, found, _] = [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2].map(tried);
    // As HTTP/2 has it: the host beside the path, and no field.
    if authority.is_none()
        && let Some(&host) = hosts.first()
        && let Ok(uri) = Uri::builder()
            .scheme("https")
            .authority(host)
            .path_and_query(target)
            .build()
    {
        routed(
            &uri,
            &HeaderMap::new(),
            Version::HTTP_2,
            Some(host),
            path,
            &[],
        );
    }
    found
}

/// One host, and a path that nobody could read in two ways; or else a refusal. True if it's an operation.
fn routed(
    uri: &Uri,
    headers: &HeaderMap,
    version: Version,
    authority: Option<&[u8]>,
    path: &[u8],
    hosts: &[&[u8]],
) -> bool {
    let one_host = match (hosts, authority) {
        ([host], Some(authority)) => is_host(host) && host.eq_ignore_ascii_case(authority),
        ([host], None) => is_host(host),
        ([], Some(authority)) => version == Version::HTTP_2 && is_host(authority),
        ([], None) => version == Version::HTTP_10,
        _ => false,
    };
    let found = operation_path(uri, headers, version);
    let scheme = uri.scheme_str().map(str::to_ascii_lowercase);
    let is_http2 = version == Version::HTTP_2;
    let good_scheme = match scheme.as_deref() {
        Some("https") => true,
        Some("http") => !is_http2,
        Some(_) => false,
        None => !is_http2 || authority.is_none(),
    };
    let good = one_host && good_scheme && (path.is_empty() || path == b"/" || is_regular(path));
    assert_eq!(found.is_ok(), good, "{found:?} {version:?}");
    let Ok(found) = found else {
        return false;
    };
    let small = String::from_utf8(path.to_ascii_lowercase()).expect("ASCII");
    let prefixes = ["/openapi/v1/", "/pospal-api2/openapi/v1/"];
    let Some(operation) = found else {
        assert!(
            prefixes.iter().all(|prefix| !small.starts_with(prefix)),
            "{small}"
        );
        return false;
    };
    assert!(path.ends_with(operation.as_bytes()), "{operation}");
    let operation = operation.to_ascii_lowercase();
    assert!(
        prefixes
            .iter()
            .any(|prefix| format!("{prefix}{operation}") == small),
        "{operation}"
    );
    assert!(
        !operation.is_empty() && !operation.ends_with(['/', '.']),
        "{operation}"
    );
    let legal =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._/-".contains(&byte);
    assert!(operation.bytes().all(legal), "{operation}");
    let odd = |segment: &str| ["", ".", ".."].contains(&segment);
    assert!(!operation.split('/').any(odd), "{operation}");
    // Whatever letter case it's written in, and through either prefix, it's the same.
    for prefix in prefixes {
        for target in [
            format!("{prefix}{operation}"),
            format!("{prefix}{operation}").to_uppercase(),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_static("gateway.test"));
            let uri = target.parse().expect("a path");
            let again = operation_path(&uri, &headers, Version::HTTP_11);
            let again = again.map(|again| again.map(str::to_ascii_lowercase));
            assert_eq!(again, Ok(Some(operation.clone())), "{target}");
        }
    }
    true
}

/// The authority that a target names, and its path with all that follows; a fragment is dropped before the gateway sees it.
fn split(target: &[u8]) -> (Option<&[u8]>, &[u8]) {
    let fragment = target.iter().position(|byte| *byte == b'#');
    let target = &target[..fragment.unwrap_or(target.len())];
    if target.starts_with(b"/") || target == b"*" {
        return (None, target);
    }
    let scheme = target.windows(3).position(|window| window == b"://");
    let named = &target[scheme.map_or(0, |at| at + 3)..];
    let path = named.iter().position(|byte| b"/?".contains(byte));
    let (authority, path) = named.split_at(path.unwrap_or(named.len()));
    (Some(authority), path)
}

/// Segments of letters, digits, `-`, `_` and `.`, none of them empty or dots alone, the last without a dot at its end.
fn is_regular(path: &[u8]) -> bool {
    let legal = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    let segment = |segment: &[u8]| {
        !segment.is_empty() && segment != b"." && segment != b".." && segment.iter().all(legal)
    };
    path.strip_prefix(b"/")
        .is_some_and(|rest| rest.split(|byte| *byte == b'/').all(segment))
        && !path.ends_with(b".")
}

/// A name or an address with perhaps a port: no user, no list, no path.
fn is_host(text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else {
        return false;
    };
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => (text, ""),
    };
    let name = |character: char| character.is_ascii_alphanumeric() || "-._~%".contains(character);
    let address = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let good = match address {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(name),
    };
    good && port.chars().all(|character| character.is_ascii_digit())
}

// ---- Replies

/// What a reply may unpack to, where an input names no smaller limit.
const BYTES_MAX: usize = 256 * 1024;

/// A reply in six parts, of which the first five end with a line feed: HTTP status, `Content-Encoding` (with `|` between several), the
/// caller's `Accept-Encoding`, how many bytes it may unpack to, a number, body. Where the number is one, the body is packed first, and
/// perhaps mistreated: the number says how. True if it's an answer.
pub fn reply(input: &[u8]) -> bool {
    let parts: Vec<_> = input.splitn(6, |byte| *byte == b'\n').collect();
    let [status, codings, accept, bytes_max, packing, body] = parts[..] else {
        return false;
    };
    let (Ok(status), Ok(accept)) = (
        StatusCode::from_bytes(status),
        HeaderValue::from_bytes(accept),
    ) else {
        return false;
    };
    let number = |text| str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    let tried = Tried {
        status,
        accept,
        bytes_max: number(bytes_max).unwrap_or(BYTES_MAX).min(BYTES_MAX),
    };
    if let Some(number) = number(packing) {
        return packed(&tried, body, number);
    }
    let codings = codings
        .split(|byte| *byte == b'|')
        .map(HeaderValue::from_bytes);
    let mut headers = HeaderMap::new();
    for coding in codings {
        let Ok(coding) = coding else {
            return false;
        };
        headers.append(CONTENT_ENCODING, coding);
    }
    // Without the field, as most replies are.
    tried.read(&HeaderMap::new(), body);
    tried.read(&headers, body).is_some()
}

fn packed(tried: &Tried, body: &[u8], number: usize) -> bool {
    let (first, second) = body.split_at(body.len() / 2);
    let level = Compression::fast();
    // How it's packed, and whether it's in one piece of which nothing can be missing.
    let (coding, mut packed, one_piece) = match number % 6 {
        0 => ("gzip", gzip(body), true),
        1 => ("deflate", all(ZlibEncoder::new(body, level)), true),
        2 => ("deflate", all(DeflateEncoder::new(body, level)), true),
        3 => ("gzip", [gzip(first), gzip(second)].concat(), false),
        4 => ("gzip", [&gzip(body), &SPACES[..]].concat(), false),
        _ => ("x-gzip", [&gzip(body), &b"and more"[..]].concat(), false),
    };
    // From the last byte on towards the first.
    let last = packed.len() - 1;
    let place = last - last * (number / 24 % 8) / 8;
    match number / 6 % 4 {
        0 | 1 => {}
        2 => packed.truncate(place),
        _ => packed[place] ^= 1 << (number / 192 % 8),
    }
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding));
    let seen = tried.read(&headers, &packed);
    match number / 6 % 4 {
        0 | 1 if one_piece && tried.status == StatusCode::OK => {
            let fits = body.len() <= tried.limit(packed.len());
            let expected = word(body).filter(|_| fits).map(|_| body);
            assert_eq!(seen.as_deref(), expected, "{coding}");
        }
        2 => assert!(seen.is_none() || !one_piece, "some of it is missing"),
        _ => {}
    }
    seen.is_some()
}

/// White space that unpacks to some 900 times its size, and to less than [`BYTES_MAX`].
static SPACES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let spaces = [b' '; 192 * 1024];
    all(GzEncoder::new(&spaces[..], Compression::best()))
});

fn gzip(bytes: &[u8]) -> Vec<u8> {
    all(GzEncoder::new(bytes, Compression::fast()))
}

fn all(mut reader: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).expect("memory");
    bytes
}

/// What a reply is tried with.
struct Tried {
    status: StatusCode,
    accept: HeaderValue,
    bytes_max: usize,
}

impl Tried {
    /// How large a reply of so many bytes may become: 200 times as large, or 64 KiB.
    fn limit(&self, packed: usize) -> usize {
        self.bytes_max.min((packed * 200).max(64 * 1024))
    }

    /// It's KYBIO's word exactly when it should be, with its verdict, and its bytes are those that came. Gives the unpacked ones.
    fn read(&self, headers: &HeaderMap, body: &[u8]) -> Option<Vec<u8>> {
        let came = Bytes::copy_from_slice(body);
        let read = reply::read(self.status, headers, came, self.bytes_max, &answers());
        let refusals = [400, 401, 403, 404, 405, 413, 415, 429];
        if self.status != StatusCode::OK {
            let error = read.expect_err("HTTP says no");
            let refusal = refusals.contains(&self.status.as_u16());
            assert_eq!(
                matches!(error, reply::Error::Refused(..)),
                refusal,
                "{error}"
            );
            assert_eq!(error.upstream_status(), Some(self.status));
            return None;
        }
        let limit = self.limit(body.len());
        let coding = coding(headers);
        let plain = match coding {
            Some("identity") => Some(body.to_vec()),
            Some("gzip") => gunzip(body, limit),
            Some("deflate") => inflate(body, limit),
            _ => None,
        };
        let word = plain.as_deref().and_then(word);
        let reply = match (read, &word) {
            (Ok(reply), Some(_)) => reply,
            (Ok(reply), None) => panic!("it's no answer, but read as {:?}", reply.verdict()),
            (Err(error), Some(_)) => panic!("it's an answer, but {error:?}"),
            (Err(_), None) => return None,
        };
        let (plain, word, coding) = (plain?, word?, coding?);
        word.is_that_of(&reply, &plain);
        let mut caller = HeaderMap::new();
        let (bytes, encoding) = reply.body_for(&caller);
        assert_eq!(
            (&bytes[..], encoding.token()),
            (&plain[..], None),
            "for one that takes nothing"
        );
        caller.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip, deflate"));
        let (bytes, encoding) = reply.body_for(&caller);
        assert_eq!(bytes, body, "for one that takes all");
        assert_eq!(encoding.token().unwrap_or("identity"), coding);
        caller.insert(ACCEPT_ENCODING, self.accept.clone());
        let (bytes, encoding) = reply.body_for(&caller);
        match encoding.token() {
            Some(token) => assert!(token == coding && bytes == body),
            None => assert_eq!(bytes, plain),
        }
        if coding != "identity"
            && let Some(takes) = takes(&self.accept, coding)
        {
            assert_eq!(encoding.token().is_some(), takes, "{:?}", self.accept);
        }
        Some(plain)
    }
}

/// Answers as an operator could have configured them.
fn answers() -> Answers {
    let answer = |code, message: Option<&str>, class| Answer {
        code,
        message: message.map(ToOwned::to_owned),
        class,
    };
    Answers::new(vec![
        answer(Some(5004), None, AnswerClass::Duplicate),
        answer(None, Some("busy"), AnswerClass::Transient),
    ])
}

/// The coding that a reply says it has (RFC 9110 section 8.4); none if that isn't one of three.
fn coding(headers: &HeaderMap) -> Option<&'static str> {
    let named: Vec<_> = headers.get_all(CONTENT_ENCODING).iter().collect();
    let [named] = named[..] else {
        return named.is_empty().then_some("identity");
    };
    let named = named.as_bytes().trim_ascii().to_ascii_lowercase();
    let known = [
        ("", "identity"),
        ("identity", "identity"),
        ("gzip", "gzip"),
        ("x-gzip", "gzip"),
        ("deflate", "deflate"),
    ];
    known
        .iter()
        .find(|(name, _)| name.as_bytes() == named)
        .map(|(_, coding)| *coding)
}

/// Whether a caller takes a coding (RFC 9110 section 12.5.3). None if what it says isn't by the book, or says two things.
fn takes(accept: &HeaderValue, coding: &str) -> Option<bool> {
    let text = accept.to_str().ok()?;
    let mut weights = Vec::new();
    for item in text.split(',') {
        let (name, weight) = match item.split_once(';') {
            None => (item, "1"),
            Some((name, weight)) => (
                name,
                weight.trim().strip_prefix(['q', 'Q'])?.strip_prefix('=')?,
            ),
        };
        let (whole, fraction) = weight.split_once('.').unwrap_or((weight, ""));
        let legal = ["0", "1"].contains(&whole)
            && fraction.len() <= 3
            && fraction
                .chars()
                .all(|digit| digit.is_ascii_digit() && (whole == "0" || digit == '0'));
        if !legal {
            return None;
        }
        let name = name.trim().to_ascii_lowercase();
        if name == coding || name == "*" {
            weights.push((
                name == "*",
                weight.contains(|digit| ('1'..='9').contains(&digit)),
            ));
        }
    }
    weights.sort_unstable();
    match weights[..] {
        [] => Some(false),
        [(_, wanted)] | [(false, wanted), (true, _)] => Some(wanted),
        _ => None,
    }
}

/// RFC 1952, read by hand over the bare inflater: at most so many bytes, each member with its sum and length right.
fn gunzip(packed: &[u8], limit: usize) -> Option<Vec<u8>> {
    let (mut plain, mut rest) = (Vec::new(), packed);
    loop {
        let head = gzip_head(rest)?;
        let (member, used) = inflated(&rest[head..], false, limit - plain.len())?;
        let end = rest.get(head + used..head + used + 8)?;
        let mut sum = Crc::new();
        sum.update(&member);
        let trailer = [sum.sum().to_le_bytes(), (member.len() as u32).to_le_bytes()].concat();
        if end != trailer {
            return None;
        }
        plain.extend(member);
        rest = &rest[head + used + 8..];
        if rest.is_empty() {
            return Some(plain);
        }
    }
}

/// How long a member's head is (RFC 1952 section 2.3).
fn gzip_head(bytes: &[u8]) -> Option<usize> {
    let [0x1f, 0x8b, 8, flags, ..] = *bytes else {
        return None;
    };
    let mut at = 10;
    if flags & 0b1110_0000 != 0 || bytes.len() < at {
        return None;
    }
    if flags & 4 != 0 {
        let length = bytes.get(at..at + 2)?;
        at += 2 + usize::from(u16::from_le_bytes([length[0], length[1]]));
    }
    for text in [8, 16] {
        if flags & text != 0 {
            at += bytes.get(at..)?.iter().position(|byte| *byte == 0)? + 1;
        }
    }
    if flags & 2 != 0 {
        let mut sum = Crc::new();
        sum.update(bytes.get(..at)?);
        if bytes.get(at..at + 2)? != &sum.sum().to_le_bytes()[..2] {
            return None;
        }
        at += 2;
    }
    (at <= bytes.len()).then_some(at)
}

/// zlib (RFC 1950) if its two first bytes say so, else bare (RFC 1951). What follows the stream doesn't count.
fn inflate(packed: &[u8], limit: usize) -> Option<Vec<u8>> {
    let zlib = packed.len() > 1
        && packed[0] & 15 == 8
        && u16::from_be_bytes([packed[0], packed[1]]).is_multiple_of(31);
    inflated(packed, zlib, limit).map(|(plain, _)| plain)
}

/// A whole stream's plain bytes, at most so many, and how many packed ones it took.
fn inflated(packed: &[u8], zlib: bool, limit: usize) -> Option<(Vec<u8>, usize)> {
    let mut inflater = Decompress::new(zlib);
    let (mut plain, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let (read, written) = (inflater.total_in() as usize, inflater.total_out());
        let status = inflater
            .decompress(&packed[read..], &mut piece, FlushDecompress::None)
            .ok()?;
        plain.extend(&piece[..(inflater.total_out() - written) as usize]);
        if plain.len() > limit {
            return None;
        }
        if status == Status::StreamEnd {
            return Some((plain, inflater.total_in() as usize));
        }
        if inflater.total_in() as usize == read && inflater.total_out() == written {
            return None;
        }
    }
}

/// What an answer of KYBIO's says by its members of the top level.
struct Word {
    success: bool,
    code: Option<i64>,
    messages: Vec<Value>,
    /// `messages` stands there once, and any parser can read it.
    messages_are_sure: bool,
}

/// An object with one `status` of the two that are known, and no second `errorCode`.
fn word(plain: &[u8]) -> Option<Word> {
    let plain = plain.strip_prefix(b"\xef\xbb\xbf").unwrap_or(plain);
    let members: Seen = serde_json::from_slice(plain).ok()?;
    let [status] = &members.status[..] else {
        return None;
    };
    let status: String = serde_json::from_str(status).ok()?;
    let success = status.eq_ignore_ascii_case("success");
    if !success && !status.eq_ignore_ascii_case("error") {
        return None;
    }
    let code = match &members.code[..] {
        [] => None,
        [code] => match serde_json::from_str(code) {
            Ok(Value::Number(number)) => number.as_i64(),
            Ok(Value::String(text)) => text.trim().parse().ok(),
            _ => None,
        },
        _ => return None,
    };
    // Values that one parser skips and another refuses (`1e999`, half a surrogate) leave messages in doubt.
    let sure = serde_json::from_slice::<Value>(plain).is_ok();
    let entries: Option<Entries<'_>> = serde_json::from_slice(plain).ok().filter(|_| sure);
    let entries = entries.into_iter().flat_map(|Entries(entries)| entries);
    let mut lists = entries.filter(|(Key(key), _)| key == b"messages");
    let first = lists
        .next()
        .and_then(|(_, list)| serde_json::from_str(list.get()).ok());
    Some(Word {
        success,
        code,
        messages: match first {
            Some(Value::Array(list)) => list,
            Some(text) => vec![text],
            None => vec![],
        },
        messages_are_sure: sure && lists.next().is_none(),
    })
}

impl Word {
    fn is_that_of(&self, reply: &reply::Reply, plain: &[u8]) {
        let verdict = reply.verdict();
        assert_eq!((verdict.success, verdict.code), (self.success, self.code));
        // As a strict parser sees it all.
        if let Ok(value) = serde_json::from_slice::<Value>(plain) {
            let status = value.as_object().expect("an object")["status"]
                .as_str()
                .expect("a text");
            assert_eq!(status.eq_ignore_ascii_case("success"), verdict.success);
        }
        let busy = |message: &Value| message.as_str().is_some_and(|text| text.contains("busy"));
        let expected = match (self.success, self.code) {
            (true, _) => None,
            (false, Some(5004)) => Some(AnswerClass::Duplicate),
            (false, _) if self.messages.iter().any(busy) => Some(AnswerClass::Transient),
            (false, _) => Some(AnswerClass::Rejected),
        };
        let either = [Some(AnswerClass::Rejected), Some(AnswerClass::Transient)];
        assert!(
            verdict.class == expected
                || !self.messages_are_sure
                    && either.contains(&expected)
                    && either.contains(&verdict.class),
            "{verdict:?} {expected:?}"
        );
    }
}

/// Every value that the members which count have.
#[derive(Default)]
struct Seen {
    status: Vec<String>,
    code: Vec<String>,
}

impl<'de> Deserialize<'de> for Seen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Seen;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Seen, A::Error> {
                let mut seen = Seen::default();
                while let Some(key) = map.next_key::<String>()? {
                    let values = match key.as_str() {
                        "status" => &mut seen.status,
                        "errorCode" => &mut seen.code,
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            continue;
                        }
                    };
                    values.push(map.next_value::<&RawValue>()?.get().to_owned());
                }
                Ok(seen)
            }
        }
        deserializer.deserialize_map(Read)
    }
}
