//! What systemd is told, by a socket of its own kind: ready, alive, stopping. And that it takes the units as they are.

use std::process::{Command, id};

use tempfile::TempDir;
use tokio::net::UnixDatagram;

use crate::support::tools::PATIENCE;
use crate::support::{Gateway, Pki, Setup, Upstream, tools};

/// The socket that systemd listens on for what its services tell it.
struct Manager {
    socket: UnixDatagram,
    folder: TempDir,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        Self { socket, folder }
    }

    /// As systemd sets it for a service, and `more`.
    fn environment(&self, more: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
        let socket = self.folder.path().join("notify").display().to_string();
        let more = more
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()));
        [("NOTIFY_SOCKET", socket)]
            .into_iter()
            .chain(more)
            .collect()
    }

    /// What it's told, line by line, up to this one.
    async fn hears(&self, last: &str) -> Vec<String> {
        let mut heard = Vec::new();
        let hearing = async {
            let mut buffer = [0; 4_096];
            while heard.last().is_none_or(|line| line != last) {
                let length = self.socket.recv(&mut buffer).await.unwrap();
                let words = std::str::from_utf8(&buffer[..length]).unwrap();
                heard.extend(words.lines().map(str::to_owned));
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, hearing).await;
        assert!(in_time.is_ok(), "{last} doesn't come: {heard:?}");
        heard
    }
}

async fn started(
    pki: &Pki,
    upstream: &Upstream,
    environment: Vec<(&'static str, String)>,
) -> Gateway {
    let setup = Setup {
        environment,
        ..Setup::new(pki, Some(upstream.address))
    };
    Gateway::start(setup, &["--set", "runtime.workers=3"]).await
}

#[tokio::test]
async fn it_is_ready_once_callers_can_connect_and_stopping_when_asked_to_end() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let manager = Manager::new();
    let mut gateway = started(&pki, &upstream, manager.environment(&[])).await;
    let heard = manager.hears("READY=1").await;
    assert_eq!(
        heard,
        [
            format!("STATUS=serving at {}", gateway.address),
            "READY=1".to_owned()
        ]
    );
    let client = gateway.client(&pki);
    assert_eq!(client.call("customerOpenApi/add", "{}").await.status, 200);
    gateway.signal("TERM");
    // Nobody asked whether it's alive.
    assert_eq!(manager.hears("STOPPING=1").await, ["STOPPING=1"]);
    assert_eq!(gateway.ended().await.code(), Some(0));
}

#[tokio::test]
async fn it_says_when_a_reload_begins_and_when_it_is_over_and_how_it_went() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let manager = Manager::new();
    let gateway = started(&pki, &upstream, manager.environment(&[])).await;
    manager.hears("READY=1").await;
    let good = "STATUS=serving what is configured";
    let refused =
        "STATUS=serving what was configured before: what is written now was refused, see the log";
    for (authority, status) in [(String::new(), refused), (pki.certificate(), good)] {
        tools::write(&gateway.setup.path("callers-ca.pem"), authority, 0o644);
        gateway.signal("HUP");
        let heard = manager.hears("READY=1").await;
        assert_eq!(heard[0], "RELOADING=1");
        // By systemd's own clock, so that it knows which reload is meant.
        assert!(heard[1].starts_with("MONOTONIC_USEC="), "{heard:?}");
        assert_eq!(heard[2..], [status, "READY=1"]);
    }
}

/// A time of 400 ms, of which it takes half; no test can be sure how soon it's told, but it's told again and again.
#[tokio::test]
async fn it_says_that_it_is_alive_where_it_is_watched() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let manager = Manager::new();
    let watched = manager.environment(&[("WATCHDOG_USEC", "400000")]);
    let mut gateway = started(&pki, &upstream, watched).await;
    for _ in 0..5 {
        manager.hears("WATCHDOG=1").await;
    }
    gateway.signal("TERM");
    manager.hears("STOPPING=1").await;
    assert_eq!(gateway.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_watch_over_another_process_is_not_answered() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let manager = Manager::new();
    let own = id().to_string();
    let watched = [("WATCHDOG_USEC", "2000"), ("WATCHDOG_PID", own.as_str())];
    let mut gateway = started(&pki, &upstream, manager.environment(&watched)).await;
    manager.hears("READY=1").await;
    gateway.signal("TERM");
    let heard = manager.hears("STOPPING=1").await;
    assert_eq!(heard, ["STOPPING=1"]);
    assert_eq!(gateway.ended().await.code(), Some(0));
}

/// A gateway that nobody can be told of serves all the same.
#[tokio::test]
async fn a_manager_that_is_gone_does_no_harm() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let manager = Manager::new();
    let environment = manager.environment(&[("WATCHDOG_USEC", "2000")]);
    drop(manager);
    let gateway = started(&pki, &upstream, environment).await;
    gateway
        .event(|event| event["message"] == "systemd can't be told")
        .await;
    let answer = gateway.client(&pki).call("customerOpenApi/add", "{}").await;
    assert_eq!(answer.status, 200);
}

/// systemd says on standard error what it doesn't know or can't use, and exits with 0 all the same.
#[test]
fn systemd_takes_the_units_without_a_word() {
    let folder = tempfile::tempdir().unwrap();
    let program = tools::binary().get_program().to_owned();
    let verify = |change: &dyn Fn(String) -> String| {
        let mut command = Command::new("systemd-analyze");
        command.arg("verify");
        let mut units = 0;
        for entry in std::fs::read_dir(tools::root().join("deploy/systemd")).unwrap() {
            let path = entry.unwrap().path();
            // The program isn't where it will be.
            let text = std::fs::read_to_string(&path)
                .unwrap()
                .replace("/usr/local/bin/kybio-gateway", program.to_str().unwrap());
            let unit = folder.path().join(path.file_name().unwrap());
            std::fs::write(&unit, change(text)).unwrap();
            command.arg(unit);
            units += 1;
        }
        assert_eq!(units, 2);
        tools::run(&mut command)
    };
    let output = verify(&|text| text);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(tools::stderr(&output), "");
    assert_eq!(tools::stdout(&output), "");
    // It does speak up where there's something to say.
    let output = verify(&|text| text.replace("WatchdogSec=", "WatchDogSec="));
    assert!(tools::stderr(&output).contains("WatchDogSec"), "{output:?}");
}
