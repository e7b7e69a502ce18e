//! What a caller's connection is doing: requests, heads and answers on their way, and since when. It reads and writes nothing.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prometheus::IntGauge;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio::time::sleep;
use tokio::time::sleep_until;

use crate::clock::Clock;

/// What the connection is doing, shared by the stream and the service.
#[derive(Clone, Debug)]
pub(super) struct Activity(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Rings at the first request.
    begun: Notify,
    /// Connections with a request under way, of which this may be one.
    busy: IntGauge,
    /// There has been nothing to do for a while.
    at_rest: AtomicBool,
    /// An end is none of the stream's.
    kept_open: AtomicBool,
}

#[derive(Debug)]
struct State {
    requests: usize,
    idle_since: Instant,
    /// On HTTP/1.1, since when a head has been on its way. A whole one ends it.
    head_since: Option<Instant>,
    /// On HTTP/2, since when the caller has been amid something; requests beside it have no bearing on that.
    amid_since: Option<Instant>,
    /// When each answer that's on its way last moved on. There are at most as many as HTTP/2 streams.
    answers: Vec<(u64, Instant)>,
    /// When one of them did so last, or was handed on whole.
    moved: Instant,
    /// It was told already that one of them isn't taken.
    stuck: bool,
    next: u64,
}

impl State {
    /// Since when something has been on its way from the caller that isn't a request yet.
    fn begun_since(&self) -> Option<Instant> {
        self.head_since.or(self.amid_since)
    }
}

impl Activity {
    /// Idle from `now` on.
    #[must_use]
    pub(super) fn new(now: Instant, busy: IntGauge) -> Self {
        let state = Mutex::new(State {
            requests: 0,
            idle_since: now,
            head_since: None,
            amid_since: None,
            answers: Vec::new(),
            moved: now,
            stuck: false,
            next: 0,
        });
        Self(Arc::new(Shared {
            state,
            begun: Notify::new(),
            busy,
            at_rest: AtomicBool::new(false),
            kept_open: AtomicBool::new(false),
        }))
    }

    /// Waits for the connection's first request.
    pub(super) async fn begun(&self) {
        let begun = self.0.begun.notified();
        if self.state().next == 0 {
            begun.await;
        }
    }

    /// A head is whole; its request lasts until the value is dropped, which is when its answer has been handed on.
    #[must_use]
    pub(super) fn request(&self, clock: &Clock) -> Request {
        let mut state = self.state();
        if state.requests == 0 {
            self.0.busy.inc();
        }
        state.requests += 1;
        state.head_since = None;
        state.next += 1;
        if state.next == 1 {
            self.0.begun.notify_waiters();
        }
        Request {
            number: state.next,
            activity: self.clone(),
            clock: clock.clone(),
        }
    }

    /// There's a request whose answer hasn't been handed on, or the beginning of one.
    #[must_use]
    pub(super) fn is_busy(&self) -> bool {
        let state = self.state();
        state.requests > 0 || state.begun_since().is_some()
    }

    /// Waits until there has been no request for so long.
    pub(super) async fn idle_for(&self, time: Duration) {
        loop {
            let quiet = {
                let state = self.state();
                (state.requests == 0).then_some(state.idle_since)
            };
            match quiet {
                Some(since) if since.elapsed() >= time => return,
                Some(since) => sleep_until(since + time).await,
                None => sleep(time).await,
            }
        }
    }

    /// Waits until an answer hasn't moved on for so long, whatever else is under way. Whoever waits tells it.
    pub(super) async fn stuck_for(&self, time: Duration) {
        loop {
            let slowest = self.state().answers.iter().map(|(_, moved)| *moved).min();
            match slowest {
                Some(moved) if moved.elapsed() >= time => {
                    self.state().stuck = true;
                    return;
                }
                Some(moved) => sleep_until(moved + time).await,
                None => sleep(time).await,
            }
        }
    }

    /// Something came that no request is under way for: a head begins.
    pub(super) fn bytes_came(&self, clock: &Clock) {
        let mut state = self.state();
        if state.requests == 0 && state.head_since.is_none() {
            state.head_since = Some(clock.now());
        }
    }

    /// Since when the caller has been amid something, on HTTP/2.
    pub(super) fn amid(&self, since: Option<Instant>) {
        self.state().amid_since = since;
    }

    /// The clock that the caller must be faster than, and since when it runs.
    pub(super) fn running(&self) -> Option<(Instant, Running)> {
        let state = self.state();
        // Only where nothing else is under way, and by the answer that moved on last: one that isn't taken is no reason to keep the word on
        // a write from its caller. It's one to take no more requests (`stuck_for`), or there would always be something else.
        let all_answered = state.answers.len() == state.requests;
        let latest = (all_answered && state.requests > 0).then_some(state.moved);
        match (latest, state.requests, state.begun_since()) {
            (Some(moved), _, _) => Some((moved, Running::Write)),
            (None, 0, Some(since)) => Some((since, Running::Head)),
            (None, 0, None) => Some((state.idle_since, Running::Idle)),
            // While a request is on its way, other deadlines hold.
            (None, _, _) => None,
        }
    }

    /// Whether, when the stream was read last, there had been nothing to do for [`Limits::rest`](super::guard::Limits::rest): no request, no part of one, and nothing
    /// that was still to be written. It's said once.
    pub(super) fn take_rest(&self) -> bool {
        self.0.at_rest.swap(false, Ordering::Relaxed)
    }

    /// For as long as that's so, the end of what speaks on the stream isn't the stream's.
    pub(super) fn keep_open(&self, kept: bool) {
        self.0.kept_open.store(kept, Ordering::Relaxed);
    }

    /// An end is none of the stream's now.
    #[must_use]
    pub(super) fn is_kept_open(&self) -> bool {
        self.0.kept_open.load(Ordering::Relaxed)
    }

    /// Whether there's nothing to do, and has been for a while.
    pub(super) fn set_rest(&self, rest: bool) {
        self.0.at_rest.store(rest, Ordering::Relaxed);
    }

    /// It was told already that an answer isn't taken.
    #[must_use]
    pub(super) fn is_stuck(&self) -> bool {
        self.state().stuck
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The clock that's running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Running {
    /// Without any request.
    Idle,
    /// From a head's first byte on.
    Head,
    /// Without the caller taking a byte.
    Write,
}

impl Running {
    /// As it's counted.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Head => "head",
            Self::Write => "write",
        }
    }
}

/// A request between its head and the end of its answer.
#[derive(Debug)]
pub(super) struct Request {
    number: u64,
    activity: Activity,
    clock: Clock,
}

impl Request {
    /// The answer has moved on: its next piece is wanted, because there was room for the one before.
    pub(super) fn moved(&self) {
        let now = self.clock.now();
        let mut state = self.activity.state();
        state.moved = now;
        match state
            .answers
            .iter_mut()
            .find(|(number, _)| *number == self.number)
        {
            Some((_, moved)) => *moved = now,
            None => state.answers.push((self.number, now)),
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let mut state = self.activity.state();
        let now = self.clock.now();
        state.answers.retain(|(number, _)| *number != self.number);
        state.moved = now;
        state.requests -= 1;
        if state.requests == 0 {
            state.idle_since = now;
            self.activity.0.busy.dec();
        }
    }
}
