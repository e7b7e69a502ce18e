//! Whether a call is sent again. Pure: the time, the chance and what is left of the budget come in as arguments, nothing is waited for
//! here. A write that may have left is never sent again, unless the operator trusts the vendor to refuse its repeat.

pub mod budget;

use std::time::Duration;

use crate::operation::Class;
use crate::operation::Repeat;

/// What configuration says of one upstream's retries.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Attempts for one request, the first among them.
    pub attempts_max: u32,
    /// The longest pause before the second attempt; doubled for each one after it.
    pub backoff_min: Duration,
    /// Where that doubling ends.
    pub backoff_max: Duration,
    /// With less time than this an attempt would most likely cost a call for nothing.
    pub attempt_time_min: Duration,
}

/// How an attempt ended that isn't an answer to pass on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nothing left.
    Unsent,
    /// It may have left, and no trustworthy answer came; the next attempt may bring one.
    Lost,
    /// A definite no that may be a yes later: `transient`, or HTTP 429 with Retry-After.
    NotNow,
    /// Another attempt would end the same way.
    Final,
}

/// All that a decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// What a call does.
    pub class: Class,
    /// Whether the operator lets it be repeated when it may have left.
    pub repeat: Repeat,
    /// How the last attempt ended.
    pub failure: Failure,
    /// How long the host wants to be left alone (`Retry-After`).
    pub not_before: Option<Duration>,
    /// Attempts made.
    pub attempts: u32,
    /// Pauses since the last attempt.
    pub pauses: u32,
    /// The upstream's budget has room for a retry now.
    pub budget_left: bool,
    /// Until the request's deadline.
    pub time_left: Duration,
    /// Somebody still wants to hear of it.
    pub caller_waits: bool,
    /// Equally distributed from 0 to 1: the jitter.
    pub chance: f64,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decision {
    /// Wait that long, and decide again.
    Pause(Duration),
    /// Send it again.
    Again,
    /// Tell the caller what happened.
    Stop(Reason),
}

/// Why a call isn't sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its class forbids it, or it would change nothing.
    Forbidden,
    /// `attempts_max`.
    Attempts,
    /// Its deadline.
    Time,
    /// The upstream's retry budget.
    Budget,
    /// Nobody waits for it.
    CallerGone,
}

impl Reason {
    /// As the log names it; that a class forbids it goes without saying.
    #[must_use]
    pub fn as_str(self) -> Option<&'static str> {
        match self {
            Self::Forbidden => None,
            Self::Attempts => Some("attempts_max"),
            Self::Time => Some("no time left"),
            Self::Budget => Some("retry budget spent"),
            Self::CallerGone => Some("nobody waits"),
        }
    }
}

/// How often a retry that the budget has no room for looks again. Under load there's room after a moment; when everything fails there
/// isn't, and the caller is told soon.
const PAUSES_MAX: u32 = 4;

/// A host that wants to be left alone for longer isn't waited for: the call would hold its place from others meanwhile.
const NOT_BEFORE_MAX: Duration = Duration::from_secs(5);

impl Rules {
    /// Each retry is preceded by a pause, so that the first decision after an attempt is never [`Decision::Again`].
    #[must_use]
    pub fn decide(&self, case: &Case) -> Decision {
        if !may_repeat(case.class, case.repeat, case.failure) {
            return Decision::Stop(Reason::Forbidden);
        }
        if !case.caller_waits {
            return Decision::Stop(Reason::CallerGone);
        }
        if case.attempts >= self.attempts_max {
            return Decision::Stop(Reason::Attempts);
        }
        if case.pauses > 0 && case.budget_left {
            return if case.time_left < self.attempt_time_min {
                Decision::Stop(Reason::Time)
            } else {
                Decision::Again
            };
        }
        if case.pauses >= PAUSES_MAX {
            return Decision::Stop(Reason::Budget);
        }
        let pause = self.pause(case);
        let too_long = case.not_before.is_some_and(|pause| pause > NOT_BEFORE_MAX);
        if too_long || pause.saturating_add(self.attempt_time_min) > case.time_left {
            Decision::Stop(Reason::Time)
        } else {
            Decision::Pause(pause)
        }
    }

    /// Full jitter: anything from nothing to a bound that doubles, so that callers who failed together don't come back together.
    fn pause(&self, case: &Case) -> Duration {
        let doublings = case.attempts.saturating_sub(1) + case.pauses;
        let bound = self
            .backoff_min
            .saturating_mul(2_u32.saturating_pow(doublings))
            .min(self.backoff_max);
        let jittered = bound.mul_f64(case.chance.clamp(0.0, 1.0));
        if case.pauses == 0 {
            jittered.saturating_add(case.not_before.unwrap_or_default())
        } else {
            // Time has to pass for the budget to have room again.
            jittered.max(bound / 2)
        }
    }
}

/// A read may be sent again whenever it's of use; a write only if nothing left, or if the vendor is trusted to refuse the same bytes.
#[must_use]
pub fn may_repeat(class: Class, repeat: Repeat, failure: Failure) -> bool {
    match failure {
        Failure::Unsent => true,
        Failure::Lost => class == Class::Read || is_trusted(class, repeat),
        Failure::NotNow => class == Class::Read,
        Failure::Final => false,
    }
}

/// The vendor refuses identical ones, and the operator relies on that.
fn is_trusted(class: Class, repeat: Repeat) -> bool {
    class == Class::DeduplicatedWrite && repeat == Repeat::IdenticalBytes
}

#[cfg(test)]
mod tests {
    use super::Case;
    use super::Decision;
    use super::Failure;
    use super::PAUSES_MAX;
    use super::Reason;
    use super::Rules;
    use crate::operation::Class;
    use crate::operation::Repeat;
    use proptest::prelude::*;
    use std::time::Duration;

    const RULES: Rules = Rules {
        attempts_max: 3,
        backoff_min: Duration::from_millis(50),
        backoff_max: Duration::from_millis(400),
        attempt_time_min: Duration::from_millis(10),
    };

    const CLASSES: [Class; 6] = [
        Class::Read,
        Class::AbsoluteWrite,
        Class::NaturallyKeyedWrite,
        Class::DeduplicatedWrite,
        Class::StateTransition,
        Class::NonIdempotentWrite,
    ];

    const FAILURES: [Failure; 4] = [
        Failure::Unsent,
        Failure::Lost,
        Failure::NotNow,
        Failure::Final,
    ];

    /// A read that was lost, with everything left.
    const LOST_READ: Case = Case {
        class: Class::Read,
        repeat: Repeat::Never,
        failure: Failure::Lost,
        not_before: None,
        attempts: 1,
        pauses: 1,
        budget_left: true,
        time_left: Duration::from_secs(10),
        caller_waits: true,
        chance: 0.5,
    };

    #[test]
    fn what_may_be_sent_again_is_told_by_class_and_failure() {
        for class in CLASSES {
            for repeat in [Repeat::Never, Repeat::IdenticalBytes] {
                let allowed: Vec<_> = FAILURES
                    .into_iter()
                    .filter(|failure| {
                        let case = Case {
                            class,
                            repeat,
                            failure: *failure,
                            ..LOST_READ
                        };
                        RULES.decide(&case) == Decision::Again
                    })
                    .collect();
                let expected: &[Failure] = match (class, repeat) {
                    (Class::Read, _) => &[Failure::Unsent, Failure::Lost, Failure::NotNow],
                    (Class::DeduplicatedWrite, Repeat::IdenticalBytes) => {
                        &[Failure::Unsent, Failure::Lost]
                    }
                    _ => &[Failure::Unsent],
                };
                assert_eq!(allowed, expected, "{class:?} {repeat:?}");
            }
        }
    }

    #[test]
    fn the_limits_are_told_by_name() {
        let cases = [
            (LOST_READ, Decision::Again),
            (
                Case {
                    pauses: 0,
                    ..LOST_READ
                },
                Decision::Pause(Duration::from_millis(25)),
            ),
            (
                Case {
                    pauses: 0,
                    attempts: 2,
                    chance: 1.0,
                    ..LOST_READ
                },
                Decision::Pause(Duration::from_millis(100)),
            ),
            (
                Case {
                    pauses: 0,
                    not_before: Some(Duration::from_secs(2)),
                    ..LOST_READ
                },
                Decision::Pause(Duration::from_millis(2_025)),
            ),
            (
                Case {
                    pauses: 0,
                    not_before: Some(Duration::from_secs(2)),
                    time_left: Duration::from_secs(2),
                    ..LOST_READ
                },
                Decision::Stop(Reason::Time),
            ),
            (
                Case {
                    pauses: 0,
                    not_before: Some(Duration::from_secs(6)),
                    ..LOST_READ
                },
                Decision::Stop(Reason::Time),
            ),
            (
                Case {
                    attempts: 3,
                    ..LOST_READ
                },
                Decision::Stop(Reason::Attempts),
            ),
            (
                Case {
                    time_left: Duration::from_millis(9),
                    ..LOST_READ
                },
                Decision::Stop(Reason::Time),
            ),
            (
                Case {
                    caller_waits: false,
                    ..LOST_READ
                },
                Decision::Stop(Reason::CallerGone),
            ),
            (
                Case {
                    budget_left: false,
                    chance: 0.0,
                    ..LOST_READ
                },
                Decision::Pause(Duration::from_millis(50)),
            ),
            (
                Case {
                    budget_left: false,
                    pauses: PAUSES_MAX,
                    ..LOST_READ
                },
                Decision::Stop(Reason::Budget),
            ),
        ];
        for (case, expected) in cases {
            assert_eq!(RULES.decide(&case), expected, "{case:?}");
        }
    }

    fn any_case() -> impl Strategy<Value = Case> {
        let words = (
            prop::sample::select(CLASSES.to_vec()),
            prop::sample::select(vec![Repeat::Never, Repeat::IdenticalBytes]),
            prop::sample::select(FAILURES.to_vec()),
        );
        let numbers = (
            prop::option::of(prop_oneof![0..60_u64, Just(u64::MAX)]),
            1..12_u32,
            0..8_u32,
            0..60_000_u64,
        );
        (words, numbers, any::<(bool, bool)>(), 0.0..=1.0_f64).prop_map(
            |((class, repeat, failure), (after, attempts, pauses, left), flags, chance)| Case {
                class,
                repeat,
                failure,
                not_before: after.map(Duration::from_secs),
                attempts,
                pauses,
                budget_left: flags.0,
                time_left: Duration::from_millis(left),
                caller_waits: flags.1,
                chance,
            },
        )
    }

    proptest! {
        #[test]
        fn no_write_goes_again_once_it_may_have_left(case in any_case()) {
            let trusted = case.class == Class::DeduplicatedWrite && case.repeat == Repeat::IdenticalBytes;
            prop_assume!(case.class != Class::Read && !trusted && case.failure != Failure::Unsent);
            prop_assert_eq!(RULES.decide(&case), Decision::Stop(Reason::Forbidden));
        }

        #[test]
        fn attempts_time_and_budget_are_never_exceeded(case in any_case()) {
            match RULES.decide(&case) {
                Decision::Again => prop_assert!(
                    case.attempts < RULES.attempts_max && case.budget_left && case.caller_waits && case.time_left >= RULES.attempt_time_min && case.pauses > 0
                ),
                Decision::Pause(pause) => prop_assert!(pause + RULES.attempt_time_min <= case.time_left && case.pauses < PAUSES_MAX && case.attempts < RULES.attempts_max),
                Decision::Stop(_) => {}
            }
        }

        #[test]
        fn every_call_comes_to_an_end(mut case in any_case(), chances in prop::collection::vec(0.0..=1.0_f64, 64)) {
            let began = case.time_left;
            case.attempts = 1;
            case.pauses = 0;
            for chance in chances {
                case.chance = chance;
                match RULES.decide(&case) {
                    Decision::Again => (case.attempts, case.pauses) = (case.attempts + 1, 0),
                    Decision::Pause(pause) => {
                        case.time_left -= pause;
                        case.pauses += 1;
                    }
                    Decision::Stop(_) => {
                        prop_assert!(case.attempts <= RULES.attempts_max && case.time_left <= began);
                        return Ok(());
                    }
                }
            }
            prop_assert!(false, "it didn't stop: {case:?}");
        }
    }
}
