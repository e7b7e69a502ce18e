//! Configuration that people can trust: every fault is told at once, with its file, line, column and key, what was found and what was
//! meant; exit code 78. Environment and flags go on top.

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

/// What is replaced by what, the line on which the fault is, and what is said.
const FAULTS: &[(&str, &str, &str, &[&str])] = &[
    (
        "connections_max = 2000",
        "conections_max = 2000",
        "conections_max",
        &[
            "listener.conections_max: unknown key",
            "did you mean `connections_max`?",
        ],
    ),
    (
        "[admin]",
        "[admni]",
        "[admni]",
        &["admni: unknown key", "did you mean `admin`?"],
    ),
    (
        "connections_max = 2000",
        "connections_max = \"2000\"",
        "connections_max",
        &["a whole number is wanted, but the text \"2000\" was found"],
    ),
    (
        "connections_max = 2000",
        "connections_max = 0",
        "connections_max",
        &["0 isn't between 1 and 1000000"],
    ),
    (
        "connections_max = 2000",
        "handshake_timeout = 5",
        "handshake_timeout",
        &["a duration is wanted, in quotes and with its unit"],
    ),
    (
        "connections_max = 2000",
        "handshake_timeout = \"5 parsecs\"",
        "handshake_timeout",
        &["a duration such as \"5s\"", "5 parsecs"],
    ),
    (
        "connections_max = 2000",
        "handshake_timeout = \"2h\"",
        "handshake_timeout",
        &["isn't between 1ms and 1m"],
    ),
    (
        "connections_max = 2000",
        "crl_expired = \"ignore\"",
        "crl_expired",
        &["one of \"deny\", \"warn\" is wanted, but \"ignore\" was found"],
    ),
    (
        "connections_max = 2000",
        "reuse_port = \"no\"",
        "reuse_port",
        &["true or false, without quotes"],
    ),
    (
        "address = \"127.0.0.1:0\"\ncert",
        "address = \"localhost\"\ncert",
        "address = \"localhost\"",
        &["listener.address: an IP address with its port is wanted"],
    ),
    (
        "address = \"127.0.0.1:0\"\ncert",
        "address = \"unix:\"\ncert",
        "address = \"unix:\"",
        &["listener.address: a path is wanted, such as \"unix:/run/"],
    ),
    (
        "address = \"127.0.0.1:0\"\ncert",
        "address = \"unix:@gateway\"\ncert",
        "address = \"unix:@gateway\"",
        &["an abstract socket has no permissions", "name a file"],
    ),
    (
        "address = \"127.0.0.1:0\"\ncert",
        "address = \"unix:/a-path-that-goes-on-and-on/and-on/and-on/and-on/and-on/and-on/and-on/and-on/and-on/and-on/and-on/gateway.sock\"\ncert",
        "address = \"unix:",
        &["the path of a unix socket has at most 107 bytes", "has 110"],
    ),
    (
        "address = \"127.0.0.1:0\"\ncert",
        "address = \"unix:gateway.sock\"\ncert",
        "certificate =",
        &[
            "listener.certificate: isn't used",
            "a unix socket has no TLS",
        ],
    ),
    (
        "address = \"127.0.0.1:0\"\ncert",
        "address = \"127.0.0.1:0\"\nplaintext = true\ncert",
        "client_ca =",
        &[
            "listener.client_ca: isn't used",
            "with plaintext = true there is no TLS",
        ],
    ),
    (
        "address = \"127.0.0.1:0\"\ncert",
        "address = \"unix:gateway.sock\"\nclient_crl = []\ncert",
        "client_crl =",
        &["listener.client_crl: isn't used"],
    ),
    (
        "address = \"127.0.0.1:0\"\ncert",
        "address = \"0.0.0.0:0\"\nplaintext = true\ncert",
        "plaintext =",
        &[
            "listener.plaintext: 0.0.0.0:0 isn't this machine's alone",
            "write 127.0.0.1 or unix: into listener.address, or use TLS",
        ],
    ),
    (
        "address = \"127.0.0.1:0\"\ncert",
        "address = \"[::ffff:127.0.0.1]:0\"\nplaintext = true\ncert",
        "plaintext =",
        &["isn't this machine's alone"],
    ),
    (
        "address = \"127.0.0.1:0\"\ncert",
        "address = \"unix:gateway.sock\"\nreuse_port = true\ncert",
        "reuse_port =",
        &["listener.reuse_port: is for TCP"],
    ),
    (
        "connections_max = 2000",
        "socket_mode = \"0660\"",
        "socket_mode =",
        &["listener.socket_mode: isn't used", "unix: address"],
    ),
    (
        "address = \"127.0.0.1:0\"\ncert",
        "address = \"unix:gateway.sock\"\nsocket_mode = \"rw-rw----\"\ncert",
        "socket_mode =",
        &["permissions are wanted in octal, such as \"0660\""],
    ),
    (
        "certificate = \"gateway.pem\"",
        "certificate = \"missing.pem\"",
        "certificate = \"missing.pem\"",
        &["listener.certificate: missing.pem can't be read"],
    ),
    (
        "certificate = \"gateway.pem\"",
        "certificate = \"gateway.key\"",
        "certificate = \"gateway.key\"",
        &["there isn't a certificate in it"],
    ),
    (
        "private_key = \"gateway.key\"",
        "private_key = \"gateway.pem\"",
        "private_key = \"gateway.pem\"",
        &["there's no private key in it"],
    ),
    (
        "certificate = \"gateway.pem\"",
        "certificate = \"callers-ca.pem\"",
        "certificate = \"callers-ca.pem\"",
        &["don't belong together"],
    ),
    (
        "client_ca = \"callers-ca.pem\"\n",
        "",
        "[listener]",
        &["listener.client_ca: must be written", "for example"],
    ),
    (
        "https://upstream.test/pospal-api2",
        "http://upstream.test",
        "base_url",
        &["upstreams.kybio.base_url", "use https://"],
    ),
    (
        "https://upstream.test/pospal-api2",
        "upstream.test",
        "base_url",
        &["write it as https://host"],
    ),
    (
        "[runtime]",
        "[operations.\"orderOpenApi/cancelOrder\"]\npaused = true\n[runtime]",
        "[operations.",
        &[
            "isn't in the catalogue",
            "did you mean \"orderOpenApi/cancleOrder\"?",
        ],
    ),
    (
        "accounts = [\"*\"]",
        "accounts = [\"mian\"]",
        "accounts = [",
        &["\"mian\" matches no account", "did you mean \"main\"?"],
    ),
    (
        "connections_max = 2000",
        "client_crl = []",
        "client_crl",
        &["listener.client_crl: the list is empty"],
    ),
    (
        "operations = [\"*\"]",
        "operations = [\"openNotificationOpenApi/update*\"]",
        "operations = [",
        &["grants nothing", "by its exact name alone"],
    ),
    (
        "https://upstream.test/pospal-api2",
        "https://upstream.test:99999",
        "base_url",
        &["the port must be 1 to 65535"],
    ),
    (
        "base_url = \"https://upstream.test/pospal-api2\"",
        "base_url = \"http://127.0.0.1:1\"\nresolve = [\"192.0.2.1:80\"]",
        "resolve = [",
        &["upstreams.kybio.resolve: with http:// only this machine's own addresses are allowed"],
    ),
    (
        "roots = \"callers-ca.pem\"",
        "roots = \"sistem\"",
        "roots",
        &["upstreams.kybio.roots: sistem can't be read"],
    ),
    (
        "upstream = \"kybio\"",
        "upstream = \"kibio\"",
        "upstream = \"kibio\"",
        &["accounts.main.upstream: there is no [upstreams.kibio]"],
    ),
    (
        "app_id = \"abcdefghijklmn\"",
        "app_id = \"a\\\"b\"",
        "app_id",
        &["an appId is 1 to 64"],
    ),
    (
        "app_key_file = \"main.key\"",
        "app_key = \"secret-in-file\"",
        "app_key =",
        &[
            "accounts.main.app_key: unknown key",
            "did you mean `app_key_file`?",
        ],
    ),
    (
        "[callers.orders]",
        "[callers.Orders]",
        "[callers.Orders]",
        &["a name is 1 to 40 of a-z"],
    ),
    (
        "spiffe://shop.example/orders",
        "orders",
        "identities",
        &[
            "an identity is written `spiffe://trust-domain/path`, `dns:host.name`, `uid:1000` or `loopback`",
        ],
    ),
    (
        "accounts = [\"*\"]",
        "accounts = [\"store-*\"]",
        "accounts = [",
        &["\"store-*\" matches no account"],
    ),
    (
        "operations = [\"*\"]",
        "operations = [\"orderOpenApi/cancelOrder\"]",
        "operations = [",
        &[
            "matches no operation",
            "did you mean \"orderOpenApi/cancleOrder\"?",
        ],
    ),
    (
        "operations = [\"*\"]",
        "operations = []",
        "operations = [",
        &["the list is empty"],
    ),
    (
        "operations = [\"*\"]",
        "operations = \"*\"",
        "operations = \"*\"",
        &["a list of texts is wanted, but the text \"*\" was found"],
    ),
    (
        "operations = [\"*\"]",
        "operations = [\"*\"]\ndefault_account = \"other\"",
        "default_account",
        &["\"other\" isn't one of this caller's accounts"],
    ),
    (
        "level = \"info\"",
        "level = \"loud\"",
        "level = \"loud\"",
        &["log.level: one of"],
    ),
    (
        "level = \"info\"",
        "level = \"info\"\nlevel = \"warn\"",
        "level = \"warn\"",
        &["not TOML", "duplicate key"],
    ),
    ("[log]", "[log", "[log", &["not TOML"]),
    (
        "[runtime]",
        "[operations.\"customerOpenApi\"]\npaused = true\n[runtime]",
        "[operations.",
        &["an operation is written `module/method`"],
    ),
    (
        "[runtime]",
        "[operations.\"customerOpenApi/add\"]\nclass = \"safe\"\n[runtime]",
        "class = \"safe\"",
        &["one of \"read\""],
    ),
    (
        "[runtime]",
        "[operations.\"orderOpenApi/addOnLineOrder\"]\nrepeat = \"identical-bytes\"\n[runtime]",
        "repeat",
        &[
            "its class is non-idempotent-write",
            "identical-bytes is for a deduplicated-write alone",
        ],
    ),
    (
        "[runtime]",
        "[answers.busy]\nmatch = []\nclass = \"transient\"\n[runtime]",
        "match",
        &["the list is empty: no answer would fit"],
    ),
    (
        "[runtime]",
        "[answers.busy]\nmatch = [\"5010\", \" \"]\nclass = \"transient\"\n[runtime]",
        "match",
        &["a blank text says nothing"],
    ),
    (
        "[runtime]",
        "[answers.busy]\nmatch = [\"5010\"]\nclass = \"maybe\"\n[runtime]",
        "class",
        &["one of \"rejected\", \"duplicate\", \"quota-exhausted\", \"credential\", \"transient\""],
    ),
    (
        "[runtime]",
        "[answers.one]\nmatch = [\"5010\"]\nclass = \"transient\"\n[answers.two]\nmatch = [\"5010\"]\nclass = \"rejected\"\n[runtime]",
        "match",
        &["\"5010\" has another class in [answers.one]"],
    ),
    (
        "[runtime]",
        "[answers]\nmatch = [\"5010\"]\n[runtime]",
        "match",
        &["write it in a table with a name of its own: [answers.name]"],
    ),
    (
        "[runtime]",
        "[operations.\"customerOpenApi/add\"]\nlookup = \"customerOpenApi/nope\"\n[runtime]",
        "lookup",
        &["there is no operation \"customerOpenApi/nope\""],
    ),
    (
        "[runtime]",
        "[operations.\"customerOpenApi/add\"]\nlookup = \"customerOpenApi/updateBaseInfo\"\n[runtime]",
        "lookup",
        &["the class of \"customerOpenApi/updateBaseInfo\" is absolute-write"],
    ),
    (
        "base_url =",
        "backoff_min = \"2s\"\nbase_url =",
        "backoff_min",
        &["is longer than backoff_max"],
    ),
    (
        "base_url =",
        "in_flight_max = 101\nbase_url =",
        "in_flight_max",
        &["is more than connections_max"],
    ),
    (
        "pospal-api2\"",
        "pospal-api2/openapi/v1\"",
        "base_url",
        &["leave /openapi/v1 out"],
    ),
    (
        "base_url =",
        "utc_offset = \"8\"\nbase_url =",
        "utc_offset",
        &["upstreams.kybio.utc_offset: hours and minutes before UTC such as \"+08:00\""],
    ),
    (
        "[runtime]",
        "[callers.twin]\nidentities = [\"spiffe://shop.example/orders\"]\naccounts = [\"main\"]\noperations = [\"*\"]\n[runtime]",
        "identities",
        &["is also an identity of the caller"],
    ),
];

#[test]
fn each_fault_is_told_with_its_place_its_key_and_what_was_meant() {
    let (setup, text) = good();
    for (from, to, at, expected) in FAULTS {
        let faulty = text.replacen(from, to, 1);
        assert_ne!(faulty, text, "{from}");
        let (code, said) = check(&setup, &faulty);
        assert_eq!(code, Some(78), "{to}: {said}");
        let line = faulty
            .lines()
            .enumerate()
            .filter(|(_, line)| line.contains(at))
            .map(|(number, _)| number + 1)
            .collect::<Vec<_>>();
        let placed = said.lines().find(|said| {
            line.iter()
                .any(|line| said.starts_with(&format!("gateway.toml:{line}:")))
        });
        let placed = placed.unwrap_or_else(|| panic!("{to}: line {line:?}: {said}"));
        for words in *expected {
            assert!(
                placed.contains(words),
                "{to}: {words:?} isn't in {placed:?}"
            );
        }
    }
}

/// What's wrong with the files that keys name is for `check`, because it alone opens them.
#[test]
fn showing_a_faulty_one_tells_the_same_but_for_the_files_it_names() {
    let (setup, text) = good();
    let of_a_file = |line: &&str| {
        ["certificate: ", "private_key: ", "client_ca: ", "roots: "]
            .iter()
            .any(|key| line.contains(key))
            && !line.contains("must be written")
    };
    let mut told = 0;
    for (from, to, ..) in FAULTS {
        let (_, checked) = check(&setup, &text.replacen(from, to, 1));
        let expected: Vec<_> = checked.lines().filter(|line| !of_a_file(line)).collect();
        let output = tools::run(tools::binary().current_dir(setup.folder.path()).args([
            "config",
            "show",
            "--config",
            "gateway.toml",
        ]));
        let said = tools::stderr(&output);
        // Both end with how many there are.
        let faults = expected.len() - 1;
        let code = if faults == 0 { 0 } else { 78 };
        assert_eq!(output.status.code(), Some(code), "{to}: {said}");
        assert_eq!(
            said.lines().take(faults).collect::<Vec<_>>(),
            expected[..faults],
            "{to}"
        );
        told += faults;
    }
    assert!(told > 40, "{told}");
}

#[test]
fn all_faults_are_told_at_once() {
    let (setup, mut text) = good();
    let independent = [
        "conections_max = 2000",
        "http://upstream.test",
        "upstream = \"kibio\"",
        "operations = []",
        "level = \"loud\"",
        "crl_expired = \"ignore\"",
    ];
    let mut expected = 0;
    for (from, to, ..) in FAULTS.iter().filter(|(_, to, ..)| independent.contains(to)) {
        if text.contains(from) {
            text = text.replacen(from, to, 1);
            expected += 1;
        }
    }
    assert!(expected >= 5, "{expected}");
    let (code, said) = check(&setup, &text);
    assert_eq!(code, Some(78));
    assert_eq!(said.lines().count(), expected + 1, "{said}");
    assert!(
        said.ends_with(&format!(
            "kybio-gateway: {expected} faults in the configuration\n"
        )),
        "{said}"
    );
}

#[test]
fn a_bad_key_file_is_told_beside_every_other_fault() {
    let (setup, text) = good();
    std::fs::remove_file(setup.path("main.key")).unwrap();
    let (code, said) = check(
        &setup,
        &text.replace(
            "certificate = \"gateway.pem\"",
            "certificate = \"missing.pem\"",
        ),
    );
    assert_eq!(code, Some(78));
    assert!(
        said.contains("listener.certificate") && said.contains("accounts.main.app_key_file"),
        "{said}"
    );
}

#[test]
fn the_two_listeners_need_two_addresses() {
    let (setup, text) = good();
    let (code, said) = check(&setup, &text.replace("127.0.0.1:0", "127.0.0.1:18443"));
    assert_eq!(code, Some(78));
    assert!(
        said.contains("admin.address: 127.0.0.1:18443 is taken by listener.address"),
        "{said}"
    );
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
fn included_files_bring_more_tables_and_may_not_repeat_any() {
    let (setup, text) = good();
    let text = format!("include = [\"accounts.d/*.toml\"]\n{text}");
    let (code, said) = check(&setup, &text);
    assert_eq!(code, Some(0), "an empty folder is fine: {said}");
    std::fs::create_dir(setup.path("accounts.d")).unwrap();
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
    std::fs::write(
        folder.join("b.toml"),
        "[accounts.store-1]\napp_id = \"B\"\n[listener]\nnonsense = 1\n",
    )
    .unwrap();
    let (code, said) = check(&setup, &text);
    assert_eq!(code, Some(78));
    assert!(said.contains("accounts.d/b.toml:2:1: accounts.store-1.app_id: defined a second time; the first is at accounts.d/a.toml:3:1"), "{said}");
    std::fs::write(folder.join("b.toml"), "[listener]\nnonsense = 1\n").unwrap();
    assert!(
        check(&setup, &text)
            .1
            .contains("accounts.d/b.toml:2:1: listener.nonsense: unknown key")
    );
    let (code, said) = check(&setup, &text.replace("accounts.d/*.toml", "missing.toml"));
    assert!(
        code == Some(78) && said.contains("there is no file"),
        "{said}"
    );
}

#[test]
fn environment_and_flags_go_on_top_and_their_faults_are_told_by_name() {
    let (setup, text) = good();
    std::fs::write(setup.path("gateway.toml"), text).unwrap();
    let check = |variables: &[(&str, &str)], flags: &[&str]| {
        let mut command = tools::binary();
        command
            .args(["check", "--config"])
            .arg(setup.path("gateway.toml"))
            .args(flags)
            .envs(variables.iter().copied());
        let output = tools::run(&mut command);
        (
            output.status.code(),
            tools::stdout(&output) + &tools::stderr(&output),
        )
    };
    // Kubernetes makes the second for a Service of this name.
    let harmless = [
        (
            "KYBIO_GATEWAY__ACCOUNTS__MAIN__APP_ID",
            "0012345678901234567",
        ),
        ("KYBIO_GATEWAY_PORT", "tcp://10.0.0.1:8443"),
    ];
    assert_eq!(
        check(&harmless, &["--set", "listener.connections_max=10"]).0,
        Some(0)
    );
    let (code, said) = check(&[("KYBIO_GATEWAY__LISTENER__CONNECTIONS_MAX", "many")], &[]);
    assert_eq!(code, Some(78));
    assert!(said.contains("environment KYBIO_GATEWAY__LISTENER__CONNECTIONS_MAX: listener.connections_max: a whole number is wanted, but \"many\" was found"), "{said}");
    let (_, said) = check(&[("KYBIO_GATEWAY__LISTENER__CONECTIONS_MAX", "1")], &[]);
    assert!(
        said.contains("unknown key") && said.contains("KYBIO_GATEWAY__LISTENER__CONECTIONS_MAX"),
        "{said}"
    );
    let (_, said) = check(
        &[],
        &["--set", "upstreams.kybio.base_url=http://elsewhere.example"],
    );
    assert!(
        said.contains("--set: upstreams.kybio.base_url: http:// is for this machine alone"),
        "{said}"
    );
    // A flag beats a variable, which beats the file.
    let (_, said) = check(
        &[("KYBIO_GATEWAY__LOG__LEVEL", "one")],
        &["--set", "log.level=two"],
    );
    assert!(
        said.contains("\"two\" was found") && !said.contains("\"one\""),
        "{said}"
    );
}

#[test]
fn keys_can_come_from_the_credentials_directory() {
    let (setup, text) = good();
    let text = text.replace(
        "app_key_file = \"main.key\"",
        "app_key_file = \"$CREDENTIALS_DIRECTORY/main\"",
    );
    assert!(
        check(&setup, &text)
            .1
            .contains("CREDENTIALS_DIRECTORY isn't set")
    );
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
