//! What the targets have in common: the checks and the seeds, which `tests/fuzzing.rs` uses too.

pub mod checks;
pub mod seeds;

#[allow(dead_code, reason = "tests of the classes are elsewhere")]
#[path = "../support/corpus.rs"]
mod corpus;

/// Of the tests' own support, what the seeds need.
mod support {
    pub(crate) use super::corpus;

    pub(crate) mod tools {
        use std::path::PathBuf;

        pub(crate) fn root() -> PathBuf {
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
        }
    }
}

/// Puts the seeds where the fuzzer will look for something to start from.
pub fn sow(target: &str, seeds: &[Vec<u8>]) {
    let folder = support::tools::root()
        .join("tests/fuzz/corpus")
        .join(target);
    std::fs::create_dir_all(&folder).expect("a folder for the seeds");
    for (number, seed) in seeds.iter().enumerate() {
        std::fs::write(folder.join(format!("seed-{number}")), seed).expect("a seed");
    }
}
