//! A caller that keeps a connection for later costs next to nothing meanwhile, and can't tell: what it sends then is answered, whatever it
//! sends and in whatever pieces; and each end that a connection can have, it has at once.

use rcgen::date_time_ymd;
use rustls::version::{TLS12, TLS13};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Duration, timeout};
use tokio_rustls::client::TlsStream;

use crate::support::gateway::{Door, ORDERS};
use crate::support::pki::Wanted;
use crate::support::tools::PATIENCE;
use crate::support::{Client, Gateway, Pki, Setup, Upstream, tools};

const WRITE: &str = "customerOpenApi/add";
const OPEN: &str = "kybio_gateway_downstream_connections";
const PARKED: &str = "kybio_gateway_downstream_connections_parked";
const ACCEPTED: &str = "kybio_gateway_downstream_connections_accepted_total";

trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Wire for S {}

fn request(body: &str) -> Vec<u8> {
    let length = body.len();
    let head = "host: localhost\r\ncontent-type: application/json";
    format!("POST /openapi/v1/{WRITE} HTTP/1.1\r\n{head}\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// Reads one answer, which must be one of success.
async fn hears_success(wire: &mut (impl AsyncRead + Unpin + ?Sized)) {
    let mut heard = Vec::new();
    let hearing = async {
        while !String::from_utf8_lossy(&heard).contains("\"status\":\"success\"") {
            let count = wire.read_buf(&mut heard).await.unwrap();
            assert!(count > 0, "{}", String::from_utf8_lossy(&heard));
        }
    };
    timeout(PATIENCE, hearing).await.expect("an answer in time");
    assert!(heard.starts_with(b"HTTP/1.1 200"));
}

async fn asks(wire: &mut (impl AsyncRead + AsyncWrite + Unpin + ?Sized), body: &str) {
    wire.write_all(&request(body)).await.unwrap();
    wire.flush().await.unwrap();
    hears_success(wire).await;
}

/// Nothing comes but the end.
async fn hears_the_end(wire: &mut (impl AsyncRead + Unpin + ?Sized)) {
    let read = timeout(PATIENCE, wire.read(&mut [0])).await;
    assert_eq!(read.expect("an end in time").unwrap_or(0), 0);
}

/// Until so many connections are open, or parked.
async fn falls_to(gateway: &Gateway, series: &str, most: f64) {
    let fallen = timeout(PATIENCE, async {
        while gateway.metric(series).await > most {}
    });
    fallen.await.expect(series);
}

/// All that there are of them.
async fn parked(gateway: &Gateway, count: usize) {
    let count = count as f64;
    assert_eq!(gateway.metric_reaches(PARKED, count).await, count);
}

/// A connection that has been used, and is parked, alone.
async fn used_and_parked(gateway: &Gateway, client: &Client) -> TlsStream<TcpStream> {
    let mut stream = client.stream().await.unwrap();
    asks(&mut stream, "{}").await;
    parked(gateway, 1).await;
    stream
}

fn client(
    gateway: &Gateway,
    pki: &Pki,
    version: &'static rustls::SupportedProtocolVersion,
) -> Client {
    let config = pki.client_config(Some(&pki.caller(ORDERS)), &["http/1.1"], &[version]);
    Client::new(gateway.address, config)
}

/// So many connections that have been used and wait for more.
async fn kept(client: &Client, count: usize) -> Vec<TlsStream<TcpStream>> {
    let mut streams = Vec::new();
    for _ in 0..count {
        let mut stream = client.stream().await.unwrap();
        asks(&mut stream, "{}").await;
        streams.push(stream);
    }
    streams
}

/// The first ones leave room behind, which a request takes for its time. The second ones show what stays.
#[tokio::test]
async fn a_connection_that_is_kept_for_later_takes_little_memory() {
    const CONNECTIONS: usize = 300;
    const KIB_MAX: u64 = 20;
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.connections_of_one(2 * CONNECTIONS);
    let gateway = setup.start().await;
    let client = client(&gateway, &pki, &TLS13);
    let first = kept(&client, CONNECTIONS).await;
    parked(&gateway, CONNECTIONS).await;
    let before = gateway.memory_kib();
    let second = kept(&client, CONNECTIONS).await;
    parked(&gateway, 2 * CONNECTIONS).await;
    let grown = gateway.memory_kib().saturating_sub(before);
    println!("{grown} KiB for {CONNECTIONS} connections");
    assert!(grown < KIB_MAX * CONNECTIONS as u64, "{grown} KiB");
    for mut stream in first.into_iter().chain(second) {
        asks(&mut stream, "{}").await;
    }
}

/// With TLS and without, whole, in pieces, many at once, and large.
#[tokio::test]
async fn what_comes_on_a_parked_connection_is_answered() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    for (door, identity, version) in [
        (Door::Tls, ORDERS.to_owned(), &TLS13),
        (Door::Tls, ORDERS.to_owned(), &TLS12),
        (Door::Plaintext, "loopback".to_owned(), &TLS13),
        (
            Door::Unix,
            format!("uid:{}", rustix::process::getuid().as_raw()),
            &TLS13,
        ),
    ] {
        let setup = Setup {
            door,
            orders: format!(
                "identities = [{identity:?}]\naccounts = [\"*\"]\noperations = [\"*\"]\n"
            ),
            ..Setup::new(&pki, Some(upstream.address))
        };
        let gateway = setup.start().await;
        let mut wire: Box<dyn Wire> = match door {
            Door::Tls => Box::new(client(&gateway, &pki, version).stream().await.unwrap()),
            Door::Plaintext => Box::new(TcpStream::connect(gateway.address).await.unwrap()),
            Door::Unix => {
                let path = gateway.setup.path("gateway.sock");
                Box::new(UnixStream::connect(path).await.unwrap())
            }
        };
        parked(&gateway, 1).await;
        let before = upstream.seen().len();
        asks(&mut *wire, "{}").await;
        assert_eq!(gateway.metric(PARKED).await, 0.0, "it's in use");
        parked(&gateway, 1).await;

        for byte in request("{}") {
            wire.write_all(&[byte]).await.unwrap();
            wire.flush().await.unwrap();
        }
        hears_success(&mut *wire).await;
        parked(&gateway, 1).await;

        let third = request("{}");
        let (begin, end) = third.split_at(30);
        wire.write_all(&[&request("{}")[..], &request("{}"), begin].concat())
            .await
            .unwrap();
        wire.flush().await.unwrap();
        hears_success(&mut *wire).await;
        upstream.arrived(before + 4).await;
        wire.write_all(end).await.unwrap();
        wire.flush().await.unwrap();
        upstream.arrived(before + 5).await;
        falls_to(&gateway, PARKED, 0.0).await;
        parked(&gateway, 1).await;

        // Whatever of the answers wasn't read yet comes before this one's.
        let large = format!("{{\"a\":\"{}\"}}", "x".repeat(1_000_000));
        asks(&mut *wire, &large).await;
        upstream.arrived(before + 6).await;
        assert_eq!(gateway.metric(ACCEPTED).await, 1.0, "one connection");
    }
}

/// Messages of TLS 1.3 that carry nothing for HTTP: new keys, of which the answer's are to follow suit.
#[tokio::test]
async fn a_parked_connection_can_change_its_keys() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    let mut stream = used_and_parked(&gateway, &client(&gateway, &pki, &TLS13)).await;
    for _ in 0..3 {
        stream.get_mut().1.refresh_traffic_keys().unwrap();
        stream.flush().await.unwrap();
    }
    asks(&mut stream, "{}").await;
    assert_eq!(gateway.metric(ACCEPTED).await, 1.0);
}

/// TLS's farewell, the end of a stream without it, and a reset.
#[tokio::test]
async fn who_leaves_a_parked_connection_makes_room_at_once() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.connections_of_one(1);
    let gateway = Gateway::start(setup, &["--set", "listener.connections_max=1"]).await;
    let client = client(&gateway, &pki, &TLS13);
    for used in [true, false] {
        for way in ["farewell", "end", "reset"] {
            let mut stream = client.stream().await.unwrap();
            if used {
                asks(&mut stream, "{}").await;
            }
            parked(&gateway, 1).await;
            match way {
                "farewell" => {
                    stream.shutdown().await.unwrap();
                    hears_the_end(&mut stream).await;
                }
                "end" => stream.get_mut().0.shutdown().await.unwrap(),
                _ => {
                    let socket = SockRef::from(stream.get_ref().0);
                    socket.set_linger(Some(Duration::ZERO)).unwrap();
                    drop(stream);
                }
            }
            falls_to(&gateway, OPEN, 0.0).await;
            assert_eq!(gateway.metric(PARKED).await, 0.0, "{used} {way}");
        }
    }
    let timeouts = "kybio_gateway_downstream_timeouts_total{clock=\"idle\"}";
    assert_eq!(gateway.metric(timeouts).await, 0.0);
}

#[tokio::test]
async fn a_parked_connection_idles_ages_and_waits_for_heads_as_any_other() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let timeouts =
        |clock: &str| format!("kybio_gateway_downstream_timeouts_total{{clock=\"{clock}\"}}");
    for (key, first, idle, head) in [
        ("idle_timeout = \"2s\"", "", 1.0, 0.0),
        ("header_timeout = \"300ms\"", "POST /open", 0.0, 1.0),
        ("connection_age_max = \"3s\"", "", 0.0, 0.0),
    ] {
        let mut setup = Setup::new(&pki, Some(upstream.address));
        setup.listener.push_str(&format!("{key}\n"));
        let gateway = setup.start().await;
        let mut stream = used_and_parked(&gateway, &client(&gateway, &pki, &TLS13)).await;
        stream.write_all(first.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        hears_the_end(&mut stream).await;
        falls_to(&gateway, OPEN, 0.0).await;
        let counted = (
            gateway.metric(&timeouts("idle")).await,
            gateway.metric(&timeouts("head")).await,
        );
        assert_eq!(counted, (idle, head), "{key}");
    }
}

#[tokio::test]
async fn a_parked_connection_of_a_revoked_caller_is_closed_by_the_reload() {
    const REVOKED: u64 = 77;
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::reloaded_by_hand(&pki, &upstream);
    setup.listener.push_str("client_crl = [\"callers.crl\"]\n");
    let revoke = |setup: &Setup, serials: &[u64]| {
        let list = pki.revocation_list(serials, date_time_ymd(2100, 1, 1));
        tools::write(&setup.path("callers.crl"), list, 0o644);
    };
    revoke(&setup, &[1]);
    let gateway = setup.start().await;
    let lost = pki.issue(&Wanted {
        uris: &[ORDERS],
        serial: REVOKED,
        ..Wanted::default()
    });
    let lost = gateway.client_with(&pki, &lost);
    let mut stream = used_and_parked(&gateway, &lost).await;
    let mut other = gateway.client(&pki).stream().await.unwrap();
    asks(&mut other, "{}").await;
    parked(&gateway, 2).await;
    revoke(&gateway.setup, &[1, REVOKED]);
    gateway.reload().await;
    hears_the_end(&mut stream).await;
    let closed = "kybio_gateway_downstream_closed_by_reload_total{reason=\"revoked\"}";
    assert_eq!(gateway.metric_reaches(closed, 1.0).await, 1.0);
    asks(&mut other, "{}").await;
}

#[tokio::test]
async fn parked_connections_hold_up_no_end_of_the_process() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let flags = ["--set", "runtime.drain_timeout=1h"];
    let setup = Setup::new(&pki, Some(upstream.address));
    let mut gateway = Gateway::start(setup, &flags).await;
    let client = client(&gateway, &pki, &TLS13);
    let mut used = used_and_parked(&gateway, &client).await;
    let mut unused = client.stream().await.unwrap();
    parked(&gateway, 2).await;
    gateway.signal("TERM");
    hears_the_end(&mut used).await;
    hears_the_end(&mut unused).await;
    assert_eq!(gateway.ended().await.code(), Some(0));
}
