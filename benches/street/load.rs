//! The load: callers with certificates that ask one thing after the other, or at a fixed rate, or come anew for each, or only hold their
//! connections. It looks at what the proxy has used when its window begins and when it ends, so that neither start nor handshakes count.

use std::cell::{Cell, RefCell};
use std::io::{self, Read, stdin};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, HandshakeKind};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::process::Process;
use super::stub::{field, head_end};
use super::{CALLERS, Cores, OPERATION, Result, Street, clock, for_task, order, rule, tls};

/// How callers come.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub enum Mode {
    /// Each connection asks as soon as it has its answer.
    Closed,
    /// So many requests a second fall due whatever has been answered; how long each took counts from then
    /// (Tene, "How NOT to measure latency": coordinated omission).
    Open {
        /// A second, of all connections together.
        rate: u32,
    },
    /// HTTP/2, so many requests at a time on each connection.
    Streams {
        /// On each connection.
        streams: usize,
    },
    /// A new connection for each request.
    Fresh {
        /// With the session of the one before.
        resumed: bool,
    },
    /// Connections that ask once, and then nothing.
    Idle,
}

/// What a load is started with.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Plan {
    /// Where certificates are.
    pub tls: PathBuf,
    /// Whom it asks, at loopback.
    pub port: u16,
    /// How.
    pub mode: Mode,
    /// At a time.
    pub connections: usize,
    /// Before its window begins, in milliseconds.
    pub warm_up_ms: u64,
    /// How long its window is, in milliseconds.
    pub window_ms: u64,
    /// Of bodies.
    pub body_bytes: usize,
    /// Signs by itself, as whoever calls KYBIO directly does.
    pub signs: bool,
    /// Callers that its connections come as, in turn.
    pub callers: usize,
    /// Accounts that it names in turn; 0 names none.
    pub accounts: usize,
    /// Operations that it calls in turn.
    pub operations: Vec<String>,
    /// Requests that it has ready at least, if need be several of a kind. So many have been answered before its window begins.
    pub prepared: usize,
    /// Requests come in any order instead of in turn, and those at a fixed rate at any time, as from many who don't know of each other
    /// (a Poisson process).
    pub shuffled: bool,
    /// Offers the hybrid key exchange too.
    pub post_quantum: bool,
    /// Whose processor time counts.
    pub watch: Vec<u32>,
}

impl Plan {
    /// A closed loop over HTTP/1.1 with orders of 1 KiB.
    pub fn new(street: &Street, port: u16, watch: &[u32]) -> Self {
        Self {
            tls: street.path("tls"),
            port,
            mode: Mode::Closed,
            connections: 64,
            warm_up_ms: 300,
            window_ms: 1_000,
            body_bytes: 1_024,
            signs: false,
            callers: CALLERS,
            accounts: 0,
            operations: vec![OPERATION.to_owned()],
            prepared: 1,
            shuffled: false,
            post_quantum: false,
            watch: watch.to_vec(),
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Outcome {
    /// Answered within the window, as they should be.
    pub answered: u64,
    /// Anything else, over all the time.
    pub failed: u64,
    /// What the first of those was.
    pub first_failure: Option<String>,
    /// Handshakes that resumed a session, over all the time.
    pub resumed: u64,
    /// Of the window.
    pub seconds: f64,
    /// Processor time of whom it watched, for each answer.
    pub cpu_us: f64,
    /// How long answers took: the median, and so on.
    pub p50_us: u64,
    /// See `p50_us`.
    pub p99_us: u64,
    /// See `p50_us`.
    pub p999_us: u64,
}

/// Runs a load to its end.
pub fn measure(plan: &Plan, cores: Cores) -> Result<Outcome> {
    let mut process = Process::start(&mut for_task("load", plan, cores)?)?;
    Ok(serde_json::from_str(&process.line()?)?)
}

/// Connections that ask nothing more, until this is dropped.
pub struct Idle(#[expect(dead_code, reason = "held, not read")] Process);

impl Idle {
    /// Opens them.
    pub fn open(plan: &Plan, cores: Cores) -> Result<Self> {
        let plan = Plan {
            mode: Mode::Idle,
            ..plan.clone()
        };
        let mut process = Process::start(&mut for_task("load", &plan, cores)?)?;
        let outcome: Outcome = serde_json::from_str(&process.line()?)?;
        match outcome.first_failure {
            Some(failure) => {
                Err(format!("{} connections failed: {failure}", outcome.failed).into())
            }
            None => Ok(Self(process)),
        }
    }
}

/// What all connections share.
struct Crowd {
    plan: Plan,
    /// Ready to be written, and sent in turn.
    requests: Vec<Bytes>,
    /// One for each caller.
    credentials: Vec<Arc<ClientConfig>>,
    next: Cell<usize>,
    random: RefCell<fastrand::Rng>,
    /// Over all the time.
    answered: Cell<usize>,
    in_window: Cell<bool>,
    over: Cell<bool>,
    outcome: RefCell<Outcome>,
    latencies: RefCell<Histogram<u64>>,
}

/// The task: prints its outcome.
pub fn run(plan: Plan) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let crowd = Rc::new(Crowd::new(plan)?);
    LocalSet::new().block_on(&runtime, async {
        match crowd.plan.mode {
            Mode::Idle => idle(&crowd).await,
            _ => busy(&crowd).await,
        }
    })
}

async fn busy(crowd: &Rc<Crowd>) -> Result<()> {
    let plan = &crowd.plan;
    let mut tasks = JoinSet::new();
    if let Mode::Open { rate } = plan.mode {
        let mut sends = Vec::new();
        for number in 0..plan.connections {
            let (send, due) = mpsc::unbounded_channel();
            sends.push(send);
            tasks.spawn_local(kept(Rc::clone(crowd), number, Some(due)));
        }
        // Connections are there before the first is due. A thread of its own, because the runtime's timers know milliseconds alone.
        sleep(Duration::from_millis(plan.warm_up_ms)).await;
        let shuffled = plan.shuffled;
        std::thread::spawn(move || keep_pace(rate, shuffled, &sends));
    }
    for number in 0..plan.connections {
        let crowd = Rc::clone(crowd);
        match plan.mode {
            Mode::Closed => tasks.spawn_local(kept(crowd, number, None)),
            Mode::Streams { streams } => tasks.spawn_local(multiplexed(crowd, number, streams)),
            Mode::Fresh { .. } => tasks.spawn_local(fresh(crowd, number)),
            Mode::Open { .. } | Mode::Idle => break,
        };
    }
    sleep(Duration::from_millis(plan.warm_up_ms)).await;
    let prepared = || crowd.answered.get() >= plan.prepared;
    timeout(WARM_UP_TIMEOUT, until(prepared, crowd))
        .await
        .map_err(|_| {
            format!(
                "in {WARM_UP_TIMEOUT:?} {} of {} requests were answered",
                crowd.answered.get(),
                plan.prepared
            )
        })?;
    let (began, used) = (Instant::now(), clock::run_ns(&plan.watch)?);
    crowd.in_window.set(true);
    sleep(Duration::from_millis(plan.window_ms)).await;
    // A short window on a busy machine lasts until there's something to divide by; without any, the outcome says so.
    let _ = timeout(
        PATIENCE,
        until(|| crowd.outcome.borrow().answered > 0, crowd),
    )
    .await;
    crowd.in_window.set(false);
    let used = clock::run_ns(&plan.watch)? - used;
    let took = began.elapsed();
    crowd.over.set(true);
    // What is under way would otherwise come in the midst of whoever is next.
    timeout(PATIENCE, async {
        while tasks.join_next().await.is_some() {}
    })
    .await?;
    let mut outcome = crowd.outcome.take();
    let latencies = crowd.latencies.borrow();
    outcome.seconds = took.as_secs_f64();
    outcome.cpu_us = used as f64 / 1_000.0 / outcome.answered.max(1) as f64;
    outcome.p50_us = latencies.value_at_quantile(0.5);
    outcome.p99_us = latencies.value_at_quantile(0.99);
    outcome.p999_us = latencies.value_at_quantile(0.999);
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

/// Until it's so, or something fails, which is told at the end.
async fn until(is_so: impl Fn() -> bool, crowd: &Crowd) {
    while !is_so() && crowd.outcome.borrow().failed == 0 {
        sleep(Duration::from_millis(1)).await;
    }
}

/// Says to each connection in turn when its next request is due.
fn keep_pace(rate: u32, shuffled: bool, sends: &[mpsc::UnboundedSender<Instant>]) {
    let mut random = fastrand::Rng::with_seed(SEED);
    let began = Instant::now();
    let mut due = began;
    for number in 0u32.. {
        if shuffled {
            // Times between events of a Poisson process are distributed exponentially.
            let gap = -(1.0 - random.f64()).ln() / f64::from(rate);
            due += Duration::from_secs_f64(gap);
        } else {
            due = began + Duration::from_secs(1) * number / rate;
        }
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if sends[number as usize % sends.len()].send(due).is_err() {
            return;
        }
    }
}

async fn idle(crowd: &Rc<Crowd>) -> Result<()> {
    raise_descriptor_limit()?;
    // So many at a time come in, as after a restart.
    const AT_A_TIME: usize = 32;
    let mut open = Vec::new();
    let numbers: Vec<_> = (0..crowd.plan.connections).collect();
    for numbers in numbers.chunks(AT_A_TIME) {
        let tasks: Vec<_> = numbers
            .iter()
            .map(|number| {
                let (crowd, number) = (Rc::clone(crowd), *number);
                tokio::task::spawn_local(async move {
                    let mut connection = crowd.connect(number).await?;
                    timeout(PATIENCE, connection.ask(&crowd.requests[0])).await??;
                    Ok::<_, io::Error>(connection)
                })
            })
            .collect();
        for task in tasks {
            match task.await? {
                Ok(connection) => open.push(connection),
                Err(error) => crowd.failed(&error),
            }
        }
    }
    println!("{}", serde_json::to_string(&*crowd.outcome.borrow())?);
    tokio::task::spawn_blocking(|| stdin().read_to_end(&mut Vec::new())).await??;
    drop(open);
    Ok(())
}

/// Descriptors for more connections than a shell allows.
fn raise_descriptor_limit() -> io::Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = maximum;
    setrlimit(Resource::Nofile, Rlimit { current, maximum })?;
    Ok(())
}

/// A connection that is kept, and opened anew when it ends.
async fn kept(crowd: Rc<Crowd>, number: usize, mut due: Option<mpsc::UnboundedReceiver<Instant>>) {
    while !crowd.over.get() {
        let connected = crowd.connect(number).await;
        let mut connection = match connected {
            Ok(connection) => connection,
            Err(error) => {
                crowd.failed(&error);
                sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        loop {
            let began = match &mut due {
                None => Instant::now(),
                Some(due) => match due.recv().await {
                    Some(due) => due,
                    None => return,
                },
            };
            if crowd.over.get() {
                return;
            }
            if let Err(error) = connection.ask(crowd.request()).await {
                crowd.failed(&error);
                break;
            }
            crowd.answered(began);
        }
    }
}

/// A new connection for each request.
async fn fresh(crowd: Rc<Crowd>, number: usize) {
    let Mode::Fresh { resumed } = crowd.plan.mode else {
        return;
    };
    // Each has sessions of its own.
    let caller = format!("load-{}", number % crowd.plan.callers);
    let config = tls::client(
        &crowd.plan.tls,
        &caller,
        b"http/1.1",
        resumed,
        crowd.plan.post_quantum,
    );
    let Ok(config) = config else { return };
    while !crowd.over.get() {
        let began = Instant::now();
        let once = async {
            let mut connection = crowd.connect_with(&config).await?;
            let kind = connection.stream.get_ref().1.handshake_kind();
            if kind == Some(HandshakeKind::Resumed) {
                crowd.outcome.borrow_mut().resumed += 1;
            }
            connection.ask(crowd.request()).await?;
            connection.stream.shutdown().await
        };
        match once.await {
            Ok(()) => crowd.answered(began),
            Err(error) => crowd.failed(&error),
        }
    }
}

/// One HTTP/2 connection with so many requests at a time.
async fn multiplexed(crowd: Rc<Crowd>, number: usize, streams: usize) {
    let opened = async {
        let stream = crowd
            .tls(&crowd.credentials[number % crowd.credentials.len()])
            .await?;
        let opened = http2::Builder::new(TokioExecutor::new())
            .handshake(TokioIo::new(stream))
            .await;
        opened.map_err(io::Error::other)
    };
    let (sender, connection) = match opened.await {
        Ok(opened) => opened,
        Err(error) => return crowd.failed(&error),
    };
    tokio::spawn(connection);
    let mut tasks = JoinSet::new();
    for _ in 0..streams {
        let (crowd, mut sender) = (Rc::clone(&crowd), sender.clone());
        tasks.spawn_local(async move {
            while !crowd.over.get() {
                let began = Instant::now();
                match over_http2(&crowd, &mut sender).await {
                    Ok(()) => crowd.answered(began),
                    Err(error) => {
                        crowd.failed(&error);
                        return;
                    }
                }
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

async fn over_http2(crowd: &Crowd, sender: &mut http2::SendRequest<Full<Bytes>>) -> io::Result<()> {
    let body = crowd.request().clone();
    let operation = &crowd.plan.operations[0];
    let request = http::Request::post(format!("https://localhost/openapi/v1/{operation}"))
        .header("content-type", "application/json")
        .body(Full::new(body))
        .map_err(io::Error::other)?;
    let answer = sender
        .send_request(request)
        .await
        .map_err(io::Error::other)?;
    let status = answer.status();
    let body = answer
        .into_body()
        .collect()
        .await
        .map_err(io::Error::other)?
        .to_bytes();
    check(status.as_u16() == 200, &body)
}

fn check(is_ok: bool, body: &[u8]) -> io::Result<()> {
    if is_ok && memchr::memmem::find(body, b"\"status\":\"success\"").is_some() {
        Ok(())
    } else {
        Err(io::Error::other(String::from_utf8_lossy(body).into_owned()))
    }
}

/// HTTP/1.1 by its own few lines, which cost less than a library's.
struct Connection {
    stream: TlsStream<TcpStream>,
    buffer: Vec<u8>,
}

/// No answer takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// So long all requests that were prepared may take, each once.
const WARM_UP_TIMEOUT: Duration = Duration::from_secs(60);

/// Chance is the same in each run, so that runs can be compared.
const SEED: u64 = 1_456_819_200;

impl Connection {
    async fn ask(&mut self, request: &[u8]) -> io::Result<()> {
        self.stream.write_all(request).await?;
        self.stream.flush().await?;
        self.buffer.clear();
        let end = loop {
            if let Some(end) = head_end(&self.buffer) {
                break end;
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        let length = field(&self.buffer[..end], "content-length")
            .and_then(|value| value.parse::<usize>().ok());
        let length = length.ok_or_else(|| io::Error::other("an answer without a length"))?;
        while self.buffer.len() < end + length {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        check(
            self.buffer.starts_with(b"HTTP/1.1 200"),
            &self.buffer[end..],
        )
    }
}

impl Crowd {
    fn new(plan: Plan) -> Result<Self> {
        let protocol: &[u8] = if matches!(plan.mode, Mode::Streams { .. }) {
            b"h2"
        } else {
            b"http/1.1"
        };
        let credentials = (0..plan.callers.min(plan.connections.max(1)))
            .map(|number| {
                tls::client(
                    &plan.tls,
                    &format!("load-{number}"),
                    protocol,
                    false,
                    plan.post_quantum,
                )
            })
            .collect::<Result<_>>()?;
        let body = order::order(plan.body_bytes);
        let requests = if matches!(plan.mode, Mode::Streams { .. }) {
            vec![body.into()]
        } else {
            let count = plan.prepared.max(plan.accounts).max(plan.operations.len());
            (0..count)
                .map(|number| request(&plan, number, &body))
                .collect()
        };
        Ok(Self {
            requests,
            credentials,
            next: Cell::new(0),
            random: RefCell::new(fastrand::Rng::with_seed(SEED)),
            answered: Cell::new(0),
            in_window: Cell::new(false),
            over: Cell::new(false),
            outcome: RefCell::default(),
            latencies: RefCell::new(Histogram::new_with_bounds(1, 60_000_000, 3)?),
            plan,
        })
    }

    /// The next one in turn, or any.
    fn request(&self) -> &Bytes {
        if self.plan.shuffled {
            let any = self.random.borrow_mut().usize(..self.requests.len());
            return &self.requests[any];
        }
        let next = self.next.get();
        self.next.set((next + 1) % self.requests.len());
        &self.requests[next]
    }

    async fn connect(&self, number: usize) -> io::Result<Connection> {
        self.connect_with(&self.credentials[number % self.credentials.len()])
            .await
    }

    async fn connect_with(&self, config: &Arc<ClientConfig>) -> io::Result<Connection> {
        Ok(Connection {
            stream: self.tls(config).await?,
            buffer: Vec::with_capacity(2_048),
        })
    }

    async fn tls(&self, config: &Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
        let connected = async {
            let stream = TcpStream::connect(("127.0.0.1", self.plan.port)).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
            TlsConnector::from(Arc::clone(config))
                .connect(name, stream)
                .await
        };
        timeout(PATIENCE, connected).await?
    }

    fn answered(&self, began: Instant) {
        self.answered.set(self.answered.get() + 1);
        if self.in_window.get() {
            self.outcome.borrow_mut().answered += 1;
            let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.latencies.borrow_mut().saturating_record(took);
        }
    }

    fn failed(&self, error: &io::Error) {
        if self.over.get() {
            return;
        }
        let mut outcome = self.outcome.borrow_mut();
        outcome.failed += 1;
        outcome
            .first_failure
            .get_or_insert_with(|| error.to_string());
    }
}

/// A whole request on the wire.
fn request(plan: &Plan, number: usize, body: &str) -> Bytes {
    use std::fmt::Write;
    let operation = &plan.operations[number % plan.operations.len()];
    let (mut head, mut body) = (String::new(), body.to_owned());
    let mut line =
        |text: std::fmt::Arguments<'_>| write!(head, "{text}\r\n").expect("memory suffices");
    line(format_args!(
        "POST {}/openapi/v1/{operation} HTTP/1.1",
        if plan.signs { "/pospal-api2" } else { "" }
    ));
    line(format_args!("Host: localhost"));
    line(format_args!("Content-Type: application/json"));
    if plan.signs {
        let app_id = rule::app_id(0);
        body = format!("{{\"appId\":\"{app_id}\",{}", &body[1..]);
        line(format_args!("time-stamp: 1456819200000"));
        line(format_args!(
            "data-signature: {}",
            rule::signature(&app_id, body.as_bytes())
        ));
    }
    if plan.accounts > 0 {
        line(format_args!(
            "Kybio-Gateway-Account: account-{}",
            number % plan.accounts
        ));
    }
    line(format_args!("Content-Length: {}\r\n", body.len()));
    head.push_str(&body);
    head.into()
}
