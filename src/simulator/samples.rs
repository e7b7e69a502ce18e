//! The vendor's sample calls, driven through the stand-in in an order that makes sense.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;

use bytes::Bytes;
use serde_json::Value;
use serde_json::json;

use crate::simulator::bench::Answered;
use crate::simulator::bench::Bench;
use crate::simulator::bench::signed;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/samples/");

/// Reads come as they like; writes that build on each other come in this order. `product-update-missing` and `quota-exhausted`
/// have tests of their own, since they need a deleted product and a quota used up. `push-ticket-new` isn't a call.
const ORDER: [&str; 38] = [
    "customer-add",
    "customer-add-with-data",
    "customer-queryByNumber",
    "customer-queryBytel",
    "customer-queryByUid",
    "customer-pages-first",
    "customer-pages-next",
    "customer-updateBaseInfo",
    "customer-increment",
    "customer-increment-duplicate",
    "customer-rechargeLog",
    "customer-allRechargeLogs",
    "customer-categories",
    "customer-batchUpdateCategory",
    "product-update",
    "product-categoryPages",
    "product-queryByUid",
    "product-queryByBarcodes",
    "product-pages",
    "product-add",
    "product-add-duplicate",
    "product-stock-increment",
    "ticket-payMethods",
    "ticket-bySn",
    "ticket-pages",
    "ticket-customerHistory",
    "ticket-refund-of-sell",
    "order-add",
    "order-byNo",
    "order-complete",
    "order-cancel",
    "order-pages",
    "quota-accessTimes",
    "quota-dailyLog",
    "stockflow-requestPages",
    "stocktaking-histories",
    "push-queryUrl",
    "push-updateUrl",
];

const APART: [&str; 3] = [
    "product-update-missing",
    "quota-exhausted",
    "push-ticket-new",
];

/// One entry of the manifest with its files.
struct Sample {
    path: String,
    signature: String,
    request: Vec<u8>,
    response: Value,
}

fn samples() -> BTreeMap<String, Sample> {
    let read = |name: &str| fs::read(format!("{FOLDER}{name}")).unwrap();
    let manifest: Value = serde_json::from_slice(&read("manifest.json")).unwrap();
    let entries = manifest["samples"].as_array().unwrap().iter();
    let sample = |entry: &Value| {
        let text = |field: &str| entry[field].as_str().unwrap().to_owned();
        let sample = Sample {
            path: text("path"),
            signature: text("data_signature"),
            request: read(&text("request")),
            // The reply to a push is the text SUCCESS.
            response: serde_json::from_slice(&read(&text("response"))).unwrap_or_default(),
        };
        (text("name"), sample)
    };
    entries.map(sample).collect()
}

fn send(bench: &Bench, sample: &Sample) -> Answered {
    let request = signed(&sample.path, Bytes::copy_from_slice(&sample.request));
    assert_eq!(
        request.headers()["data-signature"],
        sample.signature.as_str()
    );
    bench.send(&request)
}

fn check(name: &str, sample: &Sample, answered: &Answered) {
    let (actual, expected) = (answered.json(), &sample.response);
    assert_eq!(answered.http_status(), 200, "{name}");
    assert_eq!(actual["status"], expected["status"], "{name}: {actual}");
    assert_eq!(
        actual.get("errorCode"),
        expected.get("errorCode"),
        "{name}: {actual}"
    );
    if let Err(difference) = same_shape(&actual, expected) {
        panic!("{name}: {difference}\n{actual}");
    }
    let message = &expected["messages"][0];
    assert_eq!(&actual["messages"][0], message, "{name}");
}

/// Objects must have the same keys, all the way down. Where the sample's list has entries, the answer's must have one of the same
/// shape, and every other must have the keys of it; an empty list in the sample says nothing of its entries.
fn same_shape(actual: &Value, expected: &Value) -> Result<(), String> {
    match (actual, expected) {
        (Value::Object(actual), Value::Object(expected)) => {
            let keys = |object: &serde_json::Map<String, Value>| {
                object.keys().cloned().collect::<BTreeSet<_>>()
            };
            if keys(actual) != keys(expected) {
                return Err(format!("keys {:?}, not {:?}", keys(actual), keys(expected)));
            }
            expected.iter().try_for_each(|(key, value)| {
                same_shape(&actual[key], value).map_err(|error| format!("{key}: {error}"))
            })
        }
        (Value::Array(actual), Value::Array(expected)) => {
            let Some(first) = expected.first() else {
                return Ok(());
            };
            let keys = |value: &Value| {
                value
                    .as_object()
                    .map(|object| object.keys().cloned().collect::<Vec<_>>())
            };
            if actual.iter().any(|entry| keys(entry) != keys(first)) {
                return Err("an entry has other keys".to_owned());
            }
            let outcomes = actual.iter().map(|entry| same_shape(entry, first));
            outcomes
                .reduce(|left, right| left.or(right))
                .unwrap_or_else(|| Err("an empty list".to_owned()))
        }
        (Value::Object(_) | Value::Array(_), other)
        | (other, Value::Object(_) | Value::Array(_)) => {
            Err(format!("a plain value against {other}"))
        }
        (Value::Number(_), Value::String(_)) | (Value::String(_), Value::Number(_)) => {
            Err(format!("{actual} for {expected}"))
        }
        _ => Ok(()),
    }
}

#[test]
fn every_sample_in_order_has_the_status_code_and_shape_of_its_page() {
    let samples = samples();
    let listed: BTreeSet<&str> = ORDER.into_iter().chain(APART).collect();
    assert_eq!(
        samples.keys().map(String::as_str).collect::<BTreeSet<_>>(),
        listed
    );
    let bench = Bench::new();
    for name in ORDER {
        check(name, &samples[name], &send(&bench, &samples[name]));
    }
}

#[test]
fn every_sample_that_reads_is_answered_by_a_fresh_stand_in_too() {
    let samples = samples();
    let reads: Vec<&str> = ORDER
        .into_iter()
        .filter(|name| samples[*name].path.contains("/query"))
        .collect();
    assert!(reads.len() > 20);
    for name in reads {
        check(name, &samples[name], &send(&Bench::new(), &samples[name]));
    }
}

#[test]
fn a_deleted_product_is_missing_to_its_update() {
    let sample = &samples()["product-update-missing"];
    let bench = Bench::new();
    let deletion = json!({"productInfo": {"uid": 1_366_004_607_492_564_649_i64, "enable": -1}});
    assert_eq!(
        bench
            .call("productOpenApi/updateProductInfo", deletion)
            .status(),
        "success"
    );
    check("product-update-missing", sample, &send(&bench, sample));
}

#[test]
fn a_quota_used_up_answers_as_its_sample_does() {
    let sample = &samples()["quota-exhausted"];
    let bench = Bench::with_quota(1);
    assert_eq!(send(&bench, sample).status(), "success");
    check("quota-exhausted", sample, &send(&bench, sample));
}

#[test]
fn the_vendors_own_broken_example_is_no_json_object() {
    let body = fs::read(format!("{FOLDER}customer-add.doc-verbatim-INVALID.txt")).unwrap();
    let answered = Bench::new().send(&signed("/openapi/v1/customerOpenApi/add", body.into()));
    assert_eq!(answered.message(), "body is not a JSON object");
}
