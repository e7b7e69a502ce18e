//! A key takes another's place under load, at the stand-in host and here, and no call is refused for its signature. Which key is in use can be
//! seen without seeing it.

use std::collections::BTreeSet;
use std::io::{Read, Write};

use time::OffsetDateTime;

use crate::support::gateway::{APP_KEY, ORDERS};
use crate::support::load::Shape;
use crate::support::stand_in::StandIn;
use crate::support::upstream::{Act, SUCCESS};
use crate::support::{Gateway, Load, Pki, Setup, Upstream, tools};

const TAKEN: &str = "kybio_gateway_account_key_taken_timestamp_seconds";
const ACCEPTED: &str = "kybio_gateway_account_key_accepted";

const WRITE: &str = "customerOpenApi/add";

/// As OpenSSL computes it.
fn fingerprint(key: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("text"),
        "kybio-gateway: which key is this?",
    )
    .unwrap();
    let hex: String = key.bytes().map(|byte| format!("{byte:02x}")).collect();
    let output = tools::run(
        std::process::Command::new("openssl")
            .args(["dgst", "-sha256", "-mac", "HMAC", "-macopt"])
            .arg(format!("hexkey:{hex}"))
            .arg(folder.path().join("text")),
    );
    let said = tools::stdout(&output);
    said.rsplit_once("= ").unwrap().1[..6].to_owned()
}

/// The series of a family with these accounts: account, fingerprint, value.
async fn series(gateway: &Gateway, family: &str) -> Vec<(String, String, f64)> {
    let metrics = gateway.metrics().await;
    let lines = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix(family)?.strip_prefix("{account=\"")?;
        let (account, rest) = rest.split_once("\",fingerprint=\"")?;
        let (fingerprint, value) = rest.split_once("\"} ")?;
        Some((
            account.to_owned(),
            fingerprint.to_owned(),
            value.parse().unwrap(),
        ))
    });
    lines.collect()
}

fn now() -> f64 {
    OffsetDateTime::now_utc().unix_timestamp() as f64
}

/// The host takes both keys for a while, as a vendor must who changes one without a gap: then the gateway changes, then the old key ends.
#[tokio::test]
async fn a_rotation_under_load_gives_no_signature_error() {
    const READ: &str = "ticketOpenApi/queryAllPayMethod";
    let stand_in = StandIn::over_tls();
    let pki = Pki::new();
    let mut setup = Setup::new(&pki, Some(stand_in.address));
    let authority = stand_in.folder.path().join("ca.pem");
    std::fs::copy(authority, setup.path("upstream-ca.pem")).unwrap();
    setup.runtime.push_str("reload_interval = \"0s\"\n");
    let gateway = setup.start().await;
    let shape = Shape {
        operation: READ,
        ..Shape::FULL
    };
    let load = Load::start(gateway.address, &pki, &pki.caller(ORDERS), shape);
    load.goes_on(500).await;
    let mut old = APP_KEY.to_owned();
    let host_takes = |keys: &str| {
        tools::write(&stand_in.folder.path().join("main.key"), keys, 0o600);
        stand_in.signal("HUP");
        stand_in.logged(&["keys read again"]);
    };
    for round in 0..5 {
        let new = format!("{round}2345678901234567890");
        host_takes(&format!("{old}\n{new}\n"));
        load.goes_on(300).await;
        tools::write(&gateway.setup.path("main.key"), format!("{new}\n"), 0o600);
        gateway.reload().await;
        // What began before the reload ends with the key that it began with.
        load.goes_on(300).await;
        host_takes(&new);
        load.goes_on(300).await;
        old = new;
    }
    let tally = load.end().await;
    assert!(tally.failed.is_empty(), "{tally}");
    assert!(tally.answered >= 5_000, "{tally}");
    let (_, calls) = stand_in.control(&[], "/calls");
    assert_eq!(calls["bad_signatures"], 0, "{calls}");
    let received = calls["received"].as_u64().unwrap();
    assert!(
        received >= u64::try_from(tally.answered).unwrap(),
        "{calls}"
    );

    // The count above can be other than 0: with the first key again, no call passes.
    tools::write(&gateway.setup.path("main.key"), APP_KEY, 0o600);
    gateway.reload().await;
    let answer = gateway.client(&pki).call(READ, "{}").await;
    assert_eq!(answer.header("kybio-gateway-outcome"), "rejected");
    let (_, calls) = stand_in.control(&[], "/calls");
    assert_eq!(calls["bad_signatures"], 1, "{calls}");
}

#[tokio::test]
async fn a_call_under_way_and_its_retries_keep_the_key_that_they_began_with() {
    let pki = Pki::new();
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let held = std::sync::Arc::clone(&gate);
    // The first attempt gets no whole answer, and the second one waits for the reload.
    let upstream = Upstream::scripted(&pki, move |seen| match seen.place.connection {
        0 => Act::Close,
        1 => Act::once_open(&held, SUCCESS),
        _ => Act::ok(SUCCESS),
    })
    .await;
    let gateway = Setup::reloaded_by_hand(&pki, &upstream).start().await;
    let client = gateway.client(&pki);
    let began = tokio::spawn(async move { client.call("customerOpenApi/queryByUid", "{}").await });
    upstream.arrived(2).await;
    tools::write(&gateway.setup.path("main.key"), "another-key", 0o600);
    gateway.reload().await;
    let client = gateway.client(&pki);
    assert_eq!(client.call(WRITE, "{}").await.status, 200);
    assert!(upstream.last().is_signed_with("another-key"));
    gate.add_permits(1);
    assert_eq!(began.await.unwrap().status, 200);
    let seen = upstream.seen();
    assert!(seen[..2].iter().all(|seen| seen.is_signed_with(APP_KEY)));
    // Its success says nothing of the key that took the place.
    let accepted = series(&gateway, ACCEPTED).await;
    assert_eq!(
        accepted,
        [("main".to_owned(), fingerprint("another-key"), 1.0)]
    );
}

#[tokio::test]
async fn which_key_is_in_use_is_seen_by_its_fingerprint_and_time() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::reloaded_by_hand(&pki, &upstream);
    setup.account("bad", "BAD", "");
    setup.account("other", "OTHER", "another-key");
    setup.orders.push_str("default_account = \"main\"\n");
    let before = now();
    let mut gateway = setup.start().await;
    let client = gateway.client(&pki);
    let first = fingerprint(APP_KEY);
    let other = fingerprint("another-key");
    let of = |name: &str, fingerprint: &str| (name.to_owned(), fingerprint.to_owned());
    let known = |series: &[(String, String, f64)]| -> BTreeSet<(String, String)> {
        series
            .iter()
            .map(|(account, fingerprint, _)| of(account, fingerprint))
            .collect()
    };
    let taken = series(&gateway, TAKEN).await;
    assert_eq!(
        known(&taken),
        BTreeSet::from([of("main", &first), of("other", &other)])
    );
    for (_, _, at) in &taken {
        assert!((before - 1.0..=now() + 1.0).contains(at), "{taken:?}");
    }
    let accepted = series(&gateway, ACCEPTED).await;
    assert_eq!(known(&accepted), known(&taken));
    assert!(accepted.iter().all(|(.., value)| *value == 0.0));

    // KYBIO's first success with it is said once, and shown.
    for _ in 0..3 {
        assert_eq!(client.call(WRITE, "{}").await.status, 200);
    }
    let event = gateway
        .event(|event| event["message"] == "KYBIO takes the account's key")
        .await;
    assert_eq!(event["account"], "main");
    assert_eq!(event["fingerprint"], *first);
    let accepted = series(&gateway, ACCEPTED).await;
    assert!(accepted.contains(&("main".to_owned(), first.clone(), 1.0)));

    // The same key in a file that was written anew is the same key; one that can't be used leaves the one before.
    for content in [format!("{APP_KEY}\n"), String::new()] {
        tools::write(&gateway.setup.path("main.key"), content, 0o600);
        gateway.reload().await;
        assert_eq!(series(&gateway, TAKEN).await, taken);
        assert_eq!(series(&gateway, ACCEPTED).await, accepted);
        assert_eq!(client.call(WRITE, "{}").await.status, 200);
    }
    // It was told once.
    let told = gateway.printed();
    let told = told
        .iter()
        .filter(|line| line.contains("KYBIO takes the account's key"));
    assert_eq!(told.count(), 1);

    // Another key is shown in its place, and the one of an account that's gone isn't shown any more.
    tools::write(&gateway.setup.path("main.key"), "a-third-key", 0o600);
    gateway.setup.more = gateway
        .setup
        .more
        .replace("[accounts.other]", "[accounts.new]");
    gateway.setup.write();
    let mark = gateway.mark();
    let again = now();
    gateway.reload().await;
    let third = fingerprint("a-third-key");
    let taken = series(&gateway, TAKEN).await;
    assert_eq!(
        known(&taken),
        BTreeSet::from([of("main", &third), of("new", &other)])
    );
    assert!(taken.iter().all(|(_, _, at)| *at >= again - 1.0));
    assert!(
        series(&gateway, ACCEPTED)
            .await
            .iter()
            .all(|(.., value)| *value == 0.0)
    );
    let event = gateway
        .event_since(mark, |event| {
            event["message"] == "account has another key" && event["account"] == "main"
        })
        .await;
    assert_eq!(event["before"], *first);
    assert_eq!(event["fingerprint"], *third);
}

#[tokio::test]
async fn config_show_tells_the_keys_that_the_running_gateway_uses() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::reloaded_by_hand(&pki, &upstream);
    setup.account("bad", "BAD", "");
    let gateway = setup.start().await;
    let admin = format!("admin.address={}", gateway.admin);
    let show = || {
        let output = tools::run(
            tools::binary()
                .args(["config", "show", "--set", &admin, "--config"])
                .arg(gateway.setup.path("gateway.toml")),
        );
        assert!(output.status.success(), "{}", tools::stderr(&output));
        tools::stdout(&output)
    };
    let [(_, _, taken)] = &series(&gateway, TAKEN).await[..] else {
        panic!("one account has a key")
    };
    let taken = OffsetDateTime::from_unix_timestamp(taken.floor() as i64).unwrap();
    let taken = format!("taken {}T{:02}:", taken.date(), taken.hour());
    let text = show();
    let after = |text: &str, table: &str| -> String {
        let (_, rest) = text.split_once(table).unwrap();
        let mut lines = rest
            .lines()
            .skip_while(|line| !line.starts_with("app_key_file"));
        lines.nth(1).unwrap().to_owned()
    };
    let line = after(&text, "[accounts.main]");
    assert!(
        line.starts_with(&format!("# key in use: {}, {taken}", fingerprint(APP_KEY))),
        "{line}"
    );
    assert_eq!(after(&text, "[accounts.bad]"), "# key in use: none");

    // It's the key in use, not the one in the file.
    tools::write(&gateway.setup.path("main.key"), "another-key", 0o600);
    assert_eq!(show(), text);
    let check = tools::run(
        tools::binary()
            .args(["check", "--keys"])
            .args(["--set", "accounts.bad.app_key_file=main.key"])
            .arg("--config")
            .arg(gateway.setup.path("gateway.toml"))
            .current_dir(gateway.setup.folder.path()),
    );
    let said = tools::stdout(&check);
    for account in ["main", "bad"] {
        let line = format!("accounts.{account}: key {}\n", fingerprint("another-key"));
        assert!(said.contains(&line), "{said}{}", tools::stderr(&check));
    }
    gateway.reload().await;
    let line = after(&show(), "[accounts.main]");
    assert!(line.contains(&fingerprint("another-key")), "{line}");
}

#[test]
fn without_a_running_gateway_config_show_says_so() {
    let pki = Pki::new();
    let setup = Setup::new(&pki, None);
    let output = tools::run(
        tools::binary()
            .args([
                "config",
                "show",
                "--set",
                "admin.address=127.0.0.1:1",
                "--config",
            ])
            .arg(setup.write()),
    );
    let text = tools::stdout(&output);
    let said = "# No gateway answers at 127.0.0.1:1: which keys are in use isn't known.\n";
    assert!(text.contains(said), "{text}");
    assert!(!text.contains("# key in use"), "{text}");
}

#[tokio::test]
async fn rotations_leave_as_many_series_as_there_were() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::reloaded_by_hand(&pki, &upstream);
    let names: Vec<_> = (0..50).map(|number| format!("store-{number}")).collect();
    for name in &names {
        setup.account(name, &name.to_uppercase(), &format!("{name}-key"));
    }
    let gateway = setup.start().await;
    let lines = gateway.metrics().await.lines().count();
    for round in 0..3 {
        for name in &names {
            let key = format!("{name}-key-{round}");
            tools::write(&gateway.setup.path(&format!("{name}.key")), key, 0o600);
        }
        gateway.reload().await;
        assert_eq!(gateway.metrics().await.lines().count(), lines);
    }
    let taken: BTreeSet<_> = series(&gateway, TAKEN)
        .await
        .into_iter()
        .map(|(account, ..)| account)
        .collect();
    assert_eq!(taken.len(), names.len() + 1);
}

/// That one host has taken a key says nothing of another behind the same name.
#[tokio::test]
async fn a_key_is_not_known_to_be_taken_at_another_host() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::reloaded_by_hand(&pki, &upstream).start().await;
    let client = gateway.client(&pki);
    assert_eq!(client.call(WRITE, "{}").await.status, 200);
    let accepted = async || series(&gateway, ACCEPTED).await[0].2;
    assert_eq!(accepted().await, 1.0);
    let path = gateway.setup.path("gateway.toml");
    tools::change(&path, |text| {
        text.replace("level = \"info\"", "level = \"debug\"")
    });
    gateway.reload().await;
    assert_eq!(accepted().await, 1.0, "it's still the same host");
    tools::change(&path, |text| text.replace("pospal-api2", "pospal-api3"));
    gateway.reload().await;
    assert_eq!(accepted().await, 0.0);
    assert_eq!(client.call(WRITE, "{}").await.status, 200);
    assert_eq!(accepted().await, 1.0);
}

/// Whatever has the address of the admin listener: only a gateway knows its keys.
#[test]
fn another_program_at_the_admin_address_is_not_believed() {
    let pki = Pki::new();
    let setup = Setup::new(&pki, None);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 1_024]).unwrap();
        let page = format!("{TAKEN}{{account=\"main\",fingerprint=\"0badf0\"}} 1\n");
        let length = page.len();
        write!(
            stream,
            "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{page}"
        )
        .unwrap();
    });
    let admin = format!("admin.address={address}");
    let output = tools::run(
        tools::binary()
            .args(["config", "show", "--set", &admin, "--config"])
            .arg(setup.write()),
    );
    serving.join().unwrap();
    let text = tools::stdout(&output);
    assert!(
        text.contains(&format!("No gateway answers at {address}")),
        "{text}"
    );
    assert!(!text.contains("0badf0"), "{text}");
}
