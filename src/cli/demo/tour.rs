//! The tour: the vendor's documented call first, then what else can happen to one.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::Context;
use anyhow::ensure;

use crate::cli::demo::caller;
use crate::cli::demo::caller::Caller;
use crate::cli::demo::paper::Paper;
use crate::cli::demo::scene::Scene;
use crate::simulator::faults::Fault;

/// One call, and what must come of it.
struct Stop {
    title: &'static str,
    /// What the host does wrong.
    fault: Option<Fault>,
    operation: &'static str,
    body: &'static str,
    status: u16,
    outcome: &'static str,
    /// How often the call reached the host.
    attempts: usize,
    /// What the answer must say.
    says: &'static str,
}

/// The vendor's documented example, without what the gateway adds.
const ADD: &str = r#"{"customerInfo":{"categoryName":"Gold Card","number":"KYBIO002","name":"OpenApi creation","point":0,"discount":60,"balance":0,"phone":"17759205640","birthday":"","qq":"","email":"","address":"","remarks":"","onAccount":0,"enable":1,"password":"EA4CEADDDDDD"}}"#;

/// The vendor's own example as its page prints it: two commas are missing.
const ADD_AS_PRINTED: &str = r#"{ "appId": "abcdefghijklmn", "customerInfo": { "categoryName": "Gold Card," "number": "KYBIO002", "name": "OpenApi creation", "point": 0, "discount": 60, "balance": 0, "phone": "17759205640", "birthday": "", "qq": "", "email": "", "address": "", "remarks": "", "onAccount": 0, "enable": 1 "password": "EA4CEADDDDDD" } }"#;

const PRODUCT: &str = r#"{"productInfo":{"name":"Jasmine tea","barcode":"6901","buyPrice":1.10,"sellPrice":2.50,"stock":100}}"#;

const STOPS: [Stop; 8] = [
    Stop {
        title: "The documented customerOpenApi/add",
        fault: None,
        operation: "customerOpenApi/add",
        body: ADD,
        status: 200,
        outcome: "done",
        attempts: 1,
        says: r#""status":"success""#,
    },
    Stop {
        title: "Find the member that was added",
        fault: None,
        operation: "customerOpenApi/queryByNumber",
        body: r#"{"customerNum":"KYBIO002"}"#,
        status: 200,
        outcome: "done",
        attempts: 1,
        says: "KYBIO002",
    },
    Stop {
        title: "The host reads a call and resets the connection: a read is asked again, with a new stamp",
        fault: Some(Fault::ResetAfterReading),
        operation: "customerOpenApi/queryByNumber",
        body: r#"{"customerNum":"KYBIO002"}"#,
        status: 200,
        outcome: "done",
        attempts: 2,
        says: "KYBIO002",
    },
    Stop {
        title: "The same with a write: it may have taken effect, so it's never sent twice, and the answer says so",
        fault: Some(Fault::ResetAfterReading),
        operation: "customerOpenApi/add",
        body: r#"{"customerInfo":{"number":"KYBIO003"}}"#,
        status: 502,
        outcome: "unknown",
        attempts: 1,
        says: "look it up with customerOpenApi/queryByNumber",
    },
    Stop {
        title: "Add a product",
        fault: None,
        operation: "productOpenApi/addProductInfo",
        body: PRODUCT,
        status: 200,
        outcome: "done",
        attempts: 1,
        says: r#""status":"success""#,
    },
    Stop {
        title: "Add it again: KYBIO says no, with HTTP 200 and its own words",
        fault: None,
        operation: "productOpenApi/addProductInfo",
        body: PRODUCT,
        status: 200,
        outcome: "rejected",
        attempts: 1,
        says: "5004",
    },
    Stop {
        title: "The example as the vendor's page prints it, which isn't JSON",
        fault: None,
        operation: "customerOpenApi/add",
        body: ADD_AS_PRINTED,
        status: 400,
        outcome: "not-sent",
        attempts: 0,
        says: "byte 76",
    },
    Stop {
        title: "An operation that this service wasn't granted",
        fault: None,
        operation: "orderOpenApi/addOnLineOrder",
        body: "{}",
        status: 403,
        outcome: "not-sent",
        attempts: 0,
        says: "operation-not-granted",
    },
];

/// What the gateway puts in.
const ADDED: &str = r#""appId":"abcdefghijklmn","#;

pub(super) async fn take(
    paper: &mut Paper,
    scene: &Scene,
    gateway: SocketAddr,
    admin: SocketAddr,
) -> anyhow::Result<()> {
    let before = counters(&caller::metrics(admin).await?);
    let mut caller = Caller::connect(gateway, &scene.ca, &scene.caller)
        .await
        .context("a connection to the gateway")?;
    for (number, stop) in STOPS.iter().enumerate() {
        visit(paper, scene, &mut caller, number + 1, stop)
            .await
            .context(stop.title)?;
    }
    let all = STOPS.len();
    paper.step(
        all + 1,
        &format!("{all} of {all} calls ended as they should; the metrics that moved"),
    )?;
    let after = counters(&caller::metrics(admin).await?);
    for (series, value) in after {
        let by = value - before.get(&series).copied().unwrap_or_default();
        if by != 0.0 {
            paper.moved(&series, by)?;
        }
    }
    Ok(())
}

async fn visit(
    paper: &mut Paper,
    scene: &Scene,
    caller: &mut Caller,
    number: usize,
    stop: &Stop,
) -> anyhow::Result<()> {
    paper.step(number, stop.title)?;
    if let Some(fault) = &stop.fault {
        paper.misbehaves(fault.name())?;
        scene.misbehave(fault.clone())?;
    }
    let path = format!("/openapi/v1/{}", stop.operation);
    paper.went_in(&path, stop.body)?;
    let answer = caller.post(&path, stop.body).await?;
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    let mut attempts = 0;
    while let Some(seen) = scene.seen().await {
        attempts += 1;
        paper.went_out(
            &seen.target,
            &seen.headers,
            &String::from_utf8_lossy(&seen.body),
            ADDED,
        )?;
    }
    if attempts == 0 {
        paper.nothing_went_out()?;
    }
    let outcome = answer.header("kybio-gateway-outcome");
    paper.came_back(answer.status.as_u16(), outcome, &body)?;
    ensure!(
        answer.status.as_u16() == stop.status,
        "HTTP {} was expected",
        stop.status
    );
    ensure!(
        outcome == stop.outcome,
        "the outcome {} was expected",
        stop.outcome
    );
    ensure!(
        attempts == stop.attempts,
        "{} attempts were expected",
        stop.attempts
    );
    ensure!(
        body.contains(stop.says),
        "{:?} was expected in the answer",
        stop.says
    );
    Ok(())
}

/// Counters alone, by series.
fn counters(page: &str) -> BTreeMap<String, f64> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    let series = lines.filter_map(|line| line.rsplit_once(' '));
    let counters = series.filter(|(series, _)| {
        series
            .split('{')
            .next()
            .is_some_and(|name| name.ends_with("_total"))
    });
    counters
        .filter_map(|(series, value)| Some((series.to_owned(), value.parse().ok()?)))
        .collect()
}
