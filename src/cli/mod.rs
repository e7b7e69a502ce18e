//! The command line: one file for each subcommand.

mod ask;
mod check;
mod concealment;
mod demo;
mod health;
mod pki;
mod reference;
mod schema;
mod serve;
mod show;
mod signals;
mod simulate;

use std::io;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use clap::Parser;
use clap::Subcommand;

use crate::config::fault::Faults;

/// The configuration can't be used (sysexits.h, `EX_CONFIG`).
pub const EXIT_CONFIGURATION: u8 = 78;

/// The one process that holds the KYBIO keys: checks, signs and forwards for everyone else.
#[derive(Debug, Parser)]
#[command(name = "kybio-gateway", version)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the whole line on this machine: certificates, a stand-in host, the gateway, a tour of calls
    Demo(demo::Arguments),
    /// Serve until SIGTERM or SIGINT
    Serve(Configured),
    /// Report every fault of the configuration; exit 78 if there is one
    Check(check::Arguments),
    /// Ask the running gateway whether it takes requests; exit 0 if it does
    Health(Configured),
    /// Stand in for a KYBIO host
    Simulate(simulate::Arguments),
    /// Make throwaway certificates for development
    Pki(pki::Arguments),
    /// Print what can be configured
    Config {
        #[command(subcommand)]
        what: ConfigCommand,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Every key with its meaning, unit, default and bounds
    Reference,
    /// The same as a JSON Schema, for editors
    Schema,
    /// What holds, each key with the place that it comes from, as a configuration again; exit 78 if there is a fault
    Show(Configured),
}

/// Which configuration.
#[derive(Args, Debug)]
struct Configured {
    /// The configuration file
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/kybio-gateway/gateway.toml"
    )]
    config: PathBuf,
    /// One key on top of it, such as listener.address=127.0.0.1:8443
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_and_value)]
    set: Vec<(String, String)>,
}

fn key_and_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write it as key=value")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

impl Arguments {
    /// Runs the subcommand.
    #[must_use]
    pub fn run(self) -> ExitCode {
        // Before anything is read.
        let concealed = concealment::conceal().context("concealing the process's memory");
        let ended = concealed.and_then(|()| self.command.run());
        ended.unwrap_or_else(|error| {
            say_error(&format!("{error:#}"));
            ExitCode::FAILURE
        })
    }
}

impl Command {
    fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Demo(arguments) => demo::run(&arguments),
            Self::Serve(configured) => serve::run(&configured),
            Self::Check(arguments) => check::run(&arguments),
            Self::Health(configured) => health::run(&configured),
            Self::Simulate(arguments) => simulate::run(&arguments),
            Self::Pki(arguments) => pki::run(&arguments),
            Self::Config {
                what: ConfigCommand::Reference,
            } => reference::run(),
            Self::Config {
                what: ConfigCommand::Schema,
            } => schema::run(),
            Self::Config {
                what: ConfigCommand::Show(configured),
            } => show::run(&configured),
        }
    }
}

/// One line to standard error. That it can't be written is nobody's news.
fn say_error(line: &str) {
    let _ = writeln!(io::stderr().lock(), "kybio-gateway: {line}");
}

/// All faults, one a line, and the exit code that goes with them.
fn say_faults(faults: &Faults) -> ExitCode {
    let mut out = io::stderr().lock();
    for fault in &faults.0 {
        let _ = writeln!(out, "{fault}");
    }
    let count = faults.0.len();
    let _ = writeln!(
        out,
        "kybio-gateway: {count} fault{} in the configuration",
        if count == 1 { "" } else { "s" }
    );
    ExitCode::from(EXIT_CONFIGURATION)
}
