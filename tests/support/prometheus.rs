//! Prometheus and Alertmanager themselves, as Debian has them, on ports of their own and with nothing kept.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::support::client;
use crate::support::tools;
use crate::support::tools::PATIENCE;

/// A program that serves HTTP on loopback until it's dropped.
struct Server {
    child: Child,
    address: SocketAddr,
    _folder: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts it at a port that nobody has, and waits until it's ready. Somebody may be quicker to take the port: then it's tried again.
    async fn start(program: &str, command: impl Fn(&mut Command, &Path, SocketAddr)) -> Self {
        for _ in 0..5 {
            let free = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = free.local_addr().unwrap();
            drop(free);
            let folder = tempfile::tempdir().unwrap();
            let mut run = Command::new(program);
            command(&mut run, folder.path(), address);
            let child = run
                .current_dir(folder.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap_or_else(|error| panic!("{program}: {error} (see .ci/install)"));
            let mut server = Self {
                child,
                address,
                _folder: folder,
            };
            let patience = Instant::now() + PATIENCE;
            while Instant::now() < patience && server.child.try_wait().unwrap().is_none() {
                let connected = tokio::net::TcpStream::connect(address).await;
                if connected.is_ok() && client::get(address, "/-/ready").await.0 == 200 {
                    return server;
                }
                tokio::task::yield_now().await;
            }
        }
        panic!("{program} doesn't start");
    }
}

/// One that scrapes a gateway, and knows these rules.
pub struct Prometheus(Server);

impl Prometheus {
    pub async fn start(target: SocketAddr, rules: &Path, alertmanager: &Alertmanager) -> Self {
        let config = format!(
            "global:\n  scrape_interval: 500ms\n  scrape_timeout: 500ms\n  evaluation_interval: 500ms\n\
             rule_files: [{rules:?}]\n\
             alerting:\n  alertmanagers:\n    - static_configs:\n        - targets: [{:?}]\n\
             scrape_configs:\n  - job_name: kybio-gateway\n    static_configs:\n      - targets: [{:?}]\n",
            alertmanager.0.address.to_string(),
            target.to_string(),
        );
        let server = Server::start("prometheus", |command, folder, address| {
            tools::write(&folder.join("prometheus.yml"), &config, 0o644);
            command
                .arg("--config.file=prometheus.yml")
                .arg("--storage.tsdb.path=data")
                .arg(format!("--web.listen-address={address}"));
        });
        Self(server.await)
    }

    /// What an expression comes to now: labels and value of each series.
    pub async fn query(&self, expression: &str) -> Vec<(Value, f64)> {
        let path = format!("/api/v1/query?query={}", escaped(expression));
        let (status, text) = client::get(self.0.address, &path).await;
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (status, &answer["status"]),
            (200, &"success".into()),
            "{expression}: {text}"
        );
        let result = answer["data"]["result"].as_array().unwrap();
        let series = result.iter().map(|series| {
            let value = series["value"][1].as_str().unwrap().parse().unwrap();
            (series["metric"].clone(), value)
        });
        series.collect()
    }

    /// Waits until an expression comes to something that is so.
    pub async fn until(
        &self,
        expression: &str,
        wanted: impl Fn(&[(Value, f64)]) -> bool,
    ) -> Vec<(Value, f64)> {
        let patience = Instant::now() + PATIENCE;
        loop {
            let found = self.query(expression).await;
            if wanted(&found) {
                return found;
            }
            assert!(Instant::now() < patience, "{expression}: {found:?}");
        }
    }

    /// The rules as it has loaded them.
    pub async fn rules(&self) -> Value {
        let (_, text) = client::get(self.0.address, "/api/v1/rules").await;
        serde_json::from_str::<Value>(&text).unwrap()["data"]["groups"].clone()
    }
}

/// One that is told of alerts.
pub struct Alertmanager(Server);

impl Alertmanager {
    pub async fn start() -> Self {
        let server = Server::start("prometheus-alertmanager", |command, folder, address| {
            let config = "route:\n  receiver: nobody\nreceivers:\n  - name: nobody\n";
            tools::write(&folder.join("alertmanager.yml"), config, 0o644);
            command
                .arg("--config.file=alertmanager.yml")
                .arg("--storage.path=data")
                .arg("--cluster.listen-address=")
                .arg(format!("--web.listen-address={address}"));
        });
        Self(server.await)
    }

    /// Waits for an alert of this name, and returns all of that name.
    pub async fn alerts(&self, name: &str) -> Vec<Value> {
        let patience = Instant::now() + PATIENCE;
        loop {
            let (_, text) = client::get(self.0.address, "/api/v2/alerts").await;
            let all: Vec<Value> = serde_json::from_str(&text).unwrap();
            let named: Vec<_> = all
                .iter()
                .filter(|alert| alert["labels"]["alertname"] == name)
                .cloned()
                .collect();
            if !named.is_empty() {
                return named;
            }
            assert!(Instant::now() < patience, "{name}: {text}");
        }
    }
}

fn escaped(text: &str) -> String {
    let each = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        other => format!("%{other:02X}"),
    };
    text.bytes().map(each).collect()
}
