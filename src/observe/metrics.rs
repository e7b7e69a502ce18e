//! The metric families, made once and passed to whoever counts. Only closed sets and configured names become label values.

use std::collections::BTreeSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use prometheus::Encoder;
use prometheus::Gauge;
use prometheus::GaugeVec;
use prometheus::Histogram;
use prometheus::HistogramOpts;
use prometheus::HistogramVec;
use prometheus::IntCounter;
use prometheus::IntCounterVec;
use prometheus::IntGauge;
use prometheus::IntGaugeVec;
use prometheus::Opts;
use prometheus::Registry;
use prometheus::TextEncoder;
use prometheus::core::Collector;

/// All families, in a registry of their own.
pub struct Metrics {
    registry: Registry,
    /// Codes that may become label values; every other is `other`.
    codes: ArcSwap<BTreeSet<i64>>,

    /// Requests by canonical operation and outcome.
    pub requests: IntCounterVec,
    /// Requests by caller and outcome.
    pub caller_requests: IntCounterVec,
    /// Requests by account and outcome.
    pub account_requests: IntCounterVec,
    /// From the request's head to its answer, by operation.
    pub request_seconds: HistogramVec,
    /// What of it the gateway itself took: all but waiting for the caller's body and the upstream.
    pub overhead_seconds: Histogram,
    /// Requests that the gateway refused, by the code in its answer.
    pub refusals: IntCounterVec,
    /// Requests between head and answer.
    pub requests_active: IntGauge,
    /// Attempts by upstream and result.
    pub attempts: IntCounterVec,
    /// Attempts from the first wish for a connection to the last byte of the reply, by upstream.
    pub attempt_seconds: HistogramVec,
    /// KYBIO's answers by account and errorCode.
    pub account_answers: IntCounterVec,
    /// KYBIO's answers by operation and errorCode.
    pub operation_answers: IntCounterVec,
    /// Verdicts that came after the caller had gone, by outcome.
    pub late_verdicts: IntCounterVec,
    /// KYBIO's answers that don't take the key, by account.
    pub account_credential_errors: IntCounterVec,
    /// When the key in use was taken, in Unix seconds, by account and fingerprint.
    pub account_keys_taken: GaugeVec,
    /// 1 once KYBIO has taken it, by account and fingerprint.
    pub account_keys_accepted: IntGaugeVec,
    /// Requests by caller and by what became of the signature that came with them.
    pub caller_signatures: IntCounterVec,
    /// Accounts that can't be used because of their key.
    pub accounts_disabled: IntGauge,
    /// Accounts that go on with a key whose file is bad by now.
    pub accounts_keeping_key: IntGauge,
    /// The last reload was taken, or found nothing new.
    pub reload_successful: IntGauge,
    /// When the configuration was last found good, Unix seconds.
    pub reload_success_time: Gauge,
    /// Reloads by what came of them.
    pub reloads: IntCounterVec,
    /// Connections that a reload ended, by reason.
    pub downstream_closed_by_reload: IntCounterVec,
    /// Connections that callers hold open.
    pub downstream_connections: IntGauge,
    /// Connections taken from callers.
    pub downstream_accepted: IntCounter,
    /// Connections closed by a clock of ours, by clock.
    pub downstream_timeouts: IntCounterVec,
    /// Requests that were refused before they were requests.
    pub downstream_malformed: IntCounter,
    /// Connections that a limit on connections kept out, by limit.
    pub downstream_refused: IntCounterVec,
    /// How often no connection could be taken until another one ended.
    pub downstream_full: IntCounter,
    /// HTTP/2 connections that were ended because of what they were flooded with, by frame.
    pub downstream_floods: IntCounterVec,
    /// Accepts that failed, mostly for want of descriptors.
    pub accept_errors: IntCounter,
    /// TLS handshakes with callers that were completed.
    pub handshakes: IntCounter,
    /// TLS handshakes with callers that weren't, by reason.
    pub handshake_failures: IntCounterVec,
    /// Connections to upstreams that are open, by upstream.
    pub upstream_connections: IntGaugeVec,
    /// Connections to upstreams that were opened, by upstream.
    pub upstream_opened: IntCounterVec,
    /// Attempts that found a connection open, by upstream.
    pub upstream_reused: IntCounterVec,
    /// Retries, by upstream and by the result of the attempt before.
    pub retries: IntCounterVec,
    /// Retries that the budget had no room for, by upstream.
    pub retry_budget_refusals: IntCounterVec,
    /// 0 closed, 1 half open, 2 open, by upstream.
    pub breaker_state: IntGaugeVec,
    /// How often the breaker opened, by upstream.
    pub breaker_opens: IntCounterVec,
    /// Looks whether a host is back, by upstream and result.
    pub breaker_probes: IntCounterVec,
    /// Calls under way, by upstream.
    pub in_flight: IntGaugeVec,
    /// Calls that wait for their turn, by upstream.
    pub queued: IntGaugeVec,
    /// 1 while an account's calls for the day are used up, by account.
    pub quota_used_up: IntGaugeVec,
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

/// Five buckets a decade where answers usually come, up to the longest total timeout.
const REQUEST_BUCKETS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 45.0,
];

/// The gateway's own time is tens of microseconds.
const OVERHEAD_BUCKETS: [f64; 10] = [
    0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.01, 0.1, 1.0,
];

struct Maker<'a>(&'a Registry);

impl Maker<'_> {
    fn keep<C: Collector + Clone + 'static>(&self, collector: Result<C, prometheus::Error>) -> C {
        let collector = collector.expect("names and labels are constants, and legal");
        self.0
            .register(Box::new(collector.clone()))
            .expect("each name stands once");
        collector
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.keep(IntCounter::new(name, help))
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.keep(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.keep(IntGauge::new(name, help))
    }

    fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.keep(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.keep(Histogram::with_opts(
            HistogramOpts::new(name, help).buckets(buckets.to_vec()),
        ))
    }

    fn histograms(&self, name: &str, help: &str, buckets: &[f64], labels: &[&str]) -> HistogramVec {
        self.keep(HistogramVec::new(
            HistogramOpts::new(name, help).buckets(buckets.to_vec()),
            labels,
        ))
    }
}

impl Metrics {
    /// All families, with those of closed sets at zero. `codes` are the business codes that are counted by themselves.
    ///
    /// # Panics
    /// Never: names and labels are constants, and every test makes one.
    #[must_use]
    pub fn new(codes: impl IntoIterator<Item = i64>) -> Self {
        let registry = Registry::new();
        let make = Maker(&registry);
        let metrics = Self {
            codes: ArcSwap::from_pointee(codes.into_iter().collect()),
            requests: make.counters("kybio_gateway_requests_total", "Requests, by operation (canonical name, or none) and by what happened to the call.", &["operation", "outcome"]),
            caller_requests: make.counters("kybio_gateway_caller_requests_total", "Requests, by caller and by what happened to the call.", &["caller", "outcome"]),
            account_requests: make.counters("kybio_gateway_account_requests_total", "Requests, by account and by what happened to the call.", &["account", "outcome"]),
            request_seconds: make.histograms("kybio_gateway_request_duration_seconds", "Time from a request's head to its answer, by operation.", &REQUEST_BUCKETS, &["operation"]),
            overhead_seconds: make.histogram("kybio_gateway_overhead_seconds", "What of a forwarded request's time the gateway itself took: all but waiting for the body and the upstream.", &OVERHEAD_BUCKETS),
            refusals: make.counters("kybio_gateway_refusals_total", "Answers that the gateway made itself, by the code they carry.", &["code"]),
            requests_active: make.gauge("kybio_gateway_requests_active", "Requests between head and answer."),
            attempts: make.counters("kybio_gateway_attempts_total", "Attempts at an upstream, by result.", &["upstream", "result"]),
            attempt_seconds: make.histograms("kybio_gateway_attempt_duration_seconds", "Time of an attempt, from asking for a connection to the reply's last byte.", &REQUEST_BUCKETS, &["upstream"]),
            account_answers: make.counters("kybio_gateway_account_answers_total", "KYBIO's answers, by account and errorCode (none: success or no code; other: not in the catalogue).", &["account", "error_code"]),
            operation_answers: make.counters("kybio_gateway_operation_answers_total", "KYBIO's answers, by operation and errorCode (none: success or no code; other: not in the catalogue).", &["operation", "error_code"]),
            late_verdicts: make.counters("kybio_gateway_late_verdicts_total", "Calls whose caller had gone before the answer came, by what happened to them.", &["outcome"]),
            account_credential_errors: make.counters("kybio_gateway_account_credential_errors_total", "KYBIO's answers that say that it doesn't take the account's appId or signature.", &["account"]),
            account_keys_taken: make.keep(GaugeVec::new(Opts::new("kybio_gateway_account_key_taken_timestamp_seconds", "When the key that the account's calls are signed with was read first, in Unix time, by the key's fingerprint."), &["account", "fingerprint"])),
            account_keys_accepted: make.gauges("kybio_gateway_account_key_accepted", "1 once KYBIO has answered a call signed with this key with success.", &["account", "fingerprint"]),
            caller_signatures: make.counters("kybio_gateway_caller_signatures_total", "Calls that may have left, by what the caller's own signature is: match (signed with the account's key: the caller still holds it), mismatch (with something else), absent.", &["caller", "result"]),
            accounts_disabled: make.gauge("kybio_gateway_accounts_disabled", "Accounts that can't be used because of their key."),
            accounts_keeping_key: make.gauge("kybio_gateway_accounts_keeping_key", "Accounts that go on with the key they had, because their key file can't be used any more."),
            reload_successful: make.gauge("kybio_gateway_config_last_reload_successful", "1 if the configuration in force is the one that is written; 0 if what is written was refused."),
            reload_success_time: make.keep(Gauge::new("kybio_gateway_config_last_reload_success_timestamp_seconds", "When what is written was last found good, at start or by a reload, in Unix time.")),
            reloads: make.counters("kybio_gateway_config_reloads_total", "Reloads, by what came of them.", &["result"]),
            downstream_closed_by_reload: make.counters("kybio_gateway_downstream_closed_by_reload_total", "Connections that ended because their caller wouldn't be let in any more, by reason.", &["reason"]),
            downstream_connections: make.gauge("kybio_gateway_downstream_connections", "Open connections from callers, handshakes included."),
            downstream_accepted: make.counter("kybio_gateway_downstream_connections_accepted_total", "Connections taken from callers."),
            downstream_timeouts: make.counters("kybio_gateway_downstream_timeouts_total", "Connections from callers that a clock of ours closed.", &["clock"]),
            downstream_malformed: make.counter("kybio_gateway_downstream_malformed_total", "Requests so malformed that they were refused before they were requests."),
            downstream_refused: make.counters("kybio_gateway_downstream_connections_refused_total", "Connections that weren't served because their address or caller had as many as it may have.", &["limit"]),
            downstream_full: make.counter("kybio_gateway_downstream_connections_full_total", "How often the limit on all connections was reached, so that the next one had to wait in the kernel's queue."),
            downstream_floods: make.counters("kybio_gateway_downstream_floods_total", "HTTP/2 connections that were ended because they sent more frames of a kind than any client needs.", &["frame"]),
            accept_errors: make.counter("kybio_gateway_accept_errors_total", "Connections that couldn't be taken, mostly for want of descriptors."),
            handshakes: make.counter("kybio_gateway_tls_handshakes_total", "Completed TLS handshakes with callers."),
            handshake_failures: make.counters("kybio_gateway_tls_handshake_failures_total", "Failed TLS handshakes with callers, by reason.", &["reason"]),
            upstream_connections: make.gauges("kybio_gateway_upstream_connections", "Open connections to an upstream.", &["upstream"]),
            upstream_opened: make.counters("kybio_gateway_upstream_connections_opened_total", "Connections opened to an upstream.", &["upstream"]),
            upstream_reused: make.counters("kybio_gateway_upstream_connections_reused_total", "Attempts that found a connection open.", &["upstream"]),
            retries: make.counters("kybio_gateway_retries_total", "Attempts after the first, by the result of the one before.", &["upstream", "reason"]),
            retry_budget_refusals: make.counters("kybio_gateway_retry_budget_refusals_total", "Retries that weren't made because the upstream's retry budget was spent.", &["upstream"]),
            breaker_state: make.gauges("kybio_gateway_upstream_breaker_state", "0: calls pass. 1: one at a time tries whether the host is well. 2: the host is held to be down, and calls are refused.", &["upstream"]),
            breaker_opens: make.counters("kybio_gateway_upstream_breaker_opens_total", "How often a host came to be held to be down.", &["upstream"]),
            breaker_probes: make.counters("kybio_gateway_upstream_breaker_probes_total", "TCP and TLS handshakes that looked whether a host is back, by result.", &["upstream", "result"]),
            in_flight: make.gauges("kybio_gateway_upstream_in_flight", "Calls under way.", &["upstream"]),
            queued: make.gauges("kybio_gateway_upstream_queued", "Calls that wait for their turn.", &["upstream"]),
            quota_used_up: make.gauges("kybio_gateway_account_quota_used_up", "1 while the account's calls for the day are used up and its calls are refused here.", &["account"]),
            registry: registry.clone(),
        };
        let build = make.gauges(
            "kybio_gateway_build_info",
            "1, with the version as label.",
            &["version"],
        );
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        for reason in HANDSHAKE_FAILURES {
            metrics.handshake_failures.with_label_values(&[reason]);
            metrics
                .downstream_closed_by_reload
                .with_label_values(&[reason]);
        }
        metrics
            .downstream_closed_by_reload
            .with_label_values(&[UNKNOWN_CALLER]);
        for result in RELOADS {
            metrics.reloads.with_label_values(&[result]);
        }
        for limit in CONNECTION_LIMITS {
            metrics.downstream_refused.with_label_values(&[limit]);
        }
        for frame in FLOODS {
            metrics.downstream_floods.with_label_values(&[frame]);
        }
        for clock in CLOCKS {
            metrics.downstream_timeouts.with_label_values(&[clock]);
        }
        metrics
    }

    /// The business codes that are counted by themselves from now on.
    pub fn know_codes(&self, codes: impl IntoIterator<Item = i64>) {
        self.codes.store(Arc::new(codes.into_iter().collect()));
    }

    /// The `error_code` label of an answer: the code if it's known, `none`, or `other`.
    #[must_use]
    pub fn code_label(&self, code: Option<i64>) -> String {
        match code {
            None => "none".to_owned(),
            Some(code) if self.codes.load().contains(&code) => code.to_string(),
            Some(_) => "other".to_owned(),
        }
    }

    /// All families in the text format of Prometheus.
    ///
    /// # Panics
    /// Never: writing to memory doesn't fail, and every family is well formed.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut out)
            .expect("families are well formed");
        String::from_utf8(out).expect("the text format is UTF-8")
    }

    /// The media type of [`render`](Self::render)'s text.
    pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::Metrics;

    #[test]
    fn codes_are_a_closed_set() {
        let metrics = Metrics::new([5001]);
        assert_eq!(
            [Some(5001), Some(7), None].map(|code| metrics.code_label(code)),
            ["5001", "other", "none"]
        );
    }

    #[test]
    fn closed_families_exist_from_zero() {
        let text = Metrics::new([]).render();
        assert!(
            text.contains("kybio_gateway_tls_handshake_failures_total{reason=\"revoked\"} 0"),
            "{text}"
        );
        assert!(
            text.contains("kybio_gateway_downstream_timeouts_total{clock=\"idle\"} 0"),
            "{text}"
        );
    }
}
