//! Promises X1, X2 and X3 in detail: what becomes of each kind of call under each kind of fault, on a fresh connection and on a kept one,
//! once and without end; and of calls whose callers stop waiting.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use crate::support::gateway::APP_KEY;
use crate::support::replies;
use crate::support::replies::{all_but, gzip_without, later, redirect, slow};
use crate::support::tools::PATIENCE;
use crate::support::upstream::{Act, Door, Knock, Place, SUCCESS, Script, Seen, Then};
use crate::support::{Answer, Client, Gateway, Pki, Setup, Upstream};

/// The kinds of calls that differ in what may be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Read,
    AbsoluteWrite,
    NonIdempotentWrite,
    StateTransition,
    /// A de-duplicated write of which the operator says that identical bytes may be repeated.
    TrustedWrite,
}

const CLASSES: [Class; 5] = [
    Class::Read,
    Class::AbsoluteWrite,
    Class::NonIdempotentWrite,
    Class::StateTransition,
    Class::TrustedWrite,
];

impl Class {
    fn operation(self) -> &'static str {
        match self {
            Self::Read => "customerOpenApi/queryByUid",
            Self::AbsoluteWrite => "customerOpenApi/updateBaseInfo",
            Self::NonIdempotentWrite => "orderOpenApi/addOnLineOrder",
            Self::StateTransition => "orderOpenApi/shipOrder",
            Self::TrustedWrite => "customerOpenApi/updateBalancePointByIncrement",
        }
    }
}

const TRUSTED: &str = "[operations.\"customerOpenApi/updateBalancePointByIncrement\"]\nrepeat = \"identical-bytes\"\n";

/// Who gets another attempt after a fault.
#[derive(Clone, Copy, Debug)]
enum Repeated {
    /// Nothing left.
    Everything,
    ReadsAndTrusted,
    Reads,
    Nothing,
}

impl Repeated {
    fn includes(self, class: Class) -> bool {
        match self {
            Self::Everything => true,
            Self::ReadsAndTrusted => matches!(class, Class::Read | Class::TrustedWrite),
            Self::Reads => class == Class::Read,
            Self::Nothing => false,
        }
    }
}

/// HTTP status, code and outcome. KYBIO's own answers have no code.
type Told = (u16, &'static str, &'static str);

const DONE: Told = (200, "", "done");
const REJECTED: Told = (200, "", "rejected");
const UNREACHABLE: Told = (502, "upstream-unreachable", "not-sent");
const BROKEN: Told = (502, "upstream-broken", "unknown");
const TIMEOUT: Told = (504, "upstream-timeout", "unknown");
const STATUS: Told = (502, "upstream-status", "unknown");
const UNREADABLE: Told = (502, "unreadable-reply", "unknown");
const TOO_LARGE: Told = (502, "reply-too-large", "unknown");
const REFUSED: Told = (502, "upstream-refused", "rejected");

/// KYBIO's bytes, if it's KYBIO's answer.
fn body(told: Told) -> &'static str {
    match told {
        DONE => SUCCESS,
        REJECTED => BUSINESS_ERROR,
        _ => "",
    }
}

/// Whether the very same may be sent again, by outcome and class.
fn retryable(told: Told, class: Class) -> &'static str {
    match told.2 {
        "not-sent" => "yes",
        "unknown" if class == Class::Read => "yes",
        _ => "no",
    }
}

/// What the host does wrong.
#[derive(Clone, Copy)]
enum Fault {
    Door(Door),
    Knock,
    Act(fn() -> Act),
}

const REFUSE: Fault = Fault::Door(Door::Refuse);
const RESET: Fault = Fault::Act(|| Act::Reset);
const GARBAGE: Fault = Fault::Act(|| Act::ok("<html>down for maintenance</html>"));
const UNAVAILABLE: Fault = Fault::Act(|| Act::status(503, ""));
const DUPLICATE: Fault = Fault::Act(|| Act::ok(SAID_TWICE));
const SAID_TWICE: &str = r#"{"status":"error","messages":["重复提交修改"],"errorCode":null}"#;
const BUSINESS_ERROR: &str =
    r#"{"status":"error","messages":["product does not exist"],"errorCode":5001}"#;

/// One line of the specification.
struct Row {
    name: &'static str,
    fault: Fault,
    repeated: Repeated,
    /// If there's no other attempt, or the last one fails too.
    told: Told,
    /// How long another attempt waits at least, in ms.
    pause_ms: u64,
    /// Lines of the upstream's table.
    kybio: &'static str,
}

fn row(name: &'static str, fault: Fault, repeated: Repeated, told: Told) -> Row {
    Row {
        name,
        fault,
        repeated,
        told,
        pause_ms: 0,
        kybio: "",
    }
}

/// A fraction of a read's time.
const A_WHILE: Duration = Duration::from_millis(200);

/// Short enough for a test, long enough for a busy machine.
const CLOCKS: &str = "attempt_timeout = \"700ms\"\ntotal_timeout = \"2800ms\"\n";

/// The specification.
#[rustfmt::skip]
fn rows() -> Vec<Row> {
    use Repeated::{Everything, Nothing, Reads, ReadsAndTrusted};
    let clocks = |row: Row| Row { kybio: CLOCKS, ..row };
    let small = |row: Row| Row { kybio: "reply_bytes_max = 1024\n", ..row };
    let a_second_later = |row: Row| Row { pause_ms: 1_000, ..row };
    vec![
        // Time. An attempt ends before all time is gone where there may be another.
        clocks(row("no answer", Fault::Act(|| Act::Hang), ReadsAndTrusted, TIMEOUT)),
        clocks(row("half an answer, and silence", Fault::Act(|| all_but(30, SUCCESS, Then::Stall)), ReadsAndTrusted, TIMEOUT)),
        clocks(row("slow, but in time", Fault::Act(|| slow(A_WHILE, SUCCESS)), Nothing, DONE)),
        a_second_later(row("429 with Retry-After", Fault::Act(|| later(429, "1")), Reads, REFUSED)),
        a_second_later(row("503 with Retry-After", Fault::Act(|| later(503, "1")), ReadsAndTrusted, STATUS)),
        row("429 that asks for more time than there is", Fault::Act(|| later(429, "3600")), Nothing, REFUSED),
        row("503 that asks for more time than there is", Fault::Act(|| later(503, "3600")), Nothing, STATUS),
        // Nothing left.
        row("connection refused", REFUSE, Everything, UNREACHABLE),
        row("reset in the handshake", Fault::Door(Door::Break), Everything, UNREACHABLE),
        // It may have left.
        row("reset at the first byte", Fault::Knock, ReadsAndTrusted, BROKEN),
        row("reset after reading", RESET, ReadsAndTrusted, BROKEN),
        row("closed after reading", Fault::Act(|| Act::Close), ReadsAndTrusted, BROKEN),
        row("closed after reading, in good order", Fault::Act(|| Act::raw("", Then::End)), ReadsAndTrusted, BROKEN),
        row("half a head", Fault::Act(|| all_but(70, SUCCESS, Then::End)), ReadsAndTrusted, BROKEN),
        row("half a body", Fault::Act(|| all_but(30, SUCCESS, Then::End)), ReadsAndTrusted, BROKEN),
        row("half a body, and a reset", Fault::Act(|| all_but(30, SUCCESS, Then::Reset)), ReadsAndTrusted, BROKEN),
        row("half the chunks", Fault::Act(|| Act::raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n14\r\n{\"status\":\"success\"}\r\n", Then::End)), ReadsAndTrusted, BROKEN),
        row("a body without a length, cut off", Fault::Act(|| Act::raw("HTTP/1.1 200 OK\r\n\r\n{\"status\":\"success\"}", Then::Cut)), ReadsAndTrusted, BROKEN),
        row("a Content-Length too large", Fault::Act(|| lengths("content-length: 52", Then::End)), ReadsAndTrusted, BROKEN),
        row("a Content-Length too small", Fault::Act(|| lengths("content-length: 20", Then::Keep)), ReadsAndTrusted, UNREADABLE),
        row("two Content-Lengths", Fault::Act(|| lengths("content-length: 51\r\ncontent-length: 20", Then::Keep)), ReadsAndTrusted, BROKEN),
        row("a Content-Length that is no number", Fault::Act(|| lengths("content-length: x", Then::Keep)), ReadsAndTrusted, BROKEN),
        row("garbage for a head", Fault::Act(|| Act::raw("{\"status\":\"success\"}\r\n\r\n", Then::Keep)), ReadsAndTrusted, BROKEN),
        row("garbage for a body", GARBAGE, ReadsAndTrusted, UNREADABLE),
        row("an empty body", Fault::Act(|| Act::ok("")), ReadsAndTrusted, UNREADABLE),
        row("an object that says nothing", Fault::Act(|| Act::ok("{}")), ReadsAndTrusted, UNREADABLE),
        row("half the gzip", Fault::Act(|| gzip_without(30, SUCCESS)), ReadsAndTrusted, UNREADABLE),
        row("gzip without its end", Fault::Act(|| gzip_without(4, SUCCESS)), ReadsAndTrusted, UNREADABLE),
        row("502", Fault::Act(|| Act::status(502, SUCCESS)), ReadsAndTrusted, STATUS),
        row("503", UNAVAILABLE, ReadsAndTrusted, STATUS),
        row("504", Fault::Act(|| Act::status(504, "")), ReadsAndTrusted, STATUS),
        // It may have left, and another attempt would end no better.
        row("500", Fault::Act(|| Act::status(500, SUCCESS)), Nothing, STATUS),
        row("a redirect", Fault::Act(redirect), Nothing, STATUS),
        small(row("a reply over the limit", Fault::Act(|| Act::ok(format!("{SUCCESS}{}", " ".repeat(1_024)))), Nothing, TOO_LARGE)),
        // It was refused.
        row("429", Fault::Act(|| Act::status(429, "")), Nothing, REFUSED),
        row("400", Fault::Act(|| Act::status(400, "")), Nothing, REFUSED),
        row("401", Fault::Act(|| Act::status(401, "")), Nothing, REFUSED),
        row("403", Fault::Act(|| Act::status(403, "")), Nothing, REFUSED),
        row("404", Fault::Act(|| Act::status(404, SUCCESS)), Nothing, REFUSED),
        row("a business error", Fault::Act(|| Act::ok(BUSINESS_ERROR)), Nothing, REJECTED),
    ]
}

/// A good answer, framed so.
fn lengths(lengths: &str, then: Then) -> Act {
    Act::raw(replies::framed(lengths, SUCCESS), then)
}

/// A host that is well but for the faults that are queued; each strikes once, when its turn comes.
#[derive(Clone, Default)]
struct Faulty(Arc<Queue>);

#[derive(Default)]
struct Queue {
    faults: Mutex<VecDeque<Fault>>,
    /// Where they struck: a request's place, none for connections.
    strikes: Mutex<Vec<Option<Place>>>,
}

impl Faulty {
    fn queue(&self, faults: impl IntoIterator<Item = Fault>) {
        *self.0.faults.lock().unwrap() = faults.into_iter().collect();
        self.0.strikes.lock().unwrap().clear();
    }

    /// Forgets what hasn't struck, and tells where the others did.
    fn well_again(&self) -> Vec<Option<Place>> {
        self.0.faults.lock().unwrap().clear();
        std::mem::take(&mut *self.0.strikes.lock().unwrap())
    }

    /// The next fault, if it belongs here.
    fn strike(&self, place: Option<Place>, belongs: impl Fn(&Fault) -> bool) -> Option<Fault> {
        let fault = self.0.faults.lock().unwrap().pop_front_if(|f| belongs(f))?;
        self.0.strikes.lock().unwrap().push(place);
        Some(fault)
    }
}

impl Script for Faulty {
    fn door(&self, _: usize) -> Door {
        match self.strike(None, |fault| matches!(fault, Fault::Door(_))) {
            Some(Fault::Door(door)) => door,
            _ => Door::Open,
        }
    }

    fn knock(&self, place: Place, _: &[u8]) -> Knock {
        match self.strike(Some(place), |fault| matches!(fault, Fault::Knock)) {
            Some(_) => Knock::Reset,
            None => Knock::Read,
        }
    }

    fn act(&self, seen: &Seen) -> Act {
        match self.strike(Some(seen.place), |fault| matches!(fault, Fault::Act(_))) {
            Some(Fault::Act(act)) => act(),
            _ => Act::ok(SUCCESS),
        }
    }
}

/// A faulty host, and a gateway before it.
struct Scene {
    faulty: Faulty,
    upstream: Upstream,
    gateway: Gateway,
    client: Client,
    calls: AtomicUsize,
}

/// What became of one call.
struct Call {
    answer: Answer,
    /// The requests that the host read.
    seen: Vec<Seen>,
    strikes: Vec<Option<Place>>,
}

impl Scene {
    async fn new(pki: &Pki, kybio: &str) -> Self {
        let faulty = Faulty::default();
        let upstream = Upstream::with(pki, faulty.clone()).await;
        let gateway = gateway(pki, &upstream, kybio).await;
        Self {
            client: gateway.client(pki),
            faulty,
            upstream,
            gateway,
            calls: AtomicUsize::new(0),
        }
    }

    /// One call into these faults. Its body is like no other.
    async fn call(&self, class: Class, faults: impl IntoIterator<Item = Fault>) -> Call {
        let id = self.calls.fetch_add(1, Ordering::Relaxed);
        let body = format!("{{\"id\":\"call-{id}\"}}");
        self.faulty.queue(faults);
        let answer = self.client.call(class.operation(), body.clone()).await;
        let strikes = self.faulty.well_again();
        let mut seen = self.upstream.seen();
        seen.retain(|seen| seen.text().contains(&body[1..]));
        Call {
            answer,
            seen,
            strikes,
        }
    }
}

async fn gateway(pki: &Pki, upstream: &Upstream, kybio: &str) -> Gateway {
    let mut setup = Setup::new(pki, Some(upstream.address));
    setup.kybio.push_str(kybio);
    setup.more.push_str(TRUSTED);
    setup.start().await
}

/// HTTP status, code, outcome, whether it may be sent again, attempts, and KYBIO's bytes.
type All = (u16, String, String, String, String, String);

fn all(told: Told, class: Class, attempts: usize, body: &str) -> All {
    let (status, code, outcome) = told;
    let retryable = retryable(told, class);
    let (code, outcome, retryable) = (code.into(), outcome.into(), retryable.into());
    let attempts = attempts.to_string();
    (status, code, outcome, retryable, attempts, body.into())
}

impl Call {
    /// All that the caller was told, with the number of attempts; KYBIO's bytes if they're KYBIO's.
    fn told(&self) -> All {
        let answer = &self.answer;
        let header = |name| answer.header(name).to_owned();
        let (status, code, outcome, retryable, body) = if answer.status == 200 {
            let (outcome, retryable) = (
                header("kybio-gateway-outcome"),
                header("kybio-gateway-retryable"),
            );
            (200, String::new(), outcome, retryable, answer.text())
        } else {
            let (status, code, outcome, retryable) = answer.refusal();
            (status, code, outcome, retryable, String::new())
        };
        let attempts = header("kybio-gateway-attempts");
        (status, code, outcome, retryable, attempts, body)
    }

    /// What is the same for every call: each request is signed, has the very bytes of the one before, and a stamp that isn't older.
    fn unfaithful(&self, pause_ms: u64) -> Option<String> {
        let stamp = |seen: &Seen| seen.header("time-stamp").parse::<u64>().unwrap();
        for pair in self.seen.windows(2) {
            if pair[0].body != pair[1].body {
                return Some("other bytes than before".to_owned());
            }
            // Two clocks are at work, the wall's and the timer's: they may differ by a little.
            if stamp(&pair[1]) < stamp(&pair[0]) + pause_ms * 99 / 100 {
                return Some(format!("{} after {}", stamp(&pair[1]), stamp(&pair[0])));
            }
        }
        let unsigned = self.seen.iter().find(|seen| !seen.is_signed_with(APP_KEY));
        unsigned.map(|seen| format!("not signed: {seen:?}"))
    }
}

/// When and where a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    OnceOnAFreshConnection,
    OnceOnAKeptConnection,
    Always,
}

/// All classes of calls into one fault, one after another, at a gateway of their own: ten retries are free, and good calls between them
/// keep the breaker closed. Returns what isn't as the specification has it.
async fn differences(pki: &Pki, row: &Row, mode: Mode) -> Vec<String> {
    let scene = Scene::new(pki, row.kybio).await;
    let mut differences = Vec::new();
    for class in CLASSES {
        let well = scene.call(class, []).await;
        assert_eq!(well.answer.header("kybio-gateway-outcome"), "done");
        if mode != Mode::OnceOnAKeptConnection {
            scene.upstream.drop_connections().await;
        }
        let repeated = row.repeated.includes(class);
        let (faults, told) = match mode {
            Mode::Always => (10, row.told),
            _ => (1, if repeated { DONE } else { row.told }),
        };
        let attempts = match (repeated, mode) {
            (false, _) => 1,
            (true, Mode::Always) => 3,
            (true, _) => 2,
        };
        let call = scene
            .call(class, std::iter::repeat_n(row.fault, faults))
            .await;

        let expected = all(told, class, attempts, body(told));
        let mut differs = |what: String| {
            differences.push(format!("{}, {class:?}, {mode:?}: {what}", row.name));
        };
        if call.told() != expected {
            differs(format!("{:?} instead of {expected:?}", call.told()));
        }
        let strikes = if mode == Mode::Always { attempts } else { 1 };
        let unread = match row.fault {
            Fault::Door(_) | Fault::Knock => strikes,
            Fault::Act(_) => 0,
        };
        let arrived = (call.strikes.len(), call.seen.len());
        if arrived != (strikes, attempts - unread) {
            let expected = (strikes, attempts - unread);
            differs(format!(
                "{arrived:?} strikes and requests instead of {expected:?}"
            ));
        }
        if let Some(Some(place)) = call.strikes.first()
            && (place.nth > 1) != (mode == Mode::OnceOnAKeptConnection)
        {
            differs(format!("it struck at {place:?}"));
        }
        if let Some(what) = call.unfaithful(row.pause_ms) {
            differs(what);
        }
    }
    differences
}

/// How many gateways run at a time.
const GATEWAYS_MAX: usize = 10;

async fn check(mode: Mode) {
    let (pki, turns) = (Arc::new(Pki::new()), Arc::new(Semaphore::new(GATEWAYS_MAX)));
    let mut checks = JoinSet::new();
    for row in rows() {
        // There's no door before a kept connection.
        if mode == Mode::OnceOnAKeptConnection && matches!(row.fault, Fault::Door(_)) {
            continue;
        }
        let (pki, turns) = (Arc::clone(&pki), Arc::clone(&turns));
        checks.spawn(async move {
            let _turn = turns.acquire().await.unwrap();
            differences(&pki, &row, mode).await
        });
    }
    assert!(checks.len() > 30);
    let differences: Vec<_> = checks.join_all().await.into_iter().flatten().collect();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[tokio::test]
async fn a_fault_that_strikes_once_on_a_fresh_connection() {
    check(Mode::OnceOnAFreshConnection).await;
}

#[tokio::test]
async fn a_fault_that_strikes_once_on_a_kept_connection() {
    check(Mode::OnceOnAKeptConnection).await;
}

#[tokio::test]
async fn a_fault_that_does_not_end() {
    check(Mode::Always).await;
}

/// A connection that ends between two calls costs neither of them anything.
#[tokio::test]
async fn a_kept_connection_that_ends_while_idle() {
    let pki = Pki::new();
    let scene = Scene::new(&pki, "").await;
    let open = "kybio_gateway_upstream_connections{upstream=\"kybio\"}";
    let mut calls = 0;
    for ending in [
        Fault::Act(|| all_but(0, SUCCESS, Then::End)),
        Fault::Act(|| all_but(0, SUCCESS, Then::Cut)),
        Fault::Act(|| all_but(0, SUCCESS, Then::Reset)),
    ] {
        for class in CLASSES {
            let call = scene.call(class, [ending]).await;
            assert_eq!(
                call.told(),
                all(DONE, class, 1, SUCCESS),
                "{class:?}, call {calls}"
            );
            while scene.gateway.metric(open).await > 0.0 {
                tokio::task::yield_now().await;
            }
            calls += 1;
        }
    }
    assert_eq!(
        (scene.upstream.connections(), scene.upstream.seen().len()),
        (calls, calls)
    );
}

/// The last real error is told, but what may have left once isn't `not-sent` or `rejected` because of what came after it: then it's
/// the error of the last attempt that may have left. Only a read's own answer settles all attempts.
#[tokio::test]
async fn several_faults_in_a_row() {
    use Class::{NonIdempotentWrite, Read, TrustedWrite};
    const GARBLED: Fault = Fault::Act(|| Act::raw("garbage\r\n\r\n", Then::End));
    const INTERNAL: Fault = Fault::Act(|| Act::status(500, ""));
    const LATER: Fault = Fault::Act(|| later(429, "0"));
    const FORBIDDEN: Fault = Fault::Act(|| Act::status(403, ""));
    const BUSINESS: Fault = Fault::Act(|| Act::ok(BUSINESS_ERROR));
    let cases: [(Class, &[Fault], Told, usize); 18] = [
        (Read, &[RESET, UNAVAILABLE], DONE, 3),
        (Read, &[REFUSE, RESET], DONE, 3),
        (Read, &[LATER, LATER], DONE, 3),
        (Read, &[UNAVAILABLE, RESET, GARBAGE], UNREADABLE, 3),
        (Read, &[GARBAGE, GARBLED, UNAVAILABLE], STATUS, 3),
        (Read, &[RESET, INTERNAL], STATUS, 2),
        (Read, &[RESET, REFUSE, REFUSE], BROKEN, 3),
        (Read, &[RESET, BUSINESS], REJECTED, 2),
        (Read, &[RESET, FORBIDDEN], REFUSED, 2),
        (NonIdempotentWrite, &[REFUSE, REFUSE], DONE, 3),
        (NonIdempotentWrite, &[REFUSE, RESET], BROKEN, 2),
        (
            NonIdempotentWrite,
            &[REFUSE, REFUSE, UNAVAILABLE],
            STATUS,
            3,
        ),
        (NonIdempotentWrite, &[REFUSE, LATER], REFUSED, 2),
        (TrustedWrite, &[REFUSE, RESET], DONE, 3),
        (TrustedWrite, &[RESET, REFUSE, REFUSE], BROKEN, 3),
        (TrustedWrite, &[UNAVAILABLE, LATER], STATUS, 2),
        (TrustedWrite, &[RESET, FORBIDDEN], BROKEN, 2),
        (TrustedWrite, &[RESET, BUSINESS], BROKEN, 2),
    ];
    let pki = Pki::new();
    for cases in cases.chunks(5) {
        let scene = Scene::new(&pki, "").await;
        for (number, (class, faults, told, attempts)) in cases.iter().enumerate() {
            scene.upstream.drop_connections().await;
            let call = scene.call(*class, faults.iter().copied()).await;
            assert_eq!(
                call.told(),
                all(*told, *class, *attempts, body(*told)),
                "{class:?}, case {number} of its gateway"
            );
            assert_eq!(call.unfaithful(0), None);
        }
    }
}

/// A repeat that KYBIO refuses as a duplicate proves that an earlier attempt took effect, if there was one that may have left.
#[tokio::test]
async fn a_duplicate_is_done_if_it_was_us() {
    use Class::{NonIdempotentWrite, TrustedWrite};
    const BAD_GATEWAY: Fault = Fault::Act(|| Act::status(502, ""));
    const HALF: Fault = Fault::Act(|| all_but(30, SUCCESS, Then::End));
    let cases: [(Class, &[Fault], &str, &str, usize); 9] = [
        (TrustedWrite, &[RESET, DUPLICATE], "done", "yes", 2),
        (TrustedWrite, &[Fault::Knock, DUPLICATE], "done", "yes", 2),
        (TrustedWrite, &[BAD_GATEWAY, DUPLICATE], "done", "yes", 2),
        (TrustedWrite, &[HALF, GARBAGE, DUPLICATE], "done", "yes", 3),
        (TrustedWrite, &[RESET, REFUSE, DUPLICATE], "done", "yes", 3),
        (TrustedWrite, &[REFUSE, DUPLICATE], "rejected", "", 2),
        (TrustedWrite, &[DUPLICATE], "rejected", "", 1),
        (NonIdempotentWrite, &[DUPLICATE], "rejected", "", 1),
        (NonIdempotentWrite, &[REFUSE, DUPLICATE], "rejected", "", 2),
    ];
    let pki = Pki::new();
    // Ten retries are free.
    for cases in cases.chunks(5) {
        let scene = Scene::new(&pki, "").await;
        for (number, (class, faults, outcome, duplicate, attempts)) in cases.iter().enumerate() {
            scene.upstream.drop_connections().await;
            let call = scene.call(*class, faults.iter().copied()).await;
            let told = if *outcome == "done" { DONE } else { REJECTED };
            let expected = all(told, *class, *attempts, SAID_TWICE);
            assert_eq!(call.told(), expected, "case {number} of its gateway");
            assert_eq!(
                call.answer.header("kybio-gateway-duplicate"),
                *duplicate,
                "case {number} of its gateway"
            );
            assert_eq!(call.unfaithful(0), None);
        }
    }
}

#[tokio::test]
async fn a_deduplicated_write_is_not_repeated_unless_the_operator_says_so() {
    let pki = Pki::new();
    let faulty = Faulty::default();
    let upstream = Upstream::with(&pki, faulty.clone()).await;
    let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
    for (fault, code) in [
        (RESET, "upstream-broken"),
        (UNAVAILABLE, "upstream-status"),
        (GARBAGE, "unreadable-reply"),
    ] {
        faulty.queue([fault]);
        let answer = gateway
            .client(&pki)
            .call(Class::TrustedWrite.operation(), "{}")
            .await;
        assert_eq!(
            answer.refusal(),
            (502, code.into(), "unknown".into(), "no".into())
        );
        assert_eq!(answer.header("kybio-gateway-attempts"), "1");
    }
    assert_eq!(upstream.seen().len(), 3);
}

#[tokio::test]
async fn an_upstream_that_is_not_there_or_not_trusted_gets_three_attempts_and_nothing_else() {
    let (pki, other) = (Pki::new(), Pki::new());
    // An address that was free a moment ago, and that nobody listens on now.
    let nobody = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let stranger = Upstream::start(&other).await;
    for address in [nobody, stranger.address] {
        // Ten failures in a row would open the breaker.
        for classes in CLASSES.chunks(3) {
            let mut setup = Setup::new(&pki, Some(address));
            setup.more.push_str(TRUSTED);
            let gateway = setup.start().await;
            let client = gateway.client(&pki);
            for class in classes {
                let answer = client.call(class.operation(), "{}").await;
                let (status, code, outcome, retryable) = answer.refusal();
                assert_eq!((status, code.as_str(), outcome.as_str()), UNREACHABLE);
                assert_eq!(
                    (retryable.as_str(), answer.header("kybio-gateway-attempts")),
                    ("yes", "3"),
                    "{class:?}"
                );
            }
        }
    }
    assert!(stranger.seen().is_empty());
}

#[tokio::test]
async fn the_number_of_attempts_is_the_operators() {
    let pki = Pki::new();
    for (configured, attempts) in [("attempts_max = 1\n", 1), ("attempts_max = 5\n", 5)] {
        let scene = Scene::new(&pki, configured).await;
        for fault in [REFUSE, UNAVAILABLE] {
            // Ten failures in a row would open the breaker.
            scene.call(Class::Read, []).await;
            scene.upstream.drop_connections().await;
            let call = scene
                .call(Class::Read, std::iter::repeat_n(fault, 10))
                .await;
            assert_eq!(
                call.answer.header("kybio-gateway-attempts"),
                attempts.to_string()
            );
            assert_eq!(call.strikes.len(), attempts);
        }
    }
}

/// Who must not send it again is told how to find out.
#[tokio::test]
async fn an_unknown_write_names_the_read_that_tells_what_became_of_it() {
    let pki = Pki::new();
    let upstream = Upstream::scripted(&pki, |_| Act::Close).await;
    for (operation, lookup) in [
        ("customerOpenApi/add", Some("customerOpenApi/queryByNumber")),
        (
            "customerOpenApi/updateBaseInfo",
            Some("customerOpenApi/queryByUid"),
        ),
        (
            "orderOpenApi/addOnLineOrder",
            Some("orderOpenApi/queryOrderPages"),
        ),
        (
            "orderOpenApi/shipOrder",
            Some("orderOpenApi/queryOrderByNo"),
        ),
        ("customerOpenApi/updateBalancePointByIncrement", None),
        ("customerOpenApi/queryByUid", None),
    ] {
        let gateway = Setup::new(&pki, Some(upstream.address)).start().await;
        let answer = gateway.client(&pki).call(operation, "{}").await;
        assert_eq!(answer.refusal().2, "unknown");
        let told = &answer.json()["gateway"];
        assert_eq!(told["lookup"].as_str(), lookup, "{operation}");
        let hint = told["hint"].as_str().unwrap();
        assert!(lookup.is_none_or(|name| hint.contains(name)), "{hint}");
    }
}

const GAVE_UP: [(&str, &str); 1] = [("kybio-gateway-timeout-ms", "100")];

fn is_verdict(event: &Value, word: &str) -> bool {
    event["message"] == "request" && event[word] == true
}

#[tokio::test]
async fn a_caller_may_wait_for_less_and_the_call_goes_on() {
    let pki = Pki::new();
    let (upstream, gate) = Upstream::held(&pki).await;
    let gateway = gateway(&pki, &upstream, "").await;
    let clients = [gateway.client(&pki), gateway.http2_client(&pki)];
    for class in CLASSES {
        for client in &clients {
            let answer = client.call_with(class.operation(), &GAVE_UP, "{}").await;
            let retryable = if class == Class::Read { "yes" } else { "no" };
            assert_eq!(
                answer.refusal(),
                (
                    504,
                    "caller-timeout".into(),
                    "unknown".into(),
                    retryable.into()
                )
            );
            assert_eq!(answer.header("kybio-gateway-attempts"), "1");
            gate.add_permits(1);
            let id = answer.header("kybio-gateway-request-id");
            let event = gateway
                .event(|event| event["request_id"] == id && is_verdict(event, "caller_gave_up"))
                .await;
            assert_eq!(event["outcome"], "done", "{event}");
        }
    }
    let calls = CLASSES.len() * clients.len();
    assert_eq!(
        gateway
            .metric("kybio_gateway_late_verdicts_total{outcome=\"done\"}")
            .await,
        calls as f64
    );
    assert_eq!(upstream.seen().len(), calls, "each was sent once");
    // Who waits for long enough hears it as ever.
    gate.add_permits(1);
    let patient = [("kybio-gateway-timeout-ms", "30000")];
    let answer = clients[0]
        .call_with("customerOpenApi/add", &patient, "{}")
        .await;
    assert_eq!(answer.header("kybio-gateway-outcome"), "done");
}

#[tokio::test]
async fn a_wait_that_is_no_number_of_milliseconds_is_refused() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    let gateway = gateway(&pki, &upstream, "").await;
    let client = gateway.client(&pki);
    const NAME: &str = "kybio-gateway-timeout-ms";
    for headers in [
        &[(NAME, "0")][..],
        &[(NAME, "x")],
        &[(NAME, "-1")],
        &[(NAME, "")],
        &[(NAME, "1.5")],
        &[(NAME, "5"), (NAME, "5")],
    ] {
        let answer = client.call_with("customerOpenApi/add", headers, "{}").await;
        assert_eq!(
            answer.refusal(),
            (400, "bad-timeout".into(), "not-sent".into(), "no".into()),
            "{headers:?}"
        );
    }
    assert!(upstream.seen().is_empty());
}

/// A call whose caller has gone, and the gateway knows it.
async fn abandoned(pki: &Pki, upstream: &Upstream, gateway: &Gateway, http2: bool) {
    let client = Arc::new(if http2 {
        gateway.http2_client(pki)
    } else {
        gateway.client(pki)
    });
    let before = upstream.seen().len();
    let calling = tokio::spawn({
        let client = Arc::clone(&client);
        async move { client.call("orderOpenApi/addOnLineOrder", "{}").await }
    });
    upstream.arrived(before + 1).await;
    calling.abort();
    let _ = calling.await;
    if http2 {
        // A reset of its stream alone: what comes after it on the connection is answered after it.
        assert_eq!(client.call("no/such", "{}").await.status, 404);
    } else {
        drop(client);
        while gateway.metric("kybio_gateway_downstream_connections").await > 0.0 {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn a_caller_that_vanishes_in_the_middle_of_a_write_does_not_end_it() {
    let pki = Pki::new();
    let (upstream, gate) = Upstream::held(&pki).await;
    for http2 in [false, true] {
        let gateway = gateway(&pki, &upstream, "").await;
        let before = upstream.seen().len();
        abandoned(&pki, &upstream, &gateway, http2).await;
        gate.add_permits(1);
        let event = gateway
            .event(|event| is_verdict(event, "caller_gone"))
            .await;
        assert_eq!(event["outcome"], "done", "{event}");
        assert_eq!(
            gateway
                .metric("kybio_gateway_late_verdicts_total{outcome=\"done\"}")
                .await,
            1.0
        );
        assert_eq!(upstream.seen().len(), before + 1, "it was sent once");
    }
}

/// Each call is charged, and nobody would hear what comes of this one.
#[tokio::test]
async fn a_read_that_nobody_waits_for_is_not_sent_again() {
    let pki = Pki::new();
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    let upstream = Upstream::scripted(&pki, move |_| Act::once_open(&held, "<html>")).await;
    for (number, wait) in ["gives up", "leaves"].into_iter().enumerate() {
        let gateway = gateway(&pki, &upstream, "").await;
        let client = gateway.client(&pki);
        let call = tokio::spawn(async move {
            let headers: &[_] = if wait == "leaves" { &[] } else { &GAVE_UP };
            client
                .call_with("customerOpenApi/queryByUid", headers, "{}")
                .await
        });
        upstream.arrived(number + 1).await;
        if wait == "leaves" {
            call.abort();
        }
        let _ = call.await;
        // The gateway knows that a caller has left only when it looks, which it does before another attempt.
        gate.add_permits(1);
        let event = gateway.event(|event| event["outcome"] == "unknown").await;
        assert_eq!(event["attempts"], 1, "{event}");
        assert_eq!(upstream.seen().len(), number + 1, "{wait}");
    }
}

/// While the connection isn't there yet, nothing has left: what nobody waits for any more needn't leave at all.
#[tokio::test]
async fn a_write_that_nobody_waits_for_is_not_sent_once_there_is_a_connection() {
    let pki = Pki::new();
    let upstream = Upstream::start(&pki).await;
    // Connections wait at the gate, before TLS.
    let (listener, gate) = (
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
        Arc::new(Semaphore::new(0)),
    );
    let address = listener.local_addr().unwrap();
    let (host, open) = (upstream.address, Arc::clone(&gate));
    let relay = tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let open = Arc::clone(&open);
            tokio::spawn(async move {
                open.acquire().await.unwrap().forget();
                let mut far = TcpStream::connect(host).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    let gateway = Setup::new(&pki, Some(address)).start().await;
    let client = gateway.client(&pki);
    let answer = client
        .call_with("orderOpenApi/addOnLineOrder", &GAVE_UP, "{}")
        .await;
    assert_eq!(answer.refusal().1, "caller-timeout");
    gate.add_permits(1);
    let event = gateway
        .event(|event| is_verdict(event, "caller_gave_up"))
        .await;
    assert_eq!(event["outcome"], "not-sent", "{event}");
    assert!(upstream.seen().is_empty());
    // The connection is there for the next call, unless a session ticket of its host's comes in this very moment: then it looks busy, and
    // another one is opened.
    gate.add_permits(1);
    assert_eq!(
        client
            .call("orderOpenApi/addOnLineOrder", "{}")
            .await
            .status,
        200
    );
    assert!((1..=2).contains(&upstream.connections()));
    assert_eq!(upstream.seen().len(), 1);
    relay.abort();
}

#[tokio::test]
async fn a_drain_waits_for_a_write_that_nobody_waits_for() {
    let pki = Pki::new();
    let (upstream, gate) = Upstream::held(&pki).await;
    for http2 in [false, true] {
        let mut gateway = gateway(&pki, &upstream, "").await;
        abandoned(&pki, &upstream, &gateway, http2).await;
        ends_with(&mut gateway, &gate, "caller_gone").await;
    }
}

#[tokio::test]
async fn a_drain_waits_for_a_write_whose_caller_gave_up() {
    let pki = Pki::new();
    let (upstream, gate) = Upstream::held(&pki).await;
    let mut gateway = gateway(&pki, &upstream, "").await;
    let client = gateway.client(&pki);
    let answer = client
        .call_with("orderOpenApi/addOnLineOrder", &GAVE_UP, "{}")
        .await;
    assert_eq!(answer.refusal().1, "caller-timeout");
    ends_with(&mut gateway, &gate, "caller_gave_up").await;
}

/// SIGTERM, then the late answer, its line in the log, and an orderly end.
async fn ends_with(gateway: &mut Gateway, gate: &Semaphore, word: &str) {
    gateway.signal("TERM");
    gateway
        .event(|event| event["message"] == "asked to end")
        .await;
    gate.add_permits(1);
    let event = gateway.event(|event| is_verdict(event, word)).await;
    assert_eq!(event["outcome"], "done", "{event}");
    assert_eq!(gateway.ended().await.code(), Some(0));
}

/// How a connection to the scripted host ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    GoodOrder,
    CutShort,
    Reset,
    Open,
}

/// The script itself, looked at with nothing but TLS between: what all of the above rests on.
#[tokio::test]
async fn the_faulty_host_does_what_its_script_says() {
    const HALF_AND_STALL: Fault = Fault::Act(|| all_but(30, SUCCESS, Then::Stall));
    const HALF_AND_END: Fault = Fault::Act(|| all_but(30, SUCCESS, Then::End));
    const HALF_AND_CUT: Fault = Fault::Act(|| all_but(30, SUCCESS, Then::Cut));
    const HALF_AND_RESET: Fault = Fault::Act(|| all_but(30, SUCCESS, Then::Reset));
    let whole = format!("HTTP/1.1 200 OK\r\ncontent-length: 51\r\n\r\n{SUCCESS}");
    let (whole, half) = (whole.as_str(), &whole[..60]);
    let unavailable = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
    let retry = "HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n";
    let cases: [(Fault, &str, End); 14] = [
        (REFUSE, "", End::Reset),
        (Fault::Door(Door::Break), "", End::Reset),
        (Fault::Knock, "", End::Reset),
        (RESET, "", End::Reset),
        (Fault::Act(|| Act::Close), "", End::CutShort),
        (Fault::Act(|| Act::Hang), "", End::Open),
        (UNAVAILABLE, unavailable, End::Open),
        (Fault::Act(|| later(429, "1")), retry, End::Open),
        (Fault::Act(|| slow(A_WHILE, SUCCESS)), whole, End::Open),
        (
            Fault::Act(|| all_but(0, SUCCESS, Then::Keep)),
            whole,
            End::Open,
        ),
        (HALF_AND_STALL, half, End::Open),
        (HALF_AND_END, half, End::GoodOrder),
        (HALF_AND_CUT, half, End::CutShort),
        (HALF_AND_RESET, half, End::Reset),
    ];
    let pki = Pki::new();
    let faulty = Faulty::default();
    let upstream = Upstream::with(&pki, faulty.clone()).await;
    for (number, (fault, bytes, end)) in cases.into_iter().enumerate() {
        for kept in [false, true] {
            let connection = 2 * number + usize::from(kept);
            let at_the_door = matches!(fault, Fault::Door(_));
            let expected = match (kept, at_the_door) {
                (false, _) => (bytes.to_owned(), end),
                (true, false) => (format!("{whole}{bytes}"), end),
                // It's behind the door already.
                (true, true) => (format!("{whole}{whole}"), End::Open),
            };
            let found = exchange(&pki, &upstream, &faulty, fault, kept, &expected).await;
            assert_eq!(found, expected, "case {number}, {kept}");

            let nth = if kept { 2 } else { 1 };
            let place = (!at_the_door).then_some(Place { connection, nth });
            let struck = usize::from(!(kept && at_the_door));
            assert_eq!(faulty.well_again(), vec![place; struck], "case {number}");
            let mut seen = upstream.seen();
            seen.retain(|seen| seen.place.connection == connection);
            let unread = match fault {
                Fault::Act(_) => 0,
                Fault::Door(_) | Fault::Knock => struck,
            };
            assert_eq!(seen.len(), nth - unread, "case {number}, {kept}");
        }
    }
}

/// One request into this fault, as the first on its connection or as the second. Returns all bytes that came, and how it ended.
async fn exchange(
    pki: &Pki,
    upstream: &Upstream,
    faulty: &Faulty,
    fault: Fault,
    kept: bool,
    expected: &(String, End),
) -> (String, End) {
    const REQUEST: &[u8] =
        b"POST /a/b HTTP/1.1\r\nhost: upstream.test\r\ncontent-length: 2\r\n\r\n{}";
    let config = pki.client_config(None, &["http/1.1"], rustls::ALL_VERSIONS);
    let tls = TlsConnector::from(Arc::new(config));
    let end = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => End::CutShort,
        std::io::ErrorKind::ConnectionReset => End::Reset,
        kind => panic!("{kind}: {error}"),
    };
    faulty.queue((!kept).then_some(fault));
    let connected = async {
        let stream = TcpStream::connect(upstream.address).await?;
        let name = ServerName::try_from("upstream.test").unwrap();
        tls.connect(name, stream).await
    };
    let mut stream = match connected.await {
        Ok(stream) => stream,
        Err(error) => return (String::new(), end(error)),
    };
    let mut came = Vec::new();
    if kept {
        stream.write_all(REQUEST).await.unwrap();
        while came.len() < replies::whole(SUCCESS).len() {
            stream.read_buf(&mut came).await.unwrap();
        }
        faulty.queue([fault]);
    }
    stream.write_all(REQUEST).await.unwrap();
    let how = loop {
        // That nothing more comes can't be waited for.
        let all_is_there = expected.1 == End::Open && came.len() >= expected.0.len();
        let patience = if all_is_there {
            Duration::from_millis(20)
        } else {
            PATIENCE
        };
        match tokio::time::timeout(patience, stream.read_buf(&mut came)).await {
            Err(_) => break End::Open,
            Ok(Ok(0)) => break End::GoodOrder,
            Ok(Ok(_)) => {}
            Ok(Err(error)) => break end(error),
        }
    };
    (String::from_utf8(came).unwrap(), how)
}
