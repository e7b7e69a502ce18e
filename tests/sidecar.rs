//! Listeners without TLS, for callers on the same machine: who is who there, whose the socket's file is, and that every clock and limit
//! holds there too.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::process::Command;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::support::gateway::{APP_KEY, Door, Launch};
use crate::support::{Answer, Client, Gateway, Pki, Setup, Upstream, tools};

const READ: &str = "customerOpenApi/queryByUid";

/// The user that the tests run as, and so do their callers.
fn uid() -> u32 {
    rustix::process::getuid().as_raw()
}

/// A setup whose caller `orders` has this identity.
fn setup(pki: &Pki, upstream: &Upstream, door: Door, identity: &str) -> Setup {
    let orders = format!("identities = [{identity:?}]\naccounts = [\"*\"]\noperations = [\"*\"]\n");
    Setup {
        door,
        orders,
        ..Setup::new(pki, Some(upstream.address))
    }
}

/// On a unix socket, where the tests' own user is the caller.
fn unix(pki: &Pki, upstream: &Upstream) -> Setup {
    setup(pki, upstream, Door::Unix, &format!("uid:{}", uid()))
}

fn message(answer: &Answer) -> String {
    answer.json()["messages"][0].as_str().unwrap().to_owned()
}

fn hint(answer: &Answer) -> String {
    answer.json()["gateway"]["hint"]
        .as_str()
        .unwrap()
        .to_owned()
}

#[tokio::test]
async fn a_user_is_a_caller_on_a_unix_socket_and_the_log_names_its_process() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = unix(&pki, &upstream).start().await;
    let client = gateway.plain_client();
    let answer = client.call(READ, "{}").await;
    assert_eq!(answer.header("kybio-gateway-outcome"), "done");
    assert!(upstream.last().is_signed_with(APP_KEY));
    let event = gateway
        .request_event(answer.header("kybio-gateway-request-id"))
        .await;
    let expected = format!("unix pid {} uid {}", std::process::id(), uid());
    assert_eq!(event["peer"], expected);
    assert_eq!(event["caller"], "orders");
    // The connection is kept, and no handshake is counted that there wasn't.
    client.call(READ, "{}").await;
    let accepted = "kybio_gateway_downstream_connections_accepted_total";
    assert_eq!(gateway.metric(accepted).await, 1.0);
    let metrics = gateway.metrics().await;
    for line in metrics
        .lines()
        .filter(|line| line.contains("gateway_tls_handshake"))
    {
        assert!(line.starts_with('#') || line.ends_with(" 0"), "{line}");
    }
}

#[tokio::test]
async fn an_unknown_user_is_refused_by_its_number() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let other = format!("uid:{}", uid() + 1);
    let gateway = setup(&pki, &upstream, Door::Unix, &other).start().await;
    let answer = gateway.plain_client().call(READ, "{}").await;
    let (status, code, outcome, _) = answer.refusal();
    assert_eq!(
        (status, code.as_str(), outcome.as_str()),
        (403, "unknown-caller", "not-sent")
    );
    assert_eq!(message(&answer), format!("no caller is uid {}", uid()));
    assert!(hint(&answer).contains(&format!("\"uid:{}\"", uid())));
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn on_loopback_without_tls_everybody_is_one_caller() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = setup(&pki, &upstream, Door::Plaintext, "loopback")
        .start()
        .await;
    for _ in 0..2 {
        let answer = gateway.plain_client().call(READ, "{}").await;
        assert_eq!(answer.header("kybio-gateway-outcome"), "done");
    }
    let event = gateway.event(|event| event["message"] == "request").await;
    assert_eq!(event["caller"], "orders");
    assert!(event["peer"].as_str().unwrap().starts_with("127.0.0.1:"));
}

/// A page from anywhere can have a browser on this machine call 127.0.0.1, but then its own host is named.
#[tokio::test]
async fn on_loopback_a_request_that_names_another_host_is_refused() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = setup(&pki, &upstream, Door::Plaintext, "loopback")
        .start()
        .await;
    let client = gateway.plain_client();
    let own = format!("localhost:{}", gateway.address.port());
    for (host, code) in [(own.as_str(), None), ("evil.example", Some("bad-host"))] {
        let answer = client.call_with(READ, &[("host", host)], "{}").await;
        let refused = (answer.status != 200).then(|| answer.refusal().1);
        assert_eq!(refused.as_deref(), code, "{host}");
    }
    assert_eq!(upstream.seen().len(), 1);

    // On a unix socket no browser calls, and any name will do.
    let gateway = unix(&pki, &upstream).start().await;
    let headers = [("host", "gateway.internal")];
    let answer = gateway.plain_client().call_with(READ, &headers, "{}").await;
    assert_eq!(answer.status, 200);
}

/// One gateway can be called by some of its callers: that the others can't is told, and keeps nobody out. Where nobody can call, it ends.
#[tokio::test]
async fn identities_that_cannot_come_are_told_and_a_gateway_for_nobody_does_not_start() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let certified = "[callers.certified]\nidentities = [\"spiffe://shop.example/sync\"]\naccounts = [\"main\"]\noperations = [\"*\"]\n";
    let mut some = unix(&pki, &upstream);
    some.more.push_str(certified);
    some.write();
    let check = |setup: &Setup| {
        let path = setup.path("gateway.toml");
        tools::run(tools::binary().args(["check", "--config"]).arg(path))
    };
    let checked = check(&some);
    assert_eq!(checked.status.code(), Some(78));
    let said = "\"spiffe://shop.example/sync\" can't be anybody's: the listener is a unix socket, where callers are known by their users; for example: \"uid:1000\"";
    assert!(tools::stderr(&checked).contains(said), "{checked:?}");
    let gateway = some.start().await;
    let answer = gateway.plain_client().call(READ, "{}").await;
    assert_eq!(answer.status, 200);
    gateway
        .event(|event| event["message"] == "configuration" && event["level"] == "WARN")
        .await;

    for (door, identity, here) in [
        (Door::Unix, "spiffe://shop.example/orders", "users"),
        (Door::Unix, "loopback", "users"),
        (Door::Plaintext, "uid:0", "tell callers apart"),
        (Door::Plaintext, "dns:orders.internal", "tell callers apart"),
        (Door::Tls, "uid:0", "certificates"),
        (Door::Tls, "loopback", "certificates"),
    ] {
        let nobody = setup(&pki, &upstream, door, identity);
        let output = Launch::default().refused(&nobody, &[]);
        assert_eq!(output.status.code(), Some(78), "{door:?} {identity}");
        let said = tools::stderr(&output);
        let expected = format!("callers.orders.identities: {identity:?} can't be anybody's");
        assert!(said.contains(&expected) && said.contains(here), "{said}");
    }
}

/// What speaks another protocol gets no answer that it could take for one, and is counted.
#[tokio::test]
async fn tls_and_http2_are_refused_where_there_is_neither() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = unix(&pki, &upstream).start().await;
    for (bytes, cause) in [
        (&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], "HTTP2 preface"),
        (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            "HTTP method",
        ),
    ] {
        let mut stream = UnixStream::connect(gateway.setup.path("gateway.sock"))
            .await
            .unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 400"),
            "{answer:?}"
        );
        gateway
            .event(|event| {
                event["message"] == "a malformed request was refused"
                    && event["cause"].as_str().unwrap().contains(cause)
            })
            .await;
    }
    let malformed = "kybio_gateway_downstream_malformed_total";
    assert_eq!(gateway.metric(malformed).await, 2.0);
}

#[tokio::test]
async fn stalled_callers_on_a_unix_socket_are_closed_by_their_clocks() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = unix(&pki, &upstream);
    setup
        .listener
        .push_str("header_timeout = \"200ms\"\nidle_timeout = \"300ms\"\n");
    let gateway = setup.start().await;
    let head = b"POST /openapi/v1/customerOpenApi/add HTTP/1.1\r\nhost: gat";
    for (clock, bytes) in [("idle", &b""[..]), ("head", head)] {
        let mut stream = UnixStream::connect(gateway.setup.path("gateway.sock"))
            .await
            .unwrap();
        stream.write_all(bytes).await.unwrap();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0, "{clock}");
        let series = format!("kybio_gateway_downstream_timeouts_total{{clock=\"{clock}\"}}");
        assert_eq!(gateway.metric(&series).await, 1.0, "{clock}");
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_their_turn_on_a_unix_socket() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let flags = ["--set", "listener.connections_max=1"];
    let gateway = Gateway::start(unix(&pki, &upstream), &flags).await;
    let (first, second) = (gateway.plain_client(), gateway.plain_client());
    assert_eq!(first.call(READ, "{}").await.status, 200);
    let waiting = tokio::spawn(async move { second.call(READ, "{}").await });
    for _ in 0..20 {
        assert_eq!(first.call(READ, "{}").await.status, 200);
    }
    assert!(!waiting.is_finished());
    assert_eq!(upstream.seen().len(), 21);
    drop(first);
    assert_eq!(waiting.await.unwrap().status, 200);
}

#[tokio::test]
async fn the_end_is_orderly_on_a_unix_socket_and_its_file_goes() {
    let pki = Pki::new();
    for workers in ["runtime.workers=1", "runtime.workers=3"] {
        let (upstream, gate) = Upstream::held(&pki).await;
        let setup = unix(&pki, &upstream);
        let mut gateway = Gateway::start(setup, &["--set", workers]).await;
        let path = gateway.setup.path("gateway.sock");
        let client = gateway.plain_client();
        let call = tokio::spawn(async move { client.call(READ, "{}").await });
        upstream.arrived(1).await;
        gateway.signal("TERM");
        gateway
            .event(|event| event["message"] == "asked to end")
            .await;
        gate.add_permits(1);
        let answer = call.await.unwrap();
        assert_eq!(answer.header("kybio-gateway-outcome"), "done");
        assert_eq!(answer.header("connection"), "close");
        assert_eq!(gateway.ended().await.code(), Some(0));
        assert!(!path.exists(), "the file is gone");
    }
}

#[tokio::test]
async fn a_socket_that_a_killed_gateway_left_is_taken_over_and_one_that_lives_is_not() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let setup = unix(&pki, &upstream);
    let path = setup.path("gateway.sock");
    // A process that was killed leaves its file: nobody listens there any more.
    drop(UnixListener::bind(&path).unwrap());
    let gateway = setup.start().await;
    assert_eq!(gateway.plain_client().call(READ, "{}").await.status, 200);

    let second = Launch::default().refused(&gateway.setup, &[]);
    assert_eq!(second.status.code(), Some(1));
    let said = tools::stderr(&second);
    assert!(
        said.contains("listener.address: unix:") && said.contains("is another gateway running?"),
        "{said}"
    );
    assert_eq!(gateway.plain_client().call(READ, "{}").await.status, 200);
}

#[tokio::test]
async fn a_file_that_is_no_socket_is_never_removed() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let setup = unix(&pki, &upstream);
    let path = setup.path("gateway.sock");
    std::fs::write(&path, "precious").unwrap();
    let output = Launch::default().refused(&setup, &[]);
    assert_eq!(output.status.code(), Some(78));
    let said = tools::stderr(&output);
    assert!(said.contains("isn't a socket: it's left alone"), "{said}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[tokio::test]
async fn at_the_end_a_file_that_is_anothers_stays() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut gateway = unix(&pki, &upstream).start().await;
    let path = gateway.setup.path("gateway.sock");
    std::fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    gateway.signal("TERM");
    assert_eq!(gateway.ended().await.code(), Some(0));
    assert!(path.exists());
}

/// Whatever the umask is, which systemd units set to 0077.
#[tokio::test]
async fn the_file_has_the_mode_that_is_written() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    for (umask, line, mode) in [
        ("umask 0000;", "", 0o660),
        ("umask 0077;", "", 0o660),
        ("umask 0000;", "socket_mode = \"0600\"\n", 0o600),
        ("umask 0077;", "socket_mode = \"0666\"\n", 0o666),
    ] {
        let mut setup = unix(&pki, &upstream);
        setup.listener.push_str(line);
        let gateway = Gateway::start_by(Launch::after(umask), setup, &[]).await;
        let found = std::fs::metadata(gateway.setup.path("gateway.sock")).unwrap();
        assert!(found.file_type().is_socket());
        let found = found.permissions().mode() & 0o7777;
        assert_eq!(found, mode, "{umask} {line}");
    }
}

/// curl speaks to both, as a service's own library would.
#[tokio::test]
async fn curl_calls_through_a_unix_socket_and_on_loopback() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let by_unix = unix(&pki, &upstream).start().await;
    let by_loopback = setup(&pki, &upstream, Door::Plaintext, "loopback")
        .start()
        .await;
    let path = by_unix.setup.path("gateway.sock").display().to_string();
    let local = format!("http://{}/openapi/v1/{READ}", by_loopback.address);
    let named = format!("http://localhost/openapi/v1/{READ}");
    let calls = [vec!["--unix-socket", &path, &named], vec![&local]];
    // curl blocks, and the upstream lives on this thread.
    let calls = calls.map(|call| call.into_iter().map(str::to_owned).collect::<Vec<_>>());
    let answers = tokio::task::spawn_blocking(move || {
        calls.map(|call| {
            let mut curl = Command::new("curl");
            curl.args(["--silent", "--show-error", "--max-time", "20"]);
            curl.args(["-H", "Content-Type: application/json", "-d", "{}"]);
            tools::run(curl.args(call))
        })
    });
    for output in answers.await.unwrap() {
        let said = tools::stdout(&output);
        assert!(said.contains("\"status\":\"success\""), "{output:?}");
    }
    assert_eq!(upstream.seen().len(), 2);
}

#[tokio::test]
async fn a_plain_caller_gets_nowhere_where_there_is_tls() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    let request = Client::request(&format!("/openapi/v1/{READ}"), &[], "{}");
    assert!(gateway.plain_client().send(request).await.is_err());
    gateway.event(|event| event["reason"] == "protocol").await;
    assert!(upstream.seen().is_empty());
}
