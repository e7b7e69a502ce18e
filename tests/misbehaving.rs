//! The stand-in host misbehaves on demand: each fault as a caller sees it, whether the call took effect, and for which calls it strikes.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::Command;

use flate2::read::GzDecoder;
use serde_json::{Value, json};

use crate::support::gateway::APP_KEY;
use crate::support::stand_in::StandIn;
use crate::support::tools;
use crate::support::tools::PATIENCE;
use crate::support::upstream::signature;

const ADD: &str = "customerOpenApi/add";
const FIND: &str = "customerOpenApi/queryByNumber";

/// An honest call on a connection of its own.
fn call(stand_in: &StandIn, operation: &str, body: &Value) -> Value {
    let seen = Caller::to(stand_in).call(operation, body);
    assert_eq!((seen.status, seen.ended), (200, None));
    serde_json::from_slice(&seen.body).unwrap()
}

/// Whether there is a member of that number.
fn has(stand_in: &StandIn, number: &str) -> bool {
    let found = call(stand_in, FIND, &json!({"customerNum": number}));
    assert_eq!(found["status"], "success", "{found}");
    !found["data"].is_null()
}

/// A caller with one plain connection.
struct Caller(TcpStream);

/// What came back until the connection ended.
struct Seen {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
    /// What ended it, if it wasn't orderly.
    ended: Option<ErrorKind>,
}

impl Seen {
    fn length(&self) -> usize {
        self.headers["content-length"].parse().unwrap()
    }
}

impl Caller {
    fn to(stand_in: &StandIn) -> Self {
        let socket = TcpStream::connect(stand_in.address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    fn send(&mut self, bytes: &[u8]) {
        // What a reset does to what is being sent is no matter: the answer tells.
        let _ = self.0.write_all(bytes);
    }

    /// One call, the connection's last.
    fn call(mut self, operation: &str, body: &Value) -> Seen {
        let (head, body) = request(operation, body, "connection: close\r\n");
        self.send(&[head, body].concat());
        self.rest()
    }

    /// One call that keeps the connection; whether it was answered.
    fn kept_call(&mut self, operation: &str, body: &Value) -> bool {
        let (head, body) = request(operation, body, "");
        self.send(&[head, body].concat());
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if self.0.read_exact(&mut byte).is_err() {
                return false;
            }
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        self.0.read_exact(&mut body).is_ok()
    }

    /// Everything that still comes, to the end.
    fn rest(mut self) -> Seen {
        let mut bytes = Vec::new();
        let ended = self
            .0
            .read_to_end(&mut bytes)
            .err()
            .map(|error| error.kind());
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        let (head, body) = bytes.split_at(end.map_or(bytes.len(), |end| end + 4));
        let head = std::str::from_utf8(head).unwrap();
        let headers = head.lines().filter_map(|line| line.split_once(": "));
        Seen {
            status: head
                .split(' ')
                .nth(1)
                .map_or(0, |status| status.parse().unwrap()),
            headers: headers
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            body: body.to_vec(),
            ended,
        }
    }
}

/// A signed request's head and body.
fn request(operation: &str, body: &Value, more: &str) -> (Vec<u8>, Vec<u8>) {
    let mut body = body.clone();
    body["appId"] = json!("abcdefghijklmn");
    let body = body.to_string().into_bytes();
    let head = format!(
        "POST /pospal-api2/openapi/v1/{operation} HTTP/1.1\r\nhost: kybio\r\ncontent-type: application/json\r\n\
         time-stamp: 1437528688233\r\ndata-signature: {}\r\n{more}content-length: {}\r\n\r\n",
        signature(APP_KEY, &body),
        body.len()
    );
    (head.into_bytes(), body)
}

fn member(number: &str) -> Value {
    json!({"customerInfo": {"number": number, "name": "Anna"}})
}

/// Adds a member while `fault` strikes; what the caller sees, and whether there is such a member then.
fn struck(stand_in: &StandIn, fault: &Value) -> (Seen, bool) {
    stand_in.set(fault);
    let number = fault.to_string();
    let seen = Caller::to(stand_in).call(ADD, &member(&number));
    assert_eq!(stand_in.faults().0, json!([]), "{fault} has struck");
    (seen, has(stand_in, &number))
}

#[test]
fn a_reset_before_reading_comes_without_a_body_and_without_effect() {
    let stand_in = StandIn::start();
    stand_in.set(&json!({"fault": "reset-before-reading"}));
    let mut caller = Caller::to(&stand_in);
    // The body is never sent: the head is enough.
    caller.send(&request(ADD, &member("N-1"), "").0);
    let seen = caller.rest();
    assert_eq!(
        (seen.status, seen.ended),
        (0, Some(ErrorKind::ConnectionReset))
    );
    assert!(!has(&stand_in, "N-1"));
    stand_in.logged(&["a simulated fault struck", ADD, "reset-before-reading"]);
}

#[test]
fn a_reset_after_reading_comes_after_the_effect() {
    let (seen, took_effect) = struck(&StandIn::start(), &json!({"fault": "reset-after-reading"}));
    assert_eq!(
        (seen.status, seen.body.len(), seen.ended),
        (0, 0, Some(ErrorKind::ConnectionReset))
    );
    assert!(took_effect);
}

#[test]
fn half_an_answer_promises_the_whole() {
    let (seen, took_effect) = struck(&StandIn::start(), &json!({"fault": "half-answer"}));
    assert_eq!((seen.status, seen.ended), (200, None));
    assert_eq!(seen.length() / 2, seen.body.len());
    assert_eq!(
        seen.headers["content-type"],
        "application/json; charset=utf-8"
    );
    assert!(seen.body.starts_with(br#"{"status":"success""#));
    assert!(took_effect);
}

#[test]
fn a_wrong_length_promises_more_than_the_whole() {
    let (seen, took_effect) = struck(&StandIn::start(), &json!({"fault": "wrong-length"}));
    assert_eq!((seen.status, seen.ended), (200, None));
    assert!(seen.length() > seen.body.len());
    let answer: Value = serde_json::from_slice(&seen.body).unwrap();
    assert_eq!(answer["status"], "success");
    assert!(took_effect);
}

#[test]
fn a_truncated_gzip_has_the_length_that_it_says_and_no_end() {
    let (seen, took_effect) = struck(&StandIn::start(), &json!({"fault": "truncated-gzip"}));
    assert_eq!((seen.status, seen.ended), (200, None));
    assert_eq!(seen.headers["content-encoding"], "gzip");
    assert_eq!(seen.length(), seen.body.len());
    let mut text = String::new();
    let decoded = GzDecoder::new(seen.body.as_slice()).read_to_string(&mut text);
    assert_eq!(decoded.unwrap_err().kind(), ErrorKind::UnexpectedEof);
    assert!(took_effect);
}

#[test]
fn garbage_is_a_page_for_people() {
    let (seen, took_effect) = struck(&StandIn::start(), &json!({"fault": "garbage"}));
    assert_eq!((seen.status, seen.ended), (200, None));
    assert_eq!(seen.headers["content-type"], "text/html; charset=utf-8");
    assert!(seen.body.starts_with(b"<!DOCTYPE html>"));
    assert!(took_effect);
}

#[test]
fn an_error_status_has_no_effect_and_may_say_when_to_come_back() {
    let stand_in = StandIn::start();
    for (fault, status, retry_after, text) in [
        (
            json!({"fault": "status"}),
            503,
            None,
            "503 Service Unavailable\n",
        ),
        (
            json!({"fault": "status", "status": 500}),
            500,
            None,
            "500 Internal Server Error\n",
        ),
        (
            json!({"fault": "status", "status": 429, "retry_after": 7}),
            429,
            Some("7"),
            "429 Too Many Requests\n",
        ),
    ] {
        let (seen, took_effect) = struck(&stand_in, &fault);
        assert_eq!((seen.status, seen.ended), (status, None), "{fault}");
        assert_eq!(
            seen.headers.get("retry-after").map(String::as_str),
            retry_after
        );
        assert_eq!(String::from_utf8(seen.body).unwrap(), text);
        assert!(!took_effect);
    }
}

#[test]
fn a_used_up_quota_is_the_vendors_own_refusal() {
    let (seen, took_effect) = struck(&StandIn::start(), &json!({"fault": "quota"}));
    assert_eq!((seen.status, seen.ended), (200, None));
    let answer: Value = serde_json::from_slice(&seen.body).unwrap();
    assert_eq!(
        answer,
        json!({"status": "error", "messages": ["您已用完当日请求量"], "errorCode": null})
    );
    assert!(!took_effect);
}

#[test]
fn a_slow_answer_is_the_right_one() {
    let fault = json!({"fault": "slow", "delay_ms": 20});
    let (seen, took_effect) = struck(&StandIn::start(), &fault);
    assert_eq!((seen.status, seen.ended), (200, None));
    assert_eq!(seen.length(), seen.body.len());
    assert!(took_effect);
}

/// That it's never answered is seen by ending the stand-in: the connection ends with it, and not a byte has come.
#[test]
fn a_call_without_an_answer_takes_effect_and_keeps_its_connection_to_the_end() {
    let mut stand_in = StandIn::start();
    stand_in.set(&json!({"fault": "no-answer"}));
    let mut caller = Caller::to(&stand_in);
    let (head, body) = request(ADD, &member("N-1"), "");
    caller.send(&[head, body].concat());
    stand_in.logged(&["answered a simulated call", ADD]);
    assert!(has(&stand_in, "N-1"));
    let (_, calls) = stand_in.control(&[], "/calls");
    assert_eq!(
        calls,
        json!({"received": 2, "took_effect": 2, "bad_signatures": 0})
    );
    assert_eq!(stand_in.end().code(), Some(0));
    let seen = caller.rest();
    assert_eq!((seen.status, seen.body.len(), seen.ended), (0, 0, None));
}

#[test]
fn refused_connections_are_reset_and_kept_ones_are_closed() {
    let stand_in = StandIn::start();
    let mut kept = Caller::to(&stand_in);
    assert!(kept.kept_call(FIND, &json!({"customerNum": "1"})));
    stand_in.set(&json!({"fault": "refuse", "calls": 2}));
    let seen = kept.rest();
    assert_eq!((seen.status, seen.ended), (0, None), "an orderly end");
    for _ in 0..2 {
        // Without a word from the caller, and as early as in `connect`.
        let read = TcpStream::connect(stand_in.address).and_then(|mut socket| {
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.read(&mut [0])
        });
        assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    assert!(!has(&stand_in, "N-1"));
    assert_eq!(stand_in.faults(), (json!([]), json!(2)));
}

#[test]
fn a_kept_connection_is_reset_at_the_first_byte_of_its_next_call() {
    let stand_in = StandIn::start();
    stand_in.set(&json!({"fault": "close-on-reuse"}));
    let mut caller = Caller::to(&stand_in);
    let question = json!({"customerNum": "1"});
    assert!(caller.kept_call(FIND, &question));
    // First calls are left alone, and use nothing up.
    let waiting = json!([{"fault": "close-on-reuse", "calls": 1, "struck": 0}]);
    assert_eq!(stand_in.faults(), (waiting, json!(0)));
    caller.send(b"P");
    let seen = caller.rest();
    assert_eq!(
        (seen.status, seen.ended),
        (0, Some(ErrorKind::ConnectionReset))
    );
    assert_eq!(stand_in.faults(), (json!([]), json!(1)));
    let (_, calls) = stand_in.control(&[], "/calls");
    assert_eq!(calls["received"], 1);
    let mut caller = Caller::to(&stand_in);
    for _ in 0..3 {
        assert!(caller.kept_call(FIND, &question));
    }
}

/// The same over TLS, where a foreign client names what it sees.
#[test]
fn curl_sees_each_broken_connection_over_tls() {
    let stand_in = StandIn::over_tls();
    let port = stand_in.address.port();
    let (_, body) = request(ADD, &member("N-1"), "");
    let post = || {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--max-time", "20"])
            .args(["--cacert", "ca.pem", "--compressed", "--resolve"])
            .arg(format!("upstream.test:{port}:127.0.0.1"))
            .args(["--header", "content-type: application/json"])
            .args(["--header", "time-stamp: 1", "--header"])
            .arg(format!("data-signature: {}", signature(APP_KEY, &body)))
            .args(["--data-binary", std::str::from_utf8(&body).unwrap()])
            .arg(format!(
                "https://upstream.test:{port}/pospal-api2/openapi/v1/{ADD}"
            ))
            .current_dir(stand_in.folder.path());
        tools::run(&mut curl)
    };
    // Exit codes as curl's manual has them: 7 while connecting, 18 less than promised, 35 in the handshake, 55 while sending, 56
    // while receiving.
    for (fault, expected) in [
        ("refuse", &[7, 35][..]),
        ("reset-before-reading", &[55, 56]),
        ("reset-after-reading", &[56]),
        ("half-answer", &[18]),
        ("wrong-length", &[18]),
        ("garbage", &[0]),
    ] {
        stand_in.set(&json!({"fault": fault}));
        let output = post();
        let code = output.status.code().unwrap();
        assert!(
            expected.contains(&code),
            "{fault}: {code} {}",
            tools::stderr(&output)
        );
    }
    let output = post();
    assert_eq!(
        (output.status.code(), tools::stderr(&output)),
        (Some(0), String::new())
    );
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["messages"], json!(["member number already exists"]));
}

#[test]
fn a_fault_strikes_the_next_calls_of_its_operation_and_no_more() {
    let stand_in = StandIn::start();
    stand_in.set(&json!({"fault": "status", "calls": 2, "operation": "CUSTOMERopenapi/ADD"}));
    let status = |number: &str| Caller::to(&stand_in).call(ADD, &member(number)).status;
    // What isn't a call isn't struck.
    let stray = Caller::to(&stand_in).call("customerOpenApi/nothing", &json!({}));
    assert_eq!(stray.status, 404);
    assert!(!has(&stand_in, "N-1"));
    assert_eq!(status("N-1"), 503);
    let left =
        json!([{"fault": "status", "calls": 1, "operation": ADD, "status": 503, "struck": 1}]);
    assert_eq!(stand_in.faults(), (left, json!(1)));
    assert_eq!([status("N-2"), status("N-3")], [503, 200]);
    assert_eq!(stand_in.faults(), (json!([]), json!(2)));
    assert!(has(&stand_in, "N-3") && !has(&stand_in, "N-2"));
}

#[test]
fn a_probability_stays_until_it_is_cleared() {
    let stand_in = StandIn::start();
    stand_in.set(&json!({"fault": "garbage", "probability": 0}));
    stand_in.set(&json!({"fault": "status", "probability": 1}));
    let status = || {
        Caller::to(&stand_in)
            .call(FIND, &json!({"customerNum": "1"}))
            .status
    };
    for _ in 0..5 {
        assert_eq!(status(), 503);
    }
    let (faults, _) = stand_in.faults();
    assert_eq!(
        (&faults[0]["struck"], &faults[1]["struck"]),
        (&json!(0), &json!(5))
    );
    let cleared = stand_in.control(&["--request", "DELETE"], "/faults");
    assert_eq!(cleared, (200, json!({"faults": [], "struck": 5})));
    assert_eq!(status(), 200);
}

#[test]
fn a_wrong_control_call_is_told_what_is_allowed_and_changes_nothing() {
    let stand_in = StandIn::start();
    let long = format!(r#"{{"fault":"{}"}}"#, "x".repeat(5000));
    for (body, status, words) in [
        (r#"{"fault":"explode"}"#, 400, "refuse, close-on-reuse,"),
        (r#"{"fault":"slow","delay":5}"#, 400, "`delay_ms`"),
        (
            r#"{"fault":"slow","calls":1,"probability":0.5}"#,
            400,
            "not both",
        ),
        ("fault=slow", 400, "line 1"),
        (&long, 413, "4096 bytes"),
    ] {
        let (got, json) = stand_in.control(&["--data", body], "/faults");
        assert_eq!(got, status, "{json}");
        assert!(
            json["error"].as_str().unwrap().contains(words),
            "{body}: {json}"
        );
    }
    assert_eq!(stand_in.control(&[], "/").0, 404);
    assert_eq!(stand_in.control(&["--request", "PUT"], "/faults").0, 405);
    assert_eq!(stand_in.faults(), (json!([]), json!(0)));
}

#[test]
fn the_banners_line_works_as_it_is_printed() {
    let stand_in = StandIn::start();
    assert!(stand_in.banner[3].starts_with("curl "));
    let command = format!(
        "curl() {{ command curl --silent --max-time 20 \"$@\"; }}; {}",
        stand_in.banner[3]
    );
    let output = tools::run(Command::new("sh").args(["-c", &command]));
    assert!(output.status.success(), "{}", tools::stderr(&output));
    let (faults, _) = stand_in.faults();
    assert_eq!(faults[0]["fault"], "reset-after-reading");
}

#[test]
fn control_calls_are_for_this_machine_alone() {
    for admin in ["0.0.0.0:0", "[::]:0", "192.0.2.1:9444"] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("main.key"), APP_KEY).unwrap();
        let output = tools::run(
            tools::binary()
                .args(["simulate", "--address", "127.0.0.1:0", "--admin", admin])
                .args(["--account", "abcdefghijklmn=main.key"])
                .current_dir(folder.path()),
        );
        assert_eq!(output.status.code(), Some(1), "{admin}");
        assert!(
            tools::stderr(&output).contains("give a loopback --admin"),
            "{admin}"
        );
    }
}

#[test]
fn the_page_about_the_stand_in_has_every_fault() {
    let page = std::fs::read_to_string(tools::root().join("docs/simulator.md")).unwrap();
    let rows = page.lines().filter_map(|line| {
        let (name, _) = line.strip_prefix("| `")?.split_once('`')?;
        Some(name)
    });
    let stand_in = StandIn::start();
    let (_, json) = stand_in.control(&["--data", r#"{"fault":"?"}"#], "/faults");
    let (_, names) = json["error"]
        .as_str()
        .unwrap()
        .rsplit_once("one of ")
        .unwrap();
    let names: Vec<_> = names.split(", ").collect();
    assert_eq!(names.len(), 12);
    assert_eq!(rows.collect::<Vec<_>>(), names);
}

#[test]
fn a_key_file_without_a_key_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    tools::write(&folder.path().join("main.key"), " \n\n", 0o600);
    let ended = tools::run(
        tools::binary()
            .args([
                "simulate",
                "--address",
                "127.0.0.1:0",
                "--account",
                "abcdefghijklmn=main.key",
            ])
            .current_dir(folder.path()),
    );
    assert_eq!(ended.status.code(), Some(1));
    assert!(
        tools::stderr(&ended).contains("main.key: there's no key in it"),
        "{ended:?}"
    );
}
