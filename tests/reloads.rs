//! Promise U2: a new configuration, with its certificates, lists and keys, is taken whole and while calls go on, or not at all; what has
//! become of it is said.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::date_time_ymd;
use serde_json::Value;
use tokio::time::interval;

use crate::support::gateway::{APP_KEY, Door, NOT_RELOADED, ORDERS, RELOADED, UNCHANGED};
use crate::support::load::Shape;
use crate::support::mount::{Backup, Mount};
use crate::support::pki::Wanted;
use crate::support::upstream::{Knowing, Seen};
use crate::support::{Answer, Gateway, Load, Pki, Setup, Upstream, tools};

const READ: &str = "customerOpenApi/queryByUid";
const WRITE: &str = "customerOpenApi/add";

const LAST_RELOAD_SUCCESSFUL: &str = "kybio_gateway_config_last_reload_successful";
const KEEPING_KEY: &str = "kybio_gateway_accounts_keeping_key";

/// How many reloads came to this.
async fn reloads(gateway: &Gateway, result: &str) -> f64 {
    let series = format!("kybio_gateway_config_reloads_total{{result=\"{result}\"}}");
    gateway.metric(&series).await
}

fn told(answer: &Answer) -> (u16, &str) {
    (
        answer.status.as_u16(),
        answer.header("kybio-gateway-outcome"),
    )
}

fn text<'a>(event: &'a Value, field: &str) -> &'a str {
    event[field].as_str().unwrap_or_else(|| panic!("{event}"))
}

/// What the load would see if something were wrong, it sees.
#[tokio::test]
async fn a_load_without_a_reload_loses_nothing_and_notices_when_the_gateway_is_gone() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    let mut load = Load::start(gateway.address, &pki, &pki.caller(ORDERS), Shape::FULL);
    load.goes_on(2_000).await;
    load.comes_with(&pki, &pki.caller(ORDERS)).await;
    load.goes_on(2_000).await;
    let tally = load.so_far();
    assert!(
        tally.failed.is_empty() && tally.raced + tally.refused + tally.dropped == 0,
        "{tally}"
    );
    let callers = Shape::FULL.http1 + Shape::FULL.http2 / Shape::FULL.per_http2_connection;
    assert_eq!(tally.connections, 2 * callers, "{tally}");
    // All of them wait for an answer, and none comes.
    gateway.signal("STOP");
    let callers = Shape::FULL.http1 + Shape::FULL.http2;
    load.waits_for(callers).await;
    gateway.signal("KILL");
    let tally = load.ended().await;
    assert_eq!(tally.raced + tally.failed.len(), callers, "{tally}");
    assert_eq!(tally.refused + tally.dropped, callers, "{tally}");
}

/// Everything that is rotated in a year, twice. Old and new hold at the same time where a rotation needs that, as it does in real life:
/// the host knows both keys, and both CAs are trusted until all callers have come with their new certificates.
#[tokio::test]
async fn twenty_reloads_under_load_fail_no_request() {
    let authorities = [Pki::new(), Pki::new()];
    let servers = &authorities[0];
    let keys = Arc::new(Mutex::new(vec![APP_KEY.to_owned()]));
    let host = Knowing {
        keys: Arc::clone(&keys),
    };
    let upstream = Upstream::with(servers, host).await;
    let mut setup = Setup::reloaded_by_hand(servers, &upstream);
    setup.include_folder("accounts.d");
    setup.listener.push_str("client_crl = [\"callers.crl\"]\n");
    setup.orders.push_str("default_account = \"main\"\n");
    let revoke = |setup: &Setup, serials: &[u64]| {
        let lists = authorities
            .each_ref()
            .map(|authority| authority.revocation_list(serials, date_time_ymd(2100, 1, 1)));
        tools::write(&setup.path("callers.crl"), lists.concat(), 0o644);
    };
    revoke(&setup, &[66]);
    let mut gateway = setup.start().await;
    let load = Load::start(
        gateway.address,
        servers,
        &servers.caller(ORDERS),
        Shape::FULL,
    );
    load.goes_on(500).await;
    for round in 0..2 {
        let (old, new) = (&authorities[round % 2], &authorities[(round + 1) % 2]);
        for step in 0..10 {
            let setup = &mut gateway.setup;
            let changed: &[&str] = match step {
                0 => {
                    let server = servers.server("gateway.test");
                    tools::write(&setup.path("gateway.pem"), server.certificate, 0o644);
                    tools::write(&setup.path("gateway.key"), server.key, 0o600);
                    &["listener.certificate", "listener.private_key"]
                }
                1 => {
                    let both = old.certificate() + &new.certificate();
                    tools::write(&setup.path("callers-ca.pem"), both, 0o644);
                    &["listener.client_ca"]
                }
                2 => {
                    load.comes_with(servers, &new.caller(ORDERS)).await;
                    let alone = new.certificate();
                    tools::write(&setup.path("callers-ca.pem"), alone, 0o644);
                    &["listener.client_ca"]
                }
                3 => {
                    revoke(setup, &[66, 67 + u64::try_from(round).unwrap()]);
                    &["listener.client_crl"]
                }
                4 => {
                    let key = format!("key-number-{round}");
                    tools::write(&setup.path("main.key"), &key, 0o600);
                    keys.lock().unwrap().push(key);
                    &["accounts.main.app_key_file"]
                }
                5 => {
                    setup.more.push_str(&format!("[callers.tills{round}]\nidentities = [\"dns:tills{round}.internal\"]\naccounts = [\"main\"]\noperations = [\"*\"]\n"));
                    &["callers.tills"]
                }
                6 => {
                    setup
                        .orders
                        .push_str(["in_flight_max = 500\n", "account_by = \"app-id\"\n"][round]);
                    &["callers.orders."]
                }
                7 => {
                    let account = format!(
                        "[accounts.store{round}]\nupstream = \"kybio\"\napp_id = \"store{round}\"\napp_key_file = \"../main.key\"\n"
                    );
                    let name = format!("accounts.d/store{round}.toml");
                    fs::write(setup.path(&name), account).unwrap();
                    &["accounts.store"]
                }
                8 => {
                    fs::remove_file(setup.path(&format!("accounts.d/store{round}.toml"))).unwrap();
                    &["accounts.store"]
                }
                _ => {
                    setup
                        .kybio
                        .push_str(["attempts_max = 2\n", "idle_timeout = \"10s\"\n"][round]);
                    &["upstreams.kybio."]
                }
            };
            setup.write();
            let event = gateway.reload().await;
            for key in changed {
                let changes = text(&event, "changes");
                assert!(changes.contains(key), "{round} {step}: {changes}");
            }
            load.goes_on(300).await;
            if step == 4 {
                // What was under way with the old key has ended: the host doesn't know it any more.
                keys.lock().unwrap().remove(0);
            }
        }
    }
    let tally = load.end().await;
    println!("{tally}");
    assert!(
        tally.failed.is_empty() && tally.raced + tally.refused + tally.dropped == 0,
        "{tally}"
    );
    // Nobody was sent away who may stay: they came anew with a new certificate alone.
    let callers = Shape::FULL.http1 + Shape::FULL.http2 / Shape::FULL.per_http2_connection;
    assert_eq!(
        (tally.connections, tally.asked_to_leave),
        (3 * callers, 0),
        "{tally}"
    );
    let mut arrived: Vec<_> = upstream.seen().iter().map(Seen::text).collect();
    arrived.sort();
    arrived.dedup();
    assert_eq!(arrived.len(), tally.answered, "each came once");
    assert_eq!(upstream.seen().len(), tally.answered, "and none twice");
    assert_eq!(reloads(&gateway, "reloaded").await, 20.0);
    assert_eq!(gateway.metric(LAST_RELOAD_SUCCESSFUL).await, 1.0);
}

/// One way to break a configuration.
struct Breach {
    what: &'static str,
    /// Does it, to the files beside `gateway.toml`, or to that one.
    breaks: fn(&Path),
    /// The file that is named, and what is on the line that is.
    place: (&'static str, &'static str),
    said: &'static str,
}

const CONFIG: &str = "gateway.toml";

/// Cut off right after these words.
fn cut_after(words: &str) -> impl FnOnce(String) -> String {
    move |mut text| {
        text.truncate(text.find(words).unwrap() + words.len());
        text
    }
}

const BREACHES: [Breach; 15] = [
    Breach {
        what: "garbage",
        breaks: |folder| tools::change(&folder.join(CONFIG), |_| "garbage [[[ = \n".to_owned()),
        place: (CONFIG, "garbage"),
        said: "not TOML",
    },
    Breach {
        what: "half written, cut within a word",
        breaks: |folder| tools::change(&folder.join(CONFIG), cut_after("app_id = \"abc")),
        place: (CONFIG, "app_id = \"abc"),
        said: "not TOML",
    },
    Breach {
        what: "half written, cut at a line's end",
        breaks: |folder| {
            tools::change(
                &folder.join(CONFIG),
                cut_after("private_key = \"gateway.key\"\n"),
            )
        },
        place: (CONFIG, "[listener]"),
        said: "listener.client_ca: must be written",
    },
    Breach {
        what: "emptied",
        breaks: |folder| tools::change(&folder.join(CONFIG), |_| String::new()),
        place: ("", ""),
        said: "listener.certificate: must be written",
    },
    Breach {
        what: "gone",
        breaks: |folder| fs::remove_file(folder.join(CONFIG)).unwrap(),
        place: (CONFIG, ""),
        said: "can't be read",
    },
    Breach {
        what: "not text",
        breaks: |folder| fs::write(folder.join(CONFIG), b"[listener]\n\xff").unwrap(),
        place: (CONFIG, ""),
        said: "isn't UTF-8",
    },
    Breach {
        what: "an unknown key",
        breaks: |folder| {
            tools::change(&folder.join(CONFIG), |text| {
                text.replace("connections_max", "conections_max")
            });
        },
        place: (CONFIG, "conections_max"),
        said: "did you mean `connections_max`?",
    },
    Breach {
        what: "a caller's account that there isn't",
        breaks: |folder| {
            tools::change(&folder.join(CONFIG), |text| {
                text.replace("accounts = [\"*\"]", "accounts = [\"mian\"]")
            });
        },
        place: (CONFIG, "accounts = [\"mian\"]"),
        said: "did you mean \"main\"?",
    },
    Breach {
        what: "a certificate with another's key",
        breaks: |folder| {
            let other = Pki::new().server("gateway.test").certificate;
            fs::write(folder.join("gateway.pem"), other).unwrap();
        },
        place: (CONFIG, "certificate = \"gateway.pem\""),
        said: "don't belong together",
    },
    Breach {
        what: "a private key that's empty",
        breaks: |folder| fs::write(folder.join("gateway.key"), "").unwrap(),
        place: (CONFIG, "private_key = "),
        said: "there's no private key in it",
    },
    Breach {
        what: "a CA file that's empty",
        breaks: |folder| fs::write(folder.join("callers-ca.pem"), "").unwrap(),
        place: (CONFIG, "client_ca = "),
        said: "there isn't a certificate in it",
    },
    Breach {
        what: "a revocation list that's half there",
        breaks: |folder| {
            tools::change(&folder.join("callers.crl"), |text| {
                text[..text.len() / 2].to_owned()
            });
        },
        place: (CONFIG, "client_crl = "),
        said: "listener.client_crl: ",
    },
    Breach {
        what: "an upstream's roots that are gone",
        breaks: |folder| fs::remove_file(folder.join("upstream-ca.pem")).unwrap(),
        place: (CONFIG, "roots = "),
        said: "upstreams.kybio.roots: ",
    },
    Breach {
        what: "an included file that's gone",
        breaks: |folder| fs::remove_file(folder.join("more.toml")).unwrap(),
        place: (CONFIG, "include = "),
        said: "there is no file",
    },
    Breach {
        what: "garbage in an included file",
        breaks: |folder| tools::change(&folder.join("more.toml"), |text| text + "garbage [[[ = \n"),
        place: ("more.toml", "garbage"),
        said: "not TOML",
    },
];

/// A set isn't taken in parts, and nobody notices but the operator: the log has each fault with its place, and a metric says it.
#[tokio::test]
async fn garbage_keeps_the_configuration_before_it() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::reloaded_by_hand(&pki, &upstream);
    setup.top.push_str("include = [\"more.toml\"]\n");
    setup.listener.push_str("client_crl = [\"callers.crl\"]\n");
    setup.orders.push_str("default_account = \"main\"\n");
    fs::write(
        setup.path("more.toml"),
        "[accounts.other]\nupstream = \"kybio\"\napp_id = \"other\"\napp_key_file = \"main.key\"\n",
    )
    .unwrap();
    tools::write(
        &setup.path("callers.crl"),
        pki.revocation_list(&[66], date_time_ymd(2100, 1, 1)),
        0o644,
    );
    let gateway = setup.start().await;
    let started = gateway.metric(LAST_RELOAD_SUCCESSFUL).await;
    assert_eq!(started, 1.0, "what it started with is good");
    let load = Load::start(gateway.address, &pki, &pki.caller(ORDERS), Shape::LIGHT);
    let folder = gateway.setup.folder.path();
    let good = Backup::of(folder);
    for (number, breach) in BREACHES.iter().enumerate() {
        let what = breach.what;
        (breach.breaks)(folder);
        // More of the set changes, and none of it may be taken.
        tools::write(&gateway.setup.path("main.key"), "another-key", 0o600);
        let mark = gateway.mark();
        let (file, words) = breach.place;
        let line = fs::read_to_string(folder.join(file)).map_or(0, |text| {
            let mut lines = text.lines();
            lines
                .position(|line| line.contains(words))
                .map_or(0, |at| at + 1)
        });
        let place = match (file, words) {
            ("", _) => String::new(),
            (file, "") => format!("{file}:"),
            (file, _) => format!("{file}:{line}:"),
        };
        gateway.signal("HUP");
        let fault = gateway
            .event_since(mark, |event| {
                event["message"] == NOT_RELOADED && text(event, "fault").contains(breach.said)
            })
            .await;
        assert_eq!(fault["level"], "ERROR", "{what}");
        assert!(
            text(&fault, "fault").contains(&place),
            "{what}, {place}: {fault}"
        );
        assert_eq!(gateway.metric(LAST_RELOAD_SUCCESSFUL).await, 0.0, "{what}");
        assert_eq!(
            reloads(&gateway, "refused").await,
            (number + 1) as f64,
            "{what}"
        );
        for client in [gateway.client(&pki), gateway.http2_client(&pki)] {
            assert_eq!(
                told(&client.call(WRITE, "{}").await),
                (200, "done"),
                "{what}"
            );
            assert!(upstream.last().is_signed_with(APP_KEY), "{what}");
        }
        assert_eq!(gateway.admin_get("/readyz").await.0, 200, "{what}");
        good.restore();
        let mended = gateway.hang_up().await;
        assert_ne!(mended["message"], NOT_RELOADED, "{what}: {mended}");
        assert_eq!(gateway.metric(LAST_RELOAD_SUCCESSFUL).await, 1.0, "{what}");
        load.goes_on(10).await;
    }
    let tally = load.end().await;
    assert!(
        tally.failed.is_empty() && tally.raced + tally.refused + tally.dropped == 0,
        "{tally}"
    );
}

#[tokio::test]
async fn all_faults_of_a_broken_configuration_are_said_at_once() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::reloaded_by_hand(&pki, &upstream).start().await;
    let folder = gateway.setup.folder.path();
    tools::change(&folder.join(CONFIG), |text| {
        let text = text.replace("connections_max = 2000", "connections_max = 0");
        text.replace("operations = [\"*\"]", "operations = [\"no/such\"]")
    });
    fs::write(folder.join("callers-ca.pem"), "").unwrap();
    let mark = gateway.mark();
    gateway.signal("HUP");
    for key in [
        "listener.connections_max",
        "callers.orders.operations",
        "listener.client_ca",
    ] {
        gateway
            .event_since(mark, |event| {
                event["message"] == NOT_RELOADED && text(event, "fault").contains(key)
            })
            .await;
    }
    assert_eq!(
        reloads(&gateway, "refused").await,
        1.0,
        "it was one reload for all that"
    );
}

#[tokio::test]
async fn a_hang_up_that_finds_nothing_new_says_so() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::reloaded_by_hand(&pki, &upstream).start().await;
    let since = "kybio_gateway_config_last_reload_success_timestamp_seconds";
    let started = gateway.metric(since).await;
    assert!(started > 1.7e9, "{started}");
    for _ in 0..3 {
        assert_eq!(gateway.hang_up().await["message"], UNCHANGED);
    }
    // The same bytes again are nothing new, whoever wrote them when.
    gateway.setup.write();
    tools::write(&gateway.setup.path("main.key"), APP_KEY, 0o600);
    assert_eq!(gateway.hang_up().await["message"], UNCHANGED);
    assert_eq!(reloads(&gateway, "unchanged").await, 4.0);
    assert_eq!(reloads(&gateway, "reloaded").await, 0.0);
    assert_eq!(gateway.metric(LAST_RELOAD_SUCCESSFUL).await, 1.0);
    assert!(gateway.metric(since).await >= started);
}

/// Kubernetes never changes a file: it changes where `..data` leads. A watch on files goes stale with the first change.
#[tokio::test]
async fn a_symlink_swap_is_seen_by_the_timer() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.runtime.push_str("reload_interval = \"1s\"\n");
    setup.write();
    let mut mount = Mount::of(setup.folder.path());
    let gateway = setup.start().await;
    let client = gateway.client(&pki);
    assert_eq!(told(&client.call(WRITE, "{}").await), (200, "done"));
    for round in 0..3 {
        let key = format!("key-number-{round}");
        let server = pki.server("gateway.test");
        let mark = gateway.mark();
        mount.swap(|new| {
            tools::write(&new.join("main.key"), &key, 0o600);
            tools::write(&new.join("gateway.pem"), &server.certificate, 0o644);
            tools::write(&new.join("gateway.key"), &server.key, 0o600);
        });
        let event = gateway.word_on_reload(mark).await;
        assert_eq!(event["message"], RELOADED, "{event}");
        assert_eq!(told(&client.call(WRITE, "{}").await), (200, "done"));
        assert!(upstream.last().is_signed_with(&key), "{round}");
        let stream = gateway.client(&pki).stream().await.unwrap();
        let shown = stream.get_ref().1.peer_certificates().unwrap().to_vec();
        assert_eq!(shown, server.chain(), "{round}");

        // A version that's broken is said, and the one after it is taken.
        let mark = gateway.mark();
        mount.swap(|new| tools::write(&new.join("callers-ca.pem"), "", 0o644));
        let event = gateway.word_on_reload(mark).await;
        assert_eq!(event["message"], NOT_RELOADED, "{event}");
        assert_eq!(gateway.metric(LAST_RELOAD_SUCCESSFUL).await, 0.0);
        assert_eq!(told(&client.call(WRITE, "{}").await), (200, "done"));
        let mark = gateway.mark();
        mount.swap(|new| tools::write(&new.join("callers-ca.pem"), pki.certificate(), 0o644));
        let event = gateway.word_on_reload(mark).await;
        assert_ne!(event["message"], NOT_RELOADED, "{event}");
        assert_eq!(gateway.metric(LAST_RELOAD_SUCCESSFUL).await, 1.0);
    }
    assert_eq!(
        reloads(&gateway, "refused").await,
        3.0,
        "what is broken and stays so is said once"
    );
}

type Edit<'a> = &'a dyn Fn(&Setup);

/// Contents, modes, and files that an include finds.
#[tokio::test]
async fn the_timer_sees_whatever_a_start_would_read() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.runtime.push_str("reload_interval = \"1s\"\n");
    setup.orders.push_str("default_account = \"main\"\n");
    setup.include_folder("accounts.d");
    let gateway = setup.start().await;
    let client = gateway.client(&pki);
    let changed = async |edit: Edit<'_>| {
        let mark = gateway.mark();
        edit(&gateway.setup);
        let event = gateway.word_on_reload(mark).await;
        assert_eq!(event["message"], RELOADED, "{event}");
        text(&event, "changes").to_owned()
    };

    let account =
        "[accounts.new]\nupstream = \"kybio\"\napp_id = \"NEW\"\napp_key_file = \"../main.key\"\n";
    let changes = changed(&|setup| {
        // Whole, or not at all: an include doesn't match the first name.
        let file = setup.path("accounts.d/new.part");
        fs::write(&file, account).unwrap();
        fs::rename(&file, file.with_extension("toml")).unwrap();
    })
    .await;
    assert_eq!(changes, "accounts.new (added)");
    let on_new = [("kybio-gateway-account", "new")];
    let answer = client.call_with(WRITE, &on_new, "{}").await;
    assert_eq!(told(&answer), (200, "done"));

    changed(&|setup| fs::remove_file(setup.path("accounts.d/new.toml")).unwrap()).await;
    let answer = client.call_with(WRITE, &on_new, "{}").await;
    assert_eq!(answer.status, 403, "{}", answer.text());

    let mode = |setup: &Setup, mode: u32| {
        let permissions = fs::Permissions::from_mode(mode);
        fs::set_permissions(setup.path("main.key"), permissions).unwrap();
    };
    let spoilt: [(Edit<'_>, Edit<'_>); 2] = [
        (&|setup| mode(setup, 0o644), &|setup| mode(setup, 0o600)),
        // What isn't there is waited for, too.
        (
            &|setup| fs::remove_file(setup.path("main.key")).unwrap(),
            &|setup| tools::write(&setup.path("main.key"), APP_KEY, 0o600),
        ),
    ];
    for (spoil, mend) in spoilt {
        for (edit, keeping) in [(spoil, 1.0), (mend, 0.0)] {
            let changes = changed(edit).await;
            assert_eq!(changes, "accounts.main.app_key_file (new content)");
            assert_eq!(told(&client.call(WRITE, "{}").await), (200, "done"));
            assert!(upstream.last().is_signed_with(APP_KEY));
            assert_eq!(gateway.metric(KEEPING_KEY).await, keeping);
        }
    }
}

/// Descriptors that aren't sockets, of which there are more and fewer with each call.
fn descriptors(gateway: &Gateway) -> usize {
    let open = fs::read_dir(format!("/proc/{}/fd", gateway.pid())).unwrap();
    let kinds = open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    kinds
        .filter(|kind| !kind.to_string_lossy().starts_with("socket:"))
        .count()
}

#[tokio::test]
async fn a_storm_of_fifty_hang_ups_changes_nothing_for_callers() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::reloaded_by_hand(&pki, &upstream);
    setup.include_folder("callers.d");
    let gateway = setup.start().await;
    let load = Load::start(gateway.address, &pki, &pki.caller(ORDERS), Shape::LIGHT);
    load.goes_on(50).await;
    let file = gateway.setup.path("callers.d/some.toml");
    // Whole, or not at all: half a file is another test's.
    let write = |name: &str| {
        let table = format!(
            "[callers.{name}]\nidentities = [\"dns:{name}.internal\"]\naccounts = [\"*\"]\noperations = [\"*\"]\n"
        );
        fs::write(file.with_extension("new"), table).unwrap();
        fs::rename(file.with_extension("new"), &file).unwrap();
    };
    let before = descriptors(&gateway);
    for number in 0..50 {
        // Every fifth of them finds something new, as far as they aren't taken together.
        if number % 5 == 0 {
            write(["first", "second"][number / 5 % 2]);
        }
        gateway.signal("HUP");
    }
    // The last word is the last content's.
    write("last");
    let mark = gateway.mark();
    gateway.signal("HUP");
    gateway
        .event_since(mark, |event| {
            event["message"] == RELOADED && text(event, "changes").contains("callers.last (added)")
        })
        .await;
    let pair = pki.issue(&Wanted {
        dns: &["last.internal"],
        ..Wanted::default()
    });
    let client = gateway.client_with(&pki, &pair);
    assert_eq!(told(&client.call(WRITE, "{}").await), (200, "done"));
    assert_eq!(gateway.hang_up().await["message"], UNCHANGED);
    drop(client);
    load.goes_on(50).await;
    let tally = load.end().await;
    assert!(
        tally.failed.is_empty() && tally.raced + tally.refused + tally.dropped == 0,
        "{tally}"
    );
    assert_eq!(descriptors(&gateway), before);
    assert_eq!(reloads(&gateway, "refused").await, 0.0);
}

#[tokio::test]
async fn what_changed_is_said_and_no_secret_with_it() {
    const CANARY: &str = "4127CanaryKey9981";
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::reloaded_by_hand(&pki, &upstream);
    setup.level = "trace";
    setup.account("other", "zyxwvutsrqponm", "other-key");
    setup.orders.push_str("default_account = \"main\"\n");
    tools::write(&setup.path("main.key"), CANARY, 0o600);
    let mut gateway = setup.start().await;
    let client = gateway.client(&pki);
    client.call(WRITE, "{}").await;
    let mut signatures = vec![upstream.last().header("data-signature").to_owned()];

    let setup = &mut gateway.setup;
    setup.orders = setup.orders.replace(
        "operations = [\"*\"]",
        "operations = [\"customerOpenApi/*\"]",
    );
    setup.more = setup.more.replace("[accounts.other]", "[accounts.renamed]");
    setup.kybio.push_str("attempts_max = 2\n");
    setup.listener.push_str("idle_timeout = \"60s\"\n");
    let server = pki.server("gateway.test");
    tools::write(&setup.path("gateway.pem"), &server.certificate, 0o644);
    tools::write(&setup.path("gateway.key"), &server.key, 0o600);
    let canary = format!("{CANARY}2");
    tools::write(&setup.path("main.key"), &canary, 0o600);
    setup.write();
    let event = gateway.reload().await;
    assert_eq!(event["level"], "INFO");
    let changes = text(&event, "changes");
    for change in [
        "callers.orders.operations",
        "accounts.renamed (added)",
        "accounts.other (removed)",
        "upstreams.kybio.attempts_max",
        "listener.idle_timeout",
        "listener.certificate (new content)",
        "listener.private_key (new content)",
        "accounts.main.app_key_file (new content)",
    ] {
        assert!(
            changes.split(", ").any(|told| told == change),
            "{change}: {changes}"
        );
    }
    assert_eq!(changes.split(", ").count(), 8, "{changes}");
    client.call(WRITE, "{}").await;
    signatures.push(upstream.last().header("data-signature").to_owned());

    // Faults too: a key file with a second word, a key where it doesn't belong, and a TLS key in the wrong file.
    let setup = &gateway.setup;
    tools::write(&setup.path("main.key"), format!("{CANARY} {CANARY}"), 0o600);
    gateway.hang_up().await;
    for (good, bad) in [
        (
            "app_key_file = \"main.key\"",
            format!("app_key = {CANARY:?}"),
        ),
        (
            "app_key_file = \"main.key\"",
            format!("app_key_file = {CANARY:?}"),
        ),
        (
            "[accounts.main]",
            format!("[accounts.main]\npaused = {CANARY:?}"),
        ),
        (
            "[accounts.main]",
            format!("[accounts.main]\npaused = {CANARY}"),
        ),
    ] {
        setup.write();
        tools::change(&setup.path(CONFIG), |text| text.replace(good, &bad));
        gateway.hang_up().await;
    }
    setup.write();
    tools::write(&setup.path("gateway.pem"), &server.key, 0o644);
    gateway.hang_up().await;

    let mut out = gateway.printed().join("\n");
    out += &gateway.metrics().await;
    let inner = server.key.lines().nth(1).unwrap();
    let mut secrets = vec![inner];
    secrets.extend(signatures.iter().map(String::as_str));
    for secret in secrets {
        assert!(
            !secret.is_empty() && !out.contains(secret),
            "{secret}: {out}"
        );
    }
    for line in out.lines() {
        assert!(!line.contains(CANARY), "{line}");
    }
}

/// Its callers would be known by other names than those that can come.
#[tokio::test]
async fn a_listener_of_another_kind_is_not_taken_in_part() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut gateway = Setup::reloaded_by_hand(&pki, &upstream).start().await;
    let client = gateway.client(&pki);
    gateway.setup.door = Door::Unix;
    gateway.setup.orders = gateway.setup.orders.replace(ORDERS, "uid:1000");
    gateway.setup.write();
    let word = gateway.hang_up().await;
    assert_eq!(word["message"], NOT_RELOADED, "{word}");
    let fault = text(&word, "fault");
    assert!(
        fault.contains("gateway.toml:1:2: listener: it's of another kind"),
        "{fault}"
    );
    assert_eq!(told(&client.call(WRITE, "{}").await), (200, "done"));
    assert_eq!(gateway.metric(LAST_RELOAD_SUCCESSFUL).await, 0.0);
}

/// Even if the process couldn't start with it.
#[tokio::test]
async fn what_waits_for_a_restart_keeps_nothing_else_waiting() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::reloaded_by_hand(&pki, &upstream).start().await;
    let client = gateway.client(&pki);
    tools::change(&gateway.setup.path(CONFIG), |text| {
        text.replace("connections_max = 2000", "connections_max = 1000000")
            .replace("[callers.orders]", "[callers.orders]\npaused = true")
    });
    gateway.reload().await;
    assert_eq!(told(&client.call(WRITE, "{}").await), (503, "not-sent"));
}

#[tokio::test]
async fn what_needs_a_restart_is_said() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::reloaded_by_hand(&pki, &upstream).start().await;
    let client = gateway.client(&pki);
    assert_eq!(told(&client.call(WRITE, "{}").await), (200, "done"));
    let folder = gateway.setup.folder.path();
    let good = Backup::of(folder);
    tools::change(&folder.join(CONFIG), |text| {
        let text = text.replace(
            "[admin]\naddress = \"127.0.0.1:0\"",
            "[admin]\naddress = \"127.0.0.1:1\"",
        );
        let text = text.replace(
            "[listener]\naddress = \"127.0.0.1:0\"",
            "[listener]\naddress = \"127.0.0.1:2\"",
        );
        text.replace("[runtime]\n", "[runtime]\nworkers = 3\n")
    });
    // With nothing else, with something that can be taken, and again until it's restarted.
    for key in [None, Some("new-key"), None] {
        if let Some(key) = key {
            tools::write(&gateway.setup.path("main.key"), key, 0o600);
        }
        let mark = gateway.mark();
        gateway.signal("HUP");
        let event = gateway
            .event_since(mark, |event| event["needs_restart"].is_string())
            .await;
        let needs = text(&event, "needs_restart");
        for wanted in ["listener.address", "admin.address", "runtime.workers"] {
            assert!(needs.contains(wanted), "{event}");
        }
        let word = gateway.word_on_reload(mark).await;
        let taken = key.map_or(UNCHANGED, |_| RELOADED);
        assert_eq!(word["message"], taken, "{word}");
        assert_eq!(
            told(&client.call(WRITE, "{}").await),
            (200, "done"),
            "on the same addresses as before"
        );
    }
    assert!(upstream.last().is_signed_with("new-key"));
    // Once it's taken back there's nothing more to say.
    good.restore();
    let mark = gateway.mark();
    gateway.reload().await;
    gateway.hang_up().await;
    let lines = gateway.printed()[mark..].join("\n");
    assert!(!lines.contains("needs_restart"), "{lines}");
}

#[tokio::test]
async fn a_thousand_accounts() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::reloaded_by_hand(&pki, &upstream);
    setup.include_folder("accounts.d");
    setup.orders.push_str("default_account = \"main\"\n");
    fs::create_dir(setup.path("keys")).unwrap();
    for file in 0..10 {
        let mut tables = String::new();
        for number in 0..100 {
            let name = format!("store-{file}{number:02}");
            tables += &format!(
                "[accounts.{name}]\nupstream = \"kybio\"\napp_id = \"{name}\"\napp_key_file = \"../keys/{name}\"\n"
            );
            let key = setup.path(&format!("keys/{name}"));
            tools::write(&key, format!("key-of-{name}"), 0o600);
        }
        fs::write(setup.path(&format!("accounts.d/{file}.toml")), tables).unwrap();
    }
    let gateway = setup.start().await;
    let client = gateway.client(&pki);
    let call = async |account: &str, key: &str| {
        let headers = [("kybio-gateway-account", account)];
        let answer = client.call_with(WRITE, &headers, "{}").await;
        assert_eq!(told(&answer), (200, "done"), "{account}");
        assert!(upstream.last().is_signed_with(key), "{account}");
    };
    call("store-000", "key-of-store-000").await;
    call("store-999", "key-of-store-999").await;
    tools::write(&gateway.setup.path("keys/store-999"), "new-key", 0o600);
    let folder = gateway.setup.path("accounts.d");
    tools::change(&folder.join("5.toml"), |text| {
        text.replace("app_id = \"store-500\"", "app_id = \"STORE500\"")
    });
    let event = gateway.reload().await;
    assert_eq!(
        event["changes"],
        "accounts.store-500.app_id, accounts.store-999.app_key_file (new content)"
    );
    assert!(event["took_ms"].is_number(), "{event}");
    println!("1,000 accounts in {} ms", event["took_ms"]);
    call("store-000", "key-of-store-000").await;
    call("store-999", "new-key").await;
    call("store-500", "key-of-store-500").await;
    assert!(upstream.last().text().contains("STORE500"));
    // Hundreds of changes aren't a line of hundreds of kilobytes.
    for file in 0..10 {
        fs::remove_file(folder.join(format!("{file}.toml"))).unwrap();
    }
    let event = gateway.reload().await;
    let length = text(&event, "changes").len();
    assert!(length < 32 * 1024, "{length}");
    call("main", APP_KEY).await;
}

/// The kill switch is a file that's put beside the others, and taken away again.
#[tokio::test]
async fn pausing_by_reload_is_a_kill_switch() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::reloaded_by_hand(&pki, &upstream);
    setup.include_folder("pauses.d");
    setup.account("other", "zyxwvutsrqponm", "other-key");
    setup.orders.push_str("default_account = \"main\"\n");
    setup.more.push_str("[callers.tills]\nidentities = [\"dns:tills.internal\"]\naccounts = [\"main\"]\noperations = [\"*\"]\n");
    let gateway = setup.start().await;
    let tills = gateway.client_with(
        &pki,
        &pki.issue(&Wanted {
            dns: &["tills.internal"],
            ..Wanted::default()
        }),
    );
    let (orders, http2) = (gateway.client(&pki), gateway.http2_client(&pki));
    // Who calls, for which account, what; and what pauses it.
    let calls = [
        (&orders, "main", WRITE),
        (&http2, "main", WRITE),
        (&orders, "other", WRITE),
        (&orders, "main", READ),
        (&tills, "main", WRITE),
    ];
    let all = async |paused: [bool; 5], what: &str| {
        for ((client, account, operation), paused) in calls.into_iter().zip(paused) {
            let headers = [("kybio-gateway-account", account)];
            let before = upstream.seen().len();
            let answer = client.call_with(operation, &headers, "{}").await;
            if paused {
                let refusal = (503, "paused".into(), "not-sent".into(), "yes".into());
                assert_eq!(answer.refusal(), refusal, "{what}");
                assert!(answer.text().contains(what), "{}", answer.text());
                assert_eq!(upstream.seen().len(), before, "{what}");
            } else {
                assert_eq!(told(&answer), (200, "done"), "{what}");
            }
        }
    };
    all([false; 5], "").await;
    let file = gateway.setup.path("pauses.d/now.toml");
    for (table, what, paused) in [
        ("accounts.main", "main", [true, true, false, true, true]),
        ("callers.orders", "orders", [true, true, true, true, false]),
        (
            "operations.\"customerOpenApi/add\"",
            WRITE,
            [true, true, true, false, true],
        ),
    ] {
        fs::write(&file, format!("[{table}]\npaused = true\n")).unwrap();
        let event = gateway.reload().await;
        assert!(text(&event, "changes").contains(table), "{event}");
        all(paused, what).await;
        fs::remove_file(&file).unwrap();
        gateway.reload().await;
        all([false; 5], what).await;
    }
    let accepted = "kybio_gateway_downstream_connections_accepted_total";
    assert_eq!(
        gateway.metric(accepted).await,
        3.0,
        "on the same connections all the time"
    );
}

/// What holds when the process is asked to end holds to its end, also where the timer has just seen a change.
#[tokio::test]
async fn nothing_is_reloaded_once_the_end_has_begun() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.runtime.push_str("reload_interval = \"1s\"\n");
    let mut gateway = Gateway::start(setup, &["--set", "runtime.drain_delay=3s"]).await;
    // The files don't come to rest before the end has begun: the timer waits for that.
    let (mut number, mut changes) = (0, interval(Duration::from_millis(100)));
    while number < 25 {
        changes.tick().await;
        number += 1;
        let key = format!("key-number-{number}");
        tools::write(&gateway.setup.path("main.key"), key, 0o600);
    }
    gateway.signal("TERM");
    assert_eq!(gateway.ended().await.code(), Some(0));
    let lines = gateway.printed();
    let end = lines.iter().position(|line| line.contains("asked to end"));
    let after = lines[end.unwrap()..].join("\n");
    assert!(!after.contains(RELOADED), "{after}");
}
