//! Promise S2: a missing, empty or open key file disables its account alone, and never leads to an unsigned request. At a reload the account
//! goes on with the key it had.

use crate::support::gateway::{APP_KEY, NOT_RELOADED, Setup};
use crate::support::mount::Mount;
use crate::support::{Answer, Gateway, Pki, Upstream, tools, unprivileged};

const WRITE: &str = "customerOpenApi/add";

const KEEPING_KEY: &str = "kybio_gateway_accounts_keeping_key";
const DISABLED: &str = "kybio_gateway_accounts_disabled";

/// Name, content and mode of key files that can't be used, and what is said of each.
const BAD: [(&str, Option<&str>, u32, &str); 7] = [
    ("missing", None, 0, "no such key file"),
    ("empty", Some(""), 0o600, "is empty"),
    ("blank", Some(" \n"), 0o600, "is empty"),
    ("readable", Some("a-key"), 0o644, "open to others"),
    ("writable", Some("a-key"), 0o602, "open to others"),
    ("spaced", Some("two words"), 0o600, "white space"),
    ("marked", Some("\u{feff}a-key"), 0o600, "byte order mark"),
];

fn put(setup: &Setup, file: &str, content: Option<&str>, mode: u32) {
    let path = setup.path(file);
    match content {
        Some(content) => tools::write(&path, content, mode),
        None => std::fs::remove_file(path).unwrap(),
    }
}

fn told(answer: &Answer) -> (u16, &str) {
    (
        answer.status.as_u16(),
        answer.header("kybio-gateway-outcome"),
    )
}

async fn with_bad_accounts(pki: &Pki, upstream: &Upstream) -> Setup {
    let mut setup = Setup::new(pki, Some(upstream.address));
    for (number, (name, content, mode, _)) in BAD.into_iter().enumerate() {
        setup.account(name, &format!("APP{number}"), content.unwrap_or_default());
        put(&setup, &format!("{name}.key"), content, mode);
    }
    setup.orders.push_str("default_account = \"main\"\n");
    setup
}

#[tokio::test]
async fn a_bad_key_file_disables_its_account_alone() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = with_bad_accounts(&pki, &upstream).await.start().await;
    let client = gateway.client(&pki);
    for (name, _, _, said) in BAD {
        let answer = client
            .call_with(
                "customerOpenApi/add",
                &[("kybio-gateway-account", name)],
                "{}",
            )
            .await;
        assert_eq!(
            answer.refusal(),
            (
                503,
                "account-disabled".into(),
                "not-sent".into(),
                "yes".into()
            ),
            "{name}"
        );
        assert!(answer.text().contains(said), "{name}: {}", answer.text());
        gateway
            .event(|event| {
                event["level"] == "WARN"
                    && event["notice"].as_str().is_some_and(|notice| {
                        notice.contains(&format!("accounts.{name}.app_key_file"))
                    })
            })
            .await;
    }
    assert!(upstream.seen().is_empty());
    assert_eq!(
        client.call("customerOpenApi/add", "{}").await.status,
        200,
        "the others go on"
    );
    assert!(upstream.only().is_signed_with(APP_KEY));
    assert_eq!(gateway.metric("kybio_gateway_accounts_disabled").await, 7.0);
    assert_eq!(gateway.admin_get("/readyz").await.0, 200);
}

#[tokio::test]
async fn the_operator_can_want_none_of_it() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let setup = with_bad_accounts(&pki, &upstream).await;
    for (command, flags) in [
        ("serve", &["--set", "runtime.on_bad_key=refuse"][..]),
        ("check", &[]),
    ] {
        let output = tools::run(
            tools::binary()
                .arg(command)
                .arg("--config")
                .arg(setup.write())
                .args(flags),
        );
        assert_eq!(output.status.code(), Some(78), "{command}");
        let said = tools::stderr(&output);
        for (name, _, _, fault) in BAD {
            assert!(
                said.lines().any(
                    |line| line.contains(&format!("accounts.{name}.app_key_file"))
                        && line.contains(fault)
                ),
                "{name}: {said}"
            );
        }
    }
}

#[test]
fn a_pipe_in_the_place_of_a_key_file_is_not_waited_for() {
    let pki = Pki::new();
    let setup = Setup::new(&pki, None);
    std::fs::remove_file(setup.path("main.key")).unwrap();
    assert!(
        tools::run(std::process::Command::new("mkfifo").arg(setup.path("main.key")))
            .status
            .success()
    );
    let output = tools::run(
        tools::binary()
            .args(["check", "--config"])
            .arg(setup.write()),
    );
    assert_eq!(output.status.code(), Some(78));
    assert!(
        tools::stderr(&output).contains("accounts.main.app_key_file"),
        "{}",
        tools::stderr(&output)
    );
}

#[tokio::test]
async fn a_gateway_without_any_usable_key_is_not_ready() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let setup = Setup::new(&pki, Some(upstream.address));
    tools::write(&setup.path("main.key"), "", 0o600);
    let gateway = Gateway::start(setup, &[]).await;
    assert_eq!(gateway.admin_get("/readyz").await.0, 503);
    assert_eq!(gateway.admin_get("/livez").await.0, 200);
}

#[tokio::test]
async fn white_space_around_a_key_does_not_count() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let setup = Setup::new(&pki, Some(upstream.address));
    tools::write(&setup.path("main.key"), format!(" {APP_KEY}\r\n\n"), 0o400);
    let gateway = setup.start().await;
    gateway.client(&pki).call("customerOpenApi/add", "{}").await;
    assert!(upstream.only().is_signed_with(APP_KEY));
}

#[tokio::test]
async fn an_emptied_or_unreadable_key_keeps_the_key_before_it() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::reloaded_by_hand(&pki, &upstream);
    setup.account("other", "zyxwvutsrqponm", "other-key");
    setup.orders.push_str("default_account = \"main\"\n");
    let gateway = setup.start().await;
    let client = gateway.client(&pki);
    let on_other = [("kybio-gateway-account", "other")];
    let mut key = APP_KEY.to_owned();
    for (number, (name, content, mode, said)) in BAD.into_iter().enumerate() {
        put(&gateway.setup, "main.key", content, mode);
        // The rest of the set is taken.
        let other = format!("other-key-{number}");
        tools::write(&gateway.setup.path("other.key"), &other, 0o600);
        let mark = gateway.mark();
        gateway.reload().await;
        let event = gateway
            .event_since(mark, |event| {
                event["message"] == "account goes on with the key it had"
            })
            .await;
        assert_eq!(
            (&event["level"], &event["account"]),
            (&"WARN".into(), &"main".into()),
            "{name}"
        );
        assert!(
            event["fault"].as_str().unwrap().contains(said),
            "{name}: {event}"
        );
        assert_eq!(
            told(&client.call(WRITE, "{}").await),
            (200, "done"),
            "{name}"
        );
        assert!(upstream.last().is_signed_with(&key), "{name}");
        let answer = client.call_with(WRITE, &on_other, "{}").await;
        assert_eq!(told(&answer), (200, "done"), "{name}");
        assert!(upstream.last().is_signed_with(&other), "{name}");
        assert_eq!(gateway.metric(KEEPING_KEY).await, 1.0, "{name}");
        assert_eq!(gateway.metric(DISABLED).await, 0.0, "{name}");

        // It goes on being kept at reloads that are about something else.
        let other = format!("other-key-{number}-again");
        tools::write(&gateway.setup.path("other.key"), &other, 0o600);
        gateway.reload().await;
        client.call(WRITE, "{}").await;
        assert!(upstream.last().is_signed_with(&key), "{name}");
        assert_eq!(gateway.metric(KEEPING_KEY).await, 1.0, "{name}");

        key = format!("key-number-{number}");
        tools::write(&gateway.setup.path("main.key"), &key, 0o600);
        gateway.reload().await;
        client.call(WRITE, "{}").await;
        assert!(upstream.last().is_signed_with(&key), "{name}");
        assert_eq!(gateway.metric(KEEPING_KEY).await, 0.0, "{name}");
    }
}

/// A key belongs to one appId at one host (S3): with another, the account is a new one, and a bad key file disables it.
#[tokio::test]
async fn a_key_is_not_kept_for_another_app_id_or_another_host() {
    let pki = Pki::new();
    let (upstream, elsewhere) = (Upstream::start(&pki).await, Upstream::start(&pki).await);
    for change in ["app_id", "upstream"] {
        let before = upstream.seen().len();
        let mut setup = Setup::reloaded_by_hand(&pki, &upstream);
        setup.account("moved", "MOVED", "moved-key");
        setup.orders.push_str("default_account = \"main\"\n");
        setup.more.push_str(&format!(
            "[upstreams.elsewhere]\nbase_url = \"https://upstream.test/pospal-api2\"\nroots = \"upstream-ca.pem\"\nresolve = [\"{}\"]\n",
            elsewhere.address
        ));
        let mut gateway = setup.start().await;
        let client = gateway.client(&pki);
        let on_moved = [("kybio-gateway-account", "moved")];
        let answer = client.call_with(WRITE, &on_moved, "{}").await;
        assert_eq!(told(&answer), (200, "done"), "{change}");
        let more = &mut gateway.setup.more;
        *more = match change {
            "app_id" => more.replace("\"MOVED\"", "\"OTHER\""),
            _ => more.replacen("upstream = \"kybio\"", "upstream = \"elsewhere\"", 1),
        };
        gateway.setup.write();
        put(&gateway.setup, "moved.key", Some(""), 0o600);
        gateway.reload().await;
        let answer = client.call_with(WRITE, &on_moved, "{}").await;
        let refusal = (
            503,
            "account-disabled".to_owned(),
            "not-sent".to_owned(),
            "yes".to_owned(),
        );
        assert_eq!(answer.refusal(), refusal, "{change}");
        assert_eq!(gateway.metric(DISABLED).await, 1.0, "{change}");
        assert_eq!(gateway.metric(KEEPING_KEY).await, 0.0, "{change}");
        assert_eq!(upstream.seen().len(), before + 1, "{change}");
    }
    assert!(elsewhere.seen().is_empty());
}

#[tokio::test]
async fn an_account_that_was_disabled_at_start_serves_once_its_key_is_mended() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let setup = Setup::reloaded_by_hand(&pki, &upstream);
    tools::write(&setup.path("main.key"), "", 0o600);
    let gateway = setup.start().await;
    let client = gateway.client(&pki);
    assert_eq!(client.call(WRITE, "{}").await.status, 503);
    assert_eq!(gateway.admin_get("/readyz").await.0, 503);
    tools::write(&gateway.setup.path("main.key"), APP_KEY, 0o600);
    gateway.reload().await;
    assert_eq!(told(&client.call(WRITE, "{}").await), (200, "done"));
    assert_eq!(gateway.admin_get("/readyz").await.0, 200);
    assert_eq!(gateway.metric(DISABLED).await, 0.0);
}

/// Who had a key goes on with it even where a bad key would have refused a start; who never had one is a fault of the set.
#[tokio::test]
async fn where_bad_keys_refuse_a_start_they_refuse_a_reload_unless_there_was_a_good_one() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::reloaded_by_hand(&pki, &upstream);
    setup.runtime.push_str("on_bad_key = \"refuse\"\n");
    setup.orders.push_str("default_account = \"main\"\n");
    let mut gateway = setup.start().await;
    let client = gateway.client(&pki);
    tools::write(&gateway.setup.path("main.key"), "", 0o600);
    gateway.reload().await;
    assert_eq!(told(&client.call(WRITE, "{}").await), (200, "done"));
    assert!(upstream.last().is_signed_with(APP_KEY));
    assert_eq!(gateway.metric(KEEPING_KEY).await, 1.0);

    gateway.setup.account("other", "zyxwvutsrqponm", "");
    gateway.setup.write();
    let event = gateway.hang_up().await;
    assert_eq!(event["message"], NOT_RELOADED, "{event}");
    let fault = event["fault"].as_str().unwrap();
    assert!(fault.contains("accounts.other.app_key_file"), "{fault}");
    assert_eq!(told(&client.call(WRITE, "{}").await), (200, "done"));
}

/// The upstream's name is the operator's word for a host: what it stands for may be another.
#[tokio::test]
async fn a_key_is_not_kept_for_another_host_behind_the_same_name() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::reloaded_by_hand(&pki, &upstream).start().await;
    let client = gateway.client(&pki);
    assert_eq!(told(&client.call(WRITE, "{}").await), (200, "done"));
    tools::change(&gateway.setup.path("gateway.toml"), |text| {
        text.replace("https://upstream.test/", "https://elsewhere.test/")
    });
    put(&gateway.setup, "main.key", Some(""), 0o600);
    gateway.reload().await;
    let refusal = client.call(WRITE, "{}").await.refusal();
    assert_eq!((refusal.0, &*refusal.1), (503, "account-disabled"));
    assert_eq!(gateway.metric(KEEPING_KEY).await, 0.0);
}

/// As docs/keys.md has it for Kubernetes: the files are root's, their group is the pod's, and names lead to `..data`.
#[tokio::test]
async fn a_kubernetes_secret_serves_a_pod_that_is_not_root() {
    // Nobody else's.
    const USER: u32 = 61_186;
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::reloaded_by_hand(&pki, &upstream);
    setup.account("pod", "POD", "");
    setup.more = setup.more.replace("\"pod.key\"", "\"secrets/pod.key\"");
    setup.orders.push_str("default_account = \"pod\"\n");
    setup.write();
    let secrets = setup.path("secrets");
    std::fs::create_dir(&secrets).unwrap();
    unprivileged::give(setup.folder.path(), USER);
    let put = |folder: &std::path::Path, key: &str, mode: u32, group: u32| {
        let path = folder.join("pod.key");
        // Who isn't root can give a file to no other group; the one it has will do then.
        let group = unprivileged::is_root().then_some(group);
        std::fs::write(&path, key).unwrap();
        std::os::unix::fs::chown(&path, None, group).unwrap();
        tools::write(&path, key, mode);
    };
    put(&secrets, "first-key", 0o440, USER);
    let mut mount = Mount::of(&secrets);
    let gateway = Gateway::start_by(unprivileged::launch(USER, ""), setup, &[]).await;
    let client = gateway.client(&pki);
    assert_eq!(told(&client.call(WRITE, "{}").await), (200, "done"));
    assert!(upstream.last().is_signed_with("first-key"));

    let mut cases = vec![
        (0o644, USER, "open to others"),
        (0o444, USER, "open to others"),
    ];
    if unprivileged::is_root() {
        // Without fsGroup.
        cases.push((0o440, 0, "may not read"));
    }
    for (mode, group, said) in cases {
        mount.swap(|version| {
            std::fs::remove_file(version.join("pod.key")).unwrap();
            put(version, "second-key", mode, group);
        });
        let mark = gateway.mark();
        gateway.reload().await;
        let event = gateway
            .event_since(mark, |event| {
                event["message"] == "account goes on with the key it had"
            })
            .await;
        assert!(event["fault"].as_str().unwrap().contains(said), "{event}");
        assert_eq!(told(&client.call(WRITE, "{}").await), (200, "done"));
        assert!(upstream.last().is_signed_with("first-key"), "{mode:o}");
    }
    mount.swap(|version| {
        std::fs::remove_file(version.join("pod.key")).unwrap();
        put(version, "second-key\n", 0o440, USER);
    });
    gateway.reload().await;
    assert_eq!(told(&client.call(WRITE, "{}").await), (200, "done"));
    assert!(upstream.last().is_signed_with("second-key"));
}

/// Whom an access control list lets in, the mode doesn't show.
#[test]
fn a_key_file_that_a_list_opens_to_others_is_refused() {
    let pki = Pki::new();
    let setup = Setup::new(&pki, None);
    let path = setup.write();
    let me = rustix::process::geteuid().as_raw();
    for (user, mask, good) in [(me, 4_u16, true), (me + 1, 4, false), (me + 1, 0, true)] {
        // acl(5): the owner, one user by name, the group, the mask, others.
        let mut list = 2_u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in [
            (1_u16, 6_u16, u32::MAX),
            (2, 4, user),
            (4, 0, u32::MAX),
            (16, mask, u32::MAX),
            (32, 0, u32::MAX),
        ] {
            list.extend(tag.to_le_bytes());
            list.extend(permissions.to_le_bytes());
            list.extend(id.to_le_bytes());
        }
        let name = "system.posix_acl_access";
        rustix::fs::setxattr(
            setup.path("main.key"),
            name,
            &list,
            rustix::fs::XattrFlags::empty(),
        )
        .unwrap();
        let check = tools::run(tools::binary().args(["check", "--config"]).arg(&path));
        let said = tools::stderr(&check);
        assert_eq!(
            check.status.code(),
            Some(if good { 0 } else { 78 }),
            "{user} {mask}: {said}"
        );
        assert_eq!(said.contains("open to others"), !good, "{said}");
    }
}
