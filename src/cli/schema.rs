//! `config schema`: every key there is, for editors.

use std::io;
use std::io::Write;
use std::process::ExitCode;

use crate::config::schema;

pub(super) fn run() -> anyhow::Result<ExitCode> {
    io::stdout().lock().write_all(schema::schema().as_bytes())?;
    Ok(ExitCode::SUCCESS)
}
