//! The door: TCP and TLS with a client certificate, HTTP/1.1 and HTTP/2, under limits that each have a name; or HTTP/1.1 without TLS, on
//! a unix socket and on loopback. Knows nothing of what is served behind it.

pub mod guard;
pub mod socket;
pub mod standing;
mod tickets;
pub mod tls;

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::HeaderValue;
use http::Request;
use http::Response;
use http::Version;
use http::header;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioExecutor;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use hyper_util::server::graceful::GracefulConnection;
use prometheus::IntGauge;
use rustls::HandshakeKind;
use rustls::ServerConfig;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::task::yield_now;
use tokio::time::sleep;
use tokio::time::sleep_until;
use tokio::time::timeout;
use tokio::time::timeout_at;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;

use crate::clock::Clock;
use crate::identity::Presented;
use crate::listener::guard::Activity;
use crate::listener::guard::Guard;
use crate::listener::guard::Limits;
use crate::listener::guard::Outgoing;
use crate::listener::socket::Socket;
use crate::listener::socket::Stream;
use crate::listener::standing::Register;
use crate::listener::standing::Standing;
use crate::listener::tickets::Tickets;
use crate::listener::tls::Holder;
use crate::listener::tls::Terms;
use crate::observe::metrics::Metrics;
use crate::observe::metrics::UNKNOWN_CALLER;
use crate::observe::remote::Remote;
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

/// HTTP/2 streams that a caller has reset while we hadn't begun with them; more end the connection (CVE-2023-44487).
const PENDING_RESETS_MAX: usize = 20;

/// HTTP/2 streams that we had to reset because of the caller's faults; more end the connection (CVE-2025-8671).
const LOCAL_RESETS_MAX: usize = 64;

/// How often a silent HTTP/2 caller is asked whether it's there, and how long it may take to say so.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

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
    open: Register,
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
    /// Where from.
    pub address: Remote,
    /// What it has shown of itself.
    pub presented: Presented,
}

/// Counts a connection as open for as long as it lives.
struct Open(IntGauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
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
        let permits = Arc::new(Semaphore::new(settings.connections_max));
        let gate = Gate {
            settings,
            terms: terms.map(|terms| with_tickets(terms, &clock)),
            number: 0,
        };
        Self {
            gate: ArcSwap::from_pointee(gate),
            permits,
            open: Register::default(),
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
                    let peer = standing.peer.address;
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
    /// they're for the next process on it. Each runs in a task of `tasks`; `serve` answers its requests.
    ///
    /// Who waits for `tasks` afterwards waits for the answers under way.
    pub async fn run<F, A>(
        self: Arc<Self>,
        socket: Socket,
        shared: bool,
        stop: Stop,
        tasks: TaskTracker,
        serve: F,
    ) where
        F: Fn(Arc<Peer>, Request<Incoming>) -> A + Clone + Send + 'static,
        A: Future<Output = Response<Bytes>> + Send + 'static,
    {
        let take = |stream, remote, permit| {
            let connection =
                Arc::clone(&self).connection(stream, remote, stop.clone(), serve.clone());
            tasks.spawn(async move {
                connection.await;
                drop(permit);
            });
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
                Err(error) => self.refused(&error).await,
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
                Err(error) => self.refused(&error).await,
            }
        }
    }

    /// The kernel won't give a connection.
    async fn refused(&self, error: &io::Error) {
        self.metrics.accept_errors.inc();
        tracing::warn!(%error, "a connection couldn't be taken");
        sleep(ACCEPT_PAUSE).await;
    }

    async fn permit(&self) -> OwnedSemaphorePermit {
        let permits = Arc::clone(&self.permits);
        permits
            .acquire_owned()
            .await
            .expect("the semaphore is never closed")
    }

    async fn connection<F, A>(self: Arc<Self>, stream: Stream, remote: Remote, stop: Stop, serve: F)
    where
        F: Fn(Arc<Peer>, Request<Incoming>) -> A + Clone + Send + 'static,
        A: Future<Output = Response<Bytes>> + Send + 'static,
    {
        self.metrics.downstream_accepted.inc();
        self.metrics.downstream_connections.inc();
        let _open = Open(self.metrics.downstream_connections.clone());
        if let Stream::Tcp(stream) = &stream {
            // Not worth losing a connection for.
            let _ = stream.set_nodelay(true);
        }
        let gate = self.gate.load_full();
        // Boxed, because the state of a served connection is large and most of it would be carried around otherwise.
        match (stream, &gate.terms) {
            (Stream::Tcp(stream), Some(terms)) => {
                let shaken = self.handshake(stream, remote, &gate, terms, &stop);
                let Some((stream, standing)) = shaken.await else {
                    return;
                };
                let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                Box::pin(self.serve(stream, is_http2, standing, &gate, stop, serve)).await;
            }
            (Stream::Tcp(stream), None) => {
                Box::pin(self.plain(stream, remote, &gate, stop, serve)).await;
            }
            (Stream::Unix(stream), _) => {
                Box::pin(self.plain(stream, remote, &gate, stop, serve)).await;
            }
        }
    }

    /// TLS within its deadline; a failure is counted and logged by its reason.
    async fn handshake(
        &self,
        stream: TcpStream,
        remote: Remote,
        gate: &Gate,
        terms: &Terms,
        stop: &Stop,
    ) -> Option<(TlsStream<TcpStream>, Arc<Standing>)> {
        let limit = gate.settings.handshake_timeout;
        let acceptor = TlsAcceptor::from(Arc::clone(&terms.config));
        let handshake = Box::pin(timeout(limit, acceptor.accept(stream)));
        let (reason, cause) = tokio::select! {
            outcome = handshake => match outcome {
                Ok(Ok(stream)) => match self.admit(&stream, remote, gate) {
                    Ok(standing) => return Some((stream, standing)),
                    Err(reason) => (reason, "the session of before isn't resumed".to_owned()),
                },
                // A health checker's or a scanner's: it connected, said nothing and left.
                Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => ("protocol", error.to_string()),
                Ok(Err(error)) => (tls::reason(&error), error.to_string()),
                Err(_) => ("timeout", format!("no TLS handshake within {limit:?}")),
            },
            () = stop.cut.cancelled() => return None,
        };
        self.metrics
            .handshake_failures
            .with_label_values(&[reason])
            .inc();
        tracing::info!(peer = %remote, reason, cause, "a TLS handshake failed");
        None
    }

    /// A handshake is complete. A resumed session is verified like a new one, which the library doesn't do.
    fn admit(
        &self,
        stream: &TlsStream<TcpStream>,
        remote: Remote,
        gate: &Gate,
    ) -> Result<Arc<Standing>, &'static str> {
        let session = stream.get_ref().1;
        let chain = session.peer_certificates().unwrap_or_default();
        let chain: Vec<_> = chain.iter().map(|each| each.clone().into_owned()).collect();
        if session.handshake_kind() == Some(HandshakeKind::Resumed) {
            standing::verify(gate, &chain, &self.clock)?;
        }
        self.metrics.handshakes.inc();
        let Holder { names, ends } = chain.first().map(tls::holder).unwrap_or_default();
        let peer = Arc::new(Peer {
            address: remote,
            presented: Presented::Certificate(names),
        });
        Ok(Standing::certified(peer, chain, ends, gate))
    }

    /// A connection without TLS. Nothing negotiates its protocol: it's HTTP/1.1.
    async fn plain<S, F, A>(
        self: Arc<Self>,
        stream: S,
        remote: Remote,
        gate: &Gate,
        stop: Stop,
        serve: F,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Fn(Arc<Peer>, Request<Incoming>) -> A + Clone + Send + 'static,
        A: Future<Output = Response<Bytes>> + Send + 'static,
    {
        let Some(presented) = socket::presented(remote) else {
            tracing::warn!(peer = %remote, "a connection from elsewhere was closed: without TLS only this machine's own are taken");
            return;
        };
        let peer = Arc::new(Peer {
            address: remote,
            presented,
        });
        let standing = Standing::plain(peer);
        self.serve(stream, false, standing, gate, stop, serve).await;
    }

    async fn serve<S, F, A>(
        self: Arc<Self>,
        stream: S,
        is_http2: bool,
        standing: Arc<Standing>,
        gate: &Gate,
        stop: Stop,
        serve: F,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Fn(Arc<Peer>, Request<Incoming>) -> A + Clone + Send + 'static,
        A: Future<Output = Response<Bytes>> + Send + 'static,
    {
        let _registered = self.open.enter(Arc::clone(&standing));
        // A reload during the handshake may not have seen it: it's verified now, or it ends at once.
        let _ = standing.verify(&self.gate.load(), &self.clock);
        let activity = Activity::new(self.clock.now());
        let begun = activity.clone();
        let settings = &gate.settings;
        let head = (!is_http2).then_some(settings.header_timeout);
        let limits = Limits {
            idle: settings.idle_timeout,
            head,
            write: settings.write_timeout,
        };
        let io = TokioIo::new(Guard::new(
            stream,
            limits,
            activity.clone(),
            self.clock.clone(),
            Arc::clone(&self.metrics),
        ));
        let draining = stop.draining.clone();
        let (listener, asking) = (Arc::clone(&self), Arc::clone(&standing));
        let service = service_fn(move |request: Request<Incoming>| {
            let active = activity.request(&listener.clock);
            let version = request.version();
            let peer = asking.peer(&listener.gate.load(), &listener.clock);
            let answer = serve(peer, request);
            let (draining, asking) = (draining.clone(), Arc::clone(&asking));
            async move {
                let mut answer = answer.await;
                let leaves = draining.is_cancelled() || asking.is_leaving();
                if leaves && version < Version::HTTP_2 {
                    answer
                        .headers_mut()
                        .insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(answer.map(|body| Outgoing::new(body, active)))
            }
        });
        // A caller has no longer to do with us than its certificate says.
        let left = standing.ends.map_or(Duration::MAX, |ends| {
            ends.saturating_sub(self.clock.since_epoch())
        });
        let age_ends = self.clock.now() + self.age(settings).min(left);
        let opened = self.clock.now();
        let first = async {
            // A client of HTTP/2 that's told to go away before it has asked may not ask at all.
            let _ = timeout_at(opened + settings.first_linger, begun.begun()).await;
        };
        let outlived = async {
            tokio::select! {
                () = sleep_until(age_ends) => {}
                () = standing.left() => {}
            }
        };
        if is_http2 {
            let connection = http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_TIMEOUT)
                .max_concurrent_streams(STREAMS_MAX)
                .max_header_list_size(HEADERS_BYTES_MAX as u32)
                .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
                .max_local_error_reset_streams(LOCAL_RESETS_MAX)
                .serve_connection(io, service);
            // HTTP/2 callers are told at once (GOAWAY), and go elsewhere while what they asked is answered.
            let leave = async {
                tokio::select! {
                    () = outlived => {}
                    () = async { stop.draining.cancelled().await; first.await } => {}
                }
            };
            let silent = async {
                tokio::select! {
                    () = stop.closing.cancelled() => {}
                    () = standing.left() => {}
                }
                sleep(settings.first_linger).await;
                begun.idle_for(settings.first_linger).await;
            };
            self.drive(
                connection,
                &standing,
                &begun,
                (leave, silent),
                settings,
                &stop,
            )
            .await;
        } else {
            let connection = http1::Builder::new()
                // The guard has the clock for heads. `pipeline_flush` stays off: it costs a tenth.
                .header_read_timeout(None)
                .max_buf_size(HEADERS_BYTES_MAX)
                .writev(false)
                .serve_connection(io, service);
            // HTTP/1 callers were asked to leave with each answer since `draining`. What is idle after that may be closed, but for a
            // request that is on its way.
            let leave = async {
                tokio::select! {
                    () = outlived => {}
                    () = async { stop.closing.cancelled().await; first.await; sleep(settings.linger).await } => {}
                }
            };
            self.drive(
                connection,
                &standing,
                &begun,
                (leave, pending()),
                settings,
                &stop,
            )
            .await;
        }
    }

    /// The age at which a connection ends, with a tenth of jitter from its birth's clock bits, so that a herd that came together
    /// doesn't leave together.
    fn age(&self, settings: &Settings) -> Duration {
        let full = settings.connection_age_max;
        let jitter = full.mul_f64(
            f64::from(self.clock.since_epoch().subsec_nanos() % 1_000_003) / 1_000_003.0 / 5.0,
        );
        full - full / 10 + jitter
    }

    /// Serves a connection until it ends by itself, or asks it to end at `leave`; then to its end, the cut, or until its caller is `silent`.
    async fn drive(
        &self,
        connection: impl GracefulConnection<Error = hyper::Error>,
        standing: &Standing,
        activity: &Activity,
        (leave, silent): (impl Future<Output = ()>, impl Future<Output = ()>),
        settings: &Settings,
        stop: &Stop,
    ) {
        let address = standing.peer.address;
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            // A request that's here already is taken first.
            biased;
            ended = connection.as_mut() => return self.ended(address, ended),
            () = leave => {}
            () = stop.cut.cancelled() => return self.cut_off(activity),
        }
        connection.as_mut().graceful_shutdown();
        // A reload may have given calls more time than they had when this connection began.
        let leaving = self.gate.load().settings.leaving_timeout;
        let leaving = leaving.max(settings.leaving_timeout);
        tokio::select! {
            ended = connection => self.ended(address, ended),
            // HTTP/2 goes on taking requests until the caller answers a ping, which it may never do.
            () = sleep(leaving) => {}
            () = silent => {}
            () = stop.cut.cancelled() => self.cut_off(activity),
        }
    }

    fn cut_off(&self, activity: &Activity) {
        if activity.is_busy() {
            self.cut.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// What the library refuses never becomes a request: it's counted and logged here, or nowhere.
    fn ended(&self, address: Remote, ended: Result<(), hyper::Error>) {
        let Err(error) = ended else { return };
        if error.is_parse() || error.is_parse_too_large() {
            self.metrics.downstream_malformed.inc();
            tracing::info!(peer = %address, cause = %error, "a malformed request was refused");
        } else {
            tracing::debug!(peer = %address, cause = %error, "a connection ended");
        }
    }
}

/// Tickets end with the certificates of their sessions.
fn with_tickets(terms: Terms, clock: &Clock) -> Terms {
    let mut config = ServerConfig::clone(&terms.config);
    config.ticketer = Arc::new(Tickets::new(Arc::clone(&config.ticketer), clock.clone()));
    Terms {
        config: Arc::new(config),
        ..terms
    }
}
