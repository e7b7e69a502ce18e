//! What the tour needs: a folder that's gone at the end, certificates, a key that exists nowhere else, a stand-in host, and a
//! configuration.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::cli::pki::Authority;
use crate::cli::pki::Pair;
use crate::cli::pki::write_new;
use crate::cli::simulate::acceptor;
use crate::clock::Clock;
use crate::config;
use crate::config::Config;
use crate::config::reader::Reader;
use crate::identity::Identity;
use crate::simulator::Account;
use crate::simulator::QUOTA_PER_DAY;
use crate::simulator::Seen;
use crate::simulator::Settings;
use crate::simulator::Simulator;
use crate::simulator::faults::Entry;
use crate::simulator::faults::Fault;
use crate::simulator::faults::When;

/// The vendor's own sample appId.
const APP_ID: &str = "abcdefghijklmn";

/// Requests that the tour hasn't looked at yet.
const SEEN_MAX: usize = 16;

/// The tour's world.
pub(super) struct Scene {
    folder: TempDir,
    pub(super) host_address: SocketAddr,
    pub(super) ca: String,
    pub(super) caller: Pair,
    seen: Mutex<mpsc::Receiver<Seen>>,
    simulator: Arc<Simulator>,
}

/// The stand-in host, ready to serve.
pub(super) struct StandIn {
    simulator: Arc<Simulator>,
    listener: TcpListener,
    tls: TlsAcceptor,
}

impl StandIn {
    pub(super) async fn serve(self, stop: CancellationToken) {
        self.simulator
            .serve(self.listener, Some(self.tls), stop)
            .await;
    }
}

impl Scene {
    pub(super) async fn set(clock: Clock) -> anyhow::Result<(Self, StandIn)> {
        let folder = tempfile::Builder::new()
            .prefix("kybio-gateway-demo-")
            .tempdir()
            .context("a temporary folder")?;
        let authority = Authority::new(&clock, 1)?;
        let ca = authority.certificate();
        let caller =
            authority.caller("orders", &Identity::parse("spiffe://demo.example/orders")?)?;
        authority
            .server(&["localhost", "127.0.0.1"])?
            .write(folder.path(), "gateway")?;
        caller.write(folder.path(), "orders")?;
        write_new(&folder.path().join("ca.pem"), &ca, false)?;
        // As the vendor's keys look: some 19 digits. Made anew for each demo, known to this process alone.
        let app_key = format!("{:019}", Uuid::now_v7().as_u128() % 10_u128.pow(19));
        write_new(&folder.path().join("main.key"), &app_key, true)?;

        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let host_address = listener.local_addr()?;
        let host = authority.server(&["kybio.demo.example"])?;
        let (watcher, seen) = mpsc::channel(SEEN_MAX);
        let settings = Settings {
            accounts: vec![Account {
                app_id: APP_ID.to_owned(),
                app_keys: vec![app_key],
            }],
            quota_per_day: QUOTA_PER_DAY,
        };
        let simulator = Arc::new(Simulator::new(settings, clock).watched(watcher));
        let tls = acceptor(host.certificate.as_bytes(), host.key.as_bytes())?;
        fs::write(
            folder.path().join("gateway.toml"),
            configuration(host_address),
        )?;
        Ok((
            Self {
                folder,
                host_address,
                ca,
                caller,
                seen: Mutex::new(seen),
                simulator: Arc::clone(&simulator),
            },
            StandIn {
                simulator,
                listener,
                tls,
            },
        ))
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The configuration, read as `serve` would read it.
    pub(super) fn config(&self, now: Duration) -> anyhow::Result<Config> {
        let path = self.folder.path().join("gateway.toml");
        Ok(config::load(&path, &[], &Reader::default(), now)?)
    }

    /// Has the host misbehave at the next call.
    pub(super) fn misbehave(&self, fault: Fault) -> anyhow::Result<()> {
        let entry = Entry {
            fault,
            operation: None,
            when: When::Next(1),
        };
        Ok(self.simulator.faults().add(entry)?)
    }

    /// The next request that reached the stand-in host, if one did.
    pub(super) async fn seen(&self) -> Option<Seen> {
        self.seen.lock().await.try_recv().ok()
    }
}

fn configuration(host: SocketAddr) -> String {
    format!(
        r#"[listener]
address = "127.0.0.1:0"
certificate = "gateway.pem"
private_key = "gateway.key"
client_ca = "ca.pem"
connections_max = 100

[admin]
address = "127.0.0.1:0"

[upstreams.kybio]
base_url = "https://kybio.demo.example/pospal-api2"
resolve = ["{host}"]
roots = "ca.pem"

[accounts.main]
upstream = "kybio"
app_id = "{APP_ID}"
app_key_file = "main.key"

[callers.orders]
identities = ["spiffe://demo.example/orders"]
accounts = ["main"]
operations = ["customerOpenApi/*", "productOpenApi/*"]

[runtime]
drain_delay = "0s"
drain_timeout = "5s"
"#
    )
}
