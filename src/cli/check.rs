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
    let (accounts, callers, operations) = (
        config.accounts.len(),
        config.callers.len(),
        config.catalogue.iter().count(),
    );
    writeln!(
        io::stdout().lock(),
        "{}: good ({accounts} accounts, {callers} callers, {operations} operations)",
        configured.config.display()
    )?;
    Ok(ExitCode::SUCCESS)
}
