//! The process: reads the command line, runs the subcommand, and ends with its exit code.

use std::process::ExitCode;

use clap::Parser;
use kybio_gateway::cli::Arguments;

fn main() -> ExitCode {
    Arguments::parse().run()
}
