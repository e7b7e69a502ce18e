//! Promise B2: a reply's body reaches the caller byte for byte; compressed when the caller accepts it, decoded when not.

use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use http::Response;
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
    let (pki, _upstream, gateway) = answering(move || packed("gzip", bomb.clone())).await;
    let answer = gateway
        .client(&pki)
        .call("customerOpenApi/queryByUid", "{}")
        .await;
    assert_eq!(answer.refusal().1, "unreadable-reply");

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
