//! Good callers beside a bad one: whatever that one does, each of their calls is answered, and rightly.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::support::tools::PATIENCE;
use crate::support::upstream::{Act, Seen};
use crate::support::{Client, Gateway, Pki, Setup};

const TILLS: &str = "spiffe://shop.example/tills";

/// What they ask for. Nobody else should.
const OPERATION: &str = "customerOpenApi/queryByUid";

/// How often each of them asks.
const INTERVAL: Duration = Duration::from_millis(10);

/// Calls of theirs between one event and the next.
const BETWEEN: usize = 20;

/// Makes them known, with an account of their own.
pub fn invite(setup: &mut Setup) {
    setup.account("till", "zyxwvutsrqponm", "anotherKey");
    let _ = write!(
        setup.more,
        "[callers.tills]\nidentities = [{TILLS:?}]\naccounts = [\"till\"]\noperations = [\"*\"]\n"
    );
}

/// The host's answer to one of their calls.
pub fn answer(seen: &Seen) -> Option<Act> {
    seen.target.ends_with(OPERATION).then(|| {
        let asked: Value = serde_json::from_slice(&seen.body).unwrap();
        Act::ok(told(asked["number"].as_u64().unwrap()))
    })
}

fn told(number: u64) -> String {
    json!({"status": "success", "data": {"number": number}}).to_string()
}

/// One of them on HTTP/1.1 and one on HTTP/2, at work.
pub struct Neighbours {
    stop: CancellationToken,
    calls: watch::Sender<usize>,
    at_work: JoinSet<Vec<String>>,
}

impl Neighbours {
    pub fn start(gateway: &Gateway, pki: &Pki) -> Self {
        let stop = CancellationToken::new();
        let calls = watch::Sender::new(0);
        let pair = pki.caller(TILLS);
        let mut at_work = JoinSet::new();
        for (nth, protocol) in ["http/1.1", "h2"].into_iter().enumerate() {
            let config = pki.client_config(Some(&pair), &[protocol], rustls::ALL_VERSIONS);
            let client = Client::new(gateway.address, config);
            let (stop, calls) = (stop.clone(), calls.clone());
            at_work.spawn(async move {
                let (mut failures, mut turns) = (Vec::new(), interval(INTERVAL));
                for number in (nth as u64..).step_by(2) {
                    if stop.run_until_cancelled(turns.tick()).await.is_none() {
                        break;
                    }
                    let path = format!("/openapi/v1/{OPERATION}");
                    let body = json!({"number": number}).to_string();
                    let headers = [("content-type", "application/json")];
                    let request = Client::request(&path, &headers, body);
                    match client.send(request).await {
                        Ok(answer) if answer.text() == told(number) => {}
                        other => failures.push(format!("{protocol}, {number}: {other:?}")),
                    }
                    calls.send_modify(|calls| *calls += 1);
                }
                failures
            });
        }
        Self {
            stop,
            calls,
            at_work,
        }
    }

    /// Waits until some more of their calls have ended.
    pub async fn go_on(&self) {
        let mut calls = self.calls.subscribe();
        let enough = *calls.borrow() + BETWEEN;
        let waited = timeout(PATIENCE, calls.wait_for(|calls| *calls >= enough)).await;
        assert!(waited.is_ok(), "the good callers are stuck");
    }

    /// All their calls were answered, from the first to the last.
    pub async fn are_well(mut self) {
        self.go_on().await;
        self.stop.cancel();
        let mut callers = 0;
        while let Some(failures) = self.at_work.join_next().await {
            assert_eq!(failures.unwrap(), Vec::<String>::new());
            callers += 1;
        }
        assert_eq!(callers, 2);
    }
}
