//! Promise B1: every byte of the caller's body but the spliced `appId` reaches the upstream as it came, and the signature is over
//! exactly what was sent. Signatures are checked by `md5sum`, which shares nothing with us.

use std::process::Command;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use serde_json::Value;

use crate::support::gateway::{APP_ID, APP_KEY};
use crate::support::{Gateway, Pki, Setup, Upstream, tools};

async fn started() -> (Pki, Upstream, Gateway) {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    (pki, upstream, gateway)
}

#[tokio::test]
async fn app_id_is_put_in_first_and_nothing_else_changes() {
    let (pki, upstream, gateway) = started().await;
    let client = gateway.client(&pki);
    let cases = [
        ("", r#"{"appId":"abcdefghijklmn"}"#),
        ("{}", r#"{"appId":"abcdefghijklmn"}"#),
        (" \r\n{}\t", r#"{"appId":"abcdefghijklmn"}"#),
        (
            r#"{"customerUid":1366004607492564649}"#,
            r#"{"appId":"abcdefghijklmn","customerUid":1366004607492564649}"#,
        ),
        (
            r#"{"a":1.10,"b":1e400,"c":-0.0E+5}"#,
            r#"{"appId":"abcdefghijklmn","a":1.10,"b":1e400,"c":-0.0E+5}"#,
        ),
        (
            r#"{ "z" : "\/" , "a" : "\u5f20🍣张" }"#,
            r#"{"appId":"abcdefghijklmn", "z" : "\/" , "a" : "\u5f20🍣张" }"#,
        ),
        (
            r#"{"a":{"x":1,"x":2,"appId":"nested"},"b":"\ud800"}"#,
            r#"{"appId":"abcdefghijklmn","a":{"x":1,"x":2,"appId":"nested"},"b":"\ud800"}"#,
        ),
        (
            r#"{"n":1,"appId":"abcdefghijklmn"}"#,
            r#"{"n":1,"appId":"abcdefghijklmn"}"#,
        ),
        (
            "\n{\"appId\": \"abcdefghijklmn\" }\n",
            "{\"appId\": \"abcdefghijklmn\" }",
        ),
    ];
    for (body, expected) in cases {
        let answer = client.call("customerOpenApi/queryByUid", body).await;
        assert_eq!(
            answer.header("kybio-gateway-outcome"),
            "done",
            "{body}: {answer:?}"
        );
        let seen = upstream.last();
        assert_eq!(seen.text(), expected);
        assert!(seen.is_signed_with(APP_KEY), "{body}");
    }
}

#[tokio::test]
async fn the_shared_vectors_are_signed_as_they_say() {
    let vectors: Value =
        serde_json::from_str(include_str!("vectors/signature-vectors.json")).unwrap();
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let mut setup = Setup::new(&pki, Some(upstream.address));
    setup.account("a", "mylinl1", "roger1AppKey");
    setup.account("b", "demoApp", "demoKey");
    setup.account("c", "shop", "secret");
    setup.orders.push_str("account_by = \"app-id\"\n");
    let gateway = setup.start().await;
    let client = gateway.client(&pki);
    let mut tried = 0;
    for vector in vectors["v1"].as_array().unwrap() {
        let body = vector["body_text"].as_str().unwrap();
        // Those that aren't one object with an appId and nothing around it are another test's matter.
        if serde_json::from_str::<Value>(body).is_ok_and(|json| json["appId"].is_string())
            && body.ends_with('}')
        {
            client
                .call("customerOpenApi/queryByUid", body.to_owned())
                .await;
            let seen = upstream.last();
            assert_eq!(
                seen.header("data-signature"),
                vector["data_signature"],
                "{}",
                vector["name"]
            );
            assert_eq!(seen.text(), body);
            tried += 1;
        }
    }
    assert!(tried >= 13, "{tried}");
}

/// How many bodies are generated: a few thousand here, `KYBIO_GATEWAY_TEST_BODIES=100000` once by hand.
fn bodies_to_try() -> usize {
    std::env::var_os("KYBIO_GATEWAY_TEST_BODIES")
        .map_or(3_000, |count| count.to_str().unwrap().parse().unwrap())
}

#[tokio::test]
async fn generated_bodies_come_through_byte_for_byte_with_a_signature_that_md5sum_confirms() {
    let (pki, upstream, gateway) = started().await;
    let client = gateway.client(&pki);
    let folder = tempfile::tempdir().unwrap();
    let mut runner = TestRunner::new(Config::default());
    let (count, strategy) = (bodies_to_try(), body());
    let mut signatures = Vec::new();
    for number in 0..count {
        let (before, members, after) = strategy.new_tree(&mut runner).unwrap().current();
        let answer = client
            .call(
                "customerOpenApi/queryByUid",
                format!("{before}{{{members}}}{after}"),
            )
            .await;
        assert_eq!(
            answer.header("kybio-gateway-outcome"),
            "done",
            "{members}: {answer:?}"
        );
        let comma = if members.trim_ascii().is_empty() {
            ""
        } else {
            ","
        };
        let seen = upstream.last();
        assert_eq!(
            seen.text(),
            format!("{{\"appId\":\"{APP_ID}\"{comma}{members}}}")
        );
        signatures.push(seen.header("data-signature").to_owned());
        std::fs::write(
            folder.path().join(number.to_string()),
            [APP_KEY.as_bytes(), &seen.body].concat(),
        )
        .unwrap();
    }
    assert_eq!(upstream.seen().len(), count);
    let mut checked = 0;
    for numbers in (0..count).collect::<Vec<_>>().chunks(1_000) {
        let files = numbers.iter().map(ToString::to_string);
        let sums = tools::stdout(&tools::run(
            Command::new("md5sum")
                .args(files)
                .current_dir(folder.path()),
        ));
        for line in sums.lines() {
            let (sum, number) = line.split_once("  ").unwrap();
            assert_eq!(
                sum.to_uppercase(),
                signatures[number.parse::<usize>().unwrap()]
            );
            checked += 1;
        }
    }
    assert_eq!(checked, count);
}

/// White space around, and members between the braces: JSON text as people and libraries write it.
fn body() -> impl Strategy<Value = (String, String, String)> {
    let space = "[ \t\r\n]{0,3}";
    let number = prop_oneof![
        "-?(0|[1-9][0-9]{0,40})",
        "-?(0|[1-9][0-9]{0,9})\\.[0-9]{1,20}",
        "-?[1-9][0-9]{0,5}[eE][+-]?[0-9]{1,4}"
    ];
    let text =
        r#""([ -!#-\[\]-~]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4}|[¡-힣]|[😀-🙏]|[\x{7f}-\x{9f}]){0,20}""#;
    let leaf = prop_oneof![
        number,
        text,
        Just("true".to_owned()),
        Just("false".to_owned()),
        Just("null".to_owned())
    ];
    let value = leaf.prop_recursive(60, 200, 5, move |inner| {
        let list =
            proptest::collection::vec((space, inner.clone(), space), 0..5).prop_map(|items| {
                format!(
                    "[{}]",
                    items
                        .iter()
                        .map(|(a, item, b)| format!("{a}{item}{b}"))
                        .collect::<Vec<_>>()
                        .join(",")
                )
            });
        let object = proptest::collection::vec((space, text, space, inner, space), 0..5)
            .prop_map(|members| format!("{{{}}}", joined(&members)));
        let deep =
            (1_usize..60).prop_map(|depth| format!("{}{}", "[".repeat(depth), "]".repeat(depth)));
        prop_oneof![3 => list, 3 => object, 1 => deep]
    });
    // Top-level keys are told apart by their number, since none may stand twice.
    let members = proptest::collection::vec((space, "[a-z张🍣 ]{0,6}", space, value, space), 0..6)
        .prop_map(|members| {
            let numbered =
                members
                    .into_iter()
                    .enumerate()
                    .map(|(number, (a, key, b, value, c))| {
                        (a, format!("\"{key}{number}\""), b, value, c)
                    });
            joined(&numbered.collect::<Vec<_>>())
        });
    (space, members, space)
}

fn joined(members: &[(String, String, String, String, String)]) -> String {
    members
        .iter()
        .map(|(a, key, b, value, c)| format!("{a}{key}{b}:{b}{value}{c}"))
        .collect::<Vec<_>>()
        .join(",")
}
