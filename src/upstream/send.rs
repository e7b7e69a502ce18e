//! One attempt: a request of our own, built from nothing, and its whole reply.

use std::io::Write;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::HeaderName;
use http::HeaderValue;
use http::Method;
use http::Request;
use http::StatusCode;
use http::Uri;
use http::header;
use http_body_util::BodyExt;
use http_body_util::Full;
use hyper::body::Body;
use hyper::body::Incoming;
use tokio::time::Instant;
use tokio::time::timeout_at;

use crate::clock::Moment;
use crate::clock::Stamp;
use crate::observe::log::chain;
use crate::observe::trace::TRACEPARENT;
use crate::observe::trace::Trace;
use crate::operation::OperationName;
use crate::outcome::Left;
use crate::pieces::Pieces;
use crate::sign::SignedBody;
use crate::upstream::Error;
use crate::upstream::Phase;
use crate::upstream::Upstream;
use crate::upstream::breaker::Health;
use crate::upstream::breaker::Pass;
use crate::upstream::pool::Connection;
use crate::upstream::pool::Pool;

/// What one attempt sends.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    /// Its canonical name makes the path.
    pub operation: &'a OperationName,
    /// The body with its signature.
    pub signed: &'a SignedBody,
    /// When the attempt began, which its stamp says.
    pub began: Moment,
    /// What it's part of; told to the host only if that's configured.
    pub trace: Trace,
    /// With less time than this it isn't sent.
    pub time_min: Duration,
    /// Its caller's upload has left it most of its time, so that its failure says something of the host.
    pub fair: bool,
    /// Whether somebody still waits for its answer. For nobody it isn't sent.
    pub wanted: &'a (dyn Fn() -> bool + Sync),
}

/// A whole reply, as it came.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status. KYBIO's own failures come with 200.
    pub status: StatusCode,
    /// All header fields.
    pub headers: HeaderMap,
    /// All bytes, still compressed if they came so.
    pub body: Bytes,
    /// When the last of them was there.
    pub ended: Instant,
}

/// Sends a call, and reads the whole reply. Exactly one attempt: nothing is sent twice, and no redirect is followed. `pass` hears what
/// it says of the host.
///
/// # Errors
/// When no whole reply came; the error says what may have left.
#[expect(
    clippy::manual_async_fn,
    reason = "an async function would keep what it's given twice"
)]
pub fn send<'a>(
    pool: &'a Pool,
    pass: Pass,
    call: &'a Call<'a>,
    deadline: Instant,
) -> impl Future<Output = Result<Answer, Error>> {
    async move {
        let sent = attempt(pool, call, deadline).await;
        match &sent {
            Ok(answer) => pass.tell(Health::Well, "", answer.ended),
            Err(error) => pass.tell(error.health(call.fair), &chain(error), pool.now()),
        }
        sent
    }
}

async fn attempt(pool: &Pool, call: &Call<'_>, deadline: Instant) -> Result<Answer, Error> {
    let timed = Timed::begin(pool, Phase::Connect, call.began.monotonic);
    let mut connection = pool.checkout(call.began.monotonic, deadline).await?;
    let now = timed.end();
    // To connect may have taken all the time there was.
    let unsent = if !(call.wanted)() {
        Some(Error::Unwanted)
    } else if deadline.saturating_duration_since(now) < call.time_min {
        Some(Error::Late)
    } else {
        None
    };
    if let Some(error) = unsent {
        pool.checkin(connection, now);
        return Err(error);
    }
    let before = connection.accepted.count();
    let timed = Timed::begin(pool, Phase::FirstByte, now);
    match timeout_at(deadline, exchange(timed, &mut connection, call)).await {
        Ok(Ok(answer)) => {
            // A reply that came before all was written leaves a connection that's still busy with this call.
            if connection.accepted.count() - before < call.signed.body().len() as u64 {
                connection.cut();
            } else {
                pool.checkin(connection, answer.ended);
            }
            Ok(answer)
        }
        Ok(Err(error)) => Err(unless_unsent(connection, before, error)),
        Err(_) => Err(unless_unsent(
            connection,
            before,
            Error::Timeout(Left::Perhaps),
        )),
    }
}

/// The second proof: not one byte was accepted since the request was handed over.
fn unless_unsent(connection: Connection, before: u64, error: Error) -> Error {
    let (accepted, reused) = (connection.accepted.clone(), connection.reused);
    // The driver shares this thread, so that it can't be writing now; and once cut it never writes again.
    connection.cut();
    match error {
        Error::Broken(cause) if accepted.count() == before => Error::Unsent { cause, reused },
        Error::Unsent { cause, .. } => Error::Unsent { cause, reused },
        Error::Timeout(_) if accepted.count() == before => Error::Timeout(Left::Nothing),
        other => other,
    }
}

async fn exchange(
    timed: Timed<'_>,
    connection: &mut Connection,
    call: &Call<'_>,
) -> Result<Answer, Error> {
    let (pool, sent_at) = (timed.pool, timed.began);
    let upstream = pool.upstream();
    let reply = connection
        .sender
        .try_send_request(request(upstream, call))
        .await
        .map_err(|mut error| {
            // The first proof: the request was handed back.
            let handed_back = error.take_message().is_some();
            if handed_back {
                Error::Unsent {
                    cause: error.into_error(),
                    reused: true,
                }
            } else {
                Error::Broken(error.into_error())
            }
        })?;
    let received_at = timed.end();
    let timed = Timed::begin(pool, Phase::Rest, received_at);
    let (head, body) = reply.into_parts();
    // By the newest look at the wall clock, which may be set while a call waits for its connection.
    let received = pool.since_epoch();
    let sent = received.saturating_sub(received_at - sent_at);
    upstream.clock_skew.see(&head.headers, sent, received);
    let body = whole(body, upstream.settings().reply_bytes_max).await?;
    Ok(Answer {
        status: head.status,
        headers: head.headers,
        body,
        ended: timed.end(),
    })
}

/// A part of an attempt, whose time is shown when it ends, in whatever way: a host that is given up was slow.
struct Timed<'a> {
    pool: &'a Pool,
    phase: Phase,
    began: Instant,
    over: bool,
}

impl<'a> Timed<'a> {
    fn begin(pool: &'a Pool, phase: Phase, began: Instant) -> Self {
        Self {
            pool,
            phase,
            began,
            over: false,
        }
    }

    /// It ends now.
    fn end(mut self) -> Instant {
        self.over = true;
        self.show()
    }

    fn show(&self) -> Instant {
        let now = self.pool.now();
        let took = now - self.began;
        self.pool.upstream().show_phase(self.phase, took);
        now
    }
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.show();
        }
    }
}

async fn whole(mut body: Incoming, bytes_max: usize) -> Result<Bytes, Error> {
    let mut pieces = Pieces::default();
    while let Some(frame) = body.frame().await {
        // Trailers are no part of it.
        let Ok(piece) = frame.map_err(Error::Broken)?.into_data() else {
            continue;
        };
        if piece.len() > bytes_max - pieces.length() {
            return Err(Error::TooLarge(bytes_max));
        }
        let rest = body
            .size_hint()
            .exact()
            .and_then(|rest| usize::try_from(rest).ok());
        pieces.push(piece, rest.map(|rest| rest.min(bytes_max)));
    }
    Ok(pieces.whole())
}

/// Of a request, with the length that hyper adds.
const HEADERS: usize = 8;

const TIME_STAMP: HeaderName = HeaderName::from_static("time-stamp");
const DATA_SIGNATURE: HeaderName = HeaderName::from_static("data-signature");

/// The request as documented (contract, section 2), with nothing of the caller's but the body.
fn request(upstream: &Upstream, call: &Call<'_>) -> Request<Full<Bytes>> {
    let base_url = &upstream.settings().base_url;
    let path = [&*base_url.path, "/openapi/v1/", call.operation.as_str()].concat();
    let mut signature = HeaderValue::from_bytes(call.signed.expose_signature())
        .expect("hex digits are a header value");
    signature.set_sensitive(true);
    let mut request = Request::new(Full::new(call.signed.body().clone()));
    *request.method_mut() = Method::POST;
    *request.uri_mut() =
        Uri::try_from(path).expect("a base URL's path and an operation's name are a path");
    let headers = request.headers_mut();
    headers.reserve(HEADERS);
    headers.insert(header::HOST, base_url.authority.clone());
    headers.insert(header::USER_AGENT, HeaderValue::from_static("openApi"));
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json; charset=utf-8"),
    );
    headers.insert(
        header::ACCEPT_ENCODING,
        HeaderValue::from_static("gzip,deflate"),
    );
    let stamp = Stamp::at(call.began.wall);
    headers.insert(TIME_STAMP, digits(stamp.unix_ms()));
    headers.insert(DATA_SIGNATURE, signature);
    if upstream.settings().traceparent {
        let value = HeaderValue::try_from(call.trace.header(fastrand::u64(..)));
        headers.insert(TRACEPARENT, value.expect("hex digits are a header value"));
    }
    request
}

/// A number as a header's value. The library's own way makes room for it twice.
fn digits(number: u64) -> HeaderValue {
    let mut text = [0; 20];
    let mut rest = text.as_mut_slice();
    write!(rest, "{number}").expect("the largest has 20 digits");
    let unused = rest.len();
    HeaderValue::from_bytes(&text[..text.len() - unused]).expect("digits are a header value")
}

#[cfg(test)]
mod tests {
    use super::Call;
    use super::Error;
    use super::Left;
    use super::send;
    use super::unless_unsent;
    use crate::account::AppId;
    use crate::account::AppKey;
    use crate::clock::Clock;
    use crate::name::UpstreamName;
    use crate::observe::metrics::Metrics;
    use crate::observe::trace::Trace;
    use crate::operation::OperationName;
    use crate::payload;
    use crate::sign::SignedBody;
    use crate::sign::sign;
    use crate::upstream::BaseUrl;
    use crate::upstream::Roots;
    use crate::upstream::Settings;
    use crate::upstream::Upstream;
    use crate::upstream::pool::Pool;
    use bytes::Bytes;
    use http::Request;
    use http_body_util::Full;
    use hyper_util::rt::TokioIo;
    use rustls::RootCertStore;
    use std::io::Read;
    use std::io::Write;
    use std::net::SocketAddr;
    use std::net::TcpListener;
    use std::net::TcpStream;
    use std::sync::Arc;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;
    use tokio_util::task::TaskTracker;
    use zeroize::Zeroizing;

    const REPLY: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n{\"status\":\"success\"}";

    const BODY: &str = "{\"status\":\"success\"}";

    /// A host that answers one request on each connection with these bytes, and then hands the connection over.
    fn host(reply: &'static [u8]) -> (SocketAddr, mpsc::Receiver<TcpStream>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let (hand_over, connections) = mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("accepted");
                let mut request = Vec::new();
                while !request.ends_with(b"{\"appId\":\"a\"}") {
                    let mut chunk = [0; 1_024];
                    let count = stream.read(&mut chunk).expect("readable");
                    request.extend_from_slice(&chunk[..count]);
                }
                stream.write_all(reply).expect("writable");
                if hand_over.send(stream).is_err() {
                    return;
                }
            }
        });
        (address, connections)
    }

    fn pool(address: SocketAddr) -> Pool {
        let settings = Settings {
            name: UpstreamName::new("kybio").expect("a name"),
            base_url: BaseUrl::parse(&format!("http://{address}")).expect("a URL"),
            roots: Roots(Arc::new(RootCertStore::empty())),
            resolve: Vec::new(),
            allow_private: false,
            traceparent: false,
            connect_timeout: Duration::from_secs(5),
            attempt_timeout: Duration::from_secs(5),
            total_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(60),
            connection_age_max: Duration::from_secs(60),
            connections_max: 4,
            reply_bytes_max: 1_024,
            clock_skew_max: Duration::from_secs(30),
            breaker: crate::upstream::breaker::Rules {
                failures: 10,
                percent: 50,
                volume: 100,
                window: Duration::from_secs(10),
            },
        };
        let upstream = Upstream::new(settings, &Metrics::new()).expect("plain");
        Pool::new(Arc::new(upstream), Clock::system(), TaskTracker::new())
    }

    fn signed(body: Bytes) -> SignedBody {
        let draft = payload::check(payload::Whole::in_one_piece(body)).expect("JSON, or nothing");
        let payload = draft
            .address(&AppId::new("a").expect("an appId"))
            .expect("none");
        sign(
            &payload,
            &AppKey::new(&Zeroizing::new(b"key".to_vec())).expect("a key"),
        )
    }

    async fn call(pool: &Pool) -> Result<Bytes, Error> {
        call_with(pool, &signed(Bytes::new())).await
    }

    async fn call_with(pool: &Pool, signed: &SignedBody) -> Result<Bytes, Error> {
        let operation = OperationName::new("a/b").expect("a name");
        let clock = Clock::system();
        let call = Call {
            operation: &operation,
            signed,
            began: clock.moment(),
            trace: Trace::of(&http::HeaderMap::new(), uuid::Uuid::nil()),
            time_min: Duration::ZERO,
            fair: true,
            wanted: &|| true,
        };
        let now = call.began.monotonic;
        let deadline = now + Duration::from_secs(5);
        let pass = pool.upstream().enter(now)?;
        let sent = send(pool, pass, &call, deadline).await;
        sent.map(|answer| answer.body)
    }

    /// The second proof, by itself: what a failure means depends on whether a byte was accepted since the request was handed over.
    #[tokio::test]
    async fn a_failure_before_any_byte_was_accepted_is_unsent_and_no_other_is() {
        let (address, _connections) = host(REPLY);
        let pool = pool(address);
        let now = Clock::system().now();
        let deadline = now + Duration::from_secs(5);
        for accepted in [false, true] {
            let broken = hyper_error().await;
            for error in [Error::Broken(broken), Error::Timeout(Left::Perhaps)] {
                let connection = pool.checkout(now, deadline).await.expect("a connection");
                let count = connection.accepted.count();
                let before = if accepted {
                    count.wrapping_sub(1)
                } else {
                    count
                };
                let left = unless_unsent(connection, before, error).left();
                let expected = if accepted {
                    Left::Perhaps
                } else {
                    Left::Nothing
                };
                assert_eq!(left, expected);
            }
        }
    }

    /// What hyper says of a connection that ends under a request.
    async fn hyper_error() -> hyper::Error {
        let (near, far) = tokio::io::duplex(64);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(near))
            .await
            .expect("no bytes are needed for it");
        let driver = tokio::spawn(connection);
        drop(far);
        let answer = sender.send_request(Request::new(Full::<Bytes>::default()));
        let error = answer.await.expect_err("nobody answers");
        drop(driver.await);
        error
    }

    /// Nothing is awaited between the host's close and the next call, so that the connection's driver can't have seen it.
    #[tokio::test]
    async fn a_connection_that_was_closed_a_moment_ago_is_not_used_again() {
        let (address, connections) = host(REPLY);
        let pool = pool(address);
        assert_eq!(call(&pool).await.expect("the first"), BODY);
        drop(connections.recv().expect("the first connection"));
        assert_eq!(call(&pool).await.expect("on a new connection"), BODY);
    }

    /// Bytes that nobody asked for would be taken for the answer to the next call: another caller's, maybe.
    #[tokio::test]
    async fn a_connection_with_bytes_that_nobody_asked_for_is_not_used_again() {
        let (address, connections) = host(REPLY);
        let pool = pool(address);
        assert_eq!(call(&pool).await.expect("the first"), BODY);
        let mut first = connections.recv().expect("the first connection");
        first
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
            .expect("writable");
        assert_eq!(call(&pool).await.expect("on a new connection"), BODY);
    }

    /// The host answers after the first bytes, reads no more, and keeps the connection: it must neither be used again nor be forgotten.
    #[tokio::test]
    async fn a_reply_that_came_before_all_was_written_ends_its_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let (hand_over, connections) = mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("accepted");
                let _ = stream.read(&mut [0; 1_024]).expect("readable");
                stream.write_all(REPLY).expect("writable");
                if hand_over.send(stream).is_err() {
                    return;
                }
            }
        });
        let pool = pool(address);
        let body = format!("{{\"a\":\"{}\"}}", "x".repeat(32 << 20));
        let signed = signed(body.into());
        for _ in 0..3 {
            assert_eq!(call_with(&pool, &signed).await.expect("its answer"), BODY);
        }
        for _ in 0..3 {
            // Each came on a connection of its own; the host hands it over once it has answered.
            connections
                .recv_timeout(Duration::from_secs(5))
                .expect("another one");
        }
        // The drivers are gone by their next turn, and their permits with them.
        while pool.upstream().permits.available_permits() < 4 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn an_answer_that_came_with_more_than_one_reply_is_not_followed_by_the_rest() {
        const TWO: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n{\"status\":\"success\"}HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
        let (address, connections) = host(TWO);
        let pool = pool(address);
        for _ in 0..3 {
            assert_eq!(call(&pool).await.expect("its own answer"), BODY);
        }
        for _ in 0..3 {
            // Each came on a connection of its own; the host hands it over once it has answered.
            connections
                .recv_timeout(Duration::from_secs(5))
                .expect("another one");
        }
    }
}
