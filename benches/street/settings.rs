//! What a benchmark measures, and for how long.

use std::path::PathBuf;

use clap::Parser;

use super::{Result, gateway};

/// How `cargo bench --bench NAME -- [OPTIONS]` is asked for less or more than usual.
#[derive(Debug, Parser)]
struct Arguments {
    /// Rounds, each with fresh processes.
    #[arg(long)]
    rounds: Option<usize>,
    /// Time before each window, in milliseconds.
    #[arg(long, value_name = "MS")]
    warm_up: Option<u64>,
    /// Time of each window, in milliseconds.
    #[arg(long, value_name = "MS")]
    window: Option<u64>,
    /// Measure only what has this in its name.
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Measure this program instead of the one that is built here; nothing is demanded of it.
    #[arg(long, value_name = "PROGRAM")]
    gateway: Option<PathBuf>,
    /// What Cargo tells every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
    /// What it tells every test when it's to be quiet itself.
    #[arg(long, hide = true)]
    quiet: bool,
}

/// What the command line says of it.
#[derive(Debug)]
pub struct Settings {
    /// Each with fresh processes.
    pub rounds: usize,
    /// Before each window, in milliseconds.
    pub warm_up_ms: u64,
    /// Of each window, in milliseconds.
    pub window_ms: u64,
    /// It's run for its figures, and not to be seen to work.
    pub in_earnest: bool,
    gateway: Option<PathBuf>,
    only: Option<String>,
}

impl Settings {
    /// Of this process: so many rounds unless it's told otherwise. `cargo bench` says `--bench`; without it, it's only to be seen that
    /// all works. Ends the process when it's told something else than there is.
    pub fn from_arguments(rounds: usize) -> Self {
        let arguments = Arguments::parse();
        let (rounds, warm_up_ms, window_ms) = if arguments.bench {
            (rounds, 300, 1_200)
        } else {
            (1, 50, 100)
        };
        Self {
            rounds: arguments.rounds.unwrap_or(rounds),
            warm_up_ms: arguments.warm_up.unwrap_or(warm_up_ms),
            window_ms: arguments.window.unwrap_or(window_ms),
            in_earnest: arguments.bench,
            gateway: arguments.gateway,
            only: arguments.only,
        }
    }

    /// The gateway to measure, which is built first unless it was named.
    ///
    /// # Errors
    /// When it can't be built.
    pub fn program(&self) -> Result<PathBuf> {
        match &self.gateway {
            Some(named) => Ok(named.clone()),
            None if self.in_earnest => gateway::shipped(),
            None => Ok(gateway::PROGRAM.into()),
        }
    }

    /// Whether figures that aren't as they must be make it fail.
    pub fn demands(&self) -> bool {
        self.in_earnest && self.gateway.is_none()
    }

    /// Under which name `benchmark` writes its figures: those of a program that was named don't take the place of our own.
    pub fn report(&self, benchmark: &str) -> String {
        let suffix = if self.gateway.is_none() {
            ""
        } else {
            "-of-another"
        };
        format!("{benchmark}{suffix}")
    }

    /// Whether this one is to be measured.
    pub fn wants(&self, name: &str) -> bool {
        self.only
            .as_ref()
            .is_none_or(|only| name.contains(only.as_str()))
    }
}
