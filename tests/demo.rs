//! Promise F1: one command to a verified, signed call in front of your eyes. The demo is run as the README says, and its curl line as
//! it's printed.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::support::tools;

#[test]
fn the_tour_shows_the_documented_call_and_ends_with_0() {
    let output = tools::run(tools::binary().args(["demo", "--once"]));
    let (said, errors) = (tools::stdout(&output), tools::stderr(&output));
    assert_eq!(output.status.code(), Some(0), "{said}{errors}");
    let first = said.split("\n2. ").next().unwrap();
    for words in [
        "POST /openapi/v1/customerOpenApi/add",
        "{\"customerInfo\":{\"categoryName\":\"Gold Card\"",
        "POST /pospal-api2/openapi/v1/customerOpenApi/add",
        "{\"appId\":\"abcdefghijklmn\",\"customerInfo\":{\"categoryName\":\"Gold Card\"",
        "data-signature: ********************************",
        "200  Kybio-Gateway-Outcome: done",
        "{\"status\":\"success\",\"messages\":[],\"errorCode\":null}",
    ] {
        assert!(first.contains(words), "{words}: {said}");
    }
    assert!(said.contains("byte 76"), "{said}");
    // A fault is survived by a read, which reaches the host twice, and told of a write, which reaches it once.
    let step = |number: usize| {
        let (_, step) = said.split_once(&format!("\n{number}. ")).unwrap();
        step.split("\n\n").next().unwrap()
    };
    for (number, arrivals, outcome) in [
        (3, 2, "200  Kybio-Gateway-Outcome: done"),
        (4, 1, "502  Kybio-Gateway-Outcome: unknown"),
    ] {
        let step = step(number);
        assert!(
            step.contains("reset-after-reading") && step.contains(outcome),
            "{step}"
        );
        assert_eq!(
            step.matches("the host receives").count(),
            arrivals,
            "{step}"
        );
    }
    assert!(said.contains("kybio_gateway_operation_answers_total{error_code=\"5004\",operation=\"productOpenApi/addProductInfo\"}"), "{said}");
    assert!(
        !said.contains('\u{1b}'),
        "no colour where it isn't a terminal"
    );
    assert_eq!(errors, "");
}

#[test]
fn there_is_colour_on_a_terminal_unless_it_is_not_wanted() {
    // `script` gives the program a terminal of its own.
    let on_a_terminal = |variables: &str| {
        let command = format!(
            "env -i TERM=xterm-256color {variables} {} demo --once",
            env!("CARGO_BIN_EXE_kybio-gateway")
        );
        tools::stdout(&tools::run(Command::new("script").args([
            "--quiet",
            "--return",
            "--command",
            &command,
            "/dev/null",
        ])))
    };
    let (coloured, plain) = (on_a_terminal(""), on_a_terminal("NO_COLOR=1"));
    assert!(
        coloured.contains("\u{1b}[") && coloured.contains("\"status\":\"success\""),
        "{coloured}"
    );
    assert!(
        !plain.contains('\u{1b}') && plain.contains("\"status\":\"success\""),
        "{plain}"
    );
}

#[test]
fn it_goes_on_serving_for_the_printed_curl_line_and_leaves_nothing_behind() {
    let mut child = tools::binary()
        .arg("demo")
        .env("PATH", std::env::var_os("PATH").unwrap())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap());
    let mut all = String::new();
    let curl = loop {
        let mut line = String::new();
        assert_ne!(said.read_line(&mut line).unwrap(), 0, "{all}");
        all.push_str(&line);
        if line.starts_with("curl ") {
            break line;
        }
    };
    let folder = all
        .lines()
        .find_map(|line| line.trim().strip_prefix("files"))
        .unwrap()
        .trim();
    let folder = PathBuf::from(folder);
    let key = std::fs::read_to_string(folder.join("main.key")).unwrap();
    assert_eq!(key.len(), 19);
    let answer = tools::stdout(&tools::run(Command::new("sh").args([
        "-c",
        &format!("curl() {{ command curl --silent --max-time 20 \"$@\"; }}; {curl}"),
    ])));
    assert!(
        answer.contains("\"status\":\"success\"") && answer.contains("KYBIO002"),
        "{answer}"
    );

    assert!(
        tools::run(Command::new("kill").args(["-s", "INT", &child.id().to_string()]))
            .status
            .success()
    );
    said.read_to_string(&mut all).unwrap();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut all)
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{all}");
    assert!(
        all.contains("outcome=\"done\""),
        "the pasted call is logged: {all}"
    );
    assert!(
        !all.contains(&key) && !answer.contains(&key),
        "the key is nowhere"
    );
    assert!(!folder.exists());
}

#[test]
fn throwaway_certificates_are_made_once_and_keys_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let pki = || {
        tools::run(
            tools::binary()
                .args([
                    "pki",
                    "--out",
                    "tls",
                    "--caller",
                    "tills=dns:tills.internal",
                    "--host",
                    "gateway.internal",
                ])
                .current_dir(folder.path()),
        )
    };
    let output = pki();
    assert_eq!(output.status.code(), Some(0), "{}", tools::stderr(&output));
    let mode = |file: &str| {
        std::fs::metadata(folder.path().join("tls").join(file))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(
        [
            mode("gateway.key"),
            mode("tills.key"),
            mode("gateway.pem"),
            mode("callers-ca.pem"),
            mode("callers.crl")
        ],
        [0o600, 0o600, 0o644, 0o644, 0o644]
    );
    let odd = tools::run(
        tools::binary()
            .args(["pki", "--out", "other", "--caller", "gateway=dns:x"])
            .current_dir(folder.path()),
    );
    assert_eq!(odd.status.code(), Some(2), "that name is taken");
    let again = pki();
    assert_eq!(again.status.code(), Some(1));
    assert!(
        tools::stderr(&again).contains("has certificates already"),
        "{}",
        tools::stderr(&again)
    );
}
