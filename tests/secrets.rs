//! Promise S1: neither an appKey nor a signature comes out anywhere. The keys are canaries, everything runs at trace level on good and bad
//! input, under faults, reloads and panics; then everything that came out is searched for them in all spellings.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use http::Response;
use http_body_util::Full;

use crate::support::frames::{self, END_HEADERS, END_STREAM, Frames, HEADERS};
use crate::support::gateway::{APP_ID, NOT_RELOADED};
use crate::support::upstream::{Act, SUCCESS, signature};
use crate::support::{Client, Gateway, Pki, Setup, Upstream, names, tools, unprivileged};

/// A key with letters, which spellings differ in.
const CANARY: &str = "7319CanaryKey5520";

/// A key as the vendor's look.
const DIGITS: &str = "5829047163829104756";

/// What was looked for, and in what.
struct Search {
    secrets: BTreeSet<String>,
    came_out: Vec<(String, Vec<u8>)>,
}

impl Search {
    fn new(keys: &[&str]) -> Self {
        Self {
            secrets: keys.iter().flat_map(|key| spellings(key)).collect(),
            came_out: Vec::new(),
        }
    }

    fn secret(&mut self, secret: &str) {
        self.secrets.extend(spellings(secret));
    }

    fn heard(&mut self, what: impl Into<String>, bytes: impl Into<Vec<u8>>) {
        self.came_out.push((what.into(), bytes.into()));
    }

    /// What a command prints, and how it's called.
    fn ran(&mut self, command: &mut Command) -> String {
        let output = tools::run(command);
        let said = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&said).into_owned();
        self.heard(
            format!("{:?}", command.get_args().collect::<Vec<_>>()),
            said,
        );
        text
    }

    /// What /proc says of a process. Of a concealed one nobody but root may read all of it.
    fn process(&mut self, pid: u32, file: &str) {
        match std::fs::read(format!("/proc/{pid}/{file}")) {
            Ok(read) => {
                assert!(!read.is_empty(), "{file}");
                self.heard(file, read);
            }
            Err(error) => assert!(
                !unprivileged::is_root() && file == "environ",
                "{file}: {error}"
            ),
        }
    }

    /// All files below a folder, but those that hold keys because the test put them there.
    fn files(&mut self, folder: &Path, with_keys: &[&str]) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                self.files(&path, with_keys);
            } else if !with_keys.contains(&name) {
                self.heard(path.display().to_string(), std::fs::read(&path).unwrap());
            }
        }
    }

    /// What has a secret in it, which, and what stands around it.
    fn hits(&self) -> Vec<String> {
        let mut hits = Vec::new();
        for (what, bytes) in &self.came_out {
            for secret in &self.secrets {
                let Some(at) = memchr::memmem::find(bytes, secret.as_bytes()) else {
                    continue;
                };
                let around = at.saturating_sub(150)..(at + 150).min(bytes.len());
                let around = String::from_utf8_lossy(&bytes[around]);
                hits.push(format!("{what} holds {secret}: {around}"));
            }
        }
        hits
    }

    fn finds_nothing(&self) {
        let hits = self.hits();
        assert!(
            hits.is_empty(),
            "{} hits: {:.20000}",
            hits.len(),
            hits.join("\n")
        );
        assert!(self.secrets.len() >= 14 && !self.came_out.is_empty());
    }
}

/// The ways in which a secret could be written.
fn spellings(secret: &str) -> Vec<String> {
    let each = |write: &dyn Fn(u8) -> String| secret.bytes().map(write).collect::<String>();
    let hex = each(&|byte| format!("{byte:02x}"));
    let (first, second) = secret.split_at(secret.len() / 2);
    let mut spellings = vec![
        secret.to_owned(),
        secret.to_lowercase(),
        secret.to_uppercase(),
        hex.to_uppercase(),
        hex,
        each(&|byte| format!("%{byte:02x}")),
        each(&|byte| format!("%{byte:02X}")),
        each(&|byte| format!("\\u{byte:04x}")),
        each(&|byte| format!("\\u{byte:04X}")),
        each(&|byte| format!("{byte}, ")),
        each(&|byte| format!("\\x{byte:02x}")),
        secret.chars().rev().collect(),
        first.to_owned(),
        second.to_owned(),
    ];
    // Wherever it stands in a longer text.
    spellings.extend((0..3).map(|before| base64_within(secret.as_bytes(), before)));
    spellings
}

/// The characters that a text has in base64 (RFC 4648) whatever stands around it, where so many bytes are before it in its group of three.
fn base64_within(text: &[u8], before: usize) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = text
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1));
    // The first of them share a character with what is before.
    let bits: Vec<_> = bits.skip((6 - before * 8 % 6) % 6).collect();
    let characters = bits.chunks_exact(6).map(|six| {
        let index = six
            .iter()
            .fold(0, |index, bit| index << 1 | usize::from(*bit));
        char::from(ALPHABET[index])
    });
    characters.collect()
}

/// What the host does with each operation.
fn host(seen: &crate::support::upstream::Seen) -> Act {
    let signature = seen.header("data-signature");
    let echo = format!("{{\"status\":\"error\",\"messages\":[\"{signature}\"],\"errorCode\":1}}");
    match seen.target.rsplit('/').next().unwrap() {
        "queryByUid" => Act::Close,
        "queryByNumber" => Act::ok("garbage"),
        "queryBytel" => Act::status(500, echo),
        "queryCustomerPages" => Act::ok(echo),
        "queryAllCustomerCategory" => Act::Reset,
        "updateBaseInfo" => Act::Answer(
            Response::builder()
                .status(302)
                .header("location", format!("https://elsewhere.test/?s={signature}"))
                .body(Full::new(echo.into()))
                .unwrap(),
        ),
        "batchUpdateCategory" => Act::status(401, echo),
        "queryProductByUid" => Act::raw(
            format!("HTTP/1.1 200 OK {signature}\r\nx: {signature}\r\n\r\n"),
            crate::support::upstream::Then::End,
        ),
        "queryProductPages" => Act::raw(
            format!("{signature}\r\n\r\n"),
            crate::support::upstream::Then::End,
        ),
        "addOnLineOrder" => Act::Hang,
        _ => Act::ok(SUCCESS),
    }
}

const OPERATIONS: [&str; 12] = [
    "customerOpenApi/add",
    "customerOpenApi/queryByUid",
    "customerOpenApi/queryByNumber",
    "customerOpenApi/queryBytel",
    "customerOpenApi/queryCustomerPages",
    "customerOpenApi/queryAllCustomerCategory",
    "customerOpenApi/updateBaseInfo",
    "customerOpenApi/batchUpdateCategory",
    "productOpenApi/queryProductByUid",
    "productOpenApi/queryProductPages",
    "orderOpenApi/addOnLineOrder",
    "no/such",
];

/// Good and bad bodies. Some have a key in them: a service that still holds one makes mistakes with it.
fn bodies() -> Vec<String> {
    let mut bodies = vec![
        "{}".to_owned(),
        "{\"a\":1}".to_owned(),
        "not json".to_owned(),
        "{\"appId\":\"x\"}".to_owned(),
        "{\"appId\":1,\"appId\":2}".to_owned(),
    ];
    for key in [CANARY, DIGITS] {
        for body in [
            "{\"appKey\":\"KEY\"}",
            "{\"appId\":\"KEY\"}",
            "{\"KEY\":1,\"KEY\":2}",
            "{\"a\":\"KEY",
            "KEY{}",
            "{\"a\":KEYx}",
            "KEY",
        ] {
            bodies.push(body.replace("KEY", key));
        }
    }
    bodies
}

/// Every call there is, by one client. The answers are heard.
async fn calls(search: &mut Search, client: &Client) {
    for operation in OPERATIONS {
        for body in bodies() {
            // Each hangs for as long as it may.
            if operation.ends_with("addOnLineOrder") && body != "{}" {
                continue;
            }
            let answer = client.call(operation, body.clone()).await;
            search.heard(
                format!("{operation} {body}"),
                format!("{answer:?} {}", answer.text()),
            );
        }
    }
    for key in [CANARY, DIGITS] {
        let upper = signature(CANARY, b"{}");
        let (bearer, cookie) = (format!("Bearer {key}"), format!("appKey={key}"));
        for (name, value) in [
            ("kybio-gateway-account", key),
            ("kybio-gateway-account", "digits"),
            ("kybio-gateway-account", "spaced"),
            ("kybio-gateway-account", "untrusted"),
            ("kybio-gateway-account", "nowhere"),
            ("kybio-gateway-timeout-ms", key),
            ("idempotency-key", key),
            ("x-request-id", key),
            ("traceparent", key),
            ("content-type", key),
            ("content-encoding", key),
            ("authorization", &bearer),
            ("cookie", &cookie),
            ("user-agent", key),
            ("data-signature", &upper),
            ("data-signature", key),
            ("upgrade", key),
            (key, key),
        ] {
            let answer = client
                .call_with("customerOpenApi/add", &[(name, value)], "{}")
                .await;
            search.heard(
                format!("{name} {value}"),
                format!("{answer:?} {}", answer.text()),
            );
        }
        for target in [
            format!("/openapi/v1/customerOpenApi/add?appKey={key}"),
            format!("/openapi/v1/customerOpenApi/{key}"),
            format!("/{key}"),
            format!("/openapi/v1/../{key}"),
        ] {
            let answer = client.send(Client::request(&target, &[], "{}")).await;
            search.heard(target, format!("{answer:?}"));
        }
    }
}

/// HTTP/2 heads that the library refuses, each with a word on what it was.
async fn malformed(client: &Client) {
    let path = format!("/openapi/v1/x?appKey={CANARY} {DIGITS}");
    let plain = [
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", "gateway.test"),
        (":path", "/"),
    ];
    for (name, value) in [
        (":path", &*path),
        (":authority", &*format!("{CANARY}:{DIGITS}@gateway.test:x")),
        (":scheme", &*format!("{CANARY} {DIGITS}")),
        (":method", &*format!("{CANARY} {DIGITS}")),
        (":status", CANARY),
        (&*format!(":{CANARY}"), DIGITS),
        ("te", CANARY),
        ("connection", CANARY),
        ("content-length", CANARY),
    ] {
        let mut fields: Vec<_> = plain
            .into_iter()
            .filter(|(plain, _)| *plain != name)
            .collect();
        fields.push((name, value));
        let mut frames = Frames::open(client).await;
        let block = frames::block(&fields);
        let head = frames::frame(HEADERS, END_HEADERS | END_STREAM, 1, &block);
        let _ = frames.write_all(&head).await;
        // It's answered, reset, or the connection ends.
        let _ = frames.next().await;
    }
}

#[tokio::test]
async fn nothing_that_comes_out_holds_a_key_or_a_signature() {
    let pki = Pki::new();
    let upstream = Upstream::scripted(&pki, host).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    let (folder, level) = (setup.folder.path().to_owned(), "trace");
    setup.level = level;
    setup.runtime.push_str("reload_interval = \"0s\"\n");
    setup.kybio.push_str("total_timeout = \"300ms\"\n");
    tools::write(&setup.path("main.key"), CANARY, 0o600);
    setup.account("digits", "DIGITS", DIGITS);
    // The canary in a form that can't be used.
    setup.account("spaced", "SPACED", &format!("{CANARY} {DIGITS}"));
    setup.account("untrusted", "UNTRUSTED", DIGITS);
    setup.account("nowhere", "NOWHERE", DIGITS);
    for (name, place) in [
        ("untrusted", upstream.address.to_string()),
        ("nowhere", "127.0.0.1:1".to_owned()),
    ] {
        setup.more = setup.more.replace(
            &format!("[accounts.{name}]\nupstream = \"kybio\""),
            &format!("[accounts.{name}]\nupstream = \"{name}\""),
        );
        // Whose certificate is another name's.
        let _ = write!(
            setup.more,
            "[upstreams.{name}]\nbase_url = \"https://{name}.test\"\nroots = \"upstream-ca.pem\"\nresolve = [\"{place}\"]\ntotal_timeout = \"300ms\"\n"
        );
    }
    setup.orders.push_str("default_account = \"main\"\n");
    setup.environment = vec![
        (
            "SSLKEYLOGFILE",
            folder.join("key-log").display().to_string(),
        ),
        ("RUST_LOG", level.to_owned()),
        ("RUST_BACKTRACE", "full".to_owned()),
        ("TMPDIR", folder.display().to_string()),
        ("HOME", folder.display().to_string()),
    ];
    let mut gateway = setup.start().await;
    let mut search = Search::new(&[CANARY, DIGITS]);
    for client in [gateway.client(&pki), gateway.http2_client(&pki)] {
        calls(&mut search, &client).await;
    }
    malformed(&gateway.http2_client(&pki)).await;
    drop(
        gateway
            .client_with(&pki, &Pki::new().caller("spiffe://shop.example/orders"))
            .stream()
            .await,
    );
    for page in [
        "/metrics",
        "/livez",
        "/readyz",
        "/readyz?verbose",
        "/",
        "/nothing",
        &format!("/{CANARY}"),
    ] {
        search.heard(page, gateway.admin_get(page).await.1);
    }
    // Reloads: of keys that can't be used, of keys in the wrong place, of another key.
    let config = gateway.setup.path("gateway.toml");
    let good = std::fs::read_to_string(&config).unwrap();
    let mut refused = 0;
    tools::write(
        &gateway.setup.path("digits.key"),
        format!("{DIGITS}\n{CANARY}"),
        0o600,
    );
    gateway.reload().await;
    tools::write(&gateway.setup.path("digits.key"), DIGITS, 0o644);
    gateway.reload().await;
    for wrong in [
        good.replace(
            "app_key_file = \"main.key\"",
            &format!("app_key_file = \"{CANARY}\""),
        ),
        good.replace(
            "app_key_file = \"main.key\"",
            &format!("app_key = \"{CANARY}\""),
        ),
        good.replace(
            "app_key_file = \"main.key\"",
            &format!("app_key_file = {DIGITS}"),
        ),
        good.replace(
            "app_key_file = \"main.key\"",
            &format!("app_key_file = \"{CANARY}"),
        ),
        good.replace(
            "private_key = \"gateway.key\"",
            &format!("private_key = \"{CANARY}\""),
        ),
        good.replace("upstream-ca.pem", CANARY),
        good.replace("gateway.pem", CANARY),
        good.replace(
            "drain_timeout = \"5s\"",
            &format!("drain_timeout = \"{CANARY}\""),
        ),
        good.replace("accounts = [\"*\"]", &format!("accounts = [\"{DIGITS}\"]")),
        good.replace(
            "operations = [\"*\"]",
            &format!("operations = [\"{CANARY}\"]"),
        ),
        good.replace("identities = [", &format!("identities = [\"{CANARY}\", ")),
        good.replace("[log]", &format!("[{CANARY}]\na = 1\n[log]")),
        good.replace("[log]", &format!("[log]\n{CANARY} = 1")),
        good.replace("[log]", &format!("[log]\n{CANARY}")),
        good.replace(
            "https://upstream.test/",
            &format!("https://{CANARY}@upstream.test/"),
        ),
        good.replace(
            "https://upstream.test/",
            &format!("{CANARY}://upstream.test/"),
        ),
    ] {
        assert_ne!(wrong, good);
        std::fs::write(&config, &wrong).unwrap();
        let event = gateway.hang_up().await;
        refused += usize::from(event["message"] == NOT_RELOADED);
        for command in [
            &["check"][..],
            &["config", "show"],
            &["serve", "--set", "runtime.on_bad_key=refuse"],
            &["health"],
        ] {
            search.ran(tools::binary().args(command).arg("--config").arg(&config));
        }
    }
    assert!(refused >= 12, "{refused}");
    std::fs::write(&config, &good).unwrap();
    tools::write(&gateway.setup.path("digits.key"), DIGITS, 0o600);
    gateway.reload().await;
    let in_place_of_its_file = format!("accounts.main.app_key_file={CANARY}");
    let in_place_of_a_tls_key = format!("listener.private_key={CANARY}");
    let in_place_of_a_table = format!("accounts.main={CANARY}");
    for arguments in [
        &["check", "--keys"][..],
        &["check", "--connect"],
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
        let mut command = tools::binary();
        command.args(arguments).arg("--config").arg(&config);
        let output = tools::run(&mut command);
        search.heard(
            format!("{:?}", arguments.first()),
            [output.stdout, output.stderr].concat(),
        );
    }
    for file in ["cmdline", "environ", "comm", "status"] {
        search.process(gateway.pid(), file);
    }
    gateway.signal("TERM");
    assert!(gateway.ended().await.success());
    let printed = gateway.printed();
    assert!(
        printed
            .iter()
            .any(|line| line.contains("\"level\":\"DEBUG\"")),
        "it logs everything"
    );
    search.heard("the log", printed.join("\n"));
    search.files(
        &folder,
        &[
            "main.key",
            "digits.key",
            "spaced.key",
            "untrusted.key",
            "nowhere.key",
        ],
    );
    assert!(!folder.join("key-log").exists());

    let seen = upstream.seen();
    assert!(seen.len() > 80, "{}", seen.len());
    for seen in &seen {
        assert!(seen.is_signed_with(CANARY) || seen.is_signed_with(DIGITS));
        search.secret(seen.header("data-signature"));
    }
    assert!(search.came_out.len() > 400, "{}", search.came_out.len());
    search.finds_nothing();
}

/// A key in the place of any value that there is, with quotes and without: whoever is told that it doesn't belong there isn't told what it was.
#[test]
fn a_key_in_the_place_of_any_other_value_is_not_repeated() {
    let pki = Pki::new();
    let setup = Setup::new(&pki, None);
    let path = setup.write();
    let good = std::fs::read_to_string(&path).unwrap();
    let reference = tools::stdout(&tools::run(tools::binary().args(["config", "reference"])));
    let mut search = Search::new(&[CANARY, DIGITS]);
    let (mut table, mut keys) = (String::new(), 0);
    for line in reference.lines() {
        if line.starts_with('[') {
            line.trim_matches(['[', ']']).clone_into(&mut table);
        }
        let Some((key, _)) = line.trim_start_matches("# ").split_once(" = ") else {
            continue;
        };
        // What comes before the equals sign of a sentence is no key. An appId can't be told from a key with letters, nor a message's words.
        if !key
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        {
            continue;
        }
        keys += 1;
        let free = ["app_id", "match"].contains(&key);
        let mut values = vec![
            format!("\"{DIGITS}\""),
            DIGITS.to_owned(),
            format!("[\"{DIGITS}\"]"),
            format!("{DIGITS}.5"),
        ];
        if !free {
            values.extend([
                format!("\"{CANARY}\""),
                format!("[\"{CANARY}\"]"),
                CANARY.to_owned(),
            ]);
        }
        for value in values {
            let line = format!("{key} = {value}\n");
            let at = good
                .find(&format!("[{table}]\n"))
                .map(|at| at + table.len() + 3);
            let text = match at {
                _ if table.is_empty() => format!("{line}{good}"),
                None => format!("{good}\n[{table}]\n{line}"),
                Some(at) => {
                    let rest: Vec<_> = good[at..].split_inclusive('\n').collect();
                    let end = rest
                        .iter()
                        .position(|line| line.starts_with('['))
                        .unwrap_or(rest.len());
                    let kept: String = rest[..end]
                        .iter()
                        .filter(|line| !line.starts_with(&format!("{key} =")))
                        .copied()
                        .collect();
                    format!("{}{line}{kept}{}", &good[..at], rest[end..].concat())
                }
            };
            std::fs::write(&path, text).unwrap();
            for command in [&["check"][..], &["config", "show"]] {
                search.ran(tools::binary().args(command).arg("--config").arg(&path));
            }
        }
    }
    assert!(keys > 60, "{keys}");
    search.finds_nothing();
}

/// A panic says what it says. That it's in a task that holds keys and signatures changes nothing.
#[tokio::test]
async fn a_panic_tells_no_key() {
    // Nobody else's: its processes are counted.
    const USER: u32 = 61_185;
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::new(&pki, None);
    setup.level = "trace";
    setup.port = Some(upstream.address.port());
    setup.kybio.push_str("allow_private = true\n");
    let hosts = setup.path("hosts");
    std::fs::write(&hosts, "127.0.0.1 upstream.test\n").unwrap();
    setup.environment = names::from_file(&hosts);
    setup
        .environment
        .push(("RUST_BACKTRACE", "full".to_owned()));
    tools::write(&setup.path("main.key"), CANARY, 0o600);
    setup.write();
    unprivileged::give(setup.folder.path(), USER);
    let mut gateway = Gateway::start_by(unprivileged::launch(USER, ""), setup, &[]).await;
    // A name is looked up in a thread of its own, and none is to be had: the library panics.
    let pid = gateway.pid();
    let limited = unprivileged::run(USER, &format!("prlimit --pid {pid} --nproc=1:1"));
    assert!(limited.status.success(), "{limited:?}");
    let mut search = Search::new(&[CANARY]);
    let answer = gateway.client(&pki).call("customerOpenApi/add", "{}").await;
    search.heard("the answer", format!("{answer:?} {}", answer.text()));
    gateway.signal("TERM");
    gateway.ended().await;
    let printed = gateway.printed().join("\n");
    assert!(printed.contains("panicked at"), "{printed}");
    assert_eq!(answer.refusal().1, "internal");
    search.heard("the log", printed);
    search.secret(&signature(
        CANARY,
        format!("{{\"appId\":\"{APP_ID}\"}}").as_bytes(),
    ));
    search.finds_nothing();
}

/// The demo shows what goes up, and has keys and signatures of its own.
#[test]
fn the_demo_shows_no_key_and_no_signature() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = tools::binary()
        .arg("demo")
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("TMPDIR", folder.path())
        .env("RUST_LOG", "trace")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap());
    let mut all = String::new();
    while !all.contains("\ncurl ") {
        assert_ne!(said.read_line(&mut all).unwrap(), 0, "{all}");
    }
    let own = std::fs::read_dir(folder.path())
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let key = std::fs::read_to_string(own.join("main.key")).unwrap();
    let mut search = Search::new(&[&key]);
    let pid = child.id();
    for file in ["cmdline", "environ"] {
        search.process(pid, file);
    }
    search.files(&own, &["main.key"]);
    assert!(
        tools::run(Command::new("kill").arg(pid.to_string()))
            .status
            .success()
    );
    said.read_to_string(&mut all).unwrap();
    let mut errors = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut errors)
        .unwrap();
    child.wait().unwrap();
    let mut signed = 0;
    for line in all.lines() {
        if let Some(at) = line.find("{\"appId\":") {
            search.secret(&signature(&key, line[at..].trim_end().as_bytes()));
            signed += 1;
        }
    }
    assert!(signed >= 4, "{all}");
    search.heard("the demo", all);
    search.heard("its errors", errors);
    search.finds_nothing();
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
    // Where it doesn't belong.
    for target in [
        "/openapi/v1/customerOpenApi/queryBytel?tel=17759205640",
        "/openapi/v1/customerOpenApi/queryBytel/17759205640",
        "/members/17759205640",
    ] {
        let answer = client
            .send(Client::request(target, &[], "{}"))
            .await
            .unwrap();
        assert!(answer.status.is_client_error(), "{target}");
    }
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
    assert!(printed.contains("POST /members/…"), "{printed}");
}

/// The host's answer may have anything where `status` belongs.
#[tokio::test]
async fn an_answer_that_is_none_is_not_quoted() {
    let pki = Pki::new();
    let upstream = Upstream::scripted(&pki, |seen| {
        let body = seen.text();
        Act::ok(body[body.find("\"a\":").unwrap() + 4..body.len() - 1].to_owned())
    })
    .await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.level = "trace";
    setup.kybio.push_str("attempts_max = 1\n");
    let gateway = setup.start().await;
    let client = gateway.client(&pki);
    for answer in [
        r#"{"status":17759205640}"#,
        r#"{"status":"17759205640"}"#,
        r#"{"status":-17759205640.5}"#,
        r#"{"status":["17759205640"]}"#,
        r#"{"status":{"17759205640":1}}"#,
        r#"{"17759205640":1}"#,
        r#""17759205640""#,
        r#"17759205640"#,
    ] {
        let told = client
            .call("customerOpenApi/add", format!("{{\"a\":{answer}}}"))
            .await;
        assert_eq!(told.refusal().1, "unreadable-reply", "{answer}");
        assert!(!told.text().contains("17759205640"), "{}", told.text());
        gateway
            .request_event(told.header("kybio-gateway-request-id"))
            .await;
    }
    let printed = gateway.printed().join("\n");
    assert!(!printed.contains("17759205640"), "{printed}");
}

/// The search can fail: each spelling is found wherever it stands.
#[test]
fn the_search_finds_what_it_looks_for() {
    let hits = |leak: &str| {
        let mut search = Search::new(&[CANARY]);
        search.heard("a leak", leak);
        search.hits().len()
    };
    let all = spellings(CANARY);
    assert!(all.len() >= 17);
    for spelling in &all {
        assert!(hits(&format!("key={spelling}.")) > 0, "{spelling}");
    }
    // As other programs write it: Python's repr, `printf 'key=…' | base64` with one to three bytes more before it, `rev`, jq.
    for leak in [
        "b'7319CanaryKey5520'",
        "[55, 51, 49, 57, 67, 97, 110, 97, 114, 121, 75, 101, 121, 53, 53, 50, 48, 33]",
        "eGtleT03MzE5Q2FuYXJ5S2V5NTUyMC4=",
        "eHhrZXk9NzMxOUNhbmFyeUtleTU1MjAu",
        "eHh4a2V5PTczMTlDYW5hcnlLZXk1NTIwLg==",
        "key=0255yeKyranaC9137",
        "373331394361",
        "7319Canary",
    ] {
        let found = hits(leak) > 0;
        // Less than a half isn't looked for.
        assert_eq!(found, leak != "373331394361", "{leak}");
    }
    assert_eq!(hits("7319 Canary 5520"), 0);
}
