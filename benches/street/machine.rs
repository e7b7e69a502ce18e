//! On what it was measured.

use std::fs;
use std::process::Command;

use super::Result;

/// Processor, kernel and commit, in a sentence.
pub fn told() -> Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or_default();
    let model = model.trim_start_matches(['\t', ' ', ':']);
    let count = cpus
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let said = |program: &str, arguments: &[&str]| {
        let said = Command::new(program)
            .args(arguments)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output();
        said.map_or_else(
            |_| "?".to_owned(),
            |said| String::from_utf8_lossy(&said.stdout).trim().to_owned(),
        )
    };
    let kernel: String = kernel
        .chars()
        .take_while(|each| each.is_ascii_digit() || *each == '.')
        .collect();
    Ok(format!(
        "{model}, {count} cores; Linux {kernel}; {}; commit {}.",
        said("rustc", &["--version"]),
        said("git", &["describe", "--always", "--dirty"]),
    ))
}
