//! The gateway under test: the real binary, a configuration in a folder of its own, and everything that it prints.

use std::fmt::Write;
use std::io::BufRead;
use std::io::BufReader;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::process::Child;
use std::process::ChildStderr;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Output;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::thread;

use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::watch;

use crate::support::client::Client;
use crate::support::pki::Pair;
use crate::support::pki::Pki;
use crate::support::tools;
use crate::support::tools::PATIENCE;
use crate::support::upstream::Upstream;

pub const ORDERS: &str = "spiffe://shop.example/orders";
pub const APP_ID: &str = "abcdefghijklmn";
pub const APP_KEY: &str = "roger1AppKey";

/// Where callers connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// TCP with TLS, any port.
    Tls,
    /// TCP without TLS, any port.
    Plaintext,
    /// `gateway.sock` in the test's folder.
    Unix,
}

impl Door {
    fn lines(self) -> &'static str {
        match self {
            Self::Tls => {
                "address = \"127.0.0.1:0\"\ncertificate = \"gateway.pem\"\nprivate_key = \"gateway.key\"\nclient_ca = \"callers-ca.pem\""
            }
            Self::Plaintext => "address = \"127.0.0.1:0\"\nplaintext = true",
            Self::Unix => "address = \"unix:gateway.sock\"",
        }
    }
}

/// What becomes of a reload, as the log says it.
pub const RELOADED: &str = "configuration reloaded";
pub const UNCHANGED: &str = "configuration unchanged";
pub const NOT_RELOADED: &str = "configuration not reloaded";

/// What a test wants configured. The rest is the usual: one account `main`, one caller `orders` that may do everything.
pub struct Setup {
    pub folder: TempDir,
    pub upstream: Option<SocketAddr>,
    pub door: Door,
    /// Lines before all tables.
    pub top: String,
    /// Lines of these tables.
    pub listener: String,
    pub kybio: String,
    pub orders: String,
    pub runtime: String,
    /// Whole tables besides.
    pub more: String,
    /// The upstream's, where it isn't the usual.
    pub port: Option<u16>,
    pub level: &'static str,
    /// Environment variables, of which there are none otherwise.
    pub environment: Vec<(&'static str, String)>,
}

impl Setup {
    pub fn new(pki: &Pki, upstream: Option<SocketAddr>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = pki.server("gateway.test");
        for (file, text) in [
            ("gateway.pem", &server.certificate),
            ("callers-ca.pem", &pki.certificate()),
            ("upstream-ca.pem", &pki.certificate()),
        ] {
            tools::write(&folder.path().join(file), text, 0o644);
        }
        tools::write(&folder.path().join("gateway.key"), &server.key, 0o600);
        tools::write(&folder.path().join("main.key"), APP_KEY, 0o600);
        let orders =
            format!("identities = [{ORDERS:?}]\naccounts = [\"*\"]\noperations = [\"*\"]\n");
        let none = String::new;
        Self {
            folder,
            upstream,
            door: Door::Tls,
            top: none(),
            listener: none(),
            kybio: none(),
            orders,
            runtime: none(),
            more: none(),
            port: None,
            level: "info",
            environment: Vec::new(),
        }
    }

    /// Where only a signal reloads.
    pub fn reloaded_by_hand(pki: &Pki, upstream: &Upstream) -> Self {
        let mut setup = Self::new(pki, Some(upstream.address));
        setup.runtime.push_str("reload_interval = \"0s\"\n");
        setup
    }

    /// All callers are one here, at one address: it may have so many connections, as many as there are.
    pub fn connections_of_one(&mut self, count: usize) {
        let _ = write!(
            self.listener,
            "connections_per_address_max = {count}\nconnections_per_caller_max = {count}\n"
        );
    }

    /// Tables come and go as files of this folder.
    pub fn include_folder(&mut self, name: &str) {
        std::fs::create_dir(self.path(name)).unwrap();
        self.top = format!("include = [\"{name}/*.toml\"]\n");
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    /// One more account, with its key file.
    pub fn account(&mut self, name: &str, app_id: &str, key: &str) {
        tools::write(&self.path(&format!("{name}.key")), key, 0o600);
        let _ = write!(
            self.more,
            "[accounts.{name}]\nupstream = \"kybio\"\napp_id = {app_id:?}\napp_key_file = \"{name}.key\"\n"
        );
    }

    /// Writes the configuration.
    pub fn write(&self) -> PathBuf {
        let door = self.door.lines();
        let Self {
            top,
            listener,
            kybio,
            orders,
            runtime,
            more,
            level,
            port,
            ..
        } = self;
        let resolve = self
            .upstream
            .map(|address| format!("resolve = [\"{address}\"]\n"))
            .unwrap_or_default();
        let port = port.map(|port| format!(":{port}")).unwrap_or_default();
        let text = format!(
            "{top}[listener]\n{door}\nconnections_max = 2000\n{listener}\n\
             [admin]\naddress = \"127.0.0.1:0\"\n\
             [upstreams.kybio]\nbase_url = \"https://upstream.test{port}/pospal-api2\"\nroots = \"upstream-ca.pem\"\n{resolve}{kybio}\n\
             [accounts.main]\nupstream = \"kybio\"\napp_id = \"{APP_ID}\"\napp_key_file = \"main.key\"\n\
             [callers.orders]\n{orders}\n\
             [log]\nlevel = \"{level}\"\n\
             [runtime]\ndrain_delay = \"0s\"\ndrain_timeout = \"5s\"\n{runtime}{more}"
        );
        let path = self.path("gateway.toml");
        std::fs::write(&path, text).unwrap();
        path
    }

    pub async fn start(self) -> Gateway {
        Gateway::start(self, &[]).await
    }
}

/// How the process is started: by a shell that does something first, and whose place it takes.
pub struct Launch {
    before: String,
    stdin: Stdio,
    stdout: Stdio,
}

impl Default for Launch {
    fn default() -> Self {
        Self::after("")
    }
}

impl Launch {
    /// After these commands.
    pub fn after(before: &str) -> Self {
        Self {
            before: before.to_owned(),
            stdin: Stdio::null(),
            stdout: Stdio::piped(),
        }
    }

    /// With one or two listening sockets, as sd_listen_fds(3) has it: from descriptor 3 on, for this very process.
    pub fn passing(sockets: &[BorrowedFd<'_>]) -> Self {
        let before = match sockets.len() {
            1 => "exec 3<&0 </dev/null; export LISTEN_FDS=1",
            2 => "exec 3<&0 4<&1 </dev/null >/dev/null; export LISTEN_FDS=2",
            other => panic!("{other} sockets"),
        };
        let passed = |index: usize| {
            let socket = sockets.get(index)?;
            Some(Stdio::from(socket.try_clone_to_owned().unwrap()))
        };
        Self {
            before: format!("{before} LISTEN_PID=$$;"),
            stdin: passed(0).unwrap(),
            stdout: passed(1).unwrap_or_else(Stdio::piped),
        }
    }

    /// Runs one that can't serve to its end.
    pub fn refused(self, setup: &Setup, flags: &[&str]) -> Output {
        let mut child = self
            .command(setup, flags)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = Vec::new();
        for line in BufReader::new(child.stderr.take().unwrap()).lines() {
            let line = line.unwrap();
            stderr.extend_from_slice(line.as_bytes());
            stderr.push(b'\n');
            if line.contains("\"listening\"") {
                child.kill().unwrap();
                panic!("it serves: {}", String::from_utf8_lossy(&stderr));
            }
        }
        Output {
            status: child.wait().unwrap(),
            stdout: Vec::new(),
            stderr,
        }
    }

    /// `serve`, with everything that it needs, not started yet.
    fn command(self, setup: &Setup, flags: &[&str]) -> Command {
        let mut command = Command::new("/bin/sh");
        command
            .env_clear()
            .envs(setup.environment.iter().cloned())
            .args(["-c", &format!("{} exec \"$0\" \"$@\"", self.before)])
            .arg(tools::binary().get_program())
            .args(["serve", "--config"])
            .arg(setup.write())
            .args(flags)
            .stdin(self.stdin)
            .stdout(self.stdout);
        command
    }
}

/// A running gateway.
pub struct Gateway {
    /// Of a unix socket it's unspecified.
    pub address: SocketAddr,
    pub admin: SocketAddr,
    pub setup: Setup,
    child: Child,
    printed: Arc<Mutex<Vec<String>>>,
    lines: watch::Receiver<usize>,
}

impl Gateway {
    pub async fn start(setup: Setup, flags: &[&str]) -> Self {
        Self::start_by(Launch::default(), setup, flags).await
    }

    pub async fn start_by(launch: Launch, setup: Setup, flags: &[&str]) -> Self {
        let mut child = launch
            .command(&setup, flags)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let printed = Arc::new(Mutex::new(Vec::new()));
        let (count, lines) = watch::channel(0);
        let count = Arc::new(count);
        collect(child.stderr.take().unwrap(), &printed, &count);
        if let Some(stdout) = child.stdout.take() {
            collect(stdout, &printed, &count);
        }
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut gateway = Self {
            address: unknown,
            admin: unknown,
            setup,
            child,
            printed,
            lines,
        };
        let listening = gateway.event(|event| event["message"] == "listening").await;
        if gateway.setup.door != Door::Unix {
            gateway.address = listening["address"].as_str().unwrap().parse().unwrap();
        }
        gateway.admin = listening["admin"].as_str().unwrap().parse().unwrap();
        gateway
    }

    /// A client with the certificate of `orders`.
    pub fn client(&self, pki: &Pki) -> Client {
        self.client_with(pki, &pki.caller(ORDERS))
    }

    pub fn client_with(&self, pki: &Pki, pair: &Pair) -> Client {
        Client::new(
            self.address,
            pki.client_config(Some(pair), &["http/1.1"], rustls::ALL_VERSIONS),
        )
    }

    pub fn http2_client(&self, pki: &Pki) -> Client {
        let pair = pki.caller(ORDERS);
        Client::new(
            self.address,
            pki.client_config(Some(&pair), &["h2"], rustls::ALL_VERSIONS),
        )
    }

    /// A client without TLS.
    pub fn plain_client(&self) -> Client {
        match self.setup.door {
            Door::Unix => Client::unix(&self.setup.path("gateway.sock")),
            Door::Plaintext | Door::Tls => Client::plain(self.address),
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its open descriptors.
    pub fn descriptors(&self) -> usize {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.pid()));
        open.unwrap().count()
    }

    /// What it holds of memory now, in KiB.
    pub fn memory_kib(&self) -> u64 {
        self.status_kib("VmRSS:")
    }

    /// The most that it has held of memory since [`forget_peak`](Self::forget_peak), in KiB.
    pub fn memory_peak_kib(&self) -> u64 {
        self.status_kib("VmHWM:")
    }

    /// proc_pid_clear_refs(5).
    pub fn forget_peak(&self) {
        std::fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").unwrap();
    }

    fn status_kib(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
        kib.parse().unwrap()
    }

    /// All lines so far, of both streams.
    pub fn printed(&self) -> Vec<String> {
        self.printed.lock().unwrap().clone()
    }

    /// The lines after the mark; of thousands, only those that aren't a request's.
    fn printed_since(&self, mark: usize) -> Vec<String> {
        let mut lines = self.printed.lock().unwrap()[mark..].to_vec();
        if lines.len() > 500 {
            lines.retain(|line| !line.contains("\"message\":\"request\""));
        }
        lines
    }

    /// So many lines there are by now: for [`event_since`](Self::event_since).
    pub fn mark(&self) -> usize {
        self.printed.lock().unwrap().len()
    }

    /// Waits for a log line that is so.
    pub async fn event(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        self.event_since(0, wanted).await
    }

    /// Waits for a log line that is so and that came after the mark.
    pub async fn event_since(&self, mark: usize, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut lines = self.lines.clone();
        let mut looked_at = mark;
        let found = async {
            loop {
                lines.borrow_and_update();
                // Each line is looked at once: under load there are thousands.
                let new = self.printed.lock().unwrap()[looked_at..].to_vec();
                looked_at += new.len();
                let mut events = new
                    .iter()
                    .filter_map(|line| serde_json::from_str::<Value>(line).ok());
                if let Some(event) = events.find(|event| wanted(event)) {
                    return event;
                }
                assert!(
                    lines.changed().await.is_ok(),
                    "it ended: {:#?}",
                    self.printed()
                );
            }
        };
        match tokio::time::timeout(PATIENCE, found).await {
            Ok(event) => event,
            Err(_) => panic!("no such event: {:#?}", self.printed_since(mark)),
        }
    }

    /// The log line of one request.
    pub async fn request_event(&self, id: &str) -> Value {
        self.event(|event| event["request_id"] == id).await
    }

    pub async fn admin_get(&self, path: &str) -> (u16, String) {
        super::client::get(self.admin, path).await
    }

    pub async fn metrics(&self) -> String {
        self.admin_get("/metrics").await.1
    }

    /// The value of one series; 0 if it isn't there.
    pub async fn metric(&self, series: &str) -> f64 {
        let text = self.metrics().await;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Waits until a series has come to that, and returns what it's at.
    pub async fn metric_reaches(&self, series: &str, least: f64) -> f64 {
        let reached = async {
            loop {
                let value = self.metric(series).await;
                if value >= least {
                    return value;
                }
            }
        };
        match tokio::time::timeout(PATIENCE, reached).await {
            Ok(value) => value,
            Err(_) => panic!("{series} is {}, not {least}", self.metric(series).await),
        }
    }

    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        assert!(
            tools::run(Command::new("kill").args(["-s", name, &pid]))
                .status
                .success()
        );
    }

    /// Its log is silent from now on: a line for each request would cost more than the request.
    pub async fn silence(&self) {
        tools::change(&self.setup.path("gateway.toml"), |text| {
            text.replace("level = \"info\"", "level = \"error\"")
        });
        self.signal("HUP");
        let reloaded = "kybio_gateway_config_reloads_total{result=\"reloaded\"}";
        self.metric_reaches(reloaded, 1.0).await;
    }

    /// Asks for a reload, and waits for the first word on it.
    pub async fn hang_up(&self) -> Value {
        let mark = self.mark();
        self.signal("HUP");
        self.word_on_reload(mark).await
    }

    /// The first word on a reload after the mark.
    pub async fn word_on_reload(&self, mark: usize) -> Value {
        self.event_since(mark, |event| {
            [RELOADED, UNCHANGED, NOT_RELOADED].contains(&event["message"].as_str().unwrap_or(""))
        })
        .await
    }

    /// Asks for a reload that finds something new and good.
    pub async fn reload(&self) -> Value {
        let event = self.hang_up().await;
        assert_eq!(event["message"], RELOADED, "{event}");
        event
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        let mut lines = self.lines.clone();
        let closed = async { while lines.changed().await.is_ok() {} };
        assert!(
            tokio::time::timeout(PATIENCE, closed).await.is_ok(),
            "it ends in time: {:#?}",
            self.printed()
        );
        self.child.wait().unwrap()
    }
}

fn collect(
    stream: impl std::io::Read + Send + 'static,
    printed: &Arc<Mutex<Vec<String>>>,
    count: &Arc<watch::Sender<usize>>,
) {
    let (printed, count) = (Arc::clone(printed), Arc::clone(count));
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            printed.lock().unwrap().push(line);
            count.send_modify(|count| *count += 1);
        }
    });
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A gateway whose log nobody reads past the line that says where it listens: the pipe fills.
pub struct Unread {
    pub admin: SocketAddr,
    pub client: Client,
    pub child: Child,
    /// Open, so that a write waits rather than fails.
    _log: BufReader<ChildStderr>,
}

impl Unread {
    pub fn start(setup: &Setup, pki: &Pki) -> Self {
        let mut child = tools::binary()
            .args(["serve", "--config"])
            .arg(setup.write())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut first = String::new();
        log.read_line(&mut first).unwrap();
        let listening: Value = serde_json::from_str(&first).unwrap();
        let at = |key: &str| listening[key].as_str().unwrap().parse().unwrap();
        let config = pki.client_config(
            Some(&pki.caller(ORDERS)),
            &["http/1.1"],
            rustls::ALL_VERSIONS,
        );
        Self {
            admin: at("admin"),
            client: Client::new(at("address"), config),
            child,
            _log: log,
        }
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
