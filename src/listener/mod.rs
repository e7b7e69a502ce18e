//! The door: TCP and TLS with a client certificate, HTTP/1.1 and HTTP/2, under limits that each have a name; or HTTP/1.1 without TLS, on
//! a unix socket and on loopback. Knows nothing of what is served behind it.

mod activity;
mod chains;
mod connection;
mod counted;
mod crowd;
mod frames;
mod guard;
mod handshake;
mod parking;
mod rarely;
mod report;
mod secured;
pub mod socket;
pub mod standing;
mod tickets;
pub mod tls;
mod verified;

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::Request;
use http::Response;
use hyper::body::Incoming;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::task::yield_now;
use tokio::time::sleep;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::identity::Caller;
use crate::identity::Presented;
use crate::listener::chains::Chains;
use crate::listener::crowd::Crowd;
use crate::listener::report::Report;
use crate::listener::socket::Socket;
use crate::listener::standing::Register;
use crate::listener::tickets::Tickets;
use crate::listener::tls::Terms;
use crate::listener::verified::Verified;
use crate::observe::metrics::Metrics;
use crate::observe::metrics::UNKNOWN_CALLER;
use crate::stop::Stop;

/// What configuration says of the listener, but for its address and certificates.
#[derive(Clone, Debug)]
pub struct Settings {
    /// TCP to TLS.
    pub handshake_timeout: Duration,
    /// From a head's first byte to its last.
    pub header_timeout: Duration,
    /// Without any request. Longer than callers keep theirs, so that it's they who close.
    pub idle_timeout: Duration,
    /// Without the caller taking a byte.
    pub write_timeout: Duration,
    /// Connections in the whole process, handshakes included.
    pub connections_max: usize,
    /// Of them, those from one address, or one IPv6 network of 64 bits.
    pub connections_per_address_max: usize,
    /// And those of one caller. Certificates that belong to no caller count as one.
    pub connections_per_caller_max: usize,
    /// After this time, give or take a tenth, a connection ends with its next answer.
    pub connection_age_max: Duration,
    /// How long what is under way may take once a connection was asked to end: a body, its call and its answer. A caller that doesn't
    /// want to hear it is cut off then.
    pub leaving_timeout: Duration,
    /// When the process is ending, a connection is kept for so long from its beginning on if it has had no request yet: its caller may be
    /// about to send its first one.
    pub first_linger: Duration,
    /// And one that is idle for so long from then on: its caller may be just sending.
    pub linger: Duration,
}

/// HTTP/2 requests at a time on one connection.
pub const STREAMS_MAX: u32 = 100;

/// Header fields of one request, names and values, in bytes.
pub const HEADERS_BYTES_MAX: usize = 32 * 1024;

/// Connections that are looked at in a row after a reload. A certificate takes about a tenth of a millisecond.
const REVIEW_BATCH: usize = 16;

/// Connections that end so are told one by one up to here; of more, their number.
const REVIEW_LINES_MAX: usize = 20;

/// How long to wait when the kernel won't give a connection, mostly for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The one door of the process; every worker takes connections from it.
pub struct Listener {
    gate: ArcSwap<Gate>,
    permits: Arc<Semaphore>,
    /// Since the start.
    connections_max: usize,
    addresses: Crowd<IpAddr>,
    callers: Crowd<Option<Caller>>,
    open: Register,
    chains: Chains,
    verified: Verified,
    report: Arc<Report>,
    /// Connections that were cut off with a request on them.
    cut: AtomicUsize,
    metrics: Arc<Metrics>,
    clock: Clock,
}

/// What new connections meet. A reload puts another one in its place.
struct Gate {
    settings: Settings,
    /// On a unix socket and in plaintext on loopback there are none.
    terms: Option<Terms>,
    /// Rises with each change of terms.
    number: u64,
}

/// Who is at the other end.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where from, as the log tells it.
    pub address: Arc<str>,
    /// What it has shown of itself.
    pub presented: Presented,
}

/// What is served behind the door.
pub trait Service: Clone + Send + Sync + 'static {
    /// The caller that a connection belongs to, by what counts now; none, if nobody knows it.
    fn caller(&self, presented: &Presented) -> Option<Caller>;

    /// Answers one request.
    fn answer(
        self,
        peer: Arc<Peer>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Bytes>> + Send + 'static;
}

impl Listener {
    /// One for the process.
    #[must_use]
    pub fn new(
        settings: Settings,
        terms: Option<Terms>,
        metrics: Arc<Metrics>,
        clock: Clock,
    ) -> Self {
        let connections_max = settings.connections_max;
        let permits = Arc::new(Semaphore::new(connections_max));
        let gate = Gate {
            settings,
            terms: terms.map(|terms| with_tickets(terms, &clock)),
            number: 0,
        };
        Self {
            gate: ArcSwap::from_pointee(gate),
            permits,
            connections_max,
            addresses: Crowd::default(),
            callers: Crowd::default(),
            open: Register::default(),
            chains: Chains::default(),
            verified: Verified::default(),
            report: Arc::new(Report::new(Arc::clone(&metrics), clock.clone())),
            cut: AtomicUsize::new(0),
            metrics,
            clock,
        }
    }

    /// From now on connections meet these. With new terms, the next request of each open connection is preceded by a verification of its
    /// certificate; whoever calls this calls [`review`](Self::review) for those that are idle.
    pub fn reload(&self, settings: Settings, terms: Option<Terms>) {
        let before = self.gate.load();
        // Where there was no TLS there's none until a restart, and the reverse.
        let terms = terms.filter(|_| before.terms.is_some());
        let number = before.number + u64::from(terms.is_some());
        let terms = terms.map(|terms| with_tickets(terms, &self.clock));
        let terms = terms.or_else(|| before.terms.clone());
        self.gate.store(Arc::new(Gate {
            settings,
            terms,
            number,
        }));
    }

    /// Looks at each open connection: ends those whose certificate isn't good any more, or whom nobody `knows` by what they present.
    /// What is under way on them is answered. In small batches, so that the thread can do other things between them.
    pub async fn review(&self, knows: impl Fn(&Presented) -> bool) {
        let gate = self.gate.load_full();
        let open = self.open.all();
        let (mut verified, mut ended) = (HashMap::new(), 0);
        for batch in open.chunks(REVIEW_BATCH) {
            for standing in batch {
                let verdict = standing.verify_as_one_of(&mut verified, &gate, &self.clock);
                let reason = match verdict {
                    Ok(()) if knows(&standing.peer.presented) => continue,
                    Ok(()) => UNKNOWN_CALLER,
                    Err(reason) => reason,
                };
                if !standing.turn_out() {
                    continue;
                }
                self.metrics
                    .downstream_closed_by_reload
                    .with_label_values(&[reason])
                    .inc();
                ended += 1;
                if ended <= REVIEW_LINES_MAX {
                    let peer = &standing.peer.address;
                    tracing::info!(%peer, reason, "a connection ends: it wouldn't be let in any more");
                }
            }
            yield_now().await;
        }
        if ended > REVIEW_LINES_MAX {
            tracing::info!(
                connections = ended,
                "so many connections end: they wouldn't be let in any more"
            );
        }
    }

    /// Connections that were cut off with a request on them.
    #[must_use]
    pub fn cut(&self) -> usize {
        self.cut.load(Ordering::Acquire)
    }

    /// Takes connections until `stop` is closing, and then those that the kernel holds for us already, unless the socket is `shared`: then
    /// they're for the next process on it. Each runs in a task of `tasks`.
    ///
    /// Who waits for `tasks` afterwards waits for the answers under way.
    pub async fn run(
        self: Arc<Self>,
        socket: Socket,
        shared: bool,
        stop: Stop,
        tasks: TaskTracker,
        service: impl Service,
    ) {
        let take = |stream, remote, permit| {
            let listener = Arc::clone(&self);
            tasks.spawn(listener.connection(stream, remote, permit, stop.clone(), service.clone()));
        };
        loop {
            // The permit comes first: at the limit, callers wait in the kernel's queue rather than being turned away.
            let accepted = async {
                let permit = self.permit().await;
                (permit, socket.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                accepted = accepted => accepted,
                () = stop.closing.cancelled() => break,
            };
            match accepted {
                Ok((stream, remote)) => take(stream, remote, permit),
                Err(error) => self.pause(&error).await,
            }
        }
        if shared {
            return;
        }
        // What the kernel has taken for us by now would be reset with the socket: it's taken too.
        let Ok(socket) = socket.into_bound() else {
            return;
        };
        loop {
            let permit = tokio::select! {
                permit = self.permit() => permit,
                () = stop.cut.cancelled() => return,
            };
            match socket.accept() {
                Ok((stream, remote)) => take(stream, remote, permit),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => self.pause(&error).await,
            }
        }
    }

    /// The kernel won't give a connection.
    async fn pause(&self, error: &io::Error) {
        self.report.not_accepted(error);
        sleep(ACCEPT_PAUSE).await;
    }

    async fn permit(&self) -> OwnedSemaphorePermit {
        let permits = Arc::clone(&self.permits);
        if self.permits.available_permits() == 0 {
            self.report.full(self.connections_max);
        }
        permits
            .acquire_owned()
            .await
            .expect("the semaphore is never closed")
    }
}

/// Tickets end with the certificates of their sessions.
fn with_tickets(mut terms: Terms, clock: &Clock) -> Terms {
    terms.tickets = Arc::new(Tickets::new(terms.tickets, clock.clone()));
    terms
}
