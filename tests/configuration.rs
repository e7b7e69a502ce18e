//! Configuration that people can trust: every fault is told at once, with its file, line, column and key, what was found and what was
//! meant; exit code 78. Environment and flags go on top.

use std::fmt::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rcgen::date_time_ymd;
use tempfile::TempDir;

use crate::support::gateway::APP_KEY;
use crate::support::{Pki, Setup, tools};

/// A configuration that is good, in a folder with what it names.
fn good() -> (Setup, String) {
    let pki = Pki::new();
    let setup = Setup::new(&pki, None);
    let path = setup.write();
    let text = std::fs::read_to_string(&path).unwrap();
    (setup, text)
}

fn check(setup: &Setup, text: &str) -> (Option<i32>, String) {
    let path = setup.path("gateway.toml");
    std::fs::write(&path, text).unwrap();
    let output = tools::run(tools::binary().current_dir(setup.folder.path()).args([
        "check",
        "--config",
        "gateway.toml",
    ]));
    (
        output.status.code(),
        tools::stdout(&output) + &tools::stderr(&output),
    )
}

#[test]
fn a_good_one_is_told_so() {
    let (setup, text) = good();
    let (code, said) = check(&setup, &text);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("good (1 account, 1 caller"), "{said}");
}

/// Whoever raises one limit needn't raise another.
#[test]
fn the_largest_body_has_room_by_default() {
    let (setup, text) = good();
    let larger = text.replace("[listener]\n", "[listener]\nbody_bytes_max = 67108864\n");
    assert_ne!(larger, text);
    let (code, said) = check(&setup, &larger);
    assert_eq!(code, Some(0), "{said}");
}

/// One file of `tests/configurations/`, or a folder of several.
struct Case {
    name: String,
    path: PathBuf,
    variables: Vec<(String, String)>,
    flags: Vec<String>,
    expected: Vec<String>,
}

impl Case {
    /// Reads what the first comment lines say; see `tests/configurations/README.md`.
    fn new(path: PathBuf) -> Self {
        let main = if path.is_dir() {
            path.join("gateway.toml")
        } else {
            path.clone()
        };
        // What follows need not be UTF-8.
        let text = String::from_utf8_lossy(&std::fs::read(main).unwrap()).into_owned();
        let mut case = Self {
            name: path.file_name().unwrap().to_str().unwrap().to_owned(),
            path,
            variables: Vec::new(),
            flags: Vec::new(),
            expected: Vec::new(),
        };
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        for line in text.lines().take_while(|line| line.starts_with('#')) {
            if let Some(line) = line.strip_prefix("#= ") {
                case.expected.push(line.to_owned());
            } else if let Some(setting) = line.strip_prefix("#$ --set ") {
                case.flags.extend(["--set".to_owned(), setting.to_owned()]);
            } else if let Some(variable) = line.strip_prefix("#$ ") {
                let (name, value) = variable.split_once('=').unwrap();
                case.variables.push((name.to_owned(), value.to_owned()));
            }
        }
        case
    }

    /// Runs a command on it, in a folder with all that it may name. Returns the exit code and the lines of standard error.
    fn run(&self, command: &[&str], named: &Path) -> (Option<i32>, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(named).unwrap() {
            let entry = entry.unwrap();
            symlink(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
        if self.path.is_dir() {
            copy(&self.path, folder.path());
        } else {
            std::fs::copy(&self.path, folder.path().join("gateway.toml")).unwrap();
        }
        let output = tools::run(
            tools::binary()
                .current_dir(folder.path())
                .args(command)
                .args(["--config", "gateway.toml"])
                .args(&self.flags)
                .envs(self.variables.iter().cloned()),
        );
        let said = tools::stderr(&output);
        (
            output.status.code(),
            said.lines().map(str::to_owned).collect(),
        )
    }
}

/// The contents of a folder into another.
fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The good files, and beside them every kind of bad ones.
fn files_to_name() -> TempDir {
    let pki = Pki::new();
    let folder = Setup::new(&pki, None).folder;
    let write = |file: &str, text: &str, mode| tools::write(&folder.path().join(file), text, mode);
    let key = std::fs::read_to_string(folder.path().join("gateway.key")).unwrap();
    let pem =
        |label: &str| format!("-----BEGIN {label}-----\nbm9uc2Vuc2U=\n-----END {label}-----\n");
    let cut = |label: &str| format!("-----BEGIN {label}-----\nbm9uc2Vuc2U=\n");
    write("open-gateway.key", &key, 0o644);
    write("other.key", &pki.server("other.test").key, 0o600);
    write("garbage.key", &pem("PRIVATE KEY"), 0o600);
    write("encrypted.key", &pem("ENCRYPTED PRIVATE KEY"), 0o600);
    write("broken.key", &cut("PRIVATE KEY"), 0o600);
    write("empty.pem", "", 0o644);
    write("garbage.pem", &pem("CERTIFICATE"), 0o644);
    write("odd.pem", &pem("CERTIFICATE").replace("=", "?"), 0o644);
    write("odd.key", &pem("PRIVATE KEY").replace("=", "?"), 0o600);
    write("broken.pem", &cut("CERTIFICATE"), 0o644);
    let list = pki.revocation_list(&[7], date_time_ymd(2100, 1, 1));
    write("callers.crl", &list, 0o644);
    write("garbage.crl", &pem("X509 CRL"), 0o644);
    write("empty.key", "\n", 0o600);
    write("open.key", APP_KEY, 0o644);
    write("spaced.key", &format!("{APP_KEY} {APP_KEY}"), 0o600);
    write("long.key", &"x".repeat(300), 0o600);
    let huge = std::fs::File::create(folder.path().join("huge.pem")).unwrap();
    huge.set_len(17 * 1024 * 1024).unwrap();
    std::fs::create_dir(folder.path().join("folder")).unwrap();
    folder
}

fn cases() -> Vec<Case> {
    let folder = tools::root().join("tests/configurations");
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap() != "README.md")
        .collect();
    paths.sort();
    let cases: Vec<_> = paths.into_iter().map(Case::new).collect();
    let several = cases.iter().filter(|case| case.expected.len() >= 3);
    assert!(cases.len() >= 60 && several.count() >= 10);
    cases
}

/// Each case says what the check must say of it, to the letter: all of it, in that order, and nothing else.
#[test]
fn every_fault_is_told_at_once_with_its_place_its_key_what_was_found_and_what_was_meant() {
    let named = files_to_name();
    let mut differing = String::new();
    for case in &cases() {
        let Case { name, expected, .. } = case;
        assert!(!expected.is_empty(), "{name} expects nothing");
        let (code, mut said) = case.run(&["check"], named.path());
        let count = expected.len();
        let word = if count == 1 { "fault" } else { "faults" };
        let last = format!("kybio-gateway: {count} {word} in the configuration");
        let counted = said.pop_if(|line| *line == last).is_some();
        if (code, counted, &said) != (Some(78), true, expected) {
            let _ = writeln!(
                differing,
                "{name}, exit code {code:?}: {said:#?}\ninstead of {expected:#?}"
            );
        }
        // Wherever it stands by mistake.
        let secret = said.iter().find(|line| line.contains(APP_KEY));
        assert_eq!(secret, None, "{name} repeats a key");
    }
    assert!(differing.is_empty(), "{differing}");
}

/// What's wrong with the files that keys name is for `check`, because it alone opens them.
#[test]
fn showing_a_faulty_one_tells_the_same_but_for_the_files_it_names() {
    let named = files_to_name();
    let of_a_file = |line: &String| {
        [
            "listener.certificate: ",
            "listener.private_key: ",
            "listener.client_ca: ",
            "listener.client_crl: ",
            ".roots: ",
            ".app_key_file: ",
        ]
        .iter()
        .any(|key| line.contains(key))
    };
    for case in cases() {
        let (code, mut said) = case.run(&["config", "show"], named.path());
        // Both end with how many there are.
        said.pop();
        let (mut left, mut shown) = (Vec::new(), said.iter().peekable());
        for line in &case.expected {
            if shown.next_if_eq(&line).is_none() {
                left.push(line.clone());
            }
        }
        let name = &case.name;
        assert_eq!(shown.next(), None, "{name}: {said:#?}");
        // That an identity is of no use here is a remark, where others are of some.
        left.retain(|line| !of_a_file(line) && !line.contains("can't be anybody's"));
        assert!(left.is_empty(), "{name}: {left:#?}");
        let expected = if said.is_empty() { 0 } else { 78 };
        assert_eq!(code, Some(expected), "{name}");
    }
}

#[test]
fn a_missing_file_and_a_misused_command_line_have_their_own_exit_codes() {
    let missing = tools::run(tools::binary().args(["check", "--config", "nowhere.toml"]));
    assert_eq!(missing.status.code(), Some(78));
    assert!(
        tools::stderr(&missing).contains("nowhere.toml: the file can't be read"),
        "{}",
        tools::stderr(&missing)
    );
    for usage in [
        &["serve", "--nonsense"][..],
        &["nonsense"],
        &[],
        &["check", "--set", "novalue"],
    ] {
        assert_eq!(
            tools::run(tools::binary().args(usage)).status.code(),
            Some(2),
            "{usage:?}"
        );
    }
}

#[test]
fn included_files_bring_more_tables() {
    let (setup, text) = good();
    let text = format!("include = [\"accounts.d/*.toml\"]\n{text}");
    // What it held would be gone without a word.
    let (code, said) = check(&setup, &text);
    assert_eq!(code, Some(78), "a folder that isn't there isn't: {said}");
    std::fs::create_dir(setup.path("accounts.d")).unwrap();
    let (code, said) = check(&setup, &text);
    assert_eq!(code, Some(0), "an empty folder is fine: {said}");
    let folder = setup.path("accounts.d");
    tools::write(&folder.join("store.key"), "key", 0o600);
    std::fs::write(
        folder.join("a.toml"),
        "[accounts.store-1]\nupstream = \"kybio\"\napp_id = \"A\"\napp_key_file = \"store.key\"\n",
    )
    .unwrap();
    let (code, said) = check(&setup, &text);
    assert_eq!(
        (code, said.contains("2 accounts")),
        (Some(0), true),
        "{said}"
    );
}

#[test]
fn environment_and_flags_go_on_top() {
    let (setup, _) = good();
    let output = tools::run(
        tools::binary()
            .args(["check", "--config"])
            .arg(setup.path("gateway.toml"))
            .args(["--set", "listener.connections_max=10"])
            .env(
                "KYBIO_GATEWAY__ACCOUNTS__MAIN__APP_ID",
                "0012345678901234567",
            )
            // Kubernetes makes this one for a Service of this name.
            .env("KYBIO_GATEWAY_PORT", "tcp://10.0.0.1:8443"),
    );
    assert_eq!(output.status.code(), Some(0), "{}", tools::stderr(&output));
}

#[test]
fn keys_can_come_from_the_credentials_directory() {
    let (setup, text) = good();
    let text = text.replace(
        "app_key_file = \"main.key\"",
        "app_key_file = \"$CREDENTIALS_DIRECTORY/main\"",
    );
    std::fs::write(setup.path("gateway.toml"), text).unwrap();
    std::fs::create_dir(setup.path("credentials")).unwrap();
    tools::write(&setup.path("credentials/main"), "key", 0o400);
    let mut command = tools::binary();
    command
        .args(["check", "--config"])
        .arg(setup.path("gateway.toml"))
        .env("CREDENTIALS_DIRECTORY", setup.path("credentials"));
    assert_eq!(tools::run(&mut command).status.code(), Some(0));
}

#[test]
fn the_shipped_files_are_good_but_for_what_they_name() {
    for file in ["gateway.toml", "minimal.toml"] {
        let output = tools::run(
            tools::binary()
                .args(["check", "--config"])
                .arg(tools::root().join("config").join(file)),
        );
        let said = tools::stderr(&output);
        assert!(said.lines().count() > 1, "{said}");
        for line in said
            .lines()
            .filter(|line| !line.starts_with("kybio-gateway: "))
        {
            assert!(
                line.contains("can't be read")
                    || line.contains("there is no such")
                    || line.contains("matches no account"),
                "{file}: {line}"
            );
        }
    }
    let reference = tools::run(tools::binary().args(["config", "reference"]));
    assert_eq!(
        tools::stdout(&reference),
        std::fs::read_to_string(tools::root().join("config/gateway.toml")).unwrap()
    );
}

#[test]
fn more_connections_than_descriptors_are_a_fault() {
    let (setup, _) = good();
    let output = tools::run(
        std::process::Command::new("sh")
            .args(["-c", "ulimit -n 1000 && exec \"$0\" serve --config \"$1\""])
            .arg(env!("CARGO_BIN_EXE_kybio-gateway"))
            .arg(setup.path("gateway.toml")),
    );
    assert_eq!(output.status.code(), Some(78));
    assert!(
        tools::stderr(&output).contains("need 2228 descriptors, but the limit is 1000"),
        "{}",
        tools::stderr(&output)
    );
}
