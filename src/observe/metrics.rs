//! The metric families, made once and passed to whoever counts. Only closed sets and configured names become label values.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use prometheus::Encoder;
use prometheus::Gauge;
use prometheus::GaugeVec;
use prometheus::Histogram;
use prometheus::HistogramVec;
use prometheus::IntCounter;
use prometheus::IntCounterVec;
use prometheus::IntGauge;
use prometheus::IntGaugeVec;
use prometheus::Registry;
use prometheus::TextEncoder;
use prometheus::core::Collector;
use prometheus::core::MetricVec;
use prometheus::core::MetricVecBuilder;

use crate::observe::families::Described;
use crate::observe::families::Families;
use crate::observe::process::Process;
use crate::observe::series::FOLDED;
use crate::observe::series::Family;
use crate::observe::series::Kept;
use crate::observe::series::Room;
use crate::observe::series::Series;
use crate::operation::Class;
use crate::outcome::Outcome;

/// All families, in a registry of their own.
pub struct Metrics {
    registry: Registry,
    described: Vec<Described>,
    process: Process,
    /// Room for the series of configured names.
    pub room: Room,
    /// Lines of the log that were known to be dropped at the last scrape.
    log_seen: AtomicUsize,

    // -- series of names
    /// Series of configured names: operations, callers, accounts; each bucket of a histogram counts.
    pub series: IntGauge,
    /// Names, each with a family of its own, that are folded into other now, because there are metrics.series_max series.
    pub folded: IntGauge,
    /// How often series were folded into other, or would have been again after a reload.
    pub series_folded: IntCounter,
    // -- requests
    /// Requests, by operation (canonical name; none: not one that the caller may call) and by what happened to the call.
    pub requests: IntCounterVec,
    /// Requests, by caller and by what happened to the call.
    pub caller_requests: IntCounterVec,
    /// Requests, by account and by what happened to the call.
    pub account_requests: IntCounterVec,
    /// Time from a request's head to its answer, by operation and outcome.
    pub request_seconds: HistogramVec,
    /// What of a forwarded request's time the gateway itself took: all but waiting for the body, for a turn and for the upstream.
    pub overhead_seconds: Histogram,
    /// Sizes of callers' bodies, of requests that were read.
    pub request_bytes: Histogram,
    /// Sizes of the bodies that callers were answered with.
    pub reply_bytes: Histogram,
    /// Answers that the gateway made itself, by the code they carry.
    pub refusals: IntCounterVec,
    /// Calls that may have left and brought no trustworthy answer, by the operation's class. Of any class but read somebody must look up what happened.
    pub unknown_outcomes: IntCounterVec,
    /// Calls that callers may make and that failed: not KYBIO's word, nor the caller's fault, but by the way to KYBIO (the result of the last attempt), its host or the gateway's own limits; whether or not the caller still waited.
    pub failures: IntCounterVec,
    /// Calls whose caller had gone before the answer came, by what happened to them.
    pub late_verdicts: IntCounterVec,
    /// Calls that may have left, by what the caller's own signature is: match (signed with the account's key: the caller still holds it), mismatch (with something else), absent.
    pub caller_signatures: IntCounterVec,
    /// Requests between head and answer.
    pub requests_active: IntGauge,
    /// What callers' bodies that don't come in one piece take of the memory now.
    pub bodies_bytes: IntGauge,
    /// What they may take (listener.bodies_bytes_max).
    pub bodies_bytes_max: IntGauge,
    // -- what KYBIO answers
    /// KYBIO's answers, by account and errorCode (none: success or no code; other: not in the catalogue).
    pub account_answers: IntCounterVec,
    /// KYBIO's answers, by operation and errorCode (none: success or no code; other: not in the catalogue).
    pub operation_answers: IntCounterVec,
    /// KYBIO's answers that say that it doesn't take the account's appId or signature.
    pub account_credential_errors: IntCounterVec,
    /// 1 while the account's calls for the day are used up and its calls are refused here.
    pub quota_used_up: IntGaugeVec,
    // -- keys and configuration
    /// When the key that the account's calls are signed with was read first, in Unix time, by the key's fingerprint.
    pub account_keys_taken: GaugeVec,
    /// 1 once KYBIO has answered a call signed with this key with success, since this process started.
    pub account_keys_accepted: IntGaugeVec,
    /// Accounts that are configured.
    pub accounts: IntGauge,
    /// Accounts that can't be used because of their key.
    pub accounts_disabled: IntGauge,
    /// Accounts that go on with the key they had, because their key file can't be used any more.
    pub accounts_keeping_key: IntGauge,
    /// 1 if the configuration in force is the one that is written; 0 if what is written was refused.
    pub reload_successful: IntGauge,
    /// When what is written was last found good, at start or by a reload, in Unix time.
    pub reload_success_time: Gauge,
    /// Reloads, by what came of them.
    pub reloads: IntCounterVec,
    /// When the first of what a key of the configuration names ends, in Unix time: certificate, client_ca, client_crl of the listener.
    pub certificate_ends: GaugeVec,
    // -- attempts at hosts
    /// Attempts at an upstream, by result.
    pub attempts: IntCounterVec,
    /// Time of an attempt, from asking for a connection to the reply's last byte.
    pub attempt_seconds: HistogramVec,
    /// Time of the parts of an attempt: connect (until there is a connection, kept or new), first-byte (until the reply's head), rest (until its last byte). A part in which an attempt failed counts as long as it took.
    pub phase_seconds: HistogramVec,
    /// Attempts after the first, by the result of the one before.
    pub retries: IntCounterVec,
    /// Retries that weren't made because the upstream's retry budget was spent.
    pub retry_budget_refusals: IntCounterVec,
    /// Calls under way.
    pub in_flight: IntGaugeVec,
    /// Calls that may be under way at a time (in_flight_max).
    pub in_flight_max: IntGaugeVec,
    /// Calls that wait for their turn.
    pub queued: IntGaugeVec,
    /// Calls that may wait (queue_max).
    pub queue_max: IntGaugeVec,
    /// 0: calls pass. 1: one at a time tries whether the host is well. 2: the host is held to be down, and calls are refused.
    pub breaker_state: IntGaugeVec,
    /// How often a host came to be held to be down.
    pub breaker_opens: IntCounterVec,
    /// TCP and TLS handshakes that looked whether a host is back, by result.
    pub breaker_probes: IntCounterVec,
    /// Open connections to an upstream.
    pub upstream_connections: IntGaugeVec,
    /// Those of them that wait for a call.
    pub upstream_connections_idle: IntGaugeVec,
    /// Connections that there may be (connections_max).
    pub upstream_connections_max: IntGaugeVec,
    /// Connections opened to an upstream.
    pub upstream_opened: IntCounterVec,
    /// Attempts that found a connection open.
    pub upstream_reused: IntCounterVec,
    /// How old connections to an upstream were when they ended.
    pub upstream_connection_ages: HistogramVec,
    /// Completed TLS handshakes with an upstream: full, or resumed from a session of before.
    pub upstream_handshakes: IntCounterVec,
    /// How far apart they may be before that's worth a word (clock_skew_max).
    pub clock_skew_max: GaugeVec,
    /// How far this machine's clock is behind the host's, by the Date of its answers (whole seconds) and the middle of their time; negative if it's ahead.
    pub clock_skew: GaugeVec,
    // -- callers' connections
    /// Open connections from callers, handshakes included.
    pub downstream_connections: IntGauge,
    /// Those of them with a request under way.
    pub downstream_connections_busy: IntGauge,
    /// Those of them that wait for a request without buffers of their own: on HTTP/1.1, before the first one and from a second after the last one on.
    pub downstream_connections_parked: IntGauge,
    /// Connections that there may be (listener.connections_max).
    pub downstream_connections_max: IntGauge,
    /// Connections taken from callers.
    pub downstream_accepted: IntCounter,
    /// Connections that weren't served because their address or caller had as many as it may have.
    pub downstream_refused: IntCounterVec,
    /// How often the limit on all connections was reached, so that the next one had to wait in the kernel's queue.
    pub downstream_full: IntCounter,
    /// Connections from callers that a clock of ours closed.
    pub downstream_timeouts: IntCounterVec,
    /// Requests so malformed that they were refused before they were requests.
    pub downstream_malformed: IntCounter,
    /// HTTP/2 connections that were ended because they sent more frames of a kind than any client needs.
    pub downstream_floods: IntCounterVec,
    /// Connections that ended because their caller wouldn't be let in any more, by reason.
    pub downstream_closed_by_reload: IntCounterVec,
    /// Connections that couldn't be taken, mostly for want of descriptors.
    pub accept_errors: IntCounter,
    /// Completed TLS handshakes with callers: full, or resumed from a session of before.
    pub handshakes: IntCounterVec,
    /// Failed TLS handshakes with callers, by reason.
    pub handshake_failures: IntCounterVec,
    // -- the gateway itself
    /// 1, with the version as label.
    pub build_info: IntGaugeVec,
    /// Lines of the log that nobody took in time: a slow reader of standard error doesn't hold up calls.
    pub log_dropped: IntCounter,
}

/// Why a TLS handshake with a caller failed: a closed set (the reasons that the library can tell apart).
pub const HANDSHAKE_FAILURES: [&str; 13] = [
    "none",
    "unknown-issuer",
    "expired",
    "not-yet-valid",
    "wrong-usage",
    "ca-as-leaf",
    "revoked",
    "revocation-unknown",
    "crl-expired",
    "bad-signature",
    "malformed",
    "protocol",
    "timeout",
];

/// Why a reload ends a connection whose certificate is as good as before.
pub const UNKNOWN_CALLER: &str = "unknown-caller";

/// What can come of a reload.
pub const RELOADS: [&str; 3] = ["reloaded", "unchanged", "refused"];

/// The clocks that can close a caller's connection.
pub const CLOCKS: [&str; 3] = ["idle", "head", "write"];

/// The limits on connections that can keep one out. At the limit of them all, connections wait.
pub const CONNECTION_LIMITS: [&str; 2] = ["address", "caller"];

/// The frames that an HTTP/2 connection can be flooded with.
pub const FLOODS: [&str; 8] = [
    "data",
    "priority",
    "reset",
    "settings",
    "ping",
    "window-update",
    "continuation",
    "other",
];

/// How a TLS handshake went.
pub const HANDSHAKES: [&str; 2] = ["full", "resumed"];

/// What can come of an attempt: an answer, or as which error. The first is what nearly all are.
pub const RESULTS: [&str; 15] = [
    "answered",
    "resolve",
    "destination",
    "connect",
    "exhausted",
    "tls",
    "connect-timeout",
    "late",
    "unsent",
    "broken",
    "timeout",
    "too-large",
    "refused",
    "status",
    "unreadable",
];

/// Of calls that failed before any attempt, the codes that say that it was neither KYBIO's word nor the caller's fault.
pub const FAILURE_CODES: [&str; 6] = [
    "upstream-down",
    "upstream-busy",
    "gateway-busy",
    "account-busy",
    "no-time-left",
    "internal",
];

/// The parts of an attempt.
pub const PHASES: [&str; 3] = ["connect", "first-byte", "rest"];

/// Where answers usually come, up to the longest total timeout, in seconds.
pub const REQUEST_BUCKETS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 45.0,
];

/// The gateway's own time is tens of microseconds.
const OVERHEAD_BUCKETS: [f64; 12] = [
    0.000_025, 0.000_05, 0.000_1, 0.000_15, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.1,
    1.0,
];

/// Bodies, in bytes, up to the largest replies.
const SIZE_BUCKETS: [f64; 9] = [
    256.0,
    1_024.0,
    4_096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
];

/// Ages of connections, in seconds, up to the greatest by default.
const AGE_BUCKETS: [f64; 8] = [1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0];

impl Metrics {
    /// All families, with those of closed sets at zero.
    ///
    /// # Panics
    /// Never: names and labels are constants, and every test makes one.
    #[must_use]
    pub fn new() -> Self {
        let mut make = Families::default();
        let series = make.gauge("kybio_gateway_metrics_series", "Series of configured names: operations, callers, accounts; each bucket of a histogram counts.");
        let folded = make.gauge("kybio_gateway_metrics_folded", "Names, each with a family of its own, that are folded into other now, because there are metrics.series_max series.");
        let series_folded = make.counter(
            "kybio_gateway_metrics_series_folded_total",
            "How often series were folded into other, or would have been again after a reload.",
        );
        let metrics = Self {
            room: Room::new(series.clone(), folded.clone(), series_folded.clone()),
            log_seen: AtomicUsize::new(0),
            series,
            folded,
            series_folded,
            requests: make.counters("kybio_gateway_requests_total", "Requests, by operation (canonical name; none: not one that the caller may call) and by what happened to the call.", &["operation", "outcome"]),
            caller_requests: make.counters("kybio_gateway_caller_requests_total", "Requests, by caller and by what happened to the call.", &["caller", "outcome"]),
            account_requests: make.counters("kybio_gateway_account_requests_total", "Requests, by account and by what happened to the call.", &["account", "outcome"]),
            request_seconds: make.histograms("kybio_gateway_request_duration_seconds", "Time from a request's head to its answer, by operation and outcome.", &["operation", "outcome"], &REQUEST_BUCKETS),
            overhead_seconds: make.histogram("kybio_gateway_overhead_seconds", "What of a forwarded request's time the gateway itself took: all but waiting for the body, for a turn and for the upstream.", &OVERHEAD_BUCKETS),
            request_bytes: make.histogram("kybio_gateway_request_body_bytes", "Sizes of callers' bodies, of requests that were read.", &SIZE_BUCKETS),
            reply_bytes: make.histogram("kybio_gateway_reply_body_bytes", "Sizes of the bodies that callers were answered with.", &SIZE_BUCKETS),
            refusals: make.counters("kybio_gateway_refusals_total", "Answers that the gateway made itself, by the code they carry.", &["code"]),
            unknown_outcomes: make.counters("kybio_gateway_unknown_outcomes_total", "Calls that may have left and brought no trustworthy answer, by the operation's class. Of any class but read somebody must look up what happened.", &["class"]),
            failures: make.counters("kybio_gateway_failures_total", "Calls that callers may make and that failed: not KYBIO's word, nor the caller's fault, but by the way to KYBIO (the result of the last attempt), its host or the gateway's own limits; whether or not the caller still waited.", &["reason"]),
            late_verdicts: make.counters("kybio_gateway_late_verdicts_total", "Calls whose caller had gone before the answer came, by what happened to them.", &["outcome"]),
            caller_signatures: make.counters("kybio_gateway_caller_signatures_total", "Calls that may have left, by what the caller's own signature is: match (signed with the account's key: the caller still holds it), mismatch (with something else), absent.", &["caller", "result"]),
            requests_active: make.gauge("kybio_gateway_requests_active", "Requests between head and answer."),
            bodies_bytes: make.gauge("kybio_gateway_bodies_bytes", "What callers' bodies that don't come in one piece take of the memory now."),
            bodies_bytes_max: make.gauge("kybio_gateway_bodies_bytes_max", "What they may take (listener.bodies_bytes_max)."),
            account_answers: make.counters("kybio_gateway_account_answers_total", "KYBIO's answers, by account and errorCode (none: success or no code; other: not in the catalogue).", &["account", "error_code"]),
            operation_answers: make.counters("kybio_gateway_operation_answers_total", "KYBIO's answers, by operation and errorCode (none: success or no code; other: not in the catalogue).", &["operation", "error_code"]),
            account_credential_errors: make.counters("kybio_gateway_account_credential_errors_total", "KYBIO's answers that say that it doesn't take the account's appId or signature.", &["account"]),
            quota_used_up: make.gauges("kybio_gateway_account_quota_used_up", "1 while the account's calls for the day are used up and its calls are refused here.", &["account"]),
            account_keys_taken: make.fractional_gauges("kybio_gateway_account_key_taken_timestamp_seconds", "When the key that the account's calls are signed with was read first, in Unix time, by the key's fingerprint.", &["account", "fingerprint"]),
            account_keys_accepted: make.gauges("kybio_gateway_account_key_accepted", "1 once KYBIO has answered a call signed with this key with success, since this process started.", &["account", "fingerprint"]),
            accounts: make.gauge("kybio_gateway_accounts", "Accounts that are configured."),
            accounts_disabled: make.gauge("kybio_gateway_accounts_disabled", "Accounts that can't be used because of their key."),
            accounts_keeping_key: make.gauge("kybio_gateway_accounts_keeping_key", "Accounts that go on with the key they had, because their key file can't be used any more."),
            reload_successful: make.gauge("kybio_gateway_config_last_reload_successful", "1 if the configuration in force is the one that is written; 0 if what is written was refused."),
            reload_success_time: make.fractional_gauge("kybio_gateway_config_last_reload_success_timestamp_seconds", "When what is written was last found good, at start or by a reload, in Unix time."),
            reloads: make.counters("kybio_gateway_config_reloads_total", "Reloads, by what came of them.", &["result"]),
            certificate_ends: make.fractional_gauges("kybio_gateway_certificate_end_timestamp_seconds", "When the first of what a key of the configuration names ends, in Unix time: certificate, client_ca, client_crl of the listener.", &["of"]),
            attempts: make.counters("kybio_gateway_attempts_total", "Attempts at an upstream, by result.", &["upstream", "result"]),
            attempt_seconds: make.histograms("kybio_gateway_attempt_duration_seconds", "Time of an attempt, from asking for a connection to the reply's last byte.", &["upstream"], &REQUEST_BUCKETS),
            phase_seconds: make.histograms("kybio_gateway_attempt_phase_duration_seconds", "Time of the parts of an attempt: connect (until there is a connection, kept or new), first-byte (until the reply's head), rest (until its last byte). A part in which an attempt failed counts as long as it took.", &["upstream", "phase"], &REQUEST_BUCKETS),
            retries: make.counters("kybio_gateway_retries_total", "Attempts after the first, by the result of the one before.", &["upstream", "reason"]),
            retry_budget_refusals: make.counters("kybio_gateway_retry_budget_refusals_total", "Retries that weren't made because the upstream's retry budget was spent.", &["upstream"]),
            in_flight: make.gauges("kybio_gateway_upstream_in_flight", "Calls under way.", &["upstream"]),
            in_flight_max: make.gauges("kybio_gateway_upstream_in_flight_max", "Calls that may be under way at a time (in_flight_max).", &["upstream"]),
            queued: make.gauges("kybio_gateway_upstream_queued", "Calls that wait for their turn.", &["upstream"]),
            queue_max: make.gauges("kybio_gateway_upstream_queue_max", "Calls that may wait (queue_max).", &["upstream"]),
            breaker_state: make.gauges("kybio_gateway_upstream_breaker_state", "0: calls pass. 1: one at a time tries whether the host is well. 2: the host is held to be down, and calls are refused.", &["upstream"]),
            breaker_opens: make.counters("kybio_gateway_upstream_breaker_opens_total", "How often a host came to be held to be down.", &["upstream"]),
            breaker_probes: make.counters("kybio_gateway_upstream_breaker_probes_total", "TCP and TLS handshakes that looked whether a host is back, by result.", &["upstream", "result"]),
            upstream_connections: make.gauges("kybio_gateway_upstream_connections", "Open connections to an upstream.", &["upstream"]),
            upstream_connections_idle: make.gauges("kybio_gateway_upstream_connections_idle", "Those of them that wait for a call.", &["upstream"]),
            upstream_connections_max: make.gauges("kybio_gateway_upstream_connections_max", "Connections that there may be (connections_max).", &["upstream"]),
            upstream_opened: make.counters("kybio_gateway_upstream_connections_opened_total", "Connections opened to an upstream.", &["upstream"]),
            upstream_reused: make.counters("kybio_gateway_upstream_connections_reused_total", "Attempts that found a connection open.", &["upstream"]),
            upstream_connection_ages: make.histograms("kybio_gateway_upstream_connection_age_seconds", "How old connections to an upstream were when they ended.", &["upstream"], &AGE_BUCKETS),
            upstream_handshakes: make.counters("kybio_gateway_upstream_tls_handshakes_total", "Completed TLS handshakes with an upstream: full, or resumed from a session of before.", &["upstream", "kind"]),
            clock_skew_max: make.fractional_gauges("kybio_gateway_upstream_clock_skew_max_seconds", "How far apart they may be before that's worth a word (clock_skew_max).", &["upstream"]),
            clock_skew: make.fractional_gauges("kybio_gateway_upstream_clock_skew_seconds", "How far this machine's clock is behind the host's, by the Date of its answers (whole seconds) and the middle of their time; negative if it's ahead.", &["upstream"]),
            downstream_connections: make.gauge("kybio_gateway_downstream_connections", "Open connections from callers, handshakes included."),
            downstream_connections_busy: make.gauge("kybio_gateway_downstream_connections_busy", "Those of them with a request under way."),
            downstream_connections_parked: make.gauge("kybio_gateway_downstream_connections_parked", "Those of them that wait for a request without buffers of their own: on HTTP/1.1, before the first one and from a second after the last one on."),
            downstream_connections_max: make.gauge("kybio_gateway_downstream_connections_max", "Connections that there may be (listener.connections_max)."),
            downstream_accepted: make.counter("kybio_gateway_downstream_connections_accepted_total", "Connections taken from callers."),
            downstream_refused: make.counters("kybio_gateway_downstream_connections_refused_total", "Connections that weren't served because their address or caller had as many as it may have.", &["limit"]),
            downstream_full: make.counter("kybio_gateway_downstream_connections_full_total", "How often the limit on all connections was reached, so that the next one had to wait in the kernel's queue."),
            downstream_timeouts: make.counters("kybio_gateway_downstream_timeouts_total", "Connections from callers that a clock of ours closed.", &["clock"]),
            downstream_malformed: make.counter("kybio_gateway_downstream_malformed_total", "Requests so malformed that they were refused before they were requests."),
            downstream_floods: make.counters("kybio_gateway_downstream_floods_total", "HTTP/2 connections that were ended because they sent more frames of a kind than any client needs.", &["frame"]),
            downstream_closed_by_reload: make.counters("kybio_gateway_downstream_closed_by_reload_total", "Connections that ended because their caller wouldn't be let in any more, by reason.", &["reason"]),
            accept_errors: make.counter("kybio_gateway_accept_errors_total", "Connections that couldn't be taken, mostly for want of descriptors."),
            handshakes: make.counters("kybio_gateway_tls_handshakes_total", "Completed TLS handshakes with callers: full, or resumed from a session of before.", &["kind"]),
            handshake_failures: make.counters("kybio_gateway_tls_handshake_failures_total", "Failed TLS handshakes with callers, by reason.", &["reason"]),
            build_info: make.gauges("kybio_gateway_build_info", "1, with the version as label.", &["version"]),
            log_dropped: make.counter("kybio_gateway_log_lines_dropped_total", "Lines of the log that nobody took in time: a slow reader of standard error doesn't hold up calls."),
            process: Process::new(&mut make),
            // Last: now all have been made.
            registry: make.registry,
            described: make.described,
        };
        metrics.begin();
        metrics
    }

    /// Closed sets begin at zero, so that the first one of a kind is seen as a change.
    fn begin(&self) {
        self.build_info
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        let begin = |family: &IntCounterVec, values: &[&str]| {
            for value in values {
                family.with_label_values(&[value]);
            }
        };
        begin(&self.handshakes, &HANDSHAKES);
        begin(&self.handshake_failures, &HANDSHAKE_FAILURES);
        begin(&self.downstream_closed_by_reload, &HANDSHAKE_FAILURES);
        begin(&self.downstream_closed_by_reload, &[UNKNOWN_CALLER]);
        begin(&self.reloads, &RELOADS);
        begin(&self.failures, &RESULTS[1..]);
        begin(&self.failures, &FAILURE_CODES);
        begin(&self.downstream_refused, &CONNECTION_LIMITS);
        begin(&self.downstream_floods, &FLOODS);
        begin(&self.downstream_timeouts, &CLOCKS);
        begin(
            &self.unknown_outcomes,
            &Class::ALL.map(|class| class.as_str()),
        );
        begin(
            &self.late_verdicts,
            &Outcome::ALL.map(|outcome| outcome.as_str()),
        );
    }

    /// The counter of a configured name, or what it's folded into.
    pub(super) fn named(&self, family: Family, name: &str) -> IntCounter {
        let fits = self.room.take(family, name, "", 1);
        let name = if fits { name } else { FOLDED };
        let counters = self.counters(family);
        counters.map_or_else(
            || self.series_folded.clone(),
            |counters| counters.with_label_values(&[name]),
        )
    }

    /// A counter for each of these values of the other label: all of them have room, or all are folded.
    pub(super) fn named_set<const N: usize>(
        &self,
        family: Family,
        name: &str,
        others: [&'static str; N],
    ) -> [IntCounter; N] {
        let fits = self.room.take(family, name, SET, N);
        others.map(|other| self.counter_of(family, name, other, fits))
    }

    /// The same for values that aren't known before. `folded` is the one list of all names that there's no room for, made by the first of them: who
    /// shares it has the same values.
    pub(super) fn named_list(
        &self,
        family: Family,
        name: &str,
        others: impl Iterator<Item = String>,
        folded: &OnceLock<Arc<[IntCounter]>>,
    ) -> Arc<[IntCounter]> {
        let others: Vec<_> = others.collect();
        let list = |fits| {
            let counter = |other: &String| self.counter_of(family, name, other, fits);
            others.iter().map(counter).collect()
        };
        if self.room.take(family, name, SET, others.len()) {
            list(true)
        } else {
            Arc::clone(folded.get_or_init(|| list(false)))
        }
    }

    fn counter_of(&self, family: Family, name: &str, other: &str, fits: bool) -> IntCounter {
        let name = if fits { name } else { FOLDED };
        match self.counters(family) {
            Some(counters) => counters.with_label_values(&[name, other]),
            // Of the families that aren't counters nobody asks for one.
            None => self.series_folded.clone(),
        }
    }

    /// The same for the time of an operation's requests, whose histogram has so many series.
    pub(super) fn named_histogram(&self, name: &str, outcome: &str, count: usize) -> Histogram {
        let family = Family::OperationDurations;
        let fits = self.room.take(family, name, outcome, count);
        let name = if fits { name } else { FOLDED };
        self.request_seconds.with_label_values(&[name, outcome])
    }

    /// What an account's key is shown with: when it was taken, and whether it's accepted. `None` if there's no room.
    #[must_use]
    pub fn account_key(&self, account: &str, fingerprint: &str) -> Option<(Gauge, IntGauge)> {
        let fits = self.room.take(Family::AccountKey, account, fingerprint, 2);
        let labels = [account, fingerprint];
        fits.then(|| {
            (
                self.account_keys_taken.with_label_values(&labels),
                self.account_keys_accepted.with_label_values(&labels),
            )
        })
    }

    /// The account's calls aren't signed with that key any more.
    pub fn forget_account_key(&self, account: &str, fingerprint: &str) {
        let key = |family, name: &str, other: &str| {
            family == Family::AccountKey && name == account && other == fingerprint
        };
        for kept in self.room.give_back(key) {
            self.remove(&kept);
        }
    }

    /// Series of names that aren't configured any more are gone with them.
    pub fn forget_all_but(&self, series: &Series) {
        let names = series.names();
        let is_gone = |family: Family, name: &str, _: &str| {
            family != Family::AccountKey && !names.has(family, name)
        };
        for kept in self.room.give_back(is_gone) {
            self.remove(&kept);
        }
    }

    /// The same for a host. What is still under way there is counted no more.
    pub fn forget_upstream(&self, name: &str) {
        let name = ("upstream", name);
        for counters in [
            &self.attempts,
            &self.retries,
            &self.retry_budget_refusals,
            &self.breaker_opens,
            &self.breaker_probes,
            &self.upstream_opened,
            &self.upstream_reused,
            &self.upstream_handshakes,
        ] {
            forget(counters, name);
        }
        for gauges in [
            &self.in_flight,
            &self.in_flight_max,
            &self.queued,
            &self.queue_max,
            &self.breaker_state,
            &self.upstream_connections,
            &self.upstream_connections_idle,
            &self.upstream_connections_max,
        ] {
            forget(gauges, name);
        }
        for histograms in [
            &self.attempt_seconds,
            &self.phase_seconds,
            &self.upstream_connection_ages,
        ] {
            forget(histograms, name);
        }
        forget(&self.clock_skew, name);
        forget(&self.clock_skew_max, name);
    }

    fn remove(&self, (family, name, other): &Kept) {
        let labels = [&**name, &**other];
        // They're there: whoever took room made them.
        let _ = match family {
            Family::OperationDurations => self.request_seconds.remove_label_values(&labels),
            Family::AccountKey => {
                let _ = self.account_keys_taken.remove_label_values(&labels);
                self.account_keys_accepted.remove_label_values(&labels)
            }
            Family::OperationRequests
            | Family::CallerRequests
            | Family::AccountRequests
            | Family::CallerSignatures
            | Family::OperationAnswers
            | Family::AccountAnswers => {
                if let Some(counters) = self.counters(*family) {
                    let label = family.label();
                    forget(counters, (label, name));
                }
                Ok(())
            }
            other_family => match self.counters(*other_family) {
                Some(counters) if other.is_empty() => counters.remove_label_values(&labels[..1]),
                Some(counters) => counters.remove_label_values(&labels),
                None => Ok(()),
            },
        };
    }

    fn counters(&self, family: Family) -> Option<&IntCounterVec> {
        match family {
            Family::OperationRequests => Some(&self.requests),
            Family::OperationAnswers => Some(&self.operation_answers),
            Family::CallerRequests => Some(&self.caller_requests),
            Family::CallerSignatures => Some(&self.caller_signatures),
            Family::AccountRequests => Some(&self.account_requests),
            Family::AccountAnswers => Some(&self.account_answers),
            Family::AccountCredentialErrors => Some(&self.account_credential_errors),
            Family::OperationDurations | Family::AccountKey => None,
        }
    }

    /// So many lines of the log were dropped so far.
    pub fn show_dropped(&self, all: usize) {
        let before = self.log_seen.fetch_max(all, Ordering::AcqRel);
        self.log_dropped.inc_by(all.saturating_sub(before) as u64);
    }

    /// All families, in their order.
    #[must_use]
    pub fn described(&self) -> &[Described] {
        &self.described
    }

    /// All series in the text format of Prometheus.
    ///
    /// # Panics
    /// Never: writing to memory doesn't fail, and every family is well formed.
    #[must_use]
    pub fn render(&self) -> String {
        self.process.look();
        let mut out = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut out)
            .expect("families are well formed");
        String::from_utf8(out).expect("the text format is UTF-8")
    }

    /// The media type of [`render`](Self::render)'s text.
    pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;
}

/// What stands for all values of the other label, where they come together.
pub(super) const SET: &str = "*";

/// Removes all series of a family that have this label.
fn forget<T: MetricVecBuilder>(family: &MetricVec<T>, (label, value): (&str, &str))
where
    MetricVec<T>: Collector,
{
    let mut found = family.collect();
    let all = found.iter_mut().flat_map(|family| family.take_metric());
    for metric in all {
        let labels: HashMap<_, _> = metric
            .get_label()
            .iter()
            .map(|pair| (pair.name(), pair.value()))
            .collect();
        if labels.get(label) == Some(&value) {
            // It was there a moment ago.
            let _ = family.remove(&labels);
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::Metrics;
    use crate::observe::families::Described;
    use std::fmt::Write;

    #[test]
    fn closed_families_exist_from_zero() {
        let text = Metrics::new().render();
        for series in [
            "tls_handshake_failures_total{reason=\"revoked\"} 0",
            "downstream_timeouts_total{clock=\"idle\"} 0",
            "unknown_outcomes_total{class=\"non-idempotent-write\"} 0",
            "late_verdicts_total{outcome=\"unknown\"} 0",
        ] {
            assert!(text.contains(series), "{series}: {text}");
        }
    }

    /// The page that operators read is what the code says: a row for each family, in its order.
    #[test]
    fn the_page_has_each_family_and_no_other() {
        let page = include_str!("../../docs/metrics.md");
        let mut expected = String::new();
        for family in Metrics::new().described() {
            let Described {
                name,
                kind,
                labels,
                help,
            } = family;
            let labels = labels.iter().map(|label| format!("`{label}`"));
            let labels = labels.collect::<Vec<_>>().join(", ");
            let _ = writeln!(expected, "| `{name}` | {kind} | {labels} | {help} |");
        }
        let rows = page.lines().filter(|line| line.starts_with("| `"));
        let rows: String = rows.map(|row| format!("{row}\n")).collect();
        assert!(
            rows == expected,
            "write the page's tables anew:\n{expected}"
        );
    }
}
