//! The stream between hyper and TLS on the upstream side: counts the bytes that were accepted, which is one of the two proofs that
//! nothing has left, and keeps the socket within reach of the pool.

use std::io;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::task::ready;

use socket2::SockRef;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::Interest;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// How many bytes the layer below hyper has accepted so far. Zero since a request was handed over means that none of it left.
#[derive(Clone, Debug, Default)]
pub struct Accepted(Arc<AtomicU64>);

impl Accepted {
    /// The count now.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    fn add(&self, result: &Poll<io::Result<usize>>) {
        let taken = match result {
            Poll::Ready(Ok(count)) => *count as u64,
            // A write that failed half-way may have taken some of it.
            Poll::Ready(Err(_)) => 1,
            Poll::Pending => 0,
        };
        self.0.fetch_add(taken, Ordering::AcqRel);
    }
}

/// A TCP socket that the pool can look at while hyper owns the stream.
#[derive(Clone, Debug)]
pub struct Socket(Arc<TcpStream>);

impl Socket {
    /// Takes over a connected socket.
    #[must_use]
    pub fn new(stream: TcpStream) -> Self {
        Self(Arc::new(stream))
    }

    /// Less came than there was room for: nothing is left, and the runtime needn't ask the kernel to know (epoll(7), on edge-triggered events
    /// of streams).
    fn is_drained(&self) {
        let nothing = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
        // It's an error, for this is how the runtime is told.
        let _ = self.0.try_io(Interest::READABLE, nothing);
    }

    /// Nothing to be read: neither the end of the stream nor bytes that nobody asked for. Asks the kernel, because the runtime may
    /// not have heard yet.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let mut byte = [MaybeUninit::uninit()];
        SockRef::from(&*self.0)
            .peek(&mut byte)
            .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            let room = buffer.initialize_unfilled();
            let size = room.len();
            match self.0.try_read(room) {
                Ok(count) => {
                    buffer.advance(count);
                    if (1..size).contains(&count) {
                        self.is_drained();
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The kernel sends by itself.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match SockRef::from(&*self.0).shutdown(std::net::Shutdown::Write) {
            // Closed by the other side already: what was wanted.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            result => Poll::Ready(result),
        }
    }
}

/// What hyper writes to.
#[derive(Debug)]
pub struct Wire {
    stream: Stream,
    accepted: Accepted,
}

/// With or without TLS; the latter to loopback alone.
#[derive(Debug)]
pub enum Stream {
    /// `https://`.
    Tls(Box<TlsStream<Socket>>),
    /// `http://`.
    Plain(Socket),
}

impl Wire {
    /// Counts from zero.
    #[must_use]
    pub fn new(stream: Stream) -> Self {
        Self {
            stream,
            accepted: Accepted::default(),
        }
    }

    /// The counter, which lives on when hyper owns the stream.
    #[must_use]
    pub fn accepted(&self) -> Accepted {
        self.accepted.clone()
    }

    fn inner(&mut self) -> Pin<&mut (dyn Duplex + Send)> {
        match &mut self.stream {
            Stream::Tls(stream) => Pin::new(&mut **stream),
            Stream::Plain(stream) => Pin::new(stream),
        }
    }
}

trait Duplex: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Duplex for T {}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Stream::Tls(stream) = &self.stream {
            let (socket, session) = stream.get_ref();
            // With nothing decrypted, only the socket can bring something. hyper asks often, and to go through all of TLS for that costs.
            if session.wants_read() && socket.0.poll_read_ready(cx).is_pending() {
                return Poll::Pending;
            }
        }
        self.inner().poll_read(cx, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = self.inner().poll_write(cx, bytes);
        self.accepted.add(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = self.inner().poll_write_vectored(cx, parts);
        self.accepted.add(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        // TLS makes one record of several parts; a socket alone would be given one after the other.
        matches!(self.stream, Stream::Tls(_))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_shutdown(cx)
    }
}
