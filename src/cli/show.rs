//! `config show`: what holds, and where it comes from.

use std::io;
use std::io::Write;
use std::process::ExitCode;

use crate::cli::Configured;
use crate::cli::say_faults;
use crate::config::show;

pub(super) fn run(configured: &Configured) -> anyhow::Result<ExitCode> {
    match show::merged(&configured.config, &configured.set) {
        Ok(text) => {
            io::stdout().lock().write_all(text.as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
        Err(faults) => Ok(say_faults(&faults)),
    }
}
