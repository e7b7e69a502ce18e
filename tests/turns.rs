//! How many calls are under way at a time, and who goes next: a caller's bulk job can't starve another's till, waiting is short and
//! bounded, and a call that's refused has cost nothing.

use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::support::upstream::{Act, SUCCESS};
use crate::support::{Answer, Client, Gateway, Pki, Setup, Upstream};

const READ: &str = "customerOpenApi/queryByUid";

const TILL: &str = "spiffe://shop.example/till";

/// With a second caller, `till`, and an account of its own.
async fn started(pki: &Pki, upstream: &Upstream, kybio: &str, orders: &str) -> Gateway {
    let mut setup = Setup::new(pki, Some(upstream.address));
    setup.kybio.push_str(kybio);
    setup.orders.push_str("default_account = \"main\"\n");
    setup.orders.push_str(orders);
    setup.account("other", "zyxwvutsrqponm", "anotherKey");
    setup.more.push_str(&format!(
        "[callers.till]\nidentities = [{TILL:?}]\naccounts = [\"other\"]\noperations = [\"*\"]\n"
    ));
    setup.start().await
}

fn spawn(client: &Arc<Client>, body: String) -> JoinHandle<Answer> {
    let client = Arc::clone(client);
    tokio::spawn(async move { client.call(READ, body).await })
}

/// Waits until so many calls wait for their turn.
async fn queued(gateway: &Gateway, count: f64) {
    let series = "kybio_gateway_upstream_queued{upstream=\"kybio\"}";
    while gateway.metric(series).await < count {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_callers_bulk_job_does_not_starve_anothers_till() {
    let pki = Pki::new();
    let (upstream, gate) = Upstream::held(&pki).await;
    let gateway = started(&pki, &upstream, "in_flight_max = 4\n", "").await;
    let bulk = Arc::new(gateway.http2_client(&pki));
    let jobs: Vec<_> = (0..40)
        .map(|number| spawn(&bulk, format!("{{\"bulk\":{number}}}")))
        .collect();
    upstream.arrived(4).await;
    queued(&gateway, 36.0).await;
    assert_eq!(
        gateway
            .metric("kybio_gateway_upstream_in_flight{upstream=\"kybio\"}")
            .await,
        4.0
    );
    let till = Arc::new(gateway.client_with(&pki, &pki.caller(TILL)));
    let sale = spawn(&till, "{\"till\":1}".to_owned());
    queued(&gateway, 37.0).await;
    // Two places come free, for forty that wait.
    gate.add_permits(2);
    upstream.arrived(6).await;
    assert!(
        upstream.seen()[4..6]
            .iter()
            .any(|seen| seen.text().contains("till")),
        "{:?}",
        upstream.seen()
    );
    gate.add_permits(100);
    assert_eq!(sale.await.unwrap().status, 200);
    for job in jobs {
        assert_eq!(job.await.unwrap().status, 200);
    }
    assert_eq!(upstream.seen().len(), 41);
    assert!(upstream.connections() <= 4);
}

#[tokio::test]
async fn each_limit_is_told_by_its_own_code_and_nothing_is_sent() {
    let pki = Pki::new();
    let (upstream, gate) = Upstream::held(&pki).await;
    let cases = [
        (
            "queue_max = 0\nin_flight_max = 1\n",
            "",
            503,
            "upstream-busy",
        ),
        ("queue_max = 0\n", "in_flight_max = 1\n", 429, "caller-busy"),
        (
            "queue_timeout = \"100ms\"\n",
            "in_flight_max = 1\n",
            429,
            "caller-busy",
        ),
    ];
    for (number, (kybio, orders, status, code)) in cases.into_iter().enumerate() {
        let gateway = started(&pki, &upstream, kybio, orders).await;
        let client = Arc::new(gateway.http2_client(&pki));
        let first = spawn(&client, "{}".to_owned());
        upstream.arrived(number + 1).await;
        let refused = client.call(READ, "{}").await;
        assert_eq!(
            refused.refusal(),
            (status, code.into(), "not-sent".into(), "yes".into())
        );
        assert_eq!(refused.header("retry-after"), "1");
        assert_eq!(refused.header("kybio-gateway-attempts"), "0");
        gate.add_permits(1);
        assert_eq!(first.await.unwrap().status, 200);
        assert_eq!(upstream.seen().len(), number + 1);
    }
    // The account's.
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.kybio.push_str("queue_max = 0\n");
    let gateway = Gateway::start(setup, &["--set", "accounts.main.in_flight_max=1"]).await;
    let client = Arc::new(gateway.http2_client(&pki));
    let first = spawn(&client, "{}".to_owned());
    upstream.arrived(4).await;
    let refused = client.call(READ, "{}").await;
    assert_eq!(
        refused.refusal(),
        (503, "account-busy".into(), "not-sent".into(), "yes".into())
    );
    gate.add_permits(1);
    assert_eq!(first.await.unwrap().status, 200);
}

#[tokio::test]
async fn who_leaves_the_queue_has_sent_nothing() {
    let pki = Pki::new();
    let (upstream, gate) = Upstream::held(&pki).await;
    let gateway = started(&pki, &upstream, "in_flight_max = 1\n", "").await;
    let first = spawn(&Arc::new(gateway.client(&pki)), "{}".to_owned());
    upstream.arrived(1).await;
    for client in [gateway.client(&pki), gateway.http2_client(&pki)] {
        let leaving = spawn(&Arc::new(client), "{\"left\":1}".to_owned());
        queued(&gateway, 1.0).await;
        leaving.abort();
        let _ = leaving.await;
        gateway
            .event(|event| event["caller_gone"] == true && event["outcome"] == "not-sent")
            .await;
    }
    // Its own time is up while it waits.
    let hurried = gateway.client(&pki);
    let answer = hurried
        .call_with(READ, &[("kybio-gateway-timeout-ms", "50")], "{}")
        .await;
    assert_eq!(
        answer.refusal(),
        (
            504,
            "caller-timeout".into(),
            "not-sent".into(),
            "yes".into()
        )
    );
    gate.add_permits(1);
    assert_eq!(first.await.unwrap().status, 200);
    assert_eq!(upstream.seen().len(), 1);
}

/// A caller that sends its body slowly holds nobody up.
#[tokio::test]
async fn a_place_is_taken_only_once_the_body_is_whole() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = started(&pki, &upstream, "in_flight_max = 1\nqueue_max = 0\n", "").await;
    let mut slow = gateway.client(&pki).stream().await.unwrap();
    slow.write_all(
        b"POST /openapi/v1/customerOpenApi/queryByUid HTTP/1.1\r\nhost: gateway.test\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{\"a\"",
    )
    .await
    .unwrap();
    while gateway.metric("kybio_gateway_requests_active").await < 1.0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(gateway.client(&pki).call(READ, "{}").await.status, 200);
}

/// What will be refused anyway doesn't wait for its turn first, and doesn't take one.
#[tokio::test]
async fn an_account_without_calls_does_not_wait_for_a_turn() {
    const USED_UP: &str =
        r#"{"status":"error","messages":["您已用完当日请求量"],"errorCode":null}"#;
    let pki = Pki::new();
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    let upstream = Upstream::scripted(&pki, move |seen| {
        if seen.text().contains("abcdefghijklmn") {
            return Act::ok(USED_UP);
        }
        Act::once_open(&held, SUCCESS)
    })
    .await;
    let gateway = started(
        &pki,
        &upstream,
        "in_flight_max = 1\nqueue_timeout = \"1h\"\n",
        "",
    )
    .await;
    let client = gateway.client(&pki);
    assert_eq!(
        client
            .call(READ, "{}")
            .await
            .header("kybio-gateway-outcome"),
        "rejected"
    );
    let till = Arc::new(gateway.client_with(&pki, &pki.caller(TILL)));
    let sale = spawn(&till, "{}".to_owned());
    upstream.arrived(2).await;
    // The only place is taken until the gate opens, which it does only after this.
    assert_eq!(
        client.call(READ, "{}").await.refusal().1,
        "quota-used-up",
        "at once"
    );
    gate.add_permits(1);
    assert_eq!(sale.await.unwrap().status, 200);
}

/// The caller's own time counts from its request's head, and so while it sends its body.
#[tokio::test]
async fn a_callers_own_time_may_end_before_its_body() {
    use tokio::io::AsyncReadExt;
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = started(&pki, &upstream, "", "").await;
    let mut stream = gateway.client(&pki).stream().await.unwrap();
    stream
        .write_all(b"POST /openapi/v1/customerOpenApi/queryByUid HTTP/1.1\r\nhost: gateway.test\r\nkybio-gateway-timeout-ms: 100\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{")
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 504")
            && answer.contains("\"caller-timeout\"")
            && answer.contains("\"not-sent\""),
        "{answer}"
    );
    assert!(upstream.seen().is_empty());
}
