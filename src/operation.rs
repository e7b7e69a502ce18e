//! One operation of the KYBIO API: its canonical name and what may be done with it.

use std::fmt;

use serde::Deserialize;

/// `module/method` or `module/group/method`, in the vendor's own spelling, mistakes included.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OperationName(Box<str>);

/// Why a text can't be an operation's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "an operation is written `module/method` (or with three parts), each of A-Z, a-z, 0-9, at most 100 bytes in all"
)]
pub struct BadOperationName;

impl OperationName {
    /// The longest name, in bytes.
    pub const LENGTH_MAX: usize = 100;

    /// # Errors
    /// When the text isn't two or three alphanumeric segments.
    pub fn new(text: &str) -> Result<Self, BadOperationName> {
        let segment = |segment: &str| {
            !segment.is_empty() && segment.bytes().all(|byte| byte.is_ascii_alphanumeric())
        };
        let good = text.len() <= Self::LENGTH_MAX
            && (2..=3).contains(&text.split('/').count())
            && text.split('/').all(segment);
        if good {
            Ok(Self(text.into()))
        } else {
            Err(BadOperationName)
        }
    }

    /// The canonical spelling, which goes upstream.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for OperationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a call does at the vendor, which decides whether it may be repeated (contract, section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Changes nothing; a repeated one costs a call.
    Read,
    /// Sets values: the same bytes twice give the same state, but a late one may overwrite newer data.
    AbsoluteWrite,
    /// Guarded by a natural key: a second one is answered with an error.
    NaturallyKeyedWrite,
    /// The vendor refuses identical ones.
    DeduplicatedWrite,
    /// Moves something to its next state.
    StateTransition,
    /// Must never be sent twice. Also what every unlisted operation is.
    NonIdempotentWrite,
}

impl Class {
    /// All of them, for metrics that exist from zero.
    pub const ALL: [Self; 6] = [
        Self::Read,
        Self::AbsoluteWrite,
        Self::NaturallyKeyedWrite,
        Self::DeduplicatedWrite,
        Self::StateTransition,
        Self::NonIdempotentWrite,
    ];

    /// As the catalogue and the logs write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::AbsoluteWrite => "absolute-write",
            Self::NaturallyKeyedWrite => "naturally-keyed-write",
            Self::DeduplicatedWrite => "deduplicated-write",
            Self::StateTransition => "state-transition",
            Self::NonIdempotentWrite => "non-idempotent-write",
        }
    }
}

/// Whether the operator lets a write be repeated when it may have left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Repeat {
    /// Never.
    #[default]
    Never,
    /// With the very same bytes, because the operator trusts the vendor's de-duplication.
    IdenticalBytes,
}

/// One entry of the catalogue as it's in force: the shipped one, or the operator's.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Canonical name.
    pub name: OperationName,
    /// What a call does.
    pub class: Class,
    /// Granted only by its exact name, never by `*`.
    pub explicit: bool,
    /// Whether it may be repeated when it may have left.
    pub repeat: Repeat,
    /// A read that tells whether a write of unknown outcome took effect.
    pub lookup: Option<OperationName>,
    /// Kill switch.
    pub paused: bool,
}

#[cfg(test)]
mod tests {
    use super::OperationName;

    #[test]
    fn names_have_two_or_three_segments() {
        for good in [
            "customerOpenApi/add",
            "promotionOpenApi/promotion/addCouponcode",
            "a/b",
        ] {
            assert!(OperationName::new(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "add",
            "/add",
            "a/",
            "a//b",
            "a/b/c/d",
            "a/b?c",
            "a/..",
            "a/b%20",
            &format!("a/{}", "b".repeat(100)),
        ] {
            assert!(OperationName::new(bad).is_err(), "{bad}");
        }
    }
}
