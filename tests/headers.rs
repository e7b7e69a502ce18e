//! Promise W3: what goes up is our own request, built from nothing; of the caller's only the body does.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::gateway::APP_KEY;
use crate::support::{Pki, Setup, Upstream};

#[tokio::test]
async fn the_upstream_sees_the_documented_headers_and_no_others() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    gateway
        .client(&pki)
        .call("customerOpenApi/add", "{\"a\":1}")
        .await;
    let seen = upstream.only();
    assert_eq!(seen.method, "POST");
    assert_eq!(seen.target, "/pospal-api2/openapi/v1/customerOpenApi/add");
    assert_eq!(seen.header("host"), "upstream.test");
    assert_eq!(seen.header("user-agent"), "openApi");
    assert_eq!(
        seen.header("content-type"),
        "application/json; charset=utf-8"
    );
    assert_eq!(seen.header("accept-encoding"), "gzip,deflate");
    assert_eq!(seen.header("content-length"), seen.body.len().to_string());
    assert!(seen.is_signed_with(APP_KEY));
    let mut names: Vec<_> = seen.headers.keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "accept-encoding",
            "content-length",
            "content-type",
            "data-signature",
            "host",
            "time-stamp",
            "user-agent"
        ]
    );
}

#[tokio::test]
async fn nothing_of_the_callers_headers_goes_up() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    let forged = [
        ("data-signature", "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF"),
        ("data-signature-v3", "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF"),
        ("time-stamp", "1"),
        ("user-agent", "forged"),
        ("accept-encoding", "br"),
        ("x-forwarded-for", "10.0.0.1"),
        ("forwarded", "for=10.0.0.1"),
        ("via", "1.1 forged"),
        ("cookie", "a=b"),
        ("authorization", "Bearer forged"),
        ("te", "trailers"),
        ("x-request-id", "forged"),
        ("x-anything", "forged"),
    ];
    for client in [gateway.client(&pki), gateway.http2_client(&pki)] {
        assert_eq!(
            client
                .call_with("customerOpenApi/add", &forged, "{}")
                .await
                .status,
            200
        );
    }
    for seen in upstream.seen() {
        assert_eq!(seen.headers.len(), 7, "{:?}", seen.headers);
        assert!(
            !format!("{:?}", seen.headers).contains("forged"),
            "{:?}",
            seen.headers
        );
        assert!(seen.is_signed_with(APP_KEY));
        assert_ne!(seen.header("time-stamp"), "1");
    }
}

#[tokio::test]
#[expect(
    clippy::disallowed_methods,
    reason = "the test's own clock is what the stamp is compared with"
)]
async fn each_call_carries_a_stamp_of_its_own_time_in_milliseconds() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    let client = gateway.client(&pki);
    let now = || {
        u64::try_from(
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_millis(),
        )
        .unwrap()
    };
    let mut before = now();
    for _ in 0..3 {
        client.call("customerOpenApi/add", "{}").await;
        let stamp: u64 = upstream.last().header("time-stamp").parse().unwrap();
        assert!((before..=now()).contains(&stamp), "{stamp}");
        // The next one is later by at least one millisecond.
        while now() <= stamp {
            tokio::task::yield_now().await;
        }
        before = stamp + 1;
    }
}

#[tokio::test]
async fn only_safe_headers_come_down() {
    use http::Response;
    use http_body_util::Full;
    let pki = Pki::new();
    let upstream = Upstream::scripted(&pki, |_| {
        let answer = Response::builder()
            .header("set-cookie", "session=1")
            .header("server", "vendor")
            .header("data-signature", "0123456789ABCDEF0123456789ABCDEF")
            .header("kybio-gateway-outcome", "forged")
            .header("location", "https://elsewhere/")
            .body(Full::new(crate::support::upstream::SUCCESS.into()))
            .unwrap();
        crate::support::upstream::Act::Answer(answer)
    })
    .await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    let answer = gateway.client(&pki).call("customerOpenApi/add", "{}").await;
    let mut names: Vec<_> = answer.headers.keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    let ours = [
        "cache-control",
        "content-length",
        "content-type",
        "date",
        "kybio-gateway-account",
        "kybio-gateway-attempts",
        "kybio-gateway-outcome",
        "kybio-gateway-request-id",
        "kybio-gateway-retryable",
    ];
    assert_eq!(names, ours);
    assert_eq!(answer.header("kybio-gateway-outcome"), "done");
}
