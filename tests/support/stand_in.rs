//! The stand-in host as a process of its own, with an account that has the usual appId and key.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::gateway::APP_KEY;
use crate::support::pki::Pki;
use crate::support::tools;
use crate::support::tools::PATIENCE;

/// A running one.
pub struct StandIn {
    child: Child,
    pub folder: TempDir,
    pub address: SocketAddr,
    admin: String,
    pub banner: Vec<String>,
    log: mpsc::Receiver<String>,
}

impl StandIn {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    pub fn over_tls() -> Self {
        Self::start_with(&["--certificate", "host.pem", "--private-key", "host.key"])
    }

    pub fn start_with(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pki = Pki::new();
        let host = pki.server("upstream.test");
        for (name, text) in [
            ("main.key", APP_KEY),
            ("ca.pem", &pki.certificate()),
            ("host.pem", &host.certificate),
            ("host.key", &host.key),
        ] {
            tools::write(&folder.path().join(name), text, 0o600);
        }
        let mut child = tools::binary()
            .args(["simulate", "--address", "127.0.0.1:0"])
            .args(["--admin", "127.0.0.1:0", "--quota-per-day", "1000000"])
            .args(["--account", "abcdefghijklmn=main.key"])
            .args(more)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let banner: Vec<_> = lines.by_ref().take(4).map(Result::unwrap).collect();
        let address = banner[0].rsplit_once("://").unwrap().1.parse().unwrap();
        let admin = banner[3].rsplit_once(' ').unwrap().1;
        let (sender, log) = mpsc::channel();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Self {
            child,
            folder,
            address,
            admin: admin.trim_end_matches("/faults").to_owned(),
            banner,
            log,
        }
    }

    /// A control call, made with curl as anyone would.
    pub fn control(&self, arguments: &[&str], path: &str) -> (u16, Value) {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--max-time", "20"])
            .args(["--write-out", "%{http_code}"])
            .args(arguments)
            .arg(format!("{}{path}", self.admin));
        let output = tools::run(&mut curl);
        let text = tools::stdout(&output);
        let (json, status) = text
            .rsplit_once('\n')
            .unwrap_or_else(|| panic!("{text:?} {}", tools::stderr(&output)));
        (
            status.parse().unwrap(),
            serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}")),
        )
    }

    pub fn set(&self, fault: &Value) {
        let (status, json) = self.control(&["--data", &fault.to_string()], "/faults");
        assert_eq!(status, 200, "{fault}: {json}");
    }

    /// What is set, and how often anything struck.
    pub fn faults(&self) -> (Value, Value) {
        let (status, json) = self.control(&[], "/faults");
        assert_eq!(status, 200);
        (json["faults"].clone(), json["struck"].clone())
    }

    /// Waits for a log line with these words.
    pub fn logged(&self, words: &[&str]) {
        loop {
            let line = self.log.recv_timeout(PATIENCE).unwrap();
            if words.iter().all(|word| line.contains(word)) {
                return;
            }
        }
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = tools::run(Command::new("kill").args(["-s", name, &pid]));
        assert!(sent.status.success());
    }

    pub fn end(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.child.wait().unwrap()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
