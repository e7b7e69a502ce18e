//! X4, second half: once KYBIO has said that an account's calls for today are used up, its calls are refused here until the vendor's
//! midnight, but for a rare trial. And what else KYBIO's error answers may mean: the operator says it, not the program.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::upstream::{Act, Refusing, SUCCESS};
use crate::support::{Answer, Gateway, Pki, Setup, Upstream};

const READ: &str = "customerOpenApi/queryByUid";
const WRITE: &str = "orderOpenApi/addOnLineOrder";

/// As the contract has it.
const USED_UP: &str = r#"{"status":"error","messages":["您已用完当日请求量"],"errorCode":null}"#;

const GAUGE: &str = "kybio_gateway_account_quota_used_up{account=\"main\"}";

#[expect(
    clippy::disallowed_methods,
    reason = "the vendor's midnight goes by the real time"
)]
fn seconds_of_utc_day() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_secs() % 86_400
}

/// An offset at which it is some hours before midnight now.
fn offset_far_from_midnight() -> (i64, String) {
    let hours = 12 - i64::try_from(seconds_of_utc_day() / 3_600).unwrap();
    let sign = if hours < 0 { '-' } else { '+' };
    (hours, format!("{sign}{:02}:00", hours.abs()))
}

/// Two accounts. The host says that `main` has no calls left, for as long as the flag is up.
async fn started(
    pki: &Pki,
    kybio: &str,
    more: &str,
    words: &'static str,
) -> (Upstream, Arc<AtomicBool>, Gateway) {
    let used_up = Arc::new(AtomicBool::new(true));
    let flag = Arc::clone(&used_up);
    let upstream = Upstream::scripted(pki, move |seen| {
        let main = seen.text().contains("\"abcdefghijklmn\"");
        if main && flag.load(Ordering::SeqCst) {
            Act::ok(words)
        } else {
            Act::ok(SUCCESS)
        }
    })
    .await;
    let mut setup = Setup::new(pki, Some(upstream.address));
    setup.kybio.push_str(kybio);
    setup.account("other", "zyxwvutsrqponm", "anotherKey");
    setup.orders.push_str("default_account = \"main\"\n");
    setup.more.push_str(more);
    let gateway = setup.start().await;
    (upstream, used_up, gateway)
}

fn told(answer: &Answer) -> (u16, &str) {
    (
        answer.status.as_u16(),
        answer.header("kybio-gateway-outcome"),
    )
}

#[tokio::test]
async fn an_account_whose_calls_are_used_up_is_refused_until_the_vendors_midnight() {
    let pki = Pki::new();
    let (hours, offset) = offset_far_from_midnight();
    let kybio = format!("utc_offset = \"{offset}\"\n");
    let (upstream, _, gateway) = started(&pki, &kybio, "", USED_UP).await;
    let client = gateway.client(&pki);
    let first = client.call(READ, "{}").await;
    assert_eq!(told(&first), (200, "rejected"));
    assert_eq!(first.text(), USED_UP, "KYBIO's own bytes");
    for operation in [READ, WRITE] {
        let refused = client.call(operation, "{}").await;
        assert_eq!(
            refused.refusal(),
            (429, "quota-used-up".into(), "not-sent".into(), "yes".into())
        );
        let after: i64 = refused.header("retry-after").parse().unwrap();
        let local =
            (i64::try_from(seconds_of_utc_day()).unwrap() + hours * 3_600).rem_euclid(86_400);
        assert!(
            (86_400 - local - after).abs() <= 5,
            "{after} seconds from {local}"
        );
    }
    assert_eq!(upstream.seen().len(), 1, "the others cost no call");
    let other = [("kybio-gateway-account", "other")];
    assert_eq!(
        told(&client.call_with(READ, &other, "{}").await),
        (200, "done")
    );
    assert_eq!(gateway.metric(GAUGE).await, 1.0);
    gateway
        .event(|event| event["level"] == "WARN" && event["account"] == "main")
        .await;
    // It isn't forgotten at a reload.
    gateway.signal("HUP");
    gateway
        .event(|event| event["message"] == "configuration unchanged")
        .await;
    assert_eq!(told(&client.call(READ, "{}").await), (429, "not-sent"));
}

#[tokio::test]
async fn one_trial_each_interval_finds_out_that_there_are_calls_again() {
    let pki = Pki::new();
    let kybio = format!(
        "utc_offset = \"{}\"\nquota_trial_interval = \"1s\"\n",
        offset_far_from_midnight().1
    );
    let (upstream, used_up, gateway) = started(&pki, &kybio, "", USED_UP).await;
    let client = gateway.client(&pki);
    assert_eq!(told(&client.call(WRITE, "{}").await), (200, "rejected"));
    // Refused until the next trial, and after that one again.
    for trial in 2..4 {
        while told(&client.call(READ, "{}").await) == (429, "not-sent") {
            tokio::task::yield_now().await;
        }
        assert_eq!(upstream.seen().len(), trial);
        assert_eq!(told(&client.call(READ, "{}").await), (429, "not-sent"));
    }
    used_up.store(false, Ordering::SeqCst);
    while told(&client.call(READ, "{}").await) != (200, "done") {
        tokio::task::yield_now().await;
    }
    for _ in 0..5 {
        assert_eq!(told(&client.call(WRITE, "{}").await), (200, "done"));
    }
    assert_eq!(gateway.metric(GAUGE).await, 0.0);
}

/// The vendor's words may change: what they mean is configured.
#[tokio::test]
async fn which_answers_mean_that_calls_are_used_up_is_configuration() {
    const OTHER: &str = r#"{"status":"error","messages":["no more today, sorry"],"errorCode":77}"#;
    let pki = Pki::new();
    for (class, expected) in [("quota-exhausted", 1), ("rejected", 3)] {
        for words in ["no more today", "77"] {
            let more = format!("[answers.mine]\nmatch = [\"{words}\"]\nclass = \"{class}\"\n");
            let (upstream, _, gateway) = started(&pki, "", &more, OTHER).await;
            let client = gateway.client(&pki);
            for _ in 0..3 {
                client.call(WRITE, "{}").await;
            }
            assert_eq!(upstream.seen().len(), expected, "{class} {words}");
        }
    }
    // And the operator's word counts before what ships.
    let more = "[answers.mine]\nmatch = [\"您已用完\"]\nclass = \"rejected\"\n";
    let (upstream, _, gateway) = started(&pki, "", more, USED_UP).await;
    let client = gateway.client(&pki);
    for _ in 0..3 {
        assert_eq!(told(&client.call(WRITE, "{}").await), (200, "rejected"));
    }
    assert_eq!(upstream.seen().len(), 3);
}

#[tokio::test]
async fn a_transient_error_answer_repeats_a_read_and_no_write() {
    const BUSY: &str = r#"{"status":"error","messages":["系统繁忙，请稍后再试"],"errorCode":9001}"#;
    let pki = Pki::new();
    let more = "[answers.busy]\nmatch = [\"请稍后再试\"]\nclass = \"transient\"\n";
    // The first answer to each body is that the host is busy.
    let seen_bodies = std::sync::Mutex::new(BTreeSet::new());
    let upstream = Upstream::scripted(&pki, move |seen| {
        if seen_bodies.lock().unwrap().insert(seen.text()) {
            Act::ok(BUSY)
        } else {
            Act::ok(SUCCESS)
        }
    })
    .await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.more.push_str(more);
    let gateway = setup.start().await;
    let client = gateway.client(&pki);
    let read = client.call(READ, "{\"a\":1}").await;
    assert_eq!(told(&read), (200, "done"));
    assert_eq!(read.header("kybio-gateway-attempts"), "2");
    let write = client.call(WRITE, "{\"a\":2}").await;
    assert_eq!(
        (told(&write), write.text()),
        ((200, "rejected"), BUSY.into())
    );
    assert_eq!(write.header("kybio-gateway-attempts"), "1");
    assert_eq!(write.header("kybio-gateway-retryable"), "no");
    assert_eq!(upstream.seen().len(), 3);

    // Without that table it's an answer like any other.
    let upstream = Upstream::scripted(&pki, |_| Act::ok(BUSY)).await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    let read = gateway.client(&pki).call(READ, "{}").await;
    assert_eq!((told(&read), read.text()), ((200, "rejected"), BUSY.into()));
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test]
async fn a_read_that_stays_transient_ends_with_kybios_own_answer() {
    const BUSY: &str = r#"{"status":"error","messages":["busy"],"errorCode":9001}"#;
    let pki = Pki::new();
    let upstream = Upstream::scripted(&pki, |_| Act::ok(BUSY)).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup
        .more
        .push_str("[answers.busy]\nmatch = [\"9001\"]\nclass = \"transient\"\n");
    let gateway = setup.start().await;
    let read = gateway.client(&pki).call(READ, "{}").await;
    assert_eq!((told(&read), read.text()), ((200, "rejected"), BUSY.into()));
    assert_eq!(read.header("kybio-gateway-attempts"), "3");
    assert_eq!(read.header("kybio-gateway-retryable"), "yes");
    let counted = "kybio_gateway_account_answers_total{account=\"main\",error_code=\"9001\"}";
    assert_eq!(
        gateway.metric(counted).await,
        3.0,
        "each of them cost a call"
    );
}

/// A trial that didn't reach the host found out nothing: the next call is it.
#[tokio::test]
async fn a_trial_that_was_not_sent_costs_no_interval() {
    let pki = Pki::new();
    let refusing = Arc::new(AtomicBool::new(false));
    let upstream = {
        let host = Refusing {
            refusing: Arc::clone(&refusing),
            answer: USED_UP,
        };
        Upstream::with(&pki, host).await
    };
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.kybio = format!(
        "{}utc_offset = \"{}\"\nquota_trial_interval = \"2s\"\n",
        setup.kybio,
        offset_far_from_midnight().1
    );
    let gateway = setup.start().await;
    let client = gateway.client(&pki);
    assert_eq!(told(&client.call(WRITE, "{}").await), (200, "rejected"));
    refusing.store(true, Ordering::SeqCst);
    upstream.drop_connections().await;
    while told(&client.call(WRITE, "{}").await) == (429, "not-sent") {
        tokio::task::yield_now().await;
    }
    refusing.store(false, Ordering::SeqCst);
    assert_eq!(told(&client.call(WRITE, "{}").await), (200, "rejected"));
    assert_eq!(told(&client.call(WRITE, "{}").await), (429, "not-sent"));
    assert_eq!(upstream.seen().len(), 2);
}

/// What looks like a word on the key is a guess: it says that calls are counted no more, as any other answer does.
#[tokio::test]
async fn a_trial_that_is_answered_with_a_word_on_signatures_finds_out_that_there_are_calls() {
    const OTHER: &str =
        r#"{"status":"error","messages":["the customer's signature image is too large"]}"#;
    let pki = Pki::new();
    let offset = offset_far_from_midnight().1;
    let answered = Arc::new(AtomicBool::new(false));
    let used_up = Arc::clone(&answered);
    let upstream = Upstream::scripted(&pki, move |_| {
        if used_up.swap(true, Ordering::SeqCst) {
            Act::ok(OTHER)
        } else {
            Act::ok(USED_UP)
        }
    })
    .await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.kybio = format!("utc_offset = \"{offset}\"\nquota_trial_interval = \"1s\"\n");
    let gateway = setup.start().await;
    let client = gateway.client(&pki);
    assert_eq!(told(&client.call(WRITE, "{}").await), (200, "rejected"));
    while told(&client.call(READ, "{}").await) == (429, "not-sent") {
        tokio::task::yield_now().await;
    }
    assert_eq!(told(&client.call(WRITE, "{}").await), (200, "rejected"));
    assert_eq!(gateway.metric(GAUGE).await, 0.0);
}
