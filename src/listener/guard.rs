//! The clocks of a caller's connection: idle, head, write. (That of the body runs in `payload`, that of the handshake around it.)
//!
//! hyper's own header timer can't tell a caller that is slow from one that keeps a connection for later, so this stream around TLS
//! does. It arms a timer only when there's nothing to read, and lets an earlier one run out rather than set it anew, so that a
//! request in time costs no timer at all.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Body;
use hyper::body::Frame;
use hyper::body::SizeHint;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::time::Instant;
use tokio::time::Sleep;
use tokio::time::sleep_until;

use crate::clock::Clock;
use crate::listener::Peer;
use crate::listener::activity::Activity;
use crate::listener::activity::Request;
use crate::listener::activity::Running;
use crate::listener::frames::Meter;
use crate::listener::report::Report;

/// How long each may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Without any request.
    pub(super) idle: Duration,
    /// From a head's first byte to its last; on HTTP/2, from the first byte of any frame or block of header fields.
    pub(super) head: Duration,
    /// Without the caller taking a byte of what is written to it.
    pub(super) write: Duration,
    /// Without any request, until the connection is at rest; no longer than `idle`.
    pub(super) rest: Duration,
}

impl Limits {
    fn of(&self, running: Running) -> Duration {
        match running {
            Running::Idle => self.idle,
            Running::Head => self.head,
            Running::Write => self.write,
        }
    }
}

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// HTTP/1.1, or 1.0.
    Http1,
    /// HTTP/2.
    Http2,
}

/// An answer's body in pieces, so that it shows whether the caller takes it: on HTTP/2 the next piece is asked for only when the
/// caller's window has room, and a full socket says nothing of one stream among many.
#[derive(Debug)]
pub(super) struct Outgoing {
    rest: Bytes,
    request: Request,
}

/// Small enough that a hundred answers side by side all move within the write time for any caller worth waiting for. The last piece
/// of an answer is out of sight once it's handed on: what a caller can leave lying of it is this much for each stream.
const PIECE_BYTES: usize = 16 * 1024;

impl Outgoing {
    /// The whole body, of which nothing has been handed on yet.
    #[must_use]
    pub(super) fn new(body: Bytes, request: Request) -> Self {
        request.moved();
        Self {
            rest: body,
            request,
        }
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        if this.rest.is_empty() {
            return Poll::Ready(None);
        }
        this.request.moved();
        let piece = this.rest.split_to(this.rest.len().min(PIECE_BYTES));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

/// The stream, with its clocks.
pub(super) struct Guard<S> {
    stream: S,
    limits: Limits,
    activity: Activity,
    clock: Clock,
    /// Whom to tell, and of whom.
    report: Arc<Report>,
    peer: Arc<Peer>,
    /// On HTTP/2.
    meter: Option<Box<Meter>>,
    reading: Timer,
    writing: Timer,
    write_since: Option<Instant>,
    /// Something was written after the last flush.
    unflushed: bool,
    /// What was read already and is read again.
    put_back: Bytes,
}

impl<S> Guard<S> {
    /// The clocks start now.
    #[must_use]
    pub(super) fn new(
        stream: S,
        protocol: Protocol,
        limits: Limits,
        activity: Activity,
        clock: Clock,
        (report, peer): (Arc<Report>, Arc<Peer>),
    ) -> Self {
        let is_http2 = protocol == Protocol::Http2;
        Self {
            stream,
            limits,
            activity,
            meter: is_http2.then(|| Box::new(Meter::new(clock.now()))),
            clock,
            report,
            peer,
            reading: Timer::default(),
            writing: Timer::default(),
            write_since: None,
            unflushed: false,
            put_back: Bytes::new(),
        }
    }

    /// These bytes were read, and are to be read again before what comes next.
    pub(super) fn put_back(&mut self, bytes: Bytes) {
        self.put_back = bytes;
    }

    fn timed_out(&self, running: Running) -> io::Error {
        if !self.activity.is_stuck() {
            self.report.timed_out(running.label());
        }
        io::Error::new(io::ErrorKind::TimedOut, running.label())
    }

    /// These bytes have come.
    fn came(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.activity.set_rest(false);
        let Some(meter) = &mut self.meter else {
            self.activity.bytes_came(&self.clock);
            return Ok(());
        };
        if let Err(flood) = meter.came(bytes, self.clock.now()) {
            self.report.flood(&self.peer, flood);
            return Err(io::Error::other("an HTTP/2 flood"));
        }
        self.activity.amid(meter.amid_since());
        Ok(())
    }

    /// And these have gone.
    fn went(&mut self, bytes: &[u8]) {
        let Some(meter) = &mut self.meter else { return };
        if let Some((count, refusal)) = meter.went(bytes) {
            self.report.malformed_frames(&self.peer, count, refusal);
        }
    }

    /// The caller takes nothing: for how long?
    fn poll_stuck(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let now = self.clock.now();
        let since = *self.write_since.get_or_insert(now);
        ready!(self.writing.poll(cx, since + self.limits.write, now));
        Poll::Ready(self.timed_out(Running::Write))
    }

    /// There's nothing to read: for how long?
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        // Nobody reads again just because a request has ended, so that idling would have no clock: a look at it later gives it one.
        let now = self.clock.now();
        let later = now + self.limits.rest;
        let Some((since, running)) = self.activity.running() else {
            let _ = self.reading.poll(cx, later, now);
            return Poll::Pending;
        };
        let deadline = since + self.limits.of(running);
        let look = match running {
            Running::Idle if !self.unflushed => since + self.limits.rest,
            Running::Idle | Running::Head | Running::Write => later,
        };
        ready!(self.reading.poll(cx, look.min(deadline), now));
        self.activity.set_rest(true);
        ready!(self.reading.poll(cx, deadline, now));
        Poll::Ready(self.timed_out(running))
    }
}

/// One timer that is set anew only when it would ring too late.
#[derive(Default)]
struct Timer(Option<(Instant, Pin<Box<Sleep>>)>);

impl Timer {
    /// Whether `deadline` is over; `now` is what the clock has just said.
    fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant, now: Instant) -> Poll<()> {
        // Whoever sends without end uses up the task's budget, and then no timer of the runtime rings: it's the clock that counts.
        if now >= deadline {
            return Poll::Ready(());
        }
        let (armed, sleep) = self
            .0
            .get_or_insert_with(|| (deadline, Box::pin(sleep_until(deadline))));
        if *armed > deadline {
            *armed = deadline;
            sleep.as_mut().reset(deadline);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            // It has rung, so that it's as late at least as it was set for.
            if *armed >= deadline {
                return Poll::Ready(());
            }
            *armed = deadline;
            sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        // In one piece with what has come since: to the library, bytes that come in several aren't quite the same.
        let again = this.put_back.len().min(buffer.remaining());
        buffer.put_slice(&this.put_back.split_to(again));
        let read = Pin::new(&mut this.stream).poll_read(cx, buffer)?;
        let came = &buffer.filled()[before..];
        if !came.is_empty() {
            this.came(came)?;
            return Poll::Ready(Ok(()));
        }
        if read.is_ready() {
            return Poll::Ready(Ok(()));
        }
        this.poll_late(cx).map(Err)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        this.unflushed = true;
        if let Poll::Ready(result) = Pin::new(&mut this.stream).poll_write(cx, bytes) {
            this.write_since = None;
            if let Ok(count) = result {
                this.went(&bytes[..count]);
            }
            return Poll::Ready(result);
        }
        this.poll_stuck(cx).map(Err)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Poll::Ready(result) = Pin::new(&mut this.stream).poll_flush(cx) {
            this.write_since = None;
            this.unflushed &= result.is_err();
            return Poll::Ready(result);
        }
        this.poll_stuck(cx).map(Err)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.activity.is_kept_open() {
            return Poll::Ready(Ok(()));
        }
        if let Poll::Ready(result) = Pin::new(&mut this.stream).poll_shutdown(cx) {
            return Poll::Ready(result);
        }
        this.poll_stuck(cx).map(Err)
    }
}

#[cfg(test)]
mod tests {
    use super::Guard;
    use super::Limits;
    use super::Outgoing;
    use super::PIECE_BYTES;
    use super::Protocol;
    use crate::clock::Clock;
    use crate::identity::Presented;
    use crate::listener::Peer;
    use crate::listener::activity::Activity;
    use crate::listener::report::Report;
    use crate::observe::metrics::Metrics;
    use http_body_util::BodyExt;
    use std::io::ErrorKind;
    use std::sync::Arc;
    use std::time::Duration;
    use tokio::io::AsyncReadExt;
    use tokio::io::AsyncWriteExt;
    use tokio::io::DuplexStream;
    use tokio::time::Instant;

    const LIMITS: Limits = Limits {
        idle: Duration::from_secs(120),
        head: Duration::from_secs(10),
        write: Duration::from_secs(30),
        rest: Duration::from_secs(1),
    };

    fn guarded() -> (Guard<DuplexStream>, DuplexStream, Activity) {
        speaking(Protocol::Http1)
    }

    fn speaking(protocol: Protocol) -> (Guard<DuplexStream>, DuplexStream, Activity) {
        let (ours, theirs) = tokio::io::duplex(64);
        let activity = Activity::new(
            Instant::now(),
            prometheus::IntGauge::new("busy", "busy").expect("a good name"),
        );
        let clock = Clock::system();
        let report = Arc::new(Report::new(Arc::new(Metrics::new()), clock.clone()));
        let peer = Arc::new(Peer {
            address: "127.0.0.1:1".into(),
            presented: Presented::Loopback,
        });
        let guard = Guard::new(
            ours,
            protocol,
            LIMITS,
            activity.clone(),
            clock,
            (report, peer),
        );
        (guard, theirs, activity)
    }

    /// Seconds of paused time until the guard gives up on reading.
    async fn gives_up_after(guard: &mut Guard<DuplexStream>) -> u64 {
        let start = Instant::now();
        let error = guard.read_u8().await.expect_err("nobody writes");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        start.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_ends_after_the_idle_time() {
        let (mut guard, _theirs, _) = guarded();
        assert_eq!(gives_up_after(&mut guard).await, 120);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_was_begun_must_be_ended_sooner() {
        let (mut guard, mut theirs, _) = guarded();
        tokio::time::advance(Duration::from_secs(100)).await;
        theirs.write_all(b"P").await.expect("room");
        assert_eq!(guard.read_u8().await.expect("a byte"), b'P');
        assert_eq!(gives_up_after(&mut guard).await, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn on_http2_a_frame_that_was_begun_must_be_ended_and_whole_ones_are_idling() {
        let (mut guard, mut theirs, _) = speaking(Protocol::Http2);
        let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        let all = [&[0; 24][..], &ping].concat();
        theirs.write_all(&all).await.expect("room");
        guard.read_exact(&mut [0; 41]).await.expect("as many");
        tokio::time::advance(Duration::from_secs(100)).await;
        assert_eq!(gives_up_after(&mut guard).await, 20, "idle");

        let (mut guard, mut theirs, _) = speaking(Protocol::Http2);
        theirs.write_all(&all[..30]).await.expect("room");
        guard.read_exact(&mut [0; 30]).await.expect("as many");
        assert_eq!(gives_up_after(&mut guard).await, 10, "half a frame");
    }

    #[tokio::test(start_paused = true)]
    async fn on_http2_each_frame_has_its_own_clock_which_a_request_beside_it_does_not_stop() {
        let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        let (half, rest) = ping.split_at(12);
        let (mut guard, mut theirs, activity) = speaking(Protocol::Http2);
        theirs.write_all(&[0; 24]).await.expect("room");
        theirs.write_all(half).await.expect("room");
        guard.read_exact(&mut [0; 36]).await.expect("as many");
        for _ in 0..5 {
            let waited = tokio::time::timeout(Duration::from_secs(8), guard.read_u8()).await;
            assert!(waited.is_err(), "{waited:?}");
            // One ends, the next begins.
            theirs.write_all(rest).await.expect("room");
            theirs.write_all(half).await.expect("room");
            guard.read_exact(&mut [0; 17]).await.expect("as many");
        }
        let request = activity.request(&Clock::system());
        let waited = tokio::time::timeout(Duration::from_secs(4), guard.read_u8()).await;
        assert!(waited.is_err(), "{waited:?}");
        drop(request);
        assert_eq!(gives_up_after(&mut guard).await, 6);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_stops_both_clocks_and_idling_starts_anew() {
        let (mut guard, mut theirs, activity) = guarded();
        theirs.write_all(b"P").await.expect("room");
        guard.read_u8().await.expect("a byte");
        let request = activity.request(&Clock::system());
        let waited = tokio::time::timeout(Duration::from_secs(3_600), guard.read_u8()).await;
        assert!(waited.is_err(), "{waited:?}");
        drop(request);
        assert_eq!(gives_up_after(&mut guard).await, 120);
    }

    /// The library reads while a request is on its way, and not again when it has ended.
    #[tokio::test(start_paused = true)]
    async fn a_connection_that_never_idled_before_its_first_request_idles_after_it() {
        let (mut guard, _theirs, activity) = guarded();
        let request = activity.request(&Clock::system());
        let start = Instant::now();
        let reading =
            tokio::spawn(async move { guard.read_u8().await.map_err(|error| error.kind()) });
        tokio::time::sleep(Duration::from_secs(5)).await;
        drop(request);
        let ended = tokio::time::timeout(Duration::from_secs(3_600), reading).await;
        let ended = ended.expect("it ends").expect("no panic");
        assert_eq!(
            (ended, start.elapsed().as_secs()),
            (Err(ErrorKind::TimedOut), 125)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_no_longer_moves_is_given_up_and_one_that_does_is_not() {
        let (mut guard, _theirs, activity) = guarded();
        let request = activity.request(&Clock::system());
        let mut moving = Box::pin(Outgoing::new(vec![0; 10 * PIECE_BYTES].into(), request));
        for _ in 0..9 {
            let waited = tokio::time::timeout(Duration::from_secs(29), guard.read_u8()).await;
            assert!(waited.is_err(), "{waited:?}");
            moving.frame().await.expect("a piece").expect("never fails");
        }
        assert_eq!(gives_up_after(&mut guard).await, 30);
        drop(moving);
        assert_eq!(gives_up_after(&mut guard).await, 120);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_takes_nothing_is_given_up() {
        let (mut guard, mut theirs, _) = guarded();
        let start = Instant::now();
        let error = guard.write_all(&[0; 100]).await.expect_err("64 fit");
        assert_eq!(
            (error.kind(), start.elapsed().as_secs()),
            (ErrorKind::TimedOut, 30)
        );
        theirs.read_exact(&mut [0; 64]).await.expect("what fitted");
    }
}
