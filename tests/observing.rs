//! What operators see: metrics that Prometheus' own tools accept, one log line for each request, health.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::gateway::{Door, ORDERS, Unread};
use crate::support::upstream::{Act, SUCCESS};
use crate::support::{Client, Gateway, Pki, Setup, Upstream, tools};

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
            "kybio_gateway_request_duration_seconds_count{operation=\"customerOpenApi/add\",outcome=\"done\"}",
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

/// Names with labels of all series that there are.
async fn series(gateway: &Gateway) -> BTreeSet<String> {
    let text = gateway.metrics().await;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| line.rsplit_once(' ').unwrap().0.to_owned())
        .collect()
}

/// The same numbers each time (xorshift64*).
struct Random(u64);

impl Random {
    fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn word(&mut self) -> String {
        format!("w{:x}", self.number())
    }
}

/// Kinds of [`odd_request`]s.
const KINDS: usize = 10;

/// A request that costs no call, whatever is random in it: path, method, account, other header fields, body.
fn odd_request(kind: usize, random: &mut Random) -> String {
    let words: [String; 3] = std::array::from_fn(|_| random.word());
    let [one, two, three] = &words;
    let known = "/openapi/v1/customerOpenApi/queryByUid";
    let json = "content-type: application/json\r\n";
    let (method, path, fields, body) = match kind {
        0 => (
            "POST",
            format!("/openapi/v1/{one}/{two}"),
            String::new(),
            three.clone(),
        ),
        1 => (
            "POST",
            format!("/{one}//{two}?{three}"),
            String::new(),
            String::new(),
        ),
        2 => (one.as_str(), known.to_owned(), String::new(), String::new()),
        3 => (
            one.as_str(),
            format!("/openapi/v1/{two}/{three}"),
            String::new(),
            String::new(),
        ),
        4 => (
            "POST",
            known.to_owned(),
            format!("kybio-gateway-account: {one}\r\n"),
            String::new(),
        ),
        5 => (
            "POST",
            known.to_owned(),
            format!("{one}: {two}\r\ncontent-type: a/{three}\r\n"),
            "{}".to_owned(),
        ),
        6 => (
            "POST",
            known.to_owned(),
            json.to_owned(),
            format!("{{\"{one}\":{two}"),
        ),
        7 => (
            "POST",
            known.to_uppercase().replace("OPENAPI/V1", "openapi/v1"),
            format!("user-agent: {one}\r\nx-request-id: {two}\r\n{json}"),
            three.clone(),
        ),
        8 => (
            "POST",
            format!("https://{one}.example{known}"),
            String::new(),
            String::new(),
        ),
        _ => (
            "POST",
            known.to_owned(),
            format!("kybio-gateway-timeout-ms: {one}\r\n"),
            String::new(),
        ),
    };
    format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\n{fields}content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Writes them all on one connection, and reads as many answers.
async fn in_a_row(address: SocketAddr, requests: Vec<String>) {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut from, mut to) = stream.into_split();
    let writing = tokio::spawn(async move {
        for some in requests.chunks(100) {
            to.write_all(some.concat().as_bytes()).await.unwrap();
        }
        // A last one, so that there's an end.
        let last = "GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        to.write_all(last.as_bytes()).await.unwrap();
        // Whoever closes its side would be taken for gone.
        (requests.len() + 1, to)
    });
    let mut answers = Vec::new();
    from.read_to_end(&mut answers).await.unwrap();
    let text = String::from_utf8(answers).unwrap();
    let (answers, refusals) = (
        text.matches("HTTP/1.1 4").count(),
        text.matches("\"outcome\":\"not-sent\"").count(),
    );
    let (asked, _) = writing.await.unwrap();
    assert_eq!((answers, refusals), (asked, asked));
}

/// What the host answers, by what the call asks for: a code that no catalogue has, as number or text, or none of KYBIO's answers. The codes
/// that are in the catalogue have series of their own, and so have the names in the configuration: those can't be varied here.
fn odd_answer(nth: u64) -> Act {
    let mut random = Random(nth + 1);
    let (number, word) = (random.number() >> 20 | 1 << 40, random.word());
    match nth % 6 {
        0 => Act::ok(json!({"status": "error", "errorCode": number}).to_string()),
        1 => Act::ok(
            json!({"status": "error", "errorCode": number.to_string(), "messages": [word]})
                .to_string(),
        ),
        2 => Act::ok(json!({"status": "error", "errorCode": word}).to_string()),
        3 => Act::ok(json!({"status": word, "errorCode": number}).to_string()),
        4 => Act::ok(word),
        _ => Act::status(500 + u16::try_from(number % 90).unwrap() + 5, word),
    }
}

/// Promise U6: 100,000 requests with all in them random that a caller can vary. They
/// cost no call, and go without TLS, which would cost more than all else here.
#[tokio::test]
async fn series_do_not_grow_with_what_callers_send() {
    const CONNECTIONS: usize = 4;
    const REQUESTS: usize = 100_000 / CONNECTIONS;
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::reloaded_by_hand(&pki, &upstream);
    setup.door = Door::Plaintext;
    setup.orders = setup.orders.replace(ORDERS, "loopback");
    let gateway = setup.start().await;
    gateway.silence().await;
    let mut random = Random(7);
    let mut odd = |count: usize| -> Vec<String> {
        let kinds = (0..KINDS).cycle().take(count);
        kinds.map(|kind| odd_request(kind, &mut random)).collect()
    };
    // One of each kind makes all the series that there will be.
    in_a_row(gateway.address, odd(KINDS)).await;
    let before = series(&gateway).await;
    assert!(before.len() > 100, "{}", before.len());
    let mut at_once = JoinSet::new();
    for _ in 0..CONNECTIONS {
        at_once.spawn(in_a_row(gateway.address, odd(REQUESTS)));
    }
    while let Some(ended) = at_once.join_next().await {
        ended.unwrap();
    }
    assert_eq!(series(&gateway).await, before);
    assert!(upstream.seen().is_empty());
}

/// What certificates say, and what the host answers. Signing a certificate, and a call, take long: there are fewer of them.
#[tokio::test]
async fn series_do_not_grow_with_strangers_or_with_what_the_host_answers() {
    const ANSWERS: u64 = 2_000;
    const STRANGERS: usize = 30;
    let pki = Pki::new();
    let upstream = Upstream::scripted(&pki, |seen| {
        let asked: Value = serde_json::from_slice(&seen.body).unwrap();
        odd_answer(asked["nth"].as_u64().unwrap())
    })
    .await;
    let mut setup = Setup::reloaded_by_hand(&pki, &upstream);
    setup
        .kybio
        .push_str("breaker_failures = 10000\nbreaker_volume = 1000000\n");
    let gateway = setup.start().await;
    gateway.silence().await;
    let caller = gateway.http2_client(&pki);
    let ask = async |nth: u64| {
        let body = json!({"nth": nth}).to_string();
        caller.call("orderOpenApi/addOnLineOrder", body).await
    };
    let mut random = Random(11);
    let mut stranger = async || {
        let uri = format!("spiffe://{}.example/{}", random.word(), random.word());
        let stranger = gateway.client_with(&pki, &pki.caller(&uri));
        let answer = stranger.call("customerOpenApi/add", "{}").await;
        assert_eq!(answer.refusal().1, "unknown-caller");
    };
    stranger().await;
    for nth in 0..6 {
        ask(nth).await;
    }
    let before = series(&gateway).await;
    assert!(before.len() > 100, "{}", before.len());
    for _ in 0..STRANGERS {
        stranger().await;
    }
    for nth in 6..ANSWERS {
        ask(nth).await;
    }
    assert_eq!(series(&gateway).await, before);
    assert_eq!(upstream.seen().len() as u64, ANSWERS);
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
        target.starts_with("POST /openapi/v1/no/suchxx") && target.chars().count() <= 120,
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
    let mut gateway = Unread::start(&setup, &pki);
    // Each line has some 400 bytes, a pipe holds 64 KiB, and 2,000 lines wait for it.
    for _ in 0..2_500 {
        let answer = gateway.client.call("customerOpenApi/add", "{}").await;
        assert_eq!(answer.status, 200);
    }
    assert!(
        tools::run(Command::new("kill").arg(gateway.child.id().to_string()))
            .status
            .success()
    );
    assert_eq!(
        tokio::task::spawn_blocking(move || gateway.child.wait())
            .await
            .unwrap()
            .unwrap()
            .code(),
        Some(0)
    );
}

#[tokio::test]
async fn silent_connections_to_the_admin_listener_keep_nobody_out() {
    let pki = Pki::new();
    let gateway = Setup::new(&pki, None).start().await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(gateway.admin).await.unwrap());
    }
    assert_eq!(gateway.admin_get("/livez").await.0, 200);
    assert_eq!(gateway.admin_get("/readyz").await.0, 200);
    // And they cost no more than their number allows.
    let open = std::fs::read_dir(format!("/proc/{}/fd", gateway.pid()))
        .unwrap()
        .count();
    assert!(open < 64 + 40, "{open}");
}

/// Anybody with a certificate of the right CA can ask for as many as they like.
#[tokio::test]
async fn requests_of_nobody_have_lines_at_a_rate_and_are_counted() {
    const ROUND: usize = 1_000;
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    let stranger = gateway.client_with(&pki, &pki.caller("spiffe://shop.example/stranger"));
    let ask = async |count: usize| {
        let one = "POST /openapi/v1/customerOpenApi/add HTTP/1.1\r\nhost: gateway.test\r\ncontent-length: 0\r\n";
        let all = format!("{one}\r\n").repeat(count - 1) + one + "connection: close\r\n\r\n";
        let stream = stranger.stream().await.unwrap();
        let (mut from, mut to) = tokio::io::split(stream);
        let mut answers = Vec::new();
        let (written, read) =
            tokio::join!(to.write_all(all.as_bytes()), from.read_to_end(&mut answers));
        written.unwrap();
        read.unwrap();
    };
    let mark = gateway.mark();
    ask(ROUND).await;
    let mut asked = ROUND;
    // From time to time there's one more, and it says how many have none.
    let of_nobody = |line: &String| line.contains("\"refusal\":\"unknown-caller\"");
    let last = loop {
        ask(1).await;
        asked += 1;
        let lines = gateway.printed()[mark..].to_vec();
        if let Some(last) = lines
            .iter()
            .rev()
            .find(|line| line.contains("\"unlogged\""))
        {
            let until = lines.iter().position(|line| line == last).unwrap();
            let written = lines[..=until]
                .iter()
                .filter(|line| of_nobody(line))
                .count();
            break (serde_json::from_str::<Value>(last).unwrap(), written);
        }
    };
    assert!((200..ROUND).contains(&last.1), "{}", last.1);
    let unlogged = last.0["unlogged"].as_u64().unwrap() as usize;
    assert!(unlogged + last.1 <= asked, "{unlogged} of {asked}");
    let counted = "kybio_gateway_refusals_total{code=\"unknown-caller\"}";
    assert_eq!(gateway.metric(counted).await, asked as f64);
    // Callers have all of theirs.
    let answer = gateway.client(&pki).call("customerOpenApi/add", "{}").await;
    gateway
        .request_event(answer.header("kybio-gateway-request-id"))
        .await;
}
