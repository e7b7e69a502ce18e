//! The caller's body: read whole under a limit and a deadline, checked, and given its `appId`. No byte of it is changed.

pub mod fault;
mod key;
pub mod room;
pub mod scan;

use std::future::ready;
use std::ops::Range;

use bytes::Bytes;
use http::HeaderMap;
use http::Version;
use http::header;
use http_body_util::BodyExt;
use hyper::body::Body;
use tokio::time::Instant;
use tokio::time::timeout_at;

use crate::account::AppId;
use crate::payload::fault::Fault;
use crate::payload::room::Full;
use crate::payload::room::Held;
use crate::payload::scan::Object;
use crate::pieces::Pieces;

/// A whole JSON object that names its account: what `sign` takes.
#[derive(Debug)]
pub struct Payload {
    bytes: Bytes,
    _held: Option<Held>,
}

impl Payload {
    /// The exact bytes that are signed and sent.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

/// Why a body can't be sent. Nothing has left.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not JSON, by its own words.
    #[error("the request has no Content-Type")]
    ContentTypeMissing,
    /// Another type.
    #[error("the Content-Type isn't application/json")]
    ContentTypeOther,
    /// Another character set.
    #[error("the Content-Type names another charset than utf-8")]
    Charset,
    /// Compressed.
    #[error("the body has a Content-Encoding")]
    Encoded,
    /// HTTP/1.0 without a length: whether there's a body can't be told.
    #[error("the request doesn't say how long its body is")]
    LengthMissing,
    /// Larger than `listener.body_bytes_max`.
    #[error("the body is larger than {0} bytes")]
    TooLarge(usize),
    /// Not all of it came within `listener.body_timeout`.
    #[error("the body didn't arrive in time")]
    Slow,
    /// The caller went away, or framed it badly.
    #[error("the body was cut off or badly framed")]
    Broken,
    /// Too much of others is being read.
    #[error(transparent)]
    NoRoom(#[from] Full),
    /// Not what KYBIO takes.
    #[error("{} (byte {})", .0.problem, .0.offset)]
    Invalid(#[from] Fault),
    /// It names another account.
    #[error("the body's `appId` at byte {offset} isn't that of the account")]
    ForeignAppId {
        /// Where the value stands.
        offset: usize,
    },
}

/// What the head says of the body, before any of it is read.
///
/// # Errors
/// When it isn't plain JSON in UTF-8. No type at all is fine for an empty body.
pub fn check_head(headers: &HeaderMap, version: Version, empty: bool) -> Result<(), Error> {
    // HTTP/1.1 without a length has no body (RFC 9112 section 6.3), and libraries send empty ones so. HTTP/1.0 leaves it open
    // (RFC 1945 section 7.2.2): to take it for empty would be to throw away what somebody meant to send.
    if version < Version::HTTP_11 && !headers.contains_key(header::CONTENT_LENGTH) {
        return Err(Error::LengthMissing);
    }
    let encoded = headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .any(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"));
    if encoded {
        return Err(Error::Encoded);
    }
    let mut types = headers.get_all(header::CONTENT_TYPE).iter();
    match (types.next(), types.next()) {
        (None, _) if empty => Ok(()),
        (None, _) => Err(Error::ContentTypeMissing),
        (Some(only), None) => check_type(only.to_str().unwrap_or_default()),
        (Some(_), Some(_)) => Err(Error::ContentTypeOther),
    }
}

/// `application/json`, with no `charset` or that of UTF-8 (RFC 8259 section 11 has none; the vendor's clients send one).
fn check_type(content_type: &str) -> Result<(), Error> {
    let mut parts = content_type.split(';').map(str::trim);
    if !parts
        .next()
        .is_some_and(|essence| essence.eq_ignore_ascii_case("application/json"))
    {
        return Err(Error::ContentTypeOther);
    }
    let mut parameters = parts.filter_map(|parameter| parameter.split_once('='));
    let is_utf8 = parameters.all(|(name, value)| {
        let value = value.trim_matches('"');
        !name.eq_ignore_ascii_case("charset")
            || value.eq_ignore_ascii_case("utf-8")
            || value.eq_ignore_ascii_case("utf8")
    });
    if is_utf8 { Ok(()) } else { Err(Error::Charset) }
}

/// How large bodies may be.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Each.
    pub body_bytes_max: usize,
    /// All that are read or sent at a time, but for those that came in one piece.
    pub bodies_bytes_max: usize,
}

/// A whole body, and the memory that it takes.
#[derive(Debug)]
pub struct Whole {
    /// Behind so much room.
    bytes: Bytes,
    headroom: usize,
    held: Option<Held>,
}

impl Whole {
    /// One that nobody has to wait for.
    #[must_use]
    pub fn in_one_piece(bytes: Bytes) -> Self {
        Self {
            bytes,
            headroom: 0,
            held: None,
        }
    }

    fn written(&self) -> &[u8] {
        &self.bytes[self.headroom..]
    }

    /// Its length in bytes.
    #[must_use]
    pub fn length(&self) -> usize {
        self.bytes.len() - self.headroom
    }
}

/// Before the `appId` of a body, and behind it where other members follow.
const OPENING: &[u8] = b"{\"appId\":\"";
const CLOSING: &[u8] = b"\",";

/// Reads the whole body, and takes room for it where it doesn't come in one piece.
///
/// # Errors
/// When it's too large, not whole at `deadline`, or breaks off; when there's no room for it.
pub async fn read<B>(body: B, sizes: Sizes, held: Held, deadline: Instant) -> Result<Whole, Error>
where
    B: Body<Data = Bytes> + Unpin,
{
    if body.size_hint().lower() > sizes.body_bytes_max as u64 {
        return Err(Error::TooLarge(sizes.body_bytes_max));
    }
    timeout_at(deadline, collect(body, sizes, held))
        .await
        .unwrap_or(Err(Error::Slow))
}

async fn collect<B>(mut body: B, sizes: Sizes, mut held: Held) -> Result<Whole, Error>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut pieces = Pieces::behind(OPENING.len() + AppId::LENGTH_MAX + CLOSING.len());
    // Of the first piece, until it's known whether the rest has to be waited for.
    let mut uncounted = 0;
    loop {
        let counts = uncounted > 0 && !body.is_end_stream();
        let frame = tokio::select! {
            biased;
            frame = body.frame() => frame,
            () = ready(()), if counts => {
                held.grow(std::mem::take(&mut uncounted), sizes.bodies_bytes_max)?;
                continue;
            }
        };
        let Some(frame) = frame else { break };
        // Trailers mean nothing to us.
        let Ok(piece) = frame.map_err(|_| Error::Broken)?.into_data() else {
            continue;
        };
        if piece.len() > sizes.body_bytes_max - pieces.length() {
            return Err(Error::TooLarge(sizes.body_bytes_max));
        }
        if pieces.length() == 0 {
            uncounted = piece.len();
        } else {
            let more = piece.len() + std::mem::take(&mut uncounted);
            held.grow(more, sizes.bodies_bytes_max)?;
        }
        let rest = body
            .size_hint()
            .exact()
            .and_then(|rest| usize::try_from(rest).ok());
        pieces.push(piece, rest.map(|rest| rest.min(sizes.body_bytes_max)));
    }
    let held = (uncounted < pieces.length()).then_some(held);
    let (bytes, headroom) = pieces.with_headroom();
    Ok(Whole {
        bytes,
        headroom,
        held,
    })
}

/// A checked body that doesn't name its account for certain yet.
#[derive(Debug)]
pub struct Draft {
    whole: Whole,
    object: Option<Object>,
}

/// Checks a whole body: promise B3.
///
/// # Errors
/// The first fault, with its byte offset and a hint.
pub fn check(whole: Whole) -> Result<Draft, Fault> {
    let object = scan::scan(whole.written())?;
    Ok(Draft { whole, object })
}

impl Draft {
    /// All bytes that the caller sent.
    #[must_use]
    pub fn written(&self) -> &[u8] {
        self.whole.written()
    }

    /// The `appId` that the caller wrote, if it did.
    #[must_use]
    pub fn app_id(&self) -> Option<&str> {
        let span = self.object.as_ref()?.app_id.clone()?;
        // The scanner has seen UTF-8 and no escape here.
        self.written()
            .get(span)
            .and_then(|value| std::str::from_utf8(value).ok())
    }

    /// Puts `appId` in as the first member: promise B1. A body that names the account already passes as it is.
    ///
    /// # Errors
    /// When it names another one.
    pub fn address(self, app_id: &AppId) -> Result<Payload, Error> {
        let Self { whole, object } = self;
        let app_id = app_id.as_str().as_bytes();
        let bytes = match object {
            None => [OPENING, app_id, b"\"}"].concat().into(),
            Some(Object {
                span,
                app_id: Some(value),
                ..
            }) => {
                if whole.written().get(value.clone()) != Some(app_id) {
                    return Err(Error::ForeignAppId {
                        offset: value.start,
                    });
                }
                let Range { start, end } = span;
                whole
                    .bytes
                    .slice(whole.headroom + start..whole.headroom + end)
            }
            Some(Object { span, empty, .. }) => {
                let closing = if empty { &CLOSING[..1] } else { CLOSING };
                let (start, end) = (whole.headroom + span.start + 1, whole.headroom + span.end);
                behind(&[OPENING, app_id, closing], whole.bytes, start..end)
            }
        };
        Ok(Payload {
            bytes,
            _held: whole.held,
        })
    }
}

/// A part of a text behind these others: in the room before it, if there's enough and nobody else holds the text, else in a copy.
fn behind(before: &[&[u8]; 3], text: Bytes, part: Range<usize>) -> Bytes {
    let before = before.concat();
    let copied = |text: &[u8]| [&before, &text[part.clone()]].concat().into();
    let Some(begin) = part.start.checked_sub(before.len()) else {
        return copied(&text);
    };
    match text.try_into_mut() {
        Ok(mut text) => {
            text[begin..part.start].copy_from_slice(&before);
            text.freeze().slice(begin..part.end)
        }
        Err(text) => copied(&text),
    }
}

/// Reads and drops what is left of a refused request's body, within bounds, so that the caller reads our answer and not a reset.
pub async fn discard<B: Body<Data = Bytes> + Unpin>(
    mut body: B,
    bytes_max: usize,
    deadline: Instant,
) {
    let drained = async {
        let mut left = bytes_max;
        while let Some(Ok(frame)) = body.frame().await {
            let size = frame.data_ref().map_or(0, Bytes::len);
            let Some(rest) = left.checked_sub(size) else {
                break;
            };
            left = rest;
        }
    };
    // Whether all of it came doesn't matter: this is a courtesy.
    let _ = timeout_at(deadline, drained).await;
}

#[cfg(test)]
mod tests {
    use super::Error;
    use super::Sizes;
    use super::Whole;
    use super::check;
    use super::check_head;
    use crate::account::AppId;
    use crate::name::CallerName;
    use crate::payload::room::Full;
    use crate::payload::room::Room;
    use bytes::Bytes;
    use http::HeaderMap;
    use http::HeaderValue;
    use http::Version;
    use http::header;
    use hyper::body::Body;
    use hyper::body::Frame;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::Context;
    use std::task::Poll;
    use std::time::Duration;
    use tokio::time::Instant;

    fn addressed(body: &str) -> Result<String, Error> {
        let bytes = Bytes::copy_from_slice(body.as_bytes());
        let draft = check(Whole::in_one_piece(bytes))?;
        let payload = draft.address(&AppId::new("abc").expect("an appId"))?;
        Ok(String::from_utf8(payload.bytes().to_vec()).expect("text"))
    }

    #[test]
    fn app_id_goes_in_first_and_nothing_else_changes() {
        let cases = [
            ("", r#"{"appId":"abc"}"#),
            (" \n", r#"{"appId":"abc"}"#),
            ("{}", r#"{"appId":"abc"}"#),
            ("{ }", r#"{"appId":"abc" }"#),
            (r#"{"a":1.10}"#, r#"{"appId":"abc","a":1.10}"#),
            (
                " {\n \"a\" : 1e400 } \r\n",
                "{\"appId\":\"abc\",\n \"a\" : 1e400 }",
            ),
            (r#"{"a":1, "appId": "abc"}"#, r#"{"a":1, "appId": "abc"}"#),
            ("\t{\"appId\":\"abc\"}\n", r#"{"appId":"abc"}"#),
        ];
        for (body, expected) in cases {
            assert_eq!(addressed(body).expect(body), expected);
        }
    }

    #[test]
    fn another_accounts_app_id_is_refused() {
        for body in [
            r#"{"appId":"abd"}"#,
            r#"{"appId":""}"#,
            r#"{"appId":"ABC"}"#,
            r#"{"appId":"abc "}"#,
        ] {
            assert!(
                matches!(addressed(body), Err(Error::ForeignAppId { offset: 10 })),
                "{body}"
            );
        }
    }

    #[test]
    fn only_plain_json_is_taken() {
        let check = |content_type: Option<&str>, encoding: Option<&str>, empty: bool| {
            let mut headers = HeaderMap::new();
            for (name, value) in [
                (header::CONTENT_TYPE, content_type),
                (header::CONTENT_ENCODING, encoding),
            ] {
                if let Some(value) = value {
                    headers.append(name, HeaderValue::from_str(value).expect("a header"));
                }
            }
            check_head(&headers, Version::HTTP_2, empty).is_ok()
        };
        for good in [
            "application/json",
            "Application/JSON; charset=utf-8",
            "application/json;charset=\"UTF-8\"",
            "application/json; charset=utf8",
        ] {
            assert!(check(Some(good), None, false), "{good}");
        }
        for bad in [
            "application/x-www-form-urlencoded",
            "text/plain",
            "text/json",
            "application/json; charset=gbk",
            "application/jsonx",
            "",
        ] {
            assert!(!check(Some(bad), None, false), "{bad}");
            assert!(!check(Some(bad), None, true), "{bad}");
        }
        assert!(check(None, None, true));
        assert!(!check(None, None, false));
        assert!(!check(Some("application/json"), Some("gzip"), false));
        assert!(check(Some("application/json"), Some("identity"), false));
    }

    /// A body in these pieces, of which 12 bytes may come and as many be held for each caller.
    async fn read(pieces: &[&'static [u8]], room: &Room) -> Result<Whole, Error> {
        struct Pieces(VecDeque<Bytes>);
        impl Body for Pieces {
            type Data = Bytes;
            type Error = Infallible;
            fn poll_frame(
                mut self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
                let piece = self.0.pop_front();
                Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
            }
        }
        let body = Pieces(pieces.iter().copied().map(Bytes::from_static).collect());
        let sizes = Sizes {
            body_bytes_max: 12,
            bodies_bytes_max: 24,
        };
        let held = room.hold(CallerName::new("orders").expect("a name"));
        super::read(body, sizes, held, Instant::now() + Duration::from_secs(1)).await
    }

    #[tokio::test]
    async fn pieces_become_one_body_up_to_the_largest() {
        let room = Room::new(prometheus::IntGauge::new("bytes", "bytes").expect("a good name"));
        let cases: [(&[&'static [u8]], &str); 6] = [
            (&[], ""),
            (&[b""], ""),
            (&[b"{}"], "{}"),
            (&[b"", b"{", b"", b"\"a\"", b":1}"], "{\"a\":1}"),
            (&[b"123456", b"789012"], "123456789012"),
            (&[b"123456789012", b""], "123456789012"),
        ];
        for (pieces, expected) in cases {
            let whole = read(pieces, &room).await.expect(expected);
            assert_eq!(whole.written(), expected.as_bytes(), "{pieces:?}");
        }
        for pieces in [&[&b"1234567890123"[..]][..], &[b"123456", b"7890123"]] {
            let read = read(pieces, &room).await;
            assert!(matches!(read, Err(Error::TooLarge(12))), "{read:?}");
        }
    }

    #[tokio::test]
    async fn however_a_body_comes_its_app_id_is_put_in_the_same_and_pieces_are_not_copied_for_it() {
        let room = Room::new(prometheus::IntGauge::new("bytes", "bytes").expect("a good name"));
        let cases: [(&[&'static [u8]], &str); 6] = [
            (&[b"{\"a\":1}"], r#"{"appId":"abc","a":1}"#),
            (&[b"{\"a\"", b":1}"], r#"{"appId":"abc","a":1}"#),
            (&[b" {", b"\"a\":1} "], r#"{"appId":"abc","a":1}"#),
            (&[b"{", b" ", b"}"], r#"{"appId":"abc" }"#),
            (&[b" ", b"\n"], r#"{"appId":"abc"}"#),
            (&[b"{\"b\"", b": ", b"{}}\n"], r#"{"appId":"abc","b": {}}"#),
        ];
        for (pieces, expected) in cases {
            let whole = read(pieces, &room).await.expect(expected);
            let place = whole.bytes.as_ptr_range();
            let draft = check(whole).expect(expected);
            let payload = draft.address(&AppId::new("abc").expect("an appId"));
            let payload = payload.expect(expected);
            assert_eq!(payload.bytes(), expected.as_bytes(), "{pieces:?}");
            // Neither what came in one piece nor what had no object has room before it.
            let has_room = pieces.len() > 1 && expected != r#"{"appId":"abc"}"#;
            let is_in_place = place.contains(&payload.bytes().as_ptr());
            assert_eq!(is_in_place, has_room, "{pieces:?}");
        }
    }

    #[tokio::test]
    async fn what_comes_in_pieces_takes_room_until_it_is_dropped() {
        let room = Room::new(prometheus::IntGauge::new("bytes", "bytes").expect("a good name"));
        let large = read(&[b"123456", b"789012"], &room).await.expect("room");
        let refused = read(&[b"1", b"2"], &room).await;
        assert!(
            matches!(refused, Err(Error::NoRoom(Full::Caller(12)))),
            "{refused:?}"
        );
        read(&[b"123456789012"], &room)
            .await
            .expect("it doesn't wait for its rest");
        drop(large);
        read(&[b"1", b"2"], &room).await.expect("room again");
    }

    proptest! {
        #[test]
        fn every_byte_but_the_splice_comes_through(members in "( ?\"[b-z]{1,5}[0-9]\": ?(-?[1-9][0-9]{0,24}(\\.[0-9]{1,9})?|\"[a-z\u{4e00}-\u{4eff}🍣]{0,9}\"|\\[ ?\\]|null) ?)?", before in "[ \t\r\n]{0,3}", after in "[ \t\r\n]{0,3}") {
            let sent = addressed(&format!("{before}{{{members}}}{after}")).expect("it's valid");
            let comma = if members.trim().is_empty() { "" } else { "," };
            prop_assert_eq!(sent, format!("{{\"appId\":\"abc\"{comma}{members}}}"));
        }
    }
}
