//! Promise U1: an orderly end. Readiness fails first, every request on a connection that was taken is answered, HTTP/1 callers are asked to
//! leave and HTTP/2 callers told to, exit 0 in the drain time.

use std::collections::BTreeSet;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::frames::Frames;
use crate::support::gateway::ORDERS;
use crate::support::load::{Shape, Tally};
use crate::support::upstream::Seen;
use crate::support::{Client, Gateway, Load, Pki, Setup, Upstream};

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
            .send(Client::request(
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

/// Those who have asked for nothing, or have been answered, lose nothing.
#[tokio::test]
async fn what_a_second_signal_cuts_off_is_counted() {
    let pki = Pki::new();
    for (uploading, code) in [(0, 0), (3, 1)] {
        let setup = Setup::new(&pki, None);
        let flags = ["--set", "runtime.drain_delay=1h"];
        let mut gateway = Gateway::start(setup, &flags).await;
        let client = gateway.client(&pki);
        let mut streams = Vec::new();
        for _ in 0..uploading {
            let mut stream = client.stream().await.unwrap();
            stream
                .write_all(b"POST /openapi/v1/customerOpenApi/add HTTP/1.1\r\nhost: gateway.test\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{")
                .await
                .unwrap();
            streams.push(stream);
        }
        let idle = client.stream().await.unwrap();
        gateway
            .metric_reaches("kybio_gateway_requests_active", f64::from(uploading))
            .await;
        gateway
            .metric_reaches(
                "kybio_gateway_downstream_connections",
                f64::from(uploading + 1),
            )
            .await;
        gateway.signal("TERM");
        gateway
            .event(|event| event["message"] == "asked to end")
            .await;
        gateway.signal("TERM");
        if uploading > 0 {
            gateway
                .event(|event| event["connections"] == uploading && event["calls"] == 0)
                .await;
        }
        assert_eq!(gateway.ended().await.code(), Some(code));
        drop((idle, streams));
    }
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

/// As many requests a second as the promise says, before, at and after the signal, until nobody listens any more.
#[tokio::test]
async fn a_signal_to_end_under_load_loses_no_request() {
    for workers in ["1", "3"] {
        let tally = ends_under_load(&format!("runtime.workers={workers}")).await;
        println!("{workers}: {tally}");
    }
}

async fn ends_under_load(workers: &str) -> Tally {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let setup = Setup::new(&pki, Some(upstream.address));
    let times = ["runtime.drain_delay=3s", "runtime.drain_timeout=20s"];
    let sets = ["--set", times[0], "--set", times[1], "--set", workers];
    let mut gateway = Gateway::start(setup, &sets).await;
    let orders = pki.caller(ORDERS);
    let mut load = Load::start(gateway.address, &pki, &orders, Shape::FULL);
    let http2 = Client::new(
        gateway.address,
        pki.client_config(Some(&orders), &["h2"], rustls::ALL_VERSIONS),
    );
    let mut idle = Frames::open(&http2).await;
    idle.ask(1, "customerOpenApi/queryByUid", "{}").await;
    idle.answer(1).await;
    load.goes_on(1_000).await;
    let before = load.so_far();
    gateway.signal("TERM");
    gateway
        .event(|event| event["message"] == "asked to end")
        .await;
    load.asks_to_leave_from_now();
    assert_eq!(gateway.admin_get("/readyz").await.0, 503);
    // Who has nothing to ask is told to leave at once, and does.
    assert!(!idle.leaves().await.is_empty());
    // Serving goes on, also for those who come only now.
    load.goes_on(50).await;
    let code = gateway.ended().await.code();
    let tally = load.ended().await;
    assert_eq!(code, Some(0), "{tally}");
    assert!(tally.failed.is_empty() && tally.raced == 0, "{tally}");
    assert_eq!(before.asked_to_leave, 0, "{before}");
    assert!(tally.asked_to_leave > 0, "{tally}");
    assert_eq!(tally.not_asked_to_leave, 0, "{tally}");
    let seen = upstream.seen();
    let numbers: BTreeSet<_> = seen.iter().map(Seen::text).collect();
    assert_eq!(numbers.len(), seen.len(), "none was sent twice");
    assert_eq!(
        seen.len(),
        tally.answered + 1,
        "and none without an answer, but for the read beside them"
    );
    tally
}

/// So many at once that the gateway can't have taken all of them when it's time to close the door: it is stopped while they come, and
/// finds them and the signal at the same moment.
#[tokio::test]
async fn connections_that_wait_to_be_taken_are_answered_too() {
    const CONNECTIONS: usize = 40;
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let orders = pki.caller(ORDERS);
    let configs = ["http/1.1", "h2"]
        .map(|alpn| pki.client_config(Some(&orders), &[alpn], rustls::ALL_VERSIONS));
    for workers in ["1", "3"] {
        let setup = Setup::new(&pki, Some(upstream.address));
        let sets = [
            &format!("runtime.workers={workers}"),
            "runtime.drain_timeout=20s",
        ];
        let mut gateway = Gateway::start(setup, &["--set", sets[0], "--set", sets[1]]).await;
        let before = upstream.seen().len();
        gateway.signal("STOP");
        let mut calls = Vec::new();
        for number in 0..CONNECTIONS {
            // The kernel has taken it, and nobody else.
            let stream = TcpStream::connect(gateway.address).await.unwrap();
            let client = Client::new(gateway.address, configs[number % 2].clone());
            calls.push(tokio::spawn(async move {
                client.goes_over(stream).await?;
                client
                    .send(Client::request(
                        "/openapi/v1/customerOpenApi/add",
                        &[("content-type", "application/json")],
                        "{}",
                    ))
                    .await
            }));
        }
        gateway.signal("TERM");
        gateway.signal("CONT");
        let mut lost = Vec::new();
        for call in calls {
            match call.await.unwrap() {
                Ok(answer) => assert_eq!(answer.status, 200, "{}", answer.text()),
                Err(failure) => lost.push(failure),
            }
        }
        assert!(
            lost.is_empty(),
            "{} of {CONNECTIONS} weren't answered with {workers} workers: {:?}",
            lost.len(),
            lost[0]
        );
        assert_eq!(gateway.ended().await.code(), Some(0));
        assert_eq!(upstream.seen().len(), before + CONNECTIONS);
    }
}

/// They wait because there are as many connections as there may be.
#[tokio::test]
async fn connections_that_wait_for_a_place_are_answered_too() {
    let pki = Pki::new();
    let (upstream, gate) = Upstream::held(&pki).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.connections_of_one(2);
    let sets = ["listener.connections_max=2", "runtime.drain_timeout=20s"];
    let mut gateway = Gateway::start(setup, &["--set", sets[0], "--set", sets[1]]).await;
    let call = |stream| {
        let client = gateway.client(&pki);
        tokio::spawn(async move {
            client.goes_over(stream).await.unwrap();
            client.call("customerOpenApi/add", "{}").await
        })
    };
    let mut calls = Vec::new();
    for _ in 0..2 {
        calls.push(call(TcpStream::connect(gateway.address).await.unwrap()));
    }
    upstream.arrived(2).await;
    for _ in 0..4 {
        calls.push(call(TcpStream::connect(gateway.address).await.unwrap()));
    }
    gateway.signal("TERM");
    gateway
        .event(|event| event["message"] == "asked to end")
        .await;
    gate.add_permits(6);
    for call in calls {
        assert_eq!(call.await.unwrap().header("kybio-gateway-outcome"), "done");
    }
    assert_eq!(gateway.ended().await.code(), Some(0));
}

/// Whatever stands in the files by then: a broken set, another key.
#[tokio::test]
async fn a_hang_up_during_the_end_is_harmless() {
    let pki = Pki::new();
    for broken in [true, false] {
        let (upstream, gate) = Upstream::held(&pki).await;
        let setup = Setup::new(&pki, Some(upstream.address));
        let times = ["runtime.drain_delay=1s", "runtime.drain_timeout=20s"];
        let mut gateway = Gateway::start(setup, &["--set", times[0], "--set", times[1]]).await;
        let clients = [gateway.client(&pki), gateway.http2_client(&pki)];
        let calls = clients.map(|client| {
            tokio::spawn(async move { client.call("orderOpenApi/addOnLineOrder", "{}").await })
        });
        upstream.arrived(2).await;
        gateway.signal("TERM");
        gateway
            .event(|event| event["message"] == "asked to end")
            .await;
        if broken {
            std::fs::write(gateway.setup.path("gateway.toml"), "garbage [[[").unwrap();
        } else {
            std::fs::write(gateway.setup.path("main.key"), "another-key").unwrap();
        }
        // Before the door is closed, and after.
        gateway.signal("HUP");
        assert_eq!(gateway.admin_get("/readyz").await.0, 503);
        while TcpStream::connect(gateway.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        gateway.signal("HUP");
        gate.add_permits(2);
        for call in calls {
            let answer = call.await.unwrap();
            assert_eq!(answer.header("kybio-gateway-outcome"), "done", "{broken}");
        }
        assert_eq!(gateway.ended().await.code(), Some(0), "{broken}");
    }
}
