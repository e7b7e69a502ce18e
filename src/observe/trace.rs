//! Ids that others gave a request, so that its line in our log can be found by them: the caller's own id, and the trace that it's part of.

use std::fmt;

use http::HeaderMap;
use http::HeaderName;
use uuid::Uuid;

use crate::account::AppKey;

/// The W3C's header (Trace Context, section 3.2).
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The caller's own id of a request.
const CLIENT_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What a service sends that signs for itself (contract, section 2).
const SIGNATURE: HeaderName = HeaderName::from_static("data-signature");

/// The longest of them that is logged.
const CLIENT_ID_LENGTH_MAX: usize = 64;

/// Sampled, and chosen at random.
const KNOWN_FLAGS: u8 = 0b11;

/// A trace's id and its flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    id: u128,
    flags: u8,
}

impl Trace {
    /// The caller's, if it sends one that's well formed; else one of its own, with the request's id.
    #[must_use]
    pub fn of(headers: &HeaderMap, request: Uuid) -> Self {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let only = match (values.next(), values.next()) {
            (Some(only), None) => only.to_str().ok(),
            _ => None,
        };
        let given = only.and_then(Self::parse);
        let given = given.filter(|trace| {
            let id = Uuid::from_u128(trace.id).simple();
            !is_signature(headers, id.encode_lower(&mut Uuid::encode_buffer()))
        });
        given.unwrap_or(Self {
            id: request.as_u128(),
            flags: 0,
        })
    }

    /// `version-trace-parent-flags`, lower-case hex. What comes after that belongs to versions to come.
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split('-');
        let (version, id, parent, flags) = (
            hex(fields.next()?, 2)?,
            hex(fields.next()?, 32)?,
            hex(fields.next()?, 16)?,
            hex(fields.next()?, 2)?,
        );
        let more = fields.next().is_some();
        let good = version != 0xff && id != 0 && parent != 0 && !(version == 0 && more);
        good.then_some(Self {
            id,
            // Of the others nobody knows what they mean.
            flags: u8::try_from(flags).ok()? & KNOWN_FLAGS,
        })
    }

    /// The header's value for a call that is part of it, as the span of this number.
    #[must_use]
    pub fn header(self, span: u64) -> String {
        let Self { id, flags } = self;
        format!("00-{id:032x}-{:016x}-{flags:02x}", span.max(1))
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The same as `{:032x}`, which goes digit by digit.
        Uuid::from_u128(self.id).simple().fmt(f)
    }
}

fn hex(text: &str, length: usize) -> Option<u128> {
    let legal = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let good = text.len() == length && text.bytes().all(legal);
    good.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

/// The caller's own id of its request, as far as it's one that a log can have: a word, not too long, and nothing that looks like a key.
#[must_use]
pub fn client_id(headers: &HeaderMap) -> Option<Box<str>> {
    let mut values = headers.get_all(CLIENT_ID).iter();
    let (Some(only), None) = (values.next(), values.next()) else {
        return None;
    };
    let id = only.to_str().ok()?;
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    // The vendor's keys have some 19 digits. A UUID's last part looks like one, and so does one without hyphens.
    let is_key =
        || Uuid::try_parse(id).is_err() && id.split(['-', '_', '.', ':']).any(AppKey::may_be);
    let good = (1..=CLIENT_ID_LENGTH_MAX).contains(&id.len())
        && id.bytes().all(legal)
        && !is_key()
        && !is_signature(headers, id);
    good.then(|| id.into())
}

/// What a service signs with that still does is as secret as what is computed here, and 32 hex digits as many ids are.
fn is_signature(headers: &HeaderMap, id: &str) -> bool {
    let small = |byte: &u8| byte.to_ascii_lowercase();
    let digits = id.as_bytes().iter().filter(|byte| **byte != b'-');
    let mut signatures = headers.get_all(SIGNATURE).iter();
    signatures.any(|value| {
        value
            .as_bytes()
            .iter()
            .map(small)
            .eq(digits.clone().map(small))
    })
}

#[cfg(test)]
mod tests {
    use super::Trace;
    use super::client_id;
    use http::HeaderMap;
    use http::HeaderValue;
    use uuid::Uuid;

    const ID: &str = "0af7651916cd43dd8448eb211c80319c";

    #[test]
    fn a_trace_is_the_callers_if_it_is_well_formed() {
        let request = Uuid::from_u128(7);
        let of = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                let value = HeaderValue::from_str(value).expect("a value");
                headers.append("traceparent", value);
            }
            Trace::of(&headers, request).to_string()
        };
        let begun = format!("{:032x}", 7);
        let good = format!("00-{ID}-b7ad6b7169203331-01");
        assert_eq!(of(&[&good]), ID);
        assert_eq!(of(&[&format!("01-{ID}-b7ad6b7169203331-01-more")]), ID);
        let bad = [
            String::new(),
            good.to_uppercase(),
            format!("{good}-more"),
            format!("ff-{ID}-b7ad6b7169203331-01"),
            format!("00-{ID}-0000000000000000-01"),
            format!("00-{}-b7ad6b7169203331-01", "0".repeat(32)),
            format!("00-{ID}-b7ad6b7169203331"),
            format!("00-{ID}0-b7ad6b7169203331-01"),
            format!("00-+{}-b7ad6b7169203331-01", &ID[1..]),
        ];
        for bad in bad {
            assert_eq!(of(&[&bad]), begun, "{bad}");
        }
        assert_eq!(of(&[&good, &good]), begun);
        assert_eq!(of(&[]), begun);
        let trace = Trace::parse(&good).expect("well formed");
        assert_eq!(trace.header(0xab), format!("00-{ID}-00000000000000ab-01"));
        assert_eq!(trace.header(0), format!("00-{ID}-0000000000000001-01"));
    }

    #[test]
    fn a_callers_id_is_a_bounded_word_and_no_key() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(
                "x-request-id",
                HeaderValue::from_str(value).expect("a value"),
            );
            client_id(&headers)
        };
        for good in [
            "a",
            "7f9c-1",
            "0af7651916cd43dd8448eb211c80319c",
            "01a220b2-8890-7c6b-aa5b-d5dfecacbacb",
            "order_12.3:4",
        ] {
            assert_eq!(of(good).as_deref(), Some(good));
        }
        for bad in [
            "",
            "a b",
            "a\"b",
            "7319CanaryKey5520",
            "5829047163829104756",
            "order:roger1AppKey",
            "req-5829047163829104756",
            "5829047163829104756-1",
            &"a".repeat(65),
        ] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_id_that_is_the_requests_own_signature_is_none() {
        let mut headers = HeaderMap::new();
        let signature = "51EDB2A84DDD5A3238CD1D2E306D83F9";
        for (name, value) in [
            ("data-signature", signature.to_owned()),
            ("x-request-id", signature.to_lowercase()),
            (
                "traceparent",
                format!("00-{}-b7ad6b7169203331-01", signature.to_lowercase()),
            ),
        ] {
            headers.insert(name, HeaderValue::from_str(&value).expect("a value"));
        }
        assert_eq!(client_id(&headers), None);
        let with_hyphens = Uuid::parse_str(signature).expect("hex digits").to_string();
        let value = HeaderValue::from_str(&with_hyphens).expect("a value");
        headers.insert("x-request-id", value);
        assert_eq!(client_id(&headers), None);
        let request = Uuid::from_u128(7);
        assert_eq!(
            Trace::of(&headers, request).to_string(),
            format!("{:032x}", 7)
        );
    }
}
