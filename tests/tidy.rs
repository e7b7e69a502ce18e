//! Dependencies and files: what a reviewer would otherwise have to look at each time.

use std::process::Command;

use crate::support::tools;

/// Name and version of each package in Cargo.lock.
fn locked() -> Vec<(String, Vec<u64>)> {
    let lock = std::fs::read_to_string(tools::root().join("Cargo.lock")).unwrap();
    let value = |block: &str, key: &str| {
        let line = block
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{key} = \"")));
        line.unwrap().trim_end_matches('"').to_owned()
    };
    let version = |text: String| {
        text.split(['.', '-', '+'])
            .map_while(|part| part.parse().ok())
            .collect()
    };
    lock.split("[[package]]")
        .skip(1)
        .map(|block| (value(block, "name"), version(value(block, "version"))))
        .collect()
}

#[test]
fn known_advisories_are_above_their_floors() {
    let locked = locked();
    assert!(locked.len() > 100);
    for (name, floor) in [
        ("h2", [0, 4, 16]),
        ("rustls-webpki", [0, 103, 13]),
        ("aws-lc-sys", [0, 39, 0]),
    ] {
        let versions: Vec<_> = locked.iter().filter(|(locked, _)| locked == name).collect();
        assert!(!versions.is_empty(), "{name}");
        assert!(
            versions
                .iter()
                .all(|(_, version)| version.as_slice() >= &floor[..]),
            "{versions:?}"
        );
    }
    for absent in ["protobuf", "openssl-sys", "native-tls"] {
        assert!(locked.iter().all(|(name, _)| name != absent), "{absent}");
    }
}

/// Cargo.lock names ring because rustls-webpki could use it; the tree that is built must not have it.
#[test]
fn there_is_one_provider_of_cryptography_in_the_tree() {
    let output = tools::run(
        Command::new(env!("CARGO"))
            .args([
                "tree", "--locked", "--edges", "all", "--target", "all", "--prefix", "none",
            ])
            .current_dir(tools::root()),
    );
    let tree = tools::stdout(&output);
    assert!(tree.contains("aws-lc-rs"), "{}", tools::stderr(&output));
    assert!(
        !tree.lines().any(|line| line.starts_with("ring ")),
        "{tree}"
    );
}

#[test]
fn each_dependency_says_what_it_is_for() {
    let manifest = std::fs::read_to_string(tools::root().join("Cargo.toml")).unwrap();
    let dependencies: Vec<_> = manifest
        .lines()
        .skip_while(|line| *line != "[dependencies]")
        .take_while(|line| *line != "[lints.rust]")
        .filter(|line| line.contains("version = "))
        .collect();
    assert!(dependencies.len() > 30);
    for line in dependencies {
        assert!(line.contains("default-features = false"), "{line}");
        assert!(
            line.split_once(" # ").is_some_and(|(_, why)| why.len() > 5),
            "{line}"
        );
    }
}

#[test]
fn no_test_is_skipped_and_none_waits_for_a_while() {
    let mut files = 0;
    for entry in std::fs::read_dir(tools::root().join("tests")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "rs")
            && path.file_name().unwrap() != "tidy.rs"
        {
            let text = std::fs::read_to_string(&path).unwrap();
            for word in ["#[ignore", "#[should_panic", "sleep("] {
                assert!(!text.contains(word), "{}: {word}", path.display());
            }
            files += 1;
        }
    }
    assert!(files > 10);
}

/// Every code that the gateway can answer with is explained, and none that it can't.
#[test]
fn the_page_of_answers_has_every_code() {
    let page = std::fs::read_to_string(tools::root().join("docs/answers.md")).unwrap();
    let code = std::fs::read_to_string(tools::root().join("src/proxy/respond.rs")).unwrap();
    let is_code = |word: &&str| {
        word.contains(|c: char| c.is_ascii_lowercase())
            && word.chars().all(|c| c.is_ascii_lowercase() || c == '-')
    };
    let documented: Vec<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(code, _)| code)
        .filter(is_code)
        .collect();
    let outcomes = ["done", "rejected", "not-sent", "unknown"];
    let documented: Vec<_> = documented
        .into_iter()
        .filter(|code| !outcomes.contains(code))
        .collect();
    assert!(documented.len() > 25, "{documented:?}");
    for code_word in &documented {
        assert!(
            code.contains(&format!("\"{code_word}\"")),
            "{code_word} isn't used any more"
        );
    }
    let listed = code.split("pub const CODES").nth(1).unwrap();
    let listed: Vec<_> = listed
        .split("];")
        .next()
        .unwrap()
        .split('"')
        .skip(1)
        .step_by(2)
        .collect();
    assert_eq!(listed, documented);
    let told = code.split("fn identity(").nth(1).unwrap();
    let quoted = told
        .split('"')
        .skip(1)
        .step_by(2)
        .filter(|word| is_code(word) && word.contains('-'));
    let used: Vec<_> = quoted.collect();
    assert!(used.len() > 25, "{used:?}");
    for word in used {
        assert!(documented.contains(&word), "{word} isn't explained");
    }
}
