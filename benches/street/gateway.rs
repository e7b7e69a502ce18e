//! The gateway under measurement: the real program with everything on, as it would serve a company.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kybio_gateway::operations::Catalogue;

use super::process::Process;
use super::{CALLERS, Cores, Result, Street, free_port, on, rule};

/// Cargo builds it beside the benchmarks, as it builds them.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_kybio-gateway");

/// The program as it's shipped. The one beside the benchmarks has in it what only tests want of its libraries (a clock that can be
/// paused, for one), and isn't what the counts that releases are laid out by were made of.
pub fn shipped() -> Result<PathBuf> {
    let beside = Path::new(PROGRAM).ancestors().nth(2).ok_or("no folder")?;
    let folder = beside.join("shipped");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--release", "--locked", "--bin", "kybio-gateway"])
        .arg("--target-dir")
        .arg(&folder)
        // Cargo finds its settings by the folder that it's called in.
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env_remove("CARGO_BUILD_TARGET")
        .status()?;
    if !built.success() {
        return Err("the gateway can't be built".into());
    }
    Ok(folder.join("release/kybio-gateway"))
}

/// How large it is.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Threads that serve.
    pub workers: usize,
    /// Each on all hosts in turn.
    pub accounts: usize,
    /// Those that load comes as are among them.
    pub callers: usize,
}

impl Shape {
    /// One worker, one account, the callers that the load comes as.
    pub const PLAIN: Self = Self {
        workers: 1,
        accounts: 1,
        callers: CALLERS,
    };
}

/// A running gateway.
pub struct Gateway {
    /// Its process.
    pub process: Process,
    /// Where callers connect.
    pub port: u16,
    /// Where its metrics are.
    pub admin: u16,
    /// From its start to the first connection that it took.
    pub start: Duration,
}

impl Gateway {
    /// Starts one whose calls go to these ports.
    pub fn start(street: &Street, hosts: &[u16], shape: Shape, cores: Cores) -> Result<Self> {
        let (port, admin) = (free_port()?, free_port()?);
        let text = configuration(street, hosts, shape, (port, admin))?;
        let path = street.write("gateway.toml", &text)?;
        let mut command = on(cores, &street.program);
        command.arg("serve").arg("--config").arg(path);
        // The access log goes to a file, as those of the peers.
        command.stderr(File::create(street.path("gateway.log"))?);
        let mut process = Process::start(&mut command)?;
        let start = process.listens(port)?;
        Ok(Self {
            process,
            port,
            admin,
            start,
        })
    }
}

fn configuration(
    street: &Street,
    hosts: &[u16],
    shape: Shape,
    (port, admin): (u16, u16),
) -> Result<String> {
    use std::fmt::Write;
    let mut text = format!(
        r#"[listener]
address = "127.0.0.1:{port}"
certificate = "tls/gateway.pem"
private_key = "tls/gateway.key"
client_ca = "tls/callers-ca.pem"
connections_max = 15000
connections_per_address_max = 15000
connections_per_caller_max = 15000
idle_timeout = "10m"

[admin]
address = "127.0.0.1:{admin}"

[runtime]
workers = {}
drain_delay = "0s"
drain_timeout = "1s"

"#,
        shape.workers
    );
    for (number, host) in hosts.iter().enumerate() {
        write!(
            text,
            "[upstreams.host-{number}]\nbase_url = \"https://localhost:{host}/pospal-api2\"\nroots = \"tls/callers-ca.pem\"\nresolve = [\"127.0.0.1:{host}\"]\nconnections_max = 200\nin_flight_max = 200\n\n"
        )?;
    }
    for number in 0..shape.accounts {
        let app_id = rule::app_id(number);
        let key = format!("keys/{number}");
        // The same for all gateways of the street, and thousands of them take a while.
        if !street.path(&key).exists() {
            let file = street.write(&key, &rule::key(&app_id))?;
            std::fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        }
        write!(
            text,
            "[accounts.account-{number}]\nupstream = \"host-{}\"\napp_id = \"{app_id}\"\napp_key_file = \"{key}\"\nin_flight_max = 200\n\n",
            number % hosts.len()
        )?;
    }
    // No pattern grants those that want their exact name.
    let catalogue = Catalogue::shipped();
    let explicit = catalogue.iter().filter(|operation| operation.explicit);
    let explicit = explicit.map(|operation| operation.name.as_str());
    let operations: Vec<_> = std::iter::once("*").chain(explicit).collect();
    for number in 0..shape.callers {
        write!(
            text,
            "[callers.load-{number}]\nidentities = [\"spiffe://street.example/load-{number}\"]\naccounts = [\"account-*\"]\ndefault_account = \"account-0\"\noperations = {operations:?}\nin_flight_max = 200\n\n"
        )?;
    }
    Ok(text)
}

/// What the program says of itself.
pub fn version(program: &Path) -> Result<String> {
    let said = Command::new(program).arg("--version").output()?;
    let said = String::from_utf8_lossy(&said.stdout);
    Ok(format!("{} ({})", said.trim(), program.display()))
}
