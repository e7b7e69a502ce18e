//! Callers of every kind: HTTP/1.1 and HTTP/2, kept connections, large bodies.

use std::sync::Arc;

use crate::support::gateway::APP_KEY;
use crate::support::{Pki, Setup, Upstream};

#[tokio::test]
async fn http2_carries_many_calls_at_a_time() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    let client = Arc::new(gateway.http2_client(&pki));
    let calls = (0..60).map(|number| {
        let client = Arc::clone(&client);
        tokio::spawn(async move {
            client
                .call("customerOpenApi/queryByUid", format!("{{\"n\":{number}}}"))
                .await
        })
    });
    for call in calls.collect::<Vec<_>>() {
        assert_eq!(call.await.unwrap().status, 200);
    }
    assert!(
        upstream
            .seen()
            .iter()
            .all(|seen| seen.is_signed_with(APP_KEY))
    );
    assert_eq!(upstream.seen().len(), 60);
    assert_eq!(
        gateway
            .metric("kybio_gateway_downstream_connections_accepted_total")
            .await,
        1.0
    );
}

#[tokio::test]
async fn http1_connections_are_kept_and_large_bodies_pass() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    for client in [gateway.client(&pki), gateway.http2_client(&pki)] {
        for size in [1, 1_000, 100_000, 1_000_000] {
            let answer = client
                .call(
                    "customerOpenApi/add",
                    format!("{{\"a\":\"{}\"}}", "x".repeat(size)),
                )
                .await;
            assert_eq!(answer.status, 200, "{size}");
            assert!(upstream.last().is_signed_with(APP_KEY), "{size}");
        }
    }
    assert_eq!(
        gateway
            .metric("kybio_gateway_downstream_connections_accepted_total")
            .await,
        2.0
    );
}
