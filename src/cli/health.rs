//! `health`: is the gateway beside this command ready? For containers that have no shell and no curl.

use std::io;
use std::io::Write;
use std::process::ExitCode;

use http::StatusCode;

use crate::cli::Configured;
use crate::cli::ask;
use crate::cli::say_faults;
use crate::config;

/// What is ready and what isn't, in a few lines.
const BODY_BYTES_MAX: usize = 4 * 1024;

pub(super) fn run(configured: &Configured) -> anyhow::Result<ExitCode> {
    let address = match config::admin_address(&configured.config, &configured.set) {
        Ok(address) => ask::reachable(address),
        Err(faults) => return Ok(say_faults(&faults)),
    };
    let (status, body) = ask::get(address, "/readyz", BODY_BYTES_MAX)?;
    write!(io::stdout().lock(), "{body}")?;
    Ok(if status == StatusCode::OK {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
