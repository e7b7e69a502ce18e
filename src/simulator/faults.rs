//! The book of faults: in which ways the stand-in host is to misbehave, for which calls, and how often each did. It decides and
//! counts, and says so in one log line; it never touches a connection or a shop.

use std::fmt;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::time::Duration;

use fastrand::Rng;
use http::StatusCode;
use thiserror::Error;
use tokio::sync::watch;

use crate::simulator::call::locked;
use crate::simulator::operations::Operation;

/// One way to misbehave. What each looks like from a caller's side is in `docs/simulator.md`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A new connection is reset before TLS. Setting it also closes the connections that are idle, so that the next call needs a
    /// new one. No effect.
    Refuse,
    /// A connection that has carried a call is reset at the first bytes of its next one. No effect. On a connection's first call it
    /// doesn't strike and isn't used up.
    CloseOnReuse,
    /// The connection is reset once the request's head is there. No effect.
    ResetBeforeReading,
    /// The call takes effect, then the connection is reset without an answer.
    ResetAfterReading,
    /// The call takes effect and is never answered; the connection stays.
    NoAnswer,
    /// The call takes effect; the answer ends in the middle of its body.
    HalfAnswer,
    /// The call takes effect and is answered late.
    Slow {
        /// How late; at most [`DELAY_MAX`].
        delay: Duration,
    },
    /// An HTTP error in place of an answer. No effect.
    Status {
        /// 429, or 500 to 599.
        status: StatusCode,
        /// `Retry-After` in seconds; at most [`RETRY_AFTER_MAX`].
        retry_after: Option<u32>,
    },
    /// The call takes effect; the answer is a page of HTML with HTTP 200.
    Garbage,
    /// The call takes effect; the answer's Content-Length is larger than its body, and the connection ends.
    WrongLength,
    /// The call takes effect; the answer is gzip, and its end is missing.
    TruncatedGzip,
    /// The vendor's own words for a used-up quota. No effect: nothing is taken from the quota either.
    Quota,
}

impl Fault {
    /// Every fault, with the values that it has when none are given.
    pub const ALL: [Self; 12] = [
        Self::Refuse,
        Self::CloseOnReuse,
        Self::ResetBeforeReading,
        Self::ResetAfterReading,
        Self::NoAnswer,
        Self::HalfAnswer,
        Self::Slow {
            delay: Duration::from_secs(2),
        },
        Self::Status {
            status: StatusCode::SERVICE_UNAVAILABLE,
            retry_after: None,
        },
        Self::Garbage,
        Self::WrongLength,
        Self::TruncatedGzip,
        Self::Quota,
    ];

    /// The word for it, in control calls and in the log.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::CloseOnReuse => "close-on-reuse",
            Self::ResetBeforeReading => "reset-before-reading",
            Self::ResetAfterReading => "reset-after-reading",
            Self::NoAnswer => "no-answer",
            Self::HalfAnswer => "half-answer",
            Self::Slow { .. } => "slow",
            Self::Status { .. } => "status",
            Self::Garbage => "garbage",
            Self::WrongLength => "wrong-length",
            Self::TruncatedGzip => "truncated-gzip",
            Self::Quota => "quota",
        }
    }

    /// The fault of that name, with the values that it has when none are given.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| fault.name() == name)
    }

    fn stage(&self) -> Stage {
        match self {
            Self::Refuse => Stage::Connection,
            Self::CloseOnReuse => Stage::Reuse,
            Self::ResetBeforeReading
            | Self::ResetAfterReading
            | Self::NoAnswer
            | Self::HalfAnswer
            | Self::Slow { .. }
            | Self::Status { .. }
            | Self::Garbage
            | Self::WrongLength
            | Self::TruncatedGzip
            | Self::Quota => Stage::Call,
        }
    }
}

/// When a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum When {
    /// The next so many times that it can, 1 to [`CALLS_MAX`]; then it's gone.
    Next(u32),
    /// With this probability, 0 to 1, until it's cleared.
    Probability(f64),
}

/// A fault as it's asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// What to do.
    pub fault: Fault,
    /// To calls of this operation alone, in any letter case; else to all. A connection knows no operation: [`Fault::Refuse`] and
    /// [`Fault::CloseOnReuse`] can't have one.
    pub operation: Option<String>,
    /// How often.
    pub when: When,
}

/// An entry of the book and its history.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    /// What was asked for, the operation in the vendor's spelling; of `Next`, what is left.
    pub entry: Entry,
    /// How often it struck.
    pub struck: u64,
}

/// Why a fault can't be set. Each says what is allowed.
#[derive(Debug, Error, PartialEq)]
pub enum Error {
    /// The book is full.
    #[error("there are {FAULTS_MAX} faults already: clear them first")]
    Full,
    /// No such operation.
    #[error("there is no operation {0:?}: write it as customerOpenApi/add")]
    OperationUnknown(String),
    /// The fault strikes before there is an operation.
    #[error("{0} takes no operation: it strikes the connection, before a call is read")]
    OperationEarly(&'static str),
    /// A count out of bounds.
    #[error("calls is 1 to {CALLS_MAX}")]
    Calls,
    /// A probability out of bounds.
    #[error("probability is 0 to 1")]
    Probability,
    /// A delay out of bounds.
    #[error("delay_ms is 0 to {}", DELAY_MAX.as_millis())]
    Delay,
    /// A status that is no server's error.
    #[error("status is 429, or 500 to 599")]
    Status,
    /// A wait out of bounds.
    #[error("retry_after is 0 to {RETRY_AFTER_MAX} seconds")]
    RetryAfter,
}

/// The book, shared by all connections.
pub struct Faults {
    book: Mutex<Book>,
    refusing: watch::Sender<()>,
}

struct Book {
    standings: Vec<Standing>,
    chance: Rng,
    struck: u64,
}

/// Where in a connection's life a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Connection,
    Reuse,
    Call,
}

impl Faults {
    /// An empty book. Of two with one seed and the same calls, the same ones are struck.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            book: Mutex::new(Book {
                standings: Vec::new(),
                chance: Rng::with_seed(seed),
                struck: 0,
            }),
            refusing: watch::Sender::new(()),
        }
    }

    /// Sets a fault, behind those that are set. The first that fits a call and strikes is the only one that does.
    ///
    /// # Errors
    /// When the book is full or a value is out of bounds; then nothing has changed.
    pub fn add(&self, entry: Entry) -> Result<(), Error> {
        let entry = entry.checked()?;
        let closes_idle = entry.fault == Fault::Refuse;
        let mut book = self.book();
        if book.standings.len() == FAULTS_MAX {
            return Err(Error::Full);
        }
        book.standings.push(Standing { entry, struck: 0 });
        drop(book);
        if closes_idle {
            self.refusing.send_replace(());
        }
        Ok(())
    }

    /// What is set, in the order in which it's looked at.
    #[must_use]
    pub fn standings(&self) -> Vec<Standing> {
        self.book().standings.clone()
    }

    /// How often any fault struck, those that are gone included.
    #[must_use]
    pub fn struck(&self) -> u64 {
        self.book().struck
    }

    /// Clears the book; [`struck`](Self::struck) stays.
    pub fn clear(&self) {
        self.book().standings.clear();
    }

    /// Marked as changed each time that idle connections are to be closed.
    pub(super) fn refusing(&self) -> watch::Receiver<()> {
        self.refusing.subscribe()
    }

    /// Whether the connection that has just come is to be refused.
    pub(super) fn strike_connection(&self) -> bool {
        self.strike(Stage::Connection, None).is_some()
    }

    /// Whether the connection that is about to carry another call is to be reset.
    pub(super) fn strike_reuse(&self) -> bool {
        self.strike(Stage::Reuse, None).is_some()
    }

    /// What goes wrong with this call of `operation`, in the vendor's spelling. Never one of the two that strike connections.
    pub(super) fn strike_call(&self, operation: &'static str) -> Option<Fault> {
        self.strike(Stage::Call, Some(operation))
    }

    fn strike(&self, stage: Stage, operation: Option<&str>) -> Option<Fault> {
        let fault = self.book().strike(stage, operation)?;
        tracing::info!(operation, fault = fault.name(), "a simulated fault struck");
        Some(fault)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        locked(&self.book)
    }
}

impl Book {
    fn strike(&mut self, stage: Stage, operation: Option<&str>) -> Option<Fault> {
        let Self {
            standings, chance, ..
        } = self;
        let place = standings.iter().position(|standing| {
            standing.entry.is_for(stage, operation)
                && match standing.entry.when {
                    When::Next(_) => true,
                    // f64() is below 1: probability 1 always strikes, and 0 never.
                    When::Probability(probability) => chance.f64() < probability,
                }
        })?;
        self.struck += 1;
        let standing = &mut standings[place];
        standing.struck += 1;
        let fault = standing.entry.fault.clone();
        match &mut standing.entry.when {
            When::Next(1) => {
                standings.remove(place);
            }
            When::Next(left) => *left -= 1,
            When::Probability(_) => {}
        }
        Some(fault)
    }
}

impl Entry {
    /// The entry with its operation in the vendor's spelling, every value within its bounds.
    fn checked(self) -> Result<Self, Error> {
        if let Fault::Slow { delay } = self.fault
            && delay > DELAY_MAX
        {
            return Err(Error::Delay);
        }
        if let Fault::Status {
            status,
            retry_after,
        } = self.fault
        {
            if status != StatusCode::TOO_MANY_REQUESTS && !status.is_server_error() {
                return Err(Error::Status);
            }
            if retry_after.is_some_and(|seconds| seconds > RETRY_AFTER_MAX) {
                return Err(Error::RetryAfter);
            }
        }
        match self.when {
            When::Next(1..=CALLS_MAX) => {}
            When::Next(_) => return Err(Error::Calls),
            When::Probability(probability) if (0.0..=1.0).contains(&probability) => {}
            When::Probability(_) => return Err(Error::Probability),
        }
        let operation = match self.operation {
            None => None,
            Some(_) if self.fault.stage() != Stage::Call => {
                return Err(Error::OperationEarly(self.fault.name()));
            }
            Some(name) => match Operation::find(&name) {
                Some(operation) => Some(operation.name.to_owned()),
                None => return Err(Error::OperationUnknown(name)),
            },
        };
        Ok(Self { operation, ..self })
    }

    fn is_for(&self, stage: Stage, operation: Option<&str>) -> bool {
        self.fault.stage() == stage
            && (self.operation.is_none() || self.operation.as_deref() == operation)
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.standings()).finish()
    }
}

/// The most faults that are set at once.
pub const FAULTS_MAX: usize = 64;

/// The most calls that one entry counts down.
pub const CALLS_MAX: u32 = 1_000_000;

/// The longest delay of an answer.
pub const DELAY_MAX: Duration = Duration::from_secs(60);

/// The longest `Retry-After`, in seconds: a day.
pub const RETRY_AFTER_MAX: u32 = 86_400;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::StatusCode;

    use crate::simulator::faults::CALLS_MAX;
    use crate::simulator::faults::DELAY_MAX;
    use crate::simulator::faults::Entry;
    use crate::simulator::faults::Error;
    use crate::simulator::faults::FAULTS_MAX;
    use crate::simulator::faults::Fault;
    use crate::simulator::faults::Faults;
    use crate::simulator::faults::RETRY_AFTER_MAX;
    use crate::simulator::faults::When;

    const ADD: &str = "customerOpenApi/add";
    const FIND: &str = "customerOpenApi/queryByNumber";

    fn entry(fault: Fault, when: When) -> Entry {
        Entry {
            fault,
            operation: None,
            when,
        }
    }

    fn book(entries: impl IntoIterator<Item = Entry>) -> Faults {
        let faults = Faults::new(1);
        for entry in entries {
            faults.add(entry).unwrap();
        }
        faults
    }

    #[test]
    fn each_fault_has_a_name_of_its_own_that_finds_it() {
        for fault in Fault::ALL {
            assert_eq!(Fault::named(fault.name()), Some(fault));
        }
        assert_eq!(Fault::named("Slow"), None);
    }

    #[test]
    fn a_countdown_strikes_so_many_calls_and_is_gone() {
        let faults = book([entry(Fault::Garbage, When::Next(2))]);
        assert_eq!(faults.strike_call(ADD), Some(Fault::Garbage));
        let standings = faults.standings();
        assert_eq!(
            (standings[0].entry.when, standings[0].struck),
            (When::Next(1), 1)
        );
        assert_eq!(faults.strike_call(FIND), Some(Fault::Garbage));
        assert_eq!(faults.strike_call(ADD), None);
        assert_eq!((faults.standings(), faults.struck()), (Vec::new(), 2));
    }

    #[test]
    fn the_first_that_fits_and_strikes_is_the_only_one() {
        let faults = book([
            Entry {
                operation: Some("CUSTOMEROPENAPI/Add".to_owned()),
                ..entry(Fault::NoAnswer, When::Next(1))
            },
            entry(Fault::Garbage, When::Probability(0.0)),
            entry(Fault::Quota, When::Next(2)),
        ]);
        assert_eq!(
            faults.standings()[0].entry.operation.as_deref(),
            Some(ADD),
            "the vendor's spelling"
        );
        assert_eq!(faults.strike_call(FIND), Some(Fault::Quota));
        assert_eq!(faults.strike_call(ADD), Some(Fault::NoAnswer));
        assert_eq!(faults.strike_call(ADD), Some(Fault::Quota));
        assert_eq!(faults.strike_call(ADD), None);
    }

    #[test]
    fn a_probability_strikes_about_as_often_as_it_says() {
        for (probability, least, most) in [(0.0, 0, 0), (0.3, 200, 400), (1.0, 1000, 1000)] {
            let faults = book([entry(Fault::Garbage, When::Probability(probability))]);
            let struck = (0..1000)
                .filter(|_| faults.strike_call(ADD).is_some())
                .count();
            assert!(
                (least..=most).contains(&struck),
                "{probability} struck {struck} times of 1000"
            );
            assert_eq!(faults.standings()[0].struck, struck as u64);
        }
    }

    #[test]
    fn what_strikes_connections_leaves_calls_alone_and_the_other_way_round() {
        let faults = book([
            entry(Fault::Refuse, When::Next(1)),
            entry(Fault::CloseOnReuse, When::Next(1)),
        ]);
        assert_eq!(faults.strike_call(ADD), None);
        assert!(faults.strike_reuse() && !faults.strike_reuse());
        assert!(faults.strike_connection() && !faults.strike_connection());
        faults.add(entry(Fault::Quota, When::Next(1))).unwrap();
        assert!(!faults.strike_reuse() && !faults.strike_connection());
    }

    #[test]
    fn only_refusing_closes_idle_connections() {
        let faults = book([]);
        let mut refusing = faults.refusing();
        for fault in Fault::ALL {
            let is_refuse = fault == Fault::Refuse;
            faults.add(entry(fault, When::Next(1))).unwrap();
            assert_eq!(refusing.has_changed().unwrap(), is_refuse);
            refusing.mark_unchanged();
        }
    }

    #[test]
    fn what_is_out_of_bounds_is_refused_and_changes_nothing() {
        let slow = |delay| entry(Fault::Slow { delay }, When::Next(1));
        let status = |code: u16, retry_after| {
            let status = StatusCode::from_u16(code).unwrap();
            entry(
                Fault::Status {
                    status,
                    retry_after,
                },
                When::Next(1),
            )
        };
        let of = |name: &str, fault| Entry {
            operation: Some(name.to_owned()),
            ..entry(fault, When::Next(1))
        };
        let cases = [
            (slow(DELAY_MAX + Duration::from_nanos(1)), Err(Error::Delay)),
            (slow(DELAY_MAX), Ok(())),
            (status(499, None), Err(Error::Status)),
            (status(600, None), Err(Error::Status)),
            (status(429, None), Ok(())),
            (status(599, Some(RETRY_AFTER_MAX)), Ok(())),
            (
                status(500, Some(RETRY_AFTER_MAX + 1)),
                Err(Error::RetryAfter),
            ),
            (entry(Fault::Quota, When::Next(0)), Err(Error::Calls)),
            (
                entry(Fault::Quota, When::Next(CALLS_MAX + 1)),
                Err(Error::Calls),
            ),
            (entry(Fault::Quota, When::Next(CALLS_MAX)), Ok(())),
            (
                entry(Fault::Quota, When::Probability(1.1)),
                Err(Error::Probability),
            ),
            (
                entry(Fault::Quota, When::Probability(f64::NAN)),
                Err(Error::Probability),
            ),
            (of(ADD, Fault::Quota), Ok(())),
            (
                of("add", Fault::Quota),
                Err(Error::OperationUnknown("add".to_owned())),
            ),
            (of(ADD, Fault::Refuse), Err(Error::OperationEarly("refuse"))),
            (
                of(ADD, Fault::CloseOnReuse),
                Err(Error::OperationEarly("close-on-reuse")),
            ),
        ];
        for (entry, expected) in cases {
            let faults = book([]);
            assert_eq!(faults.add(entry.clone()), expected, "{entry:?}");
            assert_eq!(
                faults.standings().len(),
                usize::from(expected.is_ok()),
                "{entry:?}"
            );
        }
    }

    #[test]
    fn the_book_has_a_last_page_and_can_be_cleared() {
        let faults = book(vec![entry(Fault::Quota, When::Next(1)); FAULTS_MAX]);
        let one_more = entry(Fault::Quota, When::Next(1));
        assert_eq!(faults.add(one_more.clone()), Err(Error::Full));
        assert!(faults.strike_call(ADD).is_some());
        faults.clear();
        assert_eq!(faults.strike_call(ADD), None);
        assert_eq!((faults.standings().len(), faults.struck()), (0, 1));
        assert_eq!(faults.add(one_more), Ok(()));
    }
}
