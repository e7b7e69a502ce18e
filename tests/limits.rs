//! How many connections there may be: in total, from each address, of each caller. Nobody takes everybody's place, and who is at a limit
//! gets in again as soon as there's room.

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::support::gateway::ORDERS;
use crate::support::pki::Pair;
use crate::support::tools::PATIENCE;
use crate::support::{Client, Gateway, Pki, Setup, Upstream, tools};

const READ: &str = "customerOpenApi/queryByUid";

const TILLS: &str = "spiffe://shop.example/tills";

const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// With these limits, and a second caller.
fn setup(pki: &Pki, upstream: &Upstream, listener: &str) -> Setup {
    let mut setup = Setup::reloaded_by_hand(pki, upstream);
    setup.listener.push_str(listener);
    setup.more.push_str(&format!(
        "\n[callers.tills]\nidentities = [{TILLS:?}]\naccounts = [\"*\"]\noperations = [\"*\"]\n"
    ));
    setup
}

/// A connection from this address, of those that a machine has.
async fn connect(gateway: &Gateway, from: Ipv4Addr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((from, 0))).unwrap();
    socket.connect(gateway.address).await.unwrap()
}

/// Nothing is said on it, and it ends.
async fn ends_without_a_byte(mut stream: TcpStream) {
    let read = timeout(PATIENCE, stream.read(&mut [0])).await.unwrap();
    assert_eq!(read.unwrap(), 0);
}

/// The handshake is complete, and then it ends in good order: with TLS's word of farewell, without which this would be an error.
async fn ends_after_the_handshake(client: &Client) {
    let mut stream = client.stream().await.unwrap();
    let read = timeout(PATIENCE, stream.read(&mut [0])).await.unwrap();
    assert_eq!(read.unwrap(), 0);
}

/// So many connections of this one, each with an answered call.
async fn served(gateway: &Gateway, pki: &Pki, pair: &Pair, count: usize) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..count {
        let client = gateway.client_with(pki, pair);
        client.call(READ, "{}").await;
        clients.push(client);
    }
    clients
}

/// Waits until only so many connections are open.
async fn open(gateway: &Gateway, count: f64) {
    let series = "kybio_gateway_downstream_connections";
    let waited = timeout(PATIENCE, async {
        while gateway.metric(series).await != count {}
    });
    waited.await.unwrap();
}

async fn refused(gateway: &Gateway, limit: &str) -> f64 {
    let name = "kybio_gateway_downstream_connections_refused_total";
    gateway
        .metric(&format!("{name}{{limit=\"{limit}\"}}"))
        .await
}

/// The log line of a refusal after the mark.
async fn word_on(gateway: &Gateway, mark: usize) -> Value {
    let is_refusal = |event: &Value| event["message"] == "a connection was refused";
    gateway.event_since(mark, is_refusal).await
}

#[tokio::test]
async fn beyond_the_total_a_connection_waits_and_is_served_when_another_ends() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = setup(&pki, &upstream, "");
    setup.connections_of_one(2);
    let flags = ["--set", "listener.connections_max=2"];
    let gateway = Gateway::start(setup, &flags).await;
    let orders = pki.caller(ORDERS);
    let mut clients = served(&gateway, &pki, &orders, 2).await;
    let waiting = tokio::spawn({
        let client = gateway.client_with(&pki, &pki.caller(TILLS));
        let stream = connect(&gateway, ELSEWHERE).await;
        async move {
            client.goes_over(stream).await.unwrap();
            client.call(READ, "{}").await
        }
    });
    // Those that are in go on, and nobody else is in.
    for client in &clients {
        assert_eq!(client.call(READ, "{}").await.status, 200);
    }
    let accepted = "kybio_gateway_downstream_connections_accepted_total";
    assert_eq!(gateway.metric(accepted).await, 2.0);
    assert!(!waiting.is_finished());
    drop(clients.pop());
    assert_eq!(waiting.await.unwrap().status, 200);
    for limit in ["address", "caller"] {
        assert_eq!(refused(&gateway, limit).await, 0.0);
    }
}

#[tokio::test]
async fn beyond_an_addresss_limit_a_connection_ends_before_tls_and_another_address_gets_in() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = setup(&pki, &upstream, "connections_per_address_max = 3\n")
        .start()
        .await;
    // Without a handshake, they count too.
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(connect(&gateway, HERE).await);
    }
    open(&gateway, 3.0).await;
    for nth in 1..=5 {
        let mark = gateway.mark();
        let stream = connect(&gateway, HERE).await;
        let peer = stream.local_addr().unwrap().to_string();
        ends_without_a_byte(stream).await;
        let event = word_on(&gateway, mark).await;
        assert_eq!(
            (&event["peer"], &event["limit"], &event["caller"]),
            (&peer.into(), &"address".into(), &Value::Null),
            "{event}"
        );
        assert_eq!(refused(&gateway, "address").await, f64::from(nth));
    }
    let client = gateway.client(&pki);
    let stream = connect(&gateway, ELSEWHERE).await;
    client.goes_over(stream).await.unwrap();
    assert_eq!(client.call(READ, "{}").await.status, 200);
    drop(silent.pop());
    open(&gateway, 3.0).await;
    let client = gateway.client(&pki);
    assert_eq!(client.call(READ, "{}").await.status, 200);
    assert_eq!(refused(&gateway, "caller").await, 0.0);
}

#[tokio::test]
async fn beyond_a_callers_limit_a_connection_ends_after_the_handshake_and_another_caller_gets_in() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = setup(&pki, &upstream, "connections_per_caller_max = 3\n")
        .start()
        .await;
    let orders = pki.caller(ORDERS);
    let mut clients = served(&gateway, &pki, &orders, 3).await;
    for (nth, alpn) in ["http/1.1", "h2"].into_iter().enumerate() {
        let mark = gateway.mark();
        // Another certificate of the same caller.
        let again = pki.caller(ORDERS);
        let config = pki.client_config(Some(&again), &[alpn], rustls::ALL_VERSIONS);
        ends_after_the_handshake(&Client::new(gateway.address, config)).await;
        let event = word_on(&gateway, mark).await;
        assert_eq!(
            (&event["limit"], &event["caller"]),
            (&"caller".into(), &"orders".into()),
            "{event}"
        );
        assert!(event["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
        assert_eq!(refused(&gateway, "caller").await, nth as f64 + 1.0);
    }
    let tills = served(&gateway, &pki, &pki.caller(TILLS), 3).await;
    for client in clients.iter().chain(&tills) {
        assert_eq!(client.call(READ, "{}").await.status, 200);
    }
    drop(clients.pop());
    open(&gateway, 5.0).await;
    clients.extend(served(&gateway, &pki, &orders, 1).await);
    assert_eq!(refused(&gateway, "address").await, 0.0);
    // What was refused never was a call.
    assert_eq!(upstream.seen().len(), 3 + 3 + 6 + 1);
}

#[tokio::test]
async fn callers_whom_nobody_knows_are_one() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = setup(&pki, &upstream, "connections_per_caller_max = 3\n")
        .start()
        .await;
    let mut strangers = Vec::new();
    for nth in 0..3 {
        let pair = pki.caller(&format!("spiffe://shop.example/stranger-{nth}"));
        let client = gateway.client_with(&pki, &pair);
        assert_eq!(client.call(READ, "{}").await.refusal().1, "unknown-caller");
        strangers.push(client);
    }
    let mark = gateway.mark();
    let another = pki.caller("spiffe://shop.example/stranger-3");
    ends_after_the_handshake(&gateway.client_with(&pki, &another)).await;
    let event = word_on(&gateway, mark).await;
    assert_eq!(
        (&event["limit"], &event["caller"], &event["names"]),
        (
            &"caller".into(),
            &Value::Null,
            &"spiffe://shop.example/stranger-3".into()
        ),
        "{event}"
    );
    assert_eq!(gateway.client(&pki).call(READ, "{}").await.status, 200);
}

#[tokio::test]
async fn a_reload_changes_the_limits_for_new_connections() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let limits = |address: usize, caller: usize| {
        format!("connections_per_address_max = {address}\nconnections_per_caller_max = {caller}\n")
    };
    let gateway = setup(&pki, &upstream, &limits(4, 2)).start().await;
    let change = async |from: String, to: String| {
        tools::change(&gateway.setup.path("gateway.toml"), |text| {
            assert!(text.contains(&from), "{text}");
            text.replace(&from, &to)
        });
        gateway.reload().await;
    };
    let orders = pki.caller(ORDERS);
    let client = gateway.client_with(&pki, &orders);
    let mut clients = served(&gateway, &pki, &orders, 2).await;
    ends_after_the_handshake(&client).await;
    open(&gateway, 2.0).await;
    change(limits(4, 2), limits(4, 3)).await;
    clients.extend(served(&gateway, &pki, &orders, 1).await);
    ends_after_the_handshake(&client).await;
    open(&gateway, 3.0).await;
    change(limits(4, 3), limits(3, 3)).await;
    ends_without_a_byte(connect(&gateway, HERE).await).await;
    // Who is in stays in, even beyond a limit that is lower now.
    change(limits(3, 3), limits(4, 1)).await;
    for client in &clients {
        assert_eq!(client.call(READ, "{}").await.status, 200);
    }
    drop(clients.drain(1..));
    open(&gateway, 1.0).await;
    ends_after_the_handshake(&client).await;
    drop(clients);
    open(&gateway, 0.0).await;
    served(&gateway, &pki, &orders, 1).await;
}

/// Half of all, unless something is written.
#[tokio::test]
async fn nobody_takes_more_than_half_of_all_places() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let orders = pki.caller(ORDERS);
    let start = async |listener| {
        let setup = setup(&pki, &upstream, listener);
        Gateway::start(setup, &["--set", "listener.connections_max=4"]).await
    };
    let gateway = start("").await;
    let _clients = served(&gateway, &pki, &orders, 2).await;
    ends_without_a_byte(connect(&gateway, HERE).await).await;
    let gateway = start("connections_per_address_max = 4\n").await;
    let _clients = served(&gateway, &pki, &orders, 2).await;
    ends_after_the_handshake(&gateway.client_with(&pki, &orders)).await;
}
