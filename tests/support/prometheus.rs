//! Prometheus and Alertmanager themselves, as Debian has them, on ports of their own and with nothing kept.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, mpsc};

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
            alertmanager.server.address.to_string(),
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

/// One that is told of alerts, and tells us.
pub struct Alertmanager {
    server: Server,
    told: mpsc::Receiver<Value>,
    all: Mutex<Vec<Value>>,
}

impl Alertmanager {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Some(notice) = stream.ok().and_then(hook) else {
                    continue;
                };
                if tell.send(notice).is_err() {
                    return;
                }
            }
        });
        let config = format!(
            "route:\n  receiver: us\n  group_by: [alertname]\n  group_wait: 0s\n  group_interval: 1s\n\
             receivers:\n  - name: us\n    webhook_configs:\n      - url: {url}\n        send_resolved: false\n"
        );
        let server = Server::start("prometheus-alertmanager", |command, folder, address| {
            tools::write(&folder.join("alertmanager.yml"), &config, 0o644);
            command
                .arg("--config.file=alertmanager.yml")
                .arg("--storage.path=data")
                .arg("--cluster.listen-address=")
                .arg(format!("--web.listen-address={address}"));
        });
        Self {
            server: server.await,
            told,
            all: Mutex::default(),
        }
    }

    /// Waits for the first word on an alert.
    pub async fn told(&self, name: &str) -> Value {
        let patience = Instant::now() + PATIENCE;
        loop {
            self.hear();
            let all = self.all.lock().unwrap().clone();
            let mut all = all.into_iter();
            if let Some(found) = all.find(|told| told["groupLabels"]["alertname"] == name) {
                return found;
            }
            assert!(Instant::now() < patience, "{name}");
            tokio::task::yield_now().await;
        }
    }

    /// How many words there were on it so far.
    pub fn times(&self, name: &str) -> usize {
        self.hear();
        let all = self.all.lock().unwrap();
        all.iter()
            .filter(|told| told["groupLabels"]["alertname"] == name)
            .count()
    }

    fn hear(&self) {
        self.all.lock().unwrap().extend(self.told.try_iter());
    }
}

/// What somebody posts, who is told that it was taken.
fn hook(stream: std::net::TcpStream) -> Option<Value> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        if line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    reader.get_mut().write_all(answer).ok()?;
    serde_json::from_slice(&body).ok()
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
