//! The names that configuration gives to accounts, callers and upstreams. They become metric labels and headers, so their alphabet is small.
//! A clone is another handle to the same text: each request hands several on.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// Why a name can't be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a name is 1 to 40 of a-z, 0-9 and -, and doesn't start with -")]
pub struct BadName;

/// The longest name, in bytes.
pub const NAME_LENGTH_MAX: usize = 40;

fn checked(text: &str) -> Result<Arc<str>, BadName> {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let good = (1..=NAME_LENGTH_MAX).contains(&text.len())
        && !text.starts_with('-')
        && text.bytes().all(legal);
    if good { Ok(text.into()) } else { Err(BadName) }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// `[a-z0-9][a-z0-9-]{0,39}`.
            ///
            /// # Errors
            /// When the text has another form.
            pub fn new(text: &str) -> Result<Self, BadName> {
                checked(text).map(Self)
            }

            /// The name as it was written.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            /// So that a map of names can be asked for a text.
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// One merchant account: an appId with its key, on one upstream.
    AccountName
}
name! {
    /// One internal service.
    CallerName
}
name! {
    /// One KYBIO host.
    UpstreamName
}

#[cfg(test)]
mod tests {
    use super::AccountName;

    #[test]
    fn names_have_a_small_alphabet() {
        for good in ["main", "store-1", "0", "a-", &"a".repeat(40)] {
            assert!(AccountName::new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "Main",
            "a_b",
            "a.b",
            "ä",
            "a b",
            "a\n",
            &"a".repeat(41),
        ] {
            assert!(AccountName::new(bad).is_err(), "{bad:?}");
        }
    }
}
