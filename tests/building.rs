//! How releases are built: `.cargo/rustc` stands between Cargo and the compiler, and changes nothing but what it's there for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::tools;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(".cargo")
}

/// What the compiler is told, where Cargo says this.
fn told(folder: &Path, said: &[&str]) -> Vec<String> {
    let output = tools::run(
        Command::new(folder.join("rustc"))
            .args(["printf", "%s\\n"])
            .args(said),
    );
    let text = tools::stdout(&output);
    text.lines().map(ToOwned::to_owned).collect()
}

#[test]
fn what_is_linked_as_one_whole_is_built_with_the_counts_and_nothing_else_is() {
    let counts = format!(
        "-Cprofile-use={}",
        folder().join("gateway.profdata").display()
    );
    for (said, with_counts) in [
        (
            &["--crate-name", "a", "-C", "linker-plugin-lto", "a b"][..],
            true,
        ),
        (&["-C", "opt-level=3", "-C", "lto", "src/main.rs"], true),
        (&["-C", "lto=fat"], true),
        (&["-C", "lto=off", "-C", "opt-level=3"], false),
        (&["--crate-name", "a", "-C", "debuginfo=1"], false),
        (&["-vV"], false),
        // Whoever counts, or has counts of their own.
        (&["-C", "lto", "-Cprofile-generate=/tmp/a"], false),
        (
            &["-C", "linker-plugin-lto", "-C", "profile-generate"],
            false,
        ),
        (&["-C", "lto", "-Cprofile-use=/tmp/mine"], false),
        (&["-C", "lto", "-C", "profile-use=/tmp/mine"], false),
    ] {
        let told = told(&folder(), said);
        assert_eq!(&told[..said.len()], said, "what was said is passed on");
        let more: Vec<_> = told[said.len()..]
            .iter()
            .filter(|flag| **flag == counts)
            .collect();
        assert_eq!(more.len(), usize::from(with_counts), "{told:?}");
        assert!(with_counts || told.len() == said.len(), "{told:?}");
    }
}

#[test]
fn it_works_in_any_folder_and_without_counts() {
    let elsewhere = tempfile::tempdir().unwrap();
    let copy = elsewhere.path().join("two words, profile-generate");
    fs::create_dir(&copy).unwrap();
    fs::copy(folder().join("rustc"), copy.join("rustc")).unwrap();
    assert_eq!(told(&copy, &["-C", "lto"]), ["-C", "lto"]);
    fs::write(copy.join("gateway.profdata"), "").unwrap();
    let counts = format!("-Cprofile-use={}", copy.join("gateway.profdata").display());
    let source = copy.join("main.rs");
    let said = ["-C", "lto", source.to_str().unwrap()];
    assert_eq!(told(&copy, &said)[3], counts);
}

/// Cargo tells the tests where its programs are by variables with a hyphen.
#[test]
fn no_variable_is_lost() {
    let output = tools::run(
        Command::new(folder().join("rustc"))
            .arg("env")
            .env("CARGO_BIN_EXE_kybio-gateway", "here"),
    );
    let text = tools::stdout(&output);
    assert!(
        text.lines()
            .any(|line| line == "CARGO_BIN_EXE_kybio-gateway=here"),
        "{text}"
    );
}

/// Counts of other versions of the libraries are void for all that is built on them, without a word. (So are those of another rustc, which is
/// nobody's mistake.)
#[test]
fn the_counts_are_of_these_libraries() {
    let of = fs::read_to_string(folder().join("gateway.profdata.of")).unwrap();
    let now = tools::stdout(&tools::run(&mut Command::new(folder().join("counted-of"))));
    let libraries = |text: &str| text.lines().last().map(ToOwned::to_owned);
    assert!(now.contains("Cargo.lock"));
    assert_eq!(libraries(&of), libraries(&now), "run .cargo/renew");
}
