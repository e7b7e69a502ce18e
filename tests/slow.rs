//! Promise U3: each thing that a caller can be slow at has a clock. Whoever stalls is let go of in time, and counted by that clock; who
//! doesn't stall notices nothing, beside a thousand who do.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ALL_VERSIONS, ClientConnection};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};
use tokio_rustls::TlsConnector;

use crate::support::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, HEADERS, PING, PREFACE, SETTINGS, call,
    frame,
};
use crate::support::gateway::ORDERS;
use crate::support::load::Shape;
use crate::support::tools::PATIENCE;
use crate::support::upstream::{Act, SUCCESS};
use crate::support::{Client, Gateway, Load, Pki, Setup, Upstream};

/// The upstream answers it with more than fits into any buffer on the way.
const LARGE: &str = "customerOpenApi/queryByUid";
/// And this one with more than an HTTP/2 window.
const MEDIUM: &str = "customerOpenApi/queryByNumber";
const SMALL: &str = "customerOpenApi/add";

async fn upstream(pki: &Pki) -> Upstream {
    let reply = |size: usize| {
        let text = "x".repeat(size);
        format!("{{\"status\":\"success\",\"data\":\"{text}\"}}")
    };
    Upstream::scripted(pki, move |seen| {
        if seen.target.ends_with(LARGE) {
            Act::ok(reply(16_000_000))
        } else if seen.target.ends_with(MEDIUM) {
            Act::ok(reply(100_000))
        } else {
            Act::ok(SUCCESS)
        }
    })
    .await
}

/// What a caller does, and which clock is to end it.
struct Stall {
    what: &'static str,
    way: Way,
    /// Written at once.
    first: Vec<u8>,
    /// And then this, piece by piece, for ever; if it's empty, nothing.
    drip: Vec<u8>,
    clock: &'static str,
}

/// How far a connection comes before it stalls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Tcp,
    Tls(&'static str),
}

const HTTP1: Way = Way::Tls("http/1.1");
const HTTP2: Way = Way::Tls("h2");

trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Wire for S {}

impl Way {
    /// The caller's own buffer is small: what it doesn't read stays where it comes from.
    async fn open(self, gateway: &Gateway, pki: &Pki) -> Box<dyn Wire> {
        let stream = TcpStream::connect(gateway.address).await.unwrap();
        SockRef::from(&stream).set_recv_buffer_size(4_096).unwrap();
        let Self::Tls(alpn) = self else {
            return Box::new(stream);
        };
        let config = pki.client_config(Some(&pki.caller(ORDERS)), &[alpn], ALL_VERSIONS);
        let client = Client::new(gateway.address, config);
        Box::new(client.shake_hands(stream).await.unwrap())
    }
}

fn client_hello(pki: &Pki) -> Vec<u8> {
    let config = pki.client_config(None, &["h2"], ALL_VERSIONS);
    let name = ServerName::try_from("gateway.test").unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    assert!(hello.len() > 300);
    hello
}

fn http1_head(operation: &str, length: usize) -> Vec<u8> {
    let head = "host: gateway.test\r\ncontent-type: application/json";
    let text = format!(
        "POST /openapi/v1/{operation} HTTP/1.1\r\n{head}\r\ncontent-length: {length}\r\n\r\n"
    );
    text.into_bytes()
}

fn http1_call(operation: &str) -> Vec<u8> {
    [&http1_head(operation, 2)[..], b"{}"].concat()
}

/// Preface, settings, and these frames.
fn http2(frames: &[Vec<u8>]) -> Vec<u8> {
    let settings = frame(SETTINGS, 0, 0, &[]);
    [PREFACE, &settings, &frames.concat()].concat()
}

fn http2_call(operation: &str) -> Vec<u8> {
    let head = frame(HEADERS, END_HEADERS, 1, &call(operation, &[]));
    [head, frame(DATA, END_STREAM, 1, b"{}")].concat()
}

/// SETTINGS_INITIAL_WINDOW_SIZE (RFC 9113, section 6.5.2): nothing is to be sent unasked.
const NO_WINDOW: [u8; 6] = [0, 4, 0, 0, 0, 0];

fn stalls(pki: &Pki) -> Vec<Stall> {
    let stall = |what, way, first: &[u8], drip: &[u8], clock| Stall {
        what,
        way,
        first: first.to_vec(),
        drip: drip.to_vec(),
        clock,
    };
    let hello = client_hello(pki);
    let block = call(SMALL, &[]);
    let headers = frame(HEADERS, 0, 1, &block);
    let half_preface = &PREFACE[..PREFACE.len() / 2];
    let no_window = [
        PREFACE,
        &frame(SETTINGS, 0, 0, &NO_WINDOW),
        &http2_call(MEDIUM),
    ]
    .concat();
    vec![
        stall("nothing", Way::Tcp, b"", b"", "handshake"),
        stall(
            "half a ClientHello",
            Way::Tcp,
            &hello[..150],
            b"",
            "handshake",
        ),
        stall(
            "a ClientHello and then nothing",
            Way::Tcp,
            &hello,
            b"",
            "handshake",
        ),
        // A record of the largest size, of which a byte comes now and then.
        stall(
            "a dripping handshake",
            Way::Tcp,
            &[22, 3, 1, 64, 0, 1, 0, 63, 252],
            b"x",
            "handshake",
        ),
        stall("no request", HTTP1, b"", b"", "idle"),
        stall(
            "no request after one",
            HTTP1,
            &http1_call(SMALL),
            b"",
            "idle",
        ),
        stall("a byte of a head", HTTP1, b"P", b"", "head"),
        stall(
            "half a head",
            HTTP1,
            b"POST / HTTP/1.1\r\nhost: a",
            b"",
            "head",
        ),
        stall(
            "a dripping head",
            HTTP1,
            b"POST / HTTP/1.1\r\nhost: ",
            b"a",
            "head",
        ),
        stall(
            "a dripping field",
            HTTP1,
            b"POST / HTTP/1.1\r\n",
            b"a: b\r\n",
            "head",
        ),
        stall(
            // What came along with the request before isn't seen as a beginning.
            "half a head in one piece with a request",
            HTTP1,
            &[&http1_call(SMALL)[..], b"POST"].concat(),
            b"",
            "idle",
        ),
        stall(
            "an answer that nobody reads",
            HTTP1,
            &http1_call(LARGE),
            b"",
            "write",
        ),
        stall("no preface", HTTP2, b"", b"", "idle"),
        stall("half a preface", HTTP2, half_preface, b"", "head"),
        stall("settings alone", HTTP2, &http2(&[]), b"", "idle"),
        stall(
            "pings alone",
            HTTP2,
            &http2(&[]),
            &frame(PING, 0, 0, &[0; 8]),
            "idle",
        ),
        stall(
            "no stream after one",
            HTTP2,
            &http2(&[http2_call(SMALL)]),
            b"",
            "idle",
        ),
        stall(
            "half a frame's head",
            HTTP2,
            &http2(&[headers[..5].to_vec()]),
            b"",
            "head",
        ),
        stall(
            "half a HEADERS",
            HTTP2,
            &http2(&[headers[..20].to_vec()]),
            b"",
            "head",
        ),
        stall(
            "HEADERS without an end",
            HTTP2,
            &http2(std::slice::from_ref(&headers)),
            b"",
            "head",
        ),
        stall(
            "dripping HEADERS",
            HTTP2,
            &http2(&[frame(HEADERS, 0, 1, &[0; 10_000])[..20].to_vec()]),
            b"\0",
            "head",
        ),
        stall(
            "CONTINUATION without an end",
            HTTP2,
            &http2(&[headers, frame(CONTINUATION, 0, 1, &[0, 1, b'a', 1, b'b'])]),
            b"",
            "head",
        ),
        stall(
            "an answer that nobody reads",
            HTTP2,
            &http2(&[http2_call(LARGE)]),
            b"",
            "write",
        ),
        stall(
            "a window that isn't opened",
            HTTP2,
            &http2(&[http2_call(MEDIUM)]),
            b"",
            "write",
        ),
        stall("no window at all", HTTP2, &no_window, b"", "write"),
    ]
}

/// Does it until the other side has had enough. Nothing that comes is read but by those who drip: they'd not learn of the end.
async fn endure(wire: &mut (impl AsyncWrite + Unpin + ?Sized), stall: &Stall) {
    // Whoever isn't read to the end writes into a connection that may be gone.
    let _ = wire.write_all(&stall.first).await;
    let _ = wire.flush().await;
    if stall.drip.is_empty() {
        return;
    }
    let mut drops = interval(Duration::from_millis(20));
    loop {
        drops.tick().await;
        let dripped = wire.write_all(&stall.drip).await;
        if dripped.and(wire.flush().await).is_err() {
            return;
        }
    }
}

const TIMEOUTS: &str = "kybio_gateway_downstream_timeouts_total";

fn counted(clock: &str) -> String {
    match clock {
        "handshake" => "kybio_gateway_tls_handshake_failures_total{reason=\"timeout\"}".to_owned(),
        clock => format!("{TIMEOUTS}{{clock=\"{clock}\"}}"),
    }
}

const CLOCKS: [&str; 4] = ["handshake", "idle", "head", "write"];

/// One after the other, so that each count is one caller's.
#[tokio::test]
async fn whoever_stalls_is_let_go_of_and_counted_by_what_it_stalled_at() {
    let pki = Pki::new();
    let upstream = upstream(&pki).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.listener = "handshake_timeout = \"600ms\"\nheader_timeout = \"300ms\"\n\
                      idle_timeout = \"900ms\"\nwrite_timeout = \"400ms\"\n"
        .to_owned();
    let gateway = setup.start().await;
    let mut wrong = Vec::new();
    for stall in stalls(&pki) {
        let mut before = Vec::new();
        for clock in CLOCKS {
            before.push(gateway.metric(&counted(clock)).await);
        }
        let what = format!("{} ({:?})", stall.what, stall.way);
        let mut wire = stall.way.open(&gateway, &pki).await;
        let let_go = async {
            while gateway.metric("kybio_gateway_downstream_connections").await > 0.0 {
                tokio::task::yield_now().await;
            }
        };
        let doing = async {
            endure(&mut *wire, &stall).await;
            std::future::pending::<()>().await;
        };
        // It has been taken, or this would be over before it began.
        gateway
            .metric_reaches("kybio_gateway_downstream_connections", 1.0)
            .await;
        tokio::select! {
            () = doing => {}
            over = timeout(PATIENCE, let_go) => assert!(over.is_ok(), "{what}: it's kept"),
        }
        for (clock, before) in CLOCKS.into_iter().zip(before) {
            let more = gateway.metric(&counted(clock)).await - before;
            let expected = f64::from(clock == stall.clock);
            if (more - expected).abs() > 0.1 {
                wrong.push(format!("{what}: {more} by {clock}, not {expected}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Reads until that has come.
async fn hears(wire: &mut (impl AsyncRead + Unpin + ?Sized), wanted: &str) -> bool {
    let mut heard = Vec::new();
    let listening = async {
        while !String::from_utf8_lossy(&heard).contains(wanted) {
            if wire.read_buf(&mut heard).await.unwrap_or(0) == 0 {
                return false;
            }
        }
        true
    };
    timeout(PATIENCE, listening)
        .await
        .expect("a word, or an end, in time")
}

const TOO_SLOW: &str = "\"errorCode\":-408";

#[tokio::test]
async fn a_body_that_does_not_come_is_answered_so() {
    let pki = Pki::new();
    let upstream = upstream(&pki).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.listener.push_str("body_timeout = \"300ms\"\n");
    let gateway = setup.start().await;
    let chunked = "POST /openapi/v1/customerOpenApi/add HTTP/1.1\r\nhost: gateway.test\r\n\
                   content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    let http2_head = http2(&[frame(HEADERS, END_HEADERS, 1, &call(SMALL, &[]))]);
    for (what, way, first, drip) in [
        ("nothing", HTTP1, http1_head(SMALL, 100), Vec::new()),
        ("drops", HTTP1, http1_head(SMALL, 100_000), b" ".to_vec()),
        ("no chunk", HTTP1, chunked.as_bytes().to_vec(), Vec::new()),
        (
            "small chunks",
            HTTP1,
            chunked.as_bytes().to_vec(),
            b"1\r\n \r\n".to_vec(),
        ),
        ("nothing", HTTP2, http2_head.clone(), Vec::new()),
        ("drops", HTTP2, http2_head.clone(), frame(DATA, 0, 1, b" ")),
        ("empty frames", HTTP2, http2_head, frame(DATA, 0, 1, b"")),
    ] {
        let stall = Stall {
            what,
            way,
            first,
            drip,
            clock: "body",
        };
        let wire = way.open(&gateway, &pki).await;
        let (mut reading, mut writing) = tokio::io::split(wire);
        let doing = async {
            endure(&mut writing, &stall).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = doing => {}
            heard = hears(&mut reading, TOO_SLOW) => assert!(heard, "{what} {way:?}"),
        }
    }
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn a_stream_whose_body_does_not_come_holds_up_no_other() {
    let pki = Pki::new();
    let upstream = upstream(&pki).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.listener.push_str("body_timeout = \"300ms\"\n");
    let gateway = setup.start().await;
    let mut frames = Frames::open(&gateway.http2_client(&pki)).await;
    frames
        .write(HEADERS, END_HEADERS, 1, &call(SMALL, &[]))
        .await
        .unwrap();
    frames.ask(3, SMALL, "{}").await;
    assert_eq!(frames.answer(3).await, SUCCESS);
    assert!(frames.answer(1).await.contains(TOO_SLOW));
    frames.ask(5, SMALL, "{}").await;
    assert_eq!(frames.answer(5).await, SUCCESS);
    assert_eq!(upstream.seen().len(), 2);
}

/// What the thousand do, in the order in which they come: those with the most work first.
fn crowd(pki: &Pki) -> Vec<(usize, Stall)> {
    let hello = client_hello(pki);
    let half_headers = frame(HEADERS, 0, 1, &call(SMALL, &[]))[..20].to_vec();
    let http2_head = frame(HEADERS, END_HEADERS, 1, &call(SMALL, &[]));
    let no_window = [
        PREFACE,
        &frame(SETTINGS, 0, 0, &NO_WINDOW),
        &http2_call(MEDIUM),
    ];
    let kinds = [
        (83, HTTP2, no_window.concat(), "write"),
        (84, HTTP1, Vec::new(), "idle"),
        (83, HTTP2, http2(&[]), "idle"),
        (125, HTTP1, http1_head(SMALL, 100), "body"),
        (125, HTTP2, http2(&[http2_head]), "body"),
        (125, HTTP1, b"POST / HTTP/1.1\r\nhost: a".to_vec(), "head"),
        (125, HTTP2, http2(&[half_headers]), "head"),
        (125, Way::Tcp, hello[..150].to_vec(), "handshake"),
        (125, Way::Tcp, Vec::new(), "handshake"),
    ];
    let kinds = kinds.map(|(count, way, first, clock)| {
        let stall = Stall {
            what: clock,
            way,
            first,
            drip: Vec::new(),
            clock,
        };
        (count, stall)
    });
    assert_eq!(kinds.iter().map(|(count, _)| count).sum::<usize>(), 1_000);
    kinds.into()
}

/// Memory that the process has, in bytes.
fn resident(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    let kilobytes: usize = line.trim().trim_end_matches(" kB").parse().unwrap();
    kilobytes * 1_024
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count()
}

fn p99(latencies: &[Duration]) -> Duration {
    let mut sorted = latencies.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() * 99 / 100]
}

const OPEN: &str = "kybio_gateway_downstream_connections";

/// What a thousand stalled callers may cost, in a debug build.
const MEMORY_MAX: usize = 100_000_000;

/// The promised number itself is held against the median of several windows: a machine that's busy with other things is slow in some of
/// them, a gateway that waits for the stalled is slow in all.
#[tokio::test]
async fn a_thousand_stalled_callers_are_let_go_of_and_a_good_one_does_not_notice() {
    let pki = Pki::new();
    let upstream = upstream(&pki).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.listener =
        "handshake_timeout = \"15s\"\nheader_timeout = \"15s\"\nbody_timeout = \"15s\"\n\
                      idle_timeout = \"15s\"\nwrite_timeout = \"15s\"\n"
            .to_owned();
    // One address, and one caller, may have half of them.
    let gateway = Gateway::start(setup, &["--set", "listener.connections_max=4000"]).await;
    let load = Load::start(gateway.address, &pki, &pki.caller(ORDERS), Shape::LIGHT);
    load.goes_on(200).await;
    let before = (resident(gateway.pid()), descriptors(gateway.pid()));
    let good = gateway.metric(OPEN).await;

    let mut callers = JoinSet::new();
    let configs = [HTTP1, HTTP2].map(|way| {
        let Way::Tls(alpn) = way else { unreachable!() };
        let config = pki.client_config(Some(&pki.caller(ORDERS)), &[alpn], ALL_VERSIONS);
        (way, Arc::new(Client::new(gateway.address, config)))
    });
    let (mut opened, mut expected) = (0, Vec::new());
    for (count, stall) in crowd(&pki) {
        expected.push((stall.clock, count));
        let stall = Arc::new(stall);
        let client = configs.iter().find(|(way, _)| *way == stall.way);
        for _ in 0..count {
            let stream = TcpStream::connect(gateway.address).await.unwrap();
            let mut wire: Box<dyn Wire> = match client {
                Some((_, client)) => Box::new(client.shake_hands(stream).await.unwrap()),
                None => Box::new(stream),
            };
            endure(&mut *wire, &stall).await;
            let wanted = match stall.clock {
                "body" => TOO_SLOW,
                _ => "there's nothing to be heard but the end",
            };
            callers.spawn(async move { (hears(&mut *wire, wanted).await, wanted == TOO_SLOW) });
            opened += 1;
        }
    }
    assert_eq!(opened, 1_000);
    let all = good + 1_000.0;
    gateway.metric_reaches(OPEN, all).await;

    let mut windows = Vec::new();
    let mut peak = 0;
    for _ in 0..5 {
        let from = load.so_far().latencies.len();
        load.goes_on(120).await;
        // Whoever comes anew gets in too.
        for client in [gateway.client(&pki), gateway.http2_client(&pki)] {
            assert_eq!(client.call(SMALL, "{}").await.status, 200);
        }
        peak = peak.max(resident(gateway.pid()));
        if gateway.metric(OPEN).await < all {
            break;
        }
        windows.push(p99(&load.so_far().latencies[from..]));
    }
    windows.sort_unstable();
    let median = windows.get(windows.len() / 2);
    let median = median.expect("a window beside a thousand stalled callers");
    println!(
        "p99 by window: {windows:?}; memory {} MB, {} MB with 1,000 stalled",
        before.0 / 1_000_000,
        peak / 1_000_000
    );
    assert!(*median < Duration::from_millis(50), "{windows:?}");
    assert!(peak < before.0 + MEMORY_MAX, "{before:?}, {peak}");

    while let Some(ended) = callers.join_next().await {
        let (heard, wanted) = ended.unwrap();
        assert_eq!(heard, wanted, "who is slow with a body is told so");
    }
    // The good ones have theirs yet, and nobody else.
    let over = async {
        while gateway.metric(OPEN).await > good || descriptors(gateway.pid()) > before.1 + 10 {
            tokio::task::yield_now().await;
        }
    };
    assert!(timeout(PATIENCE, over).await.is_ok(), "all have gone");
    for clock in CLOCKS {
        let count = expected
            .iter()
            .filter(|(of, _)| *of == clock)
            .map(|(_, count)| count)
            .sum::<usize>();
        let counted = gateway.metric(&counted(clock)).await;
        assert_eq!(counted, count as f64, "{clock}");
    }
    let after = resident(gateway.pid());
    println!("memory {} MB afterwards", after / 1_000_000);
    assert!(after < before.0 + MEMORY_MAX, "{before:?}, {after}");
    let tally = load.end().await;
    println!("{tally}");
    assert!(tally.failed.is_empty(), "{tally}");
    assert_eq!((tally.raced, tally.refused, tally.dropped), (0, 0, 0));
}

/// The connection never idles before its first request, which comes in one piece with the handshake's end.
#[tokio::test]
async fn a_connection_that_begins_with_a_request_idles_after_it() {
    let pki = Pki::new();
    let upstream = upstream(&pki).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.listener.push_str("idle_timeout = \"300ms\"\n");
    let gateway = setup.start().await;
    for (alpn, first) in [
        ("http/1.1", http1_call(SMALL)),
        ("h2", http2(&[http2_call(SMALL)])),
    ] {
        let config = pki.client_config(Some(&pki.caller(ORDERS)), &[alpn], ALL_VERSIONS);
        let connector = TlsConnector::from(Arc::new(config));
        let name = ServerName::try_from("gateway.test").unwrap();
        let stream = TcpStream::connect(gateway.address).await.unwrap();
        let early = |client: &mut ClientConnection| client.writer().write_all(&first).unwrap();
        let mut stream = connector.connect_with(name, stream, early).await.unwrap();
        assert!(hears(&mut stream, "success").await, "{alpn}");
        let ended = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await;
        assert!(ended.is_ok(), "{alpn}: it's kept");
    }
    gateway.metric_reaches(&counted("idle"), 2.0).await;
}
