//! Callers by the dozen: kept connections, HTTP/1.1 and HTTP/2, that together send so many requests a second whatever comes back, and an
//! account of what became of each. HTTP/1.1 goes by its own few lines: whether a byte of an answer had come when a connection ended is
//! what libraries don't tell.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Version};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, interval_at, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::support::pki::{Pair, Pki};
use crate::support::tools::PATIENCE;

/// What all callers ask for unless told otherwise: a write that nobody may send twice.
pub const OPERATION: &str = "orderOpenApi/addOnLineOrder";

/// How many callers of each kind there are.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// One connection each.
    pub http1: usize,
    /// They share connections, as services do.
    pub http2: usize,
    pub per_http2_connection: usize,
    /// Requests in a second, of all callers together.
    pub rate: u32,
    /// What they all ask for.
    pub operation: &'static str,
}

impl Shape {
    /// What the promises are about, as far as this machine can.
    pub const FULL: Self = Self {
        http1: 40,
        http2: 40,
        per_http2_connection: 10,
        rate: 1_000,
        operation: OPERATION,
    };

    /// Enough to see that service goes on.
    pub const LIGHT: Self = Self {
        http1: 4,
        http2: 4,
        per_http2_connection: 4,
        rate: 100,
        operation: OPERATION,
    };
}

/// What became of all requests.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// HTTP 200, outcome `done`.
    pub answered: usize,
    /// Anything else, in its own words.
    pub failed: Vec<String>,
    /// Written onto a kept HTTP/1.1 connection that ended without a byte of an answer: nobody knows what became of it.
    pub raced: usize,
    /// Answers with `Connection: close`.
    pub asked_to_leave: usize,
    /// HTTP/1.1 answers without it, to requests that began after [`Load::asks_to_leave_from_now`].
    pub not_asked_to_leave: usize,
    /// Kept connections that had ended before anything was written onto them, or whose end came with the word that a request wasn't
    /// looked at.
    pub ended_politely: usize,
    /// Connections that were opened.
    pub connections: usize,
    /// Nobody listened any more.
    pub refused: usize,
    /// Ended by the other side before the TLS handshake did: no request was sent.
    pub dropped: usize,
    /// How long each answer took, in the order in which they came: from when its request was due, so that what comes late because the one
    /// before did counts too.
    pub latencies: Vec<Duration>,
    pub took: Duration,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sent = self.answered + self.failed.len() + self.raced;
        let rate = sent as f64 / self.took.as_secs_f64();
        write!(
            f,
            "{sent} requests, {rate:.0} a second: {} answered, {} failed {:#?}, {} raced; {} connections, of which {} ended politely; \
             {} answers asked to leave; {} times refused, {} times dropped",
            self.answered,
            self.failed.len(),
            self.failed.iter().take(5).collect::<Vec<_>>(),
            self.raced,
            self.connections,
            self.ended_politely,
            self.asked_to_leave,
            self.refused,
            self.dropped,
        )
    }
}

/// With what a caller comes.
struct Credentials {
    http1: TlsConnector,
    http2: TlsConnector,
}

/// What all callers share.
struct Crowd {
    address: SocketAddr,
    operation: &'static str,
    credentials: watch::Sender<Arc<Credentials>>,
    stop: CancellationToken,
    tally: Mutex<Tally>,
    answered: watch::Sender<usize>,
    /// Each request has a number of its own.
    number: AtomicUsize,
    leaving: AtomicBool,
}

/// The callers at work, until they're told to stop or nobody listens any more.
pub struct Load {
    crowd: Arc<Crowd>,
    callers: JoinSet<()>,
    since: Instant,
}

impl Load {
    /// Callers with this certificate, who trust `servers`.
    pub fn start(address: SocketAddr, servers: &Pki, pair: &Pair, shape: Shape) -> Self {
        let crowd = Arc::new(Crowd {
            address,
            operation: shape.operation,
            credentials: watch::Sender::new(Arc::new(Credentials::new(servers, pair))),
            stop: CancellationToken::new(),
            tally: Mutex::default(),
            answered: watch::Sender::new(0),
            number: AtomicUsize::new(0),
            leaving: AtomicBool::new(false),
        });
        let callers = shape.http1 + shape.http2;
        let pause = Duration::from_secs(1) * u32::try_from(callers).unwrap() / shape.rate;
        let (mut tasks, since) = (JoinSet::new(), Instant::now());
        let shared: Vec<_> = (0..shape.http2.div_ceil(shape.per_http2_connection))
            .map(|_| Arc::default())
            .collect();
        for number in 0..callers {
            let mut caller = Caller {
                crowd: Arc::clone(&crowd),
                line: match number.checked_sub(shape.http1) {
                    None => Line::Http1(None),
                    Some(nth) => Line::Http2(Arc::clone(&shared[nth % shared.len()])),
                },
            };
            // Their turns are spread over the time between two of one caller.
            let first =
                since + pause * u32::try_from(number).unwrap() / u32::try_from(callers).unwrap();
            tasks.spawn(async move {
                let mut turns = interval_at(first, pause);
                loop {
                    let due = tokio::select! {
                        biased;
                        () = caller.crowd.stop.cancelled() => return,
                        due = turns.tick() => due,
                    };
                    if !caller.call(due).await {
                        return;
                    }
                }
            });
        }
        Self {
            crowd,
            callers: tasks,
            since,
        }
    }

    /// Waits until so many more requests have been answered.
    pub async fn goes_on(&self, count: usize) {
        let mut answered = self.crowd.answered.subscribe();
        let enough = *answered.borrow() + count;
        let waited = timeout(PATIENCE, answered.wait_for(|answered| *answered >= enough)).await;
        if waited.is_err() {
            panic!("the load is stuck: {}", self.so_far());
        }
    }

    /// Waits until so many requests are under way, and stay so: a request has its number some moments before it's written.
    pub async fn waits_for(&self, count: usize) {
        const LOOKS: usize = 20;
        let mut looks = interval(Duration::from_millis(10));
        let waiting = async {
            let mut in_a_row = 0;
            while in_a_row < LOOKS {
                let tally = self.so_far();
                let ended = tally.answered + tally.raced + tally.failed.len();
                let under_way = self.crowd.number.load(Ordering::SeqCst) - ended;
                in_a_row = if under_way == count { in_a_row + 1 } else { 0 };
                looks.tick().await;
            }
        };
        if timeout(PATIENCE, waiting).await.is_err() {
            panic!("they don't wait: {}", self.so_far());
        }
    }

    /// All callers have another certificate from now on. Returns once none has a connection with the one before.
    pub async fn comes_with(&self, servers: &Pki, pair: &Pair) {
        let new = Arc::new(Credentials::new(servers, pair));
        let old = Arc::downgrade(&self.crowd.credentials.send_replace(new));
        while old.strong_count() > 0 {
            self.goes_on(1).await;
        }
    }

    /// The gateway has said that it ends: each answer from now on is looked at for `Connection: close`.
    pub fn asks_to_leave_from_now(&self) {
        self.crowd.leaving.store(true, Ordering::SeqCst);
    }

    pub fn so_far(&self) -> Tally {
        let mut tally = self.crowd.tally.lock().unwrap().clone();
        tally.took = self.since.elapsed();
        tally
    }

    /// Lets each caller end what it's at.
    pub async fn end(mut self) -> Tally {
        self.crowd.stop.cancel();
        self.ended().await
    }

    /// Waits until nobody listens any more.
    pub async fn ended(&mut self) -> Tally {
        let all = async {
            while let Some(ended) = self.callers.join_next().await {
                ended.unwrap();
            }
        };
        if timeout(PATIENCE, all).await.is_err() {
            panic!("the load doesn't end: {}", self.so_far());
        }
        self.so_far()
    }
}

impl Credentials {
    fn new(servers: &Pki, pair: &Pair) -> Self {
        let connector = |alpn: &str| {
            let config = servers.client_config(Some(pair), &[alpn], rustls::ALL_VERSIONS);
            TlsConnector::from(Arc::new(config))
        };
        Self {
            http1: connector("http/1.1"),
            http2: connector("h2"),
        }
    }
}

/// What one try came to.
enum Outcome {
    Answered,
    Failed(String),
    Raced,
    /// It provably wasn't looked at: another connection is tried.
    Unsent,
    /// Nobody listens any more.
    Refused,
    Dropped,
}

struct Caller {
    crowd: Arc<Crowd>,
    line: Line,
}

enum Line {
    Http1(Option<Box<Http1>>),
    Http2(Arc<tokio::sync::Mutex<Option<Http2>>>),
}

struct Http1 {
    stream: TlsStream<TcpStream>,
    with: Arc<Credentials>,
    /// Whether it has had an answer.
    kept: bool,
}

#[derive(Clone)]
struct Http2 {
    sender: http2::SendRequest<Full<Bytes>>,
    with: Arc<Credentials>,
}

impl Caller {
    /// One request, and what became of it. False once nobody listens.
    async fn call(&mut self, due: Instant) -> bool {
        // Each of them is another, so that the host can tell which came twice.
        let number = self.crowd.number.fetch_add(1, Ordering::SeqCst);
        let body = format!("{{\"number\":{number}}}");
        loop {
            let one = async {
                match &mut self.line {
                    Line::Http1(kept) => http1(&self.crowd, kept, &body).await,
                    Line::Http2(shared) => over_http2(&self.crowd, shared, &body).await,
                }
            };
            let outcome = timeout(PATIENCE, one)
                .await
                .unwrap_or_else(|_| Outcome::Failed("no answer in time".to_owned()));
            let mut tally = self.crowd.tally.lock().unwrap();
            match outcome {
                Outcome::Answered => {
                    tally.answered += 1;
                    tally.latencies.push(due.elapsed());
                    self.crowd.answered.send_replace(tally.answered);
                    return true;
                }
                Outcome::Failed(how) => {
                    tally.failed.push(format!("{number}: {how}"));
                    return true;
                }
                Outcome::Raced => {
                    tally.raced += 1;
                    return true;
                }
                Outcome::Unsent => tally.ended_politely += 1,
                Outcome::Refused => {
                    tally.refused += 1;
                    return false;
                }
                Outcome::Dropped => {
                    tally.dropped += 1;
                    return false;
                }
            }
        }
    }
}

impl Crowd {
    /// A new connection, and with what it was opened.
    async fn connect(
        &self,
        connector: impl Fn(&Credentials) -> &TlsConnector,
    ) -> Result<(TlsStream<TcpStream>, Arc<Credentials>), Outcome> {
        let stream = TcpStream::connect(self.address)
            .await
            .map_err(|_| Outcome::Refused)?;
        stream.set_nodelay(true).unwrap();
        let with = Arc::clone(&self.credentials.borrow());
        let name = ServerName::try_from("gateway.test").unwrap();
        match connector(&with).connect(name, stream).await {
            Ok(stream) => {
                self.tally.lock().unwrap().connections += 1;
                Ok((stream, with))
            }
            Err(error) if is_an_end(&error) => Err(Outcome::Dropped),
            Err(error) => Err(Outcome::Failed(format!("TLS: {error}"))),
        }
    }

    fn is_current(&self, with: &Arc<Credentials>) -> bool {
        Arc::ptr_eq(with, &self.credentials.borrow())
    }

    fn heard(&self, status: u16, outcome: &str, text: impl FnOnce() -> String) -> Outcome {
        if (status, outcome) == (200, "done") {
            Outcome::Answered
        } else {
            Outcome::Failed(format!("HTTP {status}, {outcome}: {}", text()))
        }
    }
}

/// The other side went without a word on why.
fn is_an_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe
    )
}

async fn http1(crowd: &Crowd, kept: &mut Option<Box<Http1>>, body: &str) -> Outcome {
    // A certificate that was replaced isn't used any more, and a connection that has ended neither.
    kept.take_if(|line| !crowd.is_current(&line.with));
    if let Some(line) = kept
        && line.has_ended().await
    {
        *kept = None;
        return Outcome::Unsent;
    }
    if kept.is_none() {
        *kept = match crowd.connect(|with| &with.http1).await {
            Ok((stream, with)) => Some(Box::new(Http1 {
                stream,
                with,
                kept: false,
            })),
            Err(outcome) => return outcome,
        };
    }
    // It's kept again only after a whole answer.
    let mut line = kept.take().unwrap();
    let leaving = crowd.leaving.load(Ordering::SeqCst);
    let answer = match line.exchange(crowd.operation, body).await {
        Ok(answer) => answer,
        Err(Broken { got: 0, .. }) if line.kept => return Outcome::Raced,
        Err(Broken { got, cause }) => {
            let which = if line.kept { "kept" } else { "new" };
            return Outcome::Failed(format!(
                "a {which} HTTP/1.1 connection ended after {got} bytes of the answer: {cause}"
            ));
        }
    };
    if answer.header("connection") == "close" {
        crowd.tally.lock().unwrap().asked_to_leave += 1;
    } else {
        if leaving {
            crowd.tally.lock().unwrap().not_asked_to_leave += 1;
        }
        line.kept = true;
        *kept = Some(line);
    }
    crowd.heard(
        answer.status(),
        answer.header("kybio-gateway-outcome"),
        || answer.body.clone(),
    )
}

/// How an exchange ended before its end.
struct Broken {
    /// Bytes of the answer that came.
    got: usize,
    cause: String,
}

struct Plain {
    head: String,
    body: String,
}

impl Plain {
    fn status(&self) -> u16 {
        let word = self.head.split(' ').nth(1);
        word.and_then(|word| word.parse().ok()).unwrap_or(0)
    }

    fn header(&self, name: &str) -> &str {
        let mut lines = self.head.split("\r\n").skip(1);
        lines
            .find_map(|line| {
                let (found, value) = line.split_once(':')?;
                found.eq_ignore_ascii_case(name).then_some(value.trim())
            })
            .unwrap_or("")
    }
}

impl Http1 {
    /// Whether the other side has closed it; looks without waiting.
    async fn has_ended(&mut self) -> bool {
        let mut byte = [0; 1];
        tokio::select! {
            biased;
            // Nothing comes unasked but an end.
            _ = self.stream.read(&mut byte) => true,
            () = std::future::ready(()) => false,
        }
    }

    async fn exchange(&mut self, operation: &str, body: &str) -> Result<Plain, Broken> {
        const END: &[u8] = b"\r\n\r\n";
        let request = format!(
            "POST /openapi/v1/{operation} HTTP/1.1\r\nhost: gateway.test\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        // A connection that doesn't take the request may still have an answer.
        let written = self.stream.write_all(request.as_bytes()).await;
        let written = written.and(self.stream.flush().await);
        let mut got = Vec::new();
        loop {
            let so_far = got.len();
            let broken = |cause: &dyn fmt::Display| Broken {
                got: so_far,
                cause: format!("{cause}; written: {written:?}"),
            };
            if let Some(end) = got.windows(END.len()).position(|bytes| bytes == END) {
                let end = end + END.len();
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let mut plain = Plain {
                    head: text(&got[..end]),
                    body: String::new(),
                };
                let Ok(length) = plain.header("content-length").parse::<usize>() else {
                    return Err(broken(&"an answer without a length"));
                };
                if got.len() >= end + length {
                    plain.body = text(&got[end..]);
                    return Ok(plain);
                }
            }
            match self.stream.read_buf(&mut got).await {
                Ok(0) => return Err(broken(&"closed")),
                Ok(_) => {}
                Err(error) => return Err(broken(&error)),
            }
        }
    }
}

async fn over_http2(
    crowd: &Crowd,
    shared: &tokio::sync::Mutex<Option<Http2>>,
    body: &str,
) -> Outcome {
    let mut line = {
        let mut shared = shared.lock().await;
        shared.take_if(|line| !crowd.is_current(&line.with));
        // GOAWAY, or an end: nothing was sent.
        if let Some(line) = shared.as_mut()
            && line.sender.ready().await.is_err()
        {
            *shared = None;
            return Outcome::Unsent;
        }
        if shared.is_none() {
            let (stream, with) = match crowd.connect(|with| &with.http2).await {
                Ok(connected) => connected,
                Err(outcome) => return outcome,
            };
            let shaken = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
            let (sender, connection) = match shaken {
                Ok(both) => both,
                Err(error) => return Outcome::Failed(format!("{error:?}")),
            };
            tokio::spawn(connection);
            *shared = Some(Http2 { sender, with });
        }
        shared.clone().unwrap()
    };
    let operation = crowd.operation;
    let mut request = Request::post(format!("https://gateway.test/openapi/v1/{operation}"))
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.to_owned())))
        .unwrap();
    *request.version_mut() = Version::HTTP_2;
    let response = match line.sender.try_send_request(request).await {
        Ok(response) => response,
        Err(error) if error.message().is_some() => return Outcome::Unsent,
        Err(error) => return unlooked_at(&format!("{:?}", error.into_error())),
    };
    let (head, body) = response.into_parts();
    let body = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return Outcome::Failed(format!("half an answer: {error:?}")),
    };
    let outcome = head.headers.get("kybio-gateway-outcome");
    crowd.heard(
        head.status.as_u16(),
        outcome.map_or("", |value| value.to_str().unwrap()),
        || String::from_utf8_lossy(&body).into_owned(),
    )
}

/// RFC 9113, sections 6.8 and 8.7: beyond a GOAWAY's last stream, and after REFUSED_STREAM, nothing was done.
fn unlooked_at(error: &str) -> Outcome {
    let beyond = error.contains("GoAway(") && error.contains("NO_ERROR, Remote");
    if beyond || error.contains("REFUSED_STREAM, Remote") {
        Outcome::Unsent
    } else {
        Outcome::Failed(format!("HTTP/2: {error}"))
    }
}
