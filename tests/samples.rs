//! The documented calls, end to end: each sample request of the contract goes through the gateway to the stand-in host, which checks
//! its signature by itself, and is answered as its sample says.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::support::gateway::APP_KEY;
use crate::support::upstream::signature;
use crate::support::{Answer, Gateway, Pki, Setup, tools};

/// The stand-in host as a process of its own.
struct StandIn {
    child: Child,
    address: std::net::SocketAddr,
}

impl StandIn {
    fn start(pki: &Pki, setup: &Setup, quota: u32) -> Self {
        let server = pki.server("upstream.test");
        tools::write(&setup.path("upstream.pem"), server.certificate, 0o644);
        tools::write(&setup.path("upstream.key"), server.key, 0o600);
        let mut child = tools::binary()
            .args([
                "simulate",
                "--address",
                "127.0.0.1:0",
                "--certificate",
                "upstream.pem",
                "--private-key",
                "upstream.key",
            ])
            .args([
                "--account",
                "abcdefghijklmn=main.key",
                "--account",
                "EC48AD85DCDDF5D69567C82E4565B127=main.key",
            ])
            .args(["--quota-per-day", &quota.to_string()])
            .current_dir(setup.folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(line.contains("stand-in"), "{line}");
        let address = line
            .trim()
            .rsplit_once("https://")
            .unwrap()
            .1
            .parse()
            .unwrap();
        Self { child, address }
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn started(quota: u32) -> (Pki, StandIn, Gateway) {
    let pki = Pki::new();
    let mut setup = Setup::new(&pki, None);
    let stand_in = StandIn::start(&pki, &setup, quota);
    setup.upstream = Some(stand_in.address);
    setup.account("chain", "EC48AD85DCDDF5D69567C82E4565B127", APP_KEY);
    setup.orders = setup.orders.replace(
        "operations = [\"*\"]",
        "operations = [\"*\", \"openNotificationOpenApi/updatePushUrl\"]",
    );
    setup.orders.push_str("account_by = \"app-id\"\n");
    let gateway = setup.start().await;
    (pki, stand_in, gateway)
}

/// The samples in an order in which they make sense: what refuses a second time comes second, and what ends something comes last.
const LAST: [&str; 8] = [
    "customer-increment-duplicate",
    "product-add-duplicate",
    "order-complete",
    "order-cancel",
    "push-updateUrl",
    "product-update-missing",
    "quota-exhausted",
    "push-ticket-new",
];

fn samples() -> Vec<Value> {
    let manifest: Value =
        serde_json::from_str(include_str!("vectors/samples/manifest.json")).unwrap();
    let mut samples = manifest["samples"].as_array().unwrap().clone();
    samples.sort_by_key(|sample| {
        LAST.iter()
            .position(|name| sample["name"] == *name)
            .map_or(0, |place| place + 1)
    });
    assert_eq!(samples.len(), 41);
    samples
}

fn file(sample: &Value, part: &str) -> Vec<u8> {
    std::fs::read(
        tools::root()
            .join("tests/vectors/samples")
            .join(sample[part].as_str().unwrap()),
    )
    .unwrap()
}

#[tokio::test]
async fn each_sample_call_is_answered_as_its_sample_says() {
    let (pki, _stand_in, gateway) = started(300).await;
    let client = gateway.client(&pki);
    let mut answered = 0;
    for sample in samples() {
        let name = sample["name"].as_str().unwrap();
        let path = sample["path"].as_str().unwrap_or_default();
        // The call-back isn't a call, and a used-up quota is a test of its own.
        if name == "push-ticket-new" || name == "quota-exhausted" {
            continue;
        }
        let operation = path.split_once("/openapi/v1/").unwrap().1;
        if name == "product-update-missing" {
            let delete = r#"{"appId":"abcdefghijklmn","productInfo":{"uid":1366004607492564649,"enable":-1}}"#;
            assert_eq!(
                client
                    .call("productOpenApi/updateProductInfo", delete)
                    .await
                    .header("kybio-gateway-outcome"),
                "done"
            );
        }
        let answer = client.call(operation, file(&sample, "request")).await;
        let expected: Value = serde_json::from_slice(&file(&sample, "response")).unwrap();
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        let (told, json) = (answer.header("kybio-gateway-outcome"), answer.json());
        assert_eq!(
            told,
            if expected["status"] == "success" {
                "done"
            } else {
                "rejected"
            },
            "{name}: {json}"
        );
        assert_eq!(
            (&json["status"], &json["errorCode"]),
            (&expected["status"], &expected["errorCode"]),
            "{name}: {json}"
        );
        assert_eq!(
            json["data"].is_null(),
            expected["data"].is_null(),
            "{name}: {json}"
        );
        answered += 1;
    }
    assert_eq!(answered, 39);
    // The injected business errors are counted by their codes.
    for (operation, code) in [("addProductInfo", 5004), ("updateProductInfo", 5001)] {
        let series = format!(
            "kybio_gateway_operation_answers_total{{error_code=\"{code}\",operation=\"productOpenApi/{operation}\"}}"
        );
        assert_eq!(gateway.metric(&series).await, 1.0, "{operation}");
    }
}

#[tokio::test]
async fn a_used_up_quota_is_passed_on_as_kybio_says_it() {
    let (pki, _stand_in, gateway) = started(3).await;
    let client = gateway.client(&pki);
    let sample = samples()
        .into_iter()
        .find(|sample| sample["name"] == "quota-exhausted")
        .unwrap();
    let mut last: Option<Answer> = None;
    for _ in 0..4 {
        last = Some(
            client
                .call("ticketOpenApi/queryTicketPages", file(&sample, "request"))
                .await,
        );
    }
    let answer = last.unwrap();
    assert_eq!(
        (
            answer.status.as_u16(),
            answer.header("kybio-gateway-outcome")
        ),
        (200, "rejected")
    );
    assert_eq!(answer.json()["messages"][0], "您已用完当日请求量");
}

/// A member is added, found, charged and charged again by mistake: what the calls mean in sequence.
#[tokio::test]
async fn calls_in_sequence_see_each_others_effects() {
    let (pki, _stand_in, gateway) = started(300).await;
    let client = gateway.http2_client(&pki);
    let named = [("kybio-gateway-account", "main")];
    let call = async |operation: &str, body: String| {
        client.call_with(operation, &named, body).await.json()
    };
    let added = call(
        "customerOpenApi/add",
        r#"{"customerInfo":{"number":"N-1","name":"Anna","balance":10.50}}"#.into(),
    )
    .await;
    assert_eq!(added["status"], "success", "{added}");
    let again = call(
        "customerOpenApi/add",
        r#"{"customerInfo":{"number":"N-1","name":"Anna"}}"#.into(),
    )
    .await;
    assert_eq!(again["status"], "error", "{again}");
    let found = call(
        "customerOpenApi/queryByNumber",
        r#"{"customerNum":"N-1"}"#.into(),
    )
    .await;
    let uid = &found["data"]["customerUid"];
    assert!(uid.is_number(), "{found}");
    let increment = format!(
        r#"{{"customerUid":{uid},"balanceIncrement":5.25,"pointIncrement":0,"dataChangeTime":"2026-01-02 03:04:05"}}"#
    );
    let changed = call(
        "customerOpenApi/updateBalancePointByIncrement",
        increment.clone(),
    )
    .await;
    assert_eq!(
        changed["data"]["balanceAfterUpdate"].to_string(),
        "15.75",
        "{changed}"
    );
    let repeated = call("customerOpenApi/updateBalancePointByIncrement", increment).await;
    assert_eq!(repeated["messages"][0], "重复提交修改", "{repeated}");
}

#[test]
fn the_call_back_sample_is_signed_by_the_same_rule() {
    let sample = samples()
        .into_iter()
        .find(|sample| sample["name"] == "push-ticket-new")
        .unwrap();
    assert_eq!(
        signature(APP_KEY, &file(&sample, "request")),
        sample["data_signature"].as_str().unwrap()
    );
}
