//! Promise W1: no valid client certificate, no request; the reason is counted and logged, with what the certificate says of itself. On
//! TLS 1.3 and 1.2. A certificate that's valid is nobody's unless one of its names is configured.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, Stdio};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, KeyUsagePurpose, NameConstraints, SanType, date_time_ymd,
};
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{HandshakeKind, NamedGroup, SupportedProtocolVersion};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::support::client::Failure;
use crate::support::gateway::ORDERS;
use crate::support::pki::{Pair, Wanted, name};
use crate::support::tools::PATIENCE;
use crate::support::{Answer, Client, Gateway, Pki, Setup, Upstream, tools};

/// One kind of caller, and why it's refused; `None` if it gets in.
struct Row {
    what: &'static str,
    shown: Option<CertifiedKey>,
    reason: Option<&'static str>,
}

fn row(what: &'static str, pair: &Pair, reason: impl Into<Option<&'static str>>) -> Row {
    Row {
        what,
        shown: Some(pair.shown()),
        reason: reason.into(),
    }
}

/// With the certificates changed on the way.
fn changed(what: &'static str, pair: &Pair, change: impl FnOnce(&mut Vec<Vec<u8>>)) -> Row {
    let mut row = row(what, pair, "malformed");
    let shown = row.shown.as_mut().unwrap();
    let mut chain = shown.cert.iter().map(|each| each.to_vec()).collect();
    change(&mut chain);
    shown.cert = chain.into_iter().map(CertificateDer::from).collect();
    row
}

fn orders() -> Wanted<'static> {
    Wanted {
        uris: &[ORDERS],
        ..Wanted::default()
    }
}

/// A connection of its own, and one call on it. Where it came from, as the gateway sees it, and what became of the call.
async fn comes(
    address: SocketAddr,
    pki: &Pki,
    shown: Option<CertifiedKey>,
    version: &'static SupportedProtocolVersion,
) -> (String, Result<Answer, Failure>) {
    let stream = TcpStream::connect(address).await.unwrap();
    let from = stream.local_addr().unwrap().to_string();
    let config = pki.client_showing(shown, &["http/1.1"], &[version]);
    let client = Client::new(address, config);
    let request = Client::request(
        "/openapi/v1/customerOpenApi/add",
        &[("content-type", "application/json")],
        "{}",
    );
    // On TLS 1.3 a client hears only afterwards that its certificate isn't good; what it sends then goes nowhere.
    (from, client.send_over(stream, request).await)
}

async fn failed_handshake(gateway: &Gateway, from: &str) -> Value {
    gateway
        .event(|event| event["message"] == "a TLS handshake failed" && event["peer"] == from)
        .await
}

const FAILURES: &str = "kybio_gateway_tls_handshake_failures_total";

async fn failures(gateway: &Gateway, reason: &str) -> f64 {
    gateway
        .metric(&format!("{FAILURES}{{reason=\"{reason}\"}}"))
        .await
}

async fn all_failures(gateway: &Gateway) -> f64 {
    let metrics = gateway.metrics().await;
    let values = metrics
        .lines()
        .filter(|line| line.starts_with(FAILURES))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap());
    values.sum()
}

/// Each comes on both versions of TLS. Whoever is refused is counted once for each try, and logged once, under the reason; nothing of
/// it goes up.
async fn hold(gateway: &Gateway, pki: &Pki, upstream: &Upstream, rows: Vec<Row>) {
    assert!(!rows.is_empty());
    let mark = gateway.mark();
    let (mut refused, mut let_in) = (0, 0);
    let sent = upstream.seen().len();
    for Row {
        what,
        shown,
        reason,
    } in rows
    {
        for version in [&TLS13, &TLS12] {
            let tried = format!("{what}, {:?}", version.version);
            let before = failures(gateway, reason.unwrap_or("none")).await;
            let all = all_failures(gateway).await;
            let (from, answer) = comes(gateway.address, pki, shown.clone(), version).await;
            let Some(reason) = reason else {
                let_in += 1;
                assert_eq!(answer.expect(&tried).status, 200, "{tried}");
                continue;
            };
            refused += 1;
            assert!(answer.is_err(), "{tried}: {answer:?}");
            let event = failed_handshake(gateway, &from).await;
            assert_eq!(event["reason"], reason, "{tried}: {event}");
            assert_eq!(failures(gateway, reason).await, before + 1.0, "{tried}");
            assert_eq!(all_failures(gateway).await, all + 1.0, "{tried}");
        }
    }
    let logged = gateway.printed()[mark..]
        .iter()
        .filter(|line| line.contains("a TLS handshake failed"))
        .count();
    assert_eq!(logged, refused);
    assert_eq!(upstream.seen().len() - sent, let_in);
}

/// Leaves that are refused for a fault of their own.
fn bad_leaves(pki: &Pki) -> Vec<Row> {
    let other = Pki::new();
    let usage = |usage| pki.issue(&Wanted { usage, ..orders() });
    let with = |change: fn(&mut CertificateParams)| pki.issue_with(&orders(), change);
    let good = pki.issue(&orders());
    let mut stolen = row("without its key", &good, "bad-signature");
    stolen.shown.as_mut().unwrap().key = pki.issue(&orders()).shown().key;
    vec![
        Row {
            what: "none",
            shown: None,
            reason: Some("none"),
        },
        row("of another CA", &other.issue(&orders()), "unknown-issuer"),
        row(
            "of another CA of the same name",
            &pki.forged().issue(&orders()),
            "bad-signature",
        ),
        row(
            "signed by itself",
            &Pki::self_signed(&orders()),
            "unknown-issuer",
        ),
        row(
            "expired",
            &pki.issue(&Wanted {
                until: date_time_ymd(2021, 1, 1),
                ..orders()
            }),
            "expired",
        ),
        row(
            "not valid yet",
            &pki.issue(&Wanted {
                from: date_time_ymd(2090, 1, 1),
                ..orders()
            }),
            "not-yet-valid",
        ),
        row(
            "for servers",
            &usage(ExtendedKeyUsagePurpose::ServerAuth),
            "wrong-usage",
        ),
        // RFC 5280, section 4.2.1.12, lets a verifier demand the usage itself.
        row(
            "for any usage",
            &usage(ExtendedKeyUsagePurpose::Any),
            "wrong-usage",
        ),
        row(
            "a CA's own",
            &pki.issue(&Wanted {
                is_ca: true,
                ..orders()
            }),
            "ca-as-leaf",
        ),
        row(
            "with something critical that nobody knows",
            &with(|params| {
                let mut unknown =
                    CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999, 1], vec![5, 0]);
                unknown.set_criticality(true);
                params.custom_extensions = vec![unknown];
            }),
            "malformed",
        ),
        stolen,
        Row {
            reason: Some("bad-signature"),
            ..changed("with another signature", &good, |chain| {
                *chain[0].last_mut().unwrap() ^= 1;
            })
        },
        Row {
            reason: Some("bad-signature"),
            ..changed("with another name", &good, |chain| {
                let at = chain[0]
                    .windows(6)
                    .position(|bytes| bytes == b"orders")
                    .unwrap();
                chain[0][at] = b'O';
            })
        },
        changed("cut short", &good, |chain| {
            let length = chain[0].len();
            chain[0].truncate(length - 10);
        }),
        changed("with bytes after its end", &good, |chain| {
            chain[0].extend([0; 10]);
        }),
        changed("no certificate at all", &good, |chain| {
            chain[0] = b"not a certificate".to_vec();
        }),
        // Whoever verifies these tries every order in which one could have issued the other.
        changed("with six that lead nowhere", &good, |chain| {
            let nowhere = Pki::new();
            chain.extend((0..6).map(|_| pki_der(&nowhere.forged())));
        }),
        row(
            "of more than 32 KiB",
            &with(|params| {
                let filling = CustomExtension::from_oid_content(
                    &[1, 3, 6, 1, 4, 1, 99_999, 2],
                    vec![0; 32 * 1024],
                );
                params.custom_extensions = vec![filling];
            }),
            "malformed",
        ),
        changed("a length that's a lie", &good, |chain| {
            chain[0] = vec![0x30, 0x84, 0xff, 0xff, 0xff, 0xff];
        }),
    ]
}

/// Good leaves of CAs below `pki` that had better not issue any.
fn bad_intermediates(pki: &Pki) -> Vec<Row> {
    let below = |change: fn(&mut CertificateParams)| pki.below(change).issue(&orders());
    let short = pki.below(|params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let tampered = changed("of a CA with another signature", &below(|_| {}), |chain| {
        *chain[1].last_mut().unwrap() ^= 1;
    });
    vec![
        row(
            "of a CA that is none",
            &below(|params| params.is_ca = IsCa::NoCa),
            "malformed",
        ),
        row(
            "of a CA that says it's none",
            &below(|params| params.is_ca = IsCa::ExplicitNoCa),
            "malformed",
        ),
        row(
            "of a CA too far down",
            &short.below(|_| {}).issue(&orders()),
            "malformed",
        ),
        row(
            "of an expired CA",
            &below(|params| params.not_after = date_time_ymd(2021, 1, 1)),
            "expired",
        ),
        row(
            "of a CA for servers",
            &below(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
            "wrong-usage",
        ),
        row(
            "outside of what its CA may issue",
            &pki.below(|params| {
                params.name_constraints = Some(NameConstraints {
                    permitted_subtrees: vec![GeneralSubtree::DnsName("shop.example".to_owned())],
                    excluded_subtrees: Vec::new(),
                });
            })
            .issue(&Wanted {
                dns: &["orders.internal"],
                ..orders()
            }),
            "malformed",
        ),
        Row {
            reason: Some("bad-signature"),
            ..tampered
        },
        Row {
            reason: Some("unknown-issuer"),
            ..changed("without its CA's", &below(|_| {}), |chain| {
                chain.truncate(1);
            })
        },
    ]
}

/// What gets in, some of which is worth knowing.
fn good(pki: &Pki) -> Vec<Row> {
    let with = |change: fn(&mut CertificateParams)| pki.issue_with(&orders(), change);
    let good = pki.issue(&orders());
    let below = pki.below(|_| {});
    vec![
        row("good", &good, None),
        row("of a CA below", &below.issue(&orders()), None),
        row(
            "of a CA below a CA below",
            &below.below(|_| {}).issue(&orders()),
            None,
        ),
        // RFC 5280, section 4.2.1.12: without the extension, any usage.
        row(
            "for no usage in particular",
            &with(|params| params.extended_key_usages.clear()),
            None,
        ),
        row(
            "for servers and clients",
            &with(|params| {
                params
                    .extended_key_usages
                    .push(ExtendedKeyUsagePurpose::ServerAuth)
            }),
            None,
        ),
        // The library doesn't look at the key's usage, only at the extended one.
        row(
            "whose key is for encryption",
            &with(|params| params.key_usages = vec![KeyUsagePurpose::KeyEncipherment]),
            None,
        ),
        Row {
            reason: None,
            ..changed("with its root's", &good, |chain| {
                chain.push(pki_der(pki));
            })
        },
        Row {
            reason: None,
            ..changed("with five of others beside", &good, |chain| {
                let nowhere = Pki::new();
                chain.extend((0..5).map(|_| pki_der(&nowhere.forged())));
            })
        },
        Row {
            reason: None,
            ..changed("with somebody else's beside", &good, |chain| {
                chain.push(pki_der(&Pki::new()));
            })
        },
    ]
}

fn pki_der(pki: &Pki) -> Vec<u8> {
    let pair = Pair {
        certificate: pki.certificate(),
        key: String::new(),
    };
    pair.chain()[0].to_vec()
}

#[tokio::test]
async fn each_bad_certificate_is_refused_and_counted_by_its_reason() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    hold(&gateway, &pki, &upstream, bad_leaves(&pki)).await;
    hold(&gateway, &pki, &upstream, bad_intermediates(&pki)).await;
    assert!(upstream.seen().is_empty(), "nothing was sent");
    hold(&gateway, &pki, &upstream, good(&pki)).await;
}

/// A gateway that's given these revocation lists.
async fn with_lists(pki: &Pki, upstream: &Upstream, lists: &[String], more: &str) -> Gateway {
    let mut setup = Setup::new(pki, Some(upstream.address));
    let mut files = Vec::new();
    for (number, list) in lists.iter().enumerate() {
        let file = format!("callers-{number}.crl");
        tools::write(&setup.path(&file), list, 0o644);
        files.push(file);
    }
    setup.listener = format!("client_crl = {files:?}\n{more}");
    setup.start().await
}

fn serial(pki: &Pki, serial: u64) -> Pair {
    pki.issue(&Wanted { serial, ..orders() })
}

#[tokio::test]
async fn with_revocation_lists_revoked_and_uncovered_certificates_are_refused() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let until = date_time_ymd(2100, 1, 1);
    let numbered = |number: u64| pki.below(|params| params.serial_number = Some(number.into()));
    let (good, bad) = (numbered(70), numbered(77));
    let root_list = pki.revocation_list(&[66, 77], until);
    let (good_list, bad_list) = (
        good.revocation_list(&[88], until),
        bad.revocation_list(&[], until),
    );

    let all = [root_list.clone(), good_list.clone(), bad_list];
    let gateway = with_lists(&pki, &upstream, &all, "").await;
    let rows = vec![
        row("good", &serial(&pki, 67), None),
        row("revoked", &serial(&pki, 66), "revoked"),
        row("of a good CA below", &serial(&good, 67), None),
        // A number is its own CA's, not another's.
        row("with another CA's revoked number", &serial(&good, 66), None),
        row("revoked by a CA below", &serial(&good, 88), "revoked"),
        row("of a revoked CA", &serial(&bad, 67), "revoked"),
        row(
            "of a CA without a list",
            &serial(&numbered(71), 67),
            "revocation-unknown",
        ),
    ];
    hold(&gateway, &pki, &upstream, rows).await;

    for (lists, what) in [
        // A list of another CA covers none of ours, and neither does one of another that goes by the same name.
        (vec![Pki::new().revocation_list(&[], until)], "another CA's"),
        (
            vec![pki.forged().revocation_list(&[], until)],
            "a forged CA's",
        ),
    ] {
        let gateway = with_lists(&pki, &upstream, &lists, "").await;
        let rows = vec![row(what, &serial(&pki, 67), "revocation-unknown")];
        hold(&gateway, &pki, &upstream, rows).await;
    }

    // The whole chain must be covered.
    for (list, what) in [(root_list, "the leaf's"), (good_list, "the CA's")] {
        let gateway = with_lists(&pki, &upstream, &[list], "").await;
        let rows = vec![row(what, &serial(&good, 67), "revocation-unknown")];
        hold(&gateway, &pki, &upstream, rows).await;
    }
}

#[tokio::test]
async fn a_revocation_list_past_its_next_update_refuses_everybody_unless_it_is_to_warn() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let list = [pki.revocation_list(&[66], date_time_ymd(2022, 1, 1))];
    for (setting, reason) in [
        ("", Some("crl-expired")),
        ("crl_expired = \"deny\"\n", Some("crl-expired")),
        ("crl_expired = \"warn\"\n", None),
    ] {
        let gateway = with_lists(&pki, &upstream, &list, setting).await;
        let rows = vec![
            row("good", &serial(&pki, 67), reason),
            // What it says of the revoked holds after its time too.
            row("revoked", &serial(&pki, 66), reason.unwrap_or("revoked")),
        ];
        hold(&gateway, &pki, &upstream, rows).await;
    }
}

/// What the log says of the certificate, to find out whose it is.
#[tokio::test]
async fn a_failed_handshake_tells_whose_certificate_it_was() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let below = pki.below(|_| {});
    let until = date_time_ymd(2100, 1, 1);
    let lists = [
        pki.revocation_list(&[0xAB_CDEF], until),
        below.revocation_list(&[0xFF], until),
    ];
    let gateway = with_lists(&pki, &upstream, &lists, "").await;
    let other = Pki::new();
    let wanted = |serial| Wanted {
        dns: &["orders.internal", "orders.example"],
        serial,
        ..orders()
    };
    let long = other.issue_with(&wanted(0), |params| {
        params.serial_number = Some(vec![0x4F; 20].into());
    });
    let mut stolen = below.issue(&wanted(0x0100)).shown();
    stolen.key = pki.issue(&orders()).shown().key;
    let expired = pki.issue(&Wanted {
        until: date_time_ymd(2021, 1, 1),
        ..wanted(0x0A)
    });
    let for_servers = below.issue(&Wanted {
        usage: ExtendedKeyUsagePurpose::ServerAuth,
        ..wanted(0x7F)
    });
    let revoked = |pki: &Pki, serial| pki.issue(&wanted(serial)).shown();
    let longest = "4F".repeat(20);
    // Certificate, reason, issuer, serial number as `openssl x509 -serial` writes it.
    let rows = [
        (long.shown(), "unknown-issuer", other.name(), &*longest),
        (expired.shown(), "expired", pki.name(), "0A"),
        (for_servers.shown(), "wrong-usage", below.name(), "7F"),
        (revoked(&pki, 0xAB_CDEF), "revoked", pki.name(), "ABCDEF"),
        (revoked(&below, 0xFF), "revoked", below.name(), "FF"),
        (stolen, "bad-signature", below.name(), "0100"),
    ];
    for (shown, reason, issuer, serial) in rows {
        for version in [&TLS13, &TLS12] {
            let (from, answer) = comes(gateway.address, &pki, Some(shown.clone()), version).await;
            assert!(answer.is_err(), "{reason}: {answer:?}");
            let event = failed_handshake(&gateway, &from).await;
            let text = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
            assert_eq!(text("reason"), reason, "{event}");
            assert!(text("subject").contains("CN=test leaf"), "{event}");
            assert!(text("issuer").contains(issuer), "{event}");
            assert_eq!(text("serial"), serial, "{event}");
            let names = text("names");
            assert_eq!(names.split(',').count(), 3, "{event}");
            for name in [ORDERS, "orders.internal", "orders.example"] {
                assert!(names.contains(name), "{event}");
            }
        }
    }
    for version in [&TLS13, &TLS12] {
        let (from, _) = comes(gateway.address, &pki, None, version).await;
        let event = failed_handshake(&gateway, &from).await;
        assert_eq!(event["reason"], "none");
        for field in ["subject", "issuer", "serial", "names"] {
            assert!(event.get(field).is_none(), "{field}: {event}");
        }
    }
}

/// What somebody would like to stand in our log, and more of it than anybody wants to read.
fn forged() -> String {
    let line = "x\n{\"message\":\"FORGED\"}\r\n\u{1b}[31mred\u{7} \"quoted\" \\ \t\0";
    format!("{line}{}", "y".repeat(2_000))
}

/// Signed by itself, so that issuer and subject are its own; with names to match.
fn forging() -> CertifiedKey {
    let forging = Pki::self_signed_with(&orders(), |params| {
        let mut common = forged();
        // In UTF-8 there are more ways to upset a terminal: CSI in one character, and writing from right to left.
        common.insert_str(0, "\u{9b}31m\u{202e}");
        params.distinguished_name = name(&common);
        params
            .distinguished_name
            .push(DnType::OrganizationName, forged());
        params.subject_alt_names = vec![
            SanType::URI(forged().try_into().unwrap()),
            SanType::DnsName(forged().try_into().unwrap()),
        ];
    });
    forging.shown()
}

fn is_harmless(line: &str) -> bool {
    let upsets = |letter: char| letter.is_control() || letter == '\u{202e}';
    !line.contains(upsets) && !line.starts_with("{\"message\":\"FORGED\"")
}

#[tokio::test]
async fn no_certificate_writes_into_the_log_what_it_likes() {
    let pki = Pki::new();
    let gateway = Setup::new(&pki, None).start().await;
    for version in [&TLS13, &TLS12] {
        let (from, answer) = comes(gateway.address, &pki, Some(forging()), version).await;
        assert!(answer.is_err());
        let event = failed_handshake(&gateway, &from).await;
        assert_eq!(event["reason"], "unknown-issuer");
        for field in ["subject", "issuer", "names"] {
            let text = event[field].as_str().unwrap_or_default();
            assert!(text.contains("FORGED"), "it's told: {event}");
            assert!(text.chars().count() <= 256, "{field}: {event}");
            assert!(is_harmless(text), "{field}: {event}");
        }
    }
    for line in gateway.printed() {
        assert!(is_harmless(&line), "{line:?}");
        assert!(line.len() < 4_000, "{line:?}");
    }
}

/// Ends with the test, however that ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn no_certificate_writes_into_the_log_for_people_what_it_likes() {
    let pki = Pki::new();
    let setup = Setup::new(&pki, None);
    let config = setup.write();
    let child = tools::binary()
        .args(["serve", "--set", "log.format=human", "--config"])
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = Running(child);
    let (said, mut lines) = tokio::sync::mpsc::unbounded_channel();
    let log = BufReader::new(child.0.stderr.take().unwrap());
    std::thread::spawn(move || {
        for line in log.lines().map_while(Result::ok) {
            let _ = said.send(line);
        }
    });
    let mut next = async || {
        let line = tokio::time::timeout(PATIENCE, lines.recv()).await;
        line.expect("a line in time").expect("it goes on")
    };
    let listening = next().await;
    let address = listening
        .split(' ')
        .find_map(|word| word.strip_prefix("address="))
        .unwrap()
        .parse()
        .unwrap();
    for version in [&TLS13, &TLS12] {
        let (from, answer) = comes(address, &pki, Some(forging()), version).await;
        assert!(answer.is_err());
        let line = next().await;
        assert!(line.contains("a TLS handshake failed"), "{line:?}");
        assert!(line.contains(&from) && line.contains("unknown-issuer"));
        assert!(line.contains("FORGED"), "it's told: {line:?}");
        assert!(is_harmless(&line) && line.len() < 4_000, "{line:?}");
    }
}

/// Names of a certificate, and whether its holder is somebody.
type Named = (&'static str, Vec<SanType>, bool);

fn named() -> Vec<Named> {
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let dns = |text: &str| SanType::DnsName(text.try_into().unwrap());
    let mail = |text: &str| SanType::Rfc822Name(text.try_into().unwrap());
    let ip = || SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let many = |last: SanType| {
        let others = (0..500).map(|number| dns(&format!("host-{number}.internal")));
        others.chain([last]).collect::<Vec<_>>()
    };
    let (one, other) = (ORDERS, "spiffe://shop.example/else");
    vec![
        ("its SPIFFE ID", vec![uri(one)], true),
        ("its DNS name", vec![dns("tills.internal")], true),
        ("in capitals", vec![dns("TILLS.Internal")], true),
        ("a punycode name", vec![dns("xn--bcher-kva.internal")], true),
        ("one of many", many(dns("tills.internal")), true),
        (
            "one that's configured of a few",
            vec![dns("a"), dns("tills.internal"), dns("*.x")],
            true,
        ),
        (
            "the same twice",
            vec![dns("tills.internal"), dns("tills.internal")],
            true,
        ),
        (
            "mail and an address beside",
            vec![mail("a@shop.example"), ip(), dns("tills.internal")],
            true,
        ),
        (
            "mail and an address beside a SPIFFE ID",
            vec![mail("a@shop.example"), uri(one), ip()],
            true,
        ),
        (
            "a SPIFFE ID and another's DNS name",
            vec![dns("tills.internal"), uri(one)],
            true,
        ),
        ("none", vec![], false),
        ("none of many", many(dns("host-500.internal")), false),
        ("an unknown SPIFFE ID", vec![uri(other)], false),
        (
            "an unknown SPIFFE ID and a known DNS name",
            vec![uri(other), dns("tills.internal")],
            false,
        ),
        ("two SPIFFE IDs", vec![uri(one), uri(other)], false),
        ("the same SPIFFE ID twice", vec![uri(one), uri(one)], false),
        (
            "a SPIFFE ID and another URI",
            vec![uri(one), uri("https://shop.example/")],
            false,
        ),
        (
            "a SPIFFE ID and an empty URI",
            vec![uri(""), uri(one)],
            false,
        ),
        (
            "another URI and a known DNS name",
            vec![uri("https://shop.example/orders"), dns("tills.internal")],
            false,
        ),
        (
            "a SPIFFE ID in capitals",
            vec![uri("SPIFFE://shop.example/orders")],
            false,
        ),
        (
            "a trust domain in capitals",
            vec![uri("spiffe://Shop.example/orders")],
            false,
        ),
        (
            "a path in capitals",
            vec![uri("spiffe://shop.example/Orders")],
            false,
        ),
        (
            "a slash at its end",
            vec![uri("spiffe://shop.example/orders/")],
            false,
        ),
        (
            "a query",
            vec![uri("spiffe://shop.example/orders?a")],
            false,
        ),
        (
            "escaped",
            vec![uri("spiffe://shop.example/%6frders")],
            false,
        ),
        (
            "NUL in its path",
            vec![uri("spiffe://shop.example/orders\0/else")],
            false,
        ),
        (
            "a newline after it",
            vec![uri("spiffe://shop.example/orders\n")],
            false,
        ),
        ("a SPIFFE ID as DNS name", vec![dns(one)], false),
        ("a DNS name as URI", vec![uri("tills.internal")], false),
        ("a dot at its end", vec![dns("tills.internal.")], false),
        ("a dot before it", vec![dns(".tills.internal")], false),
        ("a wildcard that covers it", vec![dns("*.internal")], false),
        (
            "NUL after it",
            vec![dns("tills.internal\0.else.example")],
            false,
        ),
        ("NUL at its end", vec![dns("tills.internal\0")], false),
        ("a space after it", vec![dns("tills.internal ")], false),
        ("a space before it", vec![dns(" tills.internal")], false),
        ("above it", vec![dns("internal")], false),
        ("below it", vec![dns("a.tills.internal")], false),
        ("as it's configured", vec![dns("dns:tills.internal")], false),
        ("mail alone", vec![mail("tills.internal")], false),
        ("mail of that host", vec![mail("a@tills.internal")], false),
        ("an address alone", vec![ip()], false),
        (
            "two callers' names",
            vec![dns("tills.internal"), dns("sync.internal")],
            false,
        ),
    ]
}

/// DER, for names that no library writes: a tag, a length, and what is in it.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).unwrap();
    assert!(length < 0x80, "of the short form");
    [&[tag, length], content].concat()
}

/// Subject alternative names by hand.
fn odd_names() -> Vec<(&'static str, Vec<u8>)> {
    const URI: u8 = 0x86;
    const DNS: u8 = 0x82;
    const DIRECTORY: u8 = 0xa4;
    let both = |one: Vec<u8>, other: Vec<u8>| der(0x30, &[one, other].concat());
    let orders = || der(URI, ORDERS.as_bytes());
    vec![
        // In Latin-1 and UTF-8 where only ASCII may stand.
        (
            "DNS in UTF-8",
            der(0x30, &der(DNS, "bücher.internal".as_bytes())),
        ),
        (
            "DNS in Latin-1",
            der(0x30, &der(DNS, b"b\xfccher.internal")),
        ),
        (
            "a second URI that's no text",
            both(orders(), der(URI, b"spiffe://\xff/else")),
        ),
        (
            "a first URI that's no text",
            both(der(URI, b"\xff"), orders()),
        ),
        (
            "bytes after its end",
            [der(0x30, &orders()), vec![0]].concat(),
        ),
        (
            "a name that's cut short",
            der(0x30, &[&orders()[..], &[URI, 9, b'x']].concat()),
        ),
        (
            "a name in a directory",
            both(der(DIRECTORY, &der(0x30, &[])), der(DNS, b"tills")),
        ),
    ]
}

#[tokio::test]
async fn a_verified_certificate_is_somebody_by_its_alternative_names_alone() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    for (name, identities) in [
        (
            "tills",
            "[\"dns:tills.internal\", \"dns:xn--bcher-kva.internal\"]",
        ),
        ("sync", "[\"dns:sync.internal\"]"),
    ] {
        setup.more.push_str(&format!(
            "[callers.{name}]\nidentities = {identities}\naccounts = [\"main\"]\noperations = [\"*\"]\n"
        ));
    }
    let gateway = setup.start().await;
    // Its common name is a configured one's in any case.
    let issue = |change: &dyn Fn(&mut CertificateParams)| {
        pki.issue_with(&Wanted::default(), |params| {
            params.distinguished_name = name("tills.internal");
            change(params);
        })
    };
    let call = async |pair: &Pair| {
        gateway
            .client_with(&pki, pair)
            .call("customerOpenApi/add", "{}")
            .await
    };
    let mut served = 0;
    for (what, names, is_somebody) in named() {
        let pair = issue(&|params| params.subject_alt_names.clone_from(&names));
        let answer = call(&pair).await;
        if is_somebody {
            served += 1;
            assert_eq!(answer.status, 200, "{what}");
        } else {
            let nobody = (403, "unknown-caller".into(), "not-sent".into(), "no".into());
            assert_eq!(answer.refusal(), nobody, "{what}");
        }
    }
    assert!(served > 5);
    // Such a certificate may be refused with the handshake already.
    for (what, names) in odd_names() {
        let pair = issue(&|params| {
            let names = CustomExtension::from_oid_content(&[2, 5, 29, 17], names.clone());
            params.custom_extensions = vec![names];
        });
        for version in [&TLS13, &TLS12] {
            let (_, answer) = comes(gateway.address, &pki, Some(pair.shown()), version).await;
            assert!(
                answer.is_err() || answer.as_ref().unwrap().status == 403,
                "{what}: {answer:?}"
            );
        }
    }
    assert_eq!(upstream.seen().len(), served);

    let known = pki.issue(&Wanted {
        uris: &["spiffe://shop.example/else"],
        ..Wanted::default()
    });
    let told = call(&known).await.text();
    assert!(told.contains("spiffe://shop.example/else"), "{told}");
}

#[tokio::test]
async fn sound_suites_and_a_key_exchange_against_tomorrows_machines_are_agreed_on() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    let shown = pki.caller(ORDERS).shown();
    for (version, suite) in [
        (&TLS13, cipher_suite::TLS13_AES_256_GCM_SHA384),
        (&TLS13, cipher_suite::TLS13_AES_128_GCM_SHA256),
        (&TLS13, cipher_suite::TLS13_CHACHA20_POLY1305_SHA256),
        (
            &TLS12,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        ),
        (
            &TLS12,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        ),
        (
            &TLS12,
            cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        ),
    ] {
        let mut provider = default_provider();
        provider.cipher_suites = vec![suite];
        let config = pki.client_by(provider, Some(shown.clone()), &["h2"], &[version]);
        let stream = Client::new(gateway.address, config).stream().await.unwrap();
        let session = stream.get_ref().1;
        assert_eq!(session.negotiated_cipher_suite(), Some(suite));
        assert_eq!(session.protocol_version(), Some(version.version));
        let group = session.negotiated_key_exchange_group().unwrap().name();
        if version == &TLS13 {
            assert_eq!(group, NamedGroup::X25519MLKEM768);
        }
    }
}

/// Early data could be sent twice by somebody on the network, so a ticket lets nobody send any.
#[tokio::test]
async fn a_session_is_resumed_without_early_data() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    let mut config = pki.client_config(Some(&pki.caller(ORDERS)), &["http/1.1"], &[&TLS13]);
    config.enable_early_data = true;
    let client = Client::new(gateway.address, config.clone());
    assert_eq!(client.call("customerOpenApi/add", "{}").await.status, 200);
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    let name = ServerName::try_from("gateway.test").unwrap();
    let mut offered = false;
    let stream = TlsConnector::from(Arc::new(config))
        .connect_with(name, stream, |session| {
            offered = session.early_data().is_some();
        })
        .await
        .unwrap();
    assert!(!offered);
    // A full handshake would have none in any case.
    let kind = stream.get_ref().1.handshake_kind();
    assert_eq!(kind, Some(HandshakeKind::Resumed));
}

#[tokio::test]
#[expect(
    clippy::disallowed_methods,
    reason = "certificates go by the real time"
)]
async fn a_connection_ends_with_its_certificate() {
    use tokio::io::AsyncReadExt;
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    let until =
        time::OffsetDateTime::from(std::time::SystemTime::now()) + time::Duration::seconds(3);
    let pair = pki.issue(&Wanted {
        uris: &[ORDERS],
        until,
        ..Wanted::default()
    });
    for alpn in ["http/1.1", "h2"] {
        let client = Client::new(
            gateway.address,
            pki.client_config(Some(&pair), &[alpn], rustls::ALL_VERSIONS),
        );
        assert_eq!(
            client.call("customerOpenApi/add", "{}").await.status,
            200,
            "{alpn}"
        );
    }
    let client = gateway.client_with(&pki, &pair);
    let mut stream = client.stream().await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 1]))
        .await
        .expect("it ends");
    assert_eq!(ended.unwrap_or(0), 0);
    while gateway.metric("kybio_gateway_downstream_connections").await > 0.0 {
        tokio::task::yield_now().await;
    }
}
