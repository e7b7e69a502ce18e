//! Foreign programs as callers: OpenSSL, curl, nghttp2, Python's h2. What they don't get is as much of a promise as what they do.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::gateway::{APP_KEY, ORDERS};
use crate::support::upstream::{Act, SUCCESS};
use crate::support::{Gateway, Pki, Setup, Upstream, tools};

/// A CA as people make one, with OpenSSL, in the folder of a gateway that trusts it.
struct Authority {
    setup: Setup,
}

const CONFIGURATION: &str = "
[req]
distinguished_name = name
[name]
[ca]
default_ca = own
[own]
database = index.txt
new_certs_dir = .
serial = serial
crlnumber = crlnumber
certificate = callers-ca.pem
private_key = ca.key
default_md = sha256
default_days = 30
default_crl_days = 30
policy = anything
unique_subject = no
[anything]
commonName = supplied
";

/// How a certificate is asked for.
struct Leaf<'a> {
    name: &'a str,
    key: &'a str,
    digest: &'a str,
    /// Not before, not after.
    dates: Option<(&'a str, &'a str)>,
    extensions: &'a str,
}

const CLIENT: &str = "extendedKeyUsage = clientAuth";

impl Default for Leaf<'_> {
    fn default() -> Self {
        Self {
            name: "leaf",
            key: "ec",
            digest: "sha256",
            dates: None,
            extensions: CLIENT,
        }
    }
}

impl Authority {
    fn new() -> Self {
        let authority = Self {
            setup: Setup::new(&Pki::new(), None),
        };
        for (file, text) in [
            ("openssl.cnf", CONFIGURATION),
            ("index.txt", ""),
            // Of more than 64 bits, with letters.
            ("serial", "0BADC0FFEE0DDF00D1234567\n"),
            ("crlnumber", "01\n"),
        ] {
            tools::write(&authority.setup.path(file), text, 0o644);
        }
        authority.good(
            "req -x509 -config openssl.cnf -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 \
             -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign \
             -keyout ca.key -out callers-ca.pem -subj",
            &["/CN=a CA by OpenSSL"],
        );
        // An RSA key, so that suites with RSA are refused for their own sake.
        let names = "subjectAltName = DNS:gateway.test\nextendedKeyUsage = serverAuth";
        authority.issue(&Leaf {
            name: "gateway",
            key: "rsa:2048",
            extensions: names,
            ..Leaf::default()
        });
        authority
    }

    fn run(&self, words: &str, more: &[&str]) -> Output {
        let words = words.split_whitespace().chain(more.iter().copied());
        tools::run(
            Command::new("openssl")
                .args(words)
                .current_dir(self.setup.folder.path()),
        )
    }

    fn good(&self, words: &str, more: &[&str]) -> String {
        let output = self.run(words, more);
        assert!(output.status.success(), "{words}: {output:?}");
        tools::stdout(&output)
    }

    /// Makes `name.pem` and `name.key`.
    fn issue(&self, leaf: &Leaf<'_>) {
        let Leaf {
            name,
            key,
            digest,
            dates,
            extensions,
        } = leaf;
        let curve = match *key {
            "ec" => "-pkeyopt ec_paramgen_curve:P-256",
            _ => "",
        };
        self.good(
            &format!("req -new -config openssl.cnf -newkey {key} {curve} -nodes -keyout {name}.key -out {name}.csr -subj"),
            &["/CN=test leaf"],
        );
        let names = match *name {
            "gateway" => String::new(),
            _ => format!("subjectAltName = URI:{ORDERS}\n"),
        };
        std::fs::write(self.setup.path("extensions"), names + extensions).unwrap();
        let dates = dates.map(|(from, until)| format!("-startdate {from} -enddate {until}"));
        let dates = dates.unwrap_or_default();
        self.good(
            &format!("ca -config openssl.cnf -batch -notext -md {digest} {dates} -extfile extensions -in {name}.csr -out {name}.pem"),
            &[],
        );
    }

    fn serial(&self, name: &str) -> String {
        let told = self.good(&format!("x509 -noout -serial -in {name}.pem"), &[]);
        told.trim().strip_prefix("serial=").unwrap().to_owned()
    }

    fn list(&mut self) {
        self.good("ca -config openssl.cnf -gencrl -out callers.crl", &[]);
        self.setup
            .listener
            .push_str("client_crl = [\"callers.crl\"]\n");
    }
}

/// One connection of `openssl s_client`, on which it says this, and waits for the other side to close it unless that's nothing.
fn s_client(gateway: &Gateway, leaf: &str, flags: &str, says: &str) -> Output {
    let address = gateway.address.to_string();
    let own = format!("-cert {leaf}.pem -key {leaf}.key");
    let mut command = Command::new("timeout");
    command
        .args(["20", "openssl", "s_client", "-connect", &address])
        .args(["-servername", "gateway.test", "-CAfile", "callers-ca.pem"])
        .args(flags.split_whitespace())
        .current_dir(gateway.setup.folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if !leaf.is_empty() {
        command.args(own.split(' '));
    }
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{error}"));
    let mut stdin = child.stdin.take().unwrap();
    // It may be gone by now.
    let _ = stdin.write_all(says.as_bytes());
    if !says.starts_with('R') {
        drop(stdin);
        return child.wait_with_output().unwrap();
    }
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    output
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

fn agreed_on(output: &Output) -> Option<String> {
    let text = said(output);
    let line = text.lines().find(|line| line.starts_with("New, "))?;
    (!line.contains("(NONE)")).then(|| line.to_owned())
}

/// What the other side said was wrong, as OpenSSL words it.
fn was_told(output: &Output, alert: &str) -> bool {
    let text = said(output);
    agreed_on(output).is_none() && text.contains(&format!("alert {alert}"))
}

const WEAK: &str = "-cipher ALL:COMPLEMENTOFALL:@SECLEVEL=0";

#[tokio::test]
async fn old_versions_and_weak_suites_are_refused() {
    let authority = Authority::new();
    authority.issue(&Leaf::default());
    let suites = authority.good("ciphers -s -tls1_2 ALL:COMPLEMENTOFALL:@SECLEVEL=0", &[]);
    let gateway = authority.setup.start().await;
    for version in ["-tls1", "-tls1_1"] {
        let output = s_client(&gateway, "leaf", &format!("{version} {WEAK}"), "");
        // Which of both it says depends on what it looks at first.
        let told = ["protocol version", "handshake failure"];
        let told = told.iter().any(|alert| was_told(&output, alert));
        assert!(told, "{}", said(&output));
    }
    let (mut good, mut refused) = (Vec::new(), Vec::new());
    for suite in suites.trim().split(':') {
        let flags = format!("-tls1_2 -cipher {suite}:@SECLEVEL=0");
        let output = s_client(&gateway, "leaf", &flags, "");
        if agreed_on(&output).is_some() {
            good.push(suite);
        } else {
            assert!(
                was_told(&output, "handshake failure"),
                "{suite}: {}",
                said(&output)
            );
            refused.push(suite);
        }
    }
    good.sort_unstable();
    assert_eq!(
        good,
        [
            "ECDHE-RSA-AES128-GCM-SHA256",
            "ECDHE-RSA-AES256-GCM-SHA384",
            "ECDHE-RSA-CHACHA20-POLY1305"
        ]
    );
    // Of each kind there was one: CBC, no forward secrecy, no encryption, nobody at the other end.
    for suite in [
        "ECDHE-RSA-AES128-SHA",
        "AES128-GCM-SHA256",
        "NULL-SHA256",
        "ADH-AES128-SHA",
    ] {
        assert!(refused.contains(&suite), "{suite}: {refused:?}");
    }
    for suite in ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384"] {
        let flags = format!("-tls1_3 -ciphersuites {suite}");
        let output = s_client(&gateway, "leaf", &flags, "");
        assert!(agreed_on(&output).is_some(), "{}", said(&output));
    }
}

/// A ClientHello as they were before there were extensions.
fn ancient_hello(version: [u8; 2], suites: &[[u8; 2]]) -> Vec<u8> {
    let suites = suites.concat();
    let length = u8::try_from(suites.len()).unwrap();
    let body = [&version[..], &[7; 32], &[0, 0, length], &suites, &[1, 0]].concat();
    let length = u8::try_from(body.len()).unwrap();
    let message = [&[1, 0, 0, length], &body[..]].concat();
    [&[22, version[0], version[1], 0, length + 4], &message[..]].concat()
}

/// What OpenSSL itself can't be made to say any more.
#[tokio::test]
async fn what_no_program_offers_any_more_is_refused() {
    let gateway = Setup::new(&Pki::new(), None).start().await;
    let ssl2 = [&[0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10][..], &[7; 37]].concat();
    for (what, hello) in [
        ("SSL 2", ssl2),
        ("SSL 3", ancient_hello([3, 0], &[[0, 0x2f]])),
        ("RC4", ancient_hello([3, 3], &[[0, 4], [0, 5]])),
        ("export", ancient_hello([3, 3], &[[0, 3], [0, 6], [0, 8]])),
        ("DES", ancient_hello([3, 3], &[[0, 9], [0, 10]])),
        ("nothing", ancient_hello([3, 3], &[])),
    ] {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        let from = stream.local_addr().unwrap().to_string();
        stream.write_all(&hello).await.unwrap();
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard).await;
        // An alert, or nothing: never a handshake message.
        assert!(heard.is_empty() || heard[0] == 21, "{what}: {heard:?}");
        let event = gateway.event(|event| event["peer"] == from).await;
        assert_eq!(event["reason"], "protocol", "{what}: {event}");
    }
}

const HELLO: &str = "POST /openapi/v1/customerOpenApi/add HTTP/1.1\r\nHost: gateway.test\r\nConnection: close\r\n\
                     Content-Type: application/json\r\nContent-Length: 1\r\n\r\n[";

#[tokio::test]
async fn nothing_is_negotiated_twice_or_sent_early() {
    let authority = Authority::new();
    authority.issue(&Leaf::default());
    std::fs::write(authority.setup.path("early"), HELLO).unwrap();
    let gateway = authority.setup.start().await;

    let output = s_client(&gateway, "leaf", "-tls1_2", "R\n");
    let text = said(&output);
    assert!(
        text.contains("RENEGOTIATING") && text.contains("no renegotiation"),
        "{text}"
    );

    let flags = "-tls1_3 -ign_eof -sess_out session";
    let text = said(&s_client(&gateway, "leaf", flags, HELLO));
    assert!(text.contains("HTTP/1.1 400"), "{text}");
    let flags = "-tls1_3 -ign_eof -sess_in session -early_data early";
    let text = said(&s_client(&gateway, "leaf", flags, HELLO));
    assert!(text.contains("Reused, TLSv1.3"), "{text}");
    assert!(text.contains("Early data was not sent"), "{text}");
}

#[tokio::test]
async fn tls_1_2_without_an_extended_master_secret_is_refused() {
    let authority = Authority::new();
    authority.issue(&Leaf::default());
    // RFC 7627. It has no flag of its own.
    let without = "openssl_conf = all\n[all]\nssl_conf = ssl\n[ssl]\nsystem_default = own\n[own]\nOptions = -ExtendedMasterSecret\n";
    std::fs::write(authority.setup.path("no-ems.cnf"), without).unwrap();
    let gateway = authority.setup.start().await;
    let address = gateway.address.to_string();
    let mark = gateway.mark();
    let output = tools::run(
        Command::new("openssl")
            .env("OPENSSL_CONF", "no-ems.cnf")
            .args(["s_client", "-tls1_2", "-connect", &address])
            .args(["-cert", "leaf.pem", "-key", "leaf.key"])
            .current_dir(gateway.setup.folder.path()),
    );
    assert_eq!(agreed_on(&output), None);
    let event = gateway
        .event_since(mark, |event| event["message"] == "a TLS handshake failed")
        .await;
    assert_eq!(event["reason"], "protocol", "{event}");
}

#[tokio::test]
async fn each_bad_certificate_of_openssls_is_refused_by_its_reason_and_number() {
    let mut authority = Authority::new();
    let leaf = |name| Leaf {
        name,
        ..Leaf::default()
    };
    let rows = [
        (leaf("good"), None),
        (
            Leaf {
                key: "rsa:2048",
                ..leaf("rsa")
            },
            None,
        ),
        (
            Leaf {
                dates: Some(("20200101000000Z", "20210101000000Z")),
                ..leaf("expired")
            },
            Some("expired"),
        ),
        (
            Leaf {
                dates: Some(("20900101000000Z", "20950101000000Z")),
                ..leaf("early")
            },
            Some("not-yet-valid"),
        ),
        (
            Leaf {
                extensions: "extendedKeyUsage = serverAuth",
                ..leaf("server")
            },
            Some("wrong-usage"),
        ),
        (
            Leaf {
                extensions: "basicConstraints = critical,CA:TRUE",
                ..leaf("authority")
            },
            Some("ca-as-leaf"),
        ),
        (leaf("revoked"), Some("revoked")),
        (
            Leaf {
                digest: "sha1",
                ..leaf("sha1")
            },
            Some("bad-signature"),
        ),
        (
            Leaf {
                key: "rsa:1024",
                ..leaf("short")
            },
            Some("bad-signature"),
        ),
    ];
    for (leaf, _) in &rows {
        authority.issue(leaf);
    }
    authority.good("ca -config openssl.cnf -revoke revoked.pem", &[]);
    authority.list();
    let serials = rows.each_ref().map(|(leaf, _)| authority.serial(leaf.name));
    let gateway = authority.setup.start().await;
    for ((leaf, reason), serial) in rows.iter().zip(serials) {
        for version in ["-tls1_3", "-tls1_2"] {
            let mark = gateway.mark();
            let flags = format!("{version} -ign_eof -cipher DEFAULT@SECLEVEL=0");
            let text = said(&s_client(&gateway, leaf.name, &flags, HELLO));
            let Some(reason) = reason else {
                assert!(text.contains("HTTP/1.1 400"), "{}: {text}", leaf.name);
                continue;
            };
            assert!(!text.contains("HTTP/1.1"), "{}: {text}", leaf.name);
            let event = gateway
                .event_since(mark, |event| event["message"] == "a TLS handshake failed")
                .await;
            assert_eq!(event["reason"], *reason, "{version} {}: {event}", leaf.name);
            assert_eq!(event["serial"], *serial, "{event}");
            let issuer = event["issuer"].as_str().unwrap_or_default();
            assert!(issuer.contains("a CA by OpenSSL"), "{event}");
        }
    }
}

/// A gateway with the certificate of `orders` in its folder.
async fn with_caller(pki: &Pki, upstream: &Upstream, set: &[&str]) -> Gateway {
    let setup = Setup::new(pki, Some(upstream.address));
    let caller = pki.caller(ORDERS);
    tools::write(&setup.path("orders.pem"), caller.certificate, 0o644);
    tools::write(&setup.path("orders.key"), caller.key, 0o600);
    let flags: Vec<_> = set.iter().flat_map(|key| ["--set", key]).collect();
    Gateway::start(setup, &flags).await
}

/// Runs programs beside the test, on whose thread the upstream lives.
async fn beside<T: Send + 'static>(
    gateway: Gateway,
    run: impl FnOnce(&Gateway) -> T + Send + 'static,
) -> (Gateway, T) {
    tokio::task::spawn_blocking(move || {
        let result = run(&gateway);
        (gateway, result)
    })
    .await
    .unwrap()
}

/// Python's h2, in the system's own Python: that is the one that Debian's packages are for.
async fn h2(gateway: Gateway, scenario: &'static str) -> (Gateway, Value) {
    beside(gateway, move |gateway| {
        let output = tools::run(
            Command::new("/usr/bin/python3")
                .arg(tools::root().join("tests/foreign/http2.py"))
                .args([scenario, &gateway.address.port().to_string()])
                .current_dir(gateway.setup.folder.path()),
        );
        assert!(
            output.status.success(),
            "{scenario}: {}",
            tools::stderr(&output)
        );
        serde_json::from_slice(&output.stdout).unwrap()
    })
    .await
}

fn statuses(answers: &Value) -> Vec<&str> {
    let answers = answers.as_array().unwrap().iter();
    answers
        .map(|answer| answer["status"].as_str().unwrap_or("none"))
        .collect()
}

#[tokio::test]
async fn another_http2_library_finds_everything_in_order() {
    let pki = Pki::new();
    let large = format!(
        "{{\"status\":\"success\",\"data\":\"{}\"}}",
        "y".repeat(1_000_000)
    );
    let expected = large.len();
    let upstream = Upstream::scripted(&pki, move |seen| {
        if seen.target.ends_with("queryByUid") {
            Act::ok(large.clone())
        } else {
            Act::ok(SUCCESS)
        }
    })
    .await;
    let gateway = with_caller(&pki, &upstream, &[]).await;

    let (gateway, many) = h2(gateway, "many").await;
    assert_eq!(statuses(&many), ["200"; 300]);

    let (gateway, large) = h2(gateway, "large").await;
    assert_eq!(large["status"], "200");
    assert_eq!(large["body"], expected);
    assert!(large["pushed_back"].as_u64() > Some(0), "{large}");

    // What isn't wanted is answered all the same, and said so; the connection goes on.
    let (gateway, refused) = h2(gateway, "refused").await;
    assert_eq!(statuses(&refused), ["413", "404", "200"], "{refused}");
    for (index, code) in [(0, "body-too-large"), (1, "unknown-operation")] {
        let body = refused[index]["body"].as_str().unwrap();
        assert!(body.contains(code), "{refused}");
    }

    let (gateway, trailers) = h2(gateway, "trailers").await;
    assert_eq!(statuses(&trailers), ["200"; 2], "{trailers}");
    let (gateway, padded) = h2(gateway, "padded").await;
    assert_eq!(statuses(&padded), ["200"], "{padded}");
    let (gateway, priority) = h2(gateway, "priority").await;
    assert_eq!(statuses(&priority), ["200"; 2], "{priority}");

    let seen = upstream.seen();
    assert_eq!(seen.len(), 300 + 1 + 1 + 2 + 1 + 2);
    assert!(seen.iter().all(|seen| seen.is_signed_with(APP_KEY)));
    assert!(
        seen.iter()
            .all(|seen| !seen.headers.contains_key("x-checksum"))
    );
    assert_eq!(
        gateway
            .metric("kybio_gateway_downstream_connections_accepted_total")
            .await,
        6.0
    );
}

#[tokio::test]
async fn another_http2_library_is_told_when_its_connection_is_old() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = with_caller(&pki, &upstream, &["listener.connection_age_max=1s"]).await;
    let (_gateway, age) = h2(gateway, "age").await;
    // NO_ERROR, twice: whatever was on its way then was taken, and the last one says which that was.
    let expected = serde_json::json!({"first": "200", "goodbye": 0, "last_streams": [1]});
    assert_eq!(age, expected);
}

/// All thousand are there at once, and one caller may hold half of the queue.
const LONG_QUEUE: [&str; 2] = [
    "upstreams.kybio.queue_max=2000",
    "upstreams.kybio.queue_timeout=30s",
];

/// h2load has no flag for a client certificate, so its sister does its work.
#[tokio::test]
async fn nghttp_makes_a_thousand_calls_over_ten_connections() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = with_caller(&pki, &upstream, &LONG_QUEUE).await;
    tools::write(&gateway.setup.path("body"), "{\"a\":1}", 0o644);
    let (gateway, outputs) = beside(gateway, |gateway| {
        let url = format!(
            "https://127.0.0.1:{}/openapi/v1/customerOpenApi/add",
            gateway.address.port()
        );
        let start = |_| {
            Command::new("nghttp")
                .args(["--null-out", "--stat", "--no-verify-peer", "--multiply=100"])
                .args(["--cert=orders.pem", "--key=orders.key", "--data=body"])
                .args(["-H", ":authority: gateway.test"])
                .args(["-H", "content-type: application/json", "--timeout=20"])
                .arg(&url)
                .current_dir(gateway.setup.folder.path())
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap_or_else(|error| panic!("nghttp: {error} (see .ci/install)"))
        };
        let children = [(); 10].map(start);
        children.map(|child| child.wait_with_output().unwrap())
    })
    .await;
    for output in &outputs {
        let text = said(output);
        let good = text
            .lines()
            .filter(|line| line.contains(" 200 ") && line.contains("/openapi/v1/"))
            .count();
        assert_eq!(good, 100, "{text}");
    }
    assert_eq!(upstream.seen().len(), 1_000);
    assert_eq!(
        gateway
            .metric("kybio_gateway_downstream_connections_accepted_total")
            .await,
        10.0
    );
}

const CERTIFICATE: [&str; 4] = ["--cert", "orders.pem", "--key", "orders.key"];

fn curl(gateway: &Gateway, arguments: &[&str]) -> Output {
    let port = gateway.address.port();
    let (resolve, url) = (
        format!("gateway.test:{port}:127.0.0.1"),
        format!("https://gateway.test:{port}/openapi/v1/customerOpenApi/add"),
    );
    let mut command = Command::new("curl");
    command.args([
        "--silent",
        "--show-error",
        "--max-time",
        "20",
        "--cacert",
        "callers-ca.pem",
        "--resolve",
        &resolve,
    ]);
    tools::run(
        command
            .args(arguments)
            .arg(url)
            .current_dir(gateway.setup.folder.path()),
    )
}

#[tokio::test]
async fn curl_gets_in_with_its_certificate_and_not_without() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = with_caller(&pki, &upstream, &[]).await;
    std::fs::write(gateway.setup.path("large"), vec![b'x'; 2_500_000]).unwrap();
    let sample = |file: &str| {
        format!(
            "@{}",
            Path::new(&tools::root())
                .join("tests/vectors/samples")
                .join(file)
                .display()
        )
    };
    let (gateway, outputs) = beside(gateway, move |gateway| {
        let good = sample("customer-add.req.json");
        let broken = sample("customer-add.doc-verbatim-INVALID.txt");
        let json = ["-H", "Content-Type: application/json"];
        let with = |more: &[&str]| curl(gateway, &[&CERTIFICATE[..], more].concat());
        [
            with(&[&["--http1.1", "--data-binary", &good][..], &json].concat()),
            with(&[&["--http2", "--data-binary", &good][..], &json].concat()),
            with(&[&["--compressed", "--data-binary", &good][..], &json].concat()),
            with(&[&["--data-binary", &broken][..], &json].concat()),
            with(&["--data-binary", &good]),
            curl(gateway, &[&["--data-binary", &good][..], &json].concat()),
            with(&[&["--http2", "--data-binary", "@large"][..], &json].concat()),
            with(&[&["--http1.1", "--data-binary", "@large"][..], &json].concat()),
        ]
    })
    .await;
    for output in &outputs[..3] {
        assert!(
            tools::stdout(output).contains("\"status\":\"success\""),
            "{output:?}"
        );
    }
    assert!(
        tools::stdout(&outputs[3]).contains("byte 76"),
        "{:?}",
        outputs[3]
    );
    assert!(
        tools::stdout(&outputs[4]).contains("add the header Content-Type: application/json"),
        "{:?}",
        outputs[4]
    );
    assert!(
        !outputs[5].status.success() && outputs[5].stdout.is_empty(),
        "{:?}",
        outputs[5]
    );
    for output in &outputs[6..] {
        assert!(
            tools::stdout(output).contains("body-too-large"),
            "{output:?}"
        );
    }
    gateway.event(|event| event["reason"] == "none").await;
    assert_eq!(upstream.seen().len(), 3);
}

/// Other ways of using a connection are none that the gateway knows.
#[tokio::test]
async fn curl_is_refused_what_is_no_call() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = with_caller(&pki, &upstream, &[]).await;
    let json = ["-H", "Content-Type: application/json", "--data", "{}"];
    let rows: [(&str, Vec<&str>, &str, &str); 6] = [
        (
            "Upgrade: h2c",
            [
                &["--http1.1", "-H", "Connection: Upgrade, HTTP2-Settings"][..],
                &[
                    "-H",
                    "Upgrade: h2c",
                    "-H",
                    "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA",
                ],
                &json,
            ]
            .concat(),
            "400",
            "upgrade-refused",
        ),
        (
            "Upgrade: websocket",
            [
                &[
                    "--http1.1",
                    "-H",
                    "Connection: Upgrade",
                    "-H",
                    "Upgrade: websocket",
                ][..],
                &json,
            ]
            .concat(),
            "400",
            "upgrade-refused",
        ),
        (
            "TRACE",
            vec!["--http1.1", "-X", "TRACE"],
            "405",
            "method-not-allowed",
        ),
        (
            "TRACE",
            vec!["--http2", "-X", "TRACE"],
            "405",
            "method-not-allowed",
        ),
        ("GET", vec!["--http2"], "405", "method-not-allowed"),
        (
            "OPTIONS",
            vec!["--http1.1", "-X", "OPTIONS"],
            "405",
            "method-not-allowed",
        ),
    ];
    let (gateway, outputs) = beside(gateway, |gateway| {
        rows.map(|(what, arguments, status, code)| {
            let told = ["--write-out", " %{http_code}"];
            let output = curl(gateway, &[&CERTIFICATE[..], &told, &arguments].concat());
            (what, output, status, code)
        })
    })
    .await;
    let mut wrong = Vec::new();
    for (what, output, status, code) in outputs {
        let text = tools::stdout(&output);
        if !text.ends_with(&format!(" {status}")) || !text.contains(code) {
            wrong.push(format!("{what}: {text} {}", tools::stderr(&output)));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");

    // As a forward proxy it's none: CONNECT to elsewhere, and to itself.
    let proxy = format!("https://gateway.test:{}", gateway.address.port());
    let resolve = format!("gateway.test:{}:127.0.0.1", gateway.address.port());
    let (_gateway, output) = beside(gateway, move |gateway| {
        tools::run(
            Command::new("curl")
                .args([
                    "--silent",
                    "--show-error",
                    "--max-time",
                    "20",
                    "--proxytunnel",
                ])
                .args(["--proxy", &proxy, "--proxy-cacert", "callers-ca.pem"])
                .args(["--proxy-cert", "orders.pem", "--proxy-key", "orders.key"])
                .args(["--resolve", &resolve, "--write-out", " %{http_connect}"])
                .arg("https://upstream.test/")
                .current_dir(gateway.setup.folder.path()),
        )
    })
    .await;
    let told = tools::stdout(&output);
    assert!(!output.status.success(), "{output:?}");
    assert!(
        told.ends_with(" 400") || told.ends_with(" 405"),
        "{output:?}"
    );
    assert!(upstream.seen().is_empty());
    assert_eq!(upstream.connections(), 0);
}
