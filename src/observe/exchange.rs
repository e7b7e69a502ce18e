//! The record of one exchange. It ends when it's dropped, whoever drops it, and the log line and all counters come from it alone.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::Level;
use uuid::Uuid;

use crate::clock::Clock;
use crate::name::AccountName;
use crate::name::CallerName;
use crate::name::UpstreamName;
use crate::observe::metrics::Metrics;
use crate::operation::Class;
use crate::operation::OperationName;
use crate::outcome::Outcome;

/// One request, from its head to its answer. Holds sizes, names and times; never a body, a key or a signature.
#[derive(Debug)]
pub struct Exchange {
    metrics: Arc<Metrics>,
    clock: Clock,
    started: Instant,
    /// Time-ordered, ours, and told to the caller.
    pub id: Uuid,
    /// What happened to the call, as far as it has come. An exchange that is dropped half-way tells the truth.
    pub outcome: Outcome,
    /// The HTTP status that the caller was told, once it's known.
    pub status: Option<u16>,
    /// The code of the answer, if the gateway made it.
    pub refusal: Option<&'static str>,
    /// The cause, for the log alone.
    pub cause: Option<String>,
    /// Where from.
    pub peer: SocketAddr,
    /// Who called.
    pub caller: Option<CallerName>,
    /// What was called.
    pub operation: Option<(OperationName, Class)>,
    /// Method and path as they were written, of what is no operation.
    pub target: Option<String>,
    /// The caller may call it. Only then does it get a series of its own.
    pub permitted: bool,
    /// With which account.
    pub account: Option<AccountName>,
    /// The attempt, if one was made.
    pub attempt: Option<Attempt>,
    /// KYBIO's word, if it answered.
    pub answer: Option<Answer>,
    /// Size of the caller's body.
    pub request_bytes: usize,
    /// Size of the answer's body.
    pub reply_bytes: usize,
    /// Time spent waiting for the caller's body.
    pub body_wait: Duration,
    /// The answer was handed to the caller's connection.
    pub told: bool,
}

/// One attempt at the upstream.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Where to.
    pub upstream: UpstreamName,
    /// `answered`, or the kind of error.
    pub result: &'static str,
    /// From asking for a connection to the last byte.
    pub duration: Duration,
}

/// KYBIO's word on the call.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// `status` was success.
    pub success: bool,
    /// `errorCode`.
    pub code: Option<i64>,
}

/// One line for each request; what isn't known is left out. What came from outside is written as text, with its odd characters escaped.
macro_rules! line {
    ($level:expr, $exchange:expr, $duration:expr) => {
        tracing::event!(
            target: "kybio_gateway::access",
            $level,
            request_id = %$exchange.id,
            peer = %$exchange.peer,
            caller = $exchange.caller.as_ref().map(CallerName::as_str),
            account = $exchange.account.as_ref().map(AccountName::as_str),
            operation = $exchange.operation.as_ref().map(|(name, _)| name.as_str()),
            class = $exchange.operation.as_ref().map(|(_, class)| class.as_str()),
            asked = $exchange.target.as_ref().map(|target| bounded(target)),
            outcome = $exchange.outcome.as_str(),
            status = $exchange.status,
            refusal = $exchange.refusal,
            cause = $exchange.cause,
            business_status = $exchange.answer.map(|answer| if answer.success { "success" } else { "error" }),
            business_code = $exchange.answer.and_then(|answer| answer.code),
            upstream = $exchange.attempt.as_ref().map(|attempt| attempt.upstream.as_str()),
            attempt = $exchange.attempt.as_ref().map(|attempt| attempt.result),
            attempt_ms = $exchange.attempt.as_ref().map(|attempt| milliseconds(attempt.duration)),
            duration_ms = milliseconds($duration),
            request_bytes = $exchange.request_bytes,
            reply_bytes = $exchange.reply_bytes,
            caller_gone = (!$exchange.told && !$exchange.was_cut()).then_some(true),
            cut = $exchange.was_cut().then_some(true),
            "request"
        )
    };
}

impl Exchange {
    /// Begins at the request's head.
    #[must_use]
    pub fn begin(metrics: Arc<Metrics>, clock: Clock, peer: SocketAddr) -> Self {
        metrics.requests_active.inc();
        let since_epoch = clock.since_epoch();
        let stamp = uuid::Timestamp::from_unix(
            uuid::NoContext,
            since_epoch.as_secs(),
            since_epoch.subsec_nanos(),
        );
        Self {
            started: clock.now(),
            metrics,
            clock,
            id: Uuid::new_v7(stamp),
            outcome: Outcome::NotSent,
            status: None,
            refusal: None,
            cause: None,
            peer,
            caller: None,
            operation: None,
            target: None,
            permitted: false,
            account: None,
            attempt: None,
            answer: None,
            request_bytes: 0,
            reply_bytes: 0,
            body_wait: Duration::ZERO,
            told: false,
        }
    }

    /// When the head was there.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    fn count(&self, duration: Duration) {
        let metrics = &self.metrics;
        let outcome = self.outcome.as_str();
        let operation = match &self.operation {
            Some((name, _)) if self.permitted => name.as_str(),
            Some(_) | None => "none",
        };
        metrics
            .requests
            .with_label_values(&[operation, outcome])
            .inc();
        metrics
            .request_seconds
            .with_label_values(&[operation])
            .observe(duration.as_secs_f64());
        if let Some(caller) = &self.caller {
            metrics
                .caller_requests
                .with_label_values(&[caller.as_str(), outcome])
                .inc();
        }
        if let Some(account) = &self.account {
            metrics
                .account_requests
                .with_label_values(&[account.as_str(), outcome])
                .inc();
        }
        if let Some(code) = self.refusal {
            metrics.refusals.with_label_values(&[code]).inc();
        }
        if let Some(attempt) = &self.attempt {
            let upstream = attempt.upstream.as_str();
            metrics
                .attempts
                .with_label_values(&[upstream, attempt.result])
                .inc();
            metrics
                .attempt_seconds
                .with_label_values(&[upstream])
                .observe(attempt.duration.as_secs_f64());
            let own = duration
                .saturating_sub(attempt.duration)
                .saturating_sub(self.body_wait);
            metrics.overhead_seconds.observe(own.as_secs_f64());
            if !self.told {
                metrics.late_verdicts.with_label_values(&[outcome]).inc();
            }
        }
        if let (Some(answer), Some(account)) = (&self.answer, &self.account) {
            let code = metrics.code_label(answer.code);
            metrics
                .account_answers
                .with_label_values(&[account.as_str(), &code])
                .inc();
            metrics
                .operation_answers
                .with_label_values(&[operation, &code])
                .inc();
        }
    }

    fn log(&self, duration: Duration) {
        // A write that may or may not have had effect is somebody's work; all else is told in the answer.
        if self.outcome == Outcome::Unknown && !matches!(self.operation, Some((_, Class::Read))) {
            line!(Level::WARN, self, duration);
        } else {
            line!(Level::INFO, self, duration);
        }
    }

    /// The call was under way when the process ended.
    fn was_cut(&self) -> bool {
        !self.told && self.outcome == Outcome::Unknown && self.attempt.is_none()
    }
}

/// The longest target that is logged, in bytes.
const TARGET_LENGTH_MAX: usize = 120;

fn bounded(target: &str) -> &str {
    target
        .char_indices()
        .nth(TARGET_LENGTH_MAX)
        .map_or(target, |(end, _)| &target[..end])
}

fn milliseconds(duration: Duration) -> f64 {
    // Microseconds are as fine as anyone reads.
    (duration.as_secs_f64() * 1_000_000.0).round() / 1_000.0
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let duration = self.clock.now().duration_since(self.started);
        self.metrics.requests_active.dec();
        self.count(duration);
        self.log(duration);
    }
}
