//! Promise U6: what is counted by configured names stays within bounds, ends with the names, and says what is true of times, connections and
//! clocks.

use tokio::time::Instant;

use http::Response;
use http_body_util::Full;

use crate::support::upstream::{Act, SUCCESS};
use crate::support::{Gateway, Pki, Setup, Upstream, tools};

const READ: &str = "customerOpenApi/queryByUid";
const WRITE: &str = "customerOpenApi/add";

fn count(text: &str) -> usize {
    text.lines().filter(|line| !line.starts_with('#')).count()
}

/// 770 stores, 10 callers, and every operation there is, each with what may come of it.
#[tokio::test]
async fn a_whole_chain_has_at_most_twenty_thousand_series() {
    const STORES: usize = 770;
    let pki = Pki::new();
    let upstream = Upstream::scripted(&pki, |seen| {
        let body = seen.text();
        let answer = |code: &str| {
            format!("{{\"status\":\"error\",\"messages\":[\"no\"],\"errorCode\":{code}}}")
        };
        match body.as_bytes()[body.len() - 2] {
            b'1' => Act::ok(answer("5004")),
            b'2' => Act::ok(answer("5001")),
            b'3' => Act::ok(answer("987654")),
            b'4' => Act::status(500, "oops"),
            _ => Act::ok(SUCCESS),
        }
    })
    .await;
    let mut setup = Setup::reloaded_by_hand(&pki, &upstream);
    setup.kybio.push_str("attempts_max = 1\n");
    let names: Vec<_> = (0..STORES - 1)
        .map(|number| format!("store-{number}"))
        .collect();
    for name in &names {
        setup.account(name, &name.to_uppercase(), &format!("{name}-key"));
    }
    let callers: Vec<_> = (0..9)
        .map(|number| format!("spiffe://shop.example/caller-{number}"))
        .collect();
    for (number, uri) in callers.iter().enumerate() {
        let table = format!(
            "[callers.caller-{number}]\nidentities = [{uri:?}]\naccounts = [\"*\"]\noperations = [\"*\"]\n"
        );
        setup.more.push_str(&table);
    }
    let gateway = setup.start().await;
    gateway.silence().await;
    let main = gateway.client(&pki);
    // What each account and each operation can show: all outcomes, and several codes.
    let bodies = [
        "{\"a\":0}",
        "{\"a\":1}",
        "{\"a\":2}",
        "{\"a\":3}",
        "{\"a\":4}",
    ];
    for name in &names {
        let to = [("kybio-gateway-account", &**name)];
        for body in bodies {
            main.call_with(WRITE, &to, body).await;
        }
        main.call_with(WRITE, &to, "x").await;
    }
    let to = [("kybio-gateway-account", "main")];
    let operations = operations();
    assert!(operations.len() > 75, "{}", operations.len());
    for operation in &operations {
        for body in bodies.iter().chain(&["x"]) {
            main.call_with(operation, &to, *body).await;
        }
    }
    for uri in &callers {
        let client = gateway.client_with(&pki, &pki.caller(uri));
        for body in ["{\"a\":0}", "{\"a\":1}", "x"] {
            client.call_with(READ, &to, body).await;
        }
    }
    let began = Instant::now();
    let text = gateway.metrics().await;
    let took = began.elapsed();
    let of_names = gateway.metric("kybio_gateway_metrics_series").await;
    println!(
        "{} series, of which {of_names} of names; scraped in {took:?}",
        count(&text)
    );
    assert!(count(&text) <= 20_000, "{}", count(&text));
    assert!(of_names > 10_000.0, "{of_names}");
    assert_eq!(
        gateway
            .metric("kybio_gateway_metrics_series_folded_total")
            .await,
        0.0
    );
    let last = "kybio_gateway_account_requests_total{account=\"store-768\",outcome=\"done\"}";
    assert_eq!(gateway.metric(last).await, 1.0);
}

/// The operations that `*` grants, as the shipped catalogue lists them.
fn operations() -> Vec<String> {
    let catalogue =
        std::fs::read_to_string(tools::root().join("src/operations/catalogue.toml")).unwrap();
    let tables = catalogue.split("\n[operations.\"").skip(1);
    let granted = tables.filter(|table| {
        !table
            .split("\n[")
            .next()
            .unwrap()
            .contains("explicit = true")
    });
    granted
        .map(|table| table.split('"').next().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn beyond_the_limit_names_are_counted_as_other_and_what_is_removed_makes_room() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::reloaded_by_hand(&pki, &upstream);
    let names: Vec<_> = (0..400).map(|number| format!("store-{number}")).collect();
    for name in &names {
        setup.account(name, &name.to_uppercase(), &format!("{name}-key"));
    }
    setup.orders.push_str("default_account = \"main\"\n");
    let gateway = Gateway::start(setup, &["--set", "metrics.series_max=1300"]).await;
    let client = gateway.client(&pki);
    let of = async |name: &str| {
        let series =
            format!("kybio_gateway_account_requests_total{{account={name:?},outcome=\"done\"}}");
        gateway.metric(&series).await
    };
    for name in &names[..60] {
        client
            .call_with(WRITE, &[("kybio-gateway-account", name)], "{}")
            .await;
    }
    assert_eq!(of("store-0").await, 1.0);
    assert_eq!(of("store-59").await, 0.0);
    let other = of("other").await;
    assert!((20.0..60.0).contains(&other), "{other}");
    assert!(
        gateway
            .metric("kybio_gateway_metrics_series_folded_total")
            .await
            >= other
    );
    assert!(gateway.metric("kybio_gateway_metrics_folded").await > 0.0);
    assert!(gateway.metric("kybio_gateway_metrics_series").await <= 1_300.0);

    // Half of them are gone, and so are their series; the others' go on, and there's room for new ones.
    tools::change(&gateway.setup.path("gateway.toml"), |text| {
        let mut tables: Vec<_> = text.split("[accounts.store-").map(str::to_owned).collect();
        let rest: String = tables
            .split_off(201)
            .last()
            .unwrap()
            .split_once("\n[")
            .map(|(_, rest)| format!("[{rest}"))
            .unwrap_or_default();
        format!("{}\n{rest}", tables.join("[accounts.store-"))
    });
    gateway.reload().await;
    let text = gateway.metrics().await;
    assert!(!text.contains("\"store-399\"") && text.contains("\"store-199\""));
    for name in &names[60..120] {
        client
            .call_with(WRITE, &[("kybio-gateway-account", name)], "{}")
            .await;
    }
    assert_eq!(of("store-119").await, 1.0);
    assert_eq!(of("store-0").await, 1.0, "what stays goes on counting");
}

/// Names that are gone are gone from every family, those of hosts too.
#[tokio::test]
async fn a_name_that_is_gone_has_no_series() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::reloaded_by_hand(&pki, &upstream);
    setup.account("gone", "GONE", "gone-key");
    let host = format!(
        "[upstreams.leaving]\nbase_url = \"https://upstream.test/a\"\nroots = \"upstream-ca.pem\"\nresolve = [\"{}\"]\n",
        upstream.address
    );
    setup.more = setup
        .more
        .replace("upstream = \"kybio\"", "upstream = \"leaving\"")
        + &host;
    setup.more.push_str("[callers.leaver]\nidentities = [\"dns:leaver.internal\"]\naccounts = [\"main\"]\noperations = [\"*\"]\n");
    setup.orders.push_str("default_account = \"main\"\n");
    let mut gateway = setup.start().await;
    let client = gateway.client(&pki);
    for account in ["main", "gone"] {
        let answer = client
            .call_with(WRITE, &[("kybio-gateway-account", account)], "{}")
            .await;
        assert_eq!(answer.status, 200);
    }
    let names = ["\"gone\"", "\"leaving\"", "\"leaver\""];
    let text = gateway.metrics().await;
    assert!(names.iter().all(|name| text.contains(name)), "{text}");
    gateway.setup.more.clear();
    gateway.setup.write();
    gateway.reload().await;
    let text = gateway.metrics().await;
    for name in names {
        let left: Vec<_> = text.lines().filter(|line| line.contains(name)).collect();
        assert!(left.is_empty(), "{left:?}");
    }
    assert!(
        text.contains("account_requests_total{account=\"main\",outcome=\"done\"} 1\n"),
        "{text}"
    );
}

/// Whoever watches a code for its first change must find it there before.
#[tokio::test]
async fn all_codes_and_closed_sets_begin_at_zero() {
    let pki = Pki::new();
    let gateway = Setup::new(&pki, None).start().await;
    let text = gateway.metrics().await;
    let page = std::fs::read_to_string(tools::root().join("docs/answers.md")).unwrap();
    let (_, codes) = page.split_once("## Codes").unwrap_or(("", &page));
    let codes = codes
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let is_code = |word: &&str| {
        !["done", "rejected", "not-sent", "unknown"].contains(word)
            && word
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'-')
    };
    let codes: Vec<_> = codes.map(|(code, _)| code).filter(is_code).collect();
    assert!(codes.len() > 40, "{codes:?}");
    for code in codes {
        let line = format!("kybio_gateway_refusals_total{{code={code:?}}} 0\n");
        assert!(text.contains(&line), "{code}");
    }
    for line in [
        "kybio_gateway_unknown_outcomes_total{class=\"non-idempotent-write\"} 0\n",
        "kybio_gateway_tls_handshakes_total{kind=\"resumed\"} 0\n",
        "kybio_gateway_attempts_total{result=\"tls\",upstream=\"kybio\"} 0\n",
        "kybio_gateway_retries_total{reason=\"broken\",upstream=\"kybio\"} 0\n",
        "kybio_gateway_late_verdicts_total{outcome=\"unknown\"} 0\n",
    ] {
        assert!(text.contains(line), "{line}");
    }
}

#[tokio::test]
async fn parts_of_attempts_ages_and_the_process_are_shown() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.kybio.push_str("connection_age_max = \"1s\"\n");
    let gateway = setup.start().await;
    let client = gateway.client(&pki);
    for _ in 0..5 {
        client.call(READ, "{\"a\":1}").await;
    }
    let mut parts = 0.0;
    for phase in ["connect", "first-byte", "rest"] {
        let labels = format!("{{phase={phase:?},upstream=\"kybio\"}}");
        let series = format!("kybio_gateway_attempt_phase_duration_seconds_count{labels}");
        assert_eq!(gateway.metric(&series).await, 5.0, "{phase}");
        let series = format!("kybio_gateway_attempt_phase_duration_seconds_sum{labels}");
        parts += gateway.metric(&series).await;
    }
    let whole = "kybio_gateway_attempt_duration_seconds_sum{upstream=\"kybio\"}";
    let whole = gateway.metric(whole).await;
    assert!((whole - parts).abs() < 1e-6, "{whole} is {parts}");
    let opened = "kybio_gateway_upstream_connections_opened_total{upstream=\"kybio\"}";
    assert_eq!(gateway.metric(opened).await, 1.0);
    assert_eq!(
        gateway
            .metric("kybio_gateway_upstream_tls_handshakes_total{kind=\"full\",upstream=\"kybio\"}")
            .await,
        1.0
    );
    gateway
        .metric_reaches(
            "kybio_gateway_upstream_connection_age_seconds_count{upstream=\"kybio\"}",
            1.0,
        )
        .await;
    assert_eq!(
        gateway
            .metric("kybio_gateway_upstream_connections_idle{upstream=\"kybio\"}")
            .await,
        0.0
    );
    client.call(READ, "{}").await;
    assert_eq!(
        gateway
            .metric(
                "kybio_gateway_upstream_tls_handshakes_total{kind=\"resumed\",upstream=\"kybio\"}"
            )
            .await,
        1.0
    );
    assert_eq!(
        gateway.metric("kybio_gateway_request_body_bytes_sum").await,
        5.0 * 7.0 + 2.0
    );
    assert_eq!(
        gateway.metric("kybio_gateway_reply_body_bytes_sum").await,
        6.0 * SUCCESS.len() as f64
    );
    // And the process, as it is.
    let threads = std::fs::read_dir(format!("/proc/{}/task", gateway.pid()))
        .unwrap()
        .count();
    assert_eq!(gateway.metric("process_threads").await, threads as f64);
    let resident = gateway.metric("process_resident_memory_bytes").await / 1_024.0;
    let known = gateway.memory_kib() as f64;
    assert!(
        (known * 0.8..known * 1.25).contains(&resident),
        "{resident} {known}"
    );
    assert!(gateway.metric("process_cpu_seconds_total").await > 0.0);
    let open = gateway.metric("process_open_fds").await;
    assert!((5.0..200.0).contains(&open), "{open}");
    assert!(gateway.metric("process_max_fds").await > open);
    let started = gateway.metric("process_start_time_seconds").await;
    let now = time::OffsetDateTime::now_utc().unix_timestamp() as f64;
    assert!(
        (now - 120.0..=now + 2.0).contains(&started),
        "{started} {now}"
    );
}

#[tokio::test]
async fn a_hosts_clock_is_compared_with_ours_unless_its_answer_is_old() {
    let pki = Pki::new();
    let upstream = Upstream::scripted(&pki, |seen| {
        let ahead = time::Duration::seconds(100);
        let date = time::OffsetDateTime::now_utc() + ahead;
        let date = httpdate::fmt_http_date(date.into());
        let answer = Response::builder().header("date", date);
        let answer = if seen.text().contains("cached") {
            answer.header("age", "7")
        } else {
            answer
        };
        Act::Answer(answer.body(Full::new(SUCCESS.into())).unwrap())
    })
    .await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    let client = gateway.client(&pki);
    let skew = async || {
        gateway
            .metric("kybio_gateway_upstream_clock_skew_seconds{upstream=\"kybio\"}")
            .await
    };
    client.call(READ, "{\"a\":\"cached\"}").await;
    assert_eq!(skew().await, 0.0);
    client.call(READ, "{}").await;
    let seen = skew().await;
    assert!((98.0..102.0).contains(&seen), "{seen}");
    let warned =
        |event: &serde_json::Value| event["level"] == "WARN" && event["behind_seconds"].is_number();
    gateway.event(warned).await;
    client.call(READ, "{}").await;
    let lines = gateway
        .printed()
        .iter()
        .filter(|line| line.contains("behind_seconds"))
        .count();
    assert_eq!(lines, 1, "once an hour");
}

/// A host that is given up was slow, and a call whose caller doesn't wait any more has failed all the same.
#[tokio::test]
async fn what_is_given_up_and_what_nobody_waits_for_is_counted_too() {
    let pki = Pki::new();
    let upstream = Upstream::scripted(&pki, |_| Act::Hang).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup
        .kybio
        .push_str("attempt_timeout = \"300ms\"\ntotal_timeout = \"400ms\"\nattempts_max = 1\n");
    let gateway = setup.start().await;
    let client = gateway.client(&pki);
    assert_eq!(client.call(READ, "{}").await.refusal().2, "unknown");
    let phase = |part: &str| {
        format!(
            "kybio_gateway_attempt_phase_duration_seconds_{part}{{phase=\"first-byte\",upstream=\"kybio\"}}"
        )
    };
    assert_eq!(gateway.metric(&phase("count")).await, 1.0);
    assert!(gateway.metric(&phase("sum")).await > 0.25);
    let failures = "kybio_gateway_failures_total{reason=\"timeout\"}";
    assert_eq!(gateway.metric(failures).await, 1.0);
    // The caller's own time is up first, and another one is gone.
    let impatient = [("kybio-gateway-timeout-ms", "30")];
    assert_eq!(
        client.call_with(WRITE, &impatient, "{}").await.refusal().1,
        "caller-timeout"
    );
    gateway.metric_reaches(failures, 2.0).await;
    let mut leaving = client.stream().await.unwrap();
    let head = format!(
        "POST /openapi/v1/{WRITE} HTTP/1.1\r\nhost: gateway.test\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}"
    );
    tokio::io::AsyncWriteExt::write_all(&mut leaving, head.as_bytes())
        .await
        .unwrap();
    upstream.arrived(3).await;
    drop(leaving);
    gateway.metric_reaches(failures, 3.0).await;
    // What the caller gets wrong, and KYBIO's own word, isn't one.
    client.call(READ, "x").await;
    client.call("no/such", "{}").await;
    let text = gateway.metrics().await;
    let all = text
        .lines()
        .filter(|line| line.starts_with("kybio_gateway_failures_total{"));
    let all: f64 = all
        .map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap())
        .sum();
    assert_eq!(all, 3.0);
}

/// A call that is under way when its account goes doesn't bring the account's series back.
#[tokio::test]
async fn a_call_under_way_makes_no_series_of_a_name_that_is_gone() {
    let pki = Pki::new();
    let (upstream, gate) = Upstream::held(&pki).await;
    let mut setup = Setup::reloaded_by_hand(&pki, &upstream);
    setup.account("gone", "GONE", "gone-key");
    setup.orders.push_str("default_account = \"main\"\n");
    let mut gateway = setup.start().await;
    let client = gateway.client(&pki);
    let under_way = tokio::spawn(async move {
        client
            .call_with(WRITE, &[("kybio-gateway-account", "gone")], "{}")
            .await
    });
    upstream.arrived(1).await;
    gateway.setup.more.clear();
    gateway.setup.write();
    gateway.reload().await;
    gate.add_permits(1);
    assert_eq!(under_way.await.unwrap().status, 200);
    gateway
        .metric_reaches(
            "kybio_gateway_attempts_total{result=\"answered\",upstream=\"kybio\"}",
            1.0,
        )
        .await;
    let text = gateway.metrics().await;
    assert!(!text.contains("\"gone\""), "{text}");
}

/// That an account's calls are used up is seen again when its name comes back.
#[tokio::test]
async fn a_used_up_quota_is_shown_again_with_its_account() {
    let pki = Pki::new();
    let upstream = Upstream::scripted(&pki, |_| {
        Act::ok(r#"{"status":"error","messages":["您已用完当日请求量"],"errorCode":null}"#)
    })
    .await;
    let mut setup = Setup::reloaded_by_hand(&pki, &upstream);
    setup.account("spent", "SPENT", "spent-key");
    setup.orders.push_str("default_account = \"main\"\n");
    let mut gateway = setup.start().await;
    let client = gateway.client(&pki);
    let to = [("kybio-gateway-account", "spent")];
    let gauge = "kybio_gateway_account_quota_used_up{account=\"spent\"}";
    client.call_with(READ, &to, "{}").await;
    assert_eq!(gateway.metric(gauge).await, 1.0);
    let table = std::mem::take(&mut gateway.setup.more);
    for (more, expected) in [(String::new(), 0.0), (table, 1.0)] {
        gateway.setup.more = more;
        gateway.setup.write();
        gateway.reload().await;
        client.call_with(READ, &to, "{}").await;
        assert_eq!(gateway.metric(gauge).await, expected);
    }
}

/// Room that a reload makes is there for the names that it brings.
#[tokio::test]
async fn new_names_have_the_room_of_those_that_they_replace() {
    const NAMES: usize = 300;
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::reloaded_by_hand(&pki, &upstream);
    for number in 0..NAMES {
        setup.account(&format!("old-{number}"), &format!("APP{number}"), "a-key");
    }
    setup.orders.push_str("default_account = \"main\"\n");
    let gateway = Gateway::start(setup, &["--set", "metrics.series_max=1000"]).await;
    let folded = "kybio_gateway_metrics_folded";
    assert_eq!(gateway.metric(folded).await, 0.0);
    tools::change(&gateway.setup.path("gateway.toml"), |text| {
        text.replace("[accounts.old-", "[accounts.new-")
    });
    gateway.reload().await;
    assert_eq!(gateway.metric(folded).await, 0.0);
    let text = gateway.metrics().await;
    let shown = text
        .lines()
        .filter(|line| line.starts_with("kybio_gateway_account_key_accepted{account=\"new-"));
    assert_eq!(shown.count(), NAMES);
}
