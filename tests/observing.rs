//! What operators see: metrics that Prometheus' own tools accept, one log line for each request, health.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use crate::support::upstream::{Act, SUCCESS};
use crate::support::{Client, Pki, Setup, Upstream, tools};

fn promtool(text: &str) -> (bool, String) {
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("promtool: {error} (see .ci/install)"));
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    (
        output.status.success(),
        tools::stdout(&output) + &tools::stderr(&output),
    )
}

#[tokio::test]
async fn the_metrics_page_passes_promtool_and_counts_business_errors_by_their_codes() {
    let pki = Pki::new();
    let upstream = Upstream::scripted(&pki, |seen| match seen.target.rsplit('/').next().unwrap() {
        "addProductInfo" => Act::ok(r#"{"status":"error","messages":["x"],"errorCode":5004}"#),
        "updateProductInfo" => Act::ok(r#"{"status":"error","messages":["x"],"errorCode":987654}"#),
        _ => Act::ok(SUCCESS),
    })
    .await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    let client = gateway.client(&pki);
    for operation in [
        "productOpenApi/addProductInfo",
        "productOpenApi/updateProductInfo",
        "customerOpenApi/add",
        "no/such",
    ] {
        client.call(operation, "{}").await;
    }
    let text = gateway.metrics().await;
    let (good, said) = promtool(&text);
    assert!(good && said.trim().is_empty(), "{said}");
    let series = [
        (
            "kybio_gateway_operation_answers_total{error_code=\"5004\",operation=\"productOpenApi/addProductInfo\"}",
            1.0,
        ),
        (
            "kybio_gateway_operation_answers_total{error_code=\"other\",operation=\"productOpenApi/updateProductInfo\"}",
            1.0,
        ),
        (
            "kybio_gateway_account_answers_total{account=\"main\",error_code=\"none\"}",
            1.0,
        ),
        (
            "kybio_gateway_requests_total{operation=\"customerOpenApi/add\",outcome=\"done\"}",
            1.0,
        ),
        (
            "kybio_gateway_requests_total{operation=\"productOpenApi/addProductInfo\",outcome=\"rejected\"}",
            1.0,
        ),
        (
            "kybio_gateway_requests_total{operation=\"none\",outcome=\"not-sent\"}",
            1.0,
        ),
        (
            "kybio_gateway_caller_requests_total{caller=\"orders\",outcome=\"done\"}",
            1.0,
        ),
        (
            "kybio_gateway_refusals_total{code=\"unknown-operation\"}",
            1.0,
        ),
        (
            "kybio_gateway_attempts_total{result=\"answered\",upstream=\"kybio\"}",
            3.0,
        ),
        (
            "kybio_gateway_request_duration_seconds_count{operation=\"customerOpenApi/add\"}",
            1.0,
        ),
        ("kybio_gateway_downstream_connections_accepted_total", 1.0),
    ];
    for (name, value) in series {
        assert_eq!(gateway.metric(name).await, value, "{name}\n{text}");
    }
    assert!(
        promtool("bad_metric 1\nbad_metric 1\n")
            .1
            .contains("bad_metric"),
        "promtool can fail"
    );
}

#[tokio::test]
async fn series_do_not_grow_with_what_callers_send() {
    let pki = Pki::new();
    let upstream = Upstream::scripted(&pki, |seen| {
        let code = seen.body.len() * 7919;
        Act::ok(format!("{{\"status\":\"error\",\"errorCode\":{code}}}"))
    })
    .await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    let client = gateway.client(&pki);
    let round = async |number: usize| {
        client
            .call(
                "customerOpenApi/queryByUid",
                format!("{{\"a\":\"{}\"}}", "x".repeat(number)),
            )
            .await;
        client
            .call(&format!("random{number}/path{number}"), "{}")
            .await;
        let account = format!("account-{number}");
        client
            .call_with(
                "customerOpenApi/queryByUid",
                &[("kybio-gateway-account", &account)],
                "{}",
            )
            .await;
    };
    round(0).await;
    let before = gateway.metrics().await.lines().count();
    for number in 1..100 {
        round(number).await;
    }
    assert_eq!(gateway.metrics().await.lines().count(), before);
}

#[tokio::test]
async fn each_request_has_one_line_in_the_log_as_json() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    let answer = gateway
        .client(&pki)
        .call("customerOpenApi/add", "{\"a\":1}")
        .await;
    let id = answer.header("kybio-gateway-request-id");
    let event = gateway.request_event(id).await;
    let expected = [
        ("caller", "orders"),
        ("account", "main"),
        ("operation", "customerOpenApi/add"),
        ("class", "naturally-keyed-write"),
        ("outcome", "done"),
        ("business_status", "success"),
        ("upstream", "kybio"),
        ("attempt", "answered"),
    ];
    for (field, value) in expected {
        assert_eq!(event[field], value, "{field}: {event}");
    }
    assert_eq!(
        (
            &event["status"],
            &event["request_bytes"],
            &event["reply_bytes"]
        ),
        (&200.into(), &7.into(), &SUCCESS.len().into())
    );
    assert!(event["duration_ms"].as_f64().unwrap() >= event["attempt_ms"].as_f64().unwrap());
    let lines = gateway
        .printed()
        .iter()
        .filter(|line| line.contains(id))
        .count();
    assert_eq!(lines, 1);
}

#[test]
fn the_log_can_be_for_people_and_the_descriptor_limit_is_raised() {
    let pki = Pki::new();
    let setup = Setup::new(&pki, None);
    let config = setup.write();
    // A soft limit as shells have it by default, or lower.
    let script = "ulimit -Sn 300 && exec \"$0\" serve --set log.format=human --config \"$1\"";
    let mut child = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_kybio-gateway")])
        .arg(config)
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    log.read_line(&mut line).unwrap();
    assert!(
        line.contains(" INFO listening version=") && !line.starts_with('{'),
        "{line}"
    );
    assert!(
        !line.contains('\u{1b}'),
        "no colour where it isn't a terminal"
    );
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
    let open_files: Vec<_> = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap()
        .split_whitespace()
        .collect();
    assert_eq!(
        open_files[3], open_files[4],
        "soft and hard: {open_files:?}"
    );
    assert!(
        tools::run(Command::new("kill").arg(child.id().to_string()))
            .status
            .success()
    );
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    assert!(
        rest.contains("asked to end") && rest.contains("ended"),
        "{rest}"
    );
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut output = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut output)
        .unwrap();
    assert_eq!(output, "", "serve prints nothing to standard output");
}

#[tokio::test]
async fn the_admin_pages_answer_get_alone_and_health_asks_them() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    for (path, status) in [
        ("/metrics", 200),
        ("/livez", 200),
        ("/readyz", 200),
        ("/", 200),
        ("/metrics/", 404),
        ("/nothing", 404),
    ] {
        assert_eq!(gateway.admin_get(path).await.0, status, "{path}");
    }
    let health = |address: &str| {
        let flag = format!("admin.address={address}");
        tools::run(
            tools::binary()
                .args(["health", "--set", &flag, "--config"])
                .arg(gateway.setup.path("gateway.toml")),
        )
    };
    let good = health(&gateway.admin.to_string());
    assert_eq!(
        (good.status.code(), tools::stdout(&good).as_str()),
        (Some(0), "ok\n")
    );
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    assert_eq!(health(&free.to_string()).status.code(), Some(1));
    // What it was told is what counts: it doesn't ask another gateway instead.
    assert_eq!(health("nonsense").status.code(), Some(78));
    let nowhere = tools::run(tools::binary().args(["health", "--config", "nowhere.toml"]));
    assert_eq!(nowhere.status.code(), Some(78));
    // A file that was broken since doesn't make a running gateway unhealthy.
    for broken in [
        "[listener]\nnonsense = 1\n",
        "[listener",
        "include = [\"missing.toml\"]\n",
    ] {
        std::fs::write(gateway.setup.path("gateway.toml"), broken).unwrap();
        assert_eq!(
            health(&gateway.admin.to_string()).status.code(),
            Some(0),
            "{broken}"
        );
    }
}

#[tokio::test]
async fn refusals_name_what_was_asked_for() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.orders = setup.orders.replace(
        "operations = [\"*\"]",
        "operations = [\"customerOpenApi/*\"]",
    );
    let gateway = setup.start().await;
    let client = gateway.client(&pki);
    let logged = async |answer: crate::support::Answer| {
        gateway
            .request_event(answer.header("kybio-gateway-request-id"))
            .await
    };
    let denied = logged(client.call("orderOpenApi/addOnLineOrder", "{}").await).await;
    assert_eq!(
        (&denied["operation"], &denied["caller"]),
        (&"orderOpenApi/addOnLineOrder".into(), &"orders".into()),
        "{denied}"
    );
    assert!(
        denied["peer"].as_str().unwrap().starts_with("127.0.0.1:"),
        "{denied}"
    );
    let long = format!("no/such{}", "x".repeat(1_000));
    let unknown = logged(client.call(&long, "{}").await).await;
    let target = unknown["asked"].as_str().unwrap();
    assert!(
        target.starts_with("POST /openapi/v1/no/suchxx") && target.len() <= 120,
        "{unknown}"
    );
    // Only what is allowed makes a series.
    assert!(!gateway.metrics().await.contains("addOnLineOrder"));
}

#[tokio::test]
async fn writes_of_unknown_outcome_are_warnings() {
    let pki = Pki::new();
    let upstream = Upstream::scripted(&pki, |_| Act::Close).await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    let client = gateway.client(&pki);
    for (operation, level) in [
        ("orderOpenApi/addOnLineOrder", "WARN"),
        ("customerOpenApi/queryByUid", "INFO"),
    ] {
        let answer = client.call(operation, "{}").await;
        assert_eq!(
            gateway
                .request_event(answer.header("kybio-gateway-request-id"))
                .await["level"],
            level
        );
    }
}

#[tokio::test]
async fn a_caller_that_leaves_in_the_middle_of_its_body_is_logged() {
    use tokio::io::AsyncWriteExt;
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    let client: Client = gateway.client(&pki);
    let mut stream = client.stream().await.unwrap();
    let head = "POST /openapi/v1/customerOpenApi/add HTTP/1.1\r\nhost: gateway.test\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"a\":";
    stream.write_all(head.as_bytes()).await.unwrap();
    drop(stream);
    let event = gateway.event(|event| event["message"] == "request").await;
    assert_eq!(event["outcome"], "not-sent", "{event}");
    assert!(upstream.seen().is_empty());
}

/// A log that nobody reads stops no call, and no end.
#[tokio::test]
async fn a_log_that_nobody_reads_stops_nothing() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let setup = Setup::new(&pki, Some(upstream.address));
    let mut child = tools::binary()
        .args(["serve", "--config"])
        .arg(setup.write())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    log.read_line(&mut line).unwrap();
    let listening: serde_json::Value = serde_json::from_str(&line).unwrap();
    let address = listening["address"].as_str().unwrap().parse().unwrap();
    let caller = pki.caller(crate::support::gateway::ORDERS);
    let client = Client::new(
        address,
        pki.client_config(Some(&caller), &["http/1.1"], rustls::ALL_VERSIONS),
    );
    // Each line has some 400 bytes, a pipe holds 64 KiB, and 2,000 lines wait for it.
    for _ in 0..2_500 {
        assert_eq!(client.call("customerOpenApi/add", "{}").await.status, 200);
    }
    assert!(
        tools::run(Command::new("kill").arg(child.id().to_string()))
            .status
            .success()
    );
    assert_eq!(
        tokio::task::spawn_blocking(move || child.wait())
            .await
            .unwrap()
            .unwrap()
            .code(),
        Some(0)
    );
    drop(log);
}

#[tokio::test]
async fn silent_connections_to_the_admin_listener_keep_nobody_out() {
    let pki = Pki::new();
    let gateway = Setup::new(&pki, None).start().await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(tokio::net::TcpStream::connect(gateway.admin).await.unwrap());
    }
    assert_eq!(gateway.admin_get("/livez").await.0, 200);
    assert_eq!(gateway.admin_get("/readyz").await.0, 200);
    // And they cost no more than their number allows.
    let open = std::fs::read_dir(format!("/proc/{}/fd", gateway.pid()))
        .unwrap()
        .count();
    assert!(open < 64 + 40, "{open}");
}
