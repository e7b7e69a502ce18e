//! The vendor's word: from a whole reply to a verdict, without changing a byte. Failures come as HTTP 200, so the body decides.

pub mod encoding;

use std::fmt;
use std::time::Duration;
use std::time::SystemTime;

use bytes::Bytes;
use http::HeaderMap;
use http::StatusCode;
use http::header;
use serde::Deserialize;
use serde::Deserializer;
use serde::de::Error as _;
use serde::de::SeqAccess;
use serde::de::Visitor;
use serde_json::value::RawValue;

use crate::answers::AnswerClass;
use crate::answers::Answers;
use crate::reply::encoding::Encoding;

/// A reply that says whether the call succeeded. Only [`read`] makes one.
#[derive(Debug)]
pub struct Reply {
    body: Bytes,
    plain: Bytes,
    encoding: Encoding,
    verdict: Verdict,
}

/// What `status` and `errorCode` say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// `status` is `success`, in any letter case.
    pub success: bool,
    /// `errorCode`, if there is one.
    pub code: Option<i64>,
    /// What an error means, by its code and messages.
    pub class: Option<AnswerClass>,
}

/// Why a whole reply isn't KYBIO's word.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// HTTP says no in a way that KYBIO itself would: the call was refused.
    #[error("the upstream refused with HTTP status {0}")]
    Refused(StatusCode, Option<RetryAfter>),
    /// Another HTTP status than 200.
    #[error("the upstream answered with HTTP status {0}")]
    Status(StatusCode, Option<RetryAfter>),
    /// It can't be unpacked.
    #[error("the reply can't be unpacked")]
    Encoding(#[from] encoding::Error),
    /// Not JSON, no object, or no `status` of the two known.
    #[error("the reply isn't a KYBIO answer")]
    NotAnAnswer(#[source] serde_json::Error),
}

impl Error {
    /// The HTTP status, if that is what's wrong.
    #[must_use]
    pub fn upstream_status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused(status, _) | Self::Status(status, _) => Some(*status),
            Self::Encoding(_) | Self::NotAnAnswer(_) => None,
        }
    }

    /// How long the host wants to be left alone, if it says so.
    #[must_use]
    pub fn retry_after(&self) -> Option<RetryAfter> {
        match self {
            Self::Refused(_, after) | Self::Status(_, after) => *after,
            Self::Encoding(_) | Self::NotAnAnswer(_) => None,
        }
    }
}

/// `Retry-After` (RFC 9110 section 10.2.3): seconds, or a date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryAfter {
    /// From now on.
    Seconds(u64),
    /// At this time.
    Date(SystemTime),
}

impl RetryAfter {
    /// One that can't be read is none.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
        let seconds = text.parse().ok().map(Self::Seconds);
        seconds.or_else(|| httpdate::parse_http_date(text).ok().map(Self::Date))
    }

    /// The pause that it asks for, at this wall time since 1970-01-01 UTC.
    #[must_use]
    pub fn pause(self, wall: Duration) -> Duration {
        match self {
            Self::Seconds(seconds) => Duration::from_secs(seconds),
            Self::Date(date) => date
                .duration_since(SystemTime::UNIX_EPOCH + wall)
                .unwrap_or_default(),
        }
    }
}

/// What KYBIO or its web server says of a call that it didn't take; all else may have had effect.
const REFUSALS: [u16; 8] = [400, 401, 403, 404, 405, 413, 415, 429];

impl Reply {
    /// What it says.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Its bytes as they came.
    #[must_use]
    pub fn packed(&self) -> &Bytes {
        &self.body
    }

    /// They aren't what it says, but how that was packed.
    #[must_use]
    pub fn is_packed(&self) -> bool {
        self.encoding != Encoding::Identity
    }

    /// What it says in full, unpacked.
    #[must_use]
    pub fn plain(&self) -> &Bytes {
        &self.plain
    }

    /// The same verdict in other words.
    #[must_use]
    pub fn reworded(self, plain: Bytes) -> Self {
        Self {
            body: plain.clone(),
            plain,
            encoding: Encoding::Identity,
            verdict: self.verdict,
        }
    }

    /// The bytes for a caller with these header fields, and how they're packed.
    #[must_use]
    pub fn body_for(&self, headers: &HeaderMap) -> (Bytes, Encoding) {
        if self.encoding.accepted_by(headers) {
            (self.body.clone(), self.encoding)
        } else {
            (self.plain.clone(), Encoding::Identity)
        }
    }
}

/// Reads the verdict of a whole reply, of which at most `bytes_max` plain bytes are looked at. `answers` are those that are known.
///
/// # Errors
/// When it isn't KYBIO's word on the call.
pub fn read(
    status: StatusCode,
    headers: &HeaderMap,
    body: Bytes,
    bytes_max: usize,
    answers: &Answers,
) -> Result<Reply, Error> {
    if REFUSALS.contains(&status.as_u16()) {
        return Err(Error::Refused(status, RetryAfter::of(headers)));
    }
    if status != StatusCode::OK {
        return Err(Error::Status(status, RetryAfter::of(headers)));
    }
    let encoding = Encoding::of(headers)?;
    let plain = encoding.decode(&body, bytes_max)?;
    let verdict = verdict(&plain, answers).map_err(Error::NotAnAnswer)?;
    Ok(Reply {
        body,
        plain,
        encoding,
        verdict,
    })
}

/// The two members that decide. The others are skipped, whatever they hold.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(deserialize_with = "success")]
    status: bool,
    #[serde(borrow, default, rename = "errorCode")]
    error_code: Option<&'a RawValue>,
}

fn verdict(plain: &[u8], answers: &Answers) -> Result<Verdict, serde_json::Error> {
    // Some servers put a byte order mark before JSON.
    let plain = plain.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(plain);
    // A list would be taken for the members in their order.
    if !plain.trim_ascii_start().starts_with(b"{") {
        return Err(serde_json::Error::custom("it isn't an object"));
    }
    let envelope: Envelope<'_> = serde_json::from_slice(plain)?;
    let (success, code) = (envelope.status, envelope.error_code.and_then(code));
    let class = (!success).then(|| answers.classify(code, &messages(plain)));
    Ok(Verdict {
        success,
        code,
        class,
    })
}

/// The messages of an error answer: texts in a list as documented (contract, section 4), or one text. What else there is says nothing.
fn messages(plain: &[u8]) -> Vec<String> {
    #[derive(Deserialize)]
    struct Messages {
        messages: Texts,
    }
    serde_json::from_slice(plain)
        .map(|Messages { messages }| messages.0)
        .unwrap_or_default()
}

/// Messages that are looked at. KYBIO sends one.
const MESSAGES_MAX: usize = 100;

/// As many of a list's texts, or the one that stands in its place. A list of millions isn't kept, whatever is in it.
struct Texts(Vec<String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of texts, or a text")
            }

            fn visit_str<E>(self, text: &str) -> Result<Texts, E> {
                Ok(Texts(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Texts, A::Error> {
                let mut texts = Vec::new();
                while let Some(item) = list.next_element::<&RawValue>()? {
                    if texts.len() < MESSAGES_MAX {
                        texts.extend(serde_json::from_str::<String>(item.get()));
                    }
                }
                Ok(Texts(texts))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// `success` or `error`, in any letter case (contract, section 4).
fn success<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    struct Reader;
    impl Visitor<'_> for Reader {
        type Value = bool;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("success or error")
        }

        fn visit_str<E: serde::de::Error>(self, status: &str) -> Result<bool, E> {
            let success = status.eq_ignore_ascii_case("success");
            if success || status.eq_ignore_ascii_case("error") {
                Ok(success)
            } else {
                Err(E::custom("neither"))
            }
        }
    }
    // What it is isn't repeated: it may be anything.
    let neither = |_| D::Error::custom("`status` is neither success nor error");
    deserializer.deserialize_str(Reader).map_err(neither)
}

/// An integer or a string of digits (contract, section 4). What is none of them isn't worth losing the answer for.
fn code(written: &RawValue) -> Option<i64> {
    let text = written.get();
    serde_json::from_str(text).ok().or_else(|| {
        serde_json::from_str::<String>(text)
            .ok()?
            .trim()
            .parse()
            .ok()
    })
}

#[cfg(test)]
mod tests {
    use super::Error;
    use super::Verdict;
    use super::read;
    use crate::answers::Answer;
    use crate::answers::AnswerClass;
    use crate::answers::Answers;
    use bytes::Bytes;
    use http::HeaderMap;
    use http::HeaderValue;
    use http::StatusCode;
    use http::header;
    use std::time::Duration;

    fn verdict(body: &str) -> Option<(bool, Option<i64>)> {
        let reply = read(
            StatusCode::OK,
            &HeaderMap::new(),
            Bytes::copy_from_slice(body.as_bytes()),
            1 << 20,
            &Answers::default(),
        )
        .ok()?;
        let Verdict { success, code, .. } = reply.verdict();
        Some((success, code))
    }

    #[test]
    fn status_and_code_are_read_in_all_their_spellings() {
        let cases = [
            (
                r#"{"status":"success","messages":[],"errorCode":null}"#,
                Some((true, None)),
            ),
            (r#"{"status":"SUCCESS"}"#, Some((true, None))),
            (r#"{"status":"suc\u0063ess"}"#, Some((true, None))),
            (r#"{"status":"success "}"#, None),
            (r#"{"status":"\ud800"}"#, None),
            (
                r#"{"data":{"status":"error"},"status":"Success"}"#,
                Some((true, None)),
            ),
            (
                r#"{"status":"error","errorCode":5004}"#,
                Some((false, Some(5004))),
            ),
            (
                r#"{"errorCode":"5001","status":"Error"}"#,
                Some((false, Some(5001))),
            ),
            (
                r#"{"status":"error","errorCode":"E-1"}"#,
                Some((false, None)),
            ),
            (r#"{"status":"error","errorCode":1.5}"#, Some((false, None))),
            (
                r#"{"status":"error","errorCode":{"a":1}}"#,
                Some((false, None)),
            ),
            (
                r#"{"status":"error","errorCode":1e999}"#,
                Some((false, None)),
            ),
            (
                r#"{"status":"error","errorCode":"\ud800"}"#,
                Some((false, None)),
            ),
            ("\u{feff}{\"status\":\"success\"}", Some((true, None))),
            (r#"{"status":"success","data":1e999}"#, Some((true, None))),
            ("", None),
            ("{}", None),
            ("null", None),
            ("[]", None),
            (r#"["success"]"#, None),
            (r#" ["error",5004]"#, None),
            ("<html>", None),
            (r#"{"status":true}"#, None),
            (r#"{"status":"ok"}"#, None),
            (r#"{"Status":"success"}"#, None),
            (r#"{"status":"success""#, None),
            (r#"{"status":"success"}{}"#, None),
            (r#"{"status":"success","status":"error"}"#, None),
        ];
        for (body, expected) in cases {
            assert_eq!(verdict(body), expected, "{body}");
        }
    }

    #[test]
    fn a_status_that_is_none_of_the_two_is_not_repeated() {
        for odd in ["\"canary\"", "7319", "true", "[\"canary\"]", "null"] {
            let body = Bytes::from(format!("{{\"status\":{odd}}}"));
            let headers = HeaderMap::new();
            let error = read(StatusCode::OK, &headers, body, 99, &Answers::default());
            let Err(Error::NotAnAnswer(cause)) = error else {
                panic!("{odd}: {error:?}");
            };
            let cause = cause.to_string();
            assert!(
                cause.starts_with("`status` is neither success nor error"),
                "{cause}"
            );
            assert!(!cause.contains(odd), "{cause}");
        }
    }

    #[test]
    fn only_http_200_carries_a_verdict() {
        let body = Bytes::from_static(br#"{"status":"success"}"#);
        for status in [201, 204, 302, 307, 500, 502, 503] {
            let status = StatusCode::from_u16(status).expect("a status");
            assert!(
                matches!(
                    read(
                        status,
                        &HeaderMap::new(),
                        body.clone(),
                        99,
                        &Answers::default()
                    ),
                    Err(Error::Status(..))
                ),
                "{status}"
            );
        }
        for status in [400, 401, 404, 429] {
            let status = StatusCode::from_u16(status).expect("a status");
            assert!(
                matches!(
                    read(
                        status,
                        &HeaderMap::new(),
                        body.clone(),
                        99,
                        &Answers::default()
                    ),
                    Err(Error::Refused(..))
                ),
                "{status}"
            );
        }
    }

    #[test]
    fn an_error_answer_is_known_by_its_code_or_its_messages_however_they_are_written() {
        let known = |code: Option<i64>, message: Option<&str>, class| Answer {
            code,
            message: message.map(ToOwned::to_owned),
            class,
        };
        let answers = Answers::new(vec![
            known(Some(5004), None, AnswerClass::Duplicate),
            known(None, Some("busy"), AnswerClass::Transient),
        ]);
        let cases = [
            (r#"{"status":"success","messages":["busy"]}"#, None),
            (
                r#"{"status":"error","errorCode":"5004"}"#,
                Some(AnswerClass::Duplicate),
            ),
            (
                r#"{"messages":["x",1,"we are busy"],"status":"ERROR"}"#,
                Some(AnswerClass::Transient),
            ),
            (
                r#"{"status":"error","messages":"b\u0075sy"}"#,
                Some(AnswerClass::Transient),
            ),
            (
                r#"{"status":"error","messages":{"busy":1}}"#,
                Some(AnswerClass::Rejected),
            ),
            (r#"{"status":"error"}"#, Some(AnswerClass::Rejected)),
        ];
        for (body, expected) in cases {
            let body = Bytes::from_static(body.as_bytes());
            let reply = read(StatusCode::OK, &HeaderMap::new(), body, 999, &answers);
            assert_eq!(reply.expect("an answer").verdict().class, expected);
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let wall = Duration::from_secs(784_111_777 - 30);
        let cases = [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(30)),
            ("Sun, 06 Nov 1994 08:49:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
            ("", None),
        ];
        for (text, expected) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(text));
            let status = StatusCode::SERVICE_UNAVAILABLE;
            let error = read(status, &headers, Bytes::new(), 99, &Answers::default());
            let after = error.expect_err("no answer").retry_after();
            assert_eq!(
                after.map(|after| after.pause(wall).as_secs()),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn bytes_pass_as_they_came() {
        let body = Bytes::from_static(b" {\"data\":1.10 , \"status\":\"success\"}\n");
        let reply = read(
            StatusCode::OK,
            &HeaderMap::new(),
            body.clone(),
            99,
            &Answers::default(),
        )
        .expect("an answer");
        assert_eq!(reply.body_for(&HeaderMap::new()).0, body);
    }

    #[test]
    fn an_unasked_coding_is_no_answer() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("br"));
        let body = Bytes::from_static(br#"{"status":"success"}"#);
        assert!(matches!(
            read(StatusCode::OK, &headers, body, 99, &Answers::default()),
            Err(Error::Encoding(_))
        ));
    }
}
