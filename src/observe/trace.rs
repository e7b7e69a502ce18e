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

/// The longest of them that is logged.
const CLIENT_ID_LENGTH_MAX: usize = 64;

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
        only.and_then(Self::parse).unwrap_or(Self {
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
            flags: u8::try_from(flags).ok()?,
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
        write!(f, "{:032x}", self.id)
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
    // The vendor's keys have some 19 digits; ids without hyphens have 32.
    let is_key = AppKey::may_be(id) && id.len() < 32;
    let good = (1..=CLIENT_ID_LENGTH_MAX).contains(&id.len()) && id.bytes().all(legal) && !is_key;
    good.then(|| id.into())
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
            &"a".repeat(65),
        ] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
