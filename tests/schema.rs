//! A schema that editors can trust: what the gateway takes isn't underlined, and what one look at one key can tell is. `check` knows
//! more, and has the last word.

use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Format, Toml};
use jsonschema::Validator;
use serde_json::Value;

use crate::support::{Pki, Setup, tools};

fn printed() -> Value {
    let output = tools::run(tools::binary().args(["config", "schema"]));
    serde_json::from_str(&tools::stdout(&output)).unwrap()
}

fn validator() -> Validator {
    jsonschema::draft7::new(&printed()).unwrap()
}

/// The places of what's wrong with a file, each once, with the rule that says so.
fn faults(validator: &Validator, text: &str) -> Vec<String> {
    let file: Value = Figment::from(Toml::string(text)).extract().unwrap();
    let faults = validator.iter_errors(&file);
    let mut faults: Vec<_> = faults
        .map(|fault| format!("{}: {fault}", fault.instance_path()))
        .collect();
    faults.dedup();
    faults
}

/// All files below a folder whose name ends so.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found
}

#[test]
fn it_is_the_shipped_file_and_of_a_dialect_that_editors_know() {
    let schema = printed();
    assert_eq!(schema["$schema"], "http://json-schema.org/draft-07/schema#");
    assert!(jsonschema::draft7::meta::validate(&schema).is_ok());
    let shipped = tools::root().join("config/gateway.schema.json");
    let shipped: Value = serde_json::from_slice(&std::fs::read(shipped).unwrap()).unwrap();
    assert_eq!(schema, shipped);
}

/// Whole files alone: what a page shows of one may lack what it needs.
#[test]
fn every_example_that_ships_fits() {
    let validator = validator();
    let mut examples = Vec::new();
    for folder in ["config", "deploy", "docs"] {
        for path in files(&tools::root().join(folder), "toml") {
            let text = std::fs::read_to_string(&path).unwrap();
            examples.push((path.display().to_string(), text));
        }
    }
    assert!(examples.len() >= 2, "{examples:?}");
    let mut pages = files(&tools::root().join("docs"), "md");
    pages.extend(files(&tools::root().join("deploy"), "md"));
    pages.push(tools::root().join("README.md"));
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap();
        let blocks = text.split("```toml\n").skip(1);
        let blocks = blocks.filter_map(|block| block.split("```").next());
        let whole =
            blocks.filter(|block| block.contains("[listener]") && block.contains("[callers."));
        examples.extend(whole.map(|block| (page.display().to_string(), block.to_owned())));
    }
    for (name, text) in examples {
        assert_eq!(faults(&validator, &text), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn what_check_finds_good_and_what_show_prints_fit() {
    let setup = Setup::new(&Pki::new(), None);
    let path = setup.write();
    let run = |arguments: &[&str]| {
        let output = tools::run(tools::binary().args(arguments).arg("--config").arg(&path));
        assert!(output.status.success(), "{}", tools::stderr(&output));
        tools::stdout(&output)
    };
    run(&["check"]);
    let validator = validator();
    for text in [
        std::fs::read_to_string(&path).unwrap(),
        run(&["config", "show"]),
    ] {
        assert_eq!(faults(&validator, &text), Vec::<String>::new(), "{text}");
    }
}

/// What is written, and where and why it's underlined.
const FAULTS: &[(&str, &str)] = &[
    (
        "nonsense = 1",
        ": Additional properties are not allowed ('nonsense'",
    ),
    (
        "[admni]",
        ": Additional properties are not allowed ('admni'",
    ),
    (
        "[admin]\nadress = \"127.0.0.1:1\"",
        "/admin: Additional properties are not allowed ('adress'",
    ),
    ("admin = 5", "/admin: 5 is not of type \"object\""),
    (
        "include = \"accounts.d/*.toml\"",
        "/include: \"accounts.d/*.toml\" is not of type \"array\"",
    ),
    (
        "[admin]\naddress = \"localhost:9464\"",
        "/admin/address: \"localhost:9464\" does not match",
    ),
    (
        "[admin]\naddress = \"127.0.0.1\"",
        "/admin/address: \"127.0.0.1\" does not match",
    ),
    (
        "[admin]\naddress = \"127.0.0.1:65536\"",
        "/admin/address: \"127.0.0.1:65536\" does not match",
    ),
    (
        "[log]\nlevel = \"loud\"",
        "/log/level: \"loud\" is not one of \"error\", \"warn\"",
    ),
    (
        "[runtime]\nworkers = 0",
        "/runtime/workers: 0 is less than the minimum of 1",
    ),
    (
        "[runtime]\nworkers = 65",
        "/runtime/workers: 65 is greater than the maximum of 64",
    ),
    (
        "[runtime]\nworkers = \"1\"",
        "/runtime/workers: \"1\" is not of type \"integer\"",
    ),
    (
        "[runtime]\nworkers = 1.5",
        "/runtime/workers: 1.5 is not of type \"integer\"",
    ),
    (
        "[runtime]\ndrain_delay = 5",
        "/runtime/drain_delay: 5 is not of type \"string\"",
    ),
    (
        "[runtime]\ndrain_delay = \"5\"",
        "/runtime/drain_delay: \"5\" does not match",
    ),
    (
        "[runtime]\ndrain_delay = \"5 parsecs\"",
        "/runtime/drain_delay: \"5 parsecs\" does not match",
    ),
    (
        "[runtime]\ndrain_delay = \"h\"",
        "/runtime/drain_delay: \"h\" does not match",
    ),
    (
        "[upstreams.kybio]\nbase_url = \"\"\nresolve = [\"kybio\"]",
        "/upstreams/kybio/resolve/0: \"kybio\" does not match",
    ),
    (
        "[upstreams.kybio]\nroots = \"system\"",
        "/upstreams/kybio: \"base_url\" is a required property",
    ),
    (
        "[upstreams]\nbase_url = \"\"",
        "/upstreams: Additional properties are not allowed ('base_url'",
    ),
    (
        "[accounts.Main]",
        "/accounts: Additional properties are not allowed ('Main'",
    ),
    (
        "[accounts.-main]",
        "/accounts: Additional properties are not allowed ('-main'",
    ),
    (
        "[accounts.a23456789012345678901234567890123456789012]",
        "/accounts: Additional properties are not allowed ('a2345",
    ),
    (
        "[accounts.main]\nupstream = \"kybio\"\napp_id = \"A\"",
        "/accounts/main: \"app_key_file\" is a required property",
    ),
    (
        "[callers.orders]\nidentities = [\"dns:a\"]\naccounts = [\"*\"]",
        "/callers/orders: \"operations\" is a required property",
    ),
    (
        "[callers.orders]\nidentities = \"dns:a\"\naccounts = []\noperations = []",
        "/callers/orders/identities: \"dns:a\" is not of type \"array\"",
    ),
    (
        "[operations.customerOpenApi]",
        "/operations: Additional properties are not allowed ('customerOpenApi'",
    ),
    (
        "[operations.\"a/b/c/d\"]",
        "/operations: Additional properties are not allowed ('a/b/c/d'",
    ),
    (
        "[operations.\"a/b\"]\nclass = \"safe\"",
        "/operations/a~1b/class: \"safe\" is not one of",
    ),
    (
        "[answers.busy]\nmatch = [5010]\nclass = \"transient\"",
        "/answers/busy/match/0: 5010 is not of type \"string\"",
    ),
    (
        "[listener]\naddress = \"[::1]:8443\"",
        "/listener: \"certificate\" is a required property",
    ),
];

#[test]
fn what_one_look_at_a_key_can_tell_is_underlined_where_it_stands() {
    let validator = validator();
    for (text, expected) in FAULTS {
        let faults = faults(&validator, text);
        assert!(
            faults.iter().any(|fault| fault.starts_with(expected)),
            "{text}: {faults:?}"
        );
    }
    let good = "[runtime]\ndrain_delay = \"1h 30m\"\n[admin]\naddress = \"[::1]:9464\"\n[answers.\"任何\"]\nmatch = []\nclass = \"rejected\"";
    assert_eq!(faults(&validator, good), Vec::<String>::new());
}

#[test]
fn a_file_need_not_have_what_another_may() {
    let validator = validator();
    for text in [
        "",
        "[accounts.store-1]\nupstream = \"kybio\"\napp_id = \"A\"\napp_key_file = \"store.key\"",
        "include = [\"tls.toml\"]\n[listener]\naddress = \"0.0.0.0:8443\"",
        "[log]\nlevel = \"debug\"",
    ] {
        assert_eq!(faults(&validator, text), Vec::<String>::new(), "{text}");
    }
}

/// Each key is explained where it's written, with its default or an example.
#[test]
fn every_key_is_explained() {
    fn walk(path: &str, schema: &Value, explained: &mut Vec<String>) {
        let fields = ["properties", "patternProperties"];
        let inner = fields.iter().filter_map(|field| schema[*field].as_object());
        for (name, value) in inner.flatten() {
            let path = format!("{path}/{name}");
            if value["type"] == "object" {
                assert_eq!(value["additionalProperties"], false, "{path}");
                walk(&path, value, explained);
            } else {
                let meant = ["default", "examples"];
                assert!(meant.iter().any(|field| !value[*field].is_null()), "{path}");
                explained.push(value["description"].as_str().unwrap().to_owned());
            }
        }
    }
    let mut explained = Vec::new();
    walk("", &printed(), &mut explained);
    let reference = std::fs::read_to_string(tools::root().join("config/gateway.toml")).unwrap();
    let mut missing: Vec<_> = reference
        .lines()
        .filter(|line| line.starts_with("# ") && line.ends_with(')'))
        .map(|line| line.trim_start_matches("# ").to_owned())
        .filter(|line| {
            line.contains("default ") || line.contains("; required") || line.contains("; optional")
        })
        .collect();
    assert_eq!(missing.len(), explained.len());
    missing.retain(|line| !explained.contains(line));
    assert_eq!(missing, Vec::<String>::new());
}
