//! Small things that several tests need.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;
use std::time::Duration;

/// How long anything may take before a test gives up. Nothing here is measured by it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The binary under test.
pub fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kybio-gateway"));
    command.env_clear();
    command
}

/// The repository's own folder.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Runs a program to its end. One that isn't installed is a fault of the machine: `.ci/install` brings what's needed.
pub fn run(command: &mut Command) -> Output {
    let program = command.get_program().to_owned();
    command
        .output()
        .unwrap_or_else(|error| panic!("{}: {error} (see .ci/install)", program.display()))
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Writes a file with a mode.
pub fn write(path: &Path, text: impl AsRef<[u8]>, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Writes a text file anew.
pub fn change(path: &Path, edit: impl FnOnce(String) -> String) {
    let text = std::fs::read_to_string(path).unwrap();
    std::fs::write(path, edit(text)).unwrap();
}
