//! Promise B3: invalid input never costs a call. Each body is refused with the offset of its first wrong byte, and nothing arrives.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::support::{Client, Pki, Setup, Upstream};

#[tokio::test]
async fn what_is_not_one_json_object_is_refused_with_the_offset_of_its_first_wrong_byte() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    let client = gateway.client(&pki);
    let deep = format!("{{\"a\":{}1{}}}", "[".repeat(200), "]".repeat(200));
    let cases: Vec<(&[u8], usize)> = vec![
        (b"[1]", 0),
        (b"null", 0),
        (b"\"text\"", 0),
        (b"a=1&b=2", 0),
        (b"\xef\xbb\xbf{}", 0),
        (b"\x1f\x8b\x08\x00", 1),
        (b"{\"a\":\"\xc3\x28\"}", 6),
        (b"{\"a\":1}x", 7),
        (b"{}{}", 2),
        (b"{\"a\":1,}", 7),
        (b"{a:1}", 1),
        (b"{'a':1}", 1),
        (b"{\"a\":01}", 6),
        (b"{\"a\":NaN}", 5),
        (b"{\"a\":\"\n\"}", 6),
        (b"{\"a\":1", 6),
        (b"{\"a\":1}\x00", 7),
        (b"{} // no", 3),
        (deep.as_bytes(), 132),
        (br#"{"appId":"another"}"#, 10),
        (br#"{"appId":1}"#, 9),
        (br#"{"appId":null}"#, 9),
        (br#"{"appId":["abcdefghijklmn"]}"#, 9),
        (br#"{"appId":"\u0061bcdefghijklmn"}"#, 9),
        (
            br#"{"appId":"abcdefghijklmn","appId":"abcdefghijklmn"}"#,
            26,
        ),
        (br#"{"x":1,"\u0061ppId":"abcdefghijklmn"}"#, 7),
        (br#"{"x":1,"AppId":"abcdefghijklmn"}"#, 7),
        (br#"{"x":1,"app_id":"abcdefghijklmn"}"#, 7),
        (br#"{"x":1,"appId\u0000":"abcdefghijklmn"}"#, 7),
        (br#"{"x":1,"y":2,"x":3}"#, 13),
    ];
    for (body, offset) in cases {
        let shown = String::from_utf8_lossy(body);
        let answer = client.call("customerOpenApi/add", body.to_vec()).await;
        let (status, code, outcome, retryable) = answer.refusal();
        assert_eq!(
            (status, outcome.as_str(), retryable.as_str()),
            (400, "not-sent", "no"),
            "{shown}"
        );
        assert!(
            code == "invalid-body" || code == "foreign-app-id",
            "{shown}: {code}"
        );
        assert_eq!(
            answer.json()["gateway"]["offset"],
            offset,
            "{shown}: {}",
            answer.text()
        );
        assert_eq!(answer.header("kybio-gateway-attempts"), "0");
    }
    assert!(upstream.seen().is_empty());
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
