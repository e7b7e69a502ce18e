//! The vendor's word: from a whole reply to a verdict, without changing a byte. Failures come as HTTP 200, so the body decides.

pub mod encoding;

use bytes::Bytes;
use http::HeaderMap;
use http::StatusCode;
use serde::Deserialize;
use serde::Deserializer;
use serde::de::Error as _;

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
}

/// Why a whole reply isn't KYBIO's word.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// HTTP says no in a way that KYBIO itself would: the call was refused.
    #[error("the upstream refused with HTTP status {0}")]
    Refused(StatusCode),
    /// Another HTTP status than 200.
    #[error("the upstream answered with HTTP status {0}")]
    Status(StatusCode),
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
            Self::Refused(status) | Self::Status(status) => Some(*status),
            Self::Encoding(_) | Self::NotAnAnswer(_) => None,
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

/// Reads the verdict of a whole reply, of which at most `bytes_max` plain bytes are looked at.
///
/// # Errors
/// When it isn't KYBIO's word on the call.
pub fn read(
    status: StatusCode,
    headers: &HeaderMap,
    body: Bytes,
    bytes_max: usize,
) -> Result<Reply, Error> {
    if REFUSALS.contains(&status.as_u16()) {
        return Err(Error::Refused(status));
    }
    if status != StatusCode::OK {
        return Err(Error::Status(status));
    }
    let encoding = Encoding::of(headers)?;
    let plain = encoding.decode(&body, bytes_max)?;
    let verdict = verdict(&plain).map_err(Error::NotAnAnswer)?;
    Ok(Reply {
        body,
        plain,
        encoding,
        verdict,
    })
}

/// The two members that decide. The others are skipped, whatever they hold.
#[derive(Deserialize)]
struct Envelope {
    #[serde(deserialize_with = "success")]
    status: bool,
    #[serde(default, rename = "errorCode", deserialize_with = "code")]
    error_code: Option<i64>,
}

fn verdict(plain: &[u8]) -> Result<Verdict, serde_json::Error> {
    // Some servers put a byte order mark before JSON.
    let plain = plain.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(plain);
    let envelope: Envelope = serde_json::from_slice(plain)?;
    Ok(Verdict {
        success: envelope.status,
        code: envelope.error_code,
    })
}

/// `success` or `error`, in any letter case (contract, section 4).
fn success<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    let status = String::deserialize(deserializer)?;
    match status.to_ascii_lowercase().as_str() {
        "success" => Ok(true),
        "error" => Ok(false),
        // What it is isn't repeated: it may be anything.
        _ => Err(D::Error::custom("`status` is neither success nor error")),
    }
}

/// Null, an integer, or a string of digits (contract, section 4). What is none of them isn't worth losing the answer for.
fn code<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Code {
        Integer(i64),
        Text(String),
        Other(serde::de::IgnoredAny),
    }
    Ok(match Option::<Code>::deserialize(deserializer)? {
        Some(Code::Integer(code)) => Some(code),
        Some(Code::Text(text)) => text.trim().parse().ok(),
        Some(Code::Other(_)) | None => None,
    })
}

#[cfg(test)]
mod tests {
    use super::Error;
    use super::Verdict;
    use super::read;
    use bytes::Bytes;
    use http::HeaderMap;
    use http::HeaderValue;
    use http::StatusCode;
    use http::header;

    fn verdict(body: &str) -> Option<(bool, Option<i64>)> {
        let reply = read(
            StatusCode::OK,
            &HeaderMap::new(),
            Bytes::copy_from_slice(body.as_bytes()),
            1 << 20,
        )
        .ok()?;
        let Verdict { success, code } = reply.verdict();
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
            ("\u{feff}{\"status\":\"success\"}", Some((true, None))),
            (r#"{"status":"success","data":1e999}"#, Some((true, None))),
            ("", None),
            ("{}", None),
            ("null", None),
            ("[]", None),
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
    fn only_http_200_carries_a_verdict() {
        let body = Bytes::from_static(br#"{"status":"success"}"#);
        for status in [201, 204, 302, 307, 500, 502, 503] {
            let status = StatusCode::from_u16(status).expect("a status");
            assert!(
                matches!(
                    read(status, &HeaderMap::new(), body.clone(), 99),
                    Err(Error::Status(_))
                ),
                "{status}"
            );
        }
        for status in [400, 401, 404, 429] {
            let status = StatusCode::from_u16(status).expect("a status");
            assert!(
                matches!(
                    read(status, &HeaderMap::new(), body.clone(), 99),
                    Err(Error::Refused(_))
                ),
                "{status}"
            );
        }
    }

    #[test]
    fn bytes_pass_as_they_came() {
        let body = Bytes::from_static(b" {\"data\":1.10 , \"status\":\"success\"}\n");
        let reply = read(StatusCode::OK, &HeaderMap::new(), body.clone(), 99).expect("an answer");
        assert_eq!(reply.body_for(&HeaderMap::new()).0, body);
    }

    #[test]
    fn an_unasked_coding_is_no_answer() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("br"));
        let body = Bytes::from_static(br#"{"status":"success"}"#);
        assert!(matches!(
            read(StatusCode::OK, &headers, body, 99),
            Err(Error::Encoding(_))
        ));
    }
}
