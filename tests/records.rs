//! One line for each request, found by the caller's own ids, and by the trace that it's part of; of what succeeds some lines may do. And what
//! the pages of health say.

use serde_json::Value;
use time::OffsetDateTime;

use crate::support::client::get;
use crate::support::gateway::Unread;
use crate::support::pki::Wanted;
use crate::support::upstream::{Act, SUCCESS};
use crate::support::{Gateway, Pki, Setup, Upstream, tools};

const READ: &str = "customerOpenApi/queryByUid";
const WRITE: &str = "customerOpenApi/add";

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

async fn line(gateway: &Gateway, answer: &crate::support::Answer) -> Value {
    let id = answer.header("kybio-gateway-request-id");
    gateway.request_event(id).await
}

#[tokio::test]
async fn a_line_is_found_by_the_callers_ids_and_the_host_is_told_a_trace_only_if_it_is_configured()
{
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::reloaded_by_hand(&pki, &upstream);
    setup.kybio.push_str("traceparent = false\n");
    let gateway = setup.start().await;
    let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
    let headers = [
        ("x-request-id", "order-12.3"),
        ("traceparent", &*parent),
        ("tracestate", "a=b"),
    ];
    for client in [gateway.client(&pki), gateway.http2_client(&pki)] {
        let answer = client.call_with(READ, &headers, "{}").await;
        let event = line(&gateway, &answer).await;
        assert_eq!(event["client_request_id"], "order-12.3", "{event}");
        assert_eq!(event["trace_id"], TRACE, "{event}");
        let seen = upstream.last();
        for name in ["x-request-id", "traceparent", "tracestate"] {
            assert!(!seen.headers.contains_key(name), "{name}");
        }
    }
    // Without one, a trace is begun: its id is the request's.
    let client = gateway.client(&pki);
    let answer = client
        .call_with(READ, &[("traceparent", "00-nonsense")], "{}")
        .await;
    let event = line(&gateway, &answer).await;
    let id = answer.header("kybio-gateway-request-id").replace('-', "");
    assert_eq!(event["trace_id"], *id, "{event}");
    assert!(event.get("client_request_id").is_none(), "{event}");
    // What is refused has its ids too.
    let answer = client.call_with("no/such", &headers, "{}").await;
    assert_eq!(line(&gateway, &answer).await["trace_id"], TRACE);

    tools::change(&gateway.setup.path("gateway.toml"), |text| {
        text.replace("traceparent = false", "traceparent = true")
    });
    gateway.reload().await;
    let mut spans = std::collections::BTreeSet::new();
    for _ in 0..2 {
        client.call_with(READ, &headers, "{}").await;
        let seen = upstream.last();
        let told = seen.header("traceparent");
        let fields: Vec<_> = told.split('-').collect();
        assert_eq!(
            (fields[0], fields[1], fields[3]),
            ("00", TRACE, "01"),
            "{told}"
        );
        spans.insert(fields[2].to_owned());
        assert!(!seen.headers.contains_key("x-request-id"));
    }
    assert!(
        spans.len() == 2 && !spans.contains("b7ad6b7169203331"),
        "{spans:?}"
    );
}

#[tokio::test]
async fn of_what_succeeds_some_have_a_line_and_of_all_else_each() {
    const CALLS: usize = 300;
    let pki = Pki::new();
    let upstream = Upstream::scripted(&pki, |seen| {
        if seen.target.ends_with("add") {
            Act::ok(r#"{"status":"error","messages":["no"],"errorCode":5004}"#)
        } else {
            Act::ok(SUCCESS)
        }
    })
    .await;
    let setup = Setup::new(&pki, Some(upstream.address));
    let gateway = Gateway::start(setup, &["--set", "log.done_one_in=10"]).await;
    let client = gateway.client(&pki);
    for _ in 0..CALLS {
        client.call(READ, "{}").await;
    }
    let answer = client.call(WRITE, "{}").await;
    line(&gateway, &answer).await;
    for _ in 0..20 {
        let answer = client.call(WRITE, "not json").await;
        line(&gateway, &answer).await;
    }
    let printed = gateway.printed();
    let done = printed
        .iter()
        .filter(|line| line.contains("\"outcome\":\"done\""));
    let done: Vec<_> = done.collect();
    // One in ten by chance: that these many or these few come is less likely than one in a million.
    assert!((5..80).contains(&done.len()), "{}", done.len());
    assert!(
        done.iter().all(|line| line.contains("\"one_in\":10")),
        "{done:?}"
    );
    let counted =
        "kybio_gateway_requests_total{operation=\"customerOpenApi/queryByUid\",outcome=\"done\"}";
    assert_eq!(gateway.metric(counted).await, CALLS as f64);
}

/// What a slow reader of the log has missed is counted.
#[tokio::test]
async fn lines_that_nobody_took_are_counted() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let setup = Setup::new(&pki, Some(upstream.address));
    let gateway = Unread::start(&setup, &pki);
    let dropped = async || {
        let (_, metrics) = get(gateway.admin, "/metrics").await;
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix("kybio_gateway_log_lines_dropped_total "));
        line.unwrap().parse::<usize>().unwrap()
    };
    assert_eq!(dropped().await, 0);
    let mut calls = 0;
    while dropped().await == 0 {
        for _ in 0..500 {
            assert_eq!(gateway.client.call(WRITE, "not json").await.status, 400);
        }
        calls += 500;
        assert!(calls <= 10_000, "2,000 lines wait, and a pipe holds 64 KiB");
    }
}

#[tokio::test]
async fn readiness_says_what_it_looks_at() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::reloaded_by_hand(&pki, &upstream);
    setup.account("bad", "BAD", "");
    let gateway = setup.start().await;
    let verbose = async || gateway.admin_get("/readyz?verbose").await;
    let (status, text) = verbose().await;
    assert_eq!(status, 200);
    for words in [
        "[+] not draining: ",
        "[+] callers' authorities: ends in ",
        "[+] accounts: 1 of 2 have a usable key\n",
        "[+] certificate: ends in ",
        "[+] configuration: what is written is in force\n",
        "\nready\n",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert_eq!(gateway.admin_get("/readyz").await, (200, "ok\n".to_owned()));

    // That a configuration was refused is no reason to take a gateway that serves away.
    tools::change(&gateway.setup.path("gateway.toml"), |text| {
        format!("{text}\nx = 1\n")
    });
    gateway.hang_up().await;
    let (status, text) = verbose().await;
    assert_eq!(status, 200);
    assert!(text.contains("what is written was refused"), "{text}");

    gateway.signal("TERM");
    gateway
        .event(|event| event["message"] == "asked to end")
        .await;
}

/// A gateway whose own certificate has ended can't be connected to, and once callers' authorities have, nobody is let in.
#[tokio::test]
async fn once_certificates_have_ended_it_is_not_ready() {
    let until = OffsetDateTime::now_utc() + time::Duration::seconds(3);
    let pki = Pki::new();
    let wanted = Wanted {
        dns: &["gateway.test"],
        until,
        usage: rcgen::ExtendedKeyUsagePurpose::ServerAuth,
        ..Wanted::default()
    };
    let own = Setup::new(&pki, None);
    let pair = pki.issue(&wanted);
    tools::write(&own.path("gateway.pem"), &pair.certificate, 0o644);
    tools::write(&own.path("gateway.key"), &pair.key, 0o600);
    let callers = Setup::new(&pki, None);
    let authority = Pki::self_signed(&Wanted {
        is_ca: true,
        ..wanted
    });
    tools::write(
        &callers.path("callers-ca.pem"),
        &authority.certificate,
        0o644,
    );
    let gateways = [
        (own.start().await, "certificate", "certificate"),
        (callers.start().await, "client_ca", "callers' authorities"),
    ];
    for (gateway, of, _) in &gateways {
        let series = format!("kybio_gateway_certificate_end_timestamp_seconds{{of={of:?}}}");
        assert_eq!(gateway.metric(&series).await, until.unix_timestamp() as f64);
        assert_eq!(gateway.admin_get("/readyz").await.0, 200, "{of}");
    }
    while OffsetDateTime::now_utc() <= until {
        tokio::task::yield_now().await;
    }
    for (gateway, _, check) in &gateways {
        let (status, text) = gateway.admin_get("/readyz?verbose=1").await;
        assert_eq!(status, 503, "{text}");
        assert!(text.contains(&format!("[-] {check}: ")), "{text}");
        assert!(text.ends_with("not ready\n"), "{text}");
        assert!(gateway.admin_get("/readyz").await.1.contains("ended"));
    }
}
