//! The test bench: a stand-in with the two sample accounts, and a caller that signs.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http::Request;
use http::Response;
use md5::Digest;
use md5::Md5;
use serde_json::Value;
use serde_json::json;

use crate::clock::Clock;
use crate::simulator::Account;
use crate::simulator::QUOTA_PER_DAY;
use crate::simulator::Settings;
use crate::simulator::Simulator;

/// The sample accounts; one key signs for both.
pub(super) const APP_IDS: [&str; 2] = ["abcdefghijklmn", "EC48AD85DCDDF5D69567C82E4565B127"];

/// The vendor's printed sample key.
pub(super) const APP_KEY: &str = "roger1AppKey";

/// The bench's local day.
pub(super) const TODAY: &str = "2026-08-25";

/// 2026-08-25 23:59:59 local time.
const NOW: u64 = 1_787_673_599;

/// A stand-in and the account that calls it.
pub(super) struct Bench {
    simulator: Arc<Simulator>,
    app_id: &'static str,
}

impl Bench {
    /// With the vendor's quota.
    pub(super) fn new() -> Self {
        Self::with_quota(QUOTA_PER_DAY)
    }

    /// With a quota of the test's choice.
    pub(super) fn with_quota(quota_per_day: u32) -> Self {
        let account = |app_id: &str| Account {
            app_id: app_id.to_owned(),
            app_keys: vec![APP_KEY.to_owned()],
        };
        let settings = Settings {
            accounts: APP_IDS.map(account).into(),
            quota_per_day,
        };
        let simulator = Arc::new(Simulator::new(
            settings,
            Clock::fixed(Duration::from_secs(NOW)),
        ));
        Self {
            simulator,
            app_id: APP_IDS[0],
        }
    }

    /// The same stand-in, called by the second account.
    pub(super) fn second(&self) -> Self {
        Self {
            simulator: Arc::clone(&self.simulator),
            app_id: APP_IDS[1],
        }
    }

    /// Lets the bench's clock pass local midnight.
    pub(super) fn pass_midnight(&mut self) {
        let simulator = Arc::get_mut(&mut self.simulator).expect("the bench holds the only handle");
        simulator.clock = Clock::fixed(Duration::from_secs(NOW + 1));
    }

    /// The stand-in itself.
    pub(super) fn simulator(&self) -> Arc<Simulator> {
        Arc::clone(&self.simulator)
    }

    /// A signed call of an operation.
    pub(super) fn call(&self, operation: &str, mut body: Value) -> Answered {
        body["appId"] = json!(self.app_id);
        self.send(&signed(
            &format!("/openapi/v1/{operation}"),
            body.to_string().into(),
        ))
    }

    /// Any request.
    pub(super) fn send(&self, request: &Request<Bytes>) -> Answered {
        Answered(self.simulator.answer(request))
    }
}

/// A request with the signature of the sample key.
pub(super) fn signed(path: &str, body: Bytes) -> Request<Bytes> {
    let digest = Md5::digest([APP_KEY.as_bytes(), &body].concat());
    let signature: String = digest.iter().map(|byte| format!("{byte:02X}")).collect();
    let mut request = Request::builder().method(Method::POST).uri(path);
    request = request
        .header("data-signature", signature)
        .header("time-stamp", "1437528688233");
    request
        .header("content-type", "application/json; charset=utf-8")
        .body(body)
        .unwrap()
}

/// An answer that wasn't compressed.
pub(super) struct Answered(Response<Bytes>);

impl Answered {
    pub(super) fn http_status(&self) -> u16 {
        self.0.status().as_u16()
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.0.headers()[name].to_str().unwrap()
    }

    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(self.0.body()).unwrap()
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_str(self.text()).unwrap()
    }

    pub(super) fn status(&self) -> String {
        self.json()["status"].as_str().unwrap().to_owned()
    }

    pub(super) fn message(&self) -> String {
        self.json()["messages"][0].as_str().unwrap().to_owned()
    }

    pub(super) fn code(&self) -> Value {
        self.json()["errorCode"].clone()
    }

    pub(super) fn data(&self) -> Option<Value> {
        self.json().get("data").cloned()
    }
}
