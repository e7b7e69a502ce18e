//! Imports go down only. In one crate nothing else holds that; this table does, and a new edge in it is a design decision.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::support::tools;

/// Who may import whom, from the top floor down. A module may always import its own.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    // commands
    (
        "cli",
        &[
            "clock",
            "config",
            "identity",
            "observe",
            "server",
            "simulator",
            "stop",
            "upstream",
        ],
    ),
    // assembly
    (
        "server",
        &[
            "account", "admin", "clock", "config", "identity", "keyring", "listener", "name",
            "observe", "payload", "policy", "proxy", "quota", "slots", "stop", "upstream",
        ],
    ),
    ("admin", &["clock", "observe"]),
    (
        "config",
        &[
            "account",
            "answers",
            "identity",
            "listener",
            "name",
            "observe",
            "operation",
            "operations",
            "pattern",
            "payload",
            "policy",
            "proxy",
            "quota",
            "retry",
            "upstream",
        ],
    ),
    // line
    (
        "proxy",
        &[
            "answers",
            "clock",
            "account",
            "identity",
            "keyring",
            "listener",
            "name",
            "observe",
            "operation",
            "outcome",
            "payload",
            "policy",
            "quota",
            "reply",
            "retry",
            "sign",
            "slots",
            "upstream",
        ],
    ),
    // stations: each may name the token of the one before it, and nothing else of another
    ("listener", &["clock", "identity", "observe", "stop"]),
    ("identity", &["name"]),
    (
        "policy",
        &[
            "account",
            "identity",
            "name",
            "operation",
            "operations",
            "pattern",
        ],
    ),
    ("payload", &["account", "name", "pieces"]),
    ("sign", &["account", "payload"]),
    ("quota", &["account", "clock", "name", "observe"]),
    ("keyring", &["account", "name", "observe"]),
    ("slots", &["name"]),
    (
        "upstream",
        &[
            "clock",
            "name",
            "observe",
            "operation",
            "outcome",
            "pieces",
            "sign",
        ],
    ),
    ("retry", &["operation"]),
    ("reply", &["answers"]),
    // observe
    (
        "observe",
        &[
            "account",
            "answers",
            "clock",
            "name",
            "operation",
            "outcome",
        ],
    ),
    // words
    ("account", &["name"]),
    ("answers", &[]),
    ("operations", &["answers", "operation"]),
    ("operation", &[]),
    ("name", &[]),
    ("outcome", &[]),
    ("pattern", &[]),
    ("pieces", &[]),
    ("clock", &[]),
    ("stop", &[]),
    // beside: shares no code with the line
    ("simulator", &["clock"]),
];

/// All source files, with the module on whose floor each is.
fn sources() -> Vec<(String, PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found)
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path)
            }
        }
    }
    let source = tools::root().join("src");
    let mut paths = Vec::new();
    walk(&source, &mut paths);
    assert!(paths.len() > 40, "{}", paths.len());
    let named = paths.into_iter().map(|path| {
        let relative = path.strip_prefix(&source).unwrap().to_owned();
        let module = relative
            .iter()
            .next()
            .unwrap()
            .to_str()
            .unwrap()
            .trim_end_matches(".rs")
            .to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        (module, relative, text)
    });
    // Test benches of their modules, compiled for tests alone.
    let test_only = ["simulator/bench.rs", "simulator/samples.rs"];
    named
        .filter(|(module, path, _)| {
            module != "lib"
                && module != "main"
                && !test_only.iter().any(|only| path == Path::new(only))
        })
        .collect()
}

/// What comes before the tests at the foot of a file.
fn product(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {").next().unwrap()
}

#[test]
fn imports_go_down_only() {
    let mut seen = BTreeSet::new();
    for (module, path, text) in sources() {
        let (_, allowed) = MAY_IMPORT
            .iter()
            .find(|(name, _)| *name == module)
            .unwrap_or_else(|| panic!("{module} has no floor"));
        let product = product(&text);
        for (at, _) in product.match_indices("crate::") {
            let imported: String = product[at + 7..]
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            assert!(
                imported == module || allowed.contains(&imported.as_str()),
                "{}: {module} may not import {imported}",
                path.display()
            );
            seen.insert((module.clone(), imported));
        }
    }
    for (module, allowed) in MAY_IMPORT {
        for imported in *allowed {
            assert!(
                seen.contains(&((*module).to_owned(), (*imported).to_owned())),
                "{module} doesn't need {imported} any more"
            );
        }
    }
}

#[test]
fn the_table_has_no_cycle() {
    let order: Vec<_> = MAY_IMPORT.iter().map(|(module, _)| *module).collect();
    let mut left = MAY_IMPORT.to_vec();
    while !left.is_empty() {
        let before = left.len();
        let above: BTreeSet<_> = left
            .iter()
            .flat_map(|(_, allowed)| allowed.iter().copied())
            .collect();
        left.retain(|(module, _)| above.contains(module));
        assert!(left.len() < before, "a cycle among {left:?}");
    }
    assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), order.len());
}

/// Things that only one place may do.
#[test]
fn what_one_file_does_no_other_does() {
    let only: [(&str, &[&str]); 8] = [
        (".expose()", &["sign.rs"]),
        (".expose_signature()", &["upstream/send.rs"]),
        // The demo knows its name to mask it.
        (
            "data-signature",
            &[
                "cli/demo/paper.rs",
                "observe/trace.rs",
                "proxy/migration.rs",
                "upstream/send.rs",
            ],
        ),
        ("std::env::", &["config/environment.rs"]),
        ("SystemTime::now", &["clock.rs"]),
        ("Instant::now", &["clock.rs"]),
        ("md5::Md5", &["account.rs"]),
        ("process::exit", &[]),
    ];
    for (words, allowed) in only {
        let mut users = BTreeSet::new();
        for (module, path, text) in sources() {
            if module != "simulator"
                && product(&text)
                    .lines()
                    .any(|line| line.contains(words) && !line.trim_start().starts_with("//"))
            {
                users.insert(path.display().to_string());
            }
        }
        assert_eq!(
            users,
            allowed.iter().map(|path| (*path).to_owned()).collect(),
            "{words}"
        );
    }
}

#[test]
fn nothing_that_holds_a_secret_can_be_copied_or_printed() {
    for (file, name) in [
        ("account.rs", "AppKey"),
        ("sign.rs", "SignedBody"),
        ("config/files.rs", "PrivateKey"),
    ] {
        let sources = sources();
        let found = sources.iter().find(|(_, path, _)| path == Path::new(file));
        let (_, _, text) = found.unwrap();
        let declared = text
            .lines()
            .position(|line| line.contains(&format!(" struct {name} {{")));
        let before = text.lines().take(declared.unwrap()).collect::<Vec<_>>();
        let mut attributes = before.iter().rev().take_while(|line| !line.is_empty());
        assert!(
            !attributes.any(|line| line.contains("derive")),
            "{name} derives nothing"
        );
        for implemented in [
            "Clone",
            "Copy",
            "Display",
            "Serialize",
            "Deref",
            "AsRef",
            "Borrow",
            "From",
        ] {
            for (_, path, text) in &sources {
                let found = text.lines().any(|line| {
                    line.starts_with("impl") && line.contains(&format!("{implemented} for {name}"))
                });
                assert!(!found, "{}: {implemented} for {name}", path.display());
            }
        }
    }
}

#[test]
fn source_files_open_with_what_they_are_for_and_never_unwrap() {
    for (_, path, text) in sources() {
        assert!(text.starts_with("//! "), "{}", path.display());
        assert!(!product(&text).contains(".unwrap()"), "{}", path.display());
        assert!(!product(&text).contains("unsafe"), "{}", path.display());
    }
}
