//! Everything that can end a request without KYBIO's word: the sum of the stations' errors, and what each means for the call.

use crate::identity::Unknown;
use crate::outcome::Outcome;
use crate::payload;
use crate::policy;
use crate::reply;
use crate::upstream;
use crate::upstream::Left;

/// Why there's no answer of KYBIO's to pass on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The certificate is nobody's.
    #[error(transparent)]
    Identity(#[from] Unknown),
    /// Not allowed.
    #[error(transparent)]
    Policy(#[from] policy::Error),
    /// The body can't be sent.
    #[error(transparent)]
    Payload(#[from] payload::Error),
    /// A header whose promise isn't kept yet.
    #[error("the gateway doesn't honour Idempotency-Key")]
    IdempotencyKey,
    /// The account's upstream isn't there: configuration has seen to it that it is.
    #[error("the account's upstream is missing")]
    NoUpstream,
    /// No whole reply.
    #[error(transparent)]
    Upstream(upstream::Error),
    /// A whole reply that isn't KYBIO's word.
    #[error(transparent)]
    Reply(reply::Error),
}

impl Error {
    /// The body has ended already, or won't: there's nothing left to wait for.
    #[must_use]
    pub fn ends_body(&self) -> bool {
        matches!(
            self,
            Self::Payload(payload::Error::Slow | payload::Error::Broken)
        )
    }

    /// What happened to the call.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Identity(_)
            | Self::Policy(_)
            | Self::Payload(_)
            | Self::IdempotencyKey
            | Self::NoUpstream => Outcome::NotSent,
            Self::Upstream(error) => match error.left() {
                Left::Nothing => Outcome::NotSent,
                Left::Perhaps => Outcome::Unknown,
            },
            Self::Reply(reply::Error::Refused(_)) => Outcome::Rejected,
            Self::Reply(
                reply::Error::Status(_) | reply::Error::Encoding(_) | reply::Error::NotAnAnswer(_),
            ) => Outcome::Unknown,
        }
    }
}
