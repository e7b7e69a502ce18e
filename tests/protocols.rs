//! Callers of every kind: HTTP/1.1 and HTTP/2 libraries, and curl as a real foreign client.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use crate::support::gateway::{APP_KEY, ORDERS};
use crate::support::{Gateway, Pki, Setup, Upstream, tools};

#[tokio::test]
async fn http2_carries_many_calls_at_a_time() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    let client = Arc::new(gateway.http2_client(&pki));
    let calls = (0..60).map(|number| {
        let client = Arc::clone(&client);
        tokio::spawn(async move {
            client
                .call("customerOpenApi/queryByUid", format!("{{\"n\":{number}}}"))
                .await
        })
    });
    for call in calls.collect::<Vec<_>>() {
        assert_eq!(call.await.unwrap().status, 200);
    }
    assert!(
        upstream
            .seen()
            .iter()
            .all(|seen| seen.is_signed_with(APP_KEY))
    );
    assert_eq!(upstream.seen().len(), 60);
    assert_eq!(
        gateway
            .metric("kybio_gateway_downstream_connections_accepted_total")
            .await,
        1.0
    );
}

#[tokio::test]
async fn http1_connections_are_kept_and_large_bodies_pass() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    for client in [gateway.client(&pki), gateway.http2_client(&pki)] {
        for size in [1, 1_000, 100_000, 1_000_000] {
            let answer = client
                .call(
                    "customerOpenApi/add",
                    format!("{{\"a\":\"{}\"}}", "x".repeat(size)),
                )
                .await;
            assert_eq!(answer.status, 200, "{size}");
            assert!(upstream.last().is_signed_with(APP_KEY), "{size}");
        }
    }
    assert_eq!(
        gateway
            .metric("kybio_gateway_downstream_connections_accepted_total")
            .await,
        2.0
    );
}

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
    let setup = Setup::new(&pki, Some(upstream.address));
    let caller = pki.caller(ORDERS);
    tools::write(&setup.path("orders.pem"), caller.certificate, 0o644);
    tools::write(&setup.path("orders.key"), caller.key, 0o600);
    std::fs::write(setup.path("large"), vec![b'x'; 2_500_000]).unwrap();
    let gateway = setup.start().await;
    let certificate = ["--cert", "orders.pem", "--key", "orders.key"];
    let sample = |file: &str| {
        format!(
            "@{}",
            Path::new(&tools::root())
                .join("tests/vectors/samples")
                .join(file)
                .display()
        )
    };
    // curl blocks, and the upstream lives on this thread.
    let (gateway, outputs) = tokio::task::spawn_blocking(move || {
        let good = sample("customer-add.req.json");
        let broken = sample("customer-add.doc-verbatim-INVALID.txt");
        let json = ["-H", "Content-Type: application/json"];
        let with = |more: &[&str]| curl(&gateway, &[&certificate[..], more].concat());
        let outputs = [
            with(&[&["--http1.1", "--data-binary", &good][..], &json].concat()),
            with(&[&["--http2", "--data-binary", &good][..], &json].concat()),
            with(&[&["--compressed", "--data-binary", &good][..], &json].concat()),
            with(&[&["--data-binary", &broken][..], &json].concat()),
            with(&["--data-binary", &good]),
            curl(&gateway, &[&["--data-binary", &good][..], &json].concat()),
            with(&[&["--http2", "--data-binary", "@large"][..], &json].concat()),
            with(&[&["--http1.1", "--data-binary", "@large"][..], &json].concat()),
        ];
        (gateway, outputs)
    })
    .await
    .unwrap();
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
