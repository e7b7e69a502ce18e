//! The migration meter: which callers still sign for themselves, and so still hold a key. What they sign with goes no further than here.

use http::HeaderMap;
use http::HeaderName;

use crate::account::AppKey;
use crate::observe::exchange::Signed;
use crate::sign;

/// What a service sends that signs for itself (contract, section 2). It's as secret as what the gateway computes.
const SIGNATURE: HeaderName = HeaderName::from_static("data-signature");

/// Whether the caller has signed its body, just as it sent it, with the key of the account that it's for. Nobody is told but the metrics and
/// the log: to the caller, and for the call, it makes no difference.
pub(super) fn signed(headers: &HeaderMap, written: &[u8], key: &AppKey) -> Signed {
    let mut values = headers.get_all(SIGNATURE).iter();
    match (values.next(), values.next()) {
        (None, _) => Signed::Absent,
        (Some(only), None) if sign::is_signed(written, key, only.as_bytes()) => Signed::Match,
        (Some(_), _) => Signed::Mismatch,
    }
}
