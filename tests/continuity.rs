//! Promise U2, second half: what is under way at a reload ends by what it began with, and what is remembered outlives it: breakers,
//! used-up quotas, turns, connections. But nobody keeps by it what has been taken away.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::gateway::{APP_ID, APP_KEY, ORDERS};
use crate::support::pki::Wanted;
use crate::support::upstream::{Act, Door, SUCCESS, Script, Seen};
use crate::support::{Answer, Client, Gateway, Pki, Setup, Upstream, tools};

const READ: &str = "customerOpenApi/queryByUid";
const WRITE: &str = "customerOpenApi/add";

fn told(answer: &Answer) -> (u16, &str) {
    (
        answer.status.as_u16(),
        answer.header("kybio-gateway-outcome"),
    )
}

/// A call is made with what held when it came: its key, its account, its caller, its host; also its second attempt.
#[tokio::test]
async fn what_is_in_flight_finishes_on_what_it_began_with() {
    let pki = Pki::new();
    let (upstream, gate) = Upstream::held(&pki).await;
    let mut setup = Setup::reloaded_by_hand(&pki, &upstream);
    setup.include_folder("more.d");
    setup.orders.push_str("default_account = \"main\"\n");
    let name = setup.path("more.d/tills.toml");
    fs::write(
        &name,
        "[callers.tills]\nidentities = [\"dns:tills.internal\"]\naccounts = [\"other\"]\noperations = [\"*\"]\n\
         [accounts.other]\nupstream = \"kybio\"\napp_id = \"other\"\napp_key_file = \"../other.key\"\n",
    )
    .unwrap();
    tools::write(&setup.path("other.key"), "other-key", 0o600);
    let gateway = setup.start().await;
    let tills = pki.issue(&Wanted {
        dns: &["tills.internal"],
        ..Wanted::default()
    });
    let client = |pair, alpn| {
        Client::new(
            gateway.address,
            pki.client_config(Some(pair), &[alpn], rustls::ALL_VERSIONS),
        )
    };
    let orders = pki.caller(ORDERS);
    let calls: Vec<_> = [
        (&orders, "http/1.1"),
        (&orders, "h2"),
        (&tills, "http/1.1"),
        (&tills, "h2"),
    ]
    .map(|(pair, alpn)| client(pair, alpn))
    .into_iter()
    .map(|client| tokio::spawn(async move { client.call(WRITE, "{}").await }))
    .collect();
    upstream.arrived(4).await;
    // And one whose body is still on its way.
    let mut slow = gateway.client(&pki).stream().await.unwrap();
    slow.write_all(b"POST /openapi/v1/customerOpenApi/add HTTP/1.1\r\nhost: gateway.test\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{\"a\":")
        .await
        .unwrap();
    while gateway.metric("kybio_gateway_requests_active").await < 5.0 {
        tokio::task::yield_now().await;
    }

    tools::write(&gateway.setup.path("main.key"), "new-key", 0o600);
    fs::remove_file(name).unwrap();
    let event = gateway.reload().await;
    for change in [
        "accounts.main.app_key_file (new content)",
        "accounts.other",
        "callers.tills",
    ] {
        assert!(
            event["changes"].as_str().unwrap().contains(change),
            "{event}"
        );
    }
    slow.write_all(b"\"b\"}").await.unwrap();
    upstream.arrived(5).await;
    assert!(upstream.last().is_signed_with(APP_KEY));
    gate.add_permits(5);
    for call in calls {
        assert_eq!(told(&call.await.unwrap()), (200, "done"));
    }
    let mut start = [0; 12];
    slow.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 200");
    let seen = upstream.seen();
    for seen in &seen[..4] {
        let key = if seen.text().contains(APP_ID) {
            APP_KEY
        } else {
            "other-key"
        };
        assert!(seen.is_signed_with(key), "{seen:?}");
    }
    gate.add_permits(1);
    let answer = gateway.client(&pki).call(WRITE, "{}").await;
    assert_eq!(told(&answer), (200, "done"));
    assert!(upstream.last().is_signed_with("new-key"));
}

#[tokio::test]
async fn a_second_attempt_after_a_reload_is_made_with_the_first_ones_key() {
    let pki = Pki::new();
    let (gate, calls) = (
        Arc::new(tokio::sync::Semaphore::new(0)),
        AtomicUsize::new(0),
    );
    let held = Arc::clone(&gate);
    let upstream = Upstream::scripted(&pki, move |_| {
        if calls.fetch_add(1, Ordering::SeqCst) == 0 {
            Act::once_open(&held, "<html>down for maintenance</html>")
        } else {
            Act::ok(SUCCESS)
        }
    })
    .await;
    let mut gateway = Setup::reloaded_by_hand(&pki, &upstream).start().await;
    let client = gateway.client(&pki);
    let call = tokio::spawn(async move { client.call(READ, "{}").await });
    upstream.arrived(1).await;
    tools::write(&gateway.setup.path("main.key"), "new-key", 0o600);
    // The host's table changes too: what is under way has the one before.
    gateway.setup.kybio.push_str("attempts_max = 1\n");
    gateway.setup.write();
    gateway.reload().await;
    gate.add_permits(1);
    let answer = call.await.unwrap();
    assert_eq!(told(&answer), (200, "done"));
    assert_eq!(answer.header("kybio-gateway-attempts"), "2");
    for seen in upstream.seen() {
        assert!(seen.is_signed_with(APP_KEY), "{seen:?}");
    }
    gateway.client(&pki).call(READ, "{}").await;
    assert!(upstream.last().is_signed_with("new-key"));
}

/// Accounts and hosts are numbered in the order of their names: what comes before them, or goes again, gives all of them other numbers.
#[tokio::test]
async fn each_account_keeps_its_host_and_its_key_when_others_come_before_it_and_go() {
    let pki = Pki::new();
    let (gate, calls) = (
        Arc::new(tokio::sync::Semaphore::new(0)),
        AtomicUsize::new(0),
    );
    let held = Arc::clone(&gate);
    let upstream = Upstream::scripted(&pki, move |_| match calls.fetch_add(1, Ordering::SeqCst) {
        0 | 3 => Act::once_open(&held, "<html>down for maintenance</html>"),
        _ => Act::ok(SUCCESS),
    })
    .await;
    let early = Upstream::start(&pki).await;
    let mut setup = Setup::reloaded_by_hand(&pki, &upstream);
    setup.include_folder("more.d");
    setup.orders.push_str("default_account = \"main\"\n");
    tools::write(&setup.path("aaa.key"), "early-key", 0o600);
    let gateway = setup.start().await;
    let client = gateway.client(&pki);
    let hanging = || {
        let client = gateway.client(&pki);
        tokio::spawn(async move { client.call(READ, "{}").await })
    };
    let on = async |account: &str| {
        let answer = client
            .call_with(READ, &[("kybio-gateway-account", account)], "{}")
            .await;
        assert_eq!(told(&answer), (200, "done"), "{account}");
        assert_eq!(answer.header("kybio-gateway-account"), account);
    };
    let accepted = |account: &str| {
        let series = format!("kybio_gateway_account_key_accepted{{account=\"{account}\"");
        move |metrics: &str| {
            let line = metrics.lines().find(|line| line.starts_with(&series));
            line.map(|line| line.ends_with(" 1"))
        }
    };

    // The first attempt is made by the numbers of before, the second after they have changed.
    let call = hanging();
    upstream.arrived(1).await;
    let name = gateway.setup.path("more.d/aaa.toml");
    let text = format!(
        "[upstreams.aaa]\nbase_url = \"https://upstream.test/pospal-api2\"\nroots = \"../upstream-ca.pem\"\nresolve = [\"{}\"]\n\
         [accounts.aaa]\nupstream = \"aaa\"\napp_id = \"early\"\napp_key_file = \"../aaa.key\"\n",
        early.address
    );
    fs::write(&name, text).unwrap();
    gateway.reload().await;
    gate.add_permits(1);
    assert_eq!(told(&call.await.unwrap()), (200, "done"));
    assert!(early.seen().is_empty());
    let metrics = gateway.metrics().await;
    assert_eq!(
        accepted("main")(&metrics),
        Some(true),
        "by the call that began before"
    );
    assert_eq!(accepted("aaa")(&metrics), Some(false));
    on("main").await;
    assert_eq!(accepted("aaa")(&gateway.metrics().await), Some(false));
    on("aaa").await;
    assert_eq!((upstream.seen().len(), early.seen().len()), (3, 1));
    assert!(early.last().is_signed_with("early-key"));
    assert!(early.last().text().contains("\"early\""));
    assert_eq!(accepted("aaa")(&gateway.metrics().await), Some(true));

    // And the other way round.
    let call = hanging();
    upstream.arrived(4).await;
    fs::remove_file(name).unwrap();
    gateway.reload().await;
    gate.add_permits(1);
    assert_eq!(told(&call.await.unwrap()), (200, "done"));
    on("main").await;
    assert_eq!((upstream.seen().len(), early.seen().len()), (6, 1));
    for seen in upstream.seen() {
        assert!(seen.is_signed_with(APP_KEY), "{seen:?}");
        assert!(seen.text().contains(APP_ID));
    }
    assert_eq!(accepted("aaa")(&gateway.metrics().await), None);
}

/// A host that says that calls are used up, then refuses connections, as the flags have it.
#[derive(Clone, Default)]
struct Moody {
    used_up: Arc<AtomicBool>,
    down: Arc<AtomicBool>,
}

impl Script for Moody {
    fn door(&self, _: usize) -> Door {
        if self.down.load(Ordering::SeqCst) {
            Door::Refuse
        } else {
            Door::Open
        }
    }

    fn act(&self, seen: &Seen) -> Act {
        let main = seen.text().contains(APP_ID);
        if main && self.used_up.load(Ordering::SeqCst) {
            Act::ok(r#"{"status":"error","messages":["您已用完当日请求量"],"errorCode":null}"#)
        } else {
            Act::ok(SUCCESS)
        }
    }
}

/// As far as it can be seen from outside.
#[tokio::test]
async fn breaker_and_latch_and_connections_outlive_a_reload() {
    let pki = Pki::new();
    let host = Moody::default();
    let upstream = Upstream::with(&pki, host.clone()).await;
    let mut setup = Setup::reloaded_by_hand(&pki, &upstream);
    setup.account("other", "zyxwvutsrqponm", "other-key");
    setup.orders.push_str("default_account = \"main\"\n");
    let mut gateway = setup.start().await;
    let client = gateway.client(&pki);
    // What each of these reloads is about: another caller, another account's key, this account's key, the gateway's certificate.
    let mut number = 0;
    let mut reload = async |gateway: &mut Gateway| {
        number += 1;
        let setup = &mut gateway.setup;
        setup.more.push_str(&format!("[callers.c{number}]\nidentities = [\"dns:c{number}.internal\"]\naccounts = [\"main\"]\noperations = [\"*\"]\n"));
        tools::write(
            &setup.path("other.key"),
            format!("other-key-{number}"),
            0o600,
        );
        tools::write(&setup.path("main.key"), format!("main-key-{number}"), 0o600);
        let server = pki.server("gateway.test");
        tools::write(&setup.path("gateway.pem"), server.certificate, 0o644);
        tools::write(&setup.path("gateway.key"), server.key, 0o600);
        setup.write();
        gateway.reload().await;
    };

    for _ in 0..5 {
        assert_eq!(told(&client.call(WRITE, "{}").await), (200, "done"));
        reload(&mut gateway).await;
    }
    assert_eq!(upstream.connections(), 1, "to the host");
    let accepted = "kybio_gateway_downstream_connections_accepted_total";
    assert_eq!(gateway.metric(accepted).await, 1.0, "from the caller");

    host.used_up.store(true, Ordering::SeqCst);
    assert_eq!(told(&client.call(WRITE, "{}").await), (200, "rejected"));
    let sent = upstream.seen().len();
    reload(&mut gateway).await;
    let refusal = client.call(WRITE, "{}").await.refusal();
    assert_eq!((refusal.0, &*refusal.1), (429, "quota-used-up"));
    assert_eq!(upstream.seen().len(), sent, "it costs no call");
    let on_other = [("kybio-gateway-account", "other")];
    let answer = client.call_with(WRITE, &on_other, "{}").await;
    assert_eq!(told(&answer), (200, "done"));

    host.down.store(true, Ordering::SeqCst);
    upstream.drop_connections().await;
    let down = async || {
        let answer = client.call_with(WRITE, &on_other, "{}").await;
        assert_eq!(answer.header("kybio-gateway-outcome"), "not-sent");
        answer.json()["gateway"]["code"] == "upstream-down"
    };
    while !down().await {}
    reload(&mut gateway).await;
    assert!(down().await, "the first call after it is refused at once");
    let state = "kybio_gateway_upstream_breaker_state{upstream=\"kybio\"}";
    assert_eq!(gateway.metric(state).await, 2.0);
    let opens = "kybio_gateway_upstream_breaker_opens_total{upstream=\"kybio\"}";
    assert_eq!(gateway.metric(opens).await, 1.0);
    host.down.store(false, Ordering::SeqCst);
    while told(&client.call_with(WRITE, &on_other, "{}").await) != (200, "done") {
        tokio::task::yield_now().await;
    }
    assert_eq!(gateway.metric(state).await, 0.0);
}

/// Whoever had a turn keeps it, and whoever waits for one goes on waiting: a reload is no way around a limit.
#[tokio::test]
async fn a_reload_gives_nobody_a_second_turn() {
    let pki = Pki::new();
    let (upstream, gate) = Upstream::held(&pki).await;
    let mut setup = Setup::reloaded_by_hand(&pki, &upstream);
    setup.kybio.push_str("in_flight_max = 2\n");
    let gateway = setup.start().await;
    let call = || {
        let client = gateway.client(&pki);
        tokio::spawn(async move { client.call(WRITE, "{}").await })
    };
    let mut calls = vec![call(), call()];
    upstream.arrived(2).await;
    let queued = async |count: f64| {
        let series = "kybio_gateway_upstream_queued{upstream=\"kybio\"}";
        while gateway.metric(series).await != count {
            tokio::task::yield_now().await;
        }
    };
    calls.push(call());
    queued(1.0).await;
    tools::write(&gateway.setup.path("main.key"), "new-key", 0o600);
    gateway.reload().await;
    calls.push(call());
    queued(2.0).await;
    assert_eq!(upstream.seen().len(), 2);
    gate.add_permits(4);
    for call in calls {
        assert_eq!(told(&call.await.unwrap()), (200, "done"));
    }
    let keys: Vec<_> = upstream
        .seen()
        .iter()
        .map(|seen| seen.is_signed_with(APP_KEY))
        .collect();
    assert_eq!(keys, [true, true, true, false], "as each began");
}

/// Whose a certificate is, is looked up with each request: an open connection isn't a way to keep what was taken away.
#[tokio::test]
async fn an_identity_that_moves_to_another_caller_does_so_on_open_connections() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::reloaded_by_hand(&pki, &upstream);
    setup.more.push_str("[callers.readers]\nidentities = [\"dns:readers.internal\"]\naccounts = [\"*\"]\noperations = [\"customerOpenApi/query*\"]\n");
    let mut gateway = setup.start().await;
    let clients = [gateway.client(&pki), gateway.http2_client(&pki)];
    for client in &clients {
        assert_eq!(told(&client.call(WRITE, "{}").await), (200, "done"));
    }
    let setup = &mut gateway.setup;
    let identity = format!("identities = [{ORDERS:?}]");
    let other = "identities = [\"dns:readers.internal\"]";
    setup.orders = setup
        .orders
        .replace(&identity, "identities = [\"dns:orders.internal\"]");
    setup.more = setup.more.replace(other, &identity);
    setup.write();
    gateway.reload().await;
    for client in &clients {
        let refusal = client.call(WRITE, "{}").await.refusal();
        assert_eq!((refusal.0, &*refusal.1), (403, "operation-not-granted"));
        assert_eq!(told(&client.call(READ, "{}").await), (200, "done"));
    }
    let accepted = "kybio_gateway_downstream_connections_accepted_total";
    assert_eq!(gateway.metric(accepted).await, 2.0, "it stays");
}

/// Its calls for the day are an appId's own: with another there are others.
#[tokio::test]
async fn a_latch_is_not_another_app_ids() {
    let pki = Pki::new();
    let host = Moody::default();
    host.used_up.store(true, Ordering::SeqCst);
    let upstream = Upstream::with(&pki, host).await;
    let gateway = Setup::reloaded_by_hand(&pki, &upstream).start().await;
    let client = gateway.client(&pki);
    assert_eq!(told(&client.call(WRITE, "{}").await), (200, "rejected"));
    assert_eq!(told(&client.call(WRITE, "{}").await), (429, "not-sent"));
    let folder = gateway.setup.folder.path();
    tools::change(&folder.join("gateway.toml"), |text| {
        text.replace(APP_ID, "another")
    });
    gateway.reload().await;
    assert_eq!(told(&client.call(WRITE, "{}").await), (200, "done"));
    tools::change(&folder.join("gateway.toml"), |text| {
        text.replace("\"another\"", &format!("{APP_ID:?}"))
    });
    gateway.reload().await;
    assert_eq!(told(&client.call(WRITE, "{}").await), (429, "not-sent"));
}

/// A host that was changed, and one that has gone, keep no connection that nobody uses any more.
#[tokio::test]
async fn a_host_that_changes_leaves_no_connection_behind() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::reloaded_by_hand(&pki, &upstream);
    setup.kybio.push_str("total_timeout = \"40s\"\n");
    let mut gateway = setup.start().await;
    let client = gateway.client(&pki);
    let open = "kybio_gateway_upstream_connections{upstream=\"kybio\"}";
    for seconds in 20..40 {
        let setup = &mut gateway.setup;
        setup.kybio = format!("total_timeout = \"{seconds}s\"\n");
        setup.write();
        gateway.reload().await;
        assert_eq!(told(&client.call(WRITE, "{}").await), (200, "done"));
    }
    while gateway.metric(open).await != 1.0 {
        tokio::task::yield_now().await;
    }
}

/// Whom an upstream's certificate must lead to is a file as well.
#[tokio::test]
async fn an_upstream_that_is_not_trusted_any_more_gets_nothing_on_kept_connections_either() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::reloaded_by_hand(&pki, &upstream).start().await;
    let client = gateway.client(&pki);
    assert_eq!(told(&client.call(WRITE, "{}").await), (200, "done"));
    let other = Pki::new().certificate();
    tools::write(&gateway.setup.path("upstream-ca.pem"), other, 0o644);
    let event = gateway.reload().await;
    assert_eq!(event["changes"], "upstreams.kybio.roots (new content)");
    let answer = client.call(WRITE, "{}").await;
    assert_eq!(told(&answer), (502, "not-sent"), "{}", answer.text());
    assert_eq!(upstream.seen().len(), 1);
    tools::write(
        &gateway.setup.path("upstream-ca.pem"),
        pki.certificate(),
        0o644,
    );
    gateway.reload().await;
    assert_eq!(told(&client.call(WRITE, "{}").await), (200, "done"));
}
