//! What becomes of a call: outcomes when the upstream fails, deadlines, and connections that are kept and reused. Exactly one
//! attempt is made, whatever happens.

use std::sync::Arc;

use http::Response;
use http_body_util::Full;
use tokio::net::TcpListener;

use crate::support::upstream::{Act, SUCCESS};
use crate::support::{Gateway, Pki, Setup, Upstream};

async fn started(upstream: &Upstream, pki: &Pki, kybio: &str) -> Gateway {
    let mut setup = Setup::new(pki, Some(upstream.address));
    setup.kybio.push_str(kybio);
    setup.start().await
}

#[tokio::test]
async fn an_upstream_that_is_not_there_is_told_as_not_sent() {
    let pki = Pki::new();
    // An address that was free a moment ago, and that nobody listens on now.
    let address = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let gateway = Setup::new(&pki, Some(address)).start().await;
    let answer = gateway
        .client(&pki)
        .call("orderOpenApi/addOnLineOrder", "{}")
        .await;
    assert_eq!(
        answer.refusal(),
        (
            502,
            "upstream-unreachable".into(),
            "not-sent".into(),
            "yes".into()
        )
    );
    let event = gateway
        .request_event(answer.header("kybio-gateway-request-id"))
        .await;
    assert!(
        event["cause"].as_str().unwrap().contains("refused"),
        "{event}"
    );
}

#[tokio::test]
async fn an_upstream_whose_certificate_is_not_trusted_gets_nothing() {
    let (pki, other) = (Pki::new(), Pki::new());
    let upstream = Upstream::start(&other).await;
    let gateway = started(&upstream, &pki, "").await;
    let answer = gateway.client(&pki).call("customerOpenApi/add", "{}").await;
    assert_eq!(
        answer.refusal(),
        (
            502,
            "upstream-unreachable".into(),
            "not-sent".into(),
            "yes".into()
        )
    );
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn an_upstream_that_never_shakes_hands_is_given_up_as_not_sent() {
    let pki = Pki::new();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut setup = Setup::new(&pki, Some(silent.local_addr().unwrap()));
    setup.kybio.push_str("connect_timeout = \"100ms\"\n");
    let gateway = setup.start().await;
    let answer = gateway.client(&pki).call("customerOpenApi/add", "{}").await;
    assert_eq!(
        answer.refusal(),
        (
            504,
            "upstream-connect-timeout".into(),
            "not-sent".into(),
            "yes".into()
        )
    );
}

#[tokio::test]
async fn time_gone_after_sending_is_told_as_unknown_and_nothing_is_sent_again() {
    let pki = Pki::new();
    let upstream = Upstream::scripted(&pki, |_| Act::Hang).await;
    let gateway = started(
        &upstream,
        &pki,
        "attempt_timeout = \"200ms\"\ntotal_timeout = \"400ms\"\n",
    )
    .await;
    let client = gateway.client(&pki);
    let read = client.call("customerOpenApi/queryByUid", "{}").await;
    assert_eq!(
        read.refusal(),
        (
            504,
            "upstream-timeout".into(),
            "unknown".into(),
            "yes".into()
        )
    );
    let write = client.call("customerOpenApi/add", "{}").await;
    assert_eq!(
        write.refusal(),
        (
            504,
            "upstream-timeout".into(),
            "unknown".into(),
            "no".into()
        )
    );
    // The read had time for more than one attempt, the write was sent once.
    let writes = upstream.seen();
    let writes = writes.iter().filter(|seen| seen.target.ends_with("/add"));
    assert_eq!(writes.count(), 1);
    // A write's one attempt has all the time that is left, a read's its own.
    let waited = async |answer: &crate::support::Answer| {
        gateway
            .request_event(answer.header("kybio-gateway-request-id"))
            .await["attempt_ms"]
            .as_f64()
            .unwrap()
    };
    assert!(waited(&read).await < waited(&write).await);
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let pki = Pki::new();
    let elsewhere = Upstream::start(&pki).await;
    let target = format!("https://{}/", elsewhere.address);
    let upstream = Upstream::scripted(&pki, move |_| {
        Act::Answer(
            Response::builder()
                .status(307)
                .header("location", &target)
                .body(Full::default())
                .unwrap(),
        )
    })
    .await;
    let gateway = started(&upstream, &pki, "").await;
    let answer = gateway.client(&pki).call("customerOpenApi/add", "{}").await;
    assert_eq!(
        answer.refusal(),
        (502, "upstream-status".into(), "unknown".into(), "no".into())
    );
    assert_eq!(answer.json()["gateway"]["upstreamStatus"], 307);
    assert!(elsewhere.seen().is_empty());
}

#[tokio::test]
async fn connections_are_kept_and_reused_last_in_first_out() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = started(&upstream, &pki, "").await;
    let client = gateway.client(&pki);
    for _ in 0..20 {
        assert_eq!(
            client.call("customerOpenApi/queryByUid", "{}").await.status,
            200
        );
    }
    assert_eq!(upstream.connections(), 1);
    assert_eq!(
        gateway
            .metric("kybio_gateway_upstream_connections_reused_total{upstream=\"kybio\"}")
            .await,
        19.0
    );
}

#[tokio::test]
async fn a_connection_that_the_upstream_closed_meanwhile_is_not_used_again() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = started(&upstream, &pki, "").await;
    let client = gateway.client(&pki);
    for call in 0..10 {
        let answer = client.call("orderOpenApi/addOnLineOrder", "{}").await;
        assert_eq!(
            answer.header("kybio-gateway-outcome"),
            "done",
            "{call}: {}",
            answer.text()
        );
        upstream.drop_connections().await;
    }
    assert_eq!(upstream.seen().len(), 10);
}

#[tokio::test]
async fn a_reply_that_asks_to_close_is_honoured() {
    let pki = Pki::new();
    let upstream = Upstream::scripted(&pki, |_| {
        Act::Answer(
            Response::builder()
                .header("connection", "close")
                .body(Full::new(SUCCESS.into()))
                .unwrap(),
        )
    })
    .await;
    let gateway = started(&upstream, &pki, "").await;
    let client = gateway.client(&pki);
    for _ in 0..5 {
        assert_eq!(
            client
                .call("orderOpenApi/addOnLineOrder", "{}")
                .await
                .header("kybio-gateway-outcome"),
            "done"
        );
    }
    assert_eq!(upstream.connections(), 5);
}

#[tokio::test]
async fn idle_and_old_connections_are_closed() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = started(&upstream, &pki, "idle_timeout = \"50ms\"\n").await;
    assert_eq!(
        gateway
            .client(&pki)
            .call("customerOpenApi/queryByUid", "{}")
            .await
            .status,
        200
    );
    let open = "kybio_gateway_upstream_connections{upstream=\"kybio\"}";
    while gateway.metric(open).await > 0.0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_burst_opens_no_more_connections_than_allowed_and_loses_no_call() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    for workers in ["1", "3"] {
        let mut setup = Setup::new(&pki, Some(upstream.address));
        setup.kybio.push_str("connections_max = 4\n");
        let gateway =
            Gateway::start(setup, &["--set", &format!("runtime.workers={workers}")]).await;
        let before = upstream.seen().len();
        let mut clients = Vec::new();
        for _ in 0..6 {
            clients.push(Arc::new(gateway.http2_client(&pki)));
        }
        let calls = (0..120).map(|number| {
            let client = Arc::clone(&clients[number % clients.len()]);
            tokio::spawn(async move { client.call("customerOpenApi/queryByUid", "{}").await })
        });
        for call in calls.collect::<Vec<_>>() {
            let answer = call.await.unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        assert_eq!(upstream.seen().len(), before + 120);
        assert!(
            gateway
                .metric("kybio_gateway_upstream_connections{upstream=\"kybio\"}")
                .await
                <= 4.0
        );
    }
}

#[tokio::test]
async fn a_call_whose_caller_leaves_is_ended_logged_and_counted() {
    let pki = Pki::new();
    let upstream = Upstream::scripted(&pki, |_| Act::Hang).await;
    let gateway = started(&upstream, &pki, "total_timeout = \"700ms\"\n").await;
    for (number, client) in [gateway.client(&pki), gateway.http2_client(&pki)]
        .into_iter()
        .enumerate()
    {
        let leaving =
            tokio::spawn(async move { client.call("orderOpenApi/addOnLineOrder", "{}").await });
        upstream.arrived(number + 1).await;
        leaving.abort();
        let _ = leaving.await;
        let seen = |event: &serde_json::Value| {
            event["message"] == "request" && event["caller_gone"] == true
        };
        let event = gateway.event(seen).await;
        assert_eq!(
            (&event["outcome"], &event["attempt"]),
            (&"unknown".into(), &"timeout".into())
        );
    }
    let late = "kybio_gateway_late_verdicts_total{outcome=\"unknown\"}";
    while gateway.metric(late).await < 2.0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(upstream.seen().len(), 2, "each was sent once");
}

#[tokio::test]
async fn idempotency_keys_are_refused_until_they_are_honoured() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = started(&upstream, &pki, "").await;
    let answer = gateway
        .client(&pki)
        .call_with("customerOpenApi/add", &[("idempotency-key", "1")], "{}")
        .await;
    assert_eq!(
        answer.refusal(),
        (
            400,
            "idempotency-key".into(),
            "not-sent".into(),
            "no".into()
        )
    );
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn stalled_callers_are_closed_by_their_clocks() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.listener.push_str(
        "handshake_timeout = \"200ms\"\nheader_timeout = \"200ms\"\nidle_timeout = \"300ms\"\n",
    );
    let gateway = setup.start().await;
    let client = gateway.client(&pki);

    let mut silent = tokio::net::TcpStream::connect(gateway.address)
        .await
        .unwrap();
    assert_eq!(
        silent.read(&mut [0; 1]).await.unwrap_or(0),
        0,
        "no handshake"
    );
    gateway.event(|event| event["reason"] == "timeout").await;

    let mut idle = client.stream().await.unwrap();
    assert_eq!(idle.read(&mut [0; 1]).await.unwrap_or(0), 0, "no request");

    let mut slow = client.stream().await.unwrap();
    slow.write_all(b"POST /openapi/v1/customerOpenApi/add HTTP/1.1\r\nhost: gat")
        .await
        .unwrap();
    assert_eq!(slow.read(&mut [0; 1]).await.unwrap_or(0), 0, "half a head");
    for clock in ["idle", "head"] {
        assert_eq!(
            gateway
                .metric(&format!(
                    "kybio_gateway_downstream_timeouts_total{{clock=\"{clock}\"}}"
                ))
                .await,
            1.0,
            "{clock}"
        );
    }
}

/// Raw bytes on a connection with the certificate of `orders`, and all that comes back.
async fn raw(gateway: &Gateway, pki: &Pki, bytes: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = gateway.client(pki).stream().await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

/// On HTTP/1.0 nobody can tell whether there's a body: it would be thrown away, and an empty call made.
#[tokio::test]
async fn a_body_without_a_length_is_refused_on_http_1_0_and_there_is_none_on_http_1_1() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = started(&upstream, &pki, "").await;
    let head = |version: &str| {
        format!(
            "POST /openapi/v1/customerOpenApi/queryByUid HTTP/{version}\r\nhost: gateway.test\r\ncontent-type: application/json\r\n\r\n"
        )
    };
    let answer = raw(&gateway, &pki, &format!("{}{{\"a\":1}}", head("1.0"))).await;
    assert!(
        answer.starts_with("HTTP/1.0 411") && answer.contains("\"code\":\"length-required\""),
        "{answer}"
    );
    assert!(upstream.seen().is_empty());
    // RFC 9112 section 6.3: without a length there is no body, and what follows is another request, or none.
    let answer = raw(
        &gateway,
        &pki,
        &format!("{}{{\"a\":1}}\r\n\r\n", head("1.1")),
    )
    .await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("HTTP/1.1 400"),
        "{answer}"
    );
    assert_eq!(upstream.only().text(), "{\"appId\":\"abcdefghijklmn\"}");
}

#[tokio::test]
async fn malformed_requests_leave_a_trace() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = started(&upstream, &pki, "").await;
    let request = "POST /openapi/v1/customerOpenApi/add HTTP/1.1\r\nhost: gateway.test\r\ntransfer-encoding: xchunked\r\n\r\n{}";
    assert!(
        raw(&gateway, &pki, request)
            .await
            .starts_with("HTTP/1.1 400")
    );
    gateway
        .event(|event| event["message"] == "a malformed request was refused")
        .await;
    assert_eq!(
        gateway
            .metric("kybio_gateway_downstream_malformed_total")
            .await,
        1.0
    );
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn an_answer_that_is_being_taken_is_not_cut_by_the_idle_clock() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let pki = Pki::new();
    let large = format!(
        "{{\"status\":\"success\",\"data\":\"{}\"}}",
        "x".repeat(8 << 20)
    );
    let upstream = Upstream::scripted(&pki, move |_| Act::ok(large.clone())).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.listener.push_str("idle_timeout = \"300ms\"\n");
    let gateway = setup.start().await;
    let mut stream = gateway.client(&pki).stream().await.unwrap();
    stream.write_all(b"POST /openapi/v1/customerOpenApi/queryByUid HTTP/1.1\r\nhost: gateway.test\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    // A reader that takes some 6 MB a second: the whole takes longer than the idle time, and no piece of it does.
    let mut tick = tokio::time::interval(std::time::Duration::from_millis(10));
    let (mut taken, mut piece) = (0, vec![0; 64 * 1024]);
    while taken < 8 << 20 {
        tick.tick().await;
        let count = stream.read(&mut piece).await.unwrap();
        assert_ne!(count, 0, "cut after {taken} bytes");
        taken += count;
    }
}

#[tokio::test]
async fn an_http2_caller_that_takes_nothing_is_given_up_whatever_else_it_asks() {
    let pki = Pki::new();
    let large = format!(
        "{{\"status\":\"success\",\"data\":\"{}\"}}",
        "x".repeat(1 << 20)
    );
    let upstream = Upstream::scripted(&pki, move |_| Act::ok(large.clone())).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.listener.push_str("write_timeout = \"500ms\"\n");
    let gateway = setup.start().await;
    let stream = gateway.http2_client(&pki).stream().await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new())
            .initial_stream_window_size(1_024)
            .handshake::<_, Full<bytes::Bytes>>(hyper_util::rt::TokioIo::new(stream))
            .await
            .unwrap();
    let connection = tokio::spawn(connection);
    let request = |path: &str| {
        http::Request::post(format!("https://gateway.test{path}"))
            .body(Full::default())
            .unwrap()
    };
    // Its body is never read.
    let held = sender
        .send_request(request("/openapi/v1/customerOpenApi/queryByUid"))
        .await
        .unwrap();
    while !connection.is_finished() {
        // Cheap requests beside it don't count as taking it.
        let _ = sender.send_request(request("/nothing")).await;
    }
    drop(held);
    assert_eq!(
        gateway
            .metric("kybio_gateway_downstream_timeouts_total{clock=\"write\"}")
            .await,
        1.0
    );
}

/// HTTP/2 asks a caller to leave with a ping. One that never answers it isn't kept, whatever its age or its certificate say.
#[tokio::test]
async fn a_caller_that_does_not_want_to_leave_is_cut_off() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.listener.push_str(
        "connection_age_max = \"1s\"\nbody_timeout = \"100ms\"\nwrite_timeout = \"100ms\"\n",
    );
    setup.kybio.push_str("total_timeout = \"100ms\"\n");
    let gateway = setup.start().await;
    let mut stream = gateway.http2_client(&pki).stream().await.unwrap();
    // RFC 9113 section 3.4: the preface, and settings that change nothing.
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    let mut frames = Vec::new();
    let ended = tokio::time::timeout(
        crate::support::tools::PATIENCE,
        stream.read_to_end(&mut frames),
    )
    .await;
    assert!(ended.is_ok(), "{frames:?}");
}
