//! Promise W2: a caller reaches only its own accounts and operations; decided before the body is looked at. What else a request line can
//! say is in the corpus of `paths`.

use crate::support::gateway::{APP_ID, APP_KEY};
use crate::support::{Client, Pki, Setup, Upstream};

const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn the_canonical_spelling_goes_upstream_whatever_the_letter_case() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    let client = gateway.client(&pki);
    let paths = [
        "/openapi/v1/customerOpenApi/queryBytel",
        "/OPENAPI/V1/CUSTOMEROPENAPI/QUERYBYTEL",
        "/openapi/v1/customerOpenapi/queryBytel",
        "/pospal-api2/openapi/v1/customerOpenApi/queryBytel",
        "/Pospal-Api2/OpenApi/v1/customeropenapi/querybytel",
    ];
    for path in paths {
        assert_eq!(
            client
                .send(Client::request(path, &[JSON], "{}"))
                .await
                .unwrap()
                .status,
            200,
            "{path}"
        );
    }
    let seen = upstream.seen();
    assert_eq!(seen.len(), paths.len());
    assert!(
        seen.iter()
            .all(|seen| seen.target == "/pospal-api2/openapi/v1/customerOpenApi/queryBytel"),
        "{seen:?}"
    );
}

#[tokio::test]
async fn only_granted_operations_are_reached_and_explicit_ones_by_name_alone() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.orders = setup.orders.replace("[\"*\"]\noperations = [\"*\"]", "[\"main\"]\noperations = [\"customerOpenApi/query*\", \"openNotificationOpenApi/*\", \"customOpenApi/doIt\"]");
    setup
        .more
        .push_str("[operations.\"customOpenApi/doIt\"]\nclass = \"non-idempotent-write\"\n");
    let gateway = setup.start().await;
    let client = gateway.client(&pki);
    for granted in [
        "customerOpenApi/queryByNumber",
        "openNotificationOpenApi/queryPushUrl",
        "customOpenApi/doIt",
    ] {
        assert_eq!(client.call(granted, "{}").await.status, 200, "{granted}");
    }
    for refused in [
        "customerOpenApi/add",
        "productOpenApi/queryProductPages",
        "openNotificationOpenApi/updatePushUrl",
    ] {
        // The body is no JSON: it isn't looked at.
        let answer = client.call(refused, "not json").await;
        assert_eq!(
            answer.refusal(),
            (
                403,
                "operation-not-granted".into(),
                "not-sent".into(),
                "no".into()
            ),
            "{refused}"
        );
    }
    assert_eq!(upstream.seen().len(), 3);
}

#[tokio::test]
async fn who_comes_with_another_method_is_told_to_post() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    let client = gateway.client(&pki);
    for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"] {
        let mut request = Client::request("/openapi/v1/customerOpenApi/add", &[JSON], "");
        *request.method_mut() = method.parse().unwrap();
        let answer = client.send(request).await.unwrap();
        assert_eq!(
            (answer.status.as_u16(), answer.header("allow")),
            (405, "POST"),
            "{method}"
        );
    }
    assert!(upstream.seen().is_empty());
}

/// Three accounts; the caller may use two of them.
async fn shops(orders: &str) -> (Pki, Upstream, crate::support::Gateway) {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.account("store-1", "STORE1", "key-of-store-1");
    setup.account("head-office", "HQ", "key-of-head-office");
    setup.orders = setup
        .orders
        .replace("accounts = [\"*\"]", "accounts = [\"main\", \"store-*\"]")
        + orders;
    let gateway = setup.start().await;
    (pki, upstream, gateway)
}

#[tokio::test]
async fn the_header_names_the_account_and_each_is_signed_with_its_own_key() {
    let (pki, upstream, gateway) = shops("").await;
    let client = gateway.client(&pki);
    let named = async |name: &str| {
        client
            .call_with(
                "customerOpenApi/add",
                &[("kybio-gateway-account", name)],
                "{\"a\":1}",
            )
            .await
    };
    for (name, app_id, key) in [
        ("main", APP_ID, APP_KEY),
        ("store-1", "STORE1", "key-of-store-1"),
    ] {
        let answer = named(name).await;
        assert_eq!(
            (
                answer.status.as_u16(),
                answer.header("kybio-gateway-account")
            ),
            (200, name)
        );
        let seen = upstream.last();
        assert_eq!(seen.text(), format!("{{\"appId\":\"{app_id}\",\"a\":1}}"));
        assert!(seen.is_signed_with(key));
    }
    assert_eq!(
        named("head-office").await.refusal().1,
        "account-not-granted"
    );
    assert_eq!(named("nowhere").await.refusal().1, "account-not-granted");
    assert_eq!(named("Main").await.refusal().1, "bad-account");
    let twice = [
        ("kybio-gateway-account", "main"),
        ("kybio-gateway-account", "store-1"),
    ];
    assert_eq!(
        client
            .call_with("customerOpenApi/add", &twice, "{}")
            .await
            .refusal()
            .1,
        "bad-account"
    );
    assert_eq!(
        client.call("customerOpenApi/add", "{}").await.refusal(),
        (
            400,
            "account-required".into(),
            "not-sent".into(),
            "no".into()
        )
    );
    // Another account's appId doesn't choose unless configured, and never contradicts the header.
    let foreign = client
        .call_with(
            "customerOpenApi/add",
            &[("kybio-gateway-account", "main")],
            r#"{"appId":"STORE1"}"#,
        )
        .await;
    assert_eq!(foreign.refusal().1, "foreign-app-id");
    assert_eq!(upstream.seen().len(), 2);
}

#[tokio::test]
async fn the_bodys_app_id_chooses_among_the_granted_accounts_where_configured() {
    let (pki, upstream, gateway) =
        shops("account_by = \"app-id\"\ndefault_account = \"main\"\n").await;
    let client = gateway.client(&pki);
    let with = async |app_id: &str| {
        client
            .call(
                "customerOpenApi/add",
                format!("{{\"x\":1,\"appId\":\"{app_id}\"}}"),
            )
            .await
    };
    assert_eq!(
        with("STORE1").await.header("kybio-gateway-account"),
        "store-1"
    );
    assert!(upstream.last().is_signed_with("key-of-store-1"));
    assert_eq!(with(APP_ID).await.header("kybio-gateway-account"), "main");
    assert_eq!(
        client
            .call("customerOpenApi/add", "{}")
            .await
            .header("kybio-gateway-account"),
        "main"
    );
    assert_eq!(with("HQ").await.refusal().1, "foreign-app-id");
    assert_eq!(with("NOBODYS").await.refusal().1, "foreign-app-id");
    let disagree = client
        .call_with(
            "customerOpenApi/add",
            &[("kybio-gateway-account", "main")],
            r#"{"appId":"STORE1"}"#,
        )
        .await;
    assert_eq!(
        disagree.refusal(),
        (400, "foreign-app-id".into(), "not-sent".into(), "no".into())
    );
    assert_eq!(upstream.seen().len(), 3);
}

#[tokio::test]
async fn what_is_paused_is_refused_with_a_reason() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup
        .more
        .push_str("[operations.\"customerOpenApi/add\"]\npaused = true\n");
    let gateway = setup.start().await;
    let client = gateway.client(&pki);
    let answer = client.call("customerOpenApi/add", "{}").await;
    assert_eq!(
        answer.refusal(),
        (503, "paused".into(), "not-sent".into(), "yes".into())
    );
    assert!(
        answer
            .text()
            .contains("the operation customerOpenApi/add is paused"),
        "{}",
        answer.text()
    );
    assert_eq!(
        client.call("customerOpenApi/queryByUid", "{}").await.status,
        200
    );
}

#[tokio::test]
async fn a_refusal_arrives_even_when_a_large_body_is_still_being_sent() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.orders = setup.orders.replace(
        "operations = [\"*\"]",
        "operations = [\"customerOpenApi/query*\"]",
    );
    let gateway = setup.start().await;
    for _ in 0..10 {
        let answer = gateway
            .client(&pki)
            .call("customerOpenApi/add", vec![b'x'; 900_000])
            .await;
        assert_eq!(answer.status, 403);
    }
}
