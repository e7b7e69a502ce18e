//! Promise S2: a missing, empty or open key file disables its account alone, and never leads to an unsigned request.

use crate::support::gateway::{APP_KEY, Setup};
use crate::support::{Gateway, Pki, Upstream, tools};

/// Name, content and mode of key files that can't be used, and what is said of each.
const BAD: [(&str, Option<&str>, u32, &str); 6] = [
    ("missing", None, 0, "no such key file"),
    ("empty", Some(""), 0o600, "is empty"),
    ("blank", Some(" \n"), 0o600, "is empty"),
    ("readable", Some("a-key"), 0o644, "open to others"),
    ("writable", Some("a-key"), 0o602, "open to others"),
    ("spaced", Some("two words"), 0o600, "white space"),
];

async fn with_bad_accounts(pki: &Pki, upstream: &Upstream) -> Setup {
    let mut setup = Setup::new(pki, Some(upstream.address));
    for (number, (name, content, mode, _)) in BAD.into_iter().enumerate() {
        setup.account(name, &format!("APP{number}"), content.unwrap_or_default());
        let path = setup.path(&format!("{name}.key"));
        match content {
            Some(content) => tools::write(&path, content, mode),
            None => std::fs::remove_file(path).unwrap(),
        }
    }
    setup.orders.push_str("default_account = \"main\"\n");
    setup
}

#[tokio::test]
async fn a_bad_key_file_disables_its_account_alone() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = with_bad_accounts(&pki, &upstream).await.start().await;
    let client = gateway.client(&pki);
    for (name, _, _, said) in BAD {
        let answer = client
            .call_with(
                "customerOpenApi/add",
                &[("kybio-gateway-account", name)],
                "{}",
            )
            .await;
        assert_eq!(
            answer.refusal(),
            (
                503,
                "account-disabled".into(),
                "not-sent".into(),
                "yes".into()
            ),
            "{name}"
        );
        assert!(answer.text().contains(said), "{name}: {}", answer.text());
        gateway
            .event(|event| {
                event["level"] == "WARN"
                    && event["notice"].as_str().is_some_and(|notice| {
                        notice.contains(&format!("accounts.{name}.app_key_file"))
                    })
            })
            .await;
    }
    assert!(upstream.seen().is_empty());
    assert_eq!(
        client.call("customerOpenApi/add", "{}").await.status,
        200,
        "the others go on"
    );
    assert!(upstream.only().is_signed_with(APP_KEY));
    assert_eq!(gateway.metric("kybio_gateway_accounts_disabled").await, 6.0);
    assert_eq!(gateway.admin_get("/readyz").await.0, 200);
}

#[tokio::test]
async fn the_operator_can_want_none_of_it() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let setup = with_bad_accounts(&pki, &upstream).await;
    for (command, flags) in [
        ("serve", &["--set", "runtime.on_bad_key=refuse"][..]),
        ("check", &[]),
    ] {
        let output = tools::run(
            tools::binary()
                .arg(command)
                .arg("--config")
                .arg(setup.write())
                .args(flags),
        );
        assert_eq!(output.status.code(), Some(78), "{command}");
        let said = tools::stderr(&output);
        for (name, _, _, fault) in BAD {
            assert!(
                said.lines().any(
                    |line| line.contains(&format!("accounts.{name}.app_key_file"))
                        && line.contains(fault)
                ),
                "{name}: {said}"
            );
        }
    }
}

#[test]
fn a_pipe_in_the_place_of_a_key_file_is_not_waited_for() {
    let pki = Pki::new();
    let setup = Setup::new(&pki, None);
    std::fs::remove_file(setup.path("main.key")).unwrap();
    assert!(
        tools::run(std::process::Command::new("mkfifo").arg(setup.path("main.key")))
            .status
            .success()
    );
    let output = tools::run(
        tools::binary()
            .args(["check", "--config"])
            .arg(setup.write()),
    );
    assert_eq!(output.status.code(), Some(78));
    assert!(
        tools::stderr(&output).contains("accounts.main.app_key_file"),
        "{}",
        tools::stderr(&output)
    );
}

#[tokio::test]
async fn a_gateway_without_any_usable_key_is_not_ready() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let setup = Setup::new(&pki, Some(upstream.address));
    tools::write(&setup.path("main.key"), "", 0o600);
    let gateway = Gateway::start(setup, &[]).await;
    assert_eq!(gateway.admin_get("/readyz").await.0, 503);
    assert_eq!(gateway.admin_get("/livez").await.0, 200);
}

#[tokio::test]
async fn white_space_around_a_key_does_not_count() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let setup = Setup::new(&pki, Some(upstream.address));
    tools::write(&setup.path("main.key"), format!(" {APP_KEY}\r\n\n"), 0o400);
    let gateway = setup.start().await;
    gateway.client(&pki).call("customerOpenApi/add", "{}").await;
    assert!(upstream.only().is_signed_with(APP_KEY));
}
