//! Promise U3: a caller that floods, with HTTP/2 frames or with HTTP/1.1 requests, is ended or harms nobody. Each flood is bounded by its
//! count, and meets a gateway that good callers use all the time: every call of theirs is answered, rightly.
//!
//! A flood's calls never come to an end at the host while it lasts: more of them than the caller may have under way never arrive there.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{interval, timeout};

use crate::support::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, GOAWAY, HEADERS, PADDED, PING,
    PRIORITY, PRIORITY_UPDATE, PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW_UPDATE, block, call,
    frame, length,
};
use crate::support::gateway::ORDERS;
use crate::support::neighbours::Neighbours;
use crate::support::tools::PATIENCE;
use crate::support::upstream::{Act, SUCCESS, Seen};
use crate::support::{Gateway, Pki, Setup, Upstream, neighbours};

/// What the bad caller asks for.
const ASKED: &str = "productOpenApi/queryProductPages";

/// Calls that it may have under way.
const IN_FLIGHT_MAX: usize = 8;

/// What the process's memory may grow by while a flood lasts.
const GROWTH_KIB_MAX: u64 = 16 * 1024;

/// Many more than are free, and so few that a second or two is enough for them.
const FRAMES: u32 = 10_000;

/// Streams that are opened one after another.
const STREAMS: u32 = 2_000;

const MALFORMED: &str = "kybio_gateway_downstream_malformed_total";

/// What becomes of a flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The connection is ended for frames of this kind.
    Flood(&'static str),
    /// The connection is ended for what it says, which HTTP/2 doesn't allow.
    Malformed,
    /// One or the other, whichever is noticed first.
    Either(&'static str),
    /// The connection ends in good order, or as a flood.
    Orderly,
    /// Nothing: it goes on.
    Harmless,
    /// Its streams are refused one by one as what HTTP/2 doesn't allow; the connection goes on.
    Streams,
}

const FLOOD: &str = "an HTTP/2 flood was ended";
const REFUSED: &str = "a malformed request was refused";

impl End {
    /// Whether the log says so.
    fn is_told_by(self, event: &Value) -> bool {
        let peer = event["peer"].as_str().unwrap_or_default();
        let flood = |frame: &str| event["message"] == FLOOD && event["frame"] == frame;
        peer.starts_with("127.0.0.1:")
            && match self {
                Self::Flood(frame) => flood(frame),
                Self::Malformed | Self::Streams => event["message"] == REFUSED,
                Self::Either(frame) => flood(frame) || event["message"] == REFUSED,
                Self::Orderly | Self::Harmless => false,
            }
    }
}

/// One flood, and what it comes to.
struct Row {
    name: &'static str,
    end: End,
    /// Calls that may arrive at the host for it.
    calls: usize,
    bytes: Vec<u8>,
}

fn row(name: &'static str, end: End, calls: usize, bytes: Vec<u8>) -> Row {
    Row {
        name,
        end,
        calls,
        bytes,
    }
}

/// Many times the same, or nearly.
fn many(count: u32, each: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    (0..count).flat_map(each).collect()
}

/// The same on a stream of its own each time: the first is 1.
fn on_streams(count: u32, each: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    many(count, |nth| each(2 * nth + 1))
}

/// A request's head; its body follows.
fn head(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &call(ASKED, &[]))
}

/// A whole request: an empty body is a call without fields.
fn whole(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &call(ASKED, &[]))
}

/// A number of four bytes.
fn word(number: u32) -> [u8; 4] {
    number.to_be_bytes()
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    [&id.to_be_bytes()[..], &word(value)].concat()
}

const HEADER_TABLE_SIZE: u16 = 1;
const INITIAL_WINDOW_SIZE: u16 = 4;
const CANCEL: u32 = 8;

/// A call's body that is answered at once, with so many bytes.
fn wants(bytes: usize) -> String {
    json!({ "bytes": bytes }).to_string()
}

fn large(seen: &Seen) -> Option<Act> {
    let asked: Value = serde_json::from_slice(&seen.body).unwrap();
    let bytes = usize::try_from(asked["bytes"].as_u64()?).unwrap();
    let empty = json!({"status": "success", "data": ""}).to_string();
    Some(Act::ok(empty.replace(
        "\"\"",
        &format!("\"{}\"", "x".repeat(bytes - empty.len())),
    )))
}

/// The gateway with its good callers, and a host that holds the bad one's calls.
struct Scene {
    pki: Pki,
    upstream: Upstream,
    /// Whether the bad caller's calls are answered.
    open: watch::Sender<bool>,
    gateway: Gateway,
    neighbours: Neighbours,
    descriptors: usize,
}

impl Scene {
    async fn new(listener: &str) -> Self {
        let pki = Pki::new();
        let open = watch::Sender::new(false);
        let opened = open.clone();
        let upstream = Upstream::scripted(&pki, move |seen| {
            neighbours::answer(seen)
                .or_else(|| large(seen))
                .unwrap_or_else(|| {
                    let mut opened = opened.subscribe();
                    Act::Later(Box::pin(async move {
                        opened.wait_for(|open| *open).await.unwrap();
                        SUCCESS.into()
                    }))
                })
        })
        .await;
        let mut setup = Setup::new(&pki, Some(upstream.address));
        setup.listener.push_str(listener);
        let limit = format!("in_flight_max = {IN_FLIGHT_MAX}\ndefault_account = \"main\"\n");
        setup.orders.push_str(&limit);
        neighbours::invite(&mut setup);
        let gateway = setup.start().await;
        let neighbours = Neighbours::start(&gateway, &pki);
        neighbours.go_on().await;
        let mut scene = Self {
            pki,
            upstream,
            open,
            gateway,
            neighbours,
            descriptors: 0,
        };
        scene.descriptors = scene.descriptors().await;
        scene
    }

    /// Without those to the host, which are kept.
    async fn descriptors(&self) -> usize {
        let series = "kybio_gateway_upstream_connections{upstream=\"kybio\"}";
        let kept = self.gateway.metric(series).await;
        self.gateway.descriptors() - kept as usize
    }

    /// The bad caller's calls that the host has seen.
    fn arrived(&self) -> usize {
        let seen = self.upstream.seen();
        seen.iter()
            .filter(|seen| seen.target.ends_with(ASKED))
            .count()
    }

    async fn connect(&self) -> Frames {
        Frames::open(&self.gateway.http2_client(&self.pki)).await
    }

    /// What isn't as it should be, when the bad caller writes this.
    async fn differences(&self, row: &Row) -> Vec<String> {
        let mut differences = Vec::new();
        let mut differs = |what: String| differences.push(format!("{}: {what}", row.name));
        let (mark, arrived) = (self.gateway.mark(), self.arrived());
        let counted = (self.floods().await, self.gateway.metric(MALFORMED).await);
        let bad = self.connect().await;
        self.gateway.forget_peak();
        let before = self.gateway.memory_kib();
        let aftermath = bad.flood(&row.bytes).await;
        self.neighbours.go_on().await;
        let grown = self.gateway.memory_peak_kib().saturating_sub(before);
        if grown > GROWTH_KIB_MAX {
            differs(format!("{grown} KiB more memory"));
        }
        if aftermath.ended == matches!(row.end, End::Streams | End::Harmless) {
            differs(format!("{aftermath:?}"));
        }
        if !matches!(row.end, End::Orderly | End::Harmless) {
            let event = self.gateway.event_since(mark, |event| {
                let message = event["message"].as_str().unwrap_or_default();
                message == FLOOD || message == REFUSED
            });
            match timeout(PATIENCE / 6, event).await {
                Ok(event) if row.end.is_told_by(&event) => {}
                Ok(event) => differs(event.to_string()),
                Err(_) => differs("nothing is logged".to_owned()),
            }
        }
        let floods = self.floods().await - counted.0;
        let malformed = self.gateway.metric(MALFORMED).await - counted.1;
        let right = match row.end {
            End::Flood(_) => (floods, malformed) == (1.0, 0.0),
            End::Malformed | End::Streams => floods == 0.0 && malformed >= 1.0,
            End::Either(_) => floods + malformed >= 1.0,
            End::Orderly => floods <= 1.0 && malformed == 0.0,
            End::Harmless => (floods, malformed) == (0.0, 0.0),
        };
        if !right {
            differs(format!("{floods} floods, {malformed} malformed"));
        }
        // What is under way is answered, and nothing comes after it.
        self.open.send_replace(true);
        self.nothing_is_under_way().await;
        self.open.send_replace(false);
        let arrived = self.arrived() - arrived;
        if arrived > row.calls {
            differs(format!("{arrived} calls"));
        }
        differences
    }

    /// Waits until there are no more requests than those of the good callers.
    async fn nothing_is_under_way(&self) {
        let series = "kybio_gateway_requests_active";
        let waited = timeout(PATIENCE, async {
            while self.gateway.metric(series).await > 2.0 {}
        });
        waited.await.expect("what is under way ends");
    }

    /// Connections that were ended for a flood.
    async fn floods(&self) -> f64 {
        let text = self.gateway.metrics().await;
        let values = text
            .lines()
            .filter_map(|line| line.strip_prefix("kybio_gateway_downstream_floods_total{"));
        values
            .map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap())
            .sum()
    }

    /// The good callers have noticed nothing, and nothing is left of the bad one.
    async fn ends_well(self) {
        let waited = timeout(PATIENCE, async {
            while self.descriptors().await > self.descriptors {}
        });
        waited.await.expect("its descriptors are given back");
        self.neighbours.are_well().await;
    }

    /// All floods, one after another.
    async fn withstands(self, rows: Vec<Row>) {
        assert!(!rows.is_empty());
        let mut differences = Vec::new();
        for row in &rows {
            differences.extend(self.differences(row).await);
        }
        assert!(differences.is_empty(), "{differences:#?}");
        self.ends_well().await;
    }
}

/// CVE-2023-44487: streams that are given up at once cost the caller nothing.
#[tokio::test]
async fn whoever_opens_streams_and_resets_them_is_ended() {
    let reset = |stream| frame(RST_STREAM, 0, stream, &word(CANCEL));
    let rows = vec![
        row(
            "heads and resets",
            End::Either("reset"),
            0,
            on_streams(STREAMS, |stream| [head(stream), reset(stream)].concat()),
        ),
        row(
            "requests and resets",
            End::Either("reset"),
            IN_FLIGHT_MAX,
            on_streams(STREAMS, |stream| [whole(stream), reset(stream)].concat()),
        ),
        row(
            "a hundred requests, then a hundred resets",
            End::Either("reset"),
            IN_FLIGHT_MAX,
            many(STREAMS / 100, |round| {
                let stream = |nth| 2 * (100 * round + nth) + 1;
                let requests = many(100, |nth| whole(stream(nth)));
                [requests, many(100, |nth| reset(stream(nth)))].concat()
            }),
        ),
        row(
            "one stream that is reset over and over",
            End::Either("reset"),
            0,
            [head(1), many(FRAMES, |_| reset(1))].concat(),
        ),
        row(
            "a stream that never was is reset",
            End::Either("reset"),
            0,
            many(FRAMES, |_| reset(1)),
        ),
    ];
    Scene::new("").await.withstands(rows).await;
}

/// CVE-2025-8671: streams that the other side has to reset because of a fault, in each way that was published.
#[tokio::test]
async fn whoever_makes_the_gateway_reset_streams_is_ended() {
    let after = |fault: &dyn Fn(u32) -> Vec<u8>| {
        on_streams(STREAMS, |stream| [whole(stream), fault(stream)].concat())
    };
    let halves = |fault: &dyn Fn(u32) -> Vec<u8>| {
        on_streams(STREAMS, |stream| [head(stream), fault(stream)].concat())
    };
    let nothing = |stream| frame(WINDOW_UPDATE, 0, stream, &word(0));
    let overflow = |stream| frame(WINDOW_UPDATE, 0, stream, &word(0x7fff_ffff));
    let self_made = |stream| frame(PRIORITY, 0, stream, &[&word(stream)[..], &[0]].concat());
    let short = |stream| frame(PRIORITY, 0, stream, &word(0));
    let late = |stream| frame(DATA, 0, stream, b"{}");
    let again = |stream| frame(HEADERS, END_HEADERS, stream, &call(ASKED, &[]));
    let wrong = |stream| {
        let block = call(ASKED, &[("content-length", "1")]);
        let head = frame(HEADERS, END_HEADERS, stream, &block);
        [head, frame(DATA, END_STREAM, stream, b"{}")].concat()
    };
    let flows = End::Either("window-update");
    let orders = End::Either("priority");
    let rows = vec![
        row(
            "a window grows by nothing",
            flows,
            IN_FLIGHT_MAX,
            after(&nothing),
        ),
        row(
            "a window grows by nothing, before the body",
            flows,
            0,
            halves(&nothing),
        ),
        row(
            "a window grows too large",
            flows,
            IN_FLIGHT_MAX,
            after(&overflow),
        ),
        row(
            "a stream depends on itself",
            orders,
            IN_FLIGHT_MAX,
            after(&self_made),
        ),
        row(
            "a stream depends on itself, before the body",
            orders,
            0,
            halves(&self_made),
        ),
        row(
            "a priority of the wrong length",
            orders,
            IN_FLIGHT_MAX,
            after(&short),
        ),
        row(
            "a body after the end",
            End::Either("data"),
            IN_FLIGHT_MAX,
            after(&late),
        ),
        row(
            "a head after the end",
            End::Malformed,
            IN_FLIGHT_MAX,
            after(&again),
        ),
        row(
            "more streams than anybody may have",
            End::Malformed,
            IN_FLIGHT_MAX,
            on_streams(STREAMS, whole),
        ),
        row(
            "another length than was said",
            End::Malformed,
            0,
            on_streams(STREAMS, wrong),
        ),
    ];
    Scene::new("").await.withstands(rows).await;
}

/// CVE-2024-27316 and its kind: a head that never ends.
#[tokio::test]
async fn a_head_that_never_ends_is_ended() {
    let begun = |payload: &[u8]| frame(HEADERS, 0, 1, payload);
    let more = |payload: &[u8]| frame(CONTINUATION, 0, 1, payload);
    let ends = End::Either("continuation");
    // A name of 60,000 bytes.
    let mut long = vec![0];
    length(&mut long, 60_000);
    let rows = vec![
        row(
            "nothing at a time",
            ends,
            0,
            [begun(&[]), many(FRAMES, |_| more(&[]))].concat(),
        ),
        row(
            "a byte at a time",
            ends,
            0,
            [begun(&long), many(FRAMES, |_| more(b"x"))].concat(),
        ),
        // `:method: POST` each byte (RFC 7541, appendix A).
        row(
            "16,000 fields at a time",
            ends,
            0,
            [begun(&[0x83]), many(200, |_| more(&[0x83; 16_000]))].concat(),
        ),
        row(
            "a field of 16,000 bytes at a time",
            ends,
            0,
            [
                begun(&call(ASKED, &[])),
                many(200, |_| more(&block(&[("x", &"x".repeat(16_000))]))),
            ]
            .concat(),
        ),
        row("without a beginning", ends, 0, many(FRAMES, |_| more(&[]))),
    ];
    Scene::new("").await.withstands(rows).await;
}

#[tokio::test]
async fn whoever_sends_frames_without_content_is_ended() {
    let padding = [&[255][..], &[0; 255]].concat();
    let rows = vec![
        row(
            "empty pieces of a body",
            End::Either("data"),
            0,
            [head(1), many(FRAMES, |_| frame(DATA, 0, 1, &[]))].concat(),
        ),
        row(
            "pieces of nothing but padding",
            End::Either("data"),
            0,
            [head(1), many(FRAMES, |_| frame(DATA, PADDED, 1, &padding))].concat(),
        ),
        row(
            "pieces of nothing but the length of no padding",
            End::Either("data"),
            0,
            [head(1), many(FRAMES, |_| frame(DATA, PADDED, 1, &[0]))].concat(),
        ),
        row(
            "pieces of one byte",
            End::Either("data"),
            0,
            [head(1), many(FRAMES, |_| frame(DATA, 0, 1, b"1"))].concat(),
        ),
        row(
            "empty heads",
            End::Malformed,
            0,
            on_streams(STREAMS, |stream| frame(HEADERS, END_HEADERS, stream, &[])),
        ),
        row(
            "heads of nothing but padding",
            End::Malformed,
            0,
            on_streams(STREAMS, |stream| {
                frame(HEADERS, END_HEADERS | PADDED, stream, &padding)
            }),
        ),
        row(
            "empty trailers",
            End::Malformed,
            0,
            on_streams(STREAMS, |stream| {
                [head(stream), frame(HEADERS, END_HEADERS, stream, &[])].concat()
            }),
        ),
    ];
    Scene::new("").await.withstands(rows).await;
}

#[tokio::test]
async fn whoever_talks_of_nothing_but_the_connection_is_ended() {
    let settings = |payload: Vec<u8>| frame(SETTINGS, 0, 0, &payload);
    let after = |kind| move |stream| frame(kind, 0, stream, &[0, 0, 0, 0, 16]);
    let rows = vec![
        row(
            "pings",
            End::Flood("ping"),
            0,
            many(FRAMES, |nth| ping(0, nth)),
        ),
        row(
            "pongs",
            End::Flood("ping"),
            0,
            many(FRAMES, |nth| ping(ACK, nth)),
        ),
        row(
            "settings of nothing",
            End::Flood("settings"),
            0,
            many(FRAMES, |_| settings(Vec::new())),
        ),
        row(
            "windows that change",
            End::Flood("settings"),
            IN_FLIGHT_MAX,
            [
                on_streams(90, whole),
                many(FRAMES, |nth| settings(setting(INITIAL_WINDOW_SIZE, nth))),
            ]
            .concat(),
        ),
        row(
            "a header table that changes",
            End::Flood("settings"),
            0,
            many(FRAMES, |nth| settings(setting(HEADER_TABLE_SIZE, nth))),
        ),
        row(
            "a thousand settings at a time",
            End::Either("settings"),
            0,
            many(STREAMS, |nth| {
                settings(setting(HEADER_TABLE_SIZE, nth).repeat(1_000))
            }),
        ),
        row(
            "acknowledged settings that never were",
            End::Either("settings"),
            0,
            many(FRAMES, |_| frame(SETTINGS, ACK, 0, &[])),
        ),
        row(
            "priorities",
            End::Flood("priority"),
            0,
            on_streams(FRAMES, after(PRIORITY)),
        ),
        row(
            "priorities of one stream",
            End::Flood("priority"),
            0,
            [head(1), many(FRAMES, |_| after(PRIORITY)(1))].concat(),
        ),
        row(
            "priorities of RFC 9218",
            End::Flood("other"),
            0,
            on_streams(FRAMES, |stream| {
                frame(PRIORITY_UPDATE, 0, 0, &[&word(stream)[..], b"u=1"].concat())
            }),
        ),
        row(
            "frames of no known kind",
            End::Flood("other"),
            0,
            on_streams(FRAMES, after(0xbb)),
        ),
        row(
            "the connection's window",
            End::Flood("window-update"),
            0,
            many(FRAMES, |_| frame(WINDOW_UPDATE, 0, 0, &word(1))),
        ),
        row(
            "a stream's window",
            End::Flood("window-update"),
            0,
            [
                head(1),
                many(FRAMES, |_| frame(WINDOW_UPDATE, 0, 1, &word(1))),
            ]
            .concat(),
        ),
        row(
            "goodbyes",
            End::Orderly,
            0,
            many(FRAMES, |_| frame(GOAWAY, 0, 0, &[0; 8])),
        ),
        row(
            "promises, which aren't a caller's to make",
            End::Malformed,
            0,
            on_streams(STREAMS, |stream| {
                frame(PUSH_PROMISE, END_HEADERS, stream, &word(2))
            }),
        ),
    ];
    Scene::new("").await.withstands(rows).await;
}

fn ping(flags: u8, number: u32) -> Vec<u8> {
    frame(PING, flags, 0, &[word(number), word(0)].concat())
}

/// As politely as can be: the next ones come when those before are answered.
#[tokio::test]
async fn pings_are_too_many_even_if_each_answer_is_awaited() {
    const AT_ONCE: u32 = 500;
    let scene = Scene::new("").await;
    let mark = scene.gateway.mark();
    let mut bad = scene.connect().await;
    let mut answered = 0;
    'rounds: for round in 0..FRAMES / AT_ONCE {
        let pings = many(AT_ONCE, |nth| ping(0, round * AT_ONCE + nth));
        if bad.write_all(&pings).await.is_err() {
            break;
        }
        for _ in 0..AT_ONCE {
            loop {
                match bad.next().await {
                    Some(frame) if frame.kind == PING => break,
                    Some(_) => {}
                    None => break 'rounds,
                }
            }
            answered += 1;
        }
    }
    assert!(answered < FRAMES, "all of them were answered");
    let event = scene
        .gateway
        .event_since(mark, |event| event["message"] == FLOOD);
    assert_eq!(event.await["frame"], "ping");
    scene.ends_well().await;
}

/// A few bytes that stand for many.
#[tokio::test]
async fn heads_that_unpack_to_many_times_their_size_are_refused() {
    // RFC 7541, section 6.2.1: a literal that goes into the table, where it's number 62.
    let mut bomb = call(ASKED, &[]);
    bomb.extend([0x40, 1, b'x']);
    length(&mut bomb, 3_900);
    bomb.extend([b'x'; 3_900]);
    bomb.extend([0x80 | 62; 8_000]);
    // RFC 7541, section 6.3: the table's size becomes 0.
    let sizes = |stream| {
        let block = [vec![0x20; 8_000], call(ASKED, &[])].concat();
        frame(HEADERS, END_HEADERS, stream, &block)
    };
    let late = |stream| {
        let block = [call(ASKED, &[]), vec![0x20; 8_000]].concat();
        frame(HEADERS, END_HEADERS, stream, &block)
    };
    let large = call(ASKED, &[("x", &"x".repeat(15_000))]);
    let fields: Vec<_> = (0..1_000).map(|_| ("x", "")).collect();
    let rows = vec![
        row(
            "one field 8,000 times",
            End::Malformed,
            0,
            on_streams(200, |stream| frame(HEADERS, END_HEADERS, stream, &bomb)),
        ),
        row(
            "a table that changes its size 8,000 times",
            End::Harmless,
            0,
            on_streams(100, sizes),
        ),
        row(
            "a table that changes its size behind fields",
            End::Malformed,
            0,
            on_streams(200, late),
        ),
        row(
            "heads of 45,000 bytes",
            End::Streams,
            0,
            on_streams(200, |stream| {
                let more = block(&[("x", &"x".repeat(15_000))]);
                [
                    frame(HEADERS, 0, stream, &large),
                    frame(CONTINUATION, 0, stream, &more),
                    frame(CONTINUATION, END_HEADERS, stream, &more),
                ]
                .concat()
            }),
        ),
        row(
            "heads of 1,000 fields",
            End::Streams,
            0,
            on_streams(200, |stream| {
                frame(HEADERS, END_HEADERS, stream, &call(ASKED, &fields))
            }),
        ),
    ];
    Scene::new("").await.withstands(rows).await;
}

/// The library that reads frames has a line of its own for each answer to a ping that nobody sent.
#[tokio::test]
async fn no_frame_has_a_line_of_its_own() {
    let scene = Scene::new("").await;
    scene.open.send_replace(true);
    let mark = scene.gateway.mark();
    let mut bad = scene.connect().await;
    let pongs = many(900, |_| frame(PING, ACK, 0, &[1; 8]));
    bad.write_all(&pongs).await.unwrap();
    bad.ask(1, ASKED, "{}").await;
    assert_eq!(bad.answer(1).await, SUCCESS);
    let asked = |event: &Value| event["caller"] == "orders";
    scene.gateway.event_since(mark, asked).await;
    let lines = scene.gateway.printed()[mark..].to_vec();
    let strange = |line: &&String| !line.contains("\"target\":\"kybio_gateway");
    assert_eq!(lines.iter().find(strange), None);
    drop(bad);
    scene.ends_well().await;
}

/// A service that ends does so with all its calls, perhaps before the first is looked at.
#[tokio::test]
async fn whoever_takes_back_a_hundred_calls_at_once_goes_on() {
    let scene = Scene::new("").await;
    scene.open.send_replace(true);
    let mut client = scene.connect().await;
    let reset = |stream| frame(RST_STREAM, 0, stream, &word(CANCEL));
    let streams: Vec<_> = (0..100).map(|nth| 2 * nth + 1).collect();
    let asked = streams.iter().flat_map(|stream| whole(*stream));
    let taken_back = streams.iter().flat_map(|stream| reset(*stream));
    let all: Vec<_> = asked.chain(taken_back).collect();
    client.write_all(&all).await.unwrap();
    client.ask(201, ASKED, "{}").await;
    assert_eq!(client.answer(201).await, SUCCESS);
    drop(client);
    scene.ends_well().await;
}

/// As above, but never more at once than is let through: only what it costs others bounds it.
#[tokio::test]
async fn requests_that_are_reset_one_by_one_cost_nobody_else_anything() {
    let scene = Scene::new("").await;
    let mut bad = scene.connect().await;
    scene.gateway.forget_peak();
    let before = scene.gateway.memory_kib();
    for round in 0..STREAMS / 10 {
        let streams = many(10, |nth| {
            let stream = 2 * (10 * round + nth) + 1;
            let reset = frame(RST_STREAM, 0, stream, &word(CANCEL));
            [whole(stream), reset].concat()
        });
        let pinged = [streams, ping(0, round)].concat();
        // It may be ended, too.
        if bad.write_all(&pinged).await.is_err() {
            break;
        }
        while bad.next().await.is_some_and(|frame| frame.kind != PING) {}
    }
    scene.neighbours.go_on().await;
    let grown = scene.gateway.memory_peak_kib().saturating_sub(before);
    assert!(grown <= GROWTH_KIB_MAX, "{grown} KiB");
    drop(bad);
    scene.open.send_replace(true);
    scene.nothing_is_under_way().await;
    let arrived = scene.arrived();
    assert!(arrived <= IN_FLIGHT_MAX, "{arrived}");
    scene.ends_well().await;
}

#[tokio::test]
async fn of_more_streams_than_allowed_the_rest_is_refused() {
    const REFUSED_STREAM: u32 = 7;
    let scene = Scene::new("").await;
    let mut bad = scene.connect().await;
    bad.write_all(&on_streams(150, whole)).await.unwrap();
    for _ in 0..50 {
        let reset = bad.frame(RST_STREAM).await;
        assert_eq!(reset.payload, word(REFUSED_STREAM), "{reset:?}");
        assert!(reset.stream > 200, "{reset:?}");
    }
    scene.neighbours.go_on().await;
    assert!(scene.arrived() <= IN_FLIGHT_MAX);
    scene.open.send_replace(true);
    let mut answered = HashSet::new();
    while answered.len() < 100 {
        let answer = bad.frame(DATA).await;
        let is_whole = answer.payload == SUCCESS.as_bytes();
        if is_whole || answer.payload.is_empty() {
            answered.insert(answer.stream);
        } else {
            panic!("{:?}", String::from_utf8_lossy(&answer.payload));
        }
    }
    assert_eq!(scene.arrived(), 100);
    drop(bad);
    scene.ends_well().await;
}

/// The answers lie here meanwhile.
#[tokio::test]
async fn whoever_takes_no_byte_of_its_answers_is_ended_in_time() {
    let scene = Scene::new("write_timeout = \"1s\"\n").await;
    let clock = "kybio_gateway_downstream_timeouts_total{clock=\"write\"}";
    let mut bad = scene.connect().await;
    scene.gateway.forget_peak();
    let before = scene.gateway.memory_kib();
    let none = frame(SETTINGS, 0, 0, &setting(INITIAL_WINDOW_SIZE, 0));
    bad.write_all(&none).await.unwrap();
    for nth in 0..100 {
        bad.ask(2 * nth + 1, ASKED, &wants(64 * 1024)).await;
    }
    let mut heads = 0;
    while let Some(frame) = bad.next().await {
        assert_ne!(frame.kind, DATA, "{frame:?}");
        heads += usize::from(frame.kind == HEADERS);
    }
    assert_eq!(heads, 100);
    let grown = scene.gateway.memory_peak_kib().saturating_sub(before);
    assert!(grown <= GROWTH_KIB_MAX, "{grown} KiB");
    assert_eq!(scene.gateway.metric(clock).await, 1.0);
    scene.ends_well().await;
}

/// Something else is always under way, which isn't cut off for that: no more is taken beside it.
#[tokio::test]
async fn whoever_leaves_an_answer_lying_and_asks_on_is_asked_to_go() {
    let scene = Scene::new("write_timeout = \"1s\"\n").await;
    let clock = "kybio_gateway_downstream_timeouts_total{clock=\"write\"}";
    let mut bad = scene.connect().await;
    let none = frame(SETTINGS, 0, 0, &setting(INITIAL_WINDOW_SIZE, 0));
    bad.write_all(&none).await.unwrap();
    bad.ask(1, ASKED, &wants(64 * 1024)).await;
    bad.frame(HEADERS).await;
    bad.write_all(&whole(3)).await.unwrap();
    bad.frame(GOAWAY).await;
    scene.open.send_replace(true);
    bad.write(WINDOW_UPDATE, 0, 3, &word(65_535)).await.unwrap();
    assert_eq!(bad.answer(3).await, SUCCESS);
    while bad.next().await.is_some() {}
    assert_eq!(scene.gateway.metric(clock).await, 1.0);
    scene.ends_well().await;
}

#[tokio::test]
async fn whoever_takes_its_answer_byte_by_byte_is_ended_in_time() {
    let scene = Scene::new("write_timeout = \"1s\"\n").await;
    let clock = "kybio_gateway_downstream_timeouts_total{clock=\"write\"}";
    let mut bad = scene.connect().await;
    let none = frame(SETTINGS, 0, 0, &setting(INITIAL_WINDOW_SIZE, 0));
    bad.write_all(&none).await.unwrap();
    bad.ask(1, ASKED, &wants(1 << 20)).await;
    bad.frame(HEADERS).await;
    let mut taken = 0;
    let mut turns = interval(Duration::from_millis(20));
    // Each byte of room brings a byte, until it's enough.
    loop {
        turns.tick().await;
        let _ = bad.write(WINDOW_UPDATE, 0, 1, &word(1)).await;
        match bad.next().await {
            Some(frame) if frame.kind == DATA => taken += frame.payload.len(),
            Some(_) => {}
            None => break,
        }
    }
    assert!((1..16 * 1024).contains(&taken), "{taken}");
    assert_eq!(scene.gateway.metric(clock).await, 1.0);
    scene.ends_well().await;
}

#[tokio::test]
async fn a_body_of_single_bytes_is_a_body() {
    let scene = Scene::new("").await;
    scene.open.send_replace(true);
    let body = format!("{{\"a\":\"{}\"}}", "x".repeat(20_000));
    let mut bad = scene.gateway.client(&scene.pki).stream().await.unwrap();
    let pieces = body.chars().map(|byte| format!("1\r\n{byte}\r\n"));
    let head = plain_head(ASKED, "transfer-encoding: chunked\r\nconnection: close\r\n");
    let all = format!("{head}{}0\r\n\r\n", pieces.collect::<String>());
    bad.write_all(all.as_bytes()).await.unwrap();
    let mut answer = String::new();
    bad.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with(SUCCESS), "{answer}");
    let seen = scene.upstream.seen();
    let arrived = seen.iter().find(|seen| seen.target.ends_with(ASKED));
    assert!(arrived.unwrap().text().ends_with(&body[1..]));
    scene.ends_well().await;
}

/// An HTTP/1.1 request's head with these lines besides.
fn plain_head(operation: &str, more: &str) -> String {
    format!(
        "POST /openapi/v1/{operation} HTTP/1.1\r\nhost: gateway.test\r\ncontent-type: application/json\r\n{more}\r\n"
    )
}

#[tokio::test]
async fn heads_that_are_too_large_are_refused_on_http1_too() {
    let scene = Scene::new("").await;
    let floods = [
        "x: \r\n".repeat(1_000),
        format!("x: {}\r\n", "x".repeat(100_000)),
        format!("{}: x\r\n", "x".repeat(100_000)),
        format!("x: {}\r\n", "x".repeat(30_000)).repeat(10),
    ];
    for (nth, flood) in floods.iter().enumerate() {
        let mut bad = scene.gateway.client(&scene.pki).stream().await.unwrap();
        // It's refused before it is written.
        let _ = bad.write_all(plain_head(ASKED, flood).as_bytes()).await;
        let mut answer = Vec::new();
        let _ = bad.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
            "{answer}"
        );
        scene
            .gateway
            .metric_reaches(MALFORMED, nth as f64 + 1.0)
            .await;
    }
    assert_eq!(scene.arrived(), 0);
    scene.ends_well().await;
}

#[tokio::test]
async fn requests_in_a_row_are_answered_in_a_row() {
    const REQUESTS: usize = 5_000;
    let scene = Scene::new("").await;
    let bad = scene.gateway.client(&scene.pki).stream().await.unwrap();
    let (mut from, mut to) = tokio::io::split(bad);
    // Two kinds, in an order that isn't regular.
    let asked = |nth: usize| match nth % 7 * nth % 3 {
        0 => ("no/such", "404"),
        _ => ("customerOpenApi//add", "400"),
    };
    let request = |nth| plain_head(asked(nth).0, "content-length: 0\r\n");
    let mut all: String = (0..REQUESTS).map(request).collect();
    all.push_str(&plain_head(
        "no/last",
        "connection: close\r\ncontent-length: 0\r\n",
    ));
    let mut answers = String::new();
    let both = async {
        tokio::join!(
            async { to.write_all(all.as_bytes()).await.unwrap() },
            from.read_to_string(&mut answers),
        )
    };
    timeout(PATIENCE, both).await.unwrap().1.unwrap();
    let told = answers
        .split("HTTP/1.1 ")
        .skip(1)
        .map(|answer| &answer[..3]);
    let expected = (0..REQUESTS).map(|nth| asked(nth).1);
    assert!(told.eq(expected.chain(["404"])), "{answers:.2000}");
    assert_eq!(scene.arrived(), 0);
    scene.ends_well().await;
}

#[tokio::test]
async fn whoever_asks_on_and_on_and_reads_nothing_is_ended_in_time() {
    let scene = Scene::new("write_timeout = \"1s\"\n").await;
    let clock = "kybio_gateway_downstream_timeouts_total{clock=\"write\"}";
    let mut bad = scene.gateway.client(&scene.pki).stream().await.unwrap();
    scene.gateway.forget_peak();
    let before = scene.gateway.memory_kib();
    let body = wants(64 * 1024);
    let head = plain_head(ASKED, &format!("content-length: {}\r\n", body.len()));
    let all = format!("{head}{body}").repeat(5_000);
    // Not read at all: it's the other side that gives up.
    let written = timeout(PATIENCE, bad.write_all(all.as_bytes())).await;
    scene.gateway.metric_reaches(clock, 1.0).await;
    assert!(written.is_ok());
    let grown = scene.gateway.memory_peak_kib().saturating_sub(before);
    assert!(grown <= GROWTH_KIB_MAX, "{grown} KiB");
    // As many as the kernel has room for their answers.
    assert!(scene.arrived() < 1_000, "{}", scene.arrived());
    drop(bad);
    scene.ends_well().await;
}

#[tokio::test]
async fn handshakes_that_are_never_ended_keep_nobody_out() {
    const COUNT: usize = 200;
    let scene = Scene::new("handshake_timeout = \"1s\"\n").await;
    let pair = scene.pki.caller(ORDERS);
    let config = scene
        .pki
        .client_config(Some(&pair), &["h2"], rustls::ALL_VERSIONS);
    let name = "gateway.test".try_into().unwrap();
    let mut hello = Vec::new();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    client.write_tls(&mut hello).unwrap();
    let mut bad = Vec::new();
    for _ in 0..COUNT {
        let mut stream = TcpStream::connect(scene.gateway.address).await.unwrap();
        stream.write_all(&hello[..hello.len() / 2]).await.unwrap();
        bad.push(stream);
    }
    let series = "kybio_gateway_tls_handshake_failures_total{reason=\"timeout\"}";
    scene.gateway.metric_reaches(series, COUNT as f64).await;
    scene.ends_well().await;
}

#[tokio::test]
async fn connections_that_come_and_go_leave_nothing_behind() {
    const COUNT: usize = 150;
    let scene = Scene::new("").await;
    let client = scene.gateway.client(&scene.pki);
    let before = scene.gateway.memory_kib();
    for _ in 0..COUNT {
        drop(TcpStream::connect(scene.gateway.address).await.unwrap());
        drop(client.stream().await.unwrap());
    }
    let accepted = "kybio_gateway_downstream_connections_accepted_total";
    scene
        .gateway
        .metric_reaches(accepted, 2.0 * COUNT as f64 + 2.0)
        .await;
    let grown = scene.gateway.memory_kib().saturating_sub(before);
    assert!(grown <= GROWTH_KIB_MAX, "{grown} KiB");
    scene.ends_well().await;
}

/// What a good caller may do without being taken for a bad one: many calls on one connection, a window update for each piece of an
/// answer, a ping for each call, calls that are given up now and then, and a large answer in small pieces.
#[tokio::test]
async fn lively_callers_are_not_ended() {
    const CALLS: u32 = 2_000;
    const LARGE: usize = 4 << 20;
    const PIECE: u32 = 16 * 1024;
    let scene = Scene::new("").await;
    scene.open.send_replace(true);
    let mut lively = scene.connect().await;
    let update = |stream, bytes: usize| {
        let bytes = word(u32::try_from(bytes).unwrap());
        let (whole, own) = (
            frame(WINDOW_UPDATE, 0, 0, &bytes),
            frame(WINDOW_UPDATE, 0, stream, &bytes),
        );
        [whole, own].concat()
    };
    let (mut answered, mut given_up) = (0, 0);
    for nth in 0..CALLS {
        let stream = 2 * nth + 1;
        lively.ask(stream, ASKED, "{}").await;
        lively.write_all(&ping(0, nth)).await.unwrap();
        if nth % 20 == 7 {
            lively
                .write(RST_STREAM, 0, stream, &word(CANCEL))
                .await
                .unwrap();
            given_up += 1;
            continue;
        }
        let mut body = Vec::new();
        loop {
            let frame = lively.next().await.expect("the connection goes on");
            assert!(![RST_STREAM, GOAWAY].contains(&frame.kind), "{frame:?}");
            if frame.kind == DATA && !frame.payload.is_empty() {
                let freed = update(frame.stream, frame.payload.len());
                lively.write_all(&freed).await.unwrap();
            }
            if frame.kind == DATA && frame.stream == stream {
                body.extend(frame.payload);
                if frame.flags & END_STREAM != 0 {
                    break;
                }
            }
        }
        assert_eq!(body, SUCCESS.as_bytes());
        answered += 1;
    }
    assert_eq!((answered, given_up), (1_900, 100));
    let small = frame(SETTINGS, 0, 0, &setting(INITIAL_WINDOW_SIZE, PIECE));
    lively.write_all(&small).await.unwrap();
    let stream = 2 * CALLS + 1;
    lively.ask(stream, ASKED, &wants(LARGE)).await;
    let (mut taken, mut free) = (0, PIECE as usize);
    while taken < LARGE {
        let frame = lively.frame(DATA).await;
        taken += frame.payload.len();
        free -= frame.payload.len();
        if free == 0 {
            let halves = update(stream, PIECE as usize / 2).repeat(2);
            lively.write_all(&halves).await.unwrap();
            free = PIECE as usize;
        }
    }
    assert_eq!(taken, LARGE);
    assert_eq!(
        (scene.floods().await, scene.gateway.metric(MALFORMED).await),
        (0.0, 0.0)
    );
    drop(lively);
    scene.ends_well().await;
}
