//! Promise B3: invalid input never costs a call. Each body is refused with the offset of its first wrong byte, and nothing arrives. What
//! passes arrives as it came (B1).

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

use tokio::time::timeout;

use crate::support::gateway::{APP_ID, APP_KEY};
use crate::support::tools::PATIENCE;
use crate::support::wire::Wire;
use crate::support::{Answer, Client, Pki, Setup, Upstream, corpus};

const OPERATION: &str = "customerOpenApi/queryByUid";

/// How a body comes.
#[derive(Clone, Copy, Debug)]
enum Way {
    Length,
    Chunks,
    Http2,
}

/// Calls with each body of the corpus, and whatever else it says nothing about is the same each time.
struct Caller {
    http1: Client,
    http2: Client,
    wire: Option<Wire>,
}

impl Caller {
    async fn calls(&mut self, way: Way, body: &[u8]) -> Answer {
        if let Way::Http2 = way {
            return self.http2.call(OPERATION, body.to_vec()).await;
        }
        // One connection serves them all; a refusal that ends it is for this caller no reason to give up.
        let mut wire = match self.wire.take() {
            Some(wire) => wire,
            None => Wire::open(&self.http1).await,
        };
        let length = format!("content-length: {}\r\n\r\n", body.len());
        let (framing, body) = match way {
            Way::Chunks => ("transfer-encoding: chunked\r\n\r\n", in_chunks(body)),
            Way::Length | Way::Http2 => (&*length, body.to_vec()),
        };
        let head = format!(
            "POST /openapi/v1/{OPERATION} HTTP/1.1\r\nhost: gateway.test\r\ncontent-type: application/json\r\n{framing}"
        );
        wire.write(&[head.as_bytes(), &body].concat()).await;
        let answer = timeout(PATIENCE, wire.answer()).await;
        let answer = answer.expect("an answer in time").expect("an answer");
        if answer.header("connection") != "close" {
            self.wire = Some(wire);
        }
        answer
    }
}

/// In pieces that end in the middle of things.
fn in_chunks(body: &[u8]) -> Vec<u8> {
    let size = if body.len() < 10_000 { 5 } else { 50_021 };
    let mut chunks = Vec::new();
    for piece in body.chunks(size) {
        chunks.extend(format!("{:x}\r\n", piece.len()).as_bytes());
        chunks.extend(piece);
        chunks.extend(b"\r\n");
    }
    chunks.extend(b"0\r\n\r\n");
    chunks
}

/// What arrives upstream of a body that passes.
fn spliced(body: &[u8], as_it_is: bool) -> Vec<u8> {
    let is_space = |byte: &u8| b" \t\r\n".contains(byte);
    let start = body
        .iter()
        .position(|byte| !is_space(byte))
        .unwrap_or(body.len());
    let end = body
        .iter()
        .rposition(|byte| !is_space(byte))
        .map_or(start, |at| at + 1);
    let object = &body[start..end];
    match object.get(1..) {
        _ if as_it_is => object.to_vec(),
        None => format!("{{\"appId\":\"{APP_ID}\"}}").into_bytes(),
        Some(rest) => {
            let comma = if rest.trim_ascii() == b"}" { "" } else { "," };
            [format!("{{\"appId\":\"{APP_ID}\"{comma}").as_bytes(), rest].concat()
        }
    }
}

/// The class of what became of a body.
fn class(answer: &Answer) -> String {
    if answer.status == 200 {
        return "passes".to_owned();
    }
    let (status, code, outcome, retryable) = answer.refusal();
    let offset = &answer.json()["gateway"]["offset"];
    match (status, offset.as_u64()) {
        _ if outcome != "not-sent"
            || retryable != "no"
            || answer.header("kybio-gateway-attempts") != "0" =>
        {
            answer.text()
        }
        (400, Some(offset)) => format!("{code} at {offset}"),
        (413, None) => code,
        _ => answer.text(),
    }
}

/// The corpus, on HTTP/1.1 with a length and in chunks, and on HTTP/2.
#[tokio::test]
async fn each_body_is_refused_with_the_offset_of_its_first_wrong_byte_or_arrives_as_it_came() {
    let cases = corpus::cases("bodies/bodies.txt", 120);
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    let mut caller = Caller {
        http1: gateway.client(&pki),
        http2: gateway.http2_client(&pki),
        wire: None,
    };
    let (mut wrong, mut arrived) = (Vec::new(), 0);
    for case in &cases {
        let (expected, as_it_is) = match case.class.strip_suffix(" as it is") {
            Some(expected) => (expected, true),
            None => (&*case.class, false),
        };
        let body = case.bytes();
        for way in [Way::Length, Way::Chunks, Way::Http2] {
            let class = class(&caller.calls(way, &body).await);
            if class != expected {
                wrong.push(format!(
                    "- {} ({way:?}): {class}, not {expected}",
                    case.name
                ));
            }
            let new = upstream.seen_since(arrived);
            arrived += new.len();
            let intact = match (&new[..], expected) {
                ([seen], "passes") => {
                    seen.body == spliced(&body, as_it_is) && seen.is_signed_with(APP_KEY)
                }
                (none, _) => none.is_empty() && expected != "passes",
            };
            if !intact {
                let shown: Vec<_> = new
                    .iter()
                    .map(|seen| seen.text().chars().take(200).collect::<String>())
                    .collect();
                wrong.push(format!("- {} ({way:?}): upstream {shown:?}", case.name));
            }
        }
    }
    corpus::all_as_they_should_be(cases.len(), &wrong);
}

#[tokio::test]
async fn the_vendors_own_example_is_refused_at_byte_76_with_a_hint() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    let body = include_str!("vectors/samples/customer-add.doc-verbatim-INVALID.txt");
    let answer = gateway.client(&pki).call("customerOpenApi/add", body).await;
    assert_eq!(answer.status, 400);
    let json = answer.json();
    assert!(
        json["messages"][0].as_str().unwrap().contains("byte 76"),
        "{json}"
    );
    assert!(
        json["gateway"]["hint"]
            .as_str()
            .unwrap()
            .contains("a comma is missing"),
        "{json}"
    );
    // Member data isn't repeated.
    assert!(!answer.text().contains("17759205640"));
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn what_is_not_plain_json_is_told_which_header_to_add() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    let client = gateway.client(&pki);
    let cases: [&[(&str, &str)]; 6] = [
        &[],
        &[("content-type", "application/x-www-form-urlencoded")],
        &[("content-type", "text/plain")],
        &[("content-type", "application/json; charset=gbk")],
        &[
            ("content-type", "application/json"),
            ("content-type", "application/json"),
        ],
        &[
            ("content-type", "application/json"),
            ("content-encoding", "gzip"),
        ],
    ];
    for headers in cases {
        let request = Client::request("/openapi/v1/customerOpenApi/add", headers, "{}");
        let answer = client.send(request).await.unwrap();
        assert_eq!(answer.status, 415, "{headers:?}");
        assert!(
            answer.json()["gateway"]["hint"]
                .as_str()
                .unwrap()
                .contains("Content-"),
            "{headers:?}"
        );
    }
    assert!(upstream.seen().is_empty());
    let empty = client
        .send(Client::request(
            "/openapi/v1/customerOpenApi/queryAllCustomerCategory",
            &[],
            "",
        ))
        .await
        .unwrap();
    assert_eq!(empty.status, 200, "an empty body needs no type");
}

/// A compressed body is never unpacked, whatever it's called: there's nothing that could be a bomb.
#[tokio::test]
async fn a_compressed_body_is_refused_whatever_its_coding_is_called() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    let mut bomb = GzEncoder::new(Vec::new(), Compression::best());
    bomb.write_all(&vec![b' '; 32 << 20]).unwrap();
    let bomb = bomb.finish().unwrap();
    gateway.forget_peak();
    let before = gateway.memory_kib();
    let codings: [&[&str]; 13] = [
        &["gzip"],
        &["GZIP"],
        &["x-gzip"],
        &["deflate"],
        &["br"],
        &["zstd"],
        &["compress"],
        &["no-such-coding"],
        &["identity, gzip"],
        &["gzip, identity"],
        &["gzip, gzip"],
        &["identity", "gzip"],
        &["gzip", "identity"],
    ];
    for client in [gateway.client(&pki), gateway.http2_client(&pki)] {
        for codings in codings {
            let fields = codings.iter().map(|coding| ("content-encoding", *coding));
            let headers: Vec<_> = fields.collect();
            let answer = client
                .call_with("customerOpenApi/add", &headers, bomb.clone())
                .await;
            let expected = (
                415,
                "content-encoding".into(),
                "not-sent".into(),
                "no".into(),
            );
            assert_eq!(answer.refusal(), expected, "{codings:?}");
        }
        let plain = [("content-encoding", "identity")];
        let answer = client.call_with("customerOpenApi/add", &plain, "{}").await;
        assert_eq!(answer.status, 200);
    }
    let grown = gateway.memory_peak_kib().saturating_sub(before);
    assert!(grown < 16 * 1024, "{grown} KiB");
    assert_eq!(upstream.seen().len(), 2);
}

/// A mebibyte of nothing but beginnings.
#[tokio::test]
async fn a_body_of_great_depth_is_refused_where_it_becomes_too_deep() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    let client = gateway.client(&pki);
    gateway.forget_peak();
    let before = gateway.memory_kib();
    for (level, offset) in [("[", 132), ("{\"a\":", 5 + 5 * 127)] {
        let body = format!("{{\"a\":{}", level.repeat((1 << 20) / level.len() - 8));
        let answer = client.call("customerOpenApi/add", body).await;
        assert_eq!(answer.refusal().1, "invalid-body");
        assert_eq!(answer.json()["gateway"]["offset"], offset, "{level}");
    }
    let grown = gateway.memory_peak_kib().saturating_sub(before);
    assert!(grown < 16 * 1024, "{grown} KiB");
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_and_the_answer_arrives() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.listener.push_str("body_bytes_max = 1000\n");
    let gateway = setup.start().await;
    let client = gateway.client(&pki);
    let body = |size: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(size - 8));
    assert_eq!(
        client.call("customerOpenApi/add", body(1_000)).await.status,
        200
    );
    for size in [1_001, 500_000, 3_000_000] {
        let answer = client.call("customerOpenApi/add", body(size)).await;
        assert_eq!(
            answer.refusal(),
            (413, "body-too-large".into(), "not-sent".into(), "no".into()),
            "{size}"
        );
    }
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test]
async fn a_body_that_does_not_come_is_given_up() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.listener.push_str("body_timeout = \"200ms\"\n");
    let gateway = setup.start().await;
    let mut stream = gateway.client(&pki).stream().await.unwrap();
    let head = "POST /openapi/v1/customerOpenApi/add HTTP/1.1\r\nhost: gateway.test\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"a\":";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // The body is broken off, so the connection can't be used again: it ends by itself.
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("\"code\":\"body-timeout\""), "{answer}");
    assert!(upstream.seen().is_empty());
}
