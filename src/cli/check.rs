//! `check`: every fault of the configuration at once.

use std::io;
use std::io::Write;
use std::process::ExitCode;

use crate::cli::Configured;
use crate::cli::say_faults;
use crate::config;
use crate::config::fault::Faults;

pub(super) fn run(configured: &Configured) -> anyhow::Result<ExitCode> {
    let config = match config::load(&configured.config, &configured.set) {
        Ok(config) => config,
        Err(faults) => return Ok(say_faults(&faults)),
    };
    // What `serve` would go on without is a fault to whoever asks.
    if !config.notices.is_empty() {
        return Ok(say_faults(&Faults(config.notices)));
    }
    let counted =
        |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    let accounts = counted(config.accounts.len(), "account");
    let callers = counted(config.callers.len(), "caller");
    let operations = counted(config.catalogue.iter().count(), "operation");
    writeln!(
        io::stdout().lock(),
        "{}: good ({accounts}, {callers}, {operations})",
        configured.config.display()
    )?;
    Ok(ExitCode::SUCCESS)
}
