//! Kept connections: warm at a low rate over many hosts (U8), never so old that a new address isn't seen (U5), never used once they're
//! gone, and never more of them than allowed.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::support::upstream::{Refusing, SUCCESS};
use crate::support::{Gateway, Pki, Setup, Upstream, names};

const READ: &str = "customerOpenApi/queryByUid";

/// Two hosts at one port of two addresses.
async fn pair(pki: &Pki) -> (Upstream, Arc<AtomicBool>, Upstream) {
    loop {
        let first = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = first.local_addr().unwrap().port();
        let address = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2), port));
        // Somebody else may have that one.
        if let Ok(second) = TcpListener::bind(address).await {
            let leaving = Arc::new(AtomicBool::new(false));
            let host = |refusing: &Arc<AtomicBool>| Refusing {
                refusing: Arc::clone(refusing),
                answer: SUCCESS,
            };
            return (
                Upstream::on(first, pki, host(&leaving)),
                Arc::clone(&leaving),
                Upstream::on(second, pki, host(&Arc::default())),
            );
        }
    }
}

/// U5: the name's address changes while calls go on. The old host answers until the last connection to it has ended, then it's gone.
#[tokio::test]
async fn traffic_moves_to_a_new_address_within_the_connections_age_and_no_read_fails() {
    let pki = Pki::new();
    let (old, leaving, new) = pair(&pki).await;
    let setup = Setup::new(&pki, None);
    let hosts = setup.path("hosts");
    // The library sees a change by the file's time, in whole seconds, and must never see half a file.
    let whole = setup.path("hosts.new");
    let name = |address: IpAddr, since: SystemTime| {
        std::fs::write(&whole, format!("{address} upstream.test\n")).unwrap();
        let file = std::fs::File::options().write(true).open(&whole).unwrap();
        file.set_modified(since).unwrap();
        std::fs::rename(&whole, &hosts).unwrap();
    };
    name(old.address.ip(), UNIX_EPOCH + Duration::from_secs(1));
    let setup = Setup {
        environment: names::from_file(&hosts),
        port: Some(old.address.port()),
        kybio: "connection_age_max = \"1s\"\nallow_private = true\n".to_owned(),
        ..setup
    };
    let gateway = setup.start().await;
    let stop = Arc::new(AtomicBool::new(false));
    // One caller, as fast as it can: the library that has the names doesn't bear two look-ups at once while it reads its file anew.
    let caller = tokio::spawn({
        let (client, stop) = (gateway.client(&pki), Arc::clone(&stop));
        async move {
            let mut calls = 0;
            while !stop.load(Ordering::SeqCst) {
                let answer = client.call(READ, "{}").await;
                assert_eq!(answer.status, 200, "{}", answer.text());
                calls += 1;
            }
            calls
        }
    });
    old.arrived(100).await;
    name(new.address.ip(), UNIX_EPOCH + Duration::from_secs(2));
    let moved = Instant::now();
    new.arrived(100).await;
    println!(
        "100 calls at the new address {:?} after the name's",
        moved.elapsed()
    );
    // All connections are renewed within their age: once that has passed, the old host hears nothing more.
    let mut heard = old.seen().len();
    loop {
        let before = new.seen().len();
        new.arrived(before + 200).await;
        let now = old.seen().len();
        if now == heard {
            break;
        }
        heard = now;
    }
    leaving.store(true, Ordering::SeqCst);
    old.drop_connections().await;
    let before = new.seen().len();
    new.arrived(before + 100).await;
    stop.store(true, Ordering::SeqCst);
    let calls: usize = caller.await.unwrap();
    assert_eq!(old.seen().len() + new.seen().len(), calls);
    println!("{calls} calls, 0 failed");
}

/// U8, ten times as fast: 30 calls a second over 14 hosts, with a tenth of the idle time.
#[tokio::test]
async fn at_a_low_rate_over_many_hosts_nearly_all_calls_find_a_warm_connection() {
    const HOSTS: usize = 14;
    let pki = Pki::new();
    let mut setup = Setup::new(&pki, None);
    setup.kybio.push_str("resolve = [\"127.0.0.1:9\"]\n");
    setup.orders.push_str("default_account = \"main\"\n");
    let mut hosts = Vec::new();
    for number in 0..HOSTS {
        let host = Upstream::start(&pki).await;
        setup.more.push_str(&format!(
            "[upstreams.area{number}]\nbase_url = \"https://upstream.test/pospal-api2\"\nroots = \"callers-ca.pem\"\nresolve = [\"{}\"]\nidle_timeout = \"2s\"\n\
             [accounts.store{number}]\nupstream = \"area{number}\"\napp_id = \"app{number}\"\napp_key_file = \"main.key\"\n",
            host.address
        ));
        hosts.push(host);
    }
    let gateway = setup.start().await;
    let client = gateway.client(&pki);
    let call = async |number: usize| {
        let account = format!("store{number}");
        let headers = [("kybio-gateway-account", account.as_str())];
        assert_eq!(client.call_with(READ, &headers, "{}").await.status, 200);
    };
    for number in 0..HOSTS {
        call(number).await;
    }
    // Calls come at random times to random hosts, from a fixed seed.
    let mut random = fastrand::Rng::with_seed(14);
    let mut at = Instant::now();
    const CALLS: usize = 300;
    for _ in 0..CALLS {
        at += Duration::from_secs_f64(-(1.0 - random.f64()).ln() / 30.0);
        sleep_until(at).await;
        call(random.usize(..HOSTS)).await;
    }
    let opened: usize = hosts.iter().map(Upstream::connections).sum::<usize>() - HOSTS;
    let warm = 1.0 - opened as f64 / CALLS as f64;
    println!(
        "{:.1} % of {CALLS} calls on a warm connection",
        100.0 * warm
    );
    assert!(
        warm >= 0.95,
        "{opened} of {CALLS} calls opened a connection"
    );
}

/// A burst on an idle gateway.
#[tokio::test]
async fn five_hundred_calls_at_once_open_no_more_connections_than_allowed_and_none_is_lost() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    for workers in ["1", "3"] {
        let mut setup = Setup::new(&pki, Some(upstream.address));
        setup.kybio.push_str("connections_max = 8\n");
        let workers = format!("runtime.workers={workers}");
        let gateway = Gateway::start(setup, &["--set", &workers]).await;
        let before = (upstream.seen().len(), upstream.connections());
        let clients: Vec<_> = (0..10)
            .map(|_| Arc::new(gateway.http2_client(&pki)))
            .collect();
        let mut answers = JoinSet::new();
        for number in 0..500 {
            let client = Arc::clone(&clients[number % clients.len()]);
            answers.spawn(async move { client.call("customerOpenApi/add", "{}").await });
        }
        for answer in answers.join_all().await {
            assert_eq!(answer.status, 200, "{}", answer.text());
            assert_eq!(answer.header("kybio-gateway-attempts"), "1");
        }
        assert_eq!(upstream.seen().len(), before.0 + 500);
        let open = gateway
            .metric("kybio_gateway_upstream_connections{upstream=\"kybio\"}")
            .await;
        assert!(open <= 8.0, "{open}");
        println!(
            "{workers}: {} connections",
            upstream.connections() - before.1
        );
    }
}

#[tokio::test]
async fn a_busy_connection_is_renewed_at_its_age() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.kybio.push_str("connection_age_max = \"1s\"\n");
    let gateway = setup.start().await;
    let client = gateway.client(&pki);
    while upstream.connections() < 3 {
        assert_eq!(client.call(READ, "{}").await.status, 200);
    }
    // It was a new one each time, long before the last call.
    let seen = upstream.seen();
    let first = seen
        .iter()
        .filter(|seen| seen.place.connection == 0)
        .count();
    assert!(first > 3 && seen.len() > 3 * 3, "{first} of {}", seen.len());
}
