//! One connection, from its handshake to its end: who is at the other side, whether there's room for them, and their requests.

use std::convert::Infallible;
use std::future::pending;
use std::net::IpAddr;
use std::pin::Pin;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::HeaderValue;
use http::Method;
use http::Request;
use http::Response;
use http::Version;
use http::header;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioExecutor;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use hyper_util::server::graceful::GracefulConnection;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::coop::unconstrained;
use tokio::time::Instant;
use tokio::time::sleep;
use tokio::time::sleep_until;
use tokio::time::timeout;
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;

use crate::identity::Caller;
use crate::listener::Gate;
use crate::listener::HEADERS_BYTES_MAX;
use crate::listener::Listener;
use crate::listener::Peer;
use crate::listener::STREAMS_MAX;
use crate::listener::Service;
use crate::listener::Settings;
use crate::listener::activity::Activity;
use crate::listener::counted::Counted;
use crate::listener::crowd;
use crate::listener::crowd::Place;
use crate::listener::guard::Guard;
use crate::listener::guard::Limits;
use crate::listener::guard::Outgoing;
use crate::listener::guard::Protocol;
use crate::listener::parking::Answering;
use crate::listener::parking::PARK_AFTER;
use crate::listener::parking::Parking;
use crate::listener::rarely::rarely;
use crate::listener::secured::Secured;
use crate::listener::socket;
use crate::listener::socket::Stream;
use crate::listener::standing::Standing;
use crate::observe::remote::Remote;
use crate::stop::Stop;

/// HTTP/2 streams that a caller has reset while we hadn't begun with them; more end the connection (CVE-2023-44487). Whoever takes back all
/// that it has just asked is within its right; for how often, it has the budget of its [frames](super::frames).
const PENDING_RESETS_MAX: usize = STREAMS_MAX as usize;

/// HTTP/2 streams of one connection that were reset because of the caller's faults; more end it (CVE-2025-8671). Those beyond [`STREAMS_MAX`]
/// count too, and a client that doesn't know that limit yet may be far beyond it.
const LOCAL_RESETS_MAX: usize = 256;

/// How often a silent HTTP/2 caller is asked whether it's there, and how long it may take to say so.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection between its handshake and its end.
struct Served<'a> {
    opened: Instant,
    /// As they were when it began.
    settings: &'a Settings,
    standing: &'a Standing,
    activity: &'a Activity,
    stop: &'a Stop,
}

impl Served<'_> {
    /// Waits for its first request, as long as a new connection may take for that.
    async fn first(&self) {
        let patience = self.opened + self.settings.first_linger;
        // Whether there was one doesn't matter.
        let _ = timeout_at(patience, self.activity.begun()).await;
    }

    /// Waits until no more connections are taken, and then as long as one without a request may still be about to bring one.
    async fn lingered(&self) {
        self.stop.closing.cancelled().await;
        self.first().await;
        sleep(self.settings.linger).await;
    }
}

impl Listener {
    /// Serves one connection until it ends, or the process does.
    pub(super) async fn connection(
        self: Arc<Self>,
        stream: Stream,
        remote: Remote,
        _permit: OwnedSemaphorePermit,
        stop: Stop,
        service: impl Service,
    ) {
        self.metrics.downstream_accepted.inc();
        let _open = Counted::one_of(&self.metrics.downstream_connections);
        if let Stream::Tcp(stream) = &stream {
            // Not worth losing a connection for.
            let _ = stream.set_nodelay(true);
        }
        let gate = self.gate.load_full();
        let Ok(_address) = self.admit_address(remote, &gate.settings) else {
            return;
        };
        // Boxed, because the state of a served connection is large and most of it would be carried around otherwise.
        match (stream, &gate.terms) {
            (Stream::Tcp(stream), Some(terms)) => {
                let shaken = Box::pin(self.handshake(stream, remote, &gate, terms, &stop));
                let Some((stream, standing)) = shaken.await else {
                    return;
                };
                let protocol = match stream.get_ref().1.alpn_protocol() {
                    Some(b"h2") => Protocol::Http2,
                    _ => Protocol::Http1,
                };
                let stream = Secured(stream);
                Box::pin(self.serve(stream, protocol, standing, &gate, stop, service)).await;
            }
            (Stream::Tcp(stream), None) => {
                Box::pin(self.plain(stream, remote, &gate, stop, service)).await;
            }
            (Stream::Unix(stream), _) => {
                Box::pin(self.plain(stream, remote, &gate, stop, service)).await;
            }
        }
    }

    /// A connection without TLS. Nothing negotiates its protocol: it's HTTP/1.1.
    async fn plain(
        self: Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        remote: Remote,
        gate: &Gate,
        stop: Stop,
        service: impl Service,
    ) {
        let Some(presented) = socket::presented(remote) else {
            self.report.elsewhere(remote);
            return;
        };
        let peer = Arc::new(Peer {
            address: remote.to_string().into(),
            presented,
        });
        let standing = Standing::plain(peer);
        self.serve(stream, Protocol::Http1, standing, gate, stop, service)
            .await;
    }

    async fn serve(
        self: Arc<Self>,
        mut stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        protocol: Protocol,
        standing: Arc<Standing>,
        gate: &Gate,
        stop: Stop,
        service: impl Service,
    ) {
        let caller = service.caller(&standing.peer.presented);
        let Ok(_caller) = self.admit_caller(&standing.peer, caller, &gate.settings) else {
            // Cleanly, so that a client whose request isn't on its way yet knows that nothing of it was looked at.
            let _ = timeout(gate.settings.handshake_timeout, stream.shutdown()).await;
            return;
        };
        let _registered = self.open.enter(Arc::clone(&standing));
        // A reload during the handshake may not have seen it: it's verified now, or it ends at once.
        let _ = standing.verify(&self.gate.load(), &self.clock);
        let busy = self.metrics.downstream_connections_busy.clone();
        let activity = Activity::new(self.clock.now(), busy);
        let limits = Limits {
            idle: gate.settings.idle_timeout,
            head: gate.settings.header_timeout,
            write: gate.settings.write_timeout,
            rest: match protocol {
                Protocol::Http1 => PARK_AFTER.min(gate.settings.idle_timeout),
                // It isn't parked.
                Protocol::Http2 => gate.settings.idle_timeout,
            },
        };
        let guard = Guard::new(
            stream,
            protocol,
            limits,
            activity.clone(),
            self.clock.clone(),
            (Arc::clone(&self.report), Arc::clone(&standing.peer)),
        );
        let listener = Arc::clone(&self);
        let (asking, active) = (Arc::clone(&standing), activity.clone());
        let draining = stop.draining.clone();
        let answering = service_fn(move |request| {
            listener.answer(request, &asking, &active, &draining, service.clone())
        });
        let served = Served {
            opened: self.clock.now(),
            settings: &gate.settings,
            standing: &standing,
            activity: &activity,
            stop: &stop,
        };
        match protocol {
            Protocol::Http1 => {
                let parked = self.metrics.downstream_connections_parked.clone();
                let connection = Parking::new(guard, answering, activity.clone(), parked);
                let connection = pin!(connection);
                self.http1(connection, served).await;
            }
            Protocol::Http2 => {
                let connection = http2::Builder::new(TokioExecutor::new())
                    .timer(TokioTimer::new())
                    .keep_alive_interval(PING_INTERVAL)
                    .keep_alive_timeout(PING_TIMEOUT)
                    .max_concurrent_streams(STREAMS_MAX)
                    .max_header_list_size(HEADERS_BYTES_MAX as u32)
                    .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
                    .max_local_error_reset_streams(LOCAL_RESETS_MAX)
                    .serve_connection(TokioIo::new(guard), answering);
                // Boxed, because it's the larger one by far, and the less usual.
                Box::pin(self.http2(connection, served)).await;
            }
        }
    }

    /// One request, from its head on; it lasts until its answer has been handed on.
    fn answer<S: Service>(
        &self,
        request: Request<Incoming>,
        standing: &Arc<Standing>,
        activity: &Activity,
        draining: &CancellationToken,
        service: S,
    ) -> impl Future<Output = Result<Response<Outgoing>, Infallible>> + use<S> {
        let active = activity.request(&self.clock);
        let version = request.version();
        let is_head = request.method() == Method::HEAD;
        let peer = standing.peer(&self.gate.load(), &self.clock);
        let answer = service.answer(peer, request);
        let (draining, standing) = (draining.clone(), Arc::clone(standing));
        async move {
            let mut answer = answer.await;
            let leaves = draining.is_cancelled() || standing.is_leaving();
            if leaves && version < Version::HTTP_2 {
                answer
                    .headers_mut()
                    .insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            // On HTTP/1 the library leaves the body out itself (RFC 9110 section 9.3.2).
            if is_head && version >= Version::HTTP_2 {
                let length = HeaderValue::from(answer.body().len());
                answer.headers_mut().insert(header::CONTENT_LENGTH, length);
                answer.body_mut().clear();
            }
            Ok(answer.map(|body| Outgoing::new(body, active)))
        }
    }

    /// HTTP/1 callers are asked to leave with each answer since `draining`. What is idle after that may be closed, but for a request that
    /// is on its way.
    async fn http1<S: AsyncRead + AsyncWrite + Unpin, A: Answering>(
        &self,
        connection: Pin<&mut Parking<S, A>>,
        served: Served<'_>,
    ) {
        let leave = pin!(async {
            tokio::select! {
                () = self.outlived(&served) => {}
                () = served.lingered() => {}
            }
        });
        let connection = (connection, Parking::graceful_shutdown);
        self.drive(connection, &served, (leave, pending())).await;
    }

    /// HTTP/2 callers are told at once (GOAWAY), and go elsewhere while what they asked is answered.
    async fn http2(
        &self,
        connection: impl GracefulConnection<Error = hyper::Error>,
        served: Served<'_>,
    ) {
        let draining = async {
            served.stop.draining.cancelled().await;
            // A client that's told to go away before it has asked may not ask at all.
            served.first().await;
        };
        let leave = pin!(async {
            tokio::select! {
                () = self.outlived(&served) => {}
                () = served.activity.stuck_for(served.settings.write_timeout) => self.report.timed_out("write"),
                () = draining => {}
            }
        });
        let silent = async {
            tokio::select! {
                () = served.stop.closing.cancelled() => {}
                () = served.standing.left() => {}
            }
            let patience = served.settings.first_linger;
            sleep(patience).await;
            served.activity.idle_for(patience).await;
        };
        let connection = (pin!(connection), GracefulConnection::graceful_shutdown);
        self.drive(connection, &served, (leave, silent)).await;
    }

    /// Waits until the connection is too old, its caller's certificate ends, or the caller isn't welcome any more.
    async fn outlived(&self, served: &Served<'_>) {
        let old = served.opened + self.age(served.settings);
        // Counted from now: were it asked to go a moment too soon, what it asks then would be let in.
        let ends = served.standing.ends.and_then(|ends| {
            let left = ends.saturating_sub(self.clock.since_epoch());
            self.clock.now().checked_add(left)
        });
        tokio::select! {
            () = sleep_until(ends.map_or(old, |ends| ends.min(old))) => {}
            () = served.standing.left() => {}
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
    async fn drive<C: Future<Output = Result<(), hyper::Error>>>(
        &self,
        (mut connection, goodbye): (Pin<&mut C>, impl FnOnce(Pin<&mut C>)),
        served: &Served<'_>,
        (leave, silent): (impl Future<Output = ()>, impl Future<Output = ()>),
    ) {
        let Served {
            settings,
            activity,
            stop,
            ..
        } = served;
        let peer = &served.standing.peer;
        // A caller that sends without end uses up the task's budget, and the runtime's timers would wait for it for ever.
        let silent = unconstrained(silent);
        let outside = unconstrained(async {
            tokio::select! {
                () = leave => true,
                () = stop.cut.cancelled() => false,
            }
        });
        tokio::select! {
            // A request that's here already is taken first.
            biased;
            ended = connection.as_mut() => return self.ended(peer, ended),
            may_leave = rarely(outside) => if !may_leave {
                return self.cut_off(activity);
            },
        }
        goodbye(connection.as_mut());
        // A reload may have given calls more time than they had when this connection began.
        let leaving = self.gate.load().settings.leaving_timeout;
        let leaving = leaving.max(settings.leaving_timeout);
        tokio::select! {
            ended = connection => self.ended(peer, ended),
            // HTTP/2 goes on taking requests until the caller answers a ping, which it may never do.
            () = unconstrained(sleep(leaving)) => {}
            () = silent => {}
            () = stop.cut.cancelled() => self.cut_off(activity),
        }
    }

    fn cut_off(&self, activity: &Activity) {
        if activity.is_busy() {
            self.cut.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// What the library says of the end.
    fn ended(&self, peer: &Peer, ended: Result<(), hyper::Error>) {
        let Err(error) = ended else { return };
        if error.is_parse() || error.is_parse_too_large() {
            self.report.malformed(peer, &error.to_string());
        } else {
            tracing::debug!(peer = %peer.address, cause = %error, "a connection ended");
        }
    }

    /// Whether whoever is at this address may have one more connection; asked before anything is said.
    fn admit_address(
        &self,
        remote: Remote,
        settings: &Settings,
    ) -> Result<Option<Place<IpAddr>>, Full> {
        let Remote::Tcp(address) = remote else {
            return Ok(None);
        };
        let place = self.addresses.enter(
            crowd::owner(address.ip()),
            settings.connections_per_address_max,
        );
        place.map(Some).ok_or_else(|| {
            self.report.address_refused(remote);
            Full
        })
    }

    /// The same for a caller, once it's known who that is. Those that nobody knows are one.
    fn admit_caller(
        &self,
        peer: &Peer,
        caller: Option<Caller>,
        settings: &Settings,
    ) -> Result<Place<Option<Caller>>, Full> {
        let place = self
            .callers
            .enter(caller.clone(), settings.connections_per_caller_max);
        place.ok_or_else(|| {
            self.report.caller_refused(peer, caller.as_ref());
            Full
        })
    }
}

/// Somebody has all the connections that they may have.
struct Full;
