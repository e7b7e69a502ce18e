//! `check` tells what `serve` would go on with, and what would show only when somebody connects: dates, files that don't belong
//! together, upstreams whose certificate isn't good.

use std::process::Output;
use std::sync::Arc;

use rcgen::{ExtendedKeyUsagePurpose, date_time_ymd};
use tokio::task::spawn_blocking;

use crate::support::pki::Wanted;
use crate::support::{Pki, Setup, Upstream, tools};

/// What `check` says of a configuration, run as an operator would.
fn check(setup: &Setup, flags: &[&str]) -> Output {
    let path = setup.write();
    let mut command = tools::binary();
    command.args(["check", "--config"]).arg(path).args(flags);
    tools::run(&mut command)
}

/// A gateway's certificate, but for what a case changes.
fn server() -> Wanted<'static> {
    Wanted {
        dns: &["gateway.test"],
        usage: ExtendedKeyUsagePurpose::ServerAuth,
        ..Wanted::default()
    }
}

#[test]
fn a_good_configuration_says_when_its_certificates_end() {
    let pki = Pki::new();
    let output = check(&Setup::new(&pki, None), &[]);
    let told = tools::stdout(&output);
    assert_eq!(output.status.code(), Some(0), "{}", tools::stderr(&output));
    assert!(told.contains("good (1 account, 1 caller, "), "{told}");
    let ends = |key: &str| {
        told.lines()
            .any(|line| line.starts_with(key) && line.contains("ends on 2100-01-01, in "))
    };
    assert!(ends("listener.certificate: "), "{told}");
}

#[test]
fn certificates_that_callers_would_refuse_are_told() {
    let pki = Pki::new();
    let other = Pki::new();
    let (past, future) = (date_time_ymd(2021, 2, 3), date_time_ymd(2099, 4, 5));
    let ended = Wanted {
        until: past,
        ..server()
    };
    let not_yet = Wanted {
        from: future,
        ..server()
    };
    let no_name = Wanted {
        dns: &[],
        ..server()
    };
    let for_clients = Wanted {
        usage: ExtendedKeyUsagePurpose::ClientAuth,
        ..server()
    };
    let cases = [
        (pki.issue(&ended), "the certificate ended on 2021-02-03"),
        (
            pki.issue(&not_yet),
            "the certificate isn't valid before 2099-04-05",
        ),
        (
            pki.issue(&no_name),
            "the certificate has no DNS name and no address",
        ),
        (
            pki.issue(&for_clients),
            "the certificate isn't for servers (extended key usage)",
        ),
        (
            {
                let mut pair = other.issue(&server());
                pair.certificate.push_str(&pki.certificate());
                pair
            },
            "which isn't in the file",
        ),
    ];
    for (pair, expected) in cases {
        let setup = Setup::new(&pki, None);
        tools::write(&setup.path("gateway.pem"), &pair.certificate, 0o644);
        tools::write(&setup.path("gateway.key"), &pair.key, 0o600);
        let output = check(&setup, &[]);
        let told = tools::stderr(&output);
        assert_eq!(output.status.code(), Some(78), "{expected}: {told}");
        let line = told.lines().find(|line| line.contains(expected));
        let line = line.unwrap_or_else(|| panic!("{expected}: {told}"));
        assert!(line.contains("gateway.toml:3:"), "{line}");
        assert!(line.contains("listener.certificate: "), "{line}");
    }
}

#[test]
fn authorities_and_lists_that_let_nobody_in_are_told() {
    let pki = Pki::new();
    let other = Pki::new();
    let (past, future) = (date_time_ymd(2022, 1, 1), date_time_ymd(2100, 1, 1));
    let leaf = pki.caller("spiffe://shop.example/orders").certificate;
    let cases = [
        (
            leaf,
            None,
            "listener.client_ca: the certificate of",
            "isn't a CA's",
        ),
        (
            pki.certificate(),
            Some(pki.revocation_list(&[], past)),
            "listener.client_crl: the list of",
            "was to be renewed by 2022-01-01: everybody it covers is refused",
        ),
        (
            pki.certificate(),
            Some(other.revocation_list(&[], future)),
            "listener.client_crl: none of the lists is of",
            "everybody with a certificate of it is refused",
        ),
    ];
    for (authority, list, key, expected) in cases {
        let mut setup = Setup::new(&pki, None);
        tools::write(&setup.path("clients.pem"), &authority, 0o644);
        if let Some(list) = list {
            tools::write(&setup.path("callers.crl"), &list, 0o644);
            setup.listener = "client_crl = [\"callers.crl\"]".to_owned();
        }
        let clients = format!("listener.client_ca={}", setup.path("clients.pem").display());
        let output = check(&setup, &["--set", &clients]);
        let told = tools::stderr(&output);
        assert_eq!(output.status.code(), Some(78), "{expected}: {told}");
        let is_told = |line: &str| line.contains(key) && line.contains(expected);
        assert!(told.lines().any(is_told), "{expected}: {told}");
    }
}

#[test]
fn limits_that_keep_nobody_out_are_told() {
    let pki = Pki::new();
    let mut setup = Setup::new(&pki, None);
    setup
        .listener
        .push_str("connections_per_address_max = 2001\nconnections_per_caller_max = 2000\n");
    let output = check(&setup, &[]);
    let told = tools::stderr(&output);
    assert_eq!(output.status.code(), Some(78), "{told}");
    let remark = "listener.connections_per_address_max: more than connections_max, which is 2000: it keeps nobody out";
    assert!(told.contains(remark), "{told}");
    assert!(!told.contains("per_caller"), "{told}");
}

#[tokio::test]
async fn on_request_each_upstream_is_connected_to_and_no_call_is_made() {
    let (pki, other) = (Pki::new(), Pki::new());
    let upstream = Upstream::start(&pki).await;
    let setup = Setup::new(&pki, Some(upstream.address));
    tools::write(&setup.path("others-ca.pem"), other.certificate(), 0o644);
    let setup = Arc::new(setup);
    let connect = |flags: Vec<String>| {
        let setup = Arc::clone(&setup);
        let checked = spawn_blocking(move || {
            let flags: Vec<_> = flags.iter().map(String::as_str).collect();
            check(&setup, &flags)
        });
        async { checked.await.unwrap() }
    };
    let good = connect(vec!["--connect".to_owned()]).await;
    let told = tools::stdout(&good);
    assert_eq!(good.status.code(), Some(0), "{}", tools::stderr(&good));
    assert!(
        told.contains("upstreams.kybio: reached, its certificate is good"),
        "{told}"
    );
    let roots = format!(
        "upstreams.kybio.roots={}",
        setup.path("others-ca.pem").display()
    );
    let wrong = connect(vec!["--connect".to_owned(), "--set".to_owned(), roots]).await;
    let told = tools::stderr(&wrong);
    assert_eq!(wrong.status.code(), Some(1), "{told}");
    assert!(
        told.contains("upstreams.kybio: the TLS handshake failed")
            && told.contains("UnknownIssuer"),
        "{told}"
    );
    assert_eq!(upstream.seen().len(), 0, "no call was made");
}
