//! What is told of connections that don't come to a call: all of it is counted, and as much of it is logged as a log can bear. Whoever
//! can reach the port can make these lines, so each kind has a rate.

use std::fmt::Display;
use std::sync::Arc;

use crate::clock::Clock;
use crate::identity::Caller;
use crate::listener::Peer;
use crate::listener::frames::Flood;
use crate::listener::frames::Refusal;
use crate::listener::tls::BEARER_TEXT_MAX;
use crate::listener::tls::Bearer;
use crate::observe::log::harmless;
use crate::observe::metrics::Metrics;
use crate::observe::ration::Ration;
use crate::observe::remote::Remote;

/// The longest cause, in characters: the library's words for a refusal repeat what is in the certificate, which can be 64 KiB of usages.
const CAUSE_LENGTH_MAX: usize = 256;

/// Counts and tells, for the whole listener.
pub(super) struct Report {
    metrics: Arc<Metrics>,
    clock: Clock,
    handshakes: Ration,
    limits: Ration,
    malformed: Ration,
    floods: Ration,
    accepts: Ration,
    full: Ration,
    elsewhere: Ration,
}

/// Why a connection isn't served, by the limit that it's beyond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    /// `listener.connections_per_address_max`.
    Address,
    /// `listener.connections_per_caller_max`.
    Caller,
}

impl Limit {
    /// As one of [`CONNECTION_LIMITS`](crate::observe::metrics::CONNECTION_LIMITS).
    fn label(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Caller => "caller",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::Address => "listener.connections_per_address_max",
            Self::Caller => "listener.connections_per_caller_max",
        }
    }
}

impl Report {
    pub(super) fn new(metrics: Arc<Metrics>, clock: Clock) -> Self {
        let ration = || Ration::new(clock.now());
        Self {
            handshakes: ration(),
            limits: ration(),
            malformed: ration(),
            floods: ration(),
            accepts: ration(),
            full: ration(),
            elsewhere: ration(),
            metrics,
            clock,
        }
    }

    /// The kernel won't give a connection.
    pub(super) fn not_accepted(&self, error: &std::io::Error) {
        self.metrics.accept_errors.inc();
        if let Some(unlogged) = self.accepts.line(self.clock.now()) {
            tracing::warn!(%error, unlogged, "a connection couldn't be taken");
        }
    }

    /// There are as many connections as there may be, and the next has to wait in the kernel's queue.
    pub(super) fn full(&self, connections_max: usize) {
        self.metrics.downstream_full.inc();
        if let Some(unlogged) = self.full.line(self.clock.now()) {
            tracing::warn!(
                connections_max,
                unlogged,
                "connections have to wait: there are as many as listener.connections_max"
            );
        }
    }

    /// TLS wasn't agreed on, for a reason of [`HANDSHAKE_FAILURES`](crate::observe::metrics::HANDSHAKE_FAILURES); of a certificate that was
    /// refused, whose it says it is.
    pub(super) fn handshake_failed(
        &self,
        peer: Remote,
        reason: &'static str,
        cause: &str,
        bearer: Option<&Bearer>,
    ) {
        self.metrics
            .handshake_failures
            .with_label_values(&[reason])
            .inc();
        let Some(unlogged) = self.handshakes.line(self.clock.now()) else {
            return;
        };
        let (subject, issuer, serial, names, intermediates) = match bearer {
            Some(bearer) => (
                Some(bearer.subject.as_str()),
                Some(bearer.issuer.as_str()),
                Some(bearer.serial.as_str()),
                Some(bearer.names.as_str()).filter(|names| !names.is_empty()),
                Some(bearer.intermediates.as_str()).filter(|others| !others.is_empty()),
            ),
            None => (None, None, None, None, None),
        };
        let cause = harmless(cause, CAUSE_LENGTH_MAX);
        tracing::info!(%peer, reason, cause, subject, issuer, serial, names, intermediates, unlogged, "a TLS handshake failed");
    }

    /// Without TLS, somebody else than this machine connects.
    pub(super) fn elsewhere(&self, peer: Remote) {
        if let Some(unlogged) = self.elsewhere.line(self.clock.now()) {
            tracing::warn!(%peer, unlogged, "a connection from elsewhere was closed: without TLS only this machine's own are taken");
        }
    }

    /// An address has as many connections as it may have.
    pub(super) fn address_refused(&self, peer: Remote) {
        self.refused(&peer, Limit::Address, None, None);
    }

    /// A caller has as many, or those whom nobody knows have, who are told by what they present.
    pub(super) fn caller_refused(&self, peer: &Peer, caller: Option<&Caller>) {
        let names = caller.is_none().then(|| names(peer));
        self.refused(&peer.address, Limit::Caller, caller, names);
    }

    fn refused(
        &self,
        peer: &dyn Display,
        limit: Limit,
        caller: Option<&Caller>,
        names: Option<String>,
    ) {
        self.metrics
            .downstream_refused
            .with_label_values(&[limit.label()])
            .inc();
        let Some(unlogged) = self.limits.line(self.clock.now()) else {
            return;
        };
        let caller = caller.map(|caller| caller.name().as_str());
        tracing::warn!(%peer, limit = limit.label(), caller, names, key = limit.key(), unlogged, "a connection was refused");
    }

    /// What the HTTP library refuses never becomes a request: it's told here, or nowhere.
    pub(super) fn malformed(&self, peer: &Peer, cause: &str) {
        self.metrics.downstream_malformed.inc();
        self.say_malformed(peer, cause);
    }

    /// The same of HTTP/2, where it shows only in what the library sends.
    pub(super) fn malformed_frames(&self, peer: &Peer, count: u64, Refusal(code): Refusal) {
        self.metrics.downstream_malformed.inc_by(count);
        self.say_malformed(peer, code);
    }

    fn say_malformed(&self, peer: &Peer, cause: &str) {
        if let Some(unlogged) = self.malformed.line(self.clock.now()) {
            let names = names(peer);
            tracing::info!(peer = %peer.address, names, cause, unlogged, "a malformed request was refused");
        }
    }

    /// An HTTP/2 connection is ended, because of what it's flooded with.
    pub(super) fn flood(&self, peer: &Peer, Flood(frame): Flood) {
        self.metrics
            .downstream_floods
            .with_label_values(&[frame])
            .inc();
        if let Some(unlogged) = self.floods.line(self.clock.now()) {
            let names = names(peer);
            tracing::warn!(peer = %peer.address, names, frame, unlogged, "an HTTP/2 flood was ended");
        }
    }

    /// A clock of ours closes a connection.
    pub(super) fn timed_out(&self, clock: &'static str) {
        self.metrics
            .downstream_timeouts
            .with_label_values(&[clock])
            .inc();
    }
}

/// Who it is, by what was verified.
fn names(peer: &Peer) -> String {
    harmless(&peer.presented.to_string(), BEARER_TEXT_MAX)
}
