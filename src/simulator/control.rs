//! Control calls: plain HTTP for people and tests on this machine, to set faults and to count. It has no way to read or change a shop,
//! and never says anything of keys.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use http::Method;
use http::Request;
use http::Response;
use http::StatusCode;
use http::header::ALLOW;
use http::header::CONTENT_TYPE;
use http_body_util::BodyExt;
use http_body_util::Full;
use http_body_util::Limited;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::Serialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::simulator::Simulator;
use crate::simulator::faults;
use crate::simulator::faults::Entry;
use crate::simulator::faults::Fault;
use crate::simulator::faults::Faults;
use crate::simulator::faults::Standing;
use crate::simulator::faults::When;
use crate::simulator::host;

/// Answers control calls until `stop`; what is under way then is dropped.
pub(super) async fn serve(
    simulator: Arc<Simulator>,
    listener: TcpListener,
    stop: CancellationToken,
) {
    let welcome = |socket| {
        let conversation = timeout(CONNECTION_TIME, converse(Arc::clone(&simulator), socket));
        let stop = stop.clone();
        async move {
            if let Some(Err(_)) = stop.run_until_cancelled(conversation).await {
                tracing::debug!("a control call took too long");
            }
        }
    };
    host::accept(listener, CONNECTIONS_MAX, &stop, welcome).await;
}

/// One connection, one call.
async fn converse(simulator: Arc<Simulator>, socket: TcpStream) {
    let service = service_fn(|request| answer(&simulator, request));
    let ended = http1::Builder::new()
        // The connection's own limit is the shorter one.
        .header_read_timeout(None)
        .max_buf_size(HEADER_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(socket), service)
        .await;
    if let Err(error) = ended {
        tracing::debug!(%error, "a control connection broke");
    }
}

async fn answer(
    simulator: &Simulator,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let response = match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(body) => decide(simulator, &head.method, head.uri.path(), &body.to_bytes()),
        Err(_) => refusal(
            StatusCode::PAYLOAD_TOO_LARGE,
            &format!("the body is broken, or longer than {BODY_BYTES_MAX} bytes"),
        ),
    };
    Ok(response.map(Full::new))
}

fn decide(simulator: &Simulator, method: &Method, path: &str, body: &[u8]) -> Response<Bytes> {
    let faults = simulator.faults();
    match (path, method) {
        ("/faults", &Method::GET) => listed(faults),
        ("/faults", &Method::POST) => match Wanted::entry(body).and_then(|entry| {
            let added = faults.add(entry);
            added.map_err(|error| error.to_string())
        }) {
            Ok(()) => listed(faults),
            Err(message) => refusal(StatusCode::BAD_REQUEST, &message),
        },
        ("/faults", &Method::DELETE) => {
            faults.clear();
            listed(faults)
        }
        ("/faults", _) => wrong_verb("GET, POST, DELETE"),
        ("/calls", &Method::GET) => page(StatusCode::OK, &simulator.calls()),
        ("/calls", _) => wrong_verb("GET"),
        _ => refusal(StatusCode::NOT_FOUND, "there is /faults and /calls"),
    }
}

fn listed(faults: &Faults) -> Response<Bytes> {
    let list = List {
        faults: faults.standings().into_iter().map(Listed::from).collect(),
        struck: faults.struck(),
    };
    page(StatusCode::OK, &list)
}

fn wrong_verb(allowed: &'static str) -> Response<Bytes> {
    let mut response = refusal(
        StatusCode::METHOD_NOT_ALLOWED,
        &format!("it takes {allowed}"),
    );
    response
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

fn refusal(status: StatusCode, message: &str) -> Response<Bytes> {
    page(status, &json!({"error": message}))
}

fn page(status: StatusCode, value: &impl Serialize) -> Response<Bytes> {
    let mut text = serde_json::to_vec(value).expect("a page has only string keys");
    // For terminals.
    text.push(b'\n');
    let mut response = Response::new(Bytes::from(text));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A fault as it's written.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    fault: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    operation: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    calls: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    probability: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delay_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<u32>,
}

impl Wanted {
    /// What the body asks for, its bounds unchecked; else what is wrong with it.
    fn entry(body: &[u8]) -> Result<Entry, String> {
        let wanted: Self = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        Ok(Entry {
            fault: wanted.fault()?,
            when: match (wanted.calls, wanted.probability) {
                (calls, None) => When::Next(calls.unwrap_or(1)),
                (None, Some(probability)) => When::Probability(probability),
                (Some(_), Some(_)) => return Err("give calls or probability, not both".to_owned()),
            },
            operation: wanted.operation,
        })
    }

    fn fault(&self) -> Result<Fault, String> {
        let mut fault = Fault::named(&self.fault).ok_or_else(|| {
            let names = Fault::ALL.each_ref().map(Fault::name).join(", ");
            format!("there is no fault {:?}: it is one of {names}", self.fault)
        })?;
        let mut strays = [
            ("delay_ms", "slow", self.delay_ms.is_some()),
            ("status", "status", self.status.is_some()),
            ("retry_after", "status", self.retry_after.is_some()),
        ]
        .into_iter()
        .filter(|(_, owner, is_given)| *is_given && *owner != fault.name());
        if let Some((key, owner, _)) = strays.next() {
            return Err(format!("{key} is for the fault {owner} alone"));
        }
        if let Fault::Slow { delay } = &mut fault
            && let Some(ms) = self.delay_ms
        {
            *delay = Duration::from_millis(ms);
        }
        if let Fault::Status {
            status,
            retry_after,
        } = &mut fault
        {
            if let Some(code) = self.status {
                *status =
                    StatusCode::from_u16(code).map_err(|_| faults::Error::Status.to_string())?;
            }
            *retry_after = self.retry_after;
        }
        Ok(fault)
    }
}

/// What is set, and how often anything struck.
#[derive(Serialize)]
struct List {
    faults: Vec<Listed>,
    struck: u64,
}

/// A fault as it's listed: what could be sent to set it again, and how often it struck.
#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    wanted: Wanted,
    struck: u64,
}

impl From<Standing> for Listed {
    fn from(Standing { entry, struck }: Standing) -> Self {
        let (calls, probability) = match entry.when {
            When::Next(left) => (Some(left), None),
            When::Probability(probability) => (None, Some(probability)),
        };
        let mut wanted = Wanted {
            fault: entry.fault.name().to_owned(),
            operation: entry.operation,
            calls,
            probability,
            delay_ms: None,
            status: None,
            retry_after: None,
        };
        if let Fault::Slow { delay } = entry.fault {
            wanted.delay_ms = u64::try_from(delay.as_millis()).ok();
        }
        if let Fault::Status {
            status,
            retry_after,
        } = entry.fault
        {
            wanted.status = Some(status.as_u16());
            wanted.retry_after = retry_after;
        }
        Self { wanted, struck }
    }
}

/// The most connections at once.
const CONNECTIONS_MAX: usize = 16;

/// The longest that one may last.
const CONNECTION_TIME: Duration = Duration::from_secs(10);

/// The largest request head.
const HEADER_BYTES_MAX: usize = 16 * 1024;

/// The largest request body.
const BODY_BYTES_MAX: usize = 4 * 1024;

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::Value;
    use serde_json::json;

    use crate::simulator::Simulator;
    use crate::simulator::bench::Bench;
    use crate::simulator::control::decide;
    use crate::simulator::faults::Fault;

    fn call(simulator: &Simulator, method: Method, path: &str, body: &str) -> (u16, Value) {
        let response = decide(simulator, &method, path, body.as_bytes());
        assert_eq!(response.headers()["content-type"], "application/json");
        let json = serde_json::from_slice(response.body()).unwrap();
        (response.status().as_u16(), json)
    }

    fn post(simulator: &Simulator, body: &str) -> (u16, Value) {
        call(simulator, Method::POST, "/faults", body)
    }

    #[test]
    fn what_is_set_is_listed_as_it_could_be_set_again() {
        let cases = [
            (
                r#"{"fault":"garbage"}"#,
                json!({"fault": "garbage", "calls": 1}),
            ),
            (
                r#"{"fault":"refuse","calls":3,"probability":null}"#,
                json!({"fault": "refuse", "calls": 3}),
            ),
            (
                r#"{"fault":"slow","probability":0.05,"delay_ms":500,"operation":"customeropenapi/ADD"}"#,
                json!({"fault": "slow", "probability": 0.05, "delay_ms": 500, "operation": "customerOpenApi/add"}),
            ),
            (
                r#"{"fault":"slow"}"#,
                json!({"fault": "slow", "calls": 1, "delay_ms": 2000}),
            ),
            (
                r#"{"fault":"status"}"#,
                json!({"fault": "status", "calls": 1, "status": 503}),
            ),
            (
                r#"{"fault":"status","status":429,"retry_after":7}"#,
                json!({"fault": "status", "calls": 1, "status": 429, "retry_after": 7}),
            ),
        ];
        for (body, mut expected) in cases {
            let simulator = Bench::new().simulator();
            let again = expected.to_string();
            expected["struck"] = json!(0);
            for body in [body, &again] {
                let listed = json!({"faults": [expected.clone()], "struck": 0});
                assert_eq!(post(&simulator, body), (200, listed.clone()), "{body}");
                let get = call(&simulator, Method::GET, "/faults", "");
                assert_eq!(get, (200, listed), "{body}");
                let cleared = call(&simulator, Method::DELETE, "/faults", "");
                assert_eq!(cleared, (200, json!({"faults": [], "struck": 0})));
            }
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_what_is_allowed() {
        let all = Fault::ALL.map(|fault| fault.name()).join(", ");
        let cases = [
            ("", "EOF while parsing a value"),
            (r#"{"calls":1}"#, "missing field `fault`"),
            (r#"{"fault":"explode"}"#, all.as_str()),
            (
                r#"{"fault":"quota","call":1}"#,
                "unknown field `call`, expected one of `fault`, `operation`, `calls`, `probability`, `delay_ms`, `status`, `retry_after`",
            ),
            (
                r#"{"fault":"quota","calls":1,"probability":1}"#,
                "give calls or probability, not both",
            ),
            (r#"{"fault":"quota","calls":0}"#, "calls is 1 to 1000000"),
            (r#"{"fault":"quota","calls":-1}"#, "expected u32"),
            (r#"{"fault":"quota","calls":"3"}"#, "expected u32"),
            (
                r#"{"fault":"quota","probability":1.5}"#,
                "probability is 0 to 1",
            ),
            (
                r#"{"fault":"slow","delay_ms":60001}"#,
                "delay_ms is 0 to 60000",
            ),
            (
                r#"{"fault":"quota","delay_ms":1}"#,
                "delay_ms is for the fault slow alone",
            ),
            (
                r#"{"fault":"slow","status":500}"#,
                "status is for the fault status alone",
            ),
            (
                r#"{"fault":"slow","retry_after":5}"#,
                "retry_after is for the fault status alone",
            ),
            (
                r#"{"fault":"status","status":404}"#,
                "status is 429, or 500 to 599",
            ),
            (
                r#"{"fault":"status","status":7}"#,
                "status is 429, or 500 to 599",
            ),
            (
                r#"{"fault":"status","retry_after":86401}"#,
                "retry_after is 0 to 86400 seconds",
            ),
            (
                r#"{"fault":"quota","operation":"add"}"#,
                "write it as customerOpenApi/add",
            ),
            (
                r#"{"fault":"refuse","operation":"customerOpenApi/add"}"#,
                "refuse takes no operation",
            ),
        ];
        let simulator = Bench::new().simulator();
        for (body, expected) in cases {
            let (status, json) = post(&simulator, body);
            let message = json["error"].as_str().unwrap();
            assert_eq!(status, 400, "{body}");
            assert!(message.contains(expected), "{body}: {message}");
        }
        assert!(simulator.faults().standings().is_empty());
    }

    #[test]
    fn other_paths_and_verbs_are_told_what_there_is() {
        let simulator = Bench::new().simulator();
        let cases = [
            (Method::GET, "/", 404),
            (Method::PUT, "/faults", 405),
            (Method::POST, "/calls", 405),
            (Method::GET, "/calls", 200),
        ];
        for (method, path, expected) in cases {
            let (status, _) = call(&simulator, method.clone(), path, "{}");
            assert_eq!(status, expected, "{method} {path}");
        }
    }
}
