//! The signature: `upper(hex(md5(appKey ‖ body)))` (contract, section 1). Knows no HTTP and no clock.
//!
//! A body's signature never changes, so it's as secret as the key: it can't be printed, and only `upstream` may put it on the wire.

use std::fmt;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use bytes::Bytes;
use md5::Digest;
use zeroize::Zeroizing;

use crate::account::AppKey;
use crate::payload::Payload;

/// A payload with its signature. Nothing can edit it, and only [`sign`] makes one.
pub struct SignedBody {
    body: Bytes,
    signature: Zeroizing<[u8; SIGNATURE_LENGTH]>,
}

/// 32 upper-case hex digits.
pub const SIGNATURE_LENGTH: usize = 32;

/// MD5's.
const DIGEST_LENGTH: usize = SIGNATURE_LENGTH / 2;

/// Signs the exact bytes.
#[must_use]
pub fn sign(payload: &Payload, key: &AppKey) -> SignedBody {
    let mut signature = Zeroizing::new([0; SIGNATURE_LENGTH]);
    const_hex::encode_to_slice_upper(digest(payload.bytes(), key).as_slice(), &mut *signature)
        .expect("16 bytes are 32 digits");
    SignedBody {
        body: payload.bytes().clone(),
        signature,
    }
}

/// Whether this is the signature of exactly these bytes, in either letter case. How far a wrong one is right can't be told from the time
/// that this takes.
#[must_use]
pub fn is_signed(body: &[u8], key: &AppKey, presented: &[u8]) -> bool {
    let mut digits = Zeroizing::new([0; DIGEST_LENGTH]);
    if presented.len() != SIGNATURE_LENGTH
        || const_hex::decode_to_slice(presented, &mut *digits).is_err()
    {
        return false;
    }
    verify_slices_are_equal(&*digest(body, key), &*digits).is_ok()
}

/// The signature as bytes.
fn digest(body: &[u8], key: &AppKey) -> Zeroizing<[u8; DIGEST_LENGTH]> {
    // The one copy of the keyed state, wiped where it stands: to finish it by value would leave it behind.
    let mut state = key.expose().clone();
    state.update(body);
    let mut digest = Zeroizing::new([0; DIGEST_LENGTH]);
    state.finalize_into_reset((&mut *digest).into());
    digest
}

impl SignedBody {
    /// What was signed.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// These bytes with asterisks in the place of the signature, if they repeat it, in either letter case. What the upstream answers is the
    /// caller's; a signature isn't.
    #[must_use]
    pub fn masked_in(&self, bytes: &[u8]) -> Option<Bytes> {
        let mut masked: Option<Vec<u8>> = None;
        let mut at = SIGNATURE_LENGTH - 1;
        // Wherever a run of so many digits stands, every so manyth byte is one of it: of ordinary answers few are looked at twice.
        while let Some(byte) = bytes.get(at) {
            if !byte.is_ascii_hexdigit() {
                at += SIGNATURE_LENGTH;
                continue;
            }
            let (before, from) = bytes.split_at(at);
            let is_other = |byte: &u8| !byte.is_ascii_hexdigit();
            let start = before.iter().rposition(is_other).map_or(0, |at| at + 1);
            let end = at + from.iter().position(is_other).unwrap_or(from.len());
            for start in start..(end + 1).saturating_sub(SIGNATURE_LENGTH) {
                let digits = start..start + SIGNATURE_LENGTH;
                if bytes[digits.clone()].eq_ignore_ascii_case(&self.signature[..]) {
                    masked.get_or_insert_with(|| bytes.to_vec())[digits].fill(b'*');
                }
            }
            at = end + SIGNATURE_LENGTH;
        }
        masked.map(Bytes::from)
    }

    /// The digits. Called by `upstream` alone (`tests/layers.rs` holds that).
    #[must_use]
    pub fn expose_signature(&self) -> &[u8; SIGNATURE_LENGTH] {
        &self.signature
    }
}

impl fmt::Debug for SignedBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignedBody({} bytes, ..)", self.body.len())
    }
}

#[cfg(test)]
mod tests {
    use super::SignedBody;
    use super::is_signed;
    use super::sign;
    use crate::account::AppId;
    use crate::account::AppKey;
    use crate::payload;
    use crate::payload::Whole;
    use bytes::Bytes;
    use md5::Digest;
    use md5::Md5;
    use serde_json::Value;
    use std::sync::Arc;
    use zeroize::Zeroizing;

    fn key(text: &str) -> Arc<AppKey> {
        AppKey::new(&Zeroizing::new(text.as_bytes().to_vec())).expect("a key")
    }

    #[test]
    fn the_shared_vectors_hold() {
        let vectors: Value =
            serde_json::from_str(include_str!("../tests/vectors/signature-vectors.json"))
                .expect("JSON");
        let vectors = vectors["v1"].as_array().expect("a list");
        assert!(vectors.len() >= 18, "{}", vectors.len());
        for vector in vectors {
            let body =
                const_hex::decode(vector["body_utf8_hex"].as_str().expect("hex")).expect("hex");
            let mut digest = key(vector["app_key"].as_str().expect("text"))
                .expose()
                .clone();
            digest.update(body);
            let digits = const_hex::encode_upper(digest.finalize());
            assert_eq!(
                digits,
                vector["data_signature"].as_str().expect("text"),
                "{}",
                vector["name"]
            );
        }
    }

    #[test]
    fn a_signature_is_known_in_either_letter_case_and_nothing_else_is() {
        let (body, key) = (b"{\"appId\":\"abcdefghijklmn\"}", key("roger1AppKey"));
        for (presented, expected) in [
            ("51EDB2A84DDD5A3238CD1D2E306D83F9", true),
            ("51edb2a84ddd5a3238cd1d2e306d83f9", true),
            ("51EDB2A84DDD5A3238CD1D2E306D83F8", false),
            ("41EDB2A84DDD5A3238CD1D2E306D83F9", false),
            ("51EDB2A84DDD5A3238CD1D2E306D83", false),
            ("51EDB2A84DDD5A3238CD1D2E306D83F9F9", false),
            ("0x51EDB2A84DDD5A3238CD1D2E306D83", false),
            ("0x51EDB2A84DDD5A3238CD1D2E306D83F9", false),
            (" 51EDB2A84DDD5A3238CD1D2E306D83F9", false),
            ("51EDB2A84DDD5A3238CD1D2E306D83FG", false),
            ("", false),
        ] {
            assert_eq!(
                is_signed(body, &key, presented.as_bytes()),
                expected,
                "{presented:?}"
            );
        }
        assert!(!is_signed(b"{}", &key, b"51EDB2A84DDD5A3238CD1D2E306D83F9"));
    }

    /// The shared vector's body and key: its signature is `51EDB2A84DDD5A3238CD1D2E306D83F9`.
    fn signed() -> SignedBody {
        let draft = payload::check(Whole::in_one_piece(Bytes::from_static(
            b"{\"appId\":\"abcdefghijklmn\"}\n",
        )))
        .expect("JSON");
        let payload = draft
            .address(&AppId::new("abcdefghijklmn").expect("an appId"))
            .expect("its own");
        sign(&payload, &key("roger1AppKey\n"))
    }

    #[test]
    fn a_signature_that_an_answer_repeats_is_masked_wherever_it_stands() {
        let upper = "51EDB2A84DDD5A3238CD1D2E306D83F9";
        let (lower, mask) = (upper.to_lowercase(), "*".repeat(32));
        let masked = |text: &str| signed().masked_in(text.as_bytes());
        for text in [
            "",
            "{}",
            &upper[1..],
            &upper[..31],
            "51EDB2A84DDD5A3238CD1D2E306D83F8",
        ] {
            assert_eq!(masked(text), None, "{text}");
        }
        for (text, expected) in [
            (upper.to_owned(), mask.clone()),
            (format!("{lower}{upper}"), format!("{mask}{mask}")),
            (
                format!("got {upper}, not {lower}!"),
                format!("got {mask}, not {mask}!"),
            ),
            (format!("5{upper}F9"), format!("5{mask}F9")),
            (format!("{}{}", &upper[..16], &lower[16..]), mask.clone()),
        ] {
            assert_eq!(masked(&text).expect("it's there"), expected);
        }
        for (before, filler, after) in
            (0..70).flat_map(|count| ["a", "F", " "].map(|filler| (count, filler, 70 - count)))
        {
            let (before, after) = (filler.repeat(before), filler.repeat(after));
            let found = masked(&format!("{before}{upper}{after}")).expect("it's there");
            assert_eq!(found, format!("{before}{mask}{after}"));
        }
    }

    #[test]
    fn a_signed_body_carries_its_digits_and_cannot_be_printed() {
        let signed = signed();
        assert_eq!(
            signed.expose_signature(),
            b"51EDB2A84DDD5A3238CD1D2E306D83F9"
        );
        assert_eq!(format!("{signed:?}"), "SignedBody(26 bytes, ..)");
        let independent = Md5::digest(b"roger1AppKey{\"appId\":\"abcdefghijklmn\"}");
        assert_eq!(
            const_hex::encode_upper(independent).as_bytes(),
            signed.expose_signature()
        );
    }
}
