//! Promise U3: what callers can make the gateway hold is bounded, however many bodies they send at a time and in whatever pieces.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::support::frames::{DATA, END_HEADERS, END_STREAM, Frames, HEADERS, PING, call, frame};
use crate::support::pki::Wanted;
use crate::support::upstream::SUCCESS;
use crate::support::{Client, Gateway, Pki, Setup, Upstream};

const ADD: &str = "customerOpenApi/add";
const TILLS: &str = "[callers.tills]\nidentities = [\"dns:tills.internal\"]\naccounts = [\"main\"]\noperations = [\"*\"]\n";

fn body(size: usize) -> String {
    format!("{{\"a\":\"{}\"}}", "x".repeat(size - 8))
}

/// A call's head and so much of its body, which is `size` bytes long.
async fn begun(client: &Client, size: usize, sent: usize) -> TlsStream<TcpStream> {
    let mut stream = client.stream().await.unwrap();
    let head = format!(
        "POST /openapi/v1/{ADD} HTTP/1.1\r\nhost: gateway.test\r\ncontent-type: application/json\r\ncontent-length: {size}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
        .write_all(&body(size).as_bytes()[..sent])
        .await
        .unwrap();
    stream.flush().await.unwrap();
    stream
}

async fn told(mut stream: TlsStream<TcpStream>) -> String {
    let mut answer = vec![0; 4096];
    let count = stream.read(&mut answer).await.unwrap();
    String::from_utf8(answer[..count].to_vec()).unwrap()
}

#[tokio::test]
async fn large_bodies_that_are_begun_and_not_ended_leave_room_for_others() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup
        .listener
        .push_str("body_bytes_max = 1000000\nbodies_bytes_max = 2000000\n");
    setup.more.push_str(TILLS);
    let gateway = setup.start().await;
    let orders = gateway.client(&pki);
    let tills = gateway.client_with(
        &pki,
        &pki.issue(&Wanted {
            dns: &["tills.internal"],
            ..Wanted::default()
        }),
    );
    let mut first = begun(&orders, 700_000, 699_000).await;
    // Were the other one there first, this one would be refused.
    gateway
        .metric_reaches("kybio_gateway_bodies_bytes", 600_000.0)
        .await;
    let refused = orders.call(ADD, body(600_000)).await;
    assert_eq!(
        refused.refusal(),
        (429, "caller-busy".into(), "not-sent".into(), "yes".into())
    );
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(
        orders.call(ADD, body(1_000)).await.status,
        200,
        "small ones"
    );
    assert_eq!(
        tills.call(ADD, body(1_000_000)).await.status,
        200,
        "another caller has the other half"
    );
    // Together they have all of it.
    let second = begun(&tills, 900_000, 899_000).await;
    let third = begun(&tills, 900_000, 899_000).await;
    let answers = tokio::select! {
        answer = told(second) => answer,
        answer = told(third) => answer,
    };
    assert!(answers.starts_with("HTTP/1.1 429"), "{answers}");

    // The one that waited is none the worse for it.
    first
        .write_all(&body(700_000).as_bytes()[699_000..])
        .await
        .unwrap();
    let answer = told(first).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(orders.call(ADD, body(600_000)).await.status, 200);
}

#[tokio::test]
async fn a_body_that_is_begun_takes_room_from_its_first_piece_on() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup
        .listener
        .push_str("body_bytes_max = 20000\nbodies_bytes_max = 40000\n");
    let gateway = setup.start().await;
    let mut frames = Frames::open(&gateway.http2_client(&pki)).await;
    for stream in [1, 3] {
        let head = frame(HEADERS, END_HEADERS, stream, &call(ADD, &[]));
        let piece = frame(DATA, 0, stream, &body(15_000).as_bytes()[..14_000]);
        frames.write_all(&[head, piece].concat()).await.unwrap();
    }
    let refused = frames.frame(HEADERS).await;
    assert_eq!((refused.stream, refused.status()), (3, 429));
    // What comes in one piece passes, and the one that waited is none the worse for it.
    frames.ask(5, ADD, &body(10_000)).await;
    assert_eq!(frames.answer(5).await, SUCCESS);
    let rest = body(15_000).split_off(14_000);
    frames
        .write(DATA, END_STREAM, 1, rest.as_bytes())
        .await
        .unwrap();
    assert_eq!(frames.answer(1).await, SUCCESS);
    // The room is free again.
    frames.ask(7, ADD, &body(15_000)).await;
    assert_eq!(frames.answer(7).await, SUCCESS);
}

/// A byte on the wire can be a field here, of a hundred bytes and more.
#[tokio::test]
async fn of_a_refused_request_whose_body_does_not_come_no_fields_are_kept() {
    const CONNECTIONS: usize = 10;
    const FIELDS: usize = 900;
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.connections_of_one(2 * CONNECTIONS);
    let gateway = setup.start().await;
    // RFC 7541, appendix A: number 60 is an empty `via`.
    let fields = [call(ADD, &[]), vec![0x80 | 60; FIELDS]].concat();
    let heads: Vec<_> = (0..100)
        .flat_map(|nth| frame(HEADERS, END_HEADERS, 2 * nth + 1, &fields))
        .collect();
    let mut all = Vec::new();
    for _ in 0..CONNECTIONS {
        all.push(Frames::open(&gateway.http2_client(&pki)).await);
    }
    let before = resident(&gateway);
    for bad in &mut all {
        bad.write_all(&heads).await.unwrap();
        bad.write(PING, 0, 0, &[0; 8]).await.unwrap();
        bad.frame(PING).await;
    }
    for bad in &mut all {
        assert_eq!(bad.frame(HEADERS).await.status(), 431);
        for _ in 1..100 {
            bad.frame(HEADERS).await;
        }
    }
    let grown = resident(&gateway) - before;
    assert!(grown < 30_000, "{grown} kB");
    assert!(upstream.seen().is_empty());
}

/// Kilobytes.
fn resident(gateway: &Gateway) -> usize {
    let path = format!("/proc/{}/status", gateway.pid());
    let status = std::fs::read_to_string(path).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// A list of the pieces would take more than thirty times as much as the bytes.
#[tokio::test]
async fn a_body_that_comes_byte_by_byte_takes_no_more_than_its_size() {
    const SIZE: usize = 100_000;
    const BODIES: usize = 8;
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.listener.push_str("body_timeout = \"60s\"\n");
    let gateway = setup.start().await;
    assert_eq!(gateway.client(&pki).call(ADD, "{}").await.status, 200);
    let before = resident(&gateway);
    let mut chunks = Vec::new();
    for byte in body(SIZE).bytes() {
        chunks.extend_from_slice(b"1\r\n");
        chunks.push(byte);
        chunks.extend_from_slice(b"\r\n");
    }
    let mut open = Vec::new();
    for _ in 0..BODIES {
        let mut stream = gateway.client(&pki).stream().await.unwrap();
        let head = format!(
            "POST /openapi/v1/{ADD} HTTP/1.1\r\nhost: gateway.test\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&chunks).await.unwrap();
        open.push(stream);
    }
    for mut stream in open {
        stream.write_all(b"0\r\n\r\n").await.unwrap();
        let answer = told(stream).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    assert_eq!(
        upstream.last().body.len(),
        SIZE + "\"appId\":\"abcdefghijklmn\",".len()
    );
    let grown = resident(&gateway) - before;
    assert!(
        grown < 12_000,
        "{grown} kB for {BODIES} bodies of {SIZE} bytes"
    );
}
