//! From a granted, checked call to KYBIO's word: its turn, its attempts, its end.
//!
//! Waiting for a turn belongs to the caller's own future: who leaves then has sent nothing. From the first attempt on the exchange is a
//! task of its own, because a call that may have effect isn't cut when nobody listens any more.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prometheus::IntGauge;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio::time::sleep;
use tokio::time::timeout;
use tokio::time::timeout_at;

use crate::answers::AnswerClass;
use crate::clock::Moment;
use crate::observe::exchange::Answer;
use crate::observe::exchange::Attempt;
use crate::observe::exchange::Exchange;
use crate::observe::log::chain;
use crate::outcome::Outcome;
use crate::payload::Payload;
use crate::policy::Grant;
use crate::proxy::Line;
use crate::proxy::Proxy;
use crate::proxy::earlier::Earlier;
use crate::proxy::earlier::is_duplicate;
use crate::proxy::error::Error;
use crate::proxy::respond::Receipt;
use crate::proxy::route::Route;
use crate::quota::Leave;
use crate::reply;
use crate::reply::Reply;
use crate::retry::Case;
use crate::retry::Decision;
use crate::retry::Failure;
use crate::retry::Reason;
use crate::retry::may_repeat;
use crate::sign;
use crate::sign::SignedBody;
use crate::slots::Claim;
use crate::slots::Slot;
use crate::upstream;
use crate::upstream::breaker::Pass;
use crate::upstream::breaker::TRIAL_WAIT;
use crate::upstream::pool::Pool;
use crate::upstream::send;

/// What comes of a call: KYBIO's word, or why there's none.
pub(super) type Verdict = Result<Reply, Error>;

/// Why the caller hears no verdict.
pub(super) enum Unheard {
    /// Its own time is up; the attempt goes on.
    GaveUp(Receipt),
    /// The task is gone, which is a bug.
    Failed(Receipt),
}

/// Who waits for the verdict. Closed when nobody does any more.
type Tell = oneshot::Sender<(Box<Exchange>, Verdict)>;

/// A place among the calls under way, for as long as it lives.
struct Turn {
    _slot: Slot,
    _in_flight: Counted,
}

/// What all attempts of a call share.
struct Call<'a> {
    route: &'a Route,
    grant: &'a Grant,
    signed: &'a SignedBody,
    leave: Leave,
    /// The end of all its time.
    deadline: Instant,
}

impl Line {
    /// Waits for the call's turn, has it made, and waits for what comes of it, at most until `patience` ends.
    #[expect(
        clippy::manual_async_fn,
        reason = "an async function would keep what it's given twice"
    )]
    pub(super) fn forward(
        self: Arc<Self>,
        grant: Grant,
        payload: Payload,
        mut exchange: Box<Exchange>,
        patience: Option<Instant>,
    ) -> impl Future<Output = Result<(Box<Exchange>, Verdict), Unheard>> {
        async move {
            let (turn, leave) = match self.turn(&grant, &mut exchange, patience).await {
                Ok(turn) => turn,
                Err(error) => return Ok((exchange, Err(error))),
            };
            let receipt = Receipt::of(&exchange);
            let (mut tell, told) = oneshot::channel();
            let line = Arc::clone(&self);
            // Boxed, because it would be copied from one place to the next otherwise, kilobytes at a time.
            self.attempts.spawn(Box::pin(async move {
                let call = line.call(&grant, &payload, turn, leave, &mut exchange, &mut tell);
                let verdict = call.await;
                // Who doesn't wait any more takes nothing, and the exchange ends here.
                drop(tell.send((exchange, verdict)));
            }));
            let told = match patience {
                Some(deadline) => timeout_at(deadline, told).await,
                None => Ok(told.await),
            };
            match told {
                Ok(Ok(ended)) => Ok(ended),
                Ok(Err(_)) => Err(Unheard::Failed(receipt)),
                Err(_) => Err(Unheard::GaveUp(receipt)),
            }
        }
    }

    async fn turn(
        &self,
        grant: &Grant,
        exchange: &mut Exchange,
        patience: Option<Instant>,
    ) -> Result<(Turn, Leave), Error> {
        let Proxy {
            clock,
            latches,
            slots,
            ..
        } = &*self.proxy;
        let ((_, route), account) = (self.proxy.route(grant)?, grant.account());
        // What will be refused anyway doesn't wait for its turn first.
        let moment = || clock.moment();
        latches.check(account, moment)?;
        let began = clock.now();
        if route.upstream.is_down(began) {
            return Err(Error::Upstream(upstream::Error::Down));
        }
        let settings = route.upstream.settings();
        let claim = Claim {
            caller: grant.caller(),
            caller_max: grant.in_flight_max(),
            account: &account.name,
            account_max: account.in_flight_max,
            upstream: &settings.name,
            upstream_max: route.rules.in_flight_max,
            queue_max: route.rules.queue_max,
        };
        let deadline = (exchange.started() + settings.total_timeout)
            .min(began + route.rules.queue_timeout)
            .min(patience.unwrap_or(began + route.rules.queue_timeout));
        let queued = Counted::new(&route.queued);
        let taken = slots.take(&claim, deadline).await;
        drop(queued);
        let now = clock.now();
        exchange.queued = now - began;
        exchange.waited += exchange.queued;
        if patience.is_some_and(|patience| patience <= now) {
            return Err(Error::CallerTimeout);
        }
        let slot = taken?;
        // It may have fallen meanwhile: of many who waited for it, none is to be signed for nothing.
        if route.upstream.is_down(now) {
            return Err(Error::Upstream(upstream::Error::Down));
        }
        // A slow body or a long queue may have left too little of it to hear an answer: better not to send than not to know.
        let left = (exchange.started() + settings.total_timeout).saturating_duration_since(now);
        if left < route.rules.retry.attempt_time_min {
            return Err(Error::NoTimeLeft);
        }
        let leave = latches.enter(account, moment, &route.rules.quota)?;
        let turn = Turn {
            _slot: slot,
            _in_flight: Counted::new(&route.in_flight),
        };
        Ok((turn, leave))
    }

    /// Makes attempts until one brings a verdict, or none more is allowed.
    async fn call(
        &self,
        grant: &Grant,
        payload: &Payload,
        turn: Turn,
        leave: Leave,
        exchange: &mut Exchange,
        tell: &mut Tell,
    ) -> Verdict {
        let (number, route) = self.proxy.route(grant)?;
        let pool = self.pools.get(number).ok_or(Error::NoUpstream)?;
        // The stamp isn't signed (contract, section 1): one signature is that of all attempts.
        let signed = sign::sign(payload, grant.key());
        let call = Call {
            route,
            grant,
            signed: &signed,
            leave,
            deadline: exchange.started() + route.upstream.settings().total_timeout,
        };
        exchange.under_way = true;
        let (mut turn, mut earlier) = (Some(turn), Earlier::default());
        let last = loop {
            let began = self.proxy.clock.moment();
            let pass = match route.upstream.enter(began.monotonic) {
                Ok(pass) => pass,
                Err(down) => break Err(Error::Upstream(down)),
            };
            if exchange.attempts.is_empty() {
                route.budget.count_call();
            }
            let trial = pass.is_trial();
            let first = !earlier.has_left();
            let verdict = {
                let attempt = self.attempt(&call, pool, (pass, began), exchange, first, tell);
                let mut attempt = pin!(attempt);
                // Nobody else has this clock: one that would ring before all the others costs two system calls.
                let in_time = if trial {
                    Box::pin(timeout(TRIAL_WAIT, attempt.as_mut())).await.ok()
                } else {
                    None
                };
                match in_time {
                    Some(verdict) => verdict,
                    None => {
                        // A trial may hang with its host: that's not to keep others from their turn.
                        turn = turn.filter(|_| !trial);
                        attempt.await
                    }
                }
            };
            let Some(failure) = self.failure(&verdict) else {
                break verdict;
            };
            // Boxed, because what seldom happens is to make nothing larger that always does.
            let again = Box::pin(self.may_go_again(&call, failure, exchange, tell));
            if !again.await {
                break verdict;
            }
            earlier.keep(verdict);
        };
        drop(turn);
        let was_lost = earlier.is_lost();
        let verdict = earlier.settle(last, exchange.is_read());
        exchange.under_way = false;
        exchange.duplicate =
            was_lost && !exchange.is_read() && verdict.as_ref().is_ok_and(is_duplicate);
        if let Err(error) = &verdict {
            exchange.cause = Some(chain(error));
            exchange.retry_after = self.retry_after(error);
        }
        exchange.outcome = verdict.as_ref().map_or_else(Error::outcome, |reply| {
            if reply.verdict().success || exchange.duplicate {
                Outcome::Done
            } else {
                Outcome::Rejected
            }
        });
        if exchange.outcome == Outcome::NotSent {
            let moment = self.proxy.clock.moment();
            self.proxy.latches.give_back(grant.account(), leave, moment);
        }
        verdict
    }

    /// One attempt: stamped, sent, its reply read.
    #[expect(
        clippy::manual_async_fn,
        reason = "an async function would keep what it's given twice"
    )]
    fn attempt<'a>(
        &'a self,
        call: &'a Call<'a>,
        pool: &'a Pool,
        (pass, began): (Pass, Moment),
        exchange: &'a mut Exchange,
        first: bool,
        tell: &'a Tell,
    ) -> impl Future<Output = Verdict> {
        async move {
            let Proxy { clock, answers, .. } = &*self.proxy;
            let settings = call.route.upstream.settings();
            let operation = call.grant.operation();
            let deadline = if may_repeat(operation.class, operation.repeat, Failure::Lost) {
                call.deadline
                    .min(began.monotonic + settings.attempt_timeout)
            } else {
                // All the time that is left: to give a write up early would only make its outcome unknown.
                call.deadline
            };
            let sent = send::Call {
                operation: &operation.name,
                signed: call.signed,
                began,
                trace: exchange.trace,
                time_min: call.route.rules.retry.attempt_time_min,
                fair: exchange.uploading <= settings.total_timeout / 2,
                wanted: &|| !tell.is_closed(),
            };
            // If this task ends here, for whatever reason, that is the truth.
            exchange.outcome = Outcome::Unknown;
            let attempts = &Arc::clone(&exchange.progress).attempts;
            attempts.fetch_add(1, Ordering::AcqRel);
            let sent = send::send(pool, pass, &sent, deadline).await;
            let ended = match &sent {
                Ok(answer) => answer.ended,
                Err(_) => clock.now(),
            };
            let verdict = sent.map_err(Error::Upstream).and_then(|answer| {
                let send::Answer {
                    status,
                    headers,
                    body,
                    ..
                } = answer;
                reply::read(status, &headers, body, settings.reply_bytes_max, answers)
                    .map(|reply| without_signature(reply, call.signed, exchange))
                    .map_err(Error::Reply)
            });
            if first && matches!(&verdict, Err(error) if error.outcome() == Outcome::NotSent) {
                exchange.outcome = Outcome::NotSent;
            }
            if let Err(Error::Upstream(upstream::Error::Capacity | upstream::Error::Unwanted)) =
                verdict
            {
                // There was no connection to make it on, or it wasn't used.
                attempts.fetch_sub(1, Ordering::AcqRel);
                return verdict;
            }
            exchange.attempts.push(Attempt {
                host: Arc::clone(call.route.upstream.series()),
                result: verdict.as_ref().map_or_else(Error::label, |_| "answered"),
                duration: ended - began.monotonic,
                answer: verdict.as_ref().ok().map(|reply| Answer {
                    success: reply.verdict().success,
                    code: reply.verdict().code,
                    class: reply.verdict().class,
                }),
            });
            if let Ok(reply) = &verdict {
                self.heed(call, reply, began.wall);
            }
            verdict
        }
    }

    /// What an answer says of the account: its key, and its calls for the day.
    fn heed(&self, call: &Call<'_>, reply: &Reply, asked: Duration) {
        let Proxy {
            latches,
            keyring,
            clock,
            ..
        } = &*self.proxy;
        if call.route.upstream.is_retired() {
            // Another host may have its name by now, of whose keys and quota this one says nothing.
            return;
        }
        let account = call.grant.account();
        let class = reply.verdict().class;
        if reply.verdict().success {
            keyring.accepted(call.grant.account_number());
        } else if class == Some(AnswerClass::Credential) {
            keyring.refused(call.grant.account_number(), clock.now());
        }
        match class {
            Some(AnswerClass::QuotaExhausted) => {
                let rules = &call.route.rules.quota;
                latches.close(account, asked, clock.moment(), rules);
            }
            Some(
                AnswerClass::Rejected
                | AnswerClass::Duplicate
                | AnswerClass::Transient
                | AnswerClass::Credential,
            )
            | None => {
                if matches!(call.leave, Leave::Trial(_)) {
                    latches.open(account);
                }
            }
        }
    }

    /// Waits before the next attempt, if there is to be one.
    async fn may_go_again(
        &self,
        call: &Call<'_>,
        (failure, not_before): (Failure, Option<Duration>),
        exchange: &mut Exchange,
        tell: &mut Tell,
    ) -> bool {
        let Route { rules, budget, .. } = call.route;
        let operation = call.grant.operation();
        let mut case = Case {
            class: operation.class,
            repeat: operation.repeat,
            failure,
            not_before,
            attempts: u32::try_from(exchange.attempts.len()).unwrap_or(u32::MAX),
            pauses: 0,
            budget_left: false,
            time_left: Duration::ZERO,
            caller_waits: true,
            chance: 0.0,
        };
        loop {
            let now = self.proxy.clock.now();
            case.budget_left = budget.has_room(now);
            case.time_left = call.deadline.saturating_duration_since(now);
            case.caller_waits = !tell.is_closed();
            case.chance = fastrand::f64();
            match rules.retry.decide(&case) {
                Decision::Again => {
                    if budget.take(now) {
                        return true;
                    }
                    // Another worker was quicker.
                }
                Decision::Pause(pause) => {
                    tokio::select! {
                        () = sleep(pause) => {}
                        () = tell.closed() => {}
                    }
                    exchange.waited += self.proxy.clock.now() - now;
                    case.pauses += 1;
                }
                Decision::Stop(reason) => {
                    if reason == Reason::Budget {
                        call.route.budget_refusals.inc();
                    }
                    exchange.not_repeated = reason.as_str();
                    return false;
                }
            }
        }
    }

    /// What a verdict means for another attempt; `None` if it's KYBIO's last word.
    fn failure(&self, verdict: &Verdict) -> Option<(Failure, Option<Duration>)> {
        match verdict {
            Ok(reply) if reply.verdict().class == Some(AnswerClass::Transient) => {
                Some((Failure::NotNow, None))
            }
            Ok(_) => None,
            Err(error) => Some((error.failure(), self.retry_after(error))),
        }
    }

    fn retry_after(&self, error: &Error) -> Option<Duration> {
        let after = error.retry_after()?;
        Some(after.pause(self.proxy.clock.since_epoch()))
    }
}

/// A host may answer with what it was asked, as some do to say that a signature is wrong. A caller is told all that but the signature.
fn without_signature(reply: Reply, signed: &SignedBody, exchange: &mut Exchange) -> Reply {
    let (packed, plain) = (reply.packed(), reply.plain());
    let masked = signed.masked_in(plain).or_else(|| {
        // What was unpacked may not be all that there is: a packed file has a name, for one.
        let hidden = reply.is_packed() && signed.masked_in(packed).is_some();
        hidden.then(|| plain.clone())
    });
    match masked {
        None => reply,
        Some(plain) => {
            exchange.masked = true;
            reply.reworded(plain)
        }
    }
}

impl Proxy {
    fn route(&self, grant: &Grant) -> Result<(usize, &Route), Error> {
        let route = self.routes.of_account(grant.account_number());
        route.ok_or(Error::NoUpstream)
    }
}

/// Counts for as long as it lives.
struct Counted(IntGauge);

impl Counted {
    fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
