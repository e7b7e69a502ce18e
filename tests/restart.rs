//! Promise U1, for restarts: on a passed socket (sd_listen_fds(3)) nobody is refused and every call is answered; without one, a second
//! process gets the port only where both are told to share it.

use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::interval;

use crate::support::gateway::{Door, Launch, ORDERS};
use crate::support::tools::PATIENCE;
use crate::support::{Client, Gateway, Pki, Setup, Upstream, tools};

const READ: &str = "customerOpenApi/queryByUid";

/// What the callers have met so far.
#[derive(Default)]
struct Tally {
    answered: AtomicUsize,
    stop: AtomicBool,
    changed: Notify,
}

impl Tally {
    fn answered(&self) -> usize {
        self.answered.load(Ordering::SeqCst)
    }

    async fn answers(&self, more: usize) {
        let wanted = self.answered() + more;
        let reached = async {
            while self.answered() < wanted {
                self.changed.notified().await;
            }
        };
        let reached = tokio::time::timeout(PATIENCE, reached).await;
        assert!(reached.is_ok(), "{wanted} calls are answered");
    }

    /// Calls until it's told to stop, on a kept connection or on a new one each time. A kept one that the gateway has asked to leave
    /// (`Connection: close`) is opened anew, as any HTTP library does.
    async fn call(&self, client: impl Fn() -> Client, kept: bool) {
        let mut current = client();
        while !self.stop.load(Ordering::SeqCst) {
            let answer = current.call(READ, "{}").await;
            assert_eq!(answer.header("kybio-gateway-outcome"), "done");
            self.answered.fetch_add(1, Ordering::SeqCst);
            self.changed.notify_one();
            if !kept {
                current = client();
            }
        }
    }
}

/// Callers on kept connections, and as many on new ones, for as long as one process takes the other's place on the socket.
/// A connection that is refused, reset or closed without an answer fails its caller, and the test. The number of calls that were answered.
async fn restarted(overlap: bool) -> usize {
    const CALLERS: usize = 6;
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let start = async || {
        let setup = Setup::new(&pki, Some(upstream.address));
        let launch = Launch::passing(&[socket.as_fd()]);
        Gateway::start_by(launch, setup, &["--set", "runtime.drain_delay=300ms"]).await
    };
    let mut first = start().await;
    assert_eq!(first.address, socket.local_addr().unwrap());

    let tally = Arc::new(Tally::default());
    let mut callers = JoinSet::new();
    let pair = pki.caller(ORDERS);
    let config = pki.client_config(Some(&pair), &["http/1.1"], rustls::ALL_VERSIONS);
    for number in 0..2 * CALLERS {
        let (tally, config, address) = (Arc::clone(&tally), config.clone(), first.address);
        let client = move || Client::new(address, config.clone());
        callers.spawn(async move { tally.call(client, number < CALLERS).await });
    }
    tally.answers(200).await;

    let second = if overlap {
        let second = start().await;
        first.signal("TERM");
        assert_eq!(first.ended().await.code(), Some(0), "{:?}", first.printed());
        second
    } else {
        first.signal("TERM");
        assert_eq!(first.ended().await.code(), Some(0), "{:?}", first.printed());
        start().await
    };
    tally.answers(200).await;
    tally.stop.store(true, Ordering::SeqCst);
    callers.join_all().await;

    assert_eq!(upstream.seen().len(), tally.answered(), "each call once");
    let accepted = "kybio_gateway_downstream_connections_accepted_total";
    assert!(second.metric(accepted).await >= CALLERS as f64);
    tally.answered()
}

/// As systemd restarts a service whose socket it has: meanwhile callers wait in the socket's queue.
#[tokio::test]
async fn a_restart_on_a_passed_socket_refuses_no_connection_and_every_call_is_answered() {
    println!("{} calls, 0 failed", restarted(false).await);
}

#[tokio::test]
async fn a_restart_with_both_processes_on_a_passed_socket_refuses_nobody_either() {
    println!("{} calls, 0 failed", restarted(true).await);
}

/// At its limit of connections a process takes no more, and at its end it leaves them to the next one.
#[tokio::test]
async fn what_waits_in_a_passed_sockets_queue_is_left_for_the_next_process() {
    let pki = Pki::new();
    let (upstream, gate) = Upstream::held(&pki).await;
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let start = async || {
        let mut setup = Setup::new(&pki, Some(upstream.address));
        setup.connections_of_one(2);
        let launch = Launch::passing(&[socket.as_fd()]);
        Gateway::start_by(launch, setup, &["--set", "listener.connections_max=2"]).await
    };
    let mut old = start().await;
    let call = |client: Client| tokio::spawn(async move { client.call(READ, "{}").await });
    let served = call(old.client(&pki));
    upstream.arrived(1).await;
    let mut idle = old.client(&pki).stream().await.unwrap();
    let waiting = call(old.client(&pki));
    old.signal("TERM");
    // Idle connections are closed once no more are taken, so that there's room again.
    assert_eq!(idle.read(&mut [0; 1]).await.unwrap_or(0), 0);
    gate.add_permits(2);
    assert_eq!(served.await.unwrap().status, 200);
    assert_eq!(old.ended().await.code(), Some(0));
    assert_eq!(upstream.seen().len(), 1);
    assert!(!waiting.is_finished());
    let _young = start().await;
    assert_eq!(waiting.await.unwrap().status, 200);
}

/// Who was let in just before the end has been answered by nobody yet, and can't know that the end is near.
#[tokio::test]
async fn a_connection_that_was_let_in_shortly_before_the_end_may_ask_once() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    let mut stream = gateway.client(&pki).stream().await.unwrap();
    let _silent = gateway.client(&pki).stream().await.unwrap();
    gateway.signal("TERM");
    // Nobody is let in any more: the end has come to every connection.
    // Asked now and then alone: who comes while the door is being closed is let in too, and that takes time.
    let mut knocks = interval(Duration::from_millis(5));
    while TcpStream::connect(gateway.address).await.is_ok() {
        knocks.tick().await;
    }
    let head = format!(
        "POST /openapi/v1/{READ} HTTP/1.1\r\nhost: gateway.test\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(b"{}").await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    // Nor does one that never asks hold up the end for long.
    assert_eq!(gateway.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_passed_unix_socket_keeps_its_file() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.sock");
    let socket = UnixListener::bind(&path).unwrap();
    for _ in 0..2 {
        let uid = rustix::process::getuid().as_raw();
        let setup = Setup {
            door: Door::Unix,
            orders: format!(
                "identities = [\"uid:{uid}\"]\naccounts = [\"*\"]\noperations = [\"*\"]\n"
            ),
            ..Setup::new(&pki, Some(upstream.address))
        };
        let own = setup.path("gateway.sock");
        let mut gateway = Gateway::start_by(Launch::passing(&[socket.as_fd()]), setup, &[]).await;
        assert_eq!(Client::unix(&path).call(READ, "{}").await.status, 200);
        // The passed one holds, and that it's another than the configured one is told.
        assert!(!own.exists());
        let warning = gateway
            .event(|event| event["key"] == "listener.address" && event["level"] == "WARN")
            .await;
        assert_eq!(warning["passed"], format!("unix:{}", path.display()));
        assert_eq!(warning["configured"], format!("unix:{}", own.display()));
        gateway.signal("TERM");
        assert_eq!(gateway.ended().await.code(), Some(0));
        assert!(path.exists(), "it belongs to whoever passed it");
    }
}

#[tokio::test]
async fn a_second_passed_socket_is_the_admins() {
    let pki = Pki::new();
    let sockets = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let launch = Launch::passing(&[sockets[0].as_fd(), sockets[1].as_fd()]);
    let gateway = Gateway::start_by(launch, Setup::new(&pki, None), &[]).await;
    assert_eq!(gateway.address, sockets[0].local_addr().unwrap());
    assert_eq!(gateway.admin, sockets[1].local_addr().unwrap());
    assert_eq!(gateway.admin_get("/readyz").await.0, 200);
    // Both addresses are configured as "any port", so there's nothing to warn of.
    let warned = |line: &String| line.contains("the socket that was passed");
    assert!(
        !gateway.printed().iter().any(warned),
        "{:?}",
        gateway.printed()
    );
}

/// Another kind of socket would let in others than configuration says.
#[test]
fn a_passed_socket_of_another_kind_than_configured_is_an_error_that_says_so() {
    let pki = Pki::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gateway.sock");
    let unix = UnixListener::bind(&path).unwrap();
    let tcp = TcpListener::bind("0.0.0.0:0").unwrap();
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let (connected, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let address = tcp.local_addr().unwrap();
    let with = |door, identity: &str| Setup {
        door,
        orders: format!("identities = [{identity:?}]\naccounts = [\"*\"]\noperations = [\"*\"]\n"),
        ..Setup::new(&pki, None)
    };
    let cases = [
        (
            with(Door::Unix, "uid:1"),
            tcp.as_fd(),
            format!("is TCP, {address}, but a unix socket is configured, unix:"),
        ),
        (
            with(Door::Plaintext, "loopback"),
            tcp.as_fd(),
            format!("is at {address}, and without TLS it has to be on loopback"),
        ),
        (
            Setup::new(&pki, None),
            unix.as_fd(),
            format!(
                "is a unix socket, unix:{}, but TCP is configured, 127.0.0.1:0",
                path.display()
            ),
        ),
        (
            Setup::new(&pki, None),
            silent.as_fd(),
            "is neither TCP nor a unix stream socket".to_owned(),
        ),
        (
            with(Door::Unix, "uid:1"),
            connected.as_fd(),
            "doesn't listen".to_owned(),
        ),
    ];
    for (setup, socket, expected) in cases {
        let output = Launch::passing(&[socket]).refused(&setup, &[]);
        let said = tools::stderr(&output);
        assert_eq!(output.status.code(), Some(78), "{expected}: {said}");
        let expected = format!("listener.address: the socket that was passed {expected}");
        assert!(said.contains(&expected), "{expected}: {said}");
    }
    // The admin's pages are on TCP alone.
    let both = Launch::passing(&[tcp.as_fd(), unix.as_fd()]);
    let output = both.refused(&Setup::new(&pki, None), &[]);
    assert_eq!(output.status.code(), Some(78));
    let said = tools::stderr(&output);
    assert!(
        said.contains("admin.address: the socket that was passed is a unix socket"),
        "{said}"
    );
}

/// The words are for another process: one that was started by the one that they were for, as a rule.
#[tokio::test]
async fn sockets_that_were_passed_to_another_process_are_left_alone() {
    let pki = Pki::new();
    let setup = Setup {
        environment: vec![
            ("LISTEN_FDS", "1".to_owned()),
            ("LISTEN_PID", "1".to_owned()),
        ],
        ..Setup::new(&pki, None)
    };
    let gateway = setup.start().await;
    let listening = gateway.event(|event| event["message"] == "listening").await;
    assert!(listening["passed"].is_null(), "{listening}");
}

#[tokio::test]
async fn a_second_process_on_the_port_is_refused_unless_both_share_it() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let new = || Setup::new(&pki, Some(upstream.address));
    let own = Gateway::start(new(), &[]).await;
    for share in ["true", "false"] {
        let setup = new();
        let flags = [
            format!("listener.address={}", own.address),
            format!("listener.reuse_port={share}"),
        ];
        let flags = ["--set", &flags[0], "--set", &flags[1]];
        let output = Launch::default().refused(&setup, &flags);
        assert_eq!(output.status.code(), Some(1));
        let said = tools::stderr(&output);
        assert!(
            said.contains("is another gateway running?") && said.contains("listener.address"),
            "{said}"
        );
    }

    let sharing = |setup: &mut Setup| setup.listener.push_str("reuse_port = true\n");
    let (mut old, mut young) = (new(), new());
    sharing(&mut old);
    sharing(&mut young);
    let mut old = Gateway::start(old, &[]).await;
    let address = format!("listener.address={}", old.address);
    let young = Gateway::start(young, &["--set", &address]).await;
    assert_eq!(young.address, old.address);
    old.signal("TERM");
    assert_eq!(old.ended().await.code(), Some(0));
    assert_eq!(young.client(&pki).call(READ, "{}").await.status, 200);
}
