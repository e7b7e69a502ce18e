//! Promise S1: neither an appKey nor a signature comes out anywhere. A canary key, everything at trace level, good and bad input;
//! then everything that came out is searched.

use crate::support::upstream::{Act, SUCCESS};
use crate::support::{Client, Pki, Setup, Upstream, tools};

const CANARY: &str = "7319CanaryKey5520";

/// The ways in which a secret could be written: as it is, in either letter case, reversed, in halves.
fn spellings(secret: &str) -> Vec<String> {
    let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
    let (first, second) = secret.split_at(secret.len() / 2);
    vec![
        secret.to_owned(),
        secret.to_lowercase(),
        secret.to_uppercase(),
        hex.clone(),
        hex.to_uppercase(),
        secret.chars().rev().collect(),
        first.to_owned(),
        second.to_owned(),
    ]
}

fn search(what: &str, haystack: &[u8], secrets: &[String]) {
    let text = String::from_utf8_lossy(haystack);
    for secret in secrets {
        assert!(
            !text.contains(secret.as_str()),
            "{what} holds {secret}: {text}"
        );
    }
}

#[tokio::test]
async fn nothing_that_comes_out_holds_a_key_or_a_signature() {
    let pki = Pki::new();
    let upstream = Upstream::scripted(&pki, |seen| match seen.target.rsplit('/').next().unwrap() {
        "queryByUid" => Act::Close,
        "queryByNumber" => Act::ok("garbage"),
        "queryBytel" => Act::status(500, "oops"),
        "addOnLineOrder" => Act::Hang,
        _ => Act::ok(SUCCESS),
    })
    .await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.level = "trace";
    setup.kybio.push_str("total_timeout = \"300ms\"\n");
    tools::write(&setup.path("main.key"), CANARY, 0o600);
    // A second account's file has the canary in a form that can't be used.
    setup.account("spaced", "SPACED", &format!("{CANARY} {CANARY}"));
    setup.orders.push_str("default_account = \"main\"\n");
    let mut gateway = setup.start().await;

    let mut came_out: Vec<(String, Vec<u8>)> = Vec::new();
    let operations = [
        "customerOpenApi/add",
        "customerOpenApi/queryByUid",
        "customerOpenApi/queryByNumber",
        "customerOpenApi/queryBytel",
        "orderOpenApi/addOnLineOrder",
        "no/such",
    ];
    for client in [gateway.client(&pki), gateway.http2_client(&pki)] {
        for operation in operations {
            for body in ["{}", "{\"a\":1}", "not json", "{\"appId\":\"x\"}"] {
                let answer = client.call(operation, body).await;
                came_out.push((
                    format!("{operation} {body}"),
                    format!("{answer:?}").into_bytes(),
                ));
            }
        }
        let spaced = client
            .call_with(
                "customerOpenApi/add",
                &[("kybio-gateway-account", "spaced")],
                "{}",
            )
            .await;
        came_out.push(("spaced".into(), format!("{spaced:?}").into_bytes()));
        let _ = client
            .send(Client::request(
                "/openapi/v1/customerOpenApi/add?x",
                &[],
                "{}",
            ))
            .await;
    }
    drop(
        gateway
            .client_with(&pki, &Pki::new().caller("spiffe://shop.example/orders"))
            .stream()
            .await,
    );
    for page in ["/metrics", "/livez", "/readyz", "/", "/nothing"] {
        came_out.push((
            page.to_owned(),
            gateway.admin_get(page).await.1.into_bytes(),
        ));
    }
    for file in ["cmdline", "environ"] {
        came_out.push((
            file.to_owned(),
            std::fs::read(format!("/proc/{}/{file}", gateway.pid())).unwrap(),
        ));
    }
    let in_place_of_its_file = format!("accounts.main.app_key_file={CANARY}");
    let in_place_of_a_tls_key = format!("listener.private_key={CANARY}");
    let in_place_of_a_table = format!("accounts.main={CANARY}");
    let config = gateway.setup.path("gateway.toml");
    for arguments in [
        &["check"][..],
        &["check", "--set", "accounts.main.app_key_file=spaced.key"],
        // The key itself where its file belongs, or where another file or a table does.
        &["check", "--set", &in_place_of_its_file],
        &["check", "--set", &in_place_of_a_tls_key],
        &["check", "--set", &in_place_of_a_table],
        // Who asks what holds asks for values: not for these.
        &["config", "show"],
        &["config", "show", "--set", &in_place_of_its_file],
        &["config", "show", "--set", &in_place_of_a_tls_key],
        &["config", "show", "--set", &in_place_of_a_table],
        &["serve", "--set", "runtime.on_bad_key=refuse"],
        &["health"],
    ] {
        let output = tools::run(tools::binary().args(arguments).arg("--config").arg(&config));
        came_out.push((
            format!("{arguments:?}"),
            [output.stdout, output.stderr].concat(),
        ));
    }
    gateway.signal("TERM");
    assert!(gateway.ended().await.success());
    let printed = gateway.printed();
    assert!(
        printed
            .iter()
            .any(|line| line.contains("\"level\":\"INFO\"")),
        "it logs"
    );
    came_out.push(("the log".into(), printed.join("\n").into_bytes()));

    let mut secrets = spellings(CANARY);
    let seen = upstream.seen();
    assert!(seen.len() >= 8);
    for seen in &seen {
        assert!(seen.is_signed_with(CANARY));
        secrets.extend(spellings(seen.header("data-signature")));
    }
    assert!(came_out.len() > 50);
    for (what, bytes) in &came_out {
        search(what, bytes, &secrets);
    }
}

#[tokio::test]
async fn member_data_is_not_logged() {
    let pki = Pki::new();
    let upstream = Upstream::scripted(&pki, |_| {
        Act::ok(r#"{"status":"success","data":{"name":"Zhang San","phone":"17759205640"}}"#)
    })
    .await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.level = "trace";
    let mut gateway = setup.start().await;
    let body = include_str!("vectors/samples/customer-add.req.json");
    let client = gateway.client(&pki);
    client.call("customerOpenApi/add", body).await;
    client
        .call(
            "customerOpenApi/add",
            include_str!("vectors/samples/customer-add.doc-verbatim-INVALID.txt"),
        )
        .await;
    client.call("customerOpenApi/add", format!("{body}x")).await;
    gateway.signal("TERM");
    gateway.ended().await;
    let printed = gateway.printed().join("\n");
    for datum in [
        "17759205640",
        "Zhang",
        "OpenApi creation",
        "EA4CEADDDDDD",
        "KYBIO002",
    ] {
        assert!(!printed.contains(datum), "{datum}: {printed}");
    }
    assert!(printed.contains("\"request_bytes\":"), "sizes are");
}

/// The search above can fail: what it looks for would be found in what the upstream saw.
#[test]
fn the_search_finds_what_it_looks_for() {
    let leak = format!("key={}", CANARY.to_uppercase());
    assert!(
        std::panic::catch_unwind(|| search("a leak", leak.as_bytes(), &spellings(CANARY))).is_err()
    );
}
