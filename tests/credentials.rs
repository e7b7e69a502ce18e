//! A key that KYBIO doesn't take is seen within one call, for its account alone, and the log says what to look at.

use serde_json::Value;

use crate::support::gateway::{APP_KEY, Setup};
use crate::support::stand_in::StandIn;
use crate::support::upstream::{Act, SUCCESS};
use crate::support::{Gateway, Pki, Upstream, tools};

const READ: &str = "ticketOpenApi/queryAllPayMethod";

const REFUSED: &str = "KYBIO doesn't take the account's key";

fn errors(account: &str) -> String {
    format!("kybio_gateway_account_credential_errors_total{{account=\"{account}\"}}")
}

async fn refused(gateway: &Gateway, mark: usize) -> Value {
    gateway
        .event_since(mark, |event| event["message"] == REFUSED)
        .await
}

/// At the stand-in host, which has the words that it's assumed to have.
#[tokio::test]
async fn a_wrong_key_is_seen_within_one_call() {
    let stand_in = StandIn::over_tls();
    let pki = Pki::new();
    let mut setup = Setup::new(&pki, Some(stand_in.address));
    let authority = stand_in.folder.path().join("ca.pem");
    std::fs::copy(authority, setup.path("upstream-ca.pem")).unwrap();
    // The right appId with another account's key, and an appId that isn't there.
    setup.account("swapped", "abcdefghijklmn", "another-accounts-key");
    setup.account("unknown", "NOBODY", APP_KEY);
    setup.orders.push_str("default_account = \"main\"\n");
    let gateway = setup.start().await;
    let client = gateway.client(&pki);
    for account in ["main", "swapped", "unknown"] {
        // It's there before anything is wrong, or nobody would see the first one as a change.
        let line = format!("{} 0\n", errors(account));
        assert!(gateway.metrics().await.contains(&line), "{account}");
    }
    for account in ["swapped", "unknown"] {
        let mark = gateway.mark();
        let to = [("kybio-gateway-account", account)];
        let answer = client.call_with(READ, &to, "{}").await;
        assert_eq!(answer.header("kybio-gateway-outcome"), "rejected");
        assert_eq!(gateway.metric_reaches(&errors(account), 1.0).await, 1.0);
        let event = refused(&gateway, mark).await;
        assert_eq!(event["level"], "WARN");
        assert_eq!(event["account"], account);
        assert_eq!(event["answers"], 1);
        let check = event["check"].as_str().unwrap();
        for word in ["another account's", "active", "line breaks", "app_id"] {
            assert!(check.contains(word), "{word}: {check}");
        }
        assert_eq!(event["fingerprint"].as_str().unwrap().len(), 6);
    }
    assert_eq!(
        client
            .call(READ, "{}")
            .await
            .header("kybio-gateway-outcome"),
        "done"
    );
    assert_eq!(gateway.metric(&errors("main")).await, 0.0);
}

/// The vendor's own words for it aren't known: an operator adds them once they are.
#[tokio::test]
async fn what_means_that_a_key_is_refused_can_be_configured() {
    let pki = Pki::new();
    let upstream = Upstream::scripted(&pki, |_| {
        Act::ok(r#"{"status":"error","messages":["no"],"errorCode":4711}"#)
    })
    .await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup
        .more
        .push_str("[answers.unsigned]\nmatch = [\"4711\"]\nclass = \"credential\"\n");
    let gateway = setup.start().await;
    gateway.client(&pki).call(READ, "{}").await;
    assert_eq!(gateway.metric_reaches(&errors("main"), 1.0).await, 1.0);
    refused(&gateway, 0).await;
}

/// A thousand refusals are counted, and one line a minute is written.
#[tokio::test]
async fn many_refusals_are_one_line() {
    let pki = Pki::new();
    let upstream = Upstream::scripted(&pki, |seen| {
        let first = seen.place.connection == 0 && seen.place.nth == 1;
        if seen.is_signed_with(APP_KEY) && first {
            Act::ok(SUCCESS)
        } else {
            Act::ok(r#"{"status":"error","messages":["签名不正确"],"errorCode":null}"#)
        }
    })
    .await;
    let gateway = Setup::reloaded_by_hand(&pki, &upstream).start().await;
    let client = gateway.client(&pki);
    assert_eq!(client.call(READ, "{}").await.status, 200);
    for _ in 0..50 {
        client.call(READ, "{}").await;
    }
    assert_eq!(gateway.metric_reaches(&errors("main"), 50.0).await, 50.0);
    let event = refused(&gateway, 0).await;
    let check = event["check"].as_str().unwrap();
    assert!(check.contains("took it before"), "{check}");
    let lines = || {
        let printed = gateway.printed();
        printed.iter().filter(|line| line.contains(REFUSED)).count()
    };
    assert_eq!(lines(), 1);
    // Another key is another story, told at once.
    tools::write(&gateway.setup.path("main.key"), "another-key", 0o600);
    gateway.reload().await;
    let mark = gateway.mark();
    client.call(READ, "{}").await;
    let event = refused(&gateway, mark).await;
    assert!(event["check"].as_str().unwrap().contains("active"));
}

/// An ordinary no says nothing of the key.
#[tokio::test]
async fn an_ordinary_rejection_is_no_credential_error() {
    let pki = Pki::new();
    let upstream = Upstream::scripted(&pki, |_| {
        Act::ok(
            r#"{"status":"error","messages":["toUserAppId: no such product"],"errorCode":5001}"#,
        )
    })
    .await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    gateway.client(&pki).call(READ, "{}").await;
    let answered = "kybio_gateway_account_answers_total{account=\"main\",error_code=\"5001\"}";
    gateway.metric_reaches(answered, 1.0).await;
    assert_eq!(gateway.metric(&errors("main")).await, 0.0);
    assert!(!gateway.printed().iter().any(|line| line.contains(REFUSED)));
}
