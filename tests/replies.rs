//! Promise B2: a reply's body reaches the caller byte for byte; compressed when the caller accepts it, decoded when not.

use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use http::{HeaderValue, Response};
use http_body_util::Full;

use crate::support::upstream::{Act, SUCCESS};
use crate::support::{Gateway, Pki, Setup, Upstream};

async fn answering(act: impl Fn() -> Act + Send + Sync + 'static) -> (Pki, Upstream, Gateway) {
    let pki = Pki::new();
    let upstream = Upstream::scripted(&pki, move |_| act()).await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    (pki, upstream, gateway)
}

fn packed(encoding: &str, body: impl Into<Bytes>) -> Act {
    Act::Answer(
        Response::builder()
            .header("content-encoding", encoding)
            .body(Full::new(body.into()))
            .unwrap(),
    )
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// Odd spacing, a long number, an escape: nothing that a re-encoder would leave alone.
const ODD: &str = " {\"data\":{\"uid\":1366004607492564649,\"d\":1.10,\"t\":\"\\/\\u5f20\"} ,\n\"status\" : \"SUCCESS\"}\n";

#[tokio::test]
async fn plain_bytes_pass_as_they_came() {
    let (pki, _upstream, gateway) = answering(|| Act::ok(ODD)).await;
    let answer = gateway
        .client(&pki)
        .call("customerOpenApi/queryByUid", "{}")
        .await;
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, ODD));
    assert_eq!(answer.header("kybio-gateway-outcome"), "done");
    assert_eq!(
        answer.header("content-type"),
        "application/json; charset=utf-8"
    );
}

#[tokio::test]
async fn compressed_bytes_pass_to_those_who_accept_them_and_are_decoded_for_the_others() {
    let (pki, _upstream, gateway) = answering(|| packed("gzip", gzip(ODD.as_bytes()))).await;
    let client = gateway.client(&pki);
    let passed = client
        .call_with(
            "customerOpenApi/queryByUid",
            &[("accept-encoding", "gzip, br")],
            "{}",
        )
        .await;
    assert_eq!(passed.header("content-encoding"), "gzip");
    assert_eq!(passed.body, gzip(ODD.as_bytes()));
    for accepts in [
        &[][..],
        &[("accept-encoding", "identity")],
        &[("accept-encoding", "gzip;q=0")],
        &[("accept-encoding", "deflate")],
    ] {
        let decoded = client
            .call_with("customerOpenApi/queryByUid", accepts, "{}")
            .await;
        assert_eq!(
            (decoded.text().as_str(), decoded.header("content-encoding")),
            (ODD, ""),
            "{accepts:?}"
        );
    }
}

#[tokio::test]
async fn both_kinds_of_deflate_are_decoded() {
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
    zlib.write_all(ODD.as_bytes()).unwrap();
    let mut bare = DeflateEncoder::new(Vec::new(), Compression::default());
    bare.write_all(ODD.as_bytes()).unwrap();
    for body in [zlib.finish().unwrap(), bare.finish().unwrap()] {
        let (pki, _upstream, gateway) = answering(move || packed("deflate", body.clone())).await;
        assert_eq!(
            gateway
                .client(&pki)
                .call("customerOpenApi/queryByUid", "{}")
                .await
                .text(),
            ODD
        );
    }
}

#[tokio::test]
async fn a_business_error_passes_with_http_200_and_its_own_bytes() {
    const ERROR: &str =
        r#"{"status":"Error","messages":["barcode already exists"],"errorCode":"5004"}"#;
    let (pki, _upstream, gateway) = answering(|| Act::ok(ERROR)).await;
    let answer = gateway
        .client(&pki)
        .call("productOpenApi/addProductInfo", "{}")
        .await;
    assert_eq!(
        (answer.status.as_u16(), answer.text().as_str()),
        (200, ERROR)
    );
    assert_eq!(
        (
            answer.header("kybio-gateway-outcome"),
            answer.header("kybio-gateway-retryable")
        ),
        ("rejected", "no")
    );
    let event = gateway
        .request_event(answer.header("kybio-gateway-request-id"))
        .await;
    assert_eq!(
        (&event["business_status"], &event["business_code"]),
        (&"error".into(), &5004.into())
    );
}

/// A reply that isn't KYBIO's word on the call is never passed on as if it were.
#[tokio::test]
async fn what_is_no_answer_of_kybios_is_told_as_unknown() {
    type Script = Box<dyn Fn() -> Act + Send + Sync>;
    let cases: Vec<(&str, Script)> = vec![
        (
            "unreadable-reply",
            Box::new(|| Act::ok("<html>down for maintenance</html>")),
        ),
        ("unreadable-reply", Box::new(|| Act::ok(""))),
        ("unreadable-reply", Box::new(|| Act::ok("{}"))),
        (
            "unreadable-reply",
            Box::new(|| Act::ok(r#"{"status":"maybe"}"#)),
        ),
        (
            "unreadable-reply",
            Box::new(|| Act::ok(r#"{"status":"success""#)),
        ),
        (
            "unreadable-reply",
            Box::new(|| packed("gzip", gzip(SUCCESS.as_bytes())[..20].to_vec())),
        ),
        ("unreadable-reply", Box::new(|| packed("gzip", SUCCESS))),
        ("unreadable-reply", Box::new(|| packed("br", SUCCESS))),
        ("upstream-status", Box::new(|| Act::status(500, SUCCESS))),
        ("upstream-status", Box::new(|| Act::status(503, ""))),
        ("upstream-status", Box::new(|| Act::status(201, SUCCESS))),
        ("upstream-broken", Box::new(|| Act::Close)),
    ];
    for (expected, act) in cases {
        let (pki, upstream, gateway) = answering(act).await;
        let client = gateway.client(&pki);
        let write = client.call("orderOpenApi/addOnLineOrder", "{}").await;
        assert_eq!(
            write.refusal(),
            (502, expected.into(), "unknown".into(), "no".into()),
            "{}",
            write.text()
        );
        assert!(
            write.json()["gateway"]["hint"]
                .as_str()
                .unwrap()
                .contains("look it up"),
            "{}",
            write.text()
        );
        assert_eq!(upstream.seen().len(), 1, "sent once");
        let read = client.call("customerOpenApi/queryByUid", "{}").await;
        assert_eq!(
            read.refusal(),
            (502, expected.into(), "unknown".into(), "yes".into()),
            "{}",
            read.text()
        );
    }
}

#[tokio::test]
async fn an_http_refusal_is_told_as_rejected_with_the_upstreams_status() {
    let (pki, _upstream, gateway) = answering(|| Act::status(404, "no such method")).await;
    let answer = gateway
        .client(&pki)
        .call("orderOpenApi/addOnLineOrder", "{}")
        .await;
    assert_eq!(
        answer.refusal(),
        (
            502,
            "upstream-refused".into(),
            "rejected".into(),
            "no".into()
        )
    );
    assert_eq!(answer.json()["gateway"]["upstreamStatus"], 404);
}

#[tokio::test]
async fn replies_over_the_limit_and_bombs_are_refused() {
    let bomb = gzip(&vec![b' '; 20 << 20]);
    assert!(bomb.len() < 100_000, "{}", bomb.len());
    let (pki, upstream, gateway) = answering(move || packed("gzip", bomb.clone())).await;
    let answer = gateway
        .client(&pki)
        .call("customerOpenApi/queryByUid", "{}")
        .await;
    assert_eq!(answer.refusal().1, "reply-too-large");
    assert_eq!(upstream.seen().len(), 1, "it would be too large again");

    let pki = Pki::new();
    let upstream = Upstream::scripted(&pki, |_| {
        Act::ok(format!("{}{}", SUCCESS, " ".repeat(2_000)))
    })
    .await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.kybio.push_str("reply_bytes_max = 1024\n");
    let gateway = setup.start().await;
    let answer = gateway
        .client(&pki)
        .call("customerOpenApi/queryByUid", "{}")
        .await;
    assert_eq!(
        answer.refusal(),
        (
            502,
            "reply-too-large".into(),
            "unknown".into(),
            "yes".into()
        )
    );
}

/// What a process may need for a reply that it refuses, or for several at a time.
const GROWTH_KIB_MAX: u64 = 32 * 1024;

/// A few bytes that unpack to many.
fn bombs() -> Vec<(&'static str, &'static [&'static str], Vec<u8>)> {
    let spaces = vec![b' '; 3 << 20];
    let hollow = [SUCCESS.as_bytes(), &spaces].concat();
    let records = format!(
        "{{\"status\":\"success\",\"data\":[{}0]}}",
        "1366004607,".repeat(1 << 18)
    );
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::best());
    zlib.write_all(&hollow).unwrap();
    let mut bare = DeflateEncoder::new(Vec::new(), Compression::best());
    bare.write_all(&hollow).unwrap();
    vec![
        ("by its ratio", &["gzip"], gzip(&hollow)),
        ("by its size", &["gzip"], gzip(records.as_bytes())),
        (
            "in many members",
            &["gzip"],
            [gzip(SUCCESS.as_bytes()), gzip(&spaces).repeat(8)].concat(),
        ),
        ("packed twice, said once", &["gzip"], gzip(&gzip(&hollow))),
        ("packed twice", &["gzip, gzip"], gzip(&gzip(&hollow))),
        (
            "packed twice, said in two fields",
            &["gzip", "gzip"],
            gzip(&gzip(&hollow)),
        ),
        ("zlib", &["deflate"], zlib.finish().unwrap()),
        ("deflate", &["deflate"], bare.finish().unwrap()),
        ("a coding that wasn't asked for", &["br"], gzip(&hollow)),
        ("large as it is", &[], hollow.clone()),
    ]
}

#[tokio::test]
async fn bombs_are_refused_for_those_who_accept_gzip_and_for_those_who_do_not() {
    for (name, codings, bomb) in bombs() {
        let pki = Pki::new();
        let upstream = Upstream::scripted(&pki, move |_| {
            let mut answer = Response::new(Full::new(Bytes::from(bomb.clone())));
            for coding in codings {
                let coding = HeaderValue::from_static(coding);
                answer.headers_mut().append("content-encoding", coding);
            }
            Act::Answer(answer)
        })
        .await;
        let mut setup = Setup::new(&pki, Some(upstream.address));
        setup
            .kybio
            .push_str("reply_bytes_max = 1048576\nattempts_max = 1\n");
        let gateway = setup.start().await;
        gateway.forget_peak();
        let before = gateway.memory_kib();
        for accepts in ["gzip", "identity"] {
            let client = Arc::new(gateway.http2_client(&pki));
            let calls = (0..8).map(|_| {
                let client = Arc::clone(&client);
                let headers = [("accept-encoding", accepts)];
                tokio::spawn(async move {
                    client
                        .call_with("orderOpenApi/addOnLineOrder", &headers, "{}")
                        .await
                })
            });
            for call in calls.collect::<Vec<_>>() {
                let (status, code, outcome, retryable) = call.await.unwrap().refusal();
                assert_eq!(
                    (status, outcome.as_str(), retryable.as_str()),
                    (502, "unknown", "no"),
                    "{name}"
                );
                assert!(
                    ["unreadable-reply", "reply-too-large"].contains(&code.as_str()),
                    "{name}: {code}"
                );
            }
        }
        let grown = gateway.memory_peak_kib().saturating_sub(before);
        assert!(grown < GROWTH_KIB_MAX, "{name}: {grown} KiB");
        assert_eq!(upstream.seen().len(), 16, "each was sent once");
    }
}

/// A reply of great depth, or of great length where a few bytes are looked for, costs no more than its size.
#[tokio::test]
async fn a_reply_is_no_bomb_for_whoever_reads_its_verdict() {
    let many = "1,".repeat(4 << 20);
    let deep = |level: &str| level.repeat(1 << 20);
    let (begun, ended) = (deep("["), deep("]"));
    for (name, reply) in [
        (
            "deep data",
            format!("{{\"status\":\"success\",\"data\":{begun}{ended}}}"),
        ),
        (
            "deep messages",
            format!("{{\"status\":\"error\",\"messages\":{begun}{ended}}}"),
        ),
        (
            "a deep code",
            format!("{{\"status\":\"error\",\"errorCode\":{begun}{ended}}}"),
        ),
        (
            "deep and without an end",
            format!("{{\"status\":\"error\",\"messages\":{begun}"),
        ),
        (
            "long data",
            format!("{{\"status\":\"success\",\"data\":[{many}1]}}"),
        ),
        (
            "long messages",
            format!("{{\"status\":\"error\",\"messages\":[{many}1]}}"),
        ),
        (
            "a long code",
            format!("{{\"status\":\"error\",\"errorCode\":[{many}1]}}"),
        ),
        (
            "a long text for a code",
            format!("{{\"status\":\"error\",\"errorCode\":\"{many}1\"}}"),
        ),
    ] {
        let size = reply.len() as u64 / 1024;
        let (pki, _upstream, gateway) = answering(move || Act::ok(reply.clone())).await;
        gateway.forget_peak();
        let before = gateway.memory_kib();
        let client = gateway.client(&pki);
        let answer = client.call("orderOpenApi/addOnLineOrder", "{}").await;
        let grown = gateway.memory_peak_kib().saturating_sub(before);
        let outcome = answer.header("kybio-gateway-outcome");
        assert!(
            ["done", "rejected", "unknown"].contains(&outcome),
            "{name}: {outcome}"
        );
        assert!(
            grown < 4 * size + 16 * 1024,
            "{name}, {size} KiB: {grown} KiB"
        );
    }
}
