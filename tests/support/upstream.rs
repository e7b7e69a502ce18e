//! A scripted KYBIO host: real TLS, a journal of everything that arrived, and a signature check in its own few lines. It speaks
//! HTTP/1.1 by its own few lines too: a script has each byte that leaves, and how a connection ends, in its hand.

use std::net::{Shutdown, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, header};
use http_body_util::{BodyExt, Full};
use md5::{Digest, Md5};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::support::Pki;

/// What arrived in one request.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: Method,
    pub target: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub place: Place,
}

/// Where a request comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which connection, counted from 0 as they were accepted.
    pub connection: usize,
    /// Which request on it, counted from 1.
    pub nth: usize,
}

impl Seen {
    pub fn header(&self, name: &str) -> &str {
        let values: Vec<_> = self.headers.get_all(name).iter().collect();
        assert_eq!(values.len(), 1, "{name}: {values:?}");
        values[0].to_str().unwrap()
    }

    /// upper(hex(md5(key ‖ body))), as the contract says.
    pub fn is_signed_with(&self, key: &str) -> bool {
        signature(key, &self.body) == self.header("data-signature")
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).unwrap()
    }
}

pub fn signature(key: &str, body: &[u8]) -> String {
    let digest = Md5::new().chain_update(key).chain_update(body).finalize();
    digest.iter().map(|byte| format!("{byte:02X}")).collect()
}

pub const SUCCESS: &str = r#"{"status":"success","messages":[],"errorCode":null}"#;

pub const BADLY_SIGNED: &str =
    r#"{"status":"error","messages":["the signature isn't right"],"errorCode":1}"#;

/// What the host does with a connection, from the first packet on. Each is asked once, in this order.
pub trait Script: Send + Sync + 'static {
    /// A connection has been accepted.
    fn door(&self, _connection: usize) -> Door {
        Door::Open
    }

    /// The first bytes of a request are there: all of it, if it's small.
    fn knock(&self, _place: Place, _bytes: &[u8]) -> Knock {
        Knock::Read
    }

    /// A whole request is there.
    fn act(&self, seen: &Seen) -> Act;
}

/// Whether there will be a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    Open,
    /// RST right after it was accepted.
    Refuse,
    /// RST when the handshake's first byte arrives.
    Break,
}

/// Whether a request is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knock {
    Read,
    /// RST. Nothing was looked at.
    Reset,
}

/// What becomes of a request that was read.
pub enum Act {
    /// Answers.
    Answer(Response<Full<Bytes>>),
    /// Answers with this body once it's there.
    Later(Pin<Box<dyn Future<Output = Bytes> + Send>>),
    /// Never answers, and keeps the connection.
    Hang,
    /// Closes the connection without an answer.
    Close,
    /// RST instead of an answer.
    Reset,
    /// Exactly these bytes, whatever they are.
    Raw { bytes: Bytes, then: Then },
}

/// How it goes on after raw bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The connection is closed in good order.
    End,
    /// It's closed without TLS's word of farewell: what came may have been cut short.
    Cut,
    /// RST.
    Reset,
    /// It's kept, and the next request is read.
    Keep,
    /// It's kept, and nothing more is ever written.
    Stall,
}

impl Act {
    pub fn ok(body: impl Into<Bytes>) -> Self {
        Self::Answer(Response::new(Full::new(body.into())))
    }

    pub fn status(status: u16, body: impl Into<Bytes>) -> Self {
        Self::Answer(
            Response::builder()
                .status(status)
                .body(Full::new(body.into()))
                .unwrap(),
        )
    }

    /// Answers so, once the gate lets it.
    pub fn once_open(gate: &Arc<Semaphore>, body: &'static str) -> Self {
        let gate = Arc::clone(gate);
        Self::Later(Box::pin(async move {
            gate.acquire().await.unwrap().forget();
            body.into()
        }))
    }

    pub fn raw(bytes: impl Into<Bytes>, then: Then) -> Self {
        let bytes = bytes.into();
        Self::Raw { bytes, then }
    }
}

/// A script that has only a word on whole requests.
struct Answering<F>(F);

impl<F: Fn(&Seen) -> Act + Send + Sync + 'static> Script for Answering<F> {
    fn act(&self, seen: &Seen) -> Act {
        (self.0)(seen)
    }
}

/// A host that answers so, and that can be told to reset connections before TLS.
pub struct Refusing {
    pub refusing: Arc<AtomicBool>,
    pub answer: &'static str,
}

impl Script for Refusing {
    fn door(&self, _: usize) -> Door {
        if self.refusing.load(Ordering::SeqCst) {
            Door::Refuse
        } else {
            Door::Open
        }
    }

    fn act(&self, _: &Seen) -> Act {
        Act::ok(self.answer)
    }
}

/// A host that, as the real one does, refuses what isn't signed with a key that it knows.
pub struct Knowing {
    pub keys: Arc<Mutex<Vec<String>>>,
}

impl Script for Knowing {
    fn act(&self, seen: &Seen) -> Act {
        let keys = self.keys.lock().unwrap();
        if keys.iter().any(|key| seen.is_signed_with(key)) {
            Act::ok(SUCCESS)
        } else {
            Act::ok(BADLY_SIGNED)
        }
    }
}

pub struct Upstream {
    pub address: SocketAddr,
    host: Arc<Host>,
    open: Arc<Mutex<Vec<Open>>>,
    accepting: JoinHandle<()>,
}

/// What drops a connection, and its task.
type Open = (CancellationToken, JoinHandle<()>);

/// What all connections share.
struct Host {
    script: Box<dyn Script>,
    tls: TlsAcceptor,
    /// In the order of arrival.
    journal: Mutex<Vec<Seen>>,
    arrivals: watch::Sender<usize>,
    connections: AtomicUsize,
}

impl Upstream {
    /// Answers success to everything.
    pub async fn start(pki: &Pki) -> Self {
        Self::scripted(pki, |_| Act::ok(SUCCESS)).await
    }

    pub async fn scripted(
        pki: &Pki,
        script: impl Fn(&Seen) -> Act + Send + Sync + 'static,
    ) -> Self {
        Self::with(pki, Answering(script)).await
    }

    /// Answers success as often as the gate lets it.
    pub async fn held(pki: &Pki) -> (Self, Arc<Semaphore>) {
        let gate = Arc::new(Semaphore::new(0));
        let held = Arc::clone(&gate);
        let upstream = Self::scripted(pki, move |_| Act::once_open(&held, SUCCESS)).await;
        (upstream, gate)
    }

    /// With a script that has a word on connections too.
    pub async fn with(pki: &Pki, script: impl Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, pki, script)
    }

    /// At a listener of the test's own.
    pub fn on(listener: TcpListener, pki: &Pki, script: impl Script) -> Self {
        let address = listener.local_addr().unwrap();
        let host = Arc::new(Host {
            script: Box::new(script),
            tls: TlsAcceptor::from(Arc::new(pki.server("upstream.test").server_config())),
            journal: Mutex::default(),
            arrivals: watch::Sender::new(0),
            connections: AtomicUsize::new(0),
        });
        let open = Arc::new(Mutex::new(Vec::<Open>::new()));
        let accepting = tokio::spawn({
            let (host, open) = (Arc::clone(&host), Arc::clone(&open));
            async move {
                for connection in 0.. {
                    let (stream, _) = listener.accept().await.unwrap();
                    let (host, dropped) = (Arc::clone(&host), CancellationToken::new());
                    let serving = tokio::spawn({
                        let dropped = dropped.clone();
                        async move { host.serve(stream, connection, dropped).await }
                    });
                    open.lock().unwrap().push((dropped, serving));
                }
            }
        });
        Self {
            address,
            host,
            open,
            accepting,
        }
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.host.journal.lock().unwrap().clone()
    }

    /// What arrived after the first so many.
    pub fn seen_since(&self, count: usize) -> Vec<Seen> {
        self.host.journal.lock().unwrap()[count..].to_vec()
    }

    /// The latest request that arrived.
    pub fn last(&self) -> Seen {
        self.host
            .journal
            .lock()
            .unwrap()
            .last()
            .expect("something arrived")
            .clone()
    }

    /// The only request that arrived.
    pub fn only(&self) -> Seen {
        let seen = self.seen();
        assert_eq!(seen.len(), 1, "{seen:?}");
        seen.into_iter().next().unwrap()
    }

    pub fn connections(&self) -> usize {
        self.host.connections.load(Ordering::SeqCst)
    }

    /// Waits until this many requests have arrived.
    pub async fn arrived(&self, count: usize) {
        let mut arrivals = self.host.arrivals.subscribe();
        let waited = tokio::time::timeout(
            super::tools::PATIENCE,
            arrivals.wait_for(|arrived| *arrived >= count),
        )
        .await;
        waited.expect("it arrives in time").unwrap();
    }

    /// Closes all open connections, and goes on accepting.
    pub async fn drop_connections(&self) {
        let open: Vec<_> = self.open.lock().unwrap().drain(..).collect();
        for (dropped, serving) in open {
            dropped.cancel();
            // Only once the task is gone is its socket closed.
            let _ = serving.await;
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.accepting.abort();
        self.open
            .lock()
            .unwrap()
            .drain(..)
            .for_each(|(_, serving)| serving.abort());
    }
}

impl Host {
    /// One connection, until one of both sides ends it or `dropped` is.
    async fn serve(&self, stream: TcpStream, connection: usize, dropped: CancellationToken) {
        match self.script.door(connection) {
            Door::Open => {}
            Door::Refuse => return reset(&stream),
            Door::Break => {
                let _ = stream.peek(&mut [0]).await;
                return reset(&stream);
            }
        }
        // As servers do: half an answer isn't held back until the other half is there.
        stream.set_nodelay(true).unwrap();
        let accepted = dropped.run_until_cancelled(self.tls.accept(stream));
        let Some(Ok(mut stream)) = accepted.await else {
            return;
        };
        self.connections.fetch_add(1, Ordering::SeqCst);
        let requests = dropped.run_until_cancelled(self.requests(&mut stream, connection));
        let end = requests.await.unwrap_or(Then::Cut);
        match end {
            Then::Reset => reset(stream.get_ref().0),
            Then::End => drop(stream.shutdown().await),
            // Not by closing it alone: a process that another test starts at this moment holds the socket too, for a while.
            Then::Cut | Then::Keep | Then::Stall => {
                let _ = SockRef::from(stream.get_ref().0).shutdown(Shutdown::Both);
            }
        }
    }

    /// Reads and answers, and says how to end it.
    async fn requests(&self, stream: &mut TlsStream<TcpStream>, connection: usize) -> Then {
        let mut buffer = Vec::new();
        let mut nth = 0;
        loop {
            nth += 1;
            let place = Place { connection, nth };
            if buffer.is_empty() && fill(stream, &mut buffer).await.is_none() {
                return Then::Cut;
            }
            if self.script.knock(place, &buffer) == Knock::Reset {
                return Then::Reset;
            }
            let Some(seen) = read(stream, &mut buffer, place).await else {
                return Then::Cut;
            };
            let act = self.script.act(&seen);
            self.journal.lock().unwrap().push(seen);
            self.arrivals.send_modify(|count| *count += 1);
            let (bytes, then) = match act {
                Act::Answer(answer) => written(answer).await,
                Act::Later(body) => written(Response::new(Full::new(body.await))).await,
                Act::Hang => (Bytes::new(), Then::Stall),
                Act::Close => (Bytes::new(), Then::Cut),
                Act::Reset => (Bytes::new(), Then::Reset),
                Act::Raw { bytes, then } => (bytes, then),
            };
            if stream.write_all(&bytes).await.is_err() || stream.flush().await.is_err() {
                return Then::Cut;
            }
            match then {
                Then::Keep => {}
                // Until the other side has had enough.
                Then::Stall => while fill(stream, &mut buffer).await.is_some() {},
                Then::End | Then::Cut | Then::Reset => return then,
            }
        }
    }
}

/// Makes closing this socket an RST.
fn reset(stream: &TcpStream) {
    SockRef::from(stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

/// Some more bytes; `None` once there are none.
async fn fill(stream: &mut TlsStream<TcpStream>, buffer: &mut Vec<u8>) -> Option<()> {
    // What came in one piece is read in one.
    buffer.reserve(16 * 1024);
    let count = stream.read_buf(buffer).await.ok()?;
    (count > 0).then_some(())
}

/// The next request. Stricter than HTTP: the gateway's own requests have a length, and nothing clever.
async fn read(
    stream: &mut TlsStream<TcpStream>,
    buffer: &mut Vec<u8>,
    place: Place,
) -> Option<Seen> {
    const END: &[u8] = b"\r\n\r\n";
    let end = loop {
        match buffer.windows(END.len()).position(|bytes| bytes == END) {
            Some(at) => break at + END.len(),
            None => fill(stream, buffer).await?,
        }
    };
    let head = String::from_utf8(buffer.drain(..end).collect()).unwrap();
    let mut lines = head.trim_end().split("\r\n");
    let mut words = lines.next().unwrap().split(' ');
    let method = words.next().unwrap().parse().unwrap();
    let target = words.next().unwrap().to_owned();
    assert_eq!((words.next(), words.next()), (Some("HTTP/1.1"), None));
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(':').unwrap();
        headers.append(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            HeaderValue::from_str(value.trim()).unwrap(),
        );
    }
    assert!(!headers.contains_key(header::TRANSFER_ENCODING));
    let mut seen = Seen {
        method,
        target,
        headers,
        body: Bytes::new(),
        place,
    };
    let length: usize = seen.header("content-length").parse().unwrap();
    while buffer.len() < length {
        fill(stream, buffer).await?;
    }
    seen.body = buffer.drain(..length).collect();
    Some(seen)
}

/// An answer's bytes, and whether it asks to close.
async fn written(answer: Response<Full<Bytes>>) -> (Bytes, Then) {
    let (mut head, body) = answer.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    head.headers
        .entry(header::CONTENT_LENGTH)
        .or_insert(body.len().into());
    let mut bytes = format!("HTTP/1.1 {}\r\n", head.status).into_bytes();
    for (name, value) in &head.headers {
        bytes.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    bytes.extend(b"\r\n");
    bytes.extend(&body);
    let closes = head.headers.get(header::CONNECTION) == Some(&HeaderValue::from_static("close"));
    (bytes.into(), if closes { Then::End } else { Then::Keep })
}
