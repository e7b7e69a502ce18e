//! Promise S3: a signed body goes to the account's own host or nowhere: not where DNS is made to point, not through a proxy that the
//! environment names, not to another host that an answer names. And what the host repeats of it doesn't come back.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use flate2::Compression;
use flate2::write::GzEncoder;
use http::Response;
use http_body_util::Full;
use std::io::Write;
use tokio::net::TcpListener;

use crate::support::gateway::{APP_ID, APP_KEY};
use crate::support::upstream::{Act, SUCCESS, signature};
use crate::support::{Gateway, Pki, Setup, Upstream, names, tools};

const READ: &str = "customerOpenApi/queryByUid";
const WRITE: &str = "customerOpenApi/add";

/// The upstream's name has these addresses.
fn named(setup: &mut Setup, upstream: &Upstream, addresses: &[&str]) {
    let hosts = setup.path("hosts");
    let lines: String = addresses
        .iter()
        .map(|address| format!("{address} upstream.test\n"))
        .collect();
    std::fs::write(&hosts, lines).unwrap();
    setup.environment = names::from_file(&hosts);
    setup.port = Some(upstream.address.port());
}

/// A listener that nobody should come to, and how many did.
async fn trap() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let caught = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&caught);
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    (address, caught)
}

#[tokio::test]
async fn a_name_that_leads_to_this_machine_or_into_a_private_network_is_not_followed() {
    let pki = Pki::new();
    for address in [
        "127.0.0.1",
        "::1",
        "10.1.2.3",
        "169.254.169.254",
        "::ffff:127.0.0.1",
    ] {
        let upstream = Upstream::start(&pki).await;
        let mut setup = Setup::new(&pki, None);
        named(&mut setup, &upstream, &[address]);
        setup.kybio.push_str("attempts_max = 1\n");
        let gateway = setup.start().await;
        let answer = gateway.client(&pki).call(WRITE, "{}").await;
        let expected = (
            502,
            "upstream-unreachable".to_owned(),
            "not-sent".to_owned(),
            "yes".to_owned(),
        );
        assert_eq!(answer.refusal(), expected, "{address}");
        // The log has the address, and what to do. The caller hears of no network.
        assert!(!answer.text().contains(address), "{}", answer.text());
        let event = gateway
            .request_event(answer.header("kybio-gateway-request-id"))
            .await;
        let cause = event["cause"].as_str().unwrap();
        let is_host = address != "169.254.169.254";
        let hint = if is_host {
            "set allow_private"
        } else {
            "look at DNS"
        };
        assert!(cause.contains(hint), "{cause}");
        assert_eq!(event["attempt"], "destination");
        assert_eq!(upstream.connections(), 0, "{address}");
        let check = tools::run(
            tools::binary()
                .envs(gateway.setup.environment.clone())
                .args(["check", "--connect", "--config"])
                .arg(gateway.setup.path("gateway.toml")),
        );
        assert_eq!(check.status.code(), Some(1), "{address}");
        assert!(tools::stderr(&check).contains(hint), "{check:?}");
    }
}

#[tokio::test]
async fn a_private_host_is_reached_once_the_operator_says_so() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::reloaded_by_hand(&pki, &upstream);
    setup.upstream = None;
    named(&mut setup, &upstream, &["127.0.0.1"]);
    setup.kybio.push_str("allow_private = true\n");
    let mut gateway = setup.start().await;
    let client = gateway.client(&pki);
    assert_eq!(client.call(WRITE, "{}").await.status, 200);
    assert!(upstream.only().is_signed_with(APP_KEY));
    // Nor is what was allowed once kept for later.
    gateway.setup.kybio.clear();
    gateway.setup.write();
    gateway.reload().await;
    assert_eq!(client.call(WRITE, "{}").await.status, 502);
    assert_eq!(upstream.seen().len(), 1);
}

/// Nothing is listening at a link-local address, whatever is allowed: a cloud's metadata service is.
#[tokio::test]
async fn link_local_addresses_are_never_a_host() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::new(&pki, None);
    named(&mut setup, &upstream, &["169.254.169.254"]);
    setup
        .kybio
        .push_str("attempts_max = 1\nallow_private = true\n");
    let gateway = setup.start().await;
    let answer = gateway.client(&pki).call(WRITE, "{}").await;
    assert_eq!(answer.refusal().2, "not-sent");
    let id = answer.header("kybio-gateway-request-id").to_owned();
    assert_eq!(gateway.request_event(&id).await["attempt"], "destination");
}

/// An address in the URL is the operator's own word, and still may be a slip: it's told before anything runs.
#[test]
fn an_address_in_the_url_that_would_not_be_connected_to_is_a_fault() {
    let pki = Pki::new();
    let cases = [
        ("https://10.1.2.3/a", "", Some("allow_private = true")),
        ("https://10.1.2.3/a", "allow_private = true", None),
        ("https://10.1.2.3/a", "resolve = [\"127.0.0.1:1\"]", None),
        ("https://[fd00::1]/a", "", Some("allow_private = true")),
        (
            "https://[::ffff:10.0.0.1]/a",
            "",
            Some("allow_private = true"),
        ),
        (
            "https://169.254.169.254/a",
            "allow_private = true",
            Some("name the host"),
        ),
        ("https://8.8.8.8/a", "", None),
        ("https://127.0.0.1:9443/a", "", None),
        ("https://localhost:9443/a", "", None),
        ("https://LOCALHOST:9443/a", "", None),
        ("https://[::ffff:127.0.0.1]:9443/a", "", None),
        ("http://127.0.0.1:9443/a", "", None),
    ];
    for (url, line, fault) in cases {
        let mut setup = Setup::new(&pki, None);
        setup.kybio = format!("{line}\n");
        let path = setup.write();
        tools::change(&path, |text| {
            text.replace("https://upstream.test/pospal-api2", url)
        });
        let check = tools::run(tools::binary().args(["check", "--config"]).arg(path));
        let said = tools::stderr(&check);
        match fault {
            Some(hint) => {
                assert_eq!(check.status.code(), Some(78), "{url} {line}: {said}");
                assert!(
                    said.contains("upstreams.kybio.base_url: ") && said.contains(hint),
                    "{said}"
                );
            }
            None => assert_eq!(check.status.code(), Some(0), "{url} {line}: {said}"),
        }
    }
}

/// `localhost` is this machine, whatever a file of names or a name server makes of it: plain text goes nowhere else.
#[tokio::test]
async fn this_machines_name_leads_to_this_machine_alone() {
    let pki = Pki::new();
    let setup = Setup::new(&pki, None);
    let hosts = setup.path("hosts");
    std::fs::write(&hosts, "10.1.2.3 localhost\n").unwrap();
    let path = setup.write();
    for allowed in ["", "allow_private = true"] {
        tools::change(&path, |text| {
            text.replace(
                "base_url = \"https://upstream.test/pospal-api2\"",
                &format!("base_url = \"http://localhost:9/a\"\n{allowed}"),
            )
        });
        let check = tools::run(
            tools::binary()
                .envs(names::from_file(&hosts))
                .args(["check", "--connect", "--config"])
                .arg(&path),
        );
        assert_eq!(check.status.code(), Some(1), "{check:?}");
        let said = tools::stderr(&check);
        assert!(
            said.contains("10.1.2.3 (in a private network), which isn't this machine"),
            "{said}"
        );
        assert!(!said.contains("allow_private"), "{said}");
    }
}

#[tokio::test]
async fn proxies_and_key_logs_that_the_environment_names_are_not_used() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let (address, caught) = trap().await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    let key_log = setup.path("key-log");
    setup.environment = [
        "HTTPS_PROXY",
        "https_proxy",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
    ]
    .map(|name| (name, format!("http://{address}")))
    .into();
    let written = |path: &Path| path.display().to_string();
    setup.environment.push(("SSLKEYLOGFILE", written(&key_log)));
    let gateway = setup.start().await;
    let client = gateway.client(&pki);
    for operation in [READ, WRITE] {
        assert_eq!(client.call(operation, "{}").await.status, 200);
    }
    assert_eq!(upstream.seen().len(), 2);
    assert_eq!(caught.load(Ordering::SeqCst), 0);
    assert!(!key_log.exists());
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let pki = Pki::new();
    let (address, caught) = trap().await;
    let upstream = Upstream::scripted(&pki, move |seen| {
        let status = seen.text().trim_matches(|c: char| !c.is_ascii_digit())[..3]
            .parse()
            .unwrap();
        let mut answer = Response::builder().status::<u16>(status);
        for name in ["location", "content-location", "refresh", "alt-svc", "link"] {
            answer = answer.header(
                name,
                format!("https://{address}/pospal-api2/openapi/v1/customerOpenApi/add"),
            );
        }
        Act::Answer(answer.body(Full::new(SUCCESS.into())).unwrap())
    })
    .await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.kybio.push_str("attempts_max = 1\n");
    let gateway = setup.start().await;
    let client = gateway.client(&pki);
    for status in [201, 300, 301, 302, 303, 305, 307, 308] {
        let body = format!("{{\"a\":{status}}}");
        let answer = client.call(WRITE, body).await;
        assert_eq!(answer.refusal().2, "unknown", "{status}");
        for name in ["location", "content-location", "refresh", "alt-svc", "link"] {
            assert!(!answer.headers.contains_key(name), "{status}: {name}");
        }
    }
    assert_eq!(upstream.seen().len(), 8);
    assert_eq!(caught.load(Ordering::SeqCst), 0);
}

/// Some hosts say what they got. The gateway's callers are told the rest of it.
#[tokio::test]
async fn a_signature_that_the_host_repeats_does_not_come_back() {
    let pki = Pki::new();
    let upstream = Upstream::scripted(&pki, |seen| {
        let signature = seen.header("data-signature");
        let echo = format!(
            "{{\"status\":\"error\",\"messages\":[\"expected another than {signature}\"],\"errorCode\":17,\"data\":\"{}\"}}",
            signature.to_lowercase()
        );
        match seen.text() {
            text if text.contains("gzip") => {
                let mut packed = GzEncoder::new(Vec::new(), Compression::default());
                packed.write_all(echo.as_bytes()).unwrap();
                Act::Answer(
                    Response::builder()
                        .header("content-encoding", "gzip")
                        .body(Full::new(packed.finish().unwrap().into()))
                        .unwrap(),
                )
            }
            text if text.contains("name") => {
                let mut packed = flate2::GzBuilder::new()
                    .filename(signature)
                    .write(Vec::new(), Compression::default());
                packed.write_all(SUCCESS.as_bytes()).unwrap();
                Act::Answer(
                    Response::builder()
                        .header("content-encoding", "gzip")
                        .body(Full::new(packed.finish().unwrap().into()))
                        .unwrap(),
                )
            }
            text if text.contains("success") => Act::ok(echo.replace("error\"", "success\"")),
            text if text.contains("refused") => Act::status(401, echo),
            text if text.contains("broken") => Act::status(500, echo),
            text if text.contains("garbage") => Act::ok(signature.to_owned()),
            text if text.contains("fields") => Act::Answer(
                Response::builder()
                    .header("data-signature", signature)
                    .header("x-debug", signature)
                    .body(Full::new(SUCCESS.into()))
                    .unwrap(),
            ),
            _ => Act::ok(echo),
        }
    })
    .await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.kybio.push_str("attempts_max = 1\n");
    setup.level = "trace";
    let gateway = setup.start().await;
    let client = gateway.client(&pki);
    let mask = "*".repeat(32);
    for (what, accepted, masked) in [
        ("error", "identity", true),
        ("gzip", "identity", true),
        ("gzip", "gzip", true),
        ("success", "identity", true),
        ("refused", "identity", false),
        ("broken", "identity", false),
        ("garbage", "identity", false),
        ("fields", "identity", false),
        ("name of a packed file", "gzip", false),
    ] {
        let body = format!("{{\"a\":\"{what}\"}}");
        let headers = [("accept-encoding", accepted)];
        let answer = client.call_with(WRITE, &headers, body).await;
        let sent = format!("{{\"appId\":\"{APP_ID}\",\"a\":\"{what}\"}}");
        let signature = signature(APP_KEY, sent.as_bytes());
        assert_eq!(upstream.last().header("data-signature"), signature);
        let told = format!("{answer:?} {}", answer.text());
        for spelling in [&signature, &signature.to_lowercase()] {
            assert!(
                !told.contains(spelling.as_str()),
                "{what} {accepted}: {told}"
            );
        }
        if masked {
            let text = answer.text();
            let expected = format!(
                "[\"expected another than {mask}\"],\"errorCode\":17,\"data\":\"{mask}\"}}"
            );
            assert!(text.ends_with(&expected), "{what} {accepted}: {text}");
            let line = gateway
                .request_event(answer.header("kybio-gateway-request-id"))
                .await;
            assert_eq!(line["signature_masked"], true, "{line}");
        }
        let log = gateway.printed().join("\n");
        assert!(!log.to_uppercase().contains(&signature), "{what}: {log}");
    }
}

/// An answer to one caller isn't a signature of another's body: what the gateway signs, it sends.
#[tokio::test]
async fn nothing_asks_the_gateway_to_sign_only() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway: Gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    let client = gateway.client(&pki);
    let signed = signature(APP_KEY, format!("{{\"appId\":\"{APP_ID}\"}}").as_bytes());
    for (operation, headers) in [
        (WRITE, &[("expect", "100-continue")][..]),
        (WRITE, &[("x-http-method-override", "TRACE")]),
        (
            WRITE,
            &[
                ("data-signature", "?"),
                ("x-debug", "1"),
                ("trailer", "data-signature"),
            ],
        ),
        (
            READ,
            &[
                ("accept", "application/signature"),
                ("prefer", "return=representation"),
            ],
        ),
    ] {
        let answer = client.call_with(operation, headers, "{}").await;
        let told = format!("{answer:?} {}", answer.text());
        assert!(!told.to_uppercase().contains(&signed), "{told}");
    }
    for seen in upstream.seen() {
        assert!(seen.is_signed_with(APP_KEY));
    }
    for path in [
        "/sign",
        "/signature",
        "/keys",
        "/config",
        "/debug/pprof",
        "/metrics",
        "/readyz?verbose",
    ] {
        let (_, text) = gateway.admin_get(path).await;
        assert!(!text.to_uppercase().contains(&signed), "{path}");
    }
}
