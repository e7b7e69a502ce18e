//! `config reference`: every key there is.

use std::io;
use std::io::Write;
use std::process::ExitCode;

use crate::config::keys;

pub(super) fn run() -> anyhow::Result<ExitCode> {
    io::stdout()
        .lock()
        .write_all(keys::reference().as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
