//! Whether a connection that was let in would be let in again: its certificate is verified anew when what it was verified by has
//! changed, and before a session is resumed.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::UnixTime;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::identity::Presented;
use crate::listener::Gate;
use crate::listener::Peer;
use crate::listener::chains::Chain;
use crate::listener::tls;

/// Let in, or why not, as the reason of a failed handshake.
pub(super) type Verdict = Result<(), &'static str>;

/// One open connection, as far as it concerns who is at its other end.
pub struct Standing {
    /// Who that is.
    pub peer: Arc<Peer>,
    /// When its own certificate ends, since 1970-01-01 UTC.
    pub(super) ends: Option<Duration>,
    /// Its certificates, its own first; none without TLS, where there's nothing to verify.
    chain: Option<Chain>,
    /// By which gate they were verified last.
    verified_by: AtomicU64,
    /// Why they aren't good any more.
    refused: OnceLock<&'static str>,
    /// It's to end with what is under way.
    leave: CancellationToken,
    turned_out: AtomicBool,
}

impl Standing {
    /// Let in without TLS.
    pub(super) fn plain(peer: Arc<Peer>) -> Arc<Self> {
        Self::new(peer, None, None, u64::MAX)
    }

    /// Let in through `gate`.
    pub(super) fn certified(
        peer: Arc<Peer>,
        chain: Chain,
        ends: Duration,
        gate: &Gate,
    ) -> Arc<Self> {
        Self::new(peer, Some(chain), Some(ends), gate.number)
    }

    fn new(
        peer: Arc<Peer>,
        chain: Option<Chain>,
        ends: Option<Duration>,
        verified_by: u64,
    ) -> Arc<Self> {
        Arc::new(Self {
            peer,
            ends,
            chain,
            verified_by: AtomicU64::new(verified_by),
            refused: OnceLock::new(),
            leave: CancellationToken::new(),
            turned_out: AtomicBool::new(false),
        })
    }

    /// Who is at the other end, by what counts now. Costs two loads unless that has changed since it was asked last.
    pub(super) fn peer(&self, gate: &Gate, clock: &Clock) -> Arc<Peer> {
        match self.verify(gate, clock) {
            Ok(()) => Arc::clone(&self.peer),
            Err(reason) => Arc::new(Peer {
                address: Arc::clone(&self.peer.address),
                presented: Presented::Refused(reason),
            }),
        }
    }

    /// Verifies the certificates, if `gate` isn't the one that did so last.
    pub(super) fn verify(&self, gate: &Gate, clock: &Clock) -> Verdict {
        self.verdict(gate, clock)
            .unwrap_or_else(|| self.settle(gate, verify(gate, self.certificates(), clock)))
    }

    /// The same for many at once: of connections with the same certificates, one is verified for all.
    pub(super) fn verify_as_one_of<'a>(
        &'a self,
        verified: &mut HashMap<&'a [CertificateDer<'static>], Verdict>,
        gate: &Gate,
        clock: &Clock,
    ) -> Verdict {
        self.verdict(gate, clock).unwrap_or_else(|| {
            let verdict = verified
                .entry(self.certificates())
                .or_insert_with(|| verify(gate, self.certificates(), clock));
            self.settle(gate, *verdict)
        })
    }

    /// What's known already. Once the certificates are refused they stay so.
    fn verdict(&self, gate: &Gate, clock: &Clock) -> Option<Verdict> {
        if let Some(reason) = self.refused.get() {
            return Some(Err(reason));
        }
        // A connection is asked to end with its certificate, but HTTP/2 can go on asking for a while, and the wall clock can jump.
        if self.ends.is_some_and(|ends| clock.since_epoch() >= ends) {
            return Some(self.settle(gate, Err("expired")));
        }
        // From then on each request asks: the list refuses those that it covers, and nobody else.
        let lists_end = gate.terms.as_ref().and_then(|terms| terms.lists_end);
        let lists_hold = lists_end.is_none_or(|end| clock.since_epoch() <= end);
        let known = self.verified_by.load(Ordering::Acquire) >= gate.number;
        (known && (lists_hold || self.chain.is_none())).then_some(Ok(()))
    }

    fn certificates(&self) -> &[CertificateDer<'static>] {
        self.chain.as_ref().map_or(&[], Chain::certificates)
    }

    fn settle(&self, gate: &Gate, verdict: Verdict) -> Verdict {
        match verdict {
            Ok(()) => drop(self.verified_by.fetch_max(gate.number, Ordering::AcqRel)),
            Err(reason) => {
                // Another request of the connection may have been as quick; both know the same.
                let _ = self.refused.set(reason);
                self.leave.cancel();
            }
        }
        verdict
    }

    /// It ends with what is under way. `false` if that was said before.
    pub(super) fn turn_out(&self) -> bool {
        self.leave.cancel();
        !self.turned_out.swap(true, Ordering::AcqRel)
    }

    /// It's to end.
    pub(super) fn is_leaving(&self) -> bool {
        self.leave.is_cancelled()
    }

    /// Waits until it's to end.
    pub(super) async fn left(&self) {
        self.leave.cancelled().await;
    }
}

/// Whether certificates would be let in through `gate` now.
pub(super) fn verify(gate: &Gate, chain: &[CertificateDer<'static>], clock: &Clock) -> Verdict {
    let Some(terms) = &gate.terms else {
        return Ok(());
    };
    let (leaf, intermediates) = chain.split_first().ok_or("none")?;
    let now = UnixTime::since_unix_epoch(clock.since_epoch());
    terms
        .verifier
        .verify_client_cert(leaf, intermediates, now)
        .map(drop)
        .map_err(|error| tls::reason_of(&error))
}

/// All open connections of the process.
#[derive(Default)]
pub(super) struct Register(Arc<Mutex<Entries>>);

#[derive(Default)]
struct Entries {
    next: u64,
    open: HashMap<u64, Arc<Standing>>,
}

/// Takes a connection out again when it's dropped.
pub(super) struct Registered {
    number: u64,
    register: Arc<Mutex<Entries>>,
}

impl Register {
    pub(super) fn enter(&self, standing: Arc<Standing>) -> Registered {
        let mut entries = lock(&self.0);
        entries.next += 1;
        let number = entries.next;
        entries.open.insert(number, standing);
        Registered {
            number,
            register: Arc::clone(&self.0),
        }
    }

    /// Those that are open now.
    pub(super) fn all(&self) -> Vec<Arc<Standing>> {
        lock(&self.0).open.values().cloned().collect()
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        lock(&self.register).open.remove(&self.number);
    }
}

fn lock(entries: &Mutex<Entries>) -> MutexGuard<'_, Entries> {
    // Nothing that holds it can panic half-way through a change.
    entries.lock().unwrap_or_else(PoisonError::into_inner)
}
