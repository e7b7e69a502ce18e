//! Services that were moved to the gateway and still sign are told from those that don't: their signature is checked here, counted, and goes
//! no further.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::gateway::{APP_ID, APP_KEY};
use crate::support::upstream::{Refusing, SUCCESS, signature};
use crate::support::{Answer, Gateway, Pki, Setup, Upstream};

const WRITE: &str = "customerOpenApi/add";

async fn counts(gateway: &Gateway, caller: &str) -> [f64; 3] {
    let mut counts = [0.0; 3];
    for (count, result) in counts.iter_mut().zip(["match", "mismatch", "absent"]) {
        let series =
            format!("kybio_gateway_caller_signatures_total{{caller={caller:?},result={result:?}}}");
        *count = gateway.metric(&series).await;
    }
    counts
}

/// What a caller can see of an answer, but for its id.
fn visible(answer: &Answer) -> (u16, String, String) {
    let mut headers = answer.headers.clone();
    headers.remove("kybio-gateway-request-id");
    headers.remove("date");
    (
        answer.status.as_u16(),
        format!("{headers:?}"),
        answer.text(),
    )
}

#[tokio::test]
async fn each_callers_own_signatures_are_checked_and_counted_and_go_no_further() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.account("other", "OTHER", "another-key");
    setup.orders.push_str("default_account = \"main\"\n");
    setup.more.push_str(
        "[callers.stock]\nidentities = [\"dns:stock.internal\"]\naccounts = [\"main\"]\noperations = [\"*\"]\n",
    );
    let gateway = setup.start().await;
    let own = format!("{{\"appId\":\"{APP_ID}\", \"a\":1.10}}");
    let padded = format!(" \r\n{own}\n");
    let others = "{\"appId\":\"OTHER\"}";
    let upper = signature(APP_KEY, own.as_bytes());
    let lower = upper.to_lowercase();
    let mut end = upper.clone();
    end.replace_range(31.., if end.ends_with('0') { "1" } else { "0" });
    let with = |value: &str| vec![value.to_owned()];
    // What it is, the signatures, the body, and which count they go into.
    let cases = [
        ("right", with(&upper), &*own, 0),
        ("in lower case", with(&lower), &own, 0),
        ("without appId", with(&signature(APP_KEY, b"{}")), "{}", 0),
        ("of an empty body", with(&signature(APP_KEY, b"")), "", 0),
        (
            "over the bytes as they were sent",
            with(&signature(APP_KEY, padded.as_bytes())),
            &padded,
            0,
        ),
        ("over other bytes than were sent", with(&upper), &padded, 1),
        ("of another body", with(&signature(APP_KEY, b"{}")), &own, 1),
        (
            "by another account's key",
            with(&signature("another-key", own.as_bytes())),
            &own,
            1,
        ),
        ("wrong at the end", with(&end), &own, 1),
        ("too short", with(&upper[..30]), &own, 1),
        ("too long", with(&format!("{upper}00")), &own, 1),
        ("no digits", with("not a signature"), &own, 1),
        ("empty", with(""), &own, 1),
        ("twice", [with(&upper), with(&upper)].concat(), &own, 1),
        ("absent", Vec::new(), &own, 2),
    ];
    let mut expected = [0.0; 3];
    for client in [gateway.client(&pki), gateway.http2_client(&pki)] {
        let plain = client.call(WRITE, own.clone()).await;
        expected[2] += 1.0;
        for (what, signatures, body, counted) in &cases {
            let headers: Vec<_> = signatures
                .iter()
                .map(|value| ("data-signature", &**value))
                .collect();
            let answer = client.call_with(WRITE, &headers, (*body).to_owned()).await;
            expected[*counted] += 1.0;
            assert_eq!(answer.status, 200, "{what}: {}", answer.text());
            // Neither the answer nor what goes up is any different.
            assert_eq!(visible(&answer), visible(&plain), "{what}");
            assert!(upstream.last().is_signed_with(APP_KEY), "{what}");
            let line = gateway
                .request_event(answer.header("kybio-gateway-request-id"))
                .await;
            let said = line.get("caller_signature").and_then(|said| said.as_str());
            let words = [Some("match"), Some("mismatch"), None];
            assert_eq!(said, words[*counted], "{what}: {line}");
            assert_eq!(counts(&gateway, "orders").await, expected, "{what}");
        }
    }
    // It's the account of the call that counts.
    let to = |value: &str| {
        let value = value.to_owned();
        let client = gateway.client(&pki);
        async move {
            let headers = [
                ("kybio-gateway-account", "other"),
                ("data-signature", &*value),
            ];
            assert_eq!(client.call_with(WRITE, &headers, others).await.status, 200);
        }
    };
    to(&signature("another-key", others.as_bytes())).await;
    to(&signature(APP_KEY, others.as_bytes())).await;
    expected[0] += 1.0;
    expected[1] += 1.0;
    assert_eq!(counts(&gateway, "orders").await, expected);
    assert_eq!(counts(&gateway, "stock").await, [0.0; 3]);
}

/// Nobody is told of what costs no call: a caller could try out any number of keys with it.
#[tokio::test]
async fn what_was_not_sent_is_not_counted() {
    let pki = Pki::new();
    let refusing = Arc::new(AtomicBool::new(false));
    let host = Refusing {
        refusing: Arc::clone(&refusing),
        answer: SUCCESS,
    };
    let upstream = Upstream::with(&pki, host).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.kybio.push_str("attempts_max = 1\n");
    let gateway = setup.start().await;
    let client = gateway.client(&pki);
    let mut told = Vec::new();
    let mut ask = async |operation: &str, body: &str, named: bool| {
        let signed = signature(APP_KEY, body.as_bytes());
        let mut headers = vec![("data-signature", &*signed)];
        if named {
            headers.push(("kybio-gateway-account", "main"));
        }
        let answer = client.call_with(operation, &headers, body.to_owned()).await;
        assert_eq!(answer.header("kybio-gateway-outcome"), "not-sent");
        assert!(!answer.text().contains(&signed));
        told.push(answer.header("kybio-gateway-request-id").to_owned());
    };
    ask("no/such", "{}", false).await;
    ask(WRITE, "not json", false).await;
    ask(WRITE, "{\"appId\":\"zzz\"}", true).await;
    refusing.store(true, Ordering::SeqCst);
    upstream.drop_connections().await;
    for _ in 0..15 {
        ask(WRITE, "{}", false).await;
    }
    for id in &told {
        let line = gateway.request_event(id).await;
        assert!(line.get("caller_signature").is_none(), "{line}");
    }
    assert_eq!(counts(&gateway, "orders").await, [0.0; 3]);
    assert!(upstream.seen().is_empty());
}

/// They're there before they count anything: nobody sees a series that begins at 1 as a change.
#[tokio::test]
async fn each_callers_counts_begin_at_zero_also_after_a_reload() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut gateway = Setup::reloaded_by_hand(&pki, &upstream).start().await;
    let zeros = async |gateway: &Gateway, caller: &str| {
        let text = gateway.metrics().await;
        ["match", "mismatch", "absent"].iter().all(|result| {
            text.contains(&format!(
                "kybio_gateway_caller_signatures_total{{caller={caller:?},result={result:?}}} 0\n"
            ))
        })
    };
    assert!(zeros(&gateway, "orders").await);
    assert!(!zeros(&gateway, "stock").await);
    gateway.setup.more.push_str(
        "[callers.stock]\nidentities = [\"dns:stock.internal\"]\naccounts = [\"main\"]\noperations = [\"*\"]\n",
    );
    gateway.setup.write();
    gateway.reload().await;
    assert!(zeros(&gateway, "stock").await);
}
