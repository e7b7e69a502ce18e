//! Promises X1, X2 and X3 at length: thousands of calls of every class through faults of every kind at once, and then what callers were
//! told is laid beside what the host knows to have happened.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use tokio::task::JoinSet;

use crate::support::gateway::APP_KEY;
use crate::support::replies::{all_but, framed, gzip_without, later, redirect, slow};
use crate::support::upstream::{Act, Door, Knock, Place, Script, Seen, Then};
use crate::support::{Answer, Client, Gateway, Pki, Setup, Upstream};

/// Half of all calls are reads.
const READ: &str = "customerOpenApi/queryByUid";
/// The one write that may be repeated when it may have left.
const TRUSTED: &str = "customerOpenApi/updateBalancePointByIncrement";
const WRITES: [&str; 5] = [
    "customerOpenApi/add",
    "customerOpenApi/updateBaseInfo",
    "orderOpenApi/addOnLineOrder",
    "orderOpenApi/shipOrder",
    TRUSTED,
];

/// Of a thousand requests, and of a thousand connections, so many are struck.
const STRUCK_PER_THOUSAND: u64 = 50;

/// What a strike means for a call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// The host does what it's asked to, or doesn't; nobody can tell from outside.
    Perhaps,
    /// It does, and says so.
    Always,
    /// It refuses before it looks at the call.
    Never,
}

struct Strike {
    effect: Effect,
    /// A read can't survive what isn't repeated by anyone.
    reads: bool,
    /// The answer that a good host would give comes in.
    act: fn(&str) -> Act,
}

const fn strike(effect: Effect, reads: bool, act: fn(&str) -> Act) -> Strike {
    Strike { effect, reads, act }
}

/// All the ways in which a request goes wrong once it has been read. Besides them there are doors, and resets at the first byte.
#[rustfmt::skip]
const STRIKES: [Strike; 25] = [
    strike(Effect::Perhaps, true, |_| Act::Reset),
    strike(Effect::Perhaps, true, |_| Act::Close),
    strike(Effect::Perhaps, true, |_| Act::Hang),
    strike(Effect::Perhaps, true, |good| all_but(good.len() + 10, good, Then::End)),
    strike(Effect::Perhaps, true, |good| all_but(10, good, Then::End)),
    strike(Effect::Perhaps, true, |good| all_but(10, good, Then::Reset)),
    strike(Effect::Perhaps, true, |good| all_but(10, good, Then::Stall)),
    strike(Effect::Perhaps, true, |good| Act::raw(framed("content-length: 9999", good), Then::End)),
    strike(Effect::Perhaps, true, |good| Act::raw(framed("content-length: 20", good), Then::Keep)),
    strike(Effect::Perhaps, true, |good| Act::raw(framed("x: y", good), Then::Cut)),
    strike(Effect::Perhaps, true, |_| Act::raw("garbage\r\n\r\n", Then::Keep)),
    strike(Effect::Perhaps, true, |_| Act::ok("<html>down for maintenance</html>")),
    strike(Effect::Perhaps, true, |good| gzip_without(8, good)),
    strike(Effect::Perhaps, true, |good| Act::status(502, good.to_owned())),
    strike(Effect::Perhaps, true, |_| Act::status(503, "")),
    strike(Effect::Perhaps, true, |_| Act::status(504, "")),
    strike(Effect::Perhaps, true, |_| later(503, "1")),
    strike(Effect::Perhaps, false, |good| Act::status(500, good.to_owned())),
    strike(Effect::Perhaps, false, |_| redirect()),
    strike(Effect::Always, true, |good| slow(Duration::from_millis(100), good)),
    strike(Effect::Always, true, |good| all_but(0, good, Then::End)),
    strike(Effect::Always, true, |good| all_but(0, good, Then::Reset)),
    strike(Effect::Never, true, |_| later(429, "1")),
    strike(Effect::Never, false, |_| Act::status(429, "")),
    strike(Effect::Never, false, |_| Act::status(403, "")),
];

/// What the host knows of one call.
#[derive(Clone, Default)]
struct Note {
    /// Requests that arrived, be it their first byte.
    arrivals: u64,
    effects: u64,
    /// It answered that it's done, or that it was done before.
    said_done: bool,
    /// Its last word was that it refuses.
    refused: bool,
}

/// A host on which everything goes wrong now and then, as a seed has it.
#[derive(Clone)]
struct Storm {
    seed: u64,
    notes: Arc<Mutex<HashMap<String, Note>>>,
    strikes: Arc<AtomicUsize>,
}

/// SplitMix64 over all bytes of a text: the same number for the same text, and no pattern besides.
fn draw(seed: u64, text: &str) -> u64 {
    text.bytes().fold(seed, |state, byte| {
        let mixed = (state ^ u64::from(byte)).wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    })
}

/// The call that these bytes belong to.
fn id_in(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let (_, after) = text.split_once("\"id\":\"")?;
    Some(after.split_once('"')?.0.to_owned())
}

fn success(id: &str) -> String {
    format!(
        "{{\"status\":\"success\",\"messages\":[],\"data\":{{\"id\":\"{id}\"}},\"errorCode\":null}}"
    )
}

const SAID_TWICE: &str = r#"{"status":"error","messages":["重复提交修改"],"errorCode":null}"#;

impl Storm {
    /// What becomes of this arrival: nothing, a reset at its first byte, or a strike; and a coin beside it.
    fn fate(&self, id: &str, arrival: u64) -> (Option<Option<&'static Strike>>, bool) {
        if id == FILLER {
            return (None, false);
        }
        let drawn = draw(self.seed, &format!("{id}, {arrival}"));
        let (drawn, coin) = (drawn / 2, drawn.is_multiple_of(2));
        if drawn % 1_000 >= STRUCK_PER_THOUSAND {
            return (None, coin);
        }
        let read = id.starts_with("read");
        let strikes: Vec<_> = STRIKES.iter().filter(|one| one.reads || !read).collect();
        let which = usize::try_from(drawn / 1_000).unwrap() % (strikes.len() + 1);
        (Some(strikes.get(which).copied()), coin)
    }

    fn struck(&self) {
        self.strikes.fetch_add(1, Ordering::Relaxed);
    }
}

impl Script for Storm {
    fn door(&self, connection: usize) -> Door {
        let drawn = draw(self.seed, &format!("connection {connection}"));
        if drawn % 1_000 >= STRUCK_PER_THOUSAND {
            return Door::Open;
        }
        self.struck();
        if (drawn / 1_000).is_multiple_of(2) {
            Door::Refuse
        } else {
            Door::Break
        }
    }

    fn knock(&self, _: Place, bytes: &[u8]) -> Knock {
        let id = id_in(bytes).expect("a small request arrives whole");
        let mut notes = self.notes.lock().unwrap();
        let note = notes.entry(id.clone()).or_default();
        note.arrivals += 1;
        note.refused = false;
        match self.fate(&id, note.arrivals) {
            (Some(None), _) => {
                self.struck();
                Knock::Reset
            }
            _ => Knock::Read,
        }
    }

    fn act(&self, seen: &Seen) -> Act {
        let id = id_in(&seen.body).unwrap();
        let mut notes = self.notes.lock().unwrap();
        let note = notes.get_mut(&id).unwrap();
        let (strike, coin) = self.fate(&id, note.arrivals);
        let strike = strike.flatten();
        let effect = strike.map_or(Effect::Always, |strike| strike.effect);
        // KYBIO's de-duplication, which is what makes it trusted.
        let said_twice = note.effects > 0 && seen.target.ends_with(TRUSTED);
        if (effect == Effect::Always || (effect == Effect::Perhaps && coin)) && !said_twice {
            note.effects += 1;
        }
        note.said_done |= effect == Effect::Always;
        note.refused = effect == Effect::Never;
        let good = if said_twice {
            SAID_TWICE.to_owned()
        } else {
            success(&id)
        };
        match strike {
            Some(strike) => {
                self.struck();
                (strike.act)(&good)
            }
            // Now and then it closes in good order, so that there are many doors to pass.
            None if id != FILLER && draw(self.seed, &format!("{id} closes")).is_multiple_of(8) => {
                let answer = Response::builder().header("connection", "close");
                Act::Answer(answer.body(Full::new(good.into())).unwrap())
            }
            None => Act::ok(good),
        }
    }
}

/// One call, as its caller saw it.
struct Told {
    id: String,
    operation: &'static str,
    answer: Answer,
}

impl Told {
    fn outcome(&self) -> &str {
        self.answer.header("kybio-gateway-outcome")
    }

    fn retryable(&self) -> &str {
        self.answer.header("kybio-gateway-retryable")
    }

    fn attempts(&self) -> u64 {
        self.answer
            .header("kybio-gateway-attempts")
            .parse()
            .unwrap()
    }

    fn is_read(&self) -> bool {
        self.operation == READ
    }

    /// What is wrong with it, in the light of what the host knows, and of what arrived.
    fn fault(&self, note: &Note, arrived: &[&Seen]) -> Option<&'static str> {
        let (outcome, told_yes) = (self.outcome(), self.retryable() == "yes");
        let done = outcome == "done";
        let repeated = self.is_read() || self.operation == TRUSTED;
        let own = success(&self.id);
        let is_own = self.answer.body == own || self.answer.body == SAID_TWICE;
        let stamp = |seen: &Seen| seen.header("time-stamp").parse::<u64>().unwrap();
        let aged = |pair: &[&Seen]| stamp(pair[1]) < stamp(pair[0]);
        let changed = |pair: &[&Seen]| pair[0].body != pair[1].body;
        let rules = [
            (!repeated && note.arrivals > 1, "it was sent twice"),
            (!self.is_read() && note.effects > 1, "it took effect twice"),
            (done && !note.said_done, "done, but the host never said so"),
            (done && !is_own, "done, with the answer to another call"),
            (
                outcome == "not-sent" && !self.is_read() && note.arrivals > 0,
                "not sent, but it arrived",
            ),
            (
                outcome == "rejected" && !self.is_read() && note.effects > 0,
                "rejected, but it took effect",
            ),
            (
                outcome == "rejected" && !note.refused,
                "rejected, but the host didn't refuse",
            ),
            (
                told_yes != (outcome == "not-sent" || (outcome == "unknown" && self.is_read())),
                "the wrong advice",
            ),
            (
                self.attempts() < note.arrivals || self.attempts() > 3,
                "the wrong number of attempts",
            ),
            (
                !arrived.iter().all(|seen| seen.is_signed_with(APP_KEY)),
                "a wrong signature",
            ),
            (arrived.windows(2).any(aged), "a stamp older than the last"),
            (arrived.windows(2).any(changed), "other bytes than the last"),
        ];
        let broken = rules.into_iter().find(|(broken, _)| *broken);
        broken.map(|(_, rule)| rule)
    }
}

/// The calls that go on until the last of the others has ended: what takes time would otherwise come after everything else, and look
/// like an outage. Nothing strikes them, and nobody looks at them.
const FILLER: &str = "filler";

/// How many callers make them.
const FILLERS: usize = 8;

/// All calls of one seed, by 32 callers at a time on 20 connections.
async fn calls(gateway: &Gateway, pki: &Pki, seed: u64, count: usize) -> Vec<Told> {
    let (next, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut callers = JoinSet::new();
    let mut caller = |client: &Arc<Client>| {
        let (client, next, ended) = (Arc::clone(client), Arc::clone(&next), Arc::clone(&ended));
        callers.spawn(async move {
            let mut told = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    // The first of those who are done keep the shop open for the others.
                    while number < count + FILLERS && ended.load(Ordering::Relaxed) < count {
                        let filler = format!("{{\"id\":\"{FILLER}\"}}");
                        client.call(READ, filler).await;
                    }
                    return told;
                }
                let drawn = draw(seed, &format!("call {number}")) % 10;
                let (kind, operation) = match WRITES.get(usize::try_from(drawn).unwrap()) {
                    Some(write) => ("write", *write),
                    None => ("read", READ),
                };
                let id = format!("{kind}-{number}");
                let body = Bytes::from(format!("{{\"id\":\"{id}\"}}"));
                let answer = client.call(operation, body).await;
                ended.fetch_add(1, Ordering::Relaxed);
                told.push(Told {
                    id,
                    operation,
                    answer,
                });
            }
        });
    };
    for _ in 0..16 {
        caller(&Arc::new(gateway.client(pki)));
    }
    for _ in 0..4 {
        let client = Arc::new(gateway.http2_client(pki));
        for _ in 0..4 {
            caller(&client);
        }
    }
    callers.join_all().await.into_iter().flatten().collect()
}

/// A whole number from the environment, or this one.
#[expect(
    clippy::disallowed_methods,
    reason = "a test's size is nothing that `config` knows"
)]
fn wanted(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

#[tokio::test]
async fn thousands_of_calls_through_every_fault() {
    let count = wanted("KYBIO_GATEWAY_TEST_CAMPAIGN_CALLS", 2_000);
    let seeds = wanted("KYBIO_GATEWAY_TEST_CAMPAIGN_SEEDS", 2);
    let (mut figures, mut faults) = (String::new(), Vec::new());
    let (mut reads, mut reads_done) = (0, 0);
    for seed in 1..=seeds as u64 {
        let pki = Pki::new();
        let storm = Storm {
            seed,
            notes: Arc::default(),
            strikes: Arc::default(),
        };
        let upstream = Upstream::with(&pki, storm.clone()).await;
        let mut setup = Setup::new(&pki, Some(upstream.address));
        // What isn't answered costs little.
        setup
            .kybio
            .push_str("attempt_timeout = \"1s\"\ntotal_timeout = \"4s\"\n");
        let _ = write!(
            setup.more,
            "[operations.\"{TRUSTED}\"]\nrepeat = \"identical-bytes\"\n"
        );
        let gateway = setup.start().await;
        let told = calls(&gateway, &pki, seed, count).await;
        assert_eq!(told.len(), count);

        let (seen, notes) = (upstream.seen(), storm.notes.lock().unwrap().clone());
        let mut arrived: HashMap<_, Vec<&Seen>> = HashMap::new();
        for seen in &seen {
            let id = id_in(&seen.body).unwrap();
            arrived.entry(id).or_default().push(seen);
        }
        let (mut outcomes, mut retries) = (BTreeMap::new(), 0);
        for call in &told {
            let note = notes.get(&call.id).cloned().unwrap_or_default();
            let seen = arrived.get(&call.id).map_or(&[][..], Vec::as_slice);
            if let Some(fault) = call.fault(&note, seen) {
                let (id, operation, outcome) = (&call.id, call.operation, call.outcome());
                faults.push(format!(
                    "seed {seed}, {id}, {operation}, {outcome}: {fault}"
                ));
            }
            let kind = if call.is_read() { "read" } else { "write" };
            let outcome = format!("{kind} {}", call.outcome());
            *outcomes.entry(outcome).or_insert(0_usize) += 1;
            retries += call.attempts().saturating_sub(1);
        }
        let outcome = |name: &str| outcomes.get(name).copied().unwrap_or_default();
        let reads_here = told.iter().filter(|call| call.is_read()).count();
        let writes = count - reads_here;
        reads += reads_here;
        reads_done += outcome("read done");
        let strikes = storm.strikes.load(Ordering::Relaxed);
        let metrics = gateway.metrics().await;
        let opens = "kybio_gateway_upstream_breaker_opens_total{upstream=\"kybio\"} 0\n";
        for (broken, rule) in [
            (
                !metrics.contains(opens),
                "the breaker opened, or isn't counted",
            ),
            // Who always says `unknown` is never wrong, and of no use.
            (
                outcome("write done") * 10 < writes * 9,
                "too few writes are done",
            ),
            (strikes * 100 < count * 4, "too few strikes"),
            (retries * 5 > count as u64, "more than a fifth are retries"),
        ] {
            if broken {
                faults.push(format!("seed {seed}: {rule}"));
            }
        }
        for call in told
            .iter()
            .filter(|call| call.is_read() && call.outcome() != "done")
        {
            let id = call.answer.header("kybio-gateway-request-id");
            let event = gateway.request_event(id).await;
            let (why, met) = (&event["not_repeated"], &event["attempt"]);
            let (earlier, took) = (&event["earlier_attempts"], &event["duration_ms"]);
            let _ = writeln!(figures, "{}: {earlier} {met}, {why}, {took} ms", call.id);
        }
        let connections = upstream.connections();
        let _ = writeln!(
            figures,
            "seed {seed}: {count} calls, {outcomes:?}, {strikes} strikes, {retries} retries, {} arrivals on {connections} connections",
            seen.len(),
        );
    }
    println!("{figures}");
    assert!(faults.is_empty(), "{figures}{}", faults.join("\n"));
    // Three faults in a row end a read: one in some two thousand. Of few reads a single one would be too much.
    let wanted = if reads < 20_000 { 995 } else { 999 };
    assert!(
        reads_done * 1_000 >= reads * wanted,
        "{figures}{reads_done} of {reads} reads are done"
    );
}
