//! The record of one exchange. It ends when it's dropped, whoever drops it, and the log line and all counters come from it alone.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;
use tracing::Level;
use uuid::Uuid;

use crate::answers::AnswerClass;
use crate::clock::Clock;
use crate::name::AccountName;
use crate::name::CallerName;
use crate::observe::log::harmless;
use crate::observe::metrics::FAILURE_CODES;
use crate::observe::series::HostSeries;
use crate::observe::series::Series;
use crate::observe::trace;
use crate::observe::trace::Trace;
use crate::operation::Class;
use crate::operation::Operation;
use crate::outcome::Outcome;

/// One request, from its head to its answer. Holds sizes, names and times; never a body, a key or a signature.
#[derive(Debug)]
pub struct Exchange {
    series: Arc<Series>,
    clock: Clock,
    started: Instant,
    /// Time-ordered, ours, and told to the caller.
    pub id: Uuid,
    /// The caller's own id of the request.
    pub client_id: Option<Box<str>>,
    /// The trace that it's part of.
    pub trace: Trace,
    /// What happened to the call, as far as it has come. An exchange that is dropped half-way tells the truth.
    pub outcome: Outcome,
    /// The HTTP status that the caller was told, once it's known.
    pub status: Option<u16>,
    /// The code of the answer, if the gateway made it.
    pub refusal: Option<&'static str>,
    /// The cause, for the log alone.
    pub cause: Option<String>,
    /// Where from.
    pub peer: Arc<str>,
    /// Who called, by number.
    pub caller: Option<usize>,
    /// What was called.
    pub operation: Option<Arc<Operation>>,
    /// Method and path as they were written, of what is no operation.
    pub target: Option<String>,
    /// The operation's number, once it's known that the caller may call it. Only then does it get a series of its own.
    pub permitted: Option<usize>,
    /// With which account, by number.
    pub account: Option<usize>,
    /// What the caller's own signature was, once its body is there.
    pub signed: Option<Signed>,
    /// The host's answer repeated the signature, which its caller isn't told.
    pub masked: bool,
    /// The attempts that were made, in their order.
    pub attempts: Vec<Attempt>,
    /// Why there was no further attempt, where there might have been one.
    pub not_repeated: Option<&'static str>,
    /// Time spent waiting for the caller's body; part of `waited`.
    pub uploading: Duration,
    /// Time spent waiting for its turn; part of `waited`.
    pub queued: Duration,
    /// How long the host wants to be left alone, if it has said so.
    pub retry_after: Option<Duration>,
    /// KYBIO has refused a repeat because it has taken the first attempt.
    pub duplicate: bool,
    /// From the first attempt to the verdict.
    pub under_way: bool,
    /// What a caller that stops waiting needs to know.
    pub progress: Arc<Progress>,
    /// Size of the caller's body.
    pub request_bytes: usize,
    /// Size of the answer's body.
    pub reply_bytes: usize,
    /// Time that was neither the gateway's own nor an attempt's: waiting for the body, for a turn, before a retry.
    pub waited: Duration,
    /// The answer was handed to the caller's connection.
    pub told: bool,
    /// Of those that are done, one in so many has a line.
    pub done_one_in: u32,
    /// It has a line. That of nobody we know may have none.
    pub is_logged: bool,
    /// Such requests before it that have none.
    pub unlogged: Option<u64>,
}

/// What a caller's own signature is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signed {
    /// Made with the account's key.
    Match,
    /// Made with something else, or not a signature.
    Mismatch,
    /// There is none.
    Absent,
}

impl Signed {
    /// All of them, for metrics that exist from zero.
    pub const ALL: [Self; 3] = [Self::Match, Self::Mismatch, Self::Absent];

    /// As metrics and the log have it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Match => "match",
            Self::Mismatch => "mismatch",
            Self::Absent => "absent",
        }
    }
}

/// One attempt at the upstream.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Where to.
    pub host: Arc<HostSeries>,
    /// `answered`, or the kind of error.
    pub result: &'static str,
    /// From asking for a connection to the last byte.
    pub duration: Duration,
    /// KYBIO's word, if it answered.
    pub answer: Option<Answer>,
}

/// What of an exchange is seen by the caller's side while its attempts run in a task of their own.
#[derive(Debug, Default)]
pub struct Progress {
    /// Attempts that were begun.
    pub attempts: AtomicU32,
    /// What the caller was told when its own time was up: HTTP status and code.
    pub gave_up: OnceLock<(u16, &'static str)>,
}

/// KYBIO's word on the call.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// `status` was success.
    pub success: bool,
    /// `errorCode`.
    pub code: Option<i64>,
    /// What an error means, if it's one that is known.
    pub class: Option<AnswerClass>,
}

/// One line for each request, but for many of nobody's; what isn't known is left out. What came from outside is written as text, with its odd characters escaped.
macro_rules! line {
    ($level:expr, $exchange:expr, $duration:expr) => {
        tracing::event!(
            target: "kybio_gateway::access",
            $level,
            request_id = %$exchange.id,
            client_request_id = $exchange.client_id.as_deref(),
            trace_id = %$exchange.trace,
            peer = %$exchange.peer,
            caller = $exchange.caller_name().map(CallerName::as_str),
            account = $exchange.account_name().map(AccountName::as_str),
            operation = $exchange.operation.as_ref().map(|operation| operation.name.as_str()),
            class = $exchange.operation.as_ref().map(|operation| operation.class.as_str()),
            asked = $exchange.target.as_ref().map(|target| harmless(target, TARGET_LENGTH_MAX)),
            outcome = $exchange.outcome.as_str(),
            status = $exchange.status,
            refusal = $exchange.refusal,
            cause = $exchange.cause.as_ref().map(|cause| harmless(cause, CAUSE_LENGTH_MAX)),
            business_status = $exchange.answer().map(|answer| if answer.success { "success" } else { "error" }),
            business_code = $exchange.answer().and_then(|answer| answer.code),
            business_class = $exchange.answer().and_then(|answer| answer.class).map(AnswerClass::as_str),
            upstream = $exchange.attempts.last().map(|attempt| attempt.host.name().as_str()),
            attempts = (!$exchange.attempts.is_empty()).then(|| $exchange.attempts.len()),
            attempt = $exchange.attempts.last().map(|attempt| attempt.result),
            attempt_ms = $exchange.attempts.last().map(|attempt| milliseconds(attempt.duration)),
            earlier_attempts = $exchange.earlier(),
            not_repeated = $exchange.not_repeated,
            caller_signature = $exchange.told_signature().filter(|signed| *signed != Signed::Absent).map(Signed::as_str),
            signature_masked = $exchange.masked.then_some(true),
            queued_ms = ($exchange.queued >= QUEUED_MIN).then(|| milliseconds($exchange.queued)),
            duplicate = $exchange.duplicate.then_some(true),
            duration_ms = milliseconds($duration),
            request_bytes = $exchange.request_bytes,
            reply_bytes = $exchange.reply_bytes,
            caller_gone = (!$exchange.told && !$exchange.was_cut() && !$exchange.gave_up()).then_some(true),
            caller_gave_up = $exchange.gave_up().then_some(true),
            cut = $exchange.was_cut().then_some(true),
            unlogged = $exchange.unlogged,
            one_in = (!$exchange.is_worth_a_line()).then_some($exchange.done_one_in),
            "request"
        )
    };
}

impl Exchange {
    /// Begins at the request's head. Boxed, because it's large and goes through many hands.
    #[must_use]
    pub fn begin(
        series: Arc<Series>,
        clock: Clock,
        peer: Arc<str>,
        headers: &HeaderMap,
    ) -> Box<Self> {
        series.metrics().requests_active.inc();
        let since_epoch = clock.since_epoch();
        // Chance tells ids of the same millisecond apart and guards nothing: the kernel isn't asked for it each time.
        let chance = fastrand::u128(..).to_be_bytes();
        let chance = chance.first_chunk().expect("10 of 16 bytes");
        let milliseconds = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
        let id = uuid::Builder::from_unix_timestamp_millis(milliseconds, chance).into_uuid();
        Box::new(Self {
            started: clock.now(),
            series,
            clock,
            id,
            client_id: trace::client_id(headers),
            trace: Trace::of(headers, id),
            done_one_in: 1,
            outcome: Outcome::NotSent,
            status: None,
            refusal: None,
            cause: None,
            peer,
            caller: None,
            operation: None,
            target: None,
            permitted: None,
            account: None,
            signed: None,
            masked: false,
            attempts: Vec::new(),
            not_repeated: None,
            uploading: Duration::ZERO,
            queued: Duration::ZERO,
            retry_after: None,
            duplicate: false,
            under_way: false,
            progress: Arc::default(),
            request_bytes: 0,
            reply_bytes: 0,
            waited: Duration::ZERO,
            told: false,
            is_logged: true,
            unlogged: None,
        })
    }

    /// When the head was there.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Who called.
    #[must_use]
    pub fn caller_name(&self) -> Option<&CallerName> {
        self.series.caller(self.caller?)
    }

    /// With which account.
    #[must_use]
    pub fn account_name(&self) -> Option<&AccountName> {
        self.series.account(self.account?)
    }

    /// The names, for whoever has their numbers.
    #[must_use]
    pub fn series(&self) -> &Arc<Series> {
        &self.series
    }

    fn count(&self, duration: Duration) {
        let (series, metrics) = (&self.series, self.series.metrics());
        let outcome = self.outcome;
        series.count_request(self.permitted, outcome, duration.as_secs_f64());
        if let Some(caller) = self.caller {
            series.count_caller(caller, outcome, self.told_signature());
        }
        if let Some(account) = self.account {
            series.count_account(account, outcome);
        }
        if let Some(code) = self.refusal {
            metrics.refusals.with_label_values(&[code]).inc();
        }
        if let Some(reason) = self.failure() {
            metrics.failures.with_label_values(&[reason]).inc();
        }
        if let (Outcome::Unknown, Some(operation)) = (outcome, &self.operation) {
            let class = operation.class.as_str();
            metrics.unknown_outcomes.with_label_values(&[class]).inc();
        }
        metrics.request_bytes.observe(self.request_bytes as f64);
        metrics.reply_bytes.observe(self.reply_bytes as f64);
        let mut elsewhere = self.waited;
        let mut before = None;
        for attempt in &self.attempts {
            let seconds = attempt.duration.as_secs_f64();
            attempt.host.count(attempt.result, seconds, before);
            if let Some(answer) = &attempt.answer {
                let is_of_key = answer.class == Some(AnswerClass::Credential);
                series.count_answer(self.permitted, self.account, answer.code, is_of_key);
            }
            elsewhere += attempt.duration;
            before = Some(attempt.result);
        }
        if !self.attempts.is_empty() {
            let own = duration.saturating_sub(elsewhere);
            metrics.overhead_seconds.observe(own.as_secs_f64());
            if !self.told {
                let outcome = outcome.as_str();
                metrics.late_verdicts.with_label_values(&[outcome]).inc();
            }
        }
    }

    /// Why a call that its caller may make failed, if that's neither KYBIO's word nor the caller's fault. It doesn't matter whether the caller has
    /// heard of it.
    fn failure(&self) -> Option<&'static str> {
        self.permitted?;
        let last = self.attempts.last().map(|attempt| attempt.result);
        match self.outcome {
            Outcome::Done | Outcome::Rejected => None,
            // The task that made the attempt is gone, which is a bug.
            Outcome::Unknown => Some(last.unwrap_or("internal")),
            Outcome::NotSent => last.or_else(|| {
                let code = self.refusal?;
                FAILURE_CODES.contains(&code).then_some(code)
            }),
        }
    }

    /// Not one of those of which only some have a line.
    fn is_worth_a_line(&self) -> bool {
        self.done_one_in == 1 || self.outcome != Outcome::Done || !self.told
    }

    fn log(&self, duration: Duration) {
        if !self.is_logged {
            return;
        }
        if !self.is_worth_a_line() && fastrand::u32(..self.done_one_in) != 0 {
            return;
        }
        // A write that may or may not have had effect is somebody's work; all else is told in the answer.
        if self.outcome == Outcome::Unknown && !self.is_read() {
            line!(Level::WARN, self, duration);
        } else {
            line!(Level::INFO, self, duration);
        }
    }

    /// What is called changes nothing.
    #[must_use]
    pub fn is_read(&self) -> bool {
        self.operation
            .as_ref()
            .is_some_and(|operation| operation.class == Class::Read)
    }

    /// KYBIO's last word, if it answered the last attempt.
    #[must_use]
    pub fn answer(&self) -> Option<Answer> {
        self.attempts.last().and_then(|attempt| attempt.answer)
    }

    /// What the caller's own signature was, if the call may have left. Of what costs no call nothing is told: a caller could try out any number
    /// of keys with it.
    fn told_signature(&self) -> Option<Signed> {
        self.signed.filter(|_| self.outcome != Outcome::NotSent)
    }

    /// The call was under way when the process ended.
    fn was_cut(&self) -> bool {
        !self.told && self.under_way
    }

    fn gave_up(&self) -> bool {
        self.progress.gave_up.get().is_some()
    }

    /// All attempts but the last, such as `broken 12.3 ms, unsent 0.4 ms`.
    fn earlier(&self) -> Option<String> {
        let (_, earlier) = self.attempts.split_last()?;
        let mut text = String::new();
        for attempt in earlier {
            let comma = if text.is_empty() { "" } else { ", " };
            let _ = write!(
                text,
                "{comma}{} {} ms",
                attempt.result,
                milliseconds(attempt.duration)
            );
        }
        (!earlier.is_empty()).then_some(text)
    }
}

/// A turn that came sooner isn't worth a word.
const QUEUED_MIN: Duration = Duration::from_millis(1);

/// The longest target that is logged, in characters.
const TARGET_LENGTH_MAX: usize = 120;

/// The longest cause. That of an unknown caller has names of its certificate in it, which can be long.
const CAUSE_LENGTH_MAX: usize = 1_000;

fn milliseconds(duration: Duration) -> f64 {
    // Microseconds are as fine as anyone reads.
    (duration.as_secs_f64() * 1_000_000.0).round() / 1_000.0
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let duration = self.clock.now().duration_since(self.started);
        if let Some((status, code)) = self.progress.gave_up.get() {
            (self.status, self.refusal) = (Some(*status), Some(*code));
        }
        self.series.metrics().requests_active.dec();
        self.count(duration);
        self.log(duration);
    }
}
