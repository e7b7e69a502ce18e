//! The process: reads the command line, runs the subcommand, and ends with its exit code.

use std::process::ExitCode;

use clap::Parser;
use kybio_gateway::cli::Arguments;
use mimalloc::MiMalloc;

/// The one thing that can't be made once and passed.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    Arguments::parse().run()
}
