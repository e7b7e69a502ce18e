//! HTTP/1.1 connections that nobody uses right now are parked: the library's part of one, with its buffers, is let go of, and made anew
//! for the next byte. Whoever is at the other end can't tell: every byte is kept, and every clock goes on, for they are the guard's.

use std::convert::Infallible;
use std::mem::replace;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use prometheus::IntGauge;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;

use crate::listener::HEADERS_BYTES_MAX;
use crate::listener::activity::Activity;
use crate::listener::counted::Counted;
use crate::listener::guard::Guard;
use crate::listener::guard::Outgoing;

/// A connection without a request for so long is parked. The calls of one piece of work follow each other faster than that, and for those
/// that don't, what parking costs (some microseconds) is nothing, once in a second.
pub(super) const PARK_AFTER: Duration = Duration::from_secs(1);

/// What answers the requests of one connection.
pub(super) trait Answering:
    Service<Request<Incoming>, Response = Response<Outgoing>, Error = Infallible>
{
}

impl<A> Answering for A where
    A: Service<Request<Incoming>, Response = Response<Outgoing>, Error = Infallible>
{
}

/// A connection on which HTTP/1.1 is spoken, from its first byte to its end.
pub(super) struct Parking<S, A: Answering> {
    state: State<S, A>,
    activity: Activity,
    /// Connections that are parked, of which this may be one.
    parked: IntGauge,
    /// It was asked to end, and isn't parked any more.
    leaving: bool,
}

enum State<S, A: Answering> {
    /// There's a request, or there was one a moment ago.
    Served(Box<http1::Connection<TokioIo<Guard<S>>, A>>),
    Parked {
        guard: Guard<S>,
        service: A,
        _counted: Counted,
    },
    /// It's being closed.
    Ending(Guard<S>),
    Ended,
}

impl<S: AsyncRead + AsyncWrite + Unpin, A: Answering> State<S, A> {
    fn parked(guard: Guard<S>, service: A, parked: &IntGauge) -> Self {
        Self::Parked {
            guard,
            service,
            _counted: Counted::one_of(parked),
        }
    }

    /// With these bytes in front of what is to come.
    fn served(mut guard: Guard<S>, first: Bytes, service: A) -> Self {
        guard.put_back(first);
        let connection = http1::Builder::new()
            // The guard has the clock for heads. `pipeline_flush` stays off: it costs a tenth.
            .header_read_timeout(None)
            .max_buf_size(HEADERS_BYTES_MAX)
            .writev(false)
            .serve_connection(TokioIo::new(guard), service);
        Self::Served(Box::new(connection))
    }
}

/// Nothing in it is ever pinned.
impl<S, A: Answering> Unpin for Parking<S, A> {}

impl<S: AsyncRead + AsyncWrite + Unpin, A: Answering> Parking<S, A> {
    /// It begins parked: some callers connect long before they ask.
    pub(super) fn new(guard: Guard<S>, service: A, activity: Activity, parked: IntGauge) -> Self {
        Self {
            state: State::parked(guard, service, &parked),
            activity,
            parked,
            leaving: false,
        }
    }

    /// It's to end with the request that's under way, or now if there's none.
    pub(super) fn graceful_shutdown(mut self: Pin<&mut Self>) {
        self.leaving = true;
        self.state = match replace(&mut self.state, State::Ended) {
            State::Served(mut connection) => {
                Pin::new(&mut *connection).graceful_shutdown();
                State::Served(connection)
            }
            State::Parked { guard, .. } => State::Ending(guard),
            other => other,
        };
    }

    /// Takes the library's part off. To be asked to end shows whether it's between two requests, as the guard says: then it does so at
    /// once, and the stream goes on without it. If it isn't, it does what it was asked: it ends, stream and all, with the answer that it's
    /// at, so that the rest of one request is never read as the beginning of another.
    fn park(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        let State::Served(connection) = &mut self.state else {
            return Poll::Pending;
        };
        self.leaving = true;
        let mut connection = Pin::new(&mut **connection);
        connection.as_mut().graceful_shutdown();
        self.activity.keep_open(true);
        let ended = connection.poll(cx);
        self.activity.keep_open(false);
        ready!(ended)?;
        self.leaving = false;
        if let State::Served(connection) = replace(&mut self.state, State::Ended) {
            let parts = connection.into_parts();
            let (guard, service) = (parts.io.into_inner(), parts.service);
            self.state = if parts.read_buf.is_empty() {
                State::parked(guard, service, &self.parked)
            } else {
                // Half a head had come along with the request before.
                State::served(guard, parts.read_buf, service)
            };
        }
        Poll::Ready(Ok(()))
    }

    /// Waits for a byte without a buffer to speak of. With TLS, what comes for TLS itself is taken in by the way, and answered.
    fn poll_parked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let State::Parked { guard, .. } = &mut self.state else {
            return Poll::Pending;
        };
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        let mut came = Pin::new(&mut *guard).poll_read(cx, &mut buffer);
        if came.is_pending()
            && let Poll::Ready(Err(error)) = Pin::new(guard).poll_flush(cx)
        {
            came = Poll::Ready(Err(error));
        }
        let came = ready!(came);
        let first = buffer.filled();
        self.state = match replace(&mut self.state, State::Ended) {
            State::Parked { guard, service, .. } if came.is_ok() && !first.is_empty() => {
                State::served(guard, Bytes::copy_from_slice(first), service)
            }
            // The caller has left, or its time is up.
            State::Parked { guard, .. } => State::Ending(guard),
            other => other,
        };
        Poll::Ready(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, A: Answering> Future for Parking<S, A> {
    type Output = Result<(), hyper::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        loop {
            match &mut this.state {
                State::Served(connection) => {
                    if let Poll::Ready(ended) = Pin::new(&mut **connection).poll(cx) {
                        return Poll::Ready(ended);
                    }
                    if !this.activity.take_rest() || this.leaving {
                        return Poll::Pending;
                    }
                    ready!(this.park(cx))?;
                }
                State::Parked { .. } => ready!(this.poll_parked(cx)),
                State::Ending(guard) => {
                    // Whoever doesn't hear it has gone.
                    let _ = ready!(Pin::new(guard).poll_shutdown(cx));
                    this.state = State::Ended;
                }
                State::Ended => return Poll::Ready(Ok(())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::PARK_AFTER;
    use super::Parking;
    use crate::clock::Clock;
    use crate::identity::Presented;
    use crate::listener::Peer;
    use crate::listener::activity::Activity;
    use crate::listener::guard::Guard;
    use crate::listener::guard::Limits;
    use crate::listener::guard::Outgoing;
    use crate::listener::guard::Protocol;
    use crate::listener::report::Report;
    use crate::observe::metrics::Metrics;
    use http::Method;
    use http::Request;
    use http::Response;
    use http_body_util::BodyExt;
    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use prometheus::IntGauge;
    use std::convert::Infallible;
    use std::pin::pin;
    use std::sync::Arc;
    use std::time::Duration;
    use tokio::io::AsyncReadExt;
    use tokio::io::AsyncWriteExt;
    use tokio::io::DuplexStream;
    use tokio::task::JoinHandle;
    use tokio::time::Instant;
    use tokio::time::sleep;
    use tokio_util::sync::CancellationToken;

    /// The caller's end of a connection, on which each request is answered with its body.
    struct Caller {
        stream: DuplexStream,
        parked: IntGauge,
        goodbye: CancellationToken,
        served: JoinHandle<Instant>,
    }

    const LIMITS: Limits = Limits {
        idle: Duration::from_secs(120),
        head: Duration::from_secs(10),
        write: Duration::from_secs(30),
        rest: PARK_AFTER,
    };

    /// So long an answer takes.
    const WORK: Duration = Duration::from_millis(300);

    impl Caller {
        fn new() -> Self {
            Self::with_room(1_000)
        }

        /// So many bytes fit on the way, in each direction.
        fn with_room(bytes: usize) -> Self {
            let gauge = |name: &str| IntGauge::new(name, name).expect("a good name");
            let (ours, stream) = tokio::io::duplex(bytes);
            let (clock, activity) = (
                Clock::system(),
                Activity::new(Instant::now(), gauge("busy")),
            );
            let peer = Arc::new(Peer {
                address: "127.0.0.1:1".into(),
                presented: Presented::Loopback,
            });
            let report = Arc::new(Report::new(Arc::new(Metrics::new()), clock.clone()));
            let of = (report, peer);
            let guard = Guard::new(ours, Protocol::Http1, LIMITS, activity.clone(), clock, of);
            let parked = gauge("parked");
            let goodbye = CancellationToken::new();
            let active = activity.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let active = active.request(&Clock::system());
                async move {
                    // It would be another one's with a byte less.
                    assert_eq!(request.method(), Method::POST);
                    let body = request.into_body().collect().await.expect("a body");
                    sleep(WORK).await;
                    let body = Outgoing::new(body.to_bytes(), active);
                    Ok::<_, Infallible>(Response::new(body))
                }
            });
            let connection = Parking::new(guard, service, activity, parked.clone());
            let leave = goodbye.clone();
            let served = tokio::spawn(async move {
                let mut connection = pin!(connection);
                let ended = tokio::select! {
                    biased;
                    ended = connection.as_mut() => ended,
                    () = leave.cancelled() => {
                        connection.as_mut().graceful_shutdown();
                        connection.await
                    }
                };
                // What it says of half a head isn't looked at here.
                drop(ended);
                Instant::now()
            });
            Self {
                stream,
                parked,
                goodbye,
                served,
            }
        }

        /// One that has had an answer just now.
        async fn answered() -> Self {
            let mut caller = Self::new();
            caller.asks(&request("first")).await;
            caller.hears("first").await;
            caller
        }

        /// One that has had an answer, and is parked.
        async fn parked() -> Self {
            let caller = Self::answered().await;
            sleep(PARK_AFTER).await;
            assert!(caller.is_parked().await);
            caller
        }

        async fn is_parked(&self) -> bool {
            // Whatever is due by now is done first.
            sleep(Duration::from_millis(1)).await;
            self.parked.get() == 1
        }

        async fn asks(&mut self, bytes: &[u8]) {
            self.stream.write_all(bytes).await.expect("it's open");
        }

        async fn hears(&mut self, body: &str) {
            let mut answer = String::new();
            while !answer.contains("\r\n\r\n") {
                answer.push(self.stream.read_u8().await.expect("an answer").into());
            }
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            let mut heard = vec![0; body.len()];
            self.stream.read_exact(&mut heard).await.expect("a body");
            assert!(heard == body.as_bytes(), "another body");
        }

        /// Hears nothing but the end, and tells when that was.
        async fn ends(mut self) -> Instant {
            let mut rest = Vec::new();
            self.stream.read_to_end(&mut rest).await.expect("an end");
            assert_eq!(String::from_utf8_lossy(&rest), "");
            let ended = self.served.await.expect("no panic");
            assert_eq!(self.parked.get(), 0, "what has ended isn't parked");
            ended
        }
    }

    fn request(body: &str) -> Vec<u8> {
        let length = body.len();
        format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n{body}").into()
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_parked_after_its_answer_and_serves_the_next_request() {
        let mut caller = Caller::answered().await;
        for nth in 0..5 {
            sleep(PARK_AFTER - Duration::from_millis(5)).await;
            assert!(!caller.is_parked().await, "too soon");
            sleep(Duration::from_millis(5)).await;
            assert!(caller.is_parked().await, "it was to be parked");
            let body = format!("again {nth}");
            caller.asks(&request(&body)).await;
            assert!(!caller.is_parked().await);
            caller.hears(&body).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_was_never_used_is_parked_and_serves_its_first_request() {
        let mut caller = Caller::new();
        sleep(PARK_AFTER).await;
        assert!(caller.is_parked().await);
        caller.asks(&request("at last")).await;
        caller.hears("at last").await;
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_used_in_time_is_never_parked() {
        let mut caller = Caller::answered().await;
        for nth in 0..50 {
            sleep(PARK_AFTER - Duration::from_millis(nth % 3 + 2)).await;
            assert!(!caller.is_parked().await, "request {nth}");
            caller.asks(&request("steady")).await;
            caller.hears("steady").await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_takes_longer_than_that_is_answered() {
        let mut caller = Caller::answered().await;
        let (begin, end) = (&request("slow body")[..50], &request("slow body")[50..]);
        caller.asks(begin).await;
        for _ in 0..8 {
            sleep(PARK_AFTER).await;
            assert!(!caller.is_parked().await);
        }
        caller.asks(end).await;
        caller.hears("slow body").await;
    }

    /// Its first part comes before the moment, at it, and after it; its second one so as well.
    #[tokio::test(start_paused = true)]
    async fn a_request_in_two_parts_around_the_moment_is_answered() {
        let whole = request("in two parts");
        for cut in 1..whole.len() {
            for before in [900, 999, 1_000, 1_001, 1_100] {
                for between in [0, 1, 100, 5_000] {
                    let mut caller = Caller::answered().await;
                    sleep(Duration::from_millis(before)).await;
                    caller.asks(&whole[..cut]).await;
                    sleep(Duration::from_millis(between)).await;
                    caller.asks(&whole[cut..]).await;
                    caller.hears("in two parts").await;
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_comes_byte_by_byte_is_answered() {
        let mut caller = Caller::parked().await;
        for byte in request("byte by byte") {
            caller.asks(&[byte]).await;
            sleep(Duration::from_millis(10)).await;
            assert!(!caller.is_parked().await);
        }
        caller.hears("byte by byte").await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_does_not_come_to_its_end_is_given_up_in_its_time() {
        for before in [900, 1_000, 1_100] {
            for part in [1, 20] {
                let mut caller = Caller::answered().await;
                sleep(Duration::from_millis(before)).await;
                caller.asks(&request("")[..part]).await;
                let begun = Instant::now();
                let time = caller.ends().await - begun;
                assert_eq!(time.as_secs(), 10, "{before} {part} {time:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn idling_ends_a_time_after_the_last_request_parked_or_not() {
        let caller = Caller::answered().await;
        let answered = Instant::now();
        let time = caller.ends().await - answered;
        assert_eq!(time.as_secs(), 120);
        let (caller, begun) = (Caller::new(), Instant::now());
        assert_eq!((caller.ends().await - begun).as_secs(), 120);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_leaves_ends_it_at_once() {
        let Caller { stream, served, .. } = Caller::parked().await;
        let left = Instant::now();
        drop(stream);
        assert_eq!(served.await.expect("no panic"), left);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_asked_to_end_ends_at_once_if_it_is_parked() {
        let caller = Caller::parked().await;
        caller.goodbye.cancel();
        let asked = Instant::now();
        assert_eq!(caller.ends().await, asked);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_asked_to_end_answers_first_and_is_not_parked() {
        let mut caller = Caller::parked().await;
        caller.asks(&request("the last")).await;
        sleep(WORK / 2).await;
        caller.goodbye.cancel();
        caller.hears("the last").await;
        let answered = Instant::now();
        assert_eq!(caller.ends().await, answered);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_on_each_others_heels_are_all_answered() {
        let mut caller = Caller::parked().await;
        let third = request("three");
        let two = [request("one"), request("two")].concat();
        for cut in 0..third.len() {
            caller.asks(&[&two[..], &third[..cut]].concat()).await;
            caller.hears("one").await;
            caller.hears("two").await;
            // The library has this part, and there's nothing to be seen of it in what comes.
            sleep(PARK_AFTER * 2).await;
            caller.asks(&third[cut..]).await;
            caller.hears("three").await;
            sleep(PARK_AFTER).await;
            assert!(caller.is_parked().await);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_head_on_a_requests_heels_is_given_up_in_its_time() {
        let mut caller = Caller::parked().await;
        caller.asks(&[&request("one")[..], b"POS"].concat()).await;
        caller.hears("one").await;
        let answered = Instant::now();
        let time = caller.ends().await - answered;
        assert_eq!(time.as_secs(), 11);
    }

    /// The request is over: all of its answer is the library's.
    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_not_taken_yet_is_not_lost() {
        let mut caller = Caller::with_room(64);
        let body = "0123456789".repeat(100);
        caller.asks(&request(&body)).await;
        sleep(PARK_AFTER * 3).await;
        assert!(!caller.is_parked().await);
        caller.hears(&body).await;
        sleep(PARK_AFTER).await;
        assert!(caller.is_parked().await);
        caller.asks(&request("again")).await;
        caller.hears("again").await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_body_comes_and_goes_whole() {
        let mut caller = Caller::with_room(64);
        let body = "0123456789".repeat(10_000);
        caller.asks(&request(&body)).await;
        // What isn't taken at once isn't lost.
        sleep(PARK_AFTER * 3).await;
        assert!(!caller.is_parked().await);
        caller.hears(&body).await;
        sleep(PARK_AFTER * 2).await;
        assert!(caller.is_parked().await);
    }
}
