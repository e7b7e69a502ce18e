//! When the upstream is down: no retry storm (X4), calls fail fast and as `not-sent`, and it serves again within a second after it's
//! back, also when all traffic is writes (U7). Readiness is the gateway's own, not the upstream's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::upstream::{Act, Door, Knock, Place, SUCCESS, Script, Seen};
use crate::support::{Answer, Gateway, Pki, Setup, Upstream};

const READ: &str = "customerOpenApi/queryByUid";
const WRITE: &str = "orderOpenApi/addOnLineOrder";

const STATE: &str = "kybio_gateway_upstream_breaker_state{upstream=\"kybio\"}";

/// A host that can be switched off: it resets connections before TLS, and those that are open.
#[derive(Clone, Default)]
struct Switch {
    off: Arc<AtomicBool>,
    knocks: Arc<AtomicUsize>,
    /// Answers HTTP 502 while it's on.
    ill: Arc<AtomicBool>,
}

impl Script for Switch {
    fn door(&self, _: usize) -> Door {
        self.knocks.fetch_add(1, Ordering::SeqCst);
        if self.off.load(Ordering::SeqCst) {
            Door::Refuse
        } else {
            Door::Open
        }
    }

    fn act(&self, _: &Seen) -> Act {
        if self.ill.load(Ordering::SeqCst) {
            Act::status(502, "bad gateway")
        } else {
            Act::ok(SUCCESS)
        }
    }
}

impl Switch {
    async fn set_off(&self, upstream: &Upstream, off: bool) {
        self.off.store(off, Ordering::SeqCst);
        upstream.drop_connections().await;
    }
}

async fn started(pki: &Pki, kybio: &str) -> (Switch, Upstream, Gateway) {
    let switch = Switch::default();
    let upstream = Upstream::with(pki, switch.clone()).await;
    let mut setup = Setup::new(pki, Some(upstream.address));
    setup.kybio.push_str(kybio);
    (switch, upstream, setup.start().await)
}

fn outcome(answer: &Answer) -> (u16, &str) {
    (
        answer.status.as_u16(),
        answer.header("kybio-gateway-outcome"),
    )
}

/// U7: and meanwhile each write is told as not sent, most of them at once.
#[tokio::test]
async fn a_host_that_was_down_under_write_only_traffic_is_served_again_soon_after_it_is_back() {
    let pki = Pki::new();
    let (switch, upstream, gateway) = started(&pki, "").await;
    let client = gateway.client(&pki);
    assert_eq!(outcome(&client.call(WRITE, "{}").await), (200, "done"));
    switch.set_off(&upstream, true).await;
    let down = loop {
        let answer = client.call(WRITE, "{}").await;
        assert_eq!(answer.header("kybio-gateway-outcome"), "not-sent");
        if answer.json()["gateway"]["code"] == "upstream-down" {
            break answer;
        }
    };
    assert_eq!(
        down.refusal(),
        (503, "upstream-down".into(), "not-sent".into(), "yes".into())
    );
    assert_eq!(down.header("retry-after"), "1");
    assert_eq!(down.header("kybio-gateway-attempts"), "0");
    assert_eq!(gateway.metric(STATE).await, 2.0);
    assert_eq!(gateway.admin_get("/readyz").await.0, 200, "it is ready");
    // Who is woken by this reads why, also where requests aren't logged; and that it goes on.
    for message in [
        "the upstream is held to be down",
        "the upstream can't be reached",
    ] {
        gateway
            .event(|event| {
                event["level"] == "WARN"
                    && event["upstream"] == "kybio"
                    && event["message"].as_str().unwrap().starts_with(message)
                    && event["cause"].as_str().unwrap().contains("reset")
            })
            .await;
    }
    // It looks by itself, though nobody calls.
    let looked = switch.knocks.load(Ordering::SeqCst);
    while switch.knocks.load(Ordering::SeqCst) < looked + 3 {
        tokio::task::yield_now().await;
    }
    assert_eq!(upstream.seen().len(), 1, "to look costs no call");

    switch.set_off(&upstream, false).await;
    let back = Instant::now();
    while outcome(&client.call(WRITE, "{}").await) != (200, "done") {
        tokio::task::yield_now().await;
    }
    println!("served again {:?} after the host was back", back.elapsed());
    assert_eq!(gateway.metric(STATE).await, 0.0);
    gateway
        .event(|event| event["message"] == "the upstream is back")
        .await;
    assert_eq!(upstream.seen().len(), 2);
    assert_eq!(
        gateway
            .metric("kybio_gateway_upstream_breaker_opens_total{upstream=\"kybio\"}")
            .await,
        1.0
    );
}

/// The handshake succeeds, and each call is reset: one at a time is let through, and its failure closes the door again.
#[tokio::test]
async fn a_host_that_only_shakes_hands_gets_one_call_at_a_time() {
    let pki = Pki::new();
    let upstream = Upstream::scripted(&pki, |seen| {
        if seen.text().contains("\"well\"") {
            Act::ok(SUCCESS)
        } else {
            Act::Reset
        }
    })
    .await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.kybio.push_str("breaker_failures = 3\n");
    let gateway = setup.start().await;
    let client = gateway.client(&pki);
    for _ in 0..3 {
        assert_eq!(outcome(&client.call(WRITE, "{}").await), (502, "unknown"));
    }
    assert_eq!(outcome(&client.call(WRITE, "{}").await), (503, "not-sent"));
    let calls = async || {
        let mut answers = JoinSet::new();
        for _ in 0..20 {
            let client = gateway.client(&pki);
            answers.spawn(async move { client.call(WRITE, "{}").await });
        }
        let told = answers.join_all().await;
        told.iter()
            .filter(|answer| outcome(answer) == (502, "unknown"))
            .count()
    };
    // Of many that come while it's half open, one goes at most.
    for round in 0..3 {
        while gateway.metric(STATE).await != 1.0 {
            tokio::task::yield_now().await;
        }
        let before = upstream.seen().len();
        let sent = calls().await;
        // A probe may have half opened it again before the last of them came.
        assert!((1..=3).contains(&sent), "{round}: {sent}");
        assert_eq!(upstream.seen().len(), before + sent);
    }
    gateway
        .event(|event| {
            event["level"] == "WARN"
                && event["message"]
                    .as_str()
                    .unwrap()
                    .starts_with("the call that tried")
        })
        .await;
    while outcome(&client.call(WRITE, "{\"a\":\"well\"}").await) != (200, "done") {
        tokio::task::yield_now().await;
    }
    assert_eq!(gateway.metric(STATE).await, 0.0);
}

/// X4 from outside: all calls fail, by an answer that doesn't open the breaker, and retries stay below a fifth.
#[tokio::test]
async fn when_everything_fails_there_are_at_most_a_fifth_more_attempts() {
    let pki = Pki::new();
    let (switch, upstream, gateway) = started(&pki, "").await;
    switch.ill.store(true, Ordering::SeqCst);
    let clients: Vec<_> = (0..8)
        .map(|_| Arc::new(gateway.http2_client(&pki)))
        .collect();
    // Few calls: at most ten retries. Then many.
    for (calls, retries_max) in [(40, 10), (500, 100)] {
        let before = upstream.seen().len();
        let mut answers = JoinSet::new();
        for number in 0..calls {
            let client = Arc::clone(&clients[number % clients.len()]);
            answers.spawn(async move { client.call(READ, format!("{{\"n\":{number}}}")).await });
        }
        for answer in answers.join_all().await {
            assert_eq!(
                answer.refusal(),
                (
                    502,
                    "upstream-status".into(),
                    "unknown".into(),
                    "yes".into()
                )
            );
        }
        let arrived = upstream.seen().len() - before;
        println!("{calls} calls, {arrived} arrived");
        assert!(
            (calls..=calls + retries_max).contains(&arrived),
            "{calls} calls, {arrived} arrived"
        );
    }
    assert!(
        gateway
            .metric("kybio_gateway_retry_budget_refusals_total{upstream=\"kybio\"}")
            .await
            > 0.0
    );
    assert_eq!(gateway.metric(STATE).await, 0.0);
    // The budget is the upstream's: once it's well, calls don't need any.
    switch.ill.store(false, Ordering::SeqCst);
    for _ in 0..20 {
        assert_eq!(outcome(&clients[0].call(READ, "{}").await), (200, "done"));
    }
}

/// The same for a host that can't be reached at all: there the breaker ends it.
#[tokio::test]
async fn a_host_that_refuses_connections_is_left_alone_after_a_few() {
    let pki = Pki::new();
    let (switch, upstream, gateway) = started(&pki, "").await;
    switch.set_off(&upstream, true).await;
    let client = gateway.client(&pki);
    for _ in 0..100 {
        let answer = client.call(READ, "{}").await;
        assert_eq!(answer.header("kybio-gateway-outcome"), "not-sent");
        assert_eq!(answer.header("kybio-gateway-retryable"), "yes");
    }
    let attempts: f64 = gateway
        .metrics()
        .await
        .lines()
        .filter(|line| line.starts_with("kybio_gateway_attempts_total"))
        .map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap())
        .sum();
    assert!(attempts <= 20.0, "{attempts} attempts for 100 calls");
}

/// The first address swallows packets, the second answers: each has its share of the time.
#[tokio::test]
async fn an_address_that_is_dead_does_not_hide_the_next() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    // It takes connections in the kernel's queue and never shakes hands.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut setup = Setup::new(&pki, None);
    setup.kybio = format!(
        "resolve = [\"{}\", \"{}\"]\nconnect_timeout = \"600ms\"\n",
        silent.local_addr().unwrap(),
        upstream.address
    );
    let gateway = setup.start().await;
    let answer = gateway.client(&pki).call(WRITE, "{}").await;
    assert_eq!(outcome(&answer), (200, "done"));
    assert_eq!(answer.header("kybio-gateway-attempts"), "1");
    let took = gateway
        .request_event(answer.header("kybio-gateway-request-id"))
        .await;
    assert!(took["attempt_ms"].as_f64().unwrap() >= 300.0, "{took}");
}

/// How far a host of the next tests has got.
#[derive(Clone)]
struct Staged {
    refusing: Arc<AtomicBool>,
    hanging: Arc<AtomicBool>,
    gated: Arc<AtomicBool>,
    /// Lets those go that came while it was gated.
    gate: Arc<Semaphore>,
    /// Connections that were accepted before this number have lost their state.
    lost_below: Arc<AtomicUsize>,
}

impl Default for Staged {
    fn default() -> Self {
        Self {
            refusing: Arc::default(),
            hanging: Arc::default(),
            gated: Arc::default(),
            gate: Arc::new(Semaphore::new(0)),
            lost_below: Arc::default(),
        }
    }
}

impl Script for Staged {
    fn door(&self, _: usize) -> Door {
        if self.refusing.load(Ordering::SeqCst) {
            Door::Refuse
        } else {
            Door::Open
        }
    }

    fn knock(&self, place: Place, _: &[u8]) -> Knock {
        if place.connection < self.lost_below.load(Ordering::SeqCst) {
            Knock::Reset
        } else {
            Knock::Read
        }
    }

    fn act(&self, _: &Seen) -> Act {
        if self.hanging.load(Ordering::SeqCst) {
            Act::Hang
        } else if self.gated.load(Ordering::SeqCst) {
            Act::once_open(&self.gate, SUCCESS)
        } else {
            Act::ok(SUCCESS)
        }
    }
}

/// Its handshake works before its application does: the call that tries it hangs, and mustn't keep others waiting until its own end.
#[tokio::test]
async fn a_trial_that_hangs_does_not_keep_a_host_down_that_has_recovered() {
    let pki = Pki::new();
    let stage = Staged::default();
    let upstream = Upstream::with(&pki, stage.clone()).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    // Nor does it keep the only place.
    setup
        .kybio
        .push_str("breaker_failures = 3\nin_flight_max = 1\n");
    let gateway = setup.start().await;
    let client = gateway.client(&pki);
    stage.refusing.store(true, Ordering::SeqCst);
    while client.call(WRITE, "{}").await.json()["gateway"]["code"] != "upstream-down" {}
    stage.hanging.store(true, Ordering::SeqCst);
    stage.refusing.store(false, Ordering::SeqCst);
    let trial = tokio::spawn({
        let client = gateway.http2_client(&pki);
        async move {
            loop {
                let answer = client.call(WRITE, "{}").await;
                if answer.status != 503 {
                    return answer;
                }
                tokio::task::yield_now().await;
            }
        }
    });
    upstream.arrived(1).await;
    stage.hanging.store(false, Ordering::SeqCst);
    while outcome(&client.call(WRITE, "{}").await) != (200, "done") {
        tokio::task::yield_now().await;
    }
    assert!(!trial.is_finished(), "it has all of its forty-five seconds");
    assert_eq!(gateway.metric(STATE).await, 0.0);
    trial.abort();
}

/// As when a load balancer has failed over: all kept connections are dead, and none shows it before it's used. New ones work.
#[tokio::test]
async fn after_a_fall_no_call_goes_on_a_connection_from_before_it() {
    let pki = Pki::new();
    let stage = Staged::default();
    let upstream = Upstream::with(&pki, stage.clone()).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.kybio.push_str("breaker_failures = 3\n");
    let gateway = setup.start().await;
    // Twelve warm connections.
    let client = Arc::new(gateway.http2_client(&pki));
    stage.gated.store(true, Ordering::SeqCst);
    let mut warm = JoinSet::new();
    for _ in 0..12 {
        let client = Arc::clone(&client);
        warm.spawn(async move { client.call(READ, "{}").await });
    }
    upstream.arrived(12).await;
    stage.gated.store(false, Ordering::SeqCst);
    stage.gate.add_permits(12);
    for answer in warm.join_all().await {
        assert_eq!(outcome(&answer), (200, "done"), "{}", answer.text());
    }
    assert_eq!(upstream.connections(), 12);
    let before = upstream.seen().len();
    let connections = upstream
        .seen()
        .iter()
        .map(|seen| seen.place.connection)
        .max();
    stage
        .lost_below
        .store(connections.unwrap() + 1, Ordering::SeqCst);
    let (mut unknown, mut answers) = (0, 0);
    loop {
        let answer = client.call(WRITE, "{}").await;
        answers += 1;
        match outcome(&answer) {
            (200, "done") => break,
            (502, "unknown") => unknown += 1,
            (503, "not-sent") => tokio::task::yield_now().await,
            other => panic!("{other:?}"),
        }
    }
    assert!(unknown <= 3, "{unknown} of {answers}");
    assert_eq!(upstream.seen().len(), before + 1);
}

/// X4, where all calls hang and fail long after they were sent: they don't buy retries for a time in which nobody calls.
#[tokio::test]
async fn calls_of_long_ago_buy_no_retries() {
    const CALLS: usize = 150;
    let pki = Pki::new();
    let upstream = Upstream::scripted(&pki, |_| Act::Hang).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.kybio.push_str(
        "attempt_timeout = \"2s\"\ntotal_timeout = \"7s\"\nconnections_max = 200\nbreaker_failures = 10000\nbreaker_volume = 1000000\n",
    );
    setup.orders.push_str("in_flight_max = 200\n");
    let flags = ["--set", "accounts.main.in_flight_max=200"];
    let gateway = Gateway::start(setup, &flags).await;
    let client = Arc::new(gateway.http2_client(&pki));
    let mut answers = JoinSet::new();
    for number in 0..CALLS {
        let client = Arc::clone(&client);
        answers.spawn(async move { client.call(READ, format!("{{\"n\":{number}}}")).await });
    }
    for answer in answers.join_all().await {
        assert_eq!(outcome(&answer), (504, "unknown"), "{}", answer.text());
    }
    let arrived = upstream.seen().len();
    assert!(arrived <= CALLS + 10, "{arrived} arrived");
}

/// Longer than the total time of the next test.
const LATE: Duration = Duration::from_millis(1_100);

/// Behind a short limit most calls have little time left when their turn comes. That's no upload of theirs: the host hangs.
#[tokio::test]
async fn a_host_that_hangs_is_found_out_behind_a_short_limit_too() {
    let pki = Pki::new();
    let upstream = Upstream::scripted(&pki, |_| Act::Hang).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup
        .kybio
        .push_str("total_timeout = \"1s\"\nin_flight_max = 2\n");
    let gateway = setup.start().await;
    let mut callers = JoinSet::new();
    for _ in 0..16 {
        let client = gateway.client(&pki);
        callers.spawn(async move {
            while client.call(WRITE, "{}").await.json()["gateway"]["code"] != "upstream-down" {}
        });
    }
    // Until each has been told that it's down.
    callers.join_all().await;
    assert_eq!(
        gateway
            .metric("kybio_gateway_upstream_breaker_opens_total{upstream=\"kybio\"}")
            .await,
        1.0
    );
}

/// The time that a request has is gone before its body is there: that says nothing of the host.
#[tokio::test]
async fn slow_uploads_are_refused_here_and_open_no_breaker() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let pki = Pki::new();
    let (_, upstream, gateway) = started(&pki, "total_timeout = \"1s\"\n").await;
    let mut slow = JoinSet::new();
    for _ in 0..12 {
        let client = gateway.client(&pki);
        slow.spawn(async move {
            let mut stream = client.stream().await.unwrap();
            stream
                .write_all(b"POST /openapi/v1/orderOpenApi/addOnLineOrder HTTP/1.1\r\nhost: gateway.test\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{")
                .await
                .unwrap();
            // Its time is up when the gateway's clock says so, and nothing tells of that.
            tokio::time::sleep_until(Instant::now() + LATE).await;
            stream.write_all(b"}").await.unwrap();
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            String::from_utf8(answer).unwrap()
        });
    }
    for answer in slow.join_all().await {
        assert!(
            answer.starts_with("HTTP/1.1 504") && answer.contains("\"no-time-left\""),
            "{answer}"
        );
    }
    assert!(upstream.seen().is_empty());
    assert_eq!(gateway.metric(STATE).await, 0.0);
    assert_eq!(
        outcome(&gateway.client(&pki).call(WRITE, "{}").await),
        (200, "done")
    );
}
