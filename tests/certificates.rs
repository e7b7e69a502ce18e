//! Promise W1: no valid client certificate, no request; the reason is counted and logged. On TLS 1.3 and 1.2.

use rcgen::{ExtendedKeyUsagePurpose, date_time_ymd};
use rustls::version::{TLS12, TLS13};

use crate::support::gateway::ORDERS;
use crate::support::pki::{Pair, Wanted};
use crate::support::{Client, Gateway, Pki, Setup, Upstream, tools};

/// Tries one call with this certificate on both versions of TLS; returns whether both, or none, got an answer.
async fn gets_in(gateway: &Gateway, pki: &Pki, pair: Option<&Pair>) -> bool {
    let mut answers = Vec::new();
    for version in [&TLS13, &TLS12] {
        let client = Client::new(
            gateway.address,
            pki.client_config(pair, &["http/1.1"], &[version]),
        );
        let request = Client::request(
            "/openapi/v1/customerOpenApi/add",
            &[("content-type", "application/json")],
            "{}",
        );
        answers.push(client.send(request).await.is_ok());
    }
    assert_eq!(answers[0], answers[1], "both versions agree");
    answers[0]
}

async fn refused(gateway: &Gateway, pki: &Pki, pair: Option<&Pair>, reason: &str) {
    let series = format!("kybio_gateway_tls_handshake_failures_total{{reason=\"{reason}\"}}");
    let before = gateway.metric(&series).await;
    assert!(!gets_in(gateway, pki, pair).await, "{reason}");
    gateway
        .event(|event| event["message"] == "a TLS handshake failed" && event["reason"] == reason)
        .await;
    // Two tries: one on each version of TLS.
    while gateway.metric(&series).await < before + 2.0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn each_bad_certificate_is_refused_and_counted_by_its_reason() {
    let (pki, other) = (Pki::new(), Pki::new());
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    let wanted = || Wanted {
        uris: &[ORDERS],
        ..Wanted::default()
    };
    let issue = |wanted: Wanted<'_>| pki.issue(&wanted);

    refused(&gateway, &pki, None, "none").await;
    refused(
        &gateway,
        &pki,
        Some(&other.issue(&wanted())),
        "unknown-issuer",
    )
    .await;
    refused(
        &gateway,
        &pki,
        Some(&Pki::self_signed(&wanted())),
        "unknown-issuer",
    )
    .await;
    refused(
        &gateway,
        &pki,
        Some(&issue(Wanted {
            until: date_time_ymd(2021, 1, 1),
            ..wanted()
        })),
        "expired",
    )
    .await;
    refused(
        &gateway,
        &pki,
        Some(&issue(Wanted {
            from: date_time_ymd(2090, 1, 1),
            ..wanted()
        })),
        "not-yet-valid",
    )
    .await;
    refused(
        &gateway,
        &pki,
        Some(&issue(Wanted {
            usage: ExtendedKeyUsagePurpose::ServerAuth,
            ..wanted()
        })),
        "wrong-usage",
    )
    .await;
    refused(
        &gateway,
        &pki,
        Some(&issue(Wanted {
            is_ca: true,
            ..wanted()
        })),
        "ca-as-leaf",
    )
    .await;
    assert!(upstream.seen().is_empty(), "nothing was sent");

    assert!(
        gets_in(&gateway, &pki, Some(&issue(wanted()))).await,
        "and a good one gets in"
    );
    assert_eq!(upstream.seen().len(), 2);
}

#[tokio::test]
async fn with_a_revocation_list_revoked_and_uncovered_certificates_are_refused() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    tools::write(
        &setup.path("callers.crl"),
        pki.revocation_list(&[66], date_time_ymd(2100, 1, 1)),
        0o644,
    );
    setup.listener.push_str("client_crl = [\"callers.crl\"]\n");
    let gateway = setup.start().await;
    let serial = |serial| {
        pki.issue(&Wanted {
            uris: &[ORDERS],
            serial,
            ..Wanted::default()
        })
    };
    refused(&gateway, &pki, Some(&serial(66)), "revoked").await;
    assert!(gets_in(&gateway, &pki, Some(&serial(67))).await);
    assert_eq!(upstream.seen().len(), 2);

    // A list of another CA covers none of ours.
    let mut setup = Setup::new(&pki, Some(upstream.address));
    tools::write(
        &setup.path("callers.crl"),
        Pki::new().revocation_list(&[], date_time_ymd(2100, 1, 1)),
        0o644,
    );
    setup.listener.push_str("client_crl = [\"callers.crl\"]\n");
    let gateway = setup.start().await;
    refused(&gateway, &pki, Some(&serial(67)), "revocation-unknown").await;
}

#[tokio::test]
async fn a_revocation_list_past_its_next_update_refuses_everybody_unless_it_is_to_warn() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let good = pki.caller(ORDERS);
    for (setting, reason) in [
        ("", Some("crl-expired")),
        ("crl_expired = \"warn\"\n", None),
    ] {
        let mut setup = Setup::new(&pki, Some(upstream.address));
        tools::write(
            &setup.path("callers.crl"),
            pki.revocation_list(&[], date_time_ymd(2022, 1, 1)),
            0o644,
        );
        setup.listener.push_str("client_crl = [\"callers.crl\"]\n");
        setup.listener.push_str(setting);
        let gateway = setup.start().await;
        match reason {
            Some(reason) => refused(&gateway, &pki, Some(&good), reason).await,
            None => assert!(gets_in(&gateway, &pki, Some(&good)).await),
        }
    }
}

#[tokio::test]
async fn a_verified_certificate_that_is_nobodys_is_told_so_with_its_names() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.more.push_str("[callers.tills]\nidentities = [\"dns:tills.internal\"]\naccounts = [\"main\"]\noperations = [\"*\"]\n");
    let gateway = setup.start().await;
    let call = async |uris: &[&str], dns: &[&str]| {
        let pair = pki.issue(&Wanted {
            uris,
            dns,
            ..Wanted::default()
        });
        gateway
            .client_with(&pki, &pair)
            .call("customerOpenApi/add", "{}")
            .await
    };
    assert_eq!(call(&[], &["tills.internal"]).await.status, 200);
    assert_eq!(call(&[ORDERS], &["tills.internal"]).await.status, 200);
    let unknown: [(&[&str], &[&str]); 6] = [
        (&["spiffe://shop.example/else"], &[]),
        (&["spiffe://shop.example/else"], &["tills.internal"]),
        (&[ORDERS, "spiffe://shop.example/else"], &[]),
        (&["https://shop.example/orders"], &["tills.internal"]),
        (&[], &["*.internal"]),
        (&[], &[]),
    ];
    for (uris, dns) in unknown {
        let answer = call(uris, dns).await;
        assert_eq!(
            answer.refusal(),
            (403, "unknown-caller".into(), "not-sent".into(), "no".into()),
            "{uris:?} {dns:?}"
        );
    }
    let named = call(&["spiffe://shop.example/else"], &[]).await;
    assert!(
        named.text().contains("spiffe://shop.example/else"),
        "{}",
        named.text()
    );
    assert_eq!(upstream.seen().len(), 2);
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
    let ended = tokio::time::timeout(tools::PATIENCE, stream.read(&mut [0; 1]))
        .await
        .expect("it ends");
    assert_eq!(ended.unwrap_or(0), 0);
    while gateway.metric("kybio_gateway_downstream_connections").await > 0.0 {
        tokio::task::yield_now().await;
    }
}
