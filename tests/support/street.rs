//! What the corpora of the door are tried on: a gateway with two callers. The one under suspicion may call one operation with one
//! account; the other is an honest neighbour, with another certificate, account and operation. The host echoes each body, so that
//! everybody can tell whose answer came.

use std::time::Duration;

use tokio::time::timeout;

use crate::support::client::Client;
use crate::support::corpus::Case;
use crate::support::frames;
use crate::support::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, RST_STREAM,
};
use crate::support::gateway::{APP_ID, APP_KEY};
use crate::support::upstream::{Act, Seen};
use crate::support::wire::Wire;
use crate::support::{Answer, Gateway, Pki, Setup, Upstream};

/// All that the caller under suspicion may do.
pub const OPERATION: &str = "ticketOpenApi/queryTicketPages";

const NEIGHBOUR: &str = "spiffe://shop.example/neighbour";
const NEIGHBOURS_OPERATION: &str = "customerOpenApi/queryByUid";
const NEIGHBOURS_ID: &str = "nextdoor";
const NEIGHBOURS_KEY: &str = "key-of-the-neighbour";

/// After a case's own bytes: whether the connection is still good for a request, and for this one alone.
const LAST: &[u8] =
    b"GET /is-anybody-there HTTP/1.1\r\nhost: gateway.test\r\nconnection: close\r\n\r\n";
const LAST_STREAM: u32 = 9_999;
const LAST_ANSWER: &str = "refused 404 unknown-operation";

/// How long one case may take. A case that ends only by a clock of the gateway's is a case that's wrong.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is to come of a case.
pub struct Expected {
    /// Each answer, or end, in order.
    pub events: Vec<String>,
    /// What the HTTP library forgives, in the words of SECURITY.md.
    pub lax: Option<String>,
}

impl Expected {
    /// A class as the corpora write it.
    pub fn of(class: &str) -> Self {
        let (events, lax) = match class.split_once(", lax: ") {
            Some((events, lax)) => (events, Some(lax.to_owned())),
            None => (class, None),
        };
        let events = events.split(", ").flat_map(|event| match event {
            "one" => vec![good("{\"n\":1}")],
            "none" => vec![],
            "two" => vec![good("{\"n\":1}"), good("{\"n\":2}")],
            event => vec![match event.strip_prefix("one ") {
                Some(body) => good(body),
                None => event.to_owned(),
            }],
        });
        Self {
            events: events.collect(),
            lax,
        }
    }

    fn answers(&self) -> usize {
        let ends = ["closed", "kept"];
        let answers = self
            .events
            .iter()
            .filter(|event| !ends.contains(&event.as_str()));
        answers.count()
    }
}

/// The answer to a call with this body.
fn good(body: &str) -> String {
    format!("good {body}")
}

/// An answer in the same words.
fn told(answer: &Answer) -> String {
    let status = answer.status.as_u16();
    let text = String::from_utf8_lossy(&answer.body);
    let echo = text
        .split_once("\"data\":")
        .map(|(_, data)| &data[..data.len() - 1]);
    match echo {
        Some(echo) if status == 200 => good(&without_app_id(echo)),
        _ => refused(status, &text),
    }
}

fn refused(status: u16, body: &str) -> String {
    let envelope = serde_json::from_str::<serde_json::Value>(body).ok();
    match envelope
        .as_ref()
        .and_then(|json| json["gateway"]["code"].as_str())
    {
        Some(code) => format!("refused {status} {code}"),
        None => format!("refused {status}"),
    }
}

/// The caller's body, of what arrived upstream; as it is if it isn't spliced as it should be.
fn without_app_id(body: &str) -> String {
    let spliced = format!("{{\"appId\":\"{APP_ID}\"");
    match body.strip_prefix(&spliced) {
        Some(rest) => format!("{{{}", rest.strip_prefix(',').unwrap_or(rest)),
        None => body.to_owned(),
    }
}

pub struct Street {
    pub upstream: Upstream,
    pub gateway: Gateway,
    suspect: Client,
    http2_suspect: Client,
    neighbour: Client,
    /// The neighbour's, made and arrived.
    calls: usize,
    heard: usize,
    /// So many requests have been looked at upstream.
    looked_at: usize,
}

impl Street {
    pub async fn start() -> Self {
        let pki = Pki::new();
        let upstream = Upstream::scripted(&pki, |seen| {
            Act::ok(format!(
                "{{\"status\":\"success\",\"messages\":[],\"errorCode\":null,\"data\":{}}}",
                seen.text()
            ))
        })
        .await;
        let mut setup = Setup::new(&pki, Some(upstream.address));
        setup.orders = setup.orders.replace(
            "[\"*\"]\noperations = [\"*\"]",
            &format!("[\"main\"]\noperations = [{OPERATION:?}]"),
        );
        setup.account("next-door", NEIGHBOURS_ID, NEIGHBOURS_KEY);
        setup.more.push_str(&format!(
            "[callers.neighbour]\nidentities = [{NEIGHBOUR:?}]\naccounts = [\"next-door\"]\noperations = [{NEIGHBOURS_OPERATION:?}]\n"
        ));
        let gateway = setup.start().await;
        Self {
            suspect: gateway.client(&pki),
            http2_suspect: gateway.http2_client(&pki),
            neighbour: gateway.client_with(&pki, &pki.caller(NEIGHBOUR)),
            upstream,
            gateway,
            calls: 0,
            heard: 0,
            looked_at: 0,
        }
    }

    /// Tries one case on HTTP/1.1, while the neighbour makes calls of its own. What is wrong with what came of it, if anything is.
    pub async fn tries(
        &mut self,
        case: &Case,
        bytes: &[u8],
        expected: &Expected,
    ) -> Option<String> {
        let ends = case.lines.last().is_some_and(|line| line == b"(end)");
        let bytes = bytes.strip_suffix(b"(end)").unwrap_or(bytes).to_owned();
        let before = self.neighbour_calls().await;
        let exchange = exchange(&self.suspect, &bytes, ends, expected.answers());
        let neighbour = neighbour_calls(&self.neighbour, self.calls + 1);
        let (events, beside) = tokio::join!(timeout(PATIENCE, exchange), neighbour);
        self.calls += 1;
        self.judged(case, expected, events.ok(), ends, [before, beside])
            .await
    }

    /// The same on HTTP/2, frame by frame.
    pub async fn tries_frames(
        &mut self,
        case: &Case,
        lines: &[Vec<u8>],
        expected: &Expected,
    ) -> Option<String> {
        let before = self.neighbour_calls().await;
        let exchange = frame_exchange(&self.http2_suspect, lines, expected);
        let neighbour = neighbour_calls(&self.neighbour, self.calls + 1);
        let (events, beside) = tokio::join!(timeout(PATIENCE, exchange), neighbour);
        self.calls += 1;
        self.judged(case, expected, events.ok(), false, [before, beside])
            .await
    }

    async fn judged(
        &mut self,
        case: &Case,
        expected: &Expected,
        events: Option<Vec<String>>,
        ends: bool,
        neighbour: [Option<String>; 2],
    ) -> Option<String> {
        let after = self.neighbour_calls().await;
        if ends {
            // Whom nobody waits for may still be under way.
            self.settles().await;
        }
        let mut faults: Vec<_> = neighbour.into_iter().chain([after]).flatten().collect();
        match events {
            Some(events) if events == expected.events => {}
            Some(events) => faults.push(format!("{events:?}, not {:?}", expected.events)),
            None => faults.push("it hangs".to_owned()),
        }
        let (arrived, strange) = self.arrived();
        faults.extend(strange);
        let mut wanted: Vec<_> = expected
            .events
            .iter()
            .filter_map(|event| event.strip_prefix("good "))
            .collect();
        let mut arrived: Vec<_> = arrived.iter().map(String::as_str).collect();
        wanted.sort_unstable();
        arrived.sort_unstable();
        if arrived != wanted {
            faults.push(format!("upstream {arrived:?}, not {wanted:?}"));
        }
        (!faults.is_empty()).then(|| format!("- {}: {}", case.name, faults.join("; ")))
    }

    /// Waits until no call is under way.
    pub async fn settles(&self) {
        for series in [
            "kybio_gateway_requests_active",
            "kybio_gateway_upstream_in_flight{upstream=\"kybio\"}",
        ] {
            let settled = async { while self.gateway.metric(series).await > 0.0 {} };
            timeout(PATIENCE, settled).await.expect(series);
        }
    }

    /// The bodies of the suspect's calls that have arrived since the last look, without `appId`, and what isn't as it should be.
    pub fn arrived(&mut self) -> (Vec<String>, Vec<String>) {
        let new = self.upstream.seen_since(self.looked_at);
        self.looked_at += new.len();
        let (mut bodies, mut strange) = (Vec::new(), Vec::new());
        for seen in new {
            let text = seen.text();
            let neighbours =
                text.starts_with(&format!("{{\"appId\":\"{NEIGHBOURS_ID}\",\"neighbour\":"));
            let (operation, key) = if neighbours {
                self.heard += 1;
                (NEIGHBOURS_OPERATION, NEIGHBOURS_KEY)
            } else {
                bodies.push(without_app_id(&text));
                (OPERATION, APP_KEY)
            };
            if !is_our_own(&seen, operation, key) {
                strange.push(format!("upstream {seen:?}"));
            }
        }
        if self.heard != self.calls {
            strange.push(format!(
                "{} of the neighbour's {} calls have arrived",
                self.heard, self.calls
            ));
        }
        (bodies, strange)
    }

    async fn neighbour_calls(&mut self) -> Option<String> {
        self.calls += 1;
        neighbour_calls(&self.neighbour, self.calls).await
    }
}

/// The neighbour's answer is its own, or this says what it is.
async fn neighbour_calls(neighbour: &Client, number: usize) -> Option<String> {
    let body = format!("{{\"neighbour\":{number}}}");
    let answer = neighbour.call(NEIGHBOURS_OPERATION, body).await;
    let echo = format!("\"data\":{{\"appId\":\"{NEIGHBOURS_ID}\",\"neighbour\":{number}}}}}");
    let good = answer.status == 200
        && answer.header("kybio-gateway-account") == "next-door"
        && answer.text().ends_with(&echo);
    (!good).then(|| format!("the neighbour's call {number} got {}", answer.text()))
}

/// A signed POST of this operation, with a length of its own and nothing clever.
fn is_our_own(seen: &Seen, operation: &str, key: &str) -> bool {
    seen.method == "POST"
        && seen.target == format!("/pospal-api2/openapi/v1/{operation}")
        && seen.header("host") == "upstream.test"
        && seen.header("content-length") == seen.body.len().to_string()
        && !seen.headers.contains_key("transfer-encoding")
        && seen.headers.len() == 7
        && seen.is_signed_with(key)
}

/// Writes, and tells of each answer up to the last one that's expected; then of whatever an honest request gets on the same connection,
/// if it isn't what it should be.
async fn exchange(client: &Client, bytes: &[u8], ends: bool, expected: usize) -> Vec<String> {
    let mut wire = Wire::open(client).await;
    wire.no_body = bytes.starts_with(b"HEAD ");
    wire.write(bytes).await;
    if ends {
        wire.end().await;
    }
    let mut events = Vec::new();
    // Where no answer is to come, the end is.
    while ends || events.len() < expected.max(1) {
        match wire.answer().await {
            Some(answer) => events.push(told(&answer)),
            None => {
                if !ends {
                    events.push("closed".to_owned());
                }
                return events;
            }
        }
    }
    wire.no_body = false;
    wire.write(LAST).await;
    let mut last = Vec::new();
    while let Some(answer) = wire.answer().await {
        last.push(told(&answer));
    }
    // What the library refuses itself ends the connection.
    let bare = events
        .last()
        .is_some_and(|event| event.starts_with("refused ") && event.split(' ').count() == 2);
    match (&last[..], bare) {
        ([], true) => {}
        ([], false) => events.push("closed".to_owned()),
        ([last], false) if last == LAST_ANSWER => {}
        ([last], true) if last == LAST_ANSWER => events.push("kept".to_owned()),
        _ => events.extend(last),
    }
    events
}

/// The same with frames. The answers are told stream by stream.
async fn frame_exchange(client: &Client, lines: &[Vec<u8>], expected: &Expected) -> Vec<String> {
    let mut frames = Frames::open(client).await;
    let bytes: Vec<u8> = written(lines)
        .iter()
        .flat_map(|(kind, flags, stream, payload)| frames::frame(*kind, *flags, *stream, payload))
        .collect();
    // The other side may have had enough.
    let _ = frames.write_all(&bytes).await;
    let ends = expected.events.iter().any(|event| event == "closed");
    let mut streams = Vec::<(u32, Stream)>::new();
    let mut asked = false;
    let mut closed = false;
    loop {
        let done = |&(stream, ref is): &(u32, Stream)| stream != LAST_STREAM && is.done.is_some();
        if !ends
            && !asked
            && streams.iter().filter(|stream| done(stream)).count() >= expected.answers()
        {
            asked = true;
            let last = [&b"GET"[..], b"https", b"gateway.test", b"/is-anybody-there"];
            let names = [&b":method"[..], b":scheme", b":authority", b":path"];
            let block: Vec<u8> = names
                .iter()
                .zip(last)
                .flat_map(|(name, value)| frames::field(name, value))
                .collect();
            let last = frames::frame(HEADERS, END_HEADERS | END_STREAM, LAST_STREAM, &block);
            let _ = frames.write_all(&last).await;
        }
        if streams
            .iter()
            .any(|(stream, is)| *stream == LAST_STREAM && is.done.is_some())
        {
            break;
        }
        let Some(frame) = frames.next().await else {
            closed = true;
            break;
        };
        if frame.stream == 0 {
            if frame.kind == GOAWAY && frame.payload[4..8] != [0; 4] {
                closed = true;
                break;
            }
            continue;
        }
        let at = match streams
            .iter()
            .position(|(stream, _)| *stream == frame.stream)
        {
            Some(at) => at,
            None => {
                streams.push((frame.stream, Stream::default()));
                streams.len() - 1
            }
        };
        streams[at].1.takes(&frame);
    }
    streams.sort_by_key(|(stream, _)| *stream);
    let mut events: Vec<_> = streams
        .into_iter()
        .filter_map(|(_, stream)| stream.done)
        .collect();
    if closed {
        events.push("closed".to_owned());
    } else if events.pop().is_none_or(|last| last != LAST_ANSWER) {
        events.push("the last one isn't answered".to_owned());
    }
    events
}

/// An answer that comes.
#[derive(Default)]
struct Stream {
    status: u16,
    body: Vec<u8>,
    done: Option<String>,
}

impl Stream {
    fn takes(&mut self, frame: &frames::Frame) {
        match frame.kind {
            HEADERS if self.status == 0 => self.status = frame.status(),
            DATA => self.body.extend(&frame.payload),
            RST_STREAM if self.done.is_none() => self.done = Some("reset".to_owned()),
            _ => {}
        }
        if [HEADERS, DATA].contains(&frame.kind) && frame.flags & END_STREAM != 0 {
            self.done = Some(told(&Answer {
                status: self.status.to_string().parse().unwrap(),
                headers: http::HeaderMap::new(),
                body: std::mem::take(&mut self.body).into(),
            }));
        }
    }
}

/// Kind, flags, stream and payload of each frame that the lines write.
fn written(lines: &[Vec<u8>]) -> Vec<(u8, u8, u32, Vec<u8>)> {
    let mut frames: Vec<(u8, u8, u32, Vec<u8>)> = Vec::new();
    for line in lines {
        let mut words = line.splitn(4, |byte| *byte == b' ');
        let mut text = || String::from_utf8_lossy(words.next().unwrap_or_default()).into_owned();
        let word = text();
        let kind = match word.as_str() {
            "HEADERS" => HEADERS,
            "CONTINUATION" => CONTINUATION,
            "DATA" => DATA,
            "PRIORITY" => 0x2,
            "RST_STREAM" => RST_STREAM,
            "PUSH_PROMISE" => 0x5,
            "WINDOW_UPDATE" => 0x8,
            _ => {
                let frame = frames.last_mut().expect("a frame before its fields");
                match line.strip_prefix(b"the usual") {
                    Some(but) => frame.3.extend(usual(std::str::from_utf8(but).unwrap())),
                    None => {
                        let colon = line.windows(2).position(|two| two == b": ");
                        let (name, value) = line.split_at(colon.expect("a field"));
                        frame.3.extend(frames::field(name, &value[2..]));
                    }
                }
                continue;
            }
        };
        let stream = text().parse().unwrap();
        let flags = match text().as_str() {
            "-" => 0,
            "END_STREAM" => END_STREAM,
            "END_HEADERS" => END_HEADERS,
            "END_BOTH" => END_HEADERS | END_STREAM,
            other => panic!("flags {other}"),
        };
        let payload = words.next().unwrap_or_default().to_vec();
        frames.push((kind, flags, stream, payload));
    }
    frames
}

/// The fields of an honest call, but for those that are named.
fn usual(but: &str) -> Vec<u8> {
    let left_out: Vec<_> = but.trim_start_matches(" but ").split(' ').collect();
    let path = format!("/openapi/v1/{OPERATION}");
    let fields = [
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", "gateway.test"),
        (":path", &path),
        ("content-type", "application/json"),
    ];
    let left = fields.iter().filter(|(name, _)| !left_out.contains(name));
    left.flat_map(|(name, value)| frames::field(name.as_bytes(), value.as_bytes()))
        .collect()
}
