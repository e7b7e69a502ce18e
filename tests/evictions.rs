//! Promises U2 and W1: who has lost its right to come in, by a revocation list, a CA or its table's end, is out at once: with its next
//! request, on connections that are open, that are idle, and on sessions that would be resumed. Nobody else notices.

use rcgen::date_time_ymd;
use rustls::version::{TLS12, TLS13};
use rustls::{HandshakeKind, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_rustls::client::TlsStream;

use crate::support::frames::{Frames, GOAWAY};
use crate::support::gateway::ORDERS;
use crate::support::pki::{Pair, Wanted};
use crate::support::tools::PATIENCE;
use crate::support::{Client, Gateway, Pki, Setup, Upstream, tools};

const WRITE: &str = "customerOpenApi/add";
const ACCEPTED: &str = "kybio_gateway_downstream_connections_accepted_total";

/// Every way to come in.
const WAYS: [(&str, &SupportedProtocolVersion); 4] = [
    ("http/1.1", &TLS13),
    ("http/1.1", &TLS12),
    ("h2", &TLS13),
    ("h2", &TLS12),
];

/// The serial number of the certificate that will be revoked.
const REVOKED: u64 = 66;

fn revoke(setup: &Setup, authorities: &[&Pki], serials: &[u64]) {
    let lists: Vec<_> = authorities
        .iter()
        .map(|authority| authority.revocation_list(serials, date_time_ymd(2100, 1, 1)))
        .collect();
    tools::write(&setup.path("callers.crl"), lists.concat(), 0o644);
}

/// Two callers: `orders`, and `tills` whose table is a file of its own. A revocation list that has nobody of them.
fn setup(pki: &Pki, upstream: &Upstream) -> Setup {
    let mut setup = Setup::reloaded_by_hand(pki, upstream);
    setup.listener.push_str("client_crl = [\"callers.crl\"]\n");
    setup.include_folder("callers.d");
    let tills = "[callers.tills]\nidentities = [\"dns:tills.internal\"]\naccounts = [\"*\"]\noperations = [\"*\"]\n";
    std::fs::write(setup.path("callers.d/tills.toml"), tills).unwrap();
    revoke(&setup, &[pki], &[1]);
    setup
}

fn tills(pki: &Pki) -> Pair {
    pki.issue(&Wanted {
        dns: &["tills.internal"],
        ..Wanted::default()
    })
}

fn client(
    gateway: &Gateway,
    pki: &Pki,
    pair: &Pair,
    (alpn, version): (&str, &'static SupportedProtocolVersion),
) -> Client {
    Client::new(
        gateway.address,
        pki.client_config(Some(pair), &[alpn], &[version]),
    )
}

async fn serves(client: &Client) -> bool {
    client.call(WRITE, "{}").await.status == 200
}

fn closed_by_reload(reason: &str) -> String {
    format!("kybio_gateway_downstream_closed_by_reload_total{{reason=\"{reason}\"}}")
}

fn failures(reason: &str) -> String {
    format!("kybio_gateway_tls_handshake_failures_total{{reason=\"{reason}\"}}")
}

/// A connection on which nothing goes on.
enum Idle {
    Http1(TlsStream<TcpStream>),
    Http2(Frames),
}

impl Idle {
    /// After an answered call, or right after the handshake.
    async fn open(client: &Client, alpn: &str, called: bool) -> Self {
        if alpn == "h2" {
            let mut frames = Frames::open(client).await;
            if called {
                frames.ask(1, WRITE, "{}").await;
                assert!(frames.answer(1).await.contains("success"));
            }
            return Self::Http2(frames);
        }
        let mut stream = client.stream().await.unwrap();
        if called {
            let request = format!(
                "POST /openapi/v1/{WRITE} HTTP/1.1\r\nhost: gateway.test\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}"
            );
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            while !String::from_utf8_lossy(&answer).contains("success") {
                assert!(stream.read_buf(&mut answer).await.unwrap() > 0);
            }
        }
        Self::Http1(stream)
    }

    /// It's closed without another byte of HTTP/1.1, and with a GOAWAY on HTTP/2.
    async fn is_closed(&mut self) {
        match self {
            Self::Http1(stream) => {
                let read = timeout(PATIENCE, stream.read(&mut [0; 1])).await;
                let read = read.expect("it's closed").unwrap_or(0);
                assert_eq!(read, 0);
            }
            Self::Http2(frames) => {
                assert!(!frames.leaves().await.is_empty(), "it's told so");
            }
        }
    }
}

/// Whether a new connection comes as far as HTTP. On TLS 1.3 a caller learns only afterwards that it was refused.
async fn comes_in(client: &Client, alpn: &str) -> bool {
    let Ok(mut stream) = client.stream().await else {
        return false;
    };
    let first = match alpn {
        "h2" => "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        _ => "GET / HTTP/1.1\r\nhost: gateway.test\r\n\r\n",
    };
    let _ = stream.write_all(first.as_bytes()).await;
    let _ = stream.flush().await;
    let read = timeout(PATIENCE, stream.read(&mut [0; 1])).await;
    read.expect("an answer or an end").unwrap_or(0) > 0
}

/// What a caller meets who has no right any more: a refusal, or no connection at all; never an answer to its call.
async fn is_out(client: &Client, alpn: &str, code: &str) {
    let request = Client::request(
        &format!("/openapi/v1/{WRITE}"),
        &[("content-type", "application/json")],
        "{}",
    );
    let Ok(answer) = client.send(request).await else {
        return;
    };
    let refusal = (403, code.to_owned(), "not-sent".to_owned(), "no".to_owned());
    assert_eq!(answer.refusal(), refusal, "{alpn}");
    if alpn == "http/1.1" && code == "certificate-refused" {
        assert_eq!(answer.header("connection"), "close");
    }
}

#[tokio::test]
async fn a_revoked_caller_is_out() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = setup(&pki, &upstream).start().await;
    for (number, way) in WAYS.into_iter().enumerate() {
        let (alpn, _) = way;
        let serial = REVOKED + u64::try_from(number).unwrap();
        let lost = pki.issue(&Wanted {
            uris: &[ORDERS],
            serial,
            ..Wanted::default()
        });
        // The same caller, with another certificate.
        let bystander = client(&gateway, &pki, &pki.caller(ORDERS), way);
        let kept = client(&gateway, &pki, &lost, way);
        assert!(serves(&bystander).await && serves(&kept).await);
        let mut fresh = Idle::open(&kept, alpn, false).await;
        let mut used = Idle::open(&kept, alpn, true).await;
        let kind = kept.stream().await.unwrap().get_ref().1.handshake_kind();
        assert_eq!(
            kind,
            Some(HandshakeKind::Resumed),
            "{alpn}: it could come back"
        );
        let closed = gateway.metric(&closed_by_reload("revoked")).await;
        let sent = upstream.seen().len();

        revoke(&gateway.setup, &[&pki], &[1, serial]);
        gateway.reload().await;
        is_out(&kept, alpn, "certificate-refused").await;
        fresh.is_closed().await;
        used.is_closed().await;
        // Neither with a session of before, nor with a new one.
        let failed = gateway.metric(&failures("revoked")).await;
        let anew = client(&gateway, &pki, &lost, way);
        for client in [&kept, &anew] {
            assert!(!comes_in(client, alpn).await, "{way:?}");
        }
        gateway
            .metric_reaches(&failures("revoked"), failed + 2.0)
            .await;
        assert_eq!(upstream.seen().len(), sent, "nothing was sent");
        gateway
            .metric_reaches(&closed_by_reload("revoked"), closed + 2.0)
            .await;
        let accepted = gateway.metric(ACCEPTED).await;
        assert!(serves(&bystander).await);
        assert_eq!(
            gateway.metric(ACCEPTED).await,
            accepted,
            "the other certificate's connection is still the first one"
        );
    }
}

#[tokio::test]
async fn a_removed_caller_is_out() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = setup(&pki, &upstream).start().await;
    let file = gateway.setup.path("callers.d/tills.toml");
    let table = std::fs::read_to_string(&file).unwrap();
    for way in WAYS {
        let (alpn, _) = way;
        let lost = tills(&pki);
        let bystander = client(&gateway, &pki, &pki.caller(ORDERS), way);
        let kept = client(&gateway, &pki, &lost, way);
        assert!(serves(&bystander).await && serves(&kept).await);
        let mut fresh = Idle::open(&kept, alpn, false).await;
        let mut used = Idle::open(&kept, alpn, true).await;
        let closed = gateway.metric(&closed_by_reload("unknown-caller")).await;
        let sent = upstream.seen().len();

        std::fs::remove_file(&file).unwrap();
        gateway.reload().await;
        is_out(&kept, alpn, "unknown-caller").await;
        fresh.is_closed().await;
        used.is_closed().await;
        // Its certificate is as good as before: it's told why.
        let anew = client(&gateway, &pki, &lost, way);
        let refusal = anew.call(WRITE, "{}").await.refusal();
        assert_eq!((refusal.0, &*refusal.1), (403, "unknown-caller"));
        assert_eq!(upstream.seen().len(), sent, "nothing was sent");
        gateway
            .metric_reaches(&closed_by_reload("unknown-caller"), closed + 2.0)
            .await;
        let accepted = gateway.metric(ACCEPTED).await;
        assert!(serves(&bystander).await);
        assert_eq!(gateway.metric(ACCEPTED).await, accepted);

        std::fs::write(&file, &table).unwrap();
        gateway.reload().await;
        assert!(
            serves(&client(&gateway, &pki, &lost, way)).await,
            "and back"
        );
    }
}

#[tokio::test]
async fn callers_of_a_ca_that_is_not_trusted_any_more_are_out() {
    let (old, new) = (Pki::new(), Pki::new());
    let upstream = Upstream::start(&old).await;
    let setup = setup(&old, &upstream);
    let both = old.certificate() + &new.certificate();
    tools::write(&setup.path("callers-ca.pem"), both, 0o644);
    revoke(&setup, &[&old, &new], &[1]);
    let gateway = setup.start().await;
    let mut lost = Vec::new();
    let mut stay = Vec::new();
    for way in WAYS {
        let (alpn, _) = way;
        for (pair, list) in [
            (old.caller(ORDERS), &mut lost),
            (new.caller(ORDERS), &mut stay),
        ] {
            let client = client(&gateway, &old, &pair, way);
            assert!(serves(&client).await);
            list.push((alpn, Idle::open(&client, alpn, true).await, client));
        }
    }
    tools::write(
        &gateway.setup.path("callers-ca.pem"),
        new.certificate(),
        0o644,
    );
    gateway.reload().await;
    for (alpn, idle, client) in &mut lost {
        is_out(client, alpn, "certificate-refused").await;
        idle.is_closed().await;
    }
    gateway
        .metric_reaches(&closed_by_reload("unknown-issuer"), 4.0)
        .await;
    let accepted = gateway.metric(ACCEPTED).await;
    for (_, _, client) in &stay {
        assert!(serves(client).await);
    }
    assert_eq!(gateway.metric(ACCEPTED).await, accepted);
}

/// HTTP/2 lets a caller go on after a GOAWAY, until it has said that it saw it. Who doesn't listen is told with each request.
#[tokio::test]
async fn a_request_on_an_open_connection_of_a_revoked_certificate_is_refused() {
    let pki = Pki::new();
    let (upstream, gate) = Upstream::held(&pki).await;
    let gateway = setup(&pki, &upstream).start().await;
    let lost = pki.issue(&Wanted {
        uris: &[ORDERS],
        serial: REVOKED,
        ..Wanted::default()
    });
    let mut http2 = Frames::open(&client(&gateway, &pki, &lost, ("h2", &TLS13))).await;
    http2.ask(1, WRITE, "{}").await;
    // Two requests at once: the second is read when the first has been answered.
    let mut http1 = client(&gateway, &pki, &lost, ("http/1.1", &TLS13))
        .stream()
        .await
        .unwrap();
    let request = format!(
        "POST /openapi/v1/{WRITE} HTTP/1.1\r\nhost: gateway.test\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}"
    );
    http1.write_all(request.repeat(2).as_bytes()).await.unwrap();
    upstream.arrived(2).await;

    revoke(&gateway.setup, &[&pki], &[1, REVOKED]);
    gateway.reload().await;
    http2.ask(3, WRITE, "{}").await;
    let refused = http2.answer(3).await;
    for word in [
        "\"code\":\"certificate-refused\"",
        "\"outcome\":\"not-sent\"",
        "\"errorCode\":-403",
    ] {
        assert!(refused.contains(word), "{refused}");
    }
    gate.add_permits(2);
    assert!(
        http2.answer(1).await.contains("success"),
        "what was under way ends well"
    );
    let mut all = Vec::new();
    timeout(PATIENCE, http1.read_to_end(&mut all))
        .await
        .expect("it ends")
        .unwrap();
    let all = String::from_utf8(all).unwrap();
    let answers: Vec<_> = all.split("HTTP/1.1 ").skip(1).collect();
    assert!(answers[0].starts_with("200 "), "{all}");
    // Either it was asked to leave with the answer that it waited for, or it's refused with the next.
    let last = answers.last().unwrap().to_ascii_lowercase();
    assert!(last.contains("connection: close"), "{all}");
    if let [_, second] = answers[..] {
        assert!(
            second.starts_with("403 ") && second.contains("certificate-refused"),
            "{all}"
        );
    }
    assert_eq!(upstream.seen().len(), 2);
}

/// Told to go, a caller of HTTP/2 that answers no ping can go on asking.
#[tokio::test]
#[expect(
    clippy::disallowed_methods,
    reason = "certificates go by the real time"
)]
async fn a_request_after_the_certificates_end_is_refused() {
    let pki = Pki::new();
    let (upstream, gate) = Upstream::held(&pki).await;
    let gateway = setup(&pki, &upstream).start().await;
    let until =
        time::OffsetDateTime::from(std::time::SystemTime::now()) + time::Duration::seconds(2);
    let short = pki.issue(&Wanted {
        uris: &[ORDERS],
        until,
        ..Wanted::default()
    });
    let mut http2 = Frames::open(&client(&gateway, &pki, &short, ("h2", &TLS13))).await;
    http2.ask(1, WRITE, "{}").await;
    upstream.arrived(1).await;
    http2.frame(GOAWAY).await;
    http2.ask(3, WRITE, "{}").await;
    let refused = http2.answer(3).await;
    assert!(
        refused.contains("\"code\":\"certificate-refused\""),
        "{refused}"
    );
    gate.add_permits(1);
    assert!(
        http2.answer(1).await.contains("success"),
        "what was under way ends well"
    );
    assert_eq!(upstream.seen().len(), 1);
}

/// Lists are of whole seconds, and the connection is older than its list's end.
#[tokio::test]
#[expect(
    clippy::disallowed_methods,
    reason = "revocation lists go by the real time"
)]
async fn a_revocation_list_that_ends_refuses_open_connections_too() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let setup = setup(&pki, &upstream);
    let until =
        time::OffsetDateTime::from(std::time::SystemTime::now()) + time::Duration::seconds(3);
    let list = pki.revocation_list(&[], until);
    tools::write(&setup.path("callers.crl"), list, 0o644);
    let gateway = setup.start().await;
    let clients = [gateway.client(&pki), gateway.http2_client(&pki)];
    for client in &clients {
        assert!(serves(client).await);
    }
    for client in clients {
        let refused = loop {
            let answer = client.call(WRITE, "{}").await;
            if answer.status != 200 {
                break answer;
            }
        };
        assert_eq!(
            refused.refusal(),
            (
                403,
                "certificate-refused".into(),
                "not-sent".into(),
                "no".into()
            )
        );
        assert!(refused.text().contains("crl-expired"), "{}", refused.text());
    }
}

/// A session is resumed without its certificate being shown again, so it must be looked at again.
#[tokio::test]
async fn a_session_of_before_is_not_resumed_after_the_listeners_files_have_changed() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = setup(&pki, &upstream).start().await;
    let pair = tills(&pki);
    for way in WAYS {
        let caller = client(&gateway, &pki, &pair, way);
        let kind = async || {
            let stream = caller.stream().await.unwrap();
            stream.get_ref().1.handshake_kind().unwrap()
        };
        assert!(serves(&caller).await);
        assert_eq!(kind().await, HandshakeKind::Resumed, "{way:?}");
        assert!(serves(&caller).await);
        for (what, change) in [
            (
                "list",
                &(|setup: &Setup| revoke(setup, &[&pki], &[2])) as &dyn Fn(&Setup),
            ),
            ("CA", &|setup| {
                let both = pki.certificate() + &Pki::new().certificate();
                tools::write(&setup.path("callers-ca.pem"), both, 0o644);
            }),
            ("certificate", &|setup| {
                let server = pki.server("gateway.test");
                tools::write(&setup.path("gateway.pem"), server.certificate, 0o644);
                tools::write(&setup.path("gateway.key"), server.key, 0o600);
            }),
        ] {
            // So that there's a ticket, and it's new.
            let before = client(&gateway, &pki, &pair, way);
            assert!(serves(&before).await);
            change(&gateway.setup);
            gateway.reload().await;
            let stream = before.stream().await.unwrap();
            let kind = stream.get_ref().1.handshake_kind();
            assert_eq!(kind, Some(HandshakeKind::Full), "{way:?} {what}");
        }
        // As it was, for the next.
        tools::write(
            &gateway.setup.path("callers-ca.pem"),
            pki.certificate(),
            0o644,
        );
        revoke(&gateway.setup, &[&pki], &[1]);
        gateway.reload().await;
    }
    for reason in ["unknown-issuer", "revoked", "unknown-caller"] {
        let closed = gateway.metric(&closed_by_reload(reason)).await;
        assert_eq!(closed, 0.0, "who may stay isn't sent away: {reason}");
    }
}

#[tokio::test]
#[expect(
    clippy::disallowed_methods,
    reason = "certificates go by the real time"
)]
async fn a_session_is_not_resumed_after_its_certificates_end() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = setup(&pki, &upstream).start().await;
    let until =
        time::OffsetDateTime::from(std::time::SystemTime::now()) + time::Duration::seconds(4);
    let pair = pki.issue(&Wanted {
        uris: &[ORDERS],
        until,
        ..Wanted::default()
    });
    let mut callers = Vec::new();
    for way in WAYS {
        let (alpn, _) = way;
        let caller = client(&gateway, &pki, &pair, way);
        assert!(serves(&caller).await);
        callers.push((alpn, Idle::open(&caller, alpn, true).await, caller));
    }
    for (alpn, idle, caller) in &mut callers {
        // It ends with the certificate.
        idle.is_closed().await;
        assert!(!comes_in(caller, alpn).await);
    }
    gateway.metric_reaches(&failures("expired"), 4.0).await;
    assert_eq!(upstream.seen().len(), 8);
}

/// Most of HTTP/1.1, some of HTTP/2; some after a call, most without.
#[tokio::test]
async fn a_thousand_idle_connections_of_a_removed_caller_are_closed() {
    const CONNECTIONS: usize = 1_000;
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = setup(&pki, &upstream);
    setup.connections_of_one(CONNECTIONS + 10);
    let gateway = setup.start().await;
    let bystander = gateway.client(&pki);
    assert!(serves(&bystander).await);
    let lost = tills(&pki);
    let callers = ["http/1.1", "h2"].map(|alpn| client(&gateway, &pki, &lost, (alpn, &TLS13)));
    let mut idle = Vec::new();
    for number in 0..CONNECTIONS {
        let which = usize::from(number % 5 == 0);
        let alpn = ["http/1.1", "h2"][which];
        idle.push(Idle::open(&callers[which], alpn, number % 10 < 2).await);
    }
    let open = "kybio_gateway_downstream_connections";
    gateway.metric_reaches(open, (CONNECTIONS + 1) as f64).await;
    std::fs::remove_file(gateway.setup.path("callers.d/tills.toml")).unwrap();
    gateway.reload().await;
    let since = Instant::now();
    let mut closing = JoinSet::new();
    for mut connection in idle {
        closing.spawn(async move {
            connection.is_closed().await;
            since.elapsed()
        });
    }
    let took = closing.join_all().await.into_iter().max().unwrap();
    println!("{CONNECTIONS} connections were closed within {took:?}");
    let closed = closed_by_reload("unknown-caller");
    let closed = gateway.metric_reaches(&closed, CONNECTIONS as f64).await;
    assert_eq!(closed, CONNECTIONS as f64);
    let accepted = gateway.metric(ACCEPTED).await;
    assert!(serves(&bystander).await);
    assert_eq!(gateway.metric(ACCEPTED).await, accepted);
}

#[tokio::test]
async fn a_connection_that_is_already_leaving_is_counted_once() {
    let pki = Pki::new();
    let (upstream, gate) = Upstream::held(&pki).await;
    let gateway = setup(&pki, &upstream).start().await;
    let lost = client(&gateway, &pki, &tills(&pki), WAYS[0]);
    let call = tokio::spawn(async move { lost.call(WRITE, "{}").await });
    upstream.arrived(1).await;
    std::fs::remove_file(gateway.setup.path("callers.d/tills.toml")).unwrap();
    gateway.reload().await;
    // It waits for its answer, while other reloads come.
    for serial in [2, 3] {
        revoke(&gateway.setup, &[&pki], &[serial]);
        gateway.reload().await;
    }
    let closed = closed_by_reload("unknown-caller");
    assert_eq!(gateway.metric_reaches(&closed, 1.0).await, 1.0);
    gate.add_permits(1);
    let answer = call.await.unwrap();
    assert_eq!(
        (answer.status.as_u16(), answer.header("connection")),
        (200, "close")
    );
    assert_eq!(gateway.metric(&closed).await, 1.0);
}
