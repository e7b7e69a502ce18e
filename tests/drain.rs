//! An orderly end: readiness fails first, calls under way are answered, HTTP/1 callers are asked to leave, exit 0 in the drain time.

use crate::support::{Gateway, Pki, Setup, Upstream};

#[tokio::test]
async fn readiness_fails_first_and_serving_goes_on_for_the_drain_delay() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let setup = Setup::new(&pki, Some(upstream.address));
    let mut gateway = Gateway::start(setup, &["--set", "runtime.drain_delay=2s"]).await;
    assert_eq!(gateway.admin_get("/readyz").await, (200, "ok\n".to_owned()));
    let client = gateway.client(&pki);
    assert_eq!(
        client
            .call("customerOpenApi/add", "{}")
            .await
            .header("connection"),
        ""
    );
    gateway.signal("TERM");
    gateway
        .event(|event| event["message"] == "asked to end")
        .await;
    assert_eq!(
        gateway.admin_get("/readyz").await,
        (503, "draining\n".to_owned())
    );
    assert_eq!(gateway.admin_get("/livez").await.0, 200);
    // On a kept connection, and on a new one.
    for client in [&client, &gateway.client(&pki)] {
        let answer = client.call("customerOpenApi/add", "{}").await;
        assert_eq!(
            (answer.status.as_u16(), answer.header("connection")),
            (200, "close")
        );
    }
    assert_eq!(
        gateway
            .http2_client(&pki)
            .call("customerOpenApi/add", "{}")
            .await
            .status,
        200
    );
    gateway.signal("HUP");
    assert_eq!(gateway.ended().await.code(), Some(0));
    assert_eq!(upstream.seen().len(), 4);
}

#[tokio::test]
async fn calls_under_way_are_answered_and_the_exit_code_is_0() {
    let pki = Pki::new();
    let (upstream, gate) = Upstream::held(&pki).await;
    let mut gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    let calls: Vec<_> = [gateway.client(&pki), gateway.http2_client(&pki)]
        .into_iter()
        .map(|client| {
            tokio::spawn(async move { client.call("orderOpenApi/addOnLineOrder", "{}").await })
        })
        .collect();
    upstream.arrived(2).await;
    gateway.signal("INT");
    gateway
        .event(|event| event["message"] == "asked to end")
        .await;
    gate.add_permits(2);
    for call in calls {
        assert_eq!(call.await.unwrap().header("kybio-gateway-outcome"), "done");
    }
    assert_eq!(gateway.ended().await.code(), Some(0));
}

#[tokio::test]
async fn what_does_not_end_in_the_drain_time_is_cut_off_and_said() {
    let pki = Pki::new();
    let (upstream, _gate) = Upstream::held(&pki).await;
    let setup = Setup::new(&pki, Some(upstream.address));
    let mut gateway = Gateway::start(setup, &["--set", "runtime.drain_timeout=200ms"]).await;
    let client = gateway.client(&pki);
    let call = tokio::spawn(async move {
        client
            .send(crate::support::Client::request(
                "/openapi/v1/orderOpenApi/addOnLineOrder",
                &[("content-type", "application/json")],
                "{}",
            ))
            .await
    });
    upstream.arrived(1).await;
    gateway.signal("TERM");
    let cut = gateway.event(|event| event["calls"] == 1).await;
    assert_eq!(cut["level"], "ERROR");
    let event = gateway.event(|event| event["message"] == "request").await;
    assert_eq!(
        (&event["outcome"], &event["cut"]),
        (&"unknown".into(), &true.into()),
        "the record of what was cut tells the truth"
    );
    assert!(event["caller_gone"].is_null(), "{event}");
    assert_eq!(gateway.ended().await.code(), Some(1));
    assert!(call.await.unwrap().is_err());
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let pki = Pki::new();
    let (upstream, _gate) = Upstream::held(&pki).await;
    let setup = Setup::new(&pki, Some(upstream.address));
    let mut gateway = Gateway::start(
        setup,
        &[
            "--set",
            "runtime.drain_timeout=1h",
            "--set",
            "runtime.drain_delay=1h",
        ],
    )
    .await;
    let client = gateway.client(&pki);
    let call = tokio::spawn(async move { client.call("orderOpenApi/addOnLineOrder", "{}").await });
    upstream.arrived(1).await;
    gateway.signal("TERM");
    gateway
        .event(|event| event["message"] == "asked to end")
        .await;
    gateway.signal("TERM");
    assert_eq!(gateway.ended().await.code(), Some(1));
    call.abort();
}

#[tokio::test]
async fn a_signal_is_heard_from_the_first_moment_on() {
    let pki = Pki::new();
    for _ in 0..20 {
        let mut gateway = Setup::new(&pki, None).start().await;
        gateway.signal("TERM");
        assert_eq!(
            gateway.ended().await.code(),
            Some(0),
            "{:?}",
            gateway.printed()
        );
    }
}
