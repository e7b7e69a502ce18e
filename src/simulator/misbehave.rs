//! Carrying out a fault: answers that are spoilt, and connections that end as no honest server ends them. It decides nothing; `faults`
//! says what is to go wrong.
//!
//! hyper neither resets a connection nor writes less than it promised. So what a fault ends this way is left to the [`Line`]: hyper
//! is given an error and lets go of the connection, and the line writes the last bytes itself, or resets it.

use std::io;
use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::Response;
use http::header::CONTENT_LENGTH;
use socket2::SockRef;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::time::sleep;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::simulator::Simulator;
use crate::simulator::call::locked;
use crate::simulator::encoding::Encoding;
use crate::simulator::faults::Fault;
use crate::simulator::faults::Faults;
use crate::simulator::protocol;
use crate::simulator::reply::Refusal;

/// Answers a call as `fault` wants it. An error ends the connection, in the way that the line was told.
pub(super) async fn answer(
    fault: Fault,
    simulator: &Simulator,
    request: &Request<Bytes>,
    line: &Line<'_>,
    stop: &CancellationToken,
) -> io::Result<Response<Bytes>> {
    match fault {
        // These strike before there is a whole call.
        Fault::Refuse | Fault::CloseOnReuse | Fault::ResetBeforeReading => {
            Ok(simulator.answer(request))
        }
        Fault::Status {
            status,
            retry_after,
        } => {
            simulator.show(request);
            Ok(protocol::failure(status, retry_after))
        }
        Fault::Quota => {
            simulator.show(request);
            let encoding = Encoding::chosen(request.headers());
            Ok(protocol::business(
                Err(Refusal::QuotaUsedUp),
                true,
                encoding,
            ))
        }
        Fault::Slow { delay } => {
            let response = simulator.answer(request);
            sleep(delay).await;
            Ok(response)
        }
        Fault::Garbage => {
            let _ = simulator.answer(request);
            Ok(protocol::garbage())
        }
        Fault::TruncatedGzip => {
            let response = simulator.answer_in(request, Encoding::Gzip);
            Ok(response.map(|body| body.slice(..body.len() / 2)))
        }
        Fault::ResetAfterReading => {
            let _ = simulator.answer(request);
            Err(line.end(End::Reset))
        }
        Fault::NoAnswer => {
            let _ = simulator.answer(request);
            // hyper drops this wait when the caller leaves.
            let _ = timeout(SILENCE_TIME, stop.cancelled()).await;
            Err(line.end(End::Close))
        }
        Fault::HalfAnswer => {
            let response = simulator.answer(request);
            let body = response.body();
            let words = written(&response, body.len(), &body[..body.len() / 2]);
            Err(line.end(End::Words(words)))
        }
        Fault::WrongLength => {
            let response = simulator.answer(request);
            let body = response.body();
            let words = written(&response, body.len() + LENGTH_SURPLUS, body);
            Err(line.end(End::Words(words)))
        }
    }
}

/// An answer as it goes over the connection, with a length that need not be its body's.
fn written(response: &Response<Bytes>, length: usize, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("HTTP/1.1 {}\r\n", response.status()).into_bytes();
    for (name, value) in response.headers() {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            bytes.extend_from_slice(part);
        }
    }
    bytes.extend_from_slice(format!("{CONTENT_LENGTH}: {length}\r\n\r\n").as_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// What a connection's two sides, its bytes and its calls, have to tell each other.
pub(super) struct Line<'a> {
    faults: &'a Faults,
    is_between_calls: AtomicBool,
    end: Mutex<Option<End>>,
}

/// How a connection ends when hyper has let go of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// With a reset.
    Reset,
    /// With nothing more.
    Close,
    /// After these bytes, in order.
    Words(Vec<u8>),
}

impl<'a> Line<'a> {
    /// A new connection's.
    pub(super) fn new(faults: &'a Faults) -> Self {
        Self {
            faults,
            is_between_calls: AtomicBool::new(false),
            end: Mutex::new(None),
        }
    }

    /// The stream for hyper to read and write.
    pub(super) fn carry<S>(&'a self, inner: S) -> Stream<'a, S> {
        Stream { inner, line: self }
    }

    /// A call is answered: the next bytes are another one's.
    pub(super) fn answered(&self) {
        self.is_between_calls.store(true, Ordering::Relaxed);
    }

    /// Chooses the connection's end. The error is for hyper, which drops everything else then.
    pub(super) fn end(&self, end: End) -> io::Error {
        *locked(&self.end) = Some(end);
        io::Error::other("a simulated fault ends the connection")
    }

    /// Ends the connection as it was chosen, within [`LAST_WORDS_TIME`].
    pub(super) async fn finish<S: Socket>(&self, stream: Stream<'_, S>) {
        let Stream { mut inner, .. } = stream;
        let end = locked(&self.end).take();
        match end {
            None | Some(End::Close) => {}
            Some(End::Reset) => reset(inner),
            Some(End::Words(words)) => {
                let speak = async {
                    inner.write_all(&words).await?;
                    inner.shutdown().await
                };
                // Who doesn't read its last words doesn't get them.
                let _ = timeout(LAST_WORDS_TIME, speak).await;
            }
        }
    }

    fn is_ended(&self) -> bool {
        locked(&self.end).is_some()
    }
}

/// Ends a connection with a reset (RFC 9293, section 3.10.7): what is unread or unsent is lost on both sides.
pub(super) fn reset(socket: impl Socket) {
    // With no time to linger, dropping the socket resets. One that refuses the option is gone already.
    let _ = SockRef::from(socket.tcp()).set_linger(Some(Duration::ZERO));
}

/// A connection's bytes, with or without TLS.
pub(super) trait Socket: AsyncRead + AsyncWrite + Unpin {
    /// What is below.
    fn tcp(&self) -> &TcpStream;
}

impl Socket for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Socket for TlsStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
}

/// A stream that notices when another call begins, and lets nothing more out once its line has ended.
pub(super) struct Stream<'a, S> {
    inner: S,
    line: &'a Line<'a>,
}

impl<S: Socket> AsyncRead for Stream<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        let line = self.line;
        let has_read = buf.filled().len() > before;
        if has_read
            && line.is_between_calls.swap(false, Ordering::Relaxed)
            && line.faults.strike_reuse()
        {
            buf.set_filled(before);
            return Poll::Ready(Err(line.end(End::Reset)));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: Socket> AsyncWrite for Stream<'_, S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.line.is_ended() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.line.is_ended() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.line.is_ended() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// The longest that a call waits for an answer that never comes.
const SILENCE_TIME: Duration = Duration::from_secs(120);

/// The longest that the last bytes of a connection may take.
const LAST_WORDS_TIME: Duration = Duration::from_secs(5);

/// How many bytes a wrong Content-Length promises and doesn't give.
const LENGTH_SURPLUS: usize = 100;

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use bytes::Bytes;
    use http::Response;
    use serde_json::json;
    use tokio::time::Instant;
    use tokio_util::sync::CancellationToken;

    use crate::simulator::Calls;
    use crate::simulator::bench::Bench;
    use crate::simulator::bench::signed;
    use crate::simulator::call::locked;
    use crate::simulator::faults::Fault;
    use crate::simulator::faults::Faults;
    use crate::simulator::misbehave::End;
    use crate::simulator::misbehave::LENGTH_SURPLUS;
    use crate::simulator::misbehave::Line;
    use crate::simulator::misbehave::SILENCE_TIME;
    use crate::simulator::misbehave::answer;

    /// The answer or end of a call that is struck, how long it took, and whether the call took effect.
    async fn struck(fault: Fault) -> (Result<Response<Bytes>, Option<End>>, Duration, bool) {
        let bench = Bench::new();
        let simulator = bench.simulator();
        let faults = Faults::new(1);
        let line = Line::new(&faults);
        let body = json!({"appId": "abcdefghijklmn"}).to_string();
        let request = signed(
            "/openapi/v1/customerOpenApi/queryAllCustomerCategory",
            body.into(),
        );
        let stop = CancellationToken::new();
        let started = Instant::now();
        let answered: io::Result<_> = answer(fault, &simulator, &request, &line, &stop).await;
        let Calls { took_effect, .. } = simulator.calls();
        let ended = answered.map_err(|_| locked(&line.end).take());
        (ended, started.elapsed(), took_effect == 1)
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_answer_comes_when_its_delay_is_over() {
        let delay = Duration::from_millis(1234);
        let (answered, took, took_effect) = struck(Fault::Slow { delay }).await;
        assert_eq!(answered.unwrap().status(), 200);
        assert!(took >= delay && took < delay * 2, "{took:?}");
        assert!(took_effect);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_has_an_end_too() {
        let (answered, took, took_effect) = struck(Fault::NoAnswer).await;
        assert_eq!(answered.unwrap_err(), Some(End::Close));
        assert!(took >= SILENCE_TIME && took < SILENCE_TIME * 2, "{took:?}");
        assert!(took_effect);
    }

    #[tokio::test]
    async fn last_words_are_an_answer_that_lies_about_its_length() {
        let whole = struck(Fault::Slow {
            delay: Duration::ZERO,
        });
        let whole = whole.await.0.unwrap().into_body();
        let cases = [
            (Fault::HalfAnswer, whole.len(), whole.len() / 2),
            (
                Fault::WrongLength,
                whole.len() + LENGTH_SURPLUS,
                whole.len(),
            ),
        ];
        for (fault, promised, given) in cases {
            let (answered, _, took_effect) = struck(fault.clone()).await;
            let Some(End::Words(words)) = answered.unwrap_err() else {
                panic!("{fault:?}");
            };
            let text = String::from_utf8(words).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
            assert!(
                head.ends_with(&format!("\r\ncontent-length: {promised}")),
                "{head}"
            );
            assert_eq!(body.as_bytes(), &whole[..given]);
            assert!(took_effect);
        }
    }
}
