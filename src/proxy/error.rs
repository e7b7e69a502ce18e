//! Everything that can end a request without KYBIO's word: the sum of the stations' errors, and what each means for the call.

use http::StatusCode;

use crate::identity::Unknown;
use crate::outcome::Left;
use crate::outcome::Outcome;
use crate::payload;
use crate::policy;
use crate::quota::UsedUp;
use crate::reply;
use crate::reply::RetryAfter;
use crate::reply::encoding;
use crate::retry::Failure;
use crate::slots;
use crate::upstream;

/// Why there's no answer of KYBIO's to pass on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody that configuration knows.
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
    /// The caller's own limit of its wait isn't one.
    #[error("the Kybio-Gateway-Timeout-Ms header must stand once, with 1 to 3600000 milliseconds")]
    BadTimeout,
    /// The caller's own time is up, and nothing has left.
    #[error("the time that the caller gave is up, and nothing was sent")]
    CallerTimeout,
    /// Too little of the request's time is left to hear an answer.
    #[error("the request's time was gone before the call could be sent")]
    NoTimeLeft,
    /// Too many calls are under way.
    #[error(transparent)]
    Slots(#[from] slots::Refused),
    /// The account has no calls left today.
    #[error(transparent)]
    UsedUp(#[from] UsedUp),
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
            Self::Payload(payload::Error::Slow | payload::Error::Broken) | Self::CallerTimeout
        )
    }

    /// What happened to the call.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.nature().0
    }

    /// What it means for another attempt.
    #[must_use]
    pub fn failure(&self) -> Failure {
        self.nature().1
    }

    /// The `result` label of an attempt that ended so.
    #[must_use]
    pub fn label(&self) -> &'static str {
        self.nature().2
    }

    fn nature(&self) -> (Outcome, Failure, &'static str) {
        match self {
            Self::Identity(_)
            | Self::Policy(_)
            | Self::Payload(_)
            | Self::IdempotencyKey
            | Self::BadTimeout
            | Self::CallerTimeout
            | Self::NoTimeLeft
            | Self::Slots(_)
            | Self::UsedUp(_)
            | Self::NoUpstream => (Outcome::NotSent, Failure::Final, "none"),
            Self::Upstream(error) => {
                let (outcome, failure) = match (error, error.left()) {
                    // One call too many, for nobody, or with an answer that would be too large again.
                    (
                        upstream::Error::Capacity
                        | upstream::Error::Down
                        | upstream::Error::Unwanted,
                        _,
                    ) => (Outcome::NotSent, Failure::Final),
                    (upstream::Error::TooLarge(_), _) => (Outcome::Unknown, Failure::Final),
                    (_, Left::Nothing) => (Outcome::NotSent, Failure::Unsent),
                    (_, Left::Perhaps) => (Outcome::Unknown, Failure::Lost),
                };
                (outcome, failure, error.label())
            }
            Self::Reply(reply::Error::Refused(status, after)) => {
                let later = *status == StatusCode::TOO_MANY_REQUESTS && after.is_some();
                let failure = if later {
                    Failure::NotNow
                } else {
                    Failure::Final
                };
                (Outcome::Rejected, failure, "refused")
            }
            Self::Reply(reply::Error::Status(status, _)) => {
                let passes = [
                    StatusCode::BAD_GATEWAY,
                    StatusCode::SERVICE_UNAVAILABLE,
                    StatusCode::GATEWAY_TIMEOUT,
                ];
                let failure = if passes.contains(status) {
                    Failure::Lost
                } else {
                    Failure::Final
                };
                (Outcome::Unknown, failure, "status")
            }
            // It would be too large again.
            Self::Reply(reply::Error::Encoding(encoding::Error::TooLarge(_))) => {
                (Outcome::Unknown, Failure::Final, "too-large")
            }
            Self::Reply(reply::Error::Encoding(_) | reply::Error::NotAnAnswer(_)) => {
                (Outcome::Unknown, Failure::Lost, "unreadable")
            }
        }
    }

    /// How long the host wants to be left alone, if it says so.
    #[must_use]
    pub fn retry_after(&self) -> Option<RetryAfter> {
        match self {
            Self::Reply(error) => error.retry_after(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Error;
    use crate::observe::metrics::RESULTS;
    use crate::outcome::Outcome;
    use crate::reply;
    use crate::reply::RetryAfter;
    use crate::retry::Failure;
    use crate::upstream;
    use http::StatusCode;

    /// One that isn't would be counted nowhere.
    #[test]
    fn what_comes_of_an_attempt_is_one_of_the_results() {
        let io = || std::io::Error::other("x");
        let upstream = [
            upstream::Error::Resolve(io()),
            upstream::Error::Connect(io()),
            upstream::Error::Exhausted(io()),
            upstream::Error::Tls(io()),
            upstream::Error::ConnectTimeout,
            upstream::Error::Late,
            upstream::Error::Timeout(crate::outcome::Left::Perhaps),
            upstream::Error::TooLarge(1),
        ];
        let reply = [
            reply::Error::Refused(StatusCode::NOT_FOUND, None),
            reply::Error::Status(StatusCode::BAD_GATEWAY, None),
            reply::Error::Encoding(reply::encoding::Error::TooLarge(1)),
        ];
        let errors = upstream.into_iter().map(Error::Upstream);
        for error in errors.chain(reply.into_iter().map(Error::Reply)) {
            assert!(RESULTS.contains(&error.label()), "{error:?}");
        }
    }

    #[test]
    fn what_came_back_decides_outcome_and_failure() {
        let soon = Some(RetryAfter::Seconds(1));
        let status = |status: u16, after| {
            let status = StatusCode::from_u16(status).expect("a status");
            // As `reply` sorts them.
            Error::Reply(if matches!(status.as_u16(), 400..=405 | 413 | 415 | 429) {
                reply::Error::Refused(status, after)
            } else {
                reply::Error::Status(status, after)
            })
        };
        let cases = [
            (status(429, None), Outcome::Rejected, Failure::Final),
            (status(429, soon), Outcome::Rejected, Failure::NotNow),
            (status(403, soon), Outcome::Rejected, Failure::Final),
            (status(500, soon), Outcome::Unknown, Failure::Final),
            (status(307, None), Outcome::Unknown, Failure::Final),
            (status(502, None), Outcome::Unknown, Failure::Lost),
            (status(503, None), Outcome::Unknown, Failure::Lost),
            (status(503, soon), Outcome::Unknown, Failure::Lost),
            (status(504, None), Outcome::Unknown, Failure::Lost),
            (
                Error::Upstream(upstream::Error::ConnectTimeout),
                Outcome::NotSent,
                Failure::Unsent,
            ),
            (
                Error::Upstream(upstream::Error::Timeout(crate::outcome::Left::Nothing)),
                Outcome::NotSent,
                Failure::Unsent,
            ),
            (
                Error::Upstream(upstream::Error::Timeout(crate::outcome::Left::Perhaps)),
                Outcome::Unknown,
                Failure::Lost,
            ),
            (
                Error::Upstream(upstream::Error::TooLarge(1)),
                Outcome::Unknown,
                Failure::Final,
            ),
            (
                Error::Upstream(upstream::Error::Down),
                Outcome::NotSent,
                Failure::Final,
            ),
            (
                Error::Upstream(upstream::Error::Capacity),
                Outcome::NotSent,
                Failure::Final,
            ),
            (
                Error::Upstream(upstream::Error::Unwanted),
                Outcome::NotSent,
                Failure::Final,
            ),
            (
                Error::Upstream(upstream::Error::Late),
                Outcome::NotSent,
                Failure::Unsent,
            ),
            (Error::CallerTimeout, Outcome::NotSent, Failure::Final),
        ];
        for (error, outcome, failure) in cases {
            assert_eq!(
                (error.outcome(), error.failure()),
                (outcome, failure),
                "{error:?}"
            );
        }
    }
}
