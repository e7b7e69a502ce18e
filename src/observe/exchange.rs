//! The record of one exchange. It ends when it's dropped, whoever drops it, and the log line and all counters come from it alone.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
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
    /// Who called.
    pub caller: Option<CallerName>,
    /// What was called.
    pub operation: Option<(OperationName, Class)>,
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

impl Exchange {
    /// Begins at the request's head.
    #[must_use]
    pub fn begin(metrics: Arc<Metrics>, clock: Clock) -> Self {
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
            caller: None,
            operation: None,
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
        let operation = self
            .operation
            .as_ref()
            .map_or("none", |(name, _)| name.as_str());
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
        // One line for each request; what isn't known is left out.
        tracing::info!(
            target: "kybio_gateway::access",
            request_id = %self.id,
            caller = self.caller.as_ref().map(tracing::field::display),
            account = self.account.as_ref().map(tracing::field::display),
            operation = self.operation.as_ref().map(|(name, _)| tracing::field::display(name)),
            class = self.operation.as_ref().map(|(_, class)| class.as_str()),
            outcome = self.outcome.as_str(),
            status = self.status,
            refusal = self.refusal,
            cause = self.cause,
            business_status = self.answer.map(|answer| if answer.success { "success" } else { "error" }),
            business_code = self.answer.and_then(|answer| answer.code),
            upstream = self.attempt.as_ref().map(|attempt| tracing::field::display(&attempt.upstream)),
            attempt = self.attempt.as_ref().map(|attempt| attempt.result),
            attempt_ms = self.attempt.as_ref().map(|attempt| milliseconds(attempt.duration)),
            duration_ms = milliseconds(duration),
            request_bytes = self.request_bytes,
            reply_bytes = self.reply_bytes,
            caller_gone = (!self.told).then_some(true),
            "request"
        );
    }
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
