//! What a benchmark that measures whole processes needs: certificates, a stub of the host, a load, the gateway and its peers, each a
//! process of its own, and what the scheduler says of them. The load and the stub are this same program with another task.
#![allow(dead_code, reason = "each benchmark uses its part of it")]
#![allow(unreachable_pub, reason = "a module of several programs")]
#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program that measures time, and talks to whoever started it"
)]

pub mod clock;
pub mod gateway;
pub mod load;
pub mod machine;
pub mod metrics;
pub mod nginx;
pub mod noise;
#[path = "../order.rs"]
mod order;
pub mod process;
pub mod relay;
pub mod report;
pub mod rule;
pub mod settings;
pub mod stub;
pub mod tls;

use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The name of the catalogue's operation that is called unless a benchmark is about another one.
pub const OPERATION: &str = "orderOpenApi/addOnLineOrder";

/// What goes wrong here ends the benchmark, with these words.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Callers that have a certificate. Each connection of a load comes as one of them.
pub const CALLERS: usize = 64;

/// A throwaway folder with everything that processes read and write.
pub struct Street {
    folder: tempfile::TempDir,
    /// The gateway that is measured.
    program: PathBuf,
}

impl Street {
    /// Certificates from the gateway's own `pki`.
    pub fn new(program: &Path) -> Result<Self> {
        let street = Self {
            folder: tempfile::tempdir()?,
            program: program.to_owned(),
        };
        let mut pki = Command::new(program);
        pki.arg("pki").arg("--out").arg(street.path("tls"));
        for number in 0..CALLERS {
            let identity = format!("load-{number}=spiffe://street.example/load-{number}");
            pki.arg("--caller").arg(identity);
        }
        let made = pki.output()?;
        if !made.status.success() {
            return Err(String::from_utf8_lossy(&made.stderr).into());
        }
        Ok(street)
    }

    /// A file or folder of the street.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file of the street, and says where it is.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path(name);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(&path, text)?;
        Ok(path)
    }
}

/// Which processors a process may run on, as `taskset` takes it.
#[derive(Clone, Copy, Debug)]
pub struct Cores(pub &'static str);

/// One for what is measured, the other for everything else.
pub const MEASURED: Cores = Cores("0");
/// See [`MEASURED`].
pub const BESIDE: Cores = Cores("1");
/// Both for everybody.
pub const BOTH: Cores = Cores("0,1");

/// A port of loopback that is free now.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// If this process was started for a task, does it.
pub fn task() -> Option<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    let (task, plan) = (arguments.next()?, arguments.next()?);
    let done = match task.as_str() {
        "stub" => with(&plan, stub::run),
        "load" => with(&plan, load::run),
        "relay" => with(&plan, relay::run),
        _ => return None,
    };
    Some(match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{task}: {error}");
            ExitCode::FAILURE
        }
    })
}

fn with<P: DeserializeOwned>(plan: &str, run: impl FnOnce(P) -> Result<()>) -> Result<()> {
    run(serde_json::from_str(plan)?)
}

/// This program, to be started for a task.
fn for_task(task: &str, plan: &impl Serialize, cores: Cores) -> Result<Command> {
    let mut command = on(cores, &std::env::current_exe()?);
    command.arg(task).arg(serde_json::to_string(plan)?);
    Ok(command)
}

/// A program on these processors, which is asked to end when this one does, however that happens.
fn on(cores: Cores, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.arg("-c").arg(cores.0);
    command
        .args(["setpriv", "--pdeathsig", "TERM"])
        .arg(program);
    command
}
