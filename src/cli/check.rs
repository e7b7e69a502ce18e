//! `check`: every fault of the configuration at once.

use std::io;
use std::io::Write;
use std::process::ExitCode;

use crate::cli::Configured;
use crate::cli::say_faults;
use crate::config;
use crate::config::fault::Faults;
use crate::config::reader::Reader;

pub(super) fn run(configured: &Configured) -> anyhow::Result<ExitCode> {
    let config = match config::load(&configured.config, &configured.set, &Reader::default()) {
        Ok(config) => config,
        Err(faults) => return Ok(say_faults(&faults)),
    };
    // What `serve` would go on without is a fault to whoever asks.
    let bad_keys = config.bad_keys.into_iter().map(|(_, fault)| fault);
    let faults: Vec<_> = bad_keys.chain(config.notices).collect();
    if !faults.is_empty() {
        return Ok(say_faults(&Faults(faults)));
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
