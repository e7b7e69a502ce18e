//! The vendor's protocol as its server sees it: paths, headers, the signature, the envelope. Shares no code with the gateway's
//! own signing, so that a mistake there can't hide here.

use bytes::Bytes;
use http::HeaderMap;
use http::HeaderValue;
use http::Response;
use http::StatusCode;
use http::header::ALLOW;
use http::header::CONTENT_ENCODING;
use http::header::CONTENT_TYPE;
use http::header::RETRY_AFTER;
use md5::Digest;
use md5::Md5;
use serde::Serialize;
use serde_json::Value;

use crate::simulator::encoding::Encoding;
use crate::simulator::reply::Data;
use crate::simulator::reply::Outcome;
use crate::simulator::reply::Refusal;

/// The operation that a path names, whatever its letter case and however many slashes: the vendor's server is as forgiving
/// (contract, section 2). The name is as the caller wrote it.
pub(super) fn operation_name(path: &str) -> Option<String> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let after = |prefix: &[&str]| {
        let (head, name) = parts.split_at_checked(prefix.len())?;
        let matches = head
            .iter()
            .zip(prefix)
            .all(|(part, wanted)| part.eq_ignore_ascii_case(wanted));
        matches.then(|| name.join("/"))
    };
    let modern = PREFIXES.iter().find_map(|prefix| after(prefix));
    modern.or_else(|| Some(format!("promotionOpenApi/{}", after(COUPON_PREFIX)?)))
}

/// Whether the headers are a caller's who knows the account's key.
///
/// `data-signature` is the MD5 of the key and then the body's bytes, in hexadecimal (contract, section 1): upper case by the
/// pages, lower case by a live client. `time-stamp` must be there; its value isn't looked at.
pub(super) fn verify(headers: &HeaderMap, app_keys: &[String], body: &[u8]) -> Result<(), Refusal> {
    let signature = headers
        .get("data-signature")
        .ok_or(Refusal::SignatureMissing)?;
    let is_by = |app_key: &String| {
        let digest = Md5::new()
            .chain_update(app_key)
            .chain_update(body)
            .finalize();
        let expected: String = digest.iter().map(|byte| format!("{byte:02X}")).collect();
        signature.as_bytes() == expected.as_bytes()
            || signature.as_bytes() == expected.to_ascii_lowercase().as_bytes()
    };
    if !app_keys.iter().any(is_by) {
        return Err(Refusal::SignatureWrong);
    }
    if headers.get("time-stamp").is_none_or(HeaderValue::is_empty) {
        return Err(Refusal::StampMissing);
    }
    let content_type = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        Ok(())
    } else {
        Err(Refusal::TypeWrong)
    }
}

/// A business answer, success or error: HTTP 200 with the envelope. `documented` is about the success's shape.
pub(super) fn business(outcome: Outcome, documented: bool, encoding: Encoding) -> Response<Bytes> {
    let (envelope, documented) = match outcome {
        Ok(Data::Value(data)) => (Envelope::success(Some(Value::Null), Some(data)), documented),
        Ok(Data::Plain) => (Envelope::success(Some(Value::Null), None), documented),
        Ok(Data::Short) => (Envelope::success(None, None), documented),
        Ok(Data::Absent) => (Envelope::success(Some(Value::Null), None), false),
        Err(refusal) => {
            let words = refusal.words();
            let code = words.code.map_or(Value::Null, Value::from);
            let envelope = Envelope {
                status: "error",
                messages: vec![words.message],
                error_code: Some(code),
                data: None,
            };
            (envelope, words.documented)
        }
    };
    let body = serde_json::to_vec(&envelope).expect("an envelope has only string keys");
    let mut response = marked(
        Response::new(Bytes::from(encoding.encode(body))),
        documented,
    );
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/json; charset=utf-8"),
    );
    if let Some(name) = encoding.name() {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static(name));
    }
    response
}

/// An answer that never reached the business: an unknown method, a wrong verb, a body too large. The texts are assumed.
pub(super) fn infrastructure(status: StatusCode, text: &'static str) -> Response<Bytes> {
    let mut response = page(status, "text/plain; charset=utf-8", text.into());
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("POST"));
    }
    response
}

/// A server's failure, as whatever stands before the vendor's server may send it. Assumed.
pub(super) fn failure(status: StatusCode, retry_after: Option<u32>) -> Response<Bytes> {
    let mut response = page(
        status,
        "text/plain; charset=utf-8",
        format!("{status}\n").into(),
    );
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

/// HTTP 200 with what no client of this protocol can read. Assumed.
pub(super) fn garbage() -> Response<Bytes> {
    page(
        StatusCode::OK,
        "text/html; charset=utf-8",
        Bytes::from_static(b"<!DOCTYPE html>\n<title>Maintenance</title>\n<p>Back soon.</p>\n"),
    )
}

fn page(status: StatusCode, content_type: &'static str, text: Bytes) -> Response<Bytes> {
    let mut response = marked(Response::new(text), false);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn marked(mut response: Response<Bytes>, documented: bool) -> Response<Bytes> {
    let basis = if documented { "documented" } else { "assumed" };
    response
        .headers_mut()
        .insert("x-kybio-simulator", HeaderValue::from_static("stand-in"));
    response
        .headers_mut()
        .insert("x-kybio-simulator-answer", HeaderValue::from_static(basis));
    response
}

/// The vendor's reply, in the order in which its pages print it (contract, section 4).
#[derive(Serialize)]
struct Envelope {
    status: &'static str,
    messages: Vec<String>,
    #[serde(rename = "errorCode", skip_serializing_if = "Option::is_none")]
    error_code: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Value>,
}

impl Envelope {
    fn success(error_code: Option<Value>, data: Option<Value>) -> Self {
        Self {
            status: "success",
            messages: Vec::new(),
            error_code,
            data,
        }
    }
}

const PREFIXES: [&[&str]; 2] = [&["openapi", "v1"], &["pospal-api2", "openapi", "v1"]];

/// The first version of the coupon operations has a prefix of its own; after it, the names are those of the second.
const COUPON_PREFIX: &[&str] = &["pospal-api", "api", "auth", "openapi"];

#[cfg(test)]
mod tests {
    use std::fs;

    use http::HeaderMap;
    use http::HeaderValue;
    use serde_json::Value;

    use crate::simulator::protocol::operation_name;
    use crate::simulator::protocol::verify;
    use crate::simulator::reply::Refusal;

    #[test]
    fn paths_are_matched_as_forgivingly_as_the_real_server_does() {
        let cases = [
            (
                "/openapi/v1/customerOpenApi/add",
                Some("customerOpenApi/add"),
            ),
            (
                "//pospal-api2/openapi/v1/customerOpenApi/add",
                Some("customerOpenApi/add"),
            ),
            (
                "/POSPAL-API2//OpenApi/V1/CUSTOMEROPENAPI//add/",
                Some("CUSTOMEROPENAPI/add"),
            ),
            (
                "/openapi/v1/promotionOpenApi/promotion/addCouponcode",
                Some("promotionOpenApi/promotion/addCouponcode"),
            ),
            (
                "/pospal-api/api/auth/openapi/promotion/addCouponcode/",
                Some("promotionOpenApi/promotion/addCouponcode"),
            ),
            ("/openapi/v2/customerOpenApi/add", None),
            ("/other/openapi/v1/customerOpenApi/add", None),
            ("/", None),
        ];
        for (path, expected) in cases {
            assert_eq!(operation_name(path).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn the_published_inputs_have_the_signatures_that_were_computed_elsewhere() {
        let text = fs::read_to_string(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/vectors/signature-vectors.json"
        ))
        .unwrap();
        let vectors: Value = serde_json::from_str(&text).unwrap();
        let vectors = vectors["v1"].as_array().unwrap();
        assert!(vectors.len() >= 20);
        for vector in vectors {
            let part = |name: &str| vector[name].as_str().unwrap();
            let app_key = [part("app_key").to_owned()];
            let hex = part("body_utf8_hex");
            let mut body = vec![0; hex.len() / 2];
            const_hex::decode_to_slice(hex, &mut body).unwrap();
            let mut headers = HeaderMap::new();
            headers.insert("time-stamp", HeaderValue::from_static("1437528688233"));
            headers.insert("content-type", HeaderValue::from_static("application/json"));
            assert_eq!(
                verify(&headers, &app_key, &body),
                Err(Refusal::SignatureMissing)
            );
            for signature in [
                part("data_signature").to_owned(),
                part("data_signature").to_lowercase(),
            ] {
                headers.insert("data-signature", signature.parse().unwrap());
                assert_eq!(
                    verify(&headers, &app_key, &body),
                    Ok(()),
                    "{}",
                    part("name")
                );
                let both = [app_key.as_slice(), &["another key".to_owned()]].concat();
                assert_eq!(verify(&headers, &both, &body), Ok(()), "{}", part("name"));
                assert_eq!(
                    verify(&headers, &["another key".to_owned()], &body),
                    Err(Refusal::SignatureWrong),
                    "{}",
                    part("name")
                );
            }
            headers.insert("time-stamp", HeaderValue::from_static(""));
            assert_eq!(
                verify(&headers, &app_key, &body),
                Err(Refusal::StampMissing)
            );
            headers.insert("time-stamp", HeaderValue::from_static("at noon"));
            headers.insert("content-type", HeaderValue::from_static("text/plain"));
            assert_eq!(verify(&headers, &app_key, &body), Err(Refusal::TypeWrong));
        }
    }
}
