//! What holds, and where it comes from: `config show` prints one configuration out of files, environment and flags, which can be used
//! again. It needs none of the files that keys name, and shows nothing that may be a key in the wrong place.

use std::path::Path;
use std::process::Command;
use std::process::Output;

use crate::support::{Pki, Setup, tools};

fn show(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    tools::run(
        tools::binary()
            .current_dir(folder)
            .args(["config", "show", "--config", "gateway.toml"])
            .args(arguments)
            .envs(variables.iter().copied()),
    )
}

/// What is shown when nothing's wrong.
fn shown(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let output = show(folder, arguments, variables);
    assert!(output.status.success(), "{}", tools::stderr(&output));
    assert_eq!(tools::stderr(&output), "");
    tools::stdout(&output)
}

fn good() -> Setup {
    let setup = Setup::new(&Pki::new(), None);
    setup.write();
    setup
}

/// Where a line of the file stands, and on it what follows the equals sign.
fn place(setup: &Setup, line: &str) -> String {
    let text = std::fs::read_to_string(setup.path("gateway.toml")).unwrap();
    let number = text.lines().position(|written| written == line);
    let column = line.find(" = ").unwrap() + 4;
    format!("gateway.toml:{}:{column}", number.unwrap() + 1)
}

/// Without comments.
fn values(text: &str) -> Vec<&str> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split(" # ").next().unwrap())
        .collect()
}

#[test]
fn each_key_is_followed_by_its_source() {
    let setup = good();
    let text = shown(
        setup.folder.path(),
        &[
            "--set",
            "log.level=debug",
            "--set",
            "upstreams.kybio.resolve=127.0.0.1:1, 127.0.0.1:2",
        ],
        &[
            ("KYBIO_GATEWAY__LISTENER__CONNECTIONS_MAX", "10"),
            ("KYBIO_GATEWAY__LOG__LEVEL", "trace"),
        ],
    );
    let folder = setup.folder.path().canonicalize().unwrap();
    let certificate = folder.join("gateway.pem");
    for line in [
        &format!(
            "address = \"127.0.0.1:0\" # {}",
            place(&setup, "address = \"127.0.0.1:0\"")
        ),
        &format!(
            "certificate = {certificate:?} # {}",
            place(&setup, "certificate = \"gateway.pem\"")
        ),
        "connections_max = 10 # environment KYBIO_GATEWAY__LISTENER__CONNECTIONS_MAX",
        // In the spelling of the reference, not another of the same time.
        "idle_timeout = \"120s\" # default",
        "resolve = [\"127.0.0.1:1\", \"127.0.0.1:2\"] # --set",
        "reuse_port = false # default",
        "[accounts.main]",
        "level = \"debug\" # --set",
        &format!(
            "drain_delay = \"0s\" # {}",
            place(&setup, "drain_delay = \"0s\"")
        ),
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line}: {text}");
    }
    let without_source = text
        .lines()
        .filter(|line| line.contains(" = ") && !line.contains(" # "));
    assert_eq!(without_source.collect::<Vec<_>>(), Vec::<&str>::new());
    assert!(!text.contains("client_crl"), "neither written nor default");
}

#[test]
fn what_is_shown_is_a_configuration_again_wherever_it_is_put() {
    let mut setup = Setup::new(&Pki::new(), None);
    setup.more = "[operations.\"customerOpenApi/add\"]\n\
                  [operations.\"outsideOpenApi/call\"]\nclass = \"read\"\n\
                  [answers.\"quote \\\" dot . 忙\"]\nmatch = [\"back\\\\slash\", \"tab\"]\nclass = \"transient\"\n"
        .to_owned();
    let text = std::fs::read_to_string(setup.write()).unwrap();
    std::fs::create_dir(setup.path("accounts.d")).unwrap();
    tools::write(&setup.path("accounts.d/store.key"), "key", 0o600);
    std::fs::write(
        setup.path("accounts.d/a.toml"),
        "[accounts.store-1]\nupstream = \"kybio\"\napp_id = \"A\"\napp_key_file = \"store.key\"\n",
    )
    .unwrap();
    std::fs::write(
        setup.path("gateway.toml"),
        format!("include = [\"accounts.d/*.toml\"]\n{text}"),
    )
    .unwrap();
    let first = shown(setup.folder.path(), &["--set", "log.level=warn"], &[]);
    assert!(
        first.contains("app_id = \"A\" # accounts.d/a.toml:3:10\n"),
        "{first}"
    );
    assert!(
        first.lines().any(|line| line.starts_with("# include = [")
            && line.ends_with("# gateway.toml:1:11, merged in")),
        "{first}"
    );
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::write(elsewhere.path().join("gateway.toml"), &first).unwrap();
    let again = shown(elsewhere.path(), &[], &[]);
    assert_eq!(values(&again), values(&first));
    assert!(
        again.contains("level = \"warn\" # gateway.toml:"),
        "{again}"
    );
    let check = |folder: &Path, flags: &[&str]| {
        let mut command = tools::binary();
        command
            .current_dir(folder)
            .args(["check", "--config", "gateway.toml"])
            .args(flags);
        tools::stdout(&tools::run(&mut command))
    };
    let said = check(setup.folder.path(), &["--set", "log.level=warn"]);
    assert!(said.contains("good (2 accounts, 1 caller"), "{said}");
    assert_eq!(check(elsewhere.path(), &[]), said);
}

#[test]
fn tables_come_in_the_order_of_the_reference_and_names_in_their_own() {
    let mut setup = Setup::new(&Pki::new(), None);
    for name in ["zebra", "ant", "mouse-10", "mouse-9"] {
        setup.account(name, "A", "key");
    }
    setup.write();
    let text = shown(setup.folder.path(), &[], &[]);
    let tables: Vec<_> = text.lines().filter(|line| line.starts_with('[')).collect();
    assert_eq!(
        tables,
        [
            "[listener]",
            "[admin]",
            "[metrics]",
            "[upstreams.kybio]",
            "[accounts.ant]",
            "[accounts.main]",
            "[accounts.mouse-10]",
            "[accounts.mouse-9]",
            "[accounts.zebra]",
            "[callers.orders]",
            "[log]",
            "[runtime]",
        ]
    );
    assert_eq!(shown(setup.folder.path(), &[], &[]), text);
}

/// On a laptop none of them is there; on a host they may be, and whether they're any good is for `check`.
#[test]
fn files_that_keys_name_are_not_needed_and_not_looked_into() {
    let setup = good();
    let flags = [
        "--set",
        "accounts.main.app_key_file=$CREDENTIALS_DIRECTORY/main",
        "--set",
        "runtime.on_bad_key=refuse",
        "--set",
        "listener.client_crl=callers.crl",
    ];
    let with = shown(setup.folder.path(), &flags, &[]);
    assert!(
        with.contains("app_key_file = \"$CREDENTIALS_DIRECTORY/main\" # --set\n"),
        "{with}"
    );
    let files = [
        "gateway.pem",
        "gateway.key",
        "callers-ca.pem",
        "upstream-ca.pem",
        "main.key",
    ];
    for file in files {
        std::fs::write(setup.path(file), "nonsense").unwrap();
    }
    assert_eq!(shown(setup.folder.path(), &flags, &[]), with);
    for file in files {
        std::fs::remove_file(setup.path(file)).unwrap();
    }
    assert_eq!(shown(setup.folder.path(), &flags, &[]), with);
}

/// Each is a pipe that nobody writes into, the system's own roots too: to open one would be to wait for ever.
#[test]
fn no_file_that_a_key_names_is_opened() {
    let setup = good();
    let text = std::fs::read_to_string(setup.path("gateway.toml")).unwrap();
    let text = text.replace("roots = \"upstream-ca.pem\"\n", "");
    std::fs::write(setup.path("gateway.toml"), text).unwrap();
    let files = ["gateway.pem", "gateway.key", "callers-ca.pem", "main.key"];
    for file in files {
        std::fs::remove_file(setup.path(file)).unwrap();
    }
    let pipes = files.iter().chain(&["system.pem"]);
    let made = tools::run(
        Command::new("mkfifo")
            .args(pipes)
            .current_dir(setup.folder.path()),
    );
    assert!(made.status.success(), "{}", tools::stderr(&made));
    let output = tools::run(
        Command::new("timeout")
            .arg(tools::PATIENCE.as_secs().to_string())
            .arg(tools::binary().get_program())
            .args(["config", "show", "--config", "gateway.toml"])
            .current_dir(setup.folder.path())
            .env("SSL_CERT_FILE", setup.path("system.pem")),
    );
    assert_eq!(output.status.code(), Some(0), "{}", tools::stderr(&output));
    assert!(tools::stdout(&output).contains("roots = \"system\" # default\n"));
}

#[test]
fn faults_are_told_instead_and_nothing_is_shown() {
    let setup = good();
    for (flag, expected) in [
        (
            "listener.conections_max=1",
            "listener.conections_max: unknown key",
        ),
        ("listener.connections_max=many", "a whole number is wanted"),
        (
            "accounts.main=canary",
            "a table is wanted, but a text was found",
        ),
        (
            "accounts.main.upstream=kibio",
            "there is no [upstreams.kibio]",
        ),
        (
            "upstreams.kybio.base_url=https://me:canary@kybio.example",
            "without user",
        ),
        (
            "accounts.Main.paused=true",
            "accounts.Main.upstream: must be written",
        ),
        ("listener.client_crl=[]", "the list is empty"),
    ] {
        let output = show(setup.folder.path(), &["--set", flag], &[]);
        assert_eq!(output.status.code(), Some(78), "{flag}");
        assert_eq!(tools::stdout(&output), "", "{flag}");
        let said = tools::stderr(&output);
        assert!(said.contains(expected), "{flag}: {said}");
        assert!(!said.contains("canary"), "{flag}: {said}");
    }
}

#[test]
fn what_may_be_a_key_in_the_wrong_place_is_masked() {
    let setup = good();
    for (flag, masked) in [
        (
            "accounts.main.app_key_file=1234567890123456789",
            "app_key_file = \"***\"",
        ),
        (
            "accounts.main.app_key_file=roger1AppKey",
            "app_key_file = \"***\"",
        ),
        (
            "accounts.main.app_id=1234567890123456789",
            "app_id = \"***\"",
        ),
        ("upstreams.kybio.roots=roger1AppKey", "roots = \"***\""),
        (
            "listener.private_key=-----BEGIN PRIVATE KEY-----",
            "private_key = \"***\"",
        ),
        (
            "listener.private_key=MC4CAQAwBQYDK2VwBCIEIGFh/\nYWFhYWFh",
            "private_key = \"***\"",
        ),
        (
            "listener.client_crl=roger1AppKey,tls/a.crl",
            "client_crl = [\"***\", \"/",
        ),
    ] {
        let text = shown(setup.folder.path(), &["--set", flag], &[]);
        let (_, secret) = flag.split_once('=').unwrap();
        assert!(!text.contains(secret), "{flag}: {text}");
        let line = text.lines().find(|line| line.starts_with(masked));
        assert!(
            line.is_some_and(
                |line| line.ends_with(" # --set, masked: it may be a secret in the wrong place")
            ),
            "{flag}: {text}"
        );
    }
    // A key file may have any name.
    std::fs::rename(setup.path("main.key"), setup.path("main")).unwrap();
    let text = shown(
        setup.folder.path(),
        &["--set", "accounts.main.app_key_file=main"],
        &[],
    );
    assert!(!text.contains("***"), "{text}");
}

#[test]
fn a_thousand_accounts_are_shown_each_with_its_place() {
    let mut setup = Setup::new(&Pki::new(), None);
    for number in 0..1_000 {
        setup.more.push_str(&format!(
            "[accounts.store-{number}]\nupstream = \"kybio\"\napp_id = \"A{number}\"\napp_key_file = \"{number}.key\"\n"
        ));
    }
    setup.write();
    let text = shown(setup.folder.path(), &[], &[]);
    for number in [0, 500, 999] {
        let line = format!("app_id = \"A{number}\"");
        let line = format!("{line} # {}", place(&setup, &line));
        assert!(text.lines().any(|shown| shown == line), "{line}");
    }
    let accounts = text.lines().filter(|line| line.starts_with("[accounts."));
    assert_eq!(accounts.count(), 1_001);
}
