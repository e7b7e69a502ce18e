//! A merchant account and its secret. The key is absorbed into a digest the moment it's read, and nothing here can print it.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use aws_lc_rs::hmac;
use md5::Digest;
use md5::Md5;
use zeroize::Zeroizing;

use crate::name::AccountName;
use crate::name::UpstreamName;

/// One appId with its key, on one upstream.
#[derive(Debug)]
pub struct Account {
    /// The name that configuration gives it.
    pub name: AccountName,
    /// What is spliced into each body.
    pub app_id: AppId,
    /// The host that its signed bodies go to, and no other.
    pub upstream: UpstreamName,
    /// The key, or why there is none (a fixed sentence, fit for a log).
    pub key: Result<Arc<AppKey>, KeyFault>,
    /// Kill switch.
    pub paused: bool,
    /// Calls with it at a time.
    pub in_flight_max: usize,
}

impl Account {
    /// The account with another key.
    #[must_use]
    pub fn with_key(&self, key: Result<Arc<AppKey>, KeyFault>) -> Self {
        Self {
            name: self.name.clone(),
            app_id: self.app_id.clone(),
            upstream: self.upstream.clone(),
            key,
            paused: self.paused,
            in_flight_max: self.in_flight_max,
        }
    }
}

/// The vendor's public half of the credentials: goes into the body as `appId`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AppId(Box<str>);

/// Why a text can't be an appId.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an appId is 1 to 64 of A-Z, a-z, 0-9, `.`, `_` and `-`")]
pub struct BadAppId;

impl AppId {
    /// The longest appId, in bytes. The vendor's are 32 upper-case hex digits as a rule.
    pub const LENGTH_MAX: usize = 64;

    /// The alphabet needs no escaping in JSON, so that splicing is plain copying.
    ///
    /// # Errors
    /// When the text is empty, too long, or has another character.
    pub fn new(text: &str) -> Result<Self, BadAppId> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let good = (1..=Self::LENGTH_MAX).contains(&text.len()) && text.bytes().all(legal);
        if good {
            Ok(Self(text.into()))
        } else {
            Err(BadAppId)
        }
    }

    /// The appId as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What is known by its appId is found by what a caller wrote.
impl Borrow<str> for AppId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The secret half, as the state of an MD5 that has read it: `appKey` comes first in what is signed (contract, section 1), so
/// the text itself isn't needed again. The state is as secret as the text: MD5 keeps what hasn't filled a block of 64 bytes as it is. No `Clone`, `Display` or `Serialize`; wiped on drop.
/// It's made where it stays, and never had by value: to move it would leave a copy behind that nobody wipes.
pub struct AppKey {
    state: Md5,
    tag: Zeroizing<[u8; TAG_LENGTH]>,
}

/// What people may see of a key: enough to tell one from the next, and the same in each replica. Whoever guesses at keys can rule out
/// all but one guess in 16 million with it, and confirm none; the key check values that payment terminals show have this length too.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; FINGERPRINT_LENGTH]);

/// 24 bits.
const FINGERPRINT_LENGTH: usize = 3;

/// SHA-256's.
const TAG_LENGTH: usize = 32;

/// What is authenticated with the key for its tag.
const TAG_OF: &[u8] = b"kybio-gateway: which key is this?";

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self([first, second, third]) = self;
        write!(f, "{first:02x}{second:02x}{third:02x}")
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a key file's content can't be used. Says nothing of the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyFault {
    /// No file of that name.
    #[error("there is no such key file")]
    Missing,
    /// The process isn't allowed to.
    #[error("the process may not read the key file")]
    Forbidden,
    /// Not a file, or one that can't be read.
    #[error("the key file can't be read: is it a regular file?")]
    Unreadable,
    /// Others may read or write it.
    #[error("the key file is open to others: chmod 0400, or 0440 with the process's group")]
    Permissions,
    /// Nothing but white space.
    #[error("the key file is empty")]
    Empty,
    /// White space or control characters inside.
    #[error("the key has white space or control characters inside")]
    InnerWhitespace,
    /// Something that isn't ASCII.
    #[error(
        "the key has characters that aren't ASCII: is there a byte order mark, or a wide space?"
    )]
    NotAscii,
    /// Longer than [`AppKey::LENGTH_MAX`].
    #[error("the key is longer than 256 bytes: is it the right file?")]
    TooLong,
}

impl AppKey {
    /// The longest key, in bytes. The vendor's have some 19 digits.
    pub const LENGTH_MAX: usize = 256;

    /// Takes a key as its file has it; white space around it is dropped, because a trailing line break is the classic mistake.
    ///
    /// # Errors
    /// When what remains is empty, too long, or has anything but printable ASCII inside.
    pub fn new(text: &Zeroizing<Vec<u8>>) -> Result<Arc<Self>, KeyFault> {
        let key = text.trim_ascii();
        if key.is_empty() {
            return Err(KeyFault::Empty);
        }
        if key.len() > Self::LENGTH_MAX {
            return Err(KeyFault::TooLong);
        }
        if key
            .iter()
            .any(|byte| byte.is_ascii_whitespace() || byte.is_ascii_control())
        {
            return Err(KeyFault::InnerWhitespace);
        }
        if !key.is_ascii() {
            return Err(KeyFault::NotAscii);
        }
        let mut kept = Arc::new(Self {
            state: Md5::default(),
            tag: Zeroizing::new([0; TAG_LENGTH]),
        });
        let Self { state, tag } = Arc::get_mut(&mut kept).expect("nobody else has it yet");
        state.update(key);
        let authenticated = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), TAG_OF);
        tag.copy_from_slice(authenticated.as_ref());
        Ok(kept)
    }

    /// The keyed state. Called by `sign` alone (`tests/layers.rs` holds that).
    #[must_use]
    pub fn expose(&self) -> &Md5 {
        &self.state
    }

    /// What people may see of it: the first bytes of an HMAC-SHA-256 under the key, of a text that's the same for all.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        let [first, second, third, ..] = *self.tag;
        Fingerprint([first, second, third])
    }

    /// Letters and digits, as many as a key has: such a text isn't repeated where somebody may have put a key by mistake.
    #[must_use]
    pub fn may_be(text: &str) -> bool {
        text.len() >= Self::LENGTH_MIN
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
            && text.bytes().any(|byte| byte.is_ascii_digit())
    }

    /// Of what may be one. The vendor's have some 19 digits.
    const LENGTH_MIN: usize = 12;

    /// The two are one and the same.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.tag == other.tag
    }
}

impl fmt::Debug for AppKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AppKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::AppId;
    use super::AppKey;
    use super::KeyFault;
    use zeroize::Zeroizing;

    #[test]
    fn a_key_is_trimmed_and_checked() {
        let check = |text: &str, expected: Option<KeyFault>| {
            assert_eq!(
                AppKey::new(&Zeroizing::new(text.into())).err(),
                expected,
                "{text:?}"
            );
        };
        check("1234567890123456789\n", None);
        check("\t roger1AppKey \r\n", None);
        check("", Some(KeyFault::Empty));
        check(" \n", Some(KeyFault::Empty));
        check("two words", Some(KeyFault::InnerWhitespace));
        check("two\nlines", Some(KeyFault::InnerWhitespace));
        check("nul\0", Some(KeyFault::InnerWhitespace));
        for odd in [
            "\u{feff}1234",
            "1234\u{a0}",
            "\u{3000}1234",
            "12\u{200b}34",
            "１２３４",
        ] {
            check(odd, Some(KeyFault::NotAscii));
        }
        check(&"k".repeat(257), Some(KeyFault::TooLong));
    }

    #[test]
    fn a_key_cannot_be_printed() {
        let key = AppKey::new(&Zeroizing::new(b"canary".to_vec())).expect("a good key");
        assert_eq!(
            format!("{key:?} {:?}", Some(&key)),
            "AppKey(..) Some(AppKey(..))"
        );
    }

    /// Computed with `printf 'kybio-gateway: which key is this?' | openssl dgst -sha256 -hmac roger1AppKey`.
    #[test]
    fn a_key_is_told_from_the_next_by_its_fingerprint() {
        let key = |text: &str| AppKey::new(&Zeroizing::new(text.into())).expect("a good key");
        let (one, same, other) = (
            key("roger1AppKey"),
            key(" roger1AppKey\n"),
            key("roger2AppKey"),
        );
        assert_eq!(one.fingerprint().to_string(), "d42ae0");
        assert_eq!(format!("{:?}", one.fingerprint()), "d42ae0");
        assert_eq!(one.fingerprint(), same.fingerprint());
        assert!(one.is(&same));
        assert_ne!(one.fingerprint(), other.fingerprint());
        assert!(!one.is(&other));
    }

    #[test]
    fn an_app_id_needs_no_escaping() {
        for good in [
            "abcdefghijklmn",
            "EC48AD85DCDDF5D69567C82E4565B127",
            "a.b_c-d",
        ] {
            assert!(AppId::new(good).is_ok(), "{good}");
        }
        for bad in ["", "a\"b", "a\\b", "a b", "ä", &"a".repeat(65)] {
            assert!(AppId::new(bad).is_err(), "{bad}");
        }
    }
}
