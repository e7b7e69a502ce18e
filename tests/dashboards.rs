//! Promise F3: every query of a shipped dashboard and every rule runs on a real Prometheus against real traffic, and returns what the traffic
//! makes true. An alert reaches a real Alertmanager.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::net::TcpStream;

use crate::support::gateway::{APP_KEY, NOT_RELOADED, ORDERS};
use crate::support::pki::Wanted;
use crate::support::prometheus::{Alertmanager, Prometheus};
use crate::support::stand_in::StandIn;
use crate::support::upstream::signature;
use crate::support::{Gateway, Pki, Setup, tools};

/// The serial number of a certificate that isn't let in any more.
const REVOKED: u64 = 7_319;

const READ: &str = "ticketOpenApi/queryAllPayMethod";
const WRITE: &str = "customerOpenApi/add";

/// A second one of the same barcode is refused with a code.
const PRODUCT: &str = "productOpenApi/addProductInfo";
const NEW: &str =
    r#"{"productInfo":{"name":"a","barcode":"b-1","buyPrice":1,"sellPrice":2,"stock":1}}"#;

fn rules() -> PathBuf {
    tools::root().join("deploy/prometheus/kybio-gateway.rules.yml")
}

/// A gateway before the stand-in host, with accounts for each kind of trouble.
async fn scene(pki: &Pki, stand_in: &StandIn) -> Gateway {
    let mut setup = Setup::new(pki, Some(stand_in.address));
    let authority = stand_in.folder.path().join("ca.pem");
    std::fs::copy(authority, setup.path("upstream-ca.pem")).unwrap();
    setup.runtime.push_str("reload_interval = \"0s\"\n");
    setup.account("swapped", "abcdefghijklmn", "another-accounts-key");
    setup.account("spent", "abcdefghijklmn", APP_KEY);
    setup.account("keyless", "KEYLESS", "");
    setup.account("away", "AWAY", "away-key");
    setup.more = setup.more.replace(
        "[accounts.away]\nupstream = \"kybio\"",
        "[accounts.away]\nupstream = \"away\"",
    );
    setup.more.push_str("[upstreams.away]\nbase_url = \"https://away.test\"\nresolve = [\"127.0.0.1:1\"]\nroots = \"upstream-ca.pem\"\nattempts_max = 1\n");
    // The same host by another name, which is slow where it's asked for one operation.
    setup.account("sluggish", "abcdefghijklmn", APP_KEY);
    setup.more = setup.more.replace(
        "[accounts.sluggish]\nupstream = \"kybio\"",
        "[accounts.sluggish]\nupstream = \"sluggish\"",
    );
    let sluggish = format!(
        "[upstreams.sluggish]\nbase_url = \"https://upstream.test/pospal-api2\"\nresolve = [\"{}\"]\nroots = \"upstream-ca.pem\"\n",
        stand_in.address
    );
    setup.more.push_str(&sluggish);
    let until = OffsetDateTime::now_utc() + time::Duration::days(3);
    let list = pki.revocation_list(&[REVOKED], until);
    tools::write(&setup.path("callers.crl"), list, 0o644);
    setup.listener.push_str("client_crl = [\"callers.crl\"]\n");
    // What is used up at the vendor is so for an appId: another one than the others' here.
    setup.more = setup.more.replace(
        "app_id = \"abcdefghijklmn\"\napp_key_file = \"spent.key\"",
        "app_id = \"SPENT\"\napp_key_file = \"spent.key\"",
    );
    setup.orders.push_str("default_account = \"main\"\n");
    setup
        .kybio
        .push_str("total_timeout = \"3s\"\nattempt_timeout = \"1s\"\n");
    setup.more.push_str("[callers.narrow]\nidentities = [\"dns:narrow.internal\"]\naccounts = [\"main\"]\noperations = [\"customerOpenApi/query*\"]\n");
    setup.start().await
}

/// Everything that a dashboard or an alert is about, but for what takes hours or a broken machine.
async fn traffic(pki: &Pki, stand_in: &StandIn, gateway: &Gateway) {
    let client = gateway.client(pki);
    let to = |account: &'static str| [("kybio-gateway-account", account)];
    let outcome =
        |answer: &crate::support::Answer| answer.header("kybio-gateway-outcome").to_owned();
    for _ in 0..20 {
        assert_eq!(outcome(&client.call(READ, "{}").await), "done");
    }
    // Errors by KYBIO's own codes.
    for _ in 0..3 {
        client.call(PRODUCT, NEW).await;
    }
    // A wrong key.
    assert_eq!(
        outcome(&client.call_with(READ, &to("swapped"), "{}").await),
        "rejected"
    );
    // A write and a read whose answers are lost, and retries.
    for operation in [WRITE, READ] {
        stand_in.set(&json!({"fault": "reset-after-reading", "calls": 1, "operation": operation}));
        let customer = r#"{"customerInfo":{"number":"n-1"}}"#;
        client
            .call(operation, if operation == WRITE { customer } else { "{}" })
            .await;
    }
    // The quota of one account.
    stand_in.set(&json!({"fault": "quota", "calls": 1}));
    assert_eq!(
        outcome(&client.call_with(READ, &to("spent"), "{}").await),
        "rejected"
    );
    assert_eq!(
        outcome(&client.call_with(READ, &to("spent"), "{}").await),
        "not-sent"
    );
    // A host that isn't there, until its breaker opens.
    for _ in 0..15 {
        client.call_with(READ, &to("away"), "{}").await;
    }
    // What isn't granted, what is nonsense, and who isn't let in.
    let narrow = gateway.client_with(pki, &pki.caller("spiffe://shop.example/nobody"));
    narrow.call(READ, "{}").await;
    client.call(READ, "nonsense").await;
    let revoked = pki.issue(&Wanted {
        uris: &[ORDERS],
        serial: REVOKED,
        ..Wanted::default()
    });
    for _ in 0..3 {
        let client = gateway.client_with(pki, &revoked);
        drop(
            client
                .goes_over(TcpStream::connect(gateway.address).await.unwrap())
                .await,
        );
    }
    gateway
        .metric_reaches(
            "kybio_gateway_tls_handshake_failures_total{reason=\"revoked\"}",
            3.0,
        )
        .await;
    // A host that is slow.
    const PAGES: &str = "customerOpenApi/queryCustomerPages";
    stand_in.set(&json!({"fault": "slow", "calls": 4, "delay_ms": 1_500, "operation": PAGES}));
    for _ in 0..4 {
        client.call_with(PAGES, &to("sluggish"), "{}").await;
    }
    // A service that still signs, and a caller that doesn't wait.
    let signed = signature(APP_KEY, b"{}");
    client
        .call_with(READ, &[("data-signature", &*signed)], "{}")
        .await;
    stand_in.set(&json!({"fault": "slow", "calls": 1, "delay_ms": 400}));
    client
        .call_with(READ, &[("kybio-gateway-timeout-ms", "50")], "{}")
        .await;
    gateway.event(|event| event["caller_gave_up"] == true).await;
}

/// The queries of all panels, with the dashboard and the panel that each is of.
fn panels() -> Vec<(String, String)> {
    let folder = tools::root().join("deploy/grafana");
    let mut queries = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let dashboard: Value =
            serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let name = path.file_stem().unwrap().to_str().unwrap();
        for panel in dashboard["panels"].as_array().unwrap() {
            let title = panel["title"].as_str().unwrap();
            for target in panel["targets"].as_array().unwrap_or(&Vec::new()) {
                let expression = target["expr"].as_str().unwrap();
                queries.push((format!("{name}: {title}"), expression.to_owned()));
            }
        }
    }
    assert!(queries.len() > 60, "{}", queries.len());
    queries
}

/// A query as Grafana sends it.
fn substituted(expression: &str) -> String {
    let expression = expression
        .replace("$__rate_interval", "1m")
        .replace("$job", "kybio-gateway")
        .replace("$account", ".*")
        .replace("$upstream", ".*");
    assert!(!expression.contains('$'), "{expression}");
    expression
}

#[tokio::test]
async fn every_panel_and_every_rule_returns_what_the_traffic_makes_true() {
    let stand_in = StandIn::start_with(&[
        "--certificate",
        "host.pem",
        "--private-key",
        "host.key",
        "--account",
        "SPENT=main.key",
    ]);
    let pki = Pki::new();
    let gateway = scene(&pki, &stand_in).await;
    let alertmanager = Alertmanager::start().await;
    let prometheus = Prometheus::start(gateway.admin, &rules(), &alertmanager).await;
    // A rate needs a value before: what is counted first is seen only if it was 0 at a scrape.
    prometheus
        .until("up", |found| found.iter().any(|(_, value)| *value == 1.0))
        .await;
    let client = gateway.client(&pki);
    client.call(READ, "{}").await;
    client.call(PRODUCT, NEW).await;
    prometheus
        .until(
            "sum(kybio_gateway_requests_total{outcome=\"done\"})",
            |found| found.iter().any(|(_, value)| *value >= 1.0),
        )
        .await;
    traffic(&pki, &stand_in, &gateway).await;
    tools::change(&gateway.setup.path("gateway.toml"), |text| {
        format!("{text}\nnonsense = 1\n")
    });
    assert_eq!(gateway.hang_up().await["message"], NOT_RELOADED);
    // All of it has been scraped.
    let last = "kybio_gateway_config_last_reload_successful";
    prometheus
        .until(last, |found| found.iter().any(|(_, value)| *value == 0.0))
        .await;
    prometheus
        .until("kybio_gateway:failure_ratio:rate5m", |found| {
            !found.is_empty()
        })
        .await;

    let mut zeros = BTreeSet::new();
    for (panel, expression) in panels() {
        let expression = substituted(&expression);
        let found = prometheus
            .until(&expression, |found| !found.is_empty())
            .await;
        if !found
            .iter()
            .any(|(_, value)| *value != 0.0 && value.is_finite())
        {
            zeros.insert(panel);
        }
    }
    // What nothing here makes happen, and what is well.
    let expected = [
        "accounts: Taken by KYBIO",
        "overview: Hosts down",
        "saturation: Kept out",
        "saturation: Lines of the log that were dropped",
        "saturation: Memory",
        "saturation: Of each limit",
        "saturation: Requests under way",
        "saturation: Series of names",
        "security: Configuration",
        "security: Key files that can't be used",
        "security: Malformed, flooding, too slow",
        "security: Turned out by a reload",
        "upstreams: Open",
        "upstreams: Retries not made",
    ];
    println!("{zeros:#?}");
    for panel in &zeros {
        assert!(expected.contains(&&**panel), "{panel} shows nothing");
    }

    let is_so = async |expression: &str| !prometheus.query(expression).await.is_empty();
    let mut alerts = 0;
    let firing = [
        "KybioGatewayUnknownWrites",
        "KybioGatewayRevokedCaller",
        "KybioGatewayKeyRefused",
        "KybioGatewayQuotaUsedUp",
        "KybioGatewayUpstreamDown",
        "KybioGatewayReloadRefused",
        "KybioGatewayAccountsWithoutKey",
        "KybioGatewayFailsFast",
        "KybioGatewayFailsSlowly",
    ];
    for group in prometheus.rules().await.as_array().unwrap() {
        for rule in group["rules"].as_array().unwrap() {
            let (name, expression) = (
                rule["name"].as_str().unwrap(),
                rule["query"].as_str().unwrap(),
            );
            assert_eq!(rule["health"], "ok", "{name}: {rule}");
            if rule["type"] == "recording" {
                assert!(is_so(name).await, "{name}");
                continue;
            }
            alerts += 1;
            // It must be so for a minute: here for a moment.
            let expression = match name {
                "KybioGatewayUpstreamDown" => expression.replace("[1m]", "[2s]"),
                _ => expression.to_owned(),
            };
            // Three strangers in some seconds are a rate that no strangers have.
            if name != "KybioGatewayStrangers" {
                let so = is_so(&expression).await;
                assert_eq!(so, firing.contains(&name), "{name}: {expression}");
            }
        }
    }
    assert!(alerts > 15, "{alerts}");

    // Each of the faults is found by the dashboards alone, as docs/runbooks.md has it.
    let runbooks = std::fs::read_to_string(tools::root().join("docs/runbooks.md")).unwrap();
    let one = async |expression: &str, label: &str| {
        assert!(runbooks.contains(expression), "{expression}");
        let found = prometheus.query(&substituted(expression)).await;
        assert_eq!(found.len(), 1, "{expression}: {found:?}");
        found[0].0[label].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(
        one(
            "sum by (account) (increase(kybio_gateway_account_credential_errors_total[1h])) > 0",
            "account"
        )
        .await,
        "swapped"
    );
    assert_eq!(
        one(
            "max by (account) (kybio_gateway_account_quota_used_up) == 1",
            "account"
        )
        .await,
        "spent"
    );
    assert_eq!(
        one(
            "max by (upstream) (kybio_gateway_upstream_breaker_state) > 0",
            "upstream"
        )
        .await,
        "away"
    );
    let unknown = "kybio_gateway_requests_total{outcome=\"unknown\"}";
    let new =
        format!("sum by (operation) ({unknown} - ({unknown} offset 1h or {unknown} * 0)) > 0");
    assert_eq!(one(&new, "operation").await, WRITE);
    let signing = "sum by (caller) (increase(kybio_gateway_caller_signatures_total{result=~\"match|mismatch\"}[1d])) > 0";
    let found = prometheus.query(signing).await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].0["caller"], "orders");

    assert_eq!(
        one(
            "sum by (reason) (increase(kybio_gateway_tls_handshake_failures_total[5m])) > 0",
            "reason"
        )
        .await,
        "revoked"
    );
    let slow = "histogram_quantile(0.95, sum by (upstream, le) (rate(kybio_gateway_attempt_phase_duration_seconds_bucket{phase=\"first-byte\"}[5m]))) > 1";
    assert_eq!(one(slow, "upstream").await, "sluggish");
    assert!(!is_so(&slow.replace("first-byte", "connect")).await);

    // One word on it, which isn't said again while it goes on.
    let told = alertmanager.told("KybioGatewayKeyRefused").await;
    let alerts = told["alerts"].as_array().unwrap();
    assert_eq!(alerts.len(), 1, "{told}");
    assert_eq!(alerts[0]["labels"]["account"], "swapped");
    assert_eq!(
        alerts[0]["annotations"]["runbook"],
        "docs/runbooks.md#a-key-is-refused"
    );
    for _ in 0..3 {
        prometheus.until("up", |found| !found.is_empty()).await;
    }
    assert_eq!(alertmanager.times("KybioGatewayKeyRefused"), 1);
}

#[test]
fn each_alert_fires_when_it_must_and_is_silent_where_all_is_well() {
    let ran = tools::run(
        Command::new("promtool")
            .args(["test", "rules", "tests/prometheus/rules.test.yml"])
            .current_dir(tools::root()),
    );
    let said = tools::stdout(&ran) + &tools::stderr(&ran);
    assert!(ran.status.success(), "{said}");
    let checked = tools::run(
        Command::new("promtool")
            .args(["check", "rules", "--lint=all"])
            .arg(rules()),
    );
    assert!(checked.status.success(), "{checked:?}");
    let config = tools::root().join("deploy/prometheus/prometheus.yml");
    let checked = tools::run(
        Command::new("promtool")
            .args(["check", "config"])
            .arg(config),
    );
    assert!(checked.status.success(), "{checked:?}");
}

/// Each alert has a section of the runbooks, and a case that fires and one that doesn't.
#[test]
fn each_alert_has_a_runbook_and_two_cases() {
    let read = |path: &str| std::fs::read_to_string(tools::root().join(path)).unwrap();
    let rules = std::fs::read_to_string(rules()).unwrap();
    let (runbooks, cases) = (
        read("docs/runbooks.md"),
        read("tests/prometheus/rules.test.yml"),
    );
    let anchors: Vec<_> = runbooks
        .lines()
        .filter_map(|line| line.strip_prefix("## "))
        .map(|title| title.to_lowercase().replace('\'', "").replace(' ', "-"))
        .collect();
    let mut count = 0;
    for part in rules.split("- alert: ").skip(1) {
        let name = part.lines().next().unwrap();
        let runbook = part.split("runbook: docs/runbooks.md#").nth(1).unwrap();
        let anchor = runbook.lines().next().unwrap();
        assert!(anchors.contains(&anchor.to_owned()), "{name}: {anchor}");
        assert!(
            runbooks.contains(&format!("`{name}`")),
            "{name} isn't explained"
        );
        assert!(
            cases.contains(&format!("{name} fires")),
            "{name} has no case that fires"
        );
        assert!(
            cases.contains(&format!("alertname: {name}, exp_alerts: []")),
            "{name} has no silent case"
        );
        count += 1;
    }
    assert!(count > 15, "{count}");
}

/// What dashboards and runbooks ask for is there: every family that they name is one of ours, or of the rules.
#[tokio::test]
async fn every_family_that_is_asked_for_exists() {
    let metrics = std::fs::read_to_string(tools::root().join("docs/metrics.md")).unwrap();
    let rules = std::fs::read_to_string(rules()).unwrap();
    let families: Vec<_> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(family, _)| family)
        .collect();
    assert!(families.len() > 60);
    let pages = std::fs::read_dir(tools::root().join("docs")).unwrap();
    let pages: Vec<_> = pages
        .map(|page| std::fs::read_to_string(page.unwrap().path()).unwrap())
        .collect();
    assert!(pages.len() > 8);
    let asked = panels().into_iter().map(|(_, expression)| expression);
    for text in asked.chain([rules]).chain(pages) {
        for word in text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':') {
            let Some(rest) = word.strip_prefix("kybio_gateway_") else {
                continue;
            };
            // A sentence on all of them.
            if rest.is_empty() {
                continue;
            }
            let base = rest
                .trim_end_matches("_bucket")
                .trim_end_matches("_sum")
                .trim_end_matches("_count");
            let known = [rest, base]
                .iter()
                .any(|name| families.contains(&&*format!("kybio_gateway_{name}")));
            assert!(known, "kybio_gateway_{rest}: {text:.300}");
        }
    }
}
