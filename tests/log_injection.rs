//! What somebody else chooses and the log repeats is text there, and no more: each event stays one line of bounded length, in JSON with the
//! keys that it's known to have, and for people without anything that a terminal would act upon.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, SanType, SerialNumber};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::gateway::ORDERS;
use crate::support::pki::{Pair, Wanted};
use crate::support::tools::PATIENCE;
use crate::support::upstream::{Act, Then};
use crate::support::{Client, Pki, Setup, Upstream, tools};

const READ: &str = "customerOpenApi/queryByUid";

/// What is put wherever there's room for it.
const ODD: [&[u8]; 8] = [
    b"\n{\"level\":\"ERROR\",\"message\":\"injected\"}\n",
    b"\r\n2026-01-01T00:00:00.000000Z ERROR injected\r\n",
    b"\x1b[2J\x1b[31minjected\x1b]0;title\x07",
    b"\",\"injected\":\"1\\",
    b"a\x00b\x08c\x7fd\x9be",
    "\u{85}\u{2028}\u{2029}injected".as_bytes(),
    "\u{202e}detcejni\u{2066}\u{200f}\u{feff}".as_bytes(),
    b"\xff\xfe\xc0\xaf\xed\xa0\x80",
];

/// The fields that docs/log.md explains.
fn documented() -> std::collections::BTreeSet<String> {
    let page = std::fs::read_to_string(tools::root().join("docs/log.md")).unwrap();
    let (_, tables) = page.split_once("## The line of a request").unwrap();
    let rows = tables
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once(" |"));
    let names = rows.flat_map(|(names, _)| {
        names
            .split(", ")
            .map(|name| name.trim_matches('`').to_owned())
            .collect::<Vec<_>>()
    });
    names.collect()
}

/// The longest line, in bytes.
const LINE_MAX: usize = 4_096;

/// A gateway whose lines are looked at byte by byte.
struct Watched {
    child: Child,
    address: SocketAddr,
    lines: mpsc::Receiver<Vec<u8>>,
    first: Vec<u8>,
}

impl Watched {
    fn start(setup: &Setup, format: &str) -> Self {
        let mut child = tools::binary()
            .args([
                "serve",
                "--set",
                &format!("log.format={format}"),
                "--config",
            ])
            .arg(setup.write())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::channel();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        thread::spawn(move || {
            let mut line = Vec::new();
            while stderr.read_until(b'\n', &mut line).unwrap() > 0 {
                let _ = sender.send(std::mem::take(&mut line));
            }
        });
        let first = lines.recv_timeout(PATIENCE).unwrap();
        let text = String::from_utf8(first.clone()).unwrap();
        let (_, after) = text.split_once("address").unwrap();
        let after = after.trim_start_matches(['=', ':', '"']);
        let end = after.find([' ', '"']).unwrap();
        let address = after[..end].parse().unwrap();
        Self {
            child,
            address,
            lines,
            first,
        }
    }

    /// All lines, from the first to the last.
    fn end(mut self) -> Vec<Vec<u8>> {
        let pid = self.child.id().to_string();
        assert!(tools::run(Command::new("kill").arg(&pid)).status.success());
        let mut lines = vec![std::mem::take(&mut self.first)];
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            lines.push(line);
        }
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        lines
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// With one odd thing in it, and a long tail.
fn long(odd: &[u8]) -> Vec<u8> {
    [odd, &[b'x'; 20_000]].concat()
}

/// Bytes that go to the listener as they are, within TLS or instead of it.
fn requests(odd: &[u8]) -> Vec<Vec<u8>> {
    let request = |target: &[u8], more: &[u8]| {
        let head = [
            b"POST ",
            target,
            b" HTTP/1.1\r\nhost: gateway.test\r\nconnection: close\r\n",
        ];
        [&head.concat()[..], more, b"content-length: 2\r\n\r\n{}"].concat()
    };
    let path = format!("/openapi/v1/{READ}");
    let with = |name: &str| {
        let json = b"content-type: application/json\r\n";
        let field = [json, name.as_bytes(), b": ", odd, b"\r\n"].concat();
        request(path.as_bytes(), &field)
    };
    let mut requests = vec![
        request(&[b"/", odd].concat(), b""),
        request(&[path.as_bytes(), b"?", odd].concat(), b""),
        request(&[b"https://", odd, b"/"].concat(), b""),
        [odd, b" / HTTP/1.1\r\n\r\n"].concat(),
        odd.to_vec(),
    ];
    for name in [
        "x-request-id",
        "kybio-gateway-account",
        "kybio-gateway-timeout-ms",
        "kybio-gateway-request-id",
        "user-agent",
        "x-forwarded-for",
        "accept-encoding",
        "idempotency-key",
        "transfer-encoding",
        "expect",
        "host",
        "content-type",
    ] {
        requests.push(with(name));
    }
    requests
}

/// Writes, and reads to the end, whatever it is.
async fn exchange(client: &Client, bytes: &[u8]) {
    let mut stream = client.stream().await.unwrap();
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .unwrap();
}

/// A certificate with this in each of its texts: in printable ASCII and control characters where there's no room for more.
fn odd_certificate(odd: &[u8]) -> Pair {
    let text = String::from_utf8_lossy(odd).into_owned();
    let ascii: String = text.chars().filter(char::is_ascii).collect();
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, text.as_str());
    params
        .distinguished_name
        .push(DnType::OrganizationName, long_text(&text));
    params.subject_alt_names = vec![
        SanType::URI(format!("spiffe://x/{ascii}").try_into().unwrap()),
        SanType::DnsName(ascii.as_str().try_into().unwrap()),
        SanType::DnsName(long_text(&ascii).try_into().unwrap()),
    ];
    params.serial_number = Some(SerialNumber::from_slice(&[0x1b; 20]));
    let key = KeyPair::generate().unwrap();
    Pair {
        certificate: params.self_signed(&key).unwrap().pem(),
        key: key.serialize_pem(),
    }
}

/// A certificate that's good for so many things, though not for a client.
fn with_usages(count: u64) -> Pair {
    let usage = |nth| ExtendedKeyUsagePurpose::Other(vec![1, 3, 6, 1, 4, 1, 99_999, nth]);
    let mut params = CertificateParams::default();
    params.extended_key_usages = (0..count).map(usage).collect();
    let key = KeyPair::generate().unwrap();
    Pair {
        certificate: params.self_signed(&key).unwrap().pem(),
        key: key.serialize_pem(),
    }
}

fn long_text(text: &str) -> String {
    format!("{text}{}", "x".repeat(5_000))
}

/// What the host says for it.
fn replies(odd: &[u8]) -> Vec<(Vec<u8>, Then)> {
    let text = String::from_utf8_lossy(odd).into_owned();
    let body =
        json!({"status": "error", "messages": [&text, long_text(&text)], "errorCode": &text});
    let body = body.to_string();
    let whole = |status: &[u8], field: &[u8], body: &[u8]| {
        let length = format!("content-length: {}\r\n\r\n", body.len());
        let head = [b"HTTP/1.1 ", status, b"\r\n", field, b"\r\n"].concat();
        ([&head[..], length.as_bytes(), body].concat(), Then::End)
    };
    let field = |name: &str| [name.as_bytes(), b": ", odd].concat();
    vec![
        whole(b"200 OK", b"x: y", body.as_bytes()),
        whole(b"200 OK", b"x: y", &long(odd)),
        whole(
            b"200 OK",
            b"x: y",
            format!("{{\"status\":{}}}", json!(text)).as_bytes(),
        ),
        whole(&[b"500 ", odd].concat(), b"x: y", odd),
        whole(b"200 OK", &field("content-type"), odd),
        whole(b"200 OK", &field("content-encoding"), odd),
        whole(b"429 Slow", &field("retry-after"), odd),
        whole(b"307 There", &field("location"), odd),
        (odd.to_vec(), Then::End),
        (long(odd), Then::End),
    ]
}

/// Everything that somebody else can put into the log, and what came of it.
async fn lines(format: &str) -> Vec<Vec<u8>> {
    let pki = Pki::new();
    let said: Vec<_> = ODD.iter().flat_map(|odd| replies(odd)).collect();
    let replies = said.len();
    let upstream = Upstream::scripted(&pki, move |seen| {
        let asked: Value = serde_json::from_slice(&seen.body).unwrap();
        match asked["nth"].as_u64() {
            Some(nth) => {
                let (bytes, then) = said[usize::try_from(nth).unwrap()].clone();
                Act::raw(bytes, then)
            }
            None => Act::ok(r#"{"status":"success"}"#),
        }
    })
    .await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup
        .kybio
        .push_str("breaker_failures = 10000\nbreaker_volume = 1000000\n");
    setup.level = "debug";
    let watched = Watched::start(&setup, format);
    let client_of = |pair: &Pair, alpn: &[&str]| {
        let config = pki.client_config(Some(pair), alpn, rustls::ALL_VERSIONS);
        Client::new(watched.address, config)
    };
    let orders = client_of(&pki.caller(ORDERS), &["http/1.1"]);
    for odd in ODD {
        for bytes in requests(odd).into_iter().chain(requests(&long(odd))) {
            exchange(&orders, &bytes).await;
        }
        // Without TLS, without a certificate, with one that nobody trusts, with odd protocols.
        let mut stream = TcpStream::connect(watched.address).await.unwrap();
        let _ = stream.write_all(&long(odd)).await;
        let _ = timeout(PATIENCE, stream.read_to_end(&mut Vec::new()))
            .await
            .unwrap();
        let stranger = odd_certificate(odd);
        let _ = exchange_if_let_in(&client_of(&stranger, &[])).await;
        let mut config = pki.client_config(Some(&stranger), &[], rustls::ALL_VERSIONS);
        config.alpn_protocols = vec![odd.to_vec(), odd.repeat(4)];
        let _ = exchange_if_let_in(&Client::new(watched.address, config)).await;
        // With one that is trusted, whose names nobody knows: they can be long, and many.
        let ascii: String = odd
            .iter()
            .filter(|byte| byte.is_ascii())
            .map(|byte| char::from(*byte))
            .collect();
        let uri = format!("spiffe://x/{ascii}");
        let pair = pki.issue(&Wanted {
            uris: &[&uri],
            ..Wanted::default()
        });
        client_of(&pair, &["http/1.1"]).call(READ, "{}").await;
    }
    let names: Vec<_> = (0..300)
        .map(|nth| format!("{}-{nth}.internal", "x".repeat(50)))
        .collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let pair = pki.issue(&Wanted {
        dns: &names,
        ..Wanted::default()
    });
    client_of(&pair, &["http/1.1"]).call(READ, "{}").await;
    // And those that nobody trusts can have all the usages there are: the library's word for the refusal repeats them.
    let _ = exchange_if_let_in(&client_of(&with_usages(5_000), &[])).await;
    // What the host says.
    for nth in 0..replies {
        let body = json!({"nth": nth}).to_string();
        orders.call("orderOpenApi/addOnLineOrder", body).await;
    }
    watched.end()
}

async fn exchange_if_let_in(client: &Client) -> Option<()> {
    let mut stream = client.stream().await.ok()?;
    let _ = timeout(PATIENCE, stream.read_to_end(&mut Vec::new()))
        .await
        .unwrap();
    Some(())
}

#[tokio::test]
async fn in_json_each_line_is_one_event_with_the_keys_that_it_is_known_to_have() {
    let lines = lines("json").await;
    assert!(lines.len() > 300, "{}", lines.len());
    let documented = documented();
    assert!(documented.len() > 45, "{documented:?}");
    let mut messages = std::collections::BTreeMap::<_, usize>::new();
    for line in &lines {
        let shown = String::from_utf8_lossy(line);
        let event: Value =
            serde_json::from_slice(line).unwrap_or_else(|error| panic!("{error}: {shown}"));
        for (key, value) in event.as_object().unwrap() {
            assert!(documented.contains(key), "{key}: {shown}");
            assert!(!value.is_object() && !value.is_array(), "{shown}");
        }
        let text = line.strip_suffix(b"\n").unwrap();
        assert!(!text.iter().any(|byte| *byte < b' '), "{shown}");
        assert!(
            line.len() <= LINE_MAX,
            "{} bytes: {shown:.3000}",
            line.len()
        );
        *messages.entry(event["message"].to_string()).or_default() += 1;
    }
    for expected in [
        "request",
        "a TLS handshake failed",
        "a malformed request was refused",
    ] {
        let count = messages.get(&json!(expected).to_string()).copied();
        assert!(count.unwrap_or_default() >= ODD.len(), "{messages:#?}");
    }
}

#[tokio::test]
async fn for_people_each_line_is_one_event_without_anything_that_a_terminal_acts_upon() {
    let lines = lines("human").await;
    assert!(lines.len() > 300, "{}", lines.len());
    for line in &lines {
        let text = std::str::from_utf8(line)
            .unwrap()
            .strip_suffix('\n')
            .unwrap();
        let odd = |c: char| {
            c.is_control() || "\u{2028}\u{2029}\u{202e}\u{2066}\u{200f}\u{feff}".contains(c)
        };
        assert!(!text.contains(odd), "{text:?}");
        // A time and a level.
        let mut words = text.split_whitespace();
        let time = words.next().unwrap();
        assert!(
            time.ends_with('Z') && time.len() == "2026-01-01T00:00:00.000000Z".len(),
            "{text:?}"
        );
        let level = words.next().unwrap();
        assert!(
            ["ERROR", "WARN", "INFO", "DEBUG"].contains(&level),
            "{text:?}"
        );
        assert!(line.len() <= LINE_MAX, "{} bytes: {text:.3000}", line.len());
    }
}
