//! How many calls may be under way for a caller, an account and an upstream, and who goes next when there are more. A short burst waits,
//! a long one is refused, and one caller's bulk job never keeps another caller's till waiting for its end.
//!
//! # Who goes
//! A call needs room in all three limits. When there is, it goes at once: nobody who waits could have gone in its stead, because all
//! who can are let go the moment that there's room for them. Otherwise it waits for its upstream. Callers take turns there, and each
//! caller's calls go in the order in which they came. Who is held back by its caller's or its account's limit is passed over and keeps
//! its place. No room is kept for it meanwhile: its deadline bounds the wait.
//!
//! # Who is refused
//! Who comes while the queue is full, or while half of it is its own caller's; and who has waited until its deadline. Because of the
//! half, a flood of one caller's calls can't have others refused, and a lone caller never sees more than half of the queue.
//!
//! # What it never does
//! It sends nothing and counts only what holds a [`Slot`]. A slot is never lost: who leaves at the very moment that it's let go hands
//! its slot on.

mod ledger;
mod queue;
mod tally;

use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use tokio::time::Instant;
use tokio::time::timeout_at;

use crate::name::AccountName;
use crate::name::CallerName;
use crate::name::UpstreamName;
use crate::slots::ledger::Answer;
use crate::slots::ledger::Ledger;
use crate::slots::ledger::Place;
use crate::slots::ledger::Seat;

/// One caller may hold one part in so many of a queue, rounded up.
pub const QUEUE_SHARES: usize = 2;

/// What a call asks for. The limits come with each claim, so that a reload changes them without touching what is under way: the latest
/// claim's hold for all who wait. At a limit of 0 nothing goes.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// Whose call it is.
    pub caller: &'a CallerName,
    /// Calls of this caller under way.
    pub caller_max: usize,
    /// The account that it uses.
    pub account: &'a AccountName,
    /// Calls with this account under way.
    pub account_max: usize,
    /// Where it goes.
    pub upstream: &'a UpstreamName,
    /// Calls to this upstream under way.
    pub upstream_max: usize,
    /// Calls that wait for this upstream; 0 for no queue.
    pub queue_max: usize,
}

/// A limit on calls under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The caller's.
    Caller,
    /// The account's.
    Account,
    /// The upstream's.
    Upstream,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whose = match self {
            Self::Caller => "caller",
            Self::Account => "account",
            Self::Upstream => "upstream",
        };
        write!(f, "too many calls are under way for this {whose}")
    }
}

/// Why a call doesn't wait, or no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// As many wait for the upstream as may.
    QueueFull,
    /// As many of the caller's own wait for the upstream as may.
    ShareFull,
    /// It has waited until its deadline.
    TooLong,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::QueueFull => "the queue is full",
            Self::ShareFull => "half of the queue is the caller's own",
            Self::TooLong => "the wait was too long",
        })
    }
}

/// There is no slot for the call. Nothing of it has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{full}, and {reason}")]
pub struct Refused {
    /// What was in the way when it was refused; the caller's limit before the account's, and that before the upstream's.
    pub full: Limit,
    /// Why it didn't wait for room.
    pub reason: Reason,
}

/// The counts and queues of the whole process, for all its workers. A clone is a handle to the same.
#[derive(Clone)]
pub struct Slots {
    ledger: Arc<Mutex<Ledger>>,
}

impl Slots {
    /// Nothing is under way.
    #[must_use]
    pub fn new() -> Self {
        Self {
            ledger: Arc::new(Mutex::new(Ledger::new())),
        }
    }

    /// A slot, at once or after a wait until `deadline`. Dropping the future is leaving the queue.
    ///
    /// # Errors
    /// When there's no room and the call can't wait for it, or has waited for too long.
    pub async fn take(&self, claim: &Claim<'_>, deadline: Instant) -> Result<Slot, Refused> {
        let (answer, granted) = self.ledger().claim(claim);
        granted.tell();
        let (place, told) = match answer? {
            Answer::Taken(seat) => return Ok(self.slot(seat)),
            Answer::Queued(place, told) => (place, told),
        };
        let mut waiting = Waiting {
            slots: self,
            place,
            over: false,
        };
        // The ledger says how the wait has ended: the slot may have come in the moment that the deadline passed.
        let _ = timeout_at(deadline, told).await;
        waiting.end()
    }

    /// Calls that hold a slot for this upstream now.
    #[cfg(test)]
    fn in_flight(&self, upstream: &UpstreamName) -> usize {
        self.ledger().upstream(upstream).in_flight
    }

    /// Calls that wait for this upstream now.
    #[cfg(test)]
    fn waiting(&self, upstream: &UpstreamName) -> usize {
        self.ledger().upstream(upstream).waiting
    }

    fn slot(&self, seat: Seat) -> Slot {
        Slot {
            slots: self.clone(),
            seat,
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // Nothing that holds it can panic half-way through a change.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Slots {
    fn default() -> Self {
        Self::new()
    }
}

/// One call may be under way, for as long as this lives. Dropping it lets go who can go then, on whatever thread they are.
#[must_use = "the slot is given back when this is dropped"]
pub struct Slot {
    slots: Slots,
    seat: Seat,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let granted = self.slots.ledger().release(self.seat);
        granted.tell();
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").finish_non_exhaustive()
    }
}

/// A place in the queue, which is left when this is dropped.
struct Waiting<'a> {
    slots: &'a Slots,
    place: Place,
    over: bool,
}

impl Waiting<'_> {
    /// Called once: the place isn't this call's any more.
    fn end(&mut self) -> Result<Slot, Refused> {
        self.over = true;
        let left = self.slots.ledger().leave(self.place);
        match left {
            Ok(seat) => Ok(self.slots.slot(seat)),
            Err(full) => Err(Refused {
                full,
                reason: Reason::TooLong,
            }),
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.over {
            // The caller has left. If the slot has just come, dropping it hands it on.
            drop(self.end());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::future::Future;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering;
    use std::task::Context;
    use std::task::Poll;
    use std::task::Waker;
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::task::JoinSet;
    use tokio::task::unconstrained;
    use tokio::task::yield_now;
    use tokio::time::Instant;
    use tokio::time::advance;
    use tokio::time::timeout;

    use crate::name::AccountName;
    use crate::name::CallerName;
    use crate::name::UpstreamName;
    use crate::slots::Claim;
    use crate::slots::Limit;
    use crate::slots::Reason;
    use crate::slots::Refused;
    use crate::slots::Slot;
    use crate::slots::Slots;

    /// Longer than any wait that ends well.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// An owned claim.
    #[derive(Clone, Debug)]
    struct Ask {
        caller: CallerName,
        account: AccountName,
        upstream: UpstreamName,
        caller_max: usize,
        account_max: usize,
        upstream_max: usize,
        queue_max: usize,
    }

    impl Ask {
        /// Whatever isn't set otherwise is far away.
        fn new(caller: &str, account: &str, upstream: &str) -> Self {
            Self {
                caller: CallerName::new(caller).unwrap(),
                account: AccountName::new(account).unwrap(),
                upstream: UpstreamName::new(upstream).unwrap(),
                caller_max: 1000,
                account_max: 1000,
                upstream_max: 1000,
                queue_max: 1000,
            }
        }

        fn claim(&self) -> Claim<'_> {
            Claim {
                caller: &self.caller,
                caller_max: self.caller_max,
                account: &self.account,
                account_max: self.account_max,
                upstream: &self.upstream,
                upstream_max: self.upstream_max,
                queue_max: self.queue_max,
            }
        }
    }

    /// A call's wait for its slot, which goes on only when it's looked at.
    struct Wait(Pin<Box<dyn Future<Output = Result<Slot, Refused>>>>);

    impl Wait {
        fn new(slots: &Slots, ask: &Ask, deadline: Instant) -> Self {
            let (slots, ask) = (slots.clone(), ask.clone());
            Self(Box::pin(unconstrained(async move {
                slots.take(&ask.claim(), deadline).await
            })))
        }

        fn look(&mut self) -> Poll<Result<Slot, Refused>> {
            self.0
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()))
        }

        /// Its slot, if that has come.
        fn slot(&mut self) -> Option<Slot> {
            match self.look() {
                Poll::Ready(answer) => Some(answer.unwrap()),
                Poll::Pending => None,
            }
        }
    }

    fn at_once(slots: &Slots, ask: &Ask) -> Result<Slot, Refused> {
        match Wait::new(slots, ask, Instant::now() + PATIENCE).look() {
            Poll::Ready(answer) => answer,
            Poll::Pending => panic!("{ask:?} waits"),
        }
    }

    fn queued(slots: &Slots, ask: &Ask) -> Wait {
        let mut wait = Wait::new(slots, ask, Instant::now() + PATIENCE);
        assert!(wait.look().is_pending(), "{ask:?} doesn't wait");
        wait
    }

    fn refused(full: Limit, reason: Reason) -> Refused {
        Refused { full, reason }
    }

    fn assert_empty(slots: &Slots) {
        assert!(slots.ledger().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn while_there_is_room_a_call_goes_at_once() {
        let slots = Slots::new();
        let ask = Ask {
            caller_max: 2,
            account_max: 2,
            upstream_max: 2,
            queue_max: 0,
            ..Ask::new("till", "main", "live")
        };
        let first = at_once(&slots, &ask).unwrap();
        let second = at_once(&slots, &ask).unwrap();
        assert_eq!(
            (slots.in_flight(&ask.upstream), slots.waiting(&ask.upstream)),
            (2, 0)
        );
        assert!(at_once(&slots, &ask).is_err());
        drop(first);
        assert_eq!(slots.in_flight(&ask.upstream), 1);
        let third = at_once(&slots, &ask).unwrap();
        drop((second, third));
        assert_empty(&slots);
    }

    /// The same slot is taken; a call that shares only one name with it is held back by that name's limit alone.
    #[tokio::test(start_paused = true)]
    async fn each_limit_holds_for_its_own_name() {
        let narrow = Ask {
            caller_max: 1,
            account_max: 1,
            upstream_max: 1,
            ..Ask::new("till", "main", "live")
        };
        let other = |caller, account, upstream| Ask {
            caller_max: 1,
            account_max: 1,
            upstream_max: 1,
            queue_max: 0,
            ..Ask::new(caller, account, upstream)
        };
        for (ask, expected) in [
            (other("till", "b", "test"), Some(Limit::Caller)),
            (other("web", "main", "test"), Some(Limit::Account)),
            (other("web", "b", "live"), Some(Limit::Upstream)),
            (other("web", "main", "live"), Some(Limit::Account)),
            (other("till", "main", "live"), Some(Limit::Caller)),
            (other("web", "b", "test"), None),
        ] {
            let slots = Slots::new();
            let held = at_once(&slots, &narrow).unwrap();
            let answer = at_once(&slots, &ask);
            assert_eq!(
                answer.as_ref().err().copied(),
                expected.map(|full| refused(full, Reason::QueueFull)),
                "{ask:?}"
            );
            drop((held, answer));
            assert_empty(&slots);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_freed_slot_wakes_the_next_task() {
        let slots = Slots::new();
        let ask = Ask {
            upstream_max: 1,
            ..Ask::new("till", "main", "live")
        };
        let held = at_once(&slots, &ask).unwrap();
        let task = tokio::spawn({
            let (slots, ask) = (slots.clone(), ask.clone());
            async move { slots.take(&ask.claim(), Instant::now() + PATIENCE).await }
        });
        yield_now().await;
        assert_eq!(slots.waiting(&ask.upstream), 1);
        let before = Instant::now();
        drop(held);
        // A task that isn't woken would get its slot too, but only when its deadline moves the paused clock.
        drop(task.await.unwrap().unwrap());
        assert_eq!(Instant::now(), before);
        assert_empty(&slots);
    }

    #[tokio::test(start_paused = true)]
    async fn a_callers_calls_go_in_the_order_in_which_they_came() {
        let slots = Slots::new();
        let ask = Ask {
            caller_max: 1,
            ..Ask::new("till", "main", "live")
        };
        let mut held = at_once(&slots, &ask).unwrap();
        let mut waits: Vec<_> = (0..5).map(|_| queued(&slots, &ask)).collect();
        while !waits.is_empty() {
            drop(held);
            // Looked at from the last: the order of looking doesn't matter.
            let came: Vec<_> = waits.iter_mut().rev().map(Wait::slot).collect();
            let mut came = came.into_iter().rev();
            held = came.next().flatten().expect("the oldest goes");
            assert!(came.all(|slot| slot.is_none()));
            waits.remove(0);
        }
        drop(held);
        assert_empty(&slots);
    }

    #[tokio::test(start_paused = true)]
    async fn a_till_goes_next_or_next_but_one_whatever_a_bulk_job_has_waiting() {
        let slots = Slots::new();
        let ask = |caller| Ask {
            upstream_max: 1,
            ..Ask::new(caller, "main", "live")
        };
        let mut held = at_once(&slots, &ask("bulk")).unwrap();
        let mut jobs: Vec<_> = (0..100).map(|_| queued(&slots, &ask("bulk"))).collect();
        for sale in 0..3 {
            let mut sale_wait = queued(&slots, &ask("till"));
            drop(held);
            held = jobs.remove(0).slot().expect("it was the job's turn");
            assert!(sale_wait.slot().is_none(), "{sale}");
            drop(held);
            held = sale_wait.slot().expect("it's the till's turn");
        }
        let mut first = queued(&slots, &ask("till"));
        let mut second = queued(&slots, &ask("till"));
        drop(held);
        held = jobs.remove(0).slot().expect("it was the job's turn");
        drop(held);
        held = first.slot().expect("it's the till's turn");
        drop(held);
        held = jobs.remove(0).slot().expect("it's the job's turn again");
        drop(held);
        drop(second.slot().expect("and the till's"));
        assert_eq!(slots.waiting(&ask("till").upstream), 94);
        drop(jobs);
        assert_empty(&slots);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_its_account_is_passed_over_and_keeps_its_place() {
        let slots = Slots::new();
        let ask = |account| Ask {
            account_max: 1,
            upstream_max: 2,
            ..Ask::new("till", account, "live")
        };
        let a = at_once(&slots, &ask("a")).unwrap();
        let b = at_once(&slots, &ask("b")).unwrap();
        let mut for_a = queued(&slots, &ask("a"));
        let mut for_a_too = queued(&slots, &ask("a"));
        let mut for_b = queued(&slots, &ask("b"));
        drop(b);
        assert!(for_a.slot().is_none());
        let b = for_b.slot().expect("its account has room");
        let mut for_b = queued(&slots, &ask("b"));
        drop(a);
        let a = for_a.slot().expect("it kept its place");
        assert!(for_a_too.slot().is_none());
        drop(a);
        let a = for_a_too.slot().expect("it's the next");
        assert!(for_b.slot().is_none());
        drop((a, b, for_b));
        assert_empty(&slots);
    }

    /// Either limit is what holds the waiter at the other upstream back.
    #[tokio::test(start_paused = true)]
    async fn a_slot_that_is_freed_at_one_upstream_lets_a_waiter_at_another_go() {
        let narrow = |caller_max, account_max, upstream| Ask {
            caller_max,
            account_max,
            ..Ask::new("till", "main", upstream)
        };
        for (caller_max, account_max) in [(1, 9), (9, 1)] {
            for (here, there) in [("live", "test"), ("test", "live")] {
                let slots = Slots::new();
                // Somebody has waited at both before.
                let both = ["live", "test"].map(|upstream| narrow(0, 0, upstream));
                drop(both.map(|ask| queued(&slots, &ask)));
                let held = at_once(&slots, &narrow(caller_max, account_max, here)).unwrap();
                let mut wait = queued(&slots, &narrow(caller_max, account_max, there));
                drop(held);
                drop(wait.slot().expect("there's room"));
                assert_empty(&slots);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slot_lets_go_one_here_and_one_elsewhere() {
        let slots = Slots::new();
        let ask = |caller, upstream| Ask {
            caller_max: 1,
            upstream_max: 1,
            ..Ask::new(caller, "main", upstream)
        };
        let held = at_once(&slots, &ask("bulk", "live")).unwrap();
        let mut till = queued(&slots, &ask("till", "live"));
        let mut bulk = queued(&slots, &ask("bulk", "test"));
        drop(held);
        drop((
            till.slot().expect("the upstream has room"),
            bulk.slot().expect("the caller has room"),
        ));
        assert_empty(&slots);
    }

    /// A caller with enough to do at each of three upstreams has its one slot at each of them in turn.
    #[tokio::test(start_paused = true)]
    async fn a_callers_room_goes_round_its_upstreams() {
        let slots = Slots::new();
        let upstreams = ["a", "b", "c"];
        let ask = |upstream| Ask {
            caller_max: 1,
            ..Ask::new("bulk", "main", upstream)
        };
        let mut held = at_once(&slots, &ask("a")).unwrap();
        let mut waits = upstreams.map(|upstream| {
            let waits: Vec<_> = (0..4).map(|_| queued(&slots, &ask(upstream))).collect();
            waits
        });
        for turn in 1..=6 {
            drop(held);
            let waits = &mut waits[turn % 3];
            held = waits.remove(0).slot().expect("it's this upstream's turn");
        }
        drop((held, waits));
        assert_empty(&slots);
    }

    #[tokio::test(start_paused = true)]
    async fn when_the_queue_is_full_a_call_is_refused_at_once() {
        let slots = Slots::new();
        let ask = |caller| Ask {
            upstream_max: 1,
            queue_max: 2,
            ..Ask::new(caller, "main", "live")
        };
        let held = at_once(&slots, &ask("till")).unwrap();
        let first = queued(&slots, &ask("till"));
        let second = queued(&slots, &ask("web"));
        let full = refused(Limit::Upstream, Reason::QueueFull);
        assert_eq!(at_once(&slots, &ask("shop")).unwrap_err(), full);
        drop(first);
        let third = queued(&slots, &ask("shop"));
        assert_eq!(at_once(&slots, &ask("till")).unwrap_err(), full);
        drop((second, third, held));
        assert_empty(&slots);
    }

    #[tokio::test(start_paused = true)]
    async fn one_caller_has_half_of_the_queue_at_most() {
        for (queue_max, half) in [(1, 1), (2, 1), (3, 2), (8, 4)] {
            let slots = Slots::new();
            let ask = |caller| Ask {
                upstream_max: 1,
                queue_max,
                ..Ask::new(caller, "main", "live")
            };
            let held = at_once(&slots, &ask("bulk")).unwrap();
            let jobs: Vec<_> = (0..half).map(|_| queued(&slots, &ask("bulk"))).collect();
            let share_full = refused(Limit::Upstream, Reason::ShareFull);
            let queue_full = refused(Limit::Upstream, Reason::QueueFull);
            let expected = if half < queue_max {
                share_full
            } else {
                queue_full
            };
            assert_eq!(at_once(&slots, &ask("bulk")).unwrap_err(), expected);
            let sales: Vec<_> = (half..queue_max)
                .map(|_| queued(&slots, &ask("till")))
                .collect();
            assert_eq!(at_once(&slots, &ask("web")).unwrap_err(), queue_full);
            drop((held, jobs, sales));
            assert_empty(&slots);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_at_its_deadline() {
        let slots = Slots::new();
        let narrow = |caller_max, account_max, upstream_max| Ask {
            caller_max,
            account_max,
            upstream_max,
            ..Ask::new("till", "main", "live")
        };
        for (ask, full) in [
            (narrow(1, 9, 9), Limit::Caller),
            (narrow(9, 1, 9), Limit::Account),
            (narrow(9, 9, 1), Limit::Upstream),
        ] {
            let held = at_once(&slots, &ask).unwrap();
            for wait in [Duration::ZERO, Duration::from_millis(300)] {
                let start = Instant::now();
                let claim = ask.claim();
                let take = slots.take(&claim, start + wait);
                let answer = timeout(PATIENCE, take).await.expect("it ends");
                assert_eq!(answer.unwrap_err(), refused(full, Reason::TooLong));
                assert_eq!(Instant::now() - start, wait);
                assert_eq!(slots.waiting(&ask.upstream), 0);
            }
            drop(held);
            assert_empty(&slots);
            // There's no wait, so it can't be too long.
            assert!(slots.take(&ask.claim(), Instant::now()).await.is_ok());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_makes_room_in_the_queue_and_the_next_goes_in_its_stead() {
        let slots = Slots::new();
        let ask = Ask {
            upstream_max: 1,
            queue_max: 3,
            ..Ask::new("till", "main", "live")
        };
        let held = at_once(&slots, &ask).unwrap();
        let first = queued(&slots, &ask);
        let mut second = queued(&slots, &ask);
        drop(first);
        assert_eq!(slots.waiting(&ask.upstream), 1);
        let third = queued(&slots, &ask);
        drop(held);
        let held = second.slot().expect("it's the first now");
        drop((held, third));
        assert_empty(&slots);
    }

    /// It has its slot, and doesn't know when it's dropped.
    #[tokio::test(start_paused = true)]
    async fn who_leaves_in_the_moment_that_it_is_let_go_hands_its_slot_on() {
        let slots = Slots::new();
        let ask = Ask {
            upstream_max: 1,
            ..Ask::new("till", "main", "live")
        };
        let held = at_once(&slots, &ask).unwrap();
        let first = queued(&slots, &ask);
        let mut second = queued(&slots, &ask);
        drop(held);
        assert!(second.slot().is_none());
        drop(first);
        drop(second.slot().expect("the slot was handed on"));
        assert_empty(&slots);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slot_that_came_before_the_deadline_was_seen_is_used() {
        let slots = Slots::new();
        let ask = Ask {
            upstream_max: 1,
            ..Ask::new("till", "main", "live")
        };
        let held = at_once(&slots, &ask).unwrap();
        let mut wait = queued(&slots, &ask);
        advance(PATIENCE * 2).await;
        drop(held);
        drop(wait.slot().expect("it has come"));
        assert_empty(&slots);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reload_changes_the_limits_of_those_who_wait() {
        let ask = |max| Ask {
            upstream_max: max,
            ..Ask::new("till", "main", "live")
        };
        let slots = Slots::new();
        let held = at_once(&slots, &ask(1)).unwrap();
        let mut waits: Vec<_> = (0..3).map(|_| queued(&slots, &ask(1))).collect();
        // Room for two more: who waits is before who comes.
        let mut came = queued(&slots, &ask(3));
        let [first, second, third] = &mut waits[..] else {
            panic!("there are three");
        };
        let (first, second) = (first.slot().expect("first"), second.slot().expect("second"));
        assert!(third.slot().is_none());
        // Fewer again: nobody goes until there are fewer.
        let mut last = queued(&slots, &ask(1));
        drop((held, first));
        assert!(third.slot().is_none());
        drop(second);
        let third = third.slot().expect("third");
        assert!(came.slot().is_none());
        drop(third);
        let came = came.slot().expect("came");
        drop(came);
        drop(last.slot().expect("last"));
        assert_empty(&slots);
    }

    #[test]
    fn a_refusal_says_which_limit_and_why() {
        for (full, reason, expected) in [
            (
                Limit::Caller,
                Reason::ShareFull,
                "too many calls are under way for this caller, and half of the queue is the caller's own",
            ),
            (
                Limit::Account,
                Reason::TooLong,
                "too many calls are under way for this account, and the wait was too long",
            ),
            (
                Limit::Upstream,
                Reason::QueueFull,
                "too many calls are under way for this upstream, and the queue is full",
            ),
        ] {
            assert_eq!(refused(full, reason).to_string(), expected);
        }
    }

    /// One thing that happens. Numbers choose among as many as there are.
    #[derive(Clone, Debug)]
    enum Step {
        Take {
            names: [usize; 3],
            patience_ms: u64,
        },
        GiveBack(usize),
        /// A waiter leaves, which may have its slot and not know.
        Leave(usize),
        Look,
        Advance {
            ms: u64,
        },
        Reload(Limits),
    }

    #[derive(Clone, Copy, Debug)]
    struct Limits {
        maxes: [usize; 3],
        queue_max: usize,
    }

    fn limits() -> impl Strategy<Value = Limits> {
        ([1..4_usize, 1..4, 1..5], 0..7_usize)
            .prop_map(|(maxes, queue_max)| Limits { maxes, queue_max })
    }

    fn step() -> impl Strategy<Value = Step> {
        let take = ([0..3_usize, 0..3, 0..3], 0..8_u64).prop_map(|(names, patience)| Step::Take {
            names,
            // Never at a time that is looked at, so that it's plain who is late.
            patience_ms: patience * 10 + 5,
        });
        prop_oneof![
            12 => take,
            6 => any::<usize>().prop_map(Step::GiveBack),
            3 => any::<usize>().prop_map(Step::Leave),
            2 => Just(Step::Look),
            1 => (1..3_u64).prop_map(|tens| Step::Advance { ms: tens * 10 }),
            1 => limits().prop_map(Step::Reload),
        ]
    }

    /// A caller, an account or an upstream: its kind and its number.
    type Name = (usize, usize);

    fn names_of(names: [usize; 3]) -> impl Iterator<Item = Name> {
        names.into_iter().enumerate()
    }

    struct Waiter {
        wait: Wait,
        names: [usize; 3],
        deadline: Instant,
    }

    /// What can be known from outside: who holds a slot, who waits, and the limits that were told last.
    struct Model {
        slots: Slots,
        limits: Limits,
        /// As the latest claim said.
        maxes: BTreeMap<Name, usize>,
        /// What no count may be above: the limit, or what it was when the limit was lowered, less what was given back.
        ceilings: BTreeMap<Name, usize>,
        held: Vec<(Slot, [usize; 3])>,
        /// In the order in which they came.
        waiters: Vec<Waiter>,
    }

    impl Model {
        fn new(limits: Limits) -> Self {
            Self {
                slots: Slots::new(),
                limits,
                maxes: BTreeMap::new(),
                ceilings: BTreeMap::new(),
                held: Vec::new(),
                waiters: Vec::new(),
            }
        }

        fn ask(&self, names: [usize; 3]) -> Ask {
            let [caller_max, account_max, upstream_max] = self.limits.maxes;
            Ask {
                caller_max,
                account_max,
                upstream_max,
                queue_max: self.limits.queue_max,
                ..Ask::new(
                    &format!("c{}", names[0]),
                    &format!("a{}", names[1]),
                    &format!("u{}", names[2]),
                )
            }
        }

        fn count(&self, (kind, number): Name) -> usize {
            let held = self.held.iter();
            held.filter(|(_, names)| names[kind] == number).count()
        }

        fn is_full(&self, name: Name) -> bool {
            self.count(name) >= self.maxes[&name]
        }

        async fn step(&mut self, step: &Step) {
            match *step {
                Step::Take { names, patience_ms } => self.take(names, patience_ms),
                Step::GiveBack(which) if !self.held.is_empty() => {
                    let which = which % self.held.len();
                    let (slot, names) = self.held.swap_remove(which);
                    drop(slot);
                    for name in names_of(names) {
                        let ceiling = self.ceilings.get_mut(&name).unwrap();
                        *ceiling = self.maxes[&name].max(*ceiling - 1);
                    }
                }
                Step::Leave(which) if !self.waiters.is_empty() => {
                    let which = which % self.waiters.len();
                    drop(self.waiters.remove(which));
                }
                Step::GiveBack(_) | Step::Leave(_) => {}
                Step::Look => self.look(),
                Step::Advance { ms } => {
                    advance(Duration::from_millis(ms)).await;
                    self.look();
                }
                Step::Reload(limits) => self.limits = limits,
            }
        }

        fn take(&mut self, names: [usize; 3], patience_ms: u64) {
            self.look();
            for name @ (kind, _) in names_of(names) {
                let max = self.limits.maxes[kind];
                self.maxes.insert(name, max);
                self.ceilings.insert(name, max.max(self.count(name)));
            }
            let ask = self.ask(names);
            let deadline = Instant::now() + Duration::from_millis(patience_ms);
            let mut wait = Wait::new(&self.slots, &ask, deadline);
            let waits = match wait.look() {
                Poll::Ready(Ok(slot)) => {
                    self.held.push((slot, names));
                    Ok(false)
                }
                Poll::Ready(Err(refused)) => Err(refused),
                Poll::Pending => {
                    self.waiters.push(Waiter {
                        wait,
                        names,
                        deadline,
                    });
                    Ok(true)
                }
            };
            // The claim may have told of higher limits; who could go because of them has gone before it.
            self.look();
            let in_queue = self.waiters.iter();
            let in_queue = in_queue.filter(|waiter| waiter.names[2] == names[2]);
            let of_caller = in_queue
                .clone()
                .filter(|waiter| waiter.names[0] == names[0]);
            let (in_queue, of_caller) = (in_queue.count(), of_caller.count());
            let half = self.limits.queue_max.div_ceil(2);
            match waits {
                Ok(true) => {
                    assert!(in_queue <= self.limits.queue_max, "the queue is too long");
                    assert!(of_caller <= half, "the share is too large");
                }
                Ok(false) => {}
                Err(Refused { full, reason }) => {
                    let limit = match names_of(names).find(|&name| self.is_full(name)) {
                        Some((0, _)) => Limit::Caller,
                        Some((1, _)) => Limit::Account,
                        Some(_) => Limit::Upstream,
                        None => panic!("there's room"),
                    };
                    assert_eq!(full, limit, "the first that is full");
                    match reason {
                        Reason::QueueFull => assert!(in_queue >= self.limits.queue_max),
                        Reason::ShareFull => assert!(of_caller >= half),
                        Reason::TooLong => panic!("its time isn't up"),
                    }
                }
            }
        }

        /// Sees who has gone, and checks what must hold at any time.
        fn look(&mut self) {
            let mut gone = Vec::new();
            let mut still: Vec<Waiter> = Vec::new();
            for mut waiter in self.waiters.drain(..) {
                match waiter.wait.look() {
                    Poll::Ready(Ok(slot)) => {
                        assert!(
                            still.iter().all(|older| older.names != waiter.names),
                            "an older one for the same waits"
                        );
                        gone.push((slot, waiter.names));
                    }
                    Poll::Ready(Err(refused)) => {
                        assert_eq!(refused.reason, Reason::TooLong);
                        assert!(waiter.deadline < Instant::now());
                    }
                    Poll::Pending => {
                        assert!(waiter.deadline > Instant::now());
                        still.push(waiter);
                    }
                }
            }
            self.waiters = still;
            self.held.extend(gone);
            for (&name, ceiling) in &self.ceilings {
                assert!(self.count(name) <= *ceiling, "{name:?} is above its limit");
            }
            for waiter in &self.waiters {
                assert!(
                    names_of(waiter.names).any(|name| self.is_full(name)),
                    "{:?} could go",
                    waiter.names
                );
            }
            for number in 0..3 {
                let waiting = self.waiters.iter();
                let waiting = waiting.filter(|waiter| waiter.names[2] == number);
                let upstream = UpstreamName::new(&format!("u{number}")).unwrap();
                assert_eq!(self.slots.in_flight(&upstream), self.count((2, number)));
                assert_eq!(self.slots.waiting(&upstream), waiting.count());
            }
        }

        fn end(mut self) {
            // Waiters first in one case and slots first in the other.
            if self.held.len().is_multiple_of(2) {
                self.waiters.clear();
            }
            self.held.clear();
            self.waiters.clear();
            assert_empty(&self.slots);
        }
    }

    proptest! {
        #[test]
        fn whatever_happens_limits_hold_and_nobody_waits_who_could_go(
            limits in limits(),
            steps in proptest::collection::vec(step(), 1..120),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            runtime.block_on(async {
                let mut model = Model::new(limits);
                for step in &steps {
                    model.step(step).await;
                }
                model.look();
                model.end();
            });
        }
    }

    /// Numbers that differ from task to task and are the same in each run.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, bound: usize) -> usize {
            // Knuth's MMIX generator; its high bits are the good ones.
            let (factor, step) = (6_364_136_223_846_793_005, 1_442_695_040_888_963_407);
            self.0 = self.0.wrapping_mul(factor).wrapping_add(step);
            usize::try_from(self.0 >> 33).unwrap() % bound
        }
    }

    /// Calls of one name that hold a slot, counted beside the ledger.
    struct Count {
        now: AtomicUsize,
        max: usize,
    }

    impl Count {
        fn of(max: usize) -> Self {
            Self {
                now: AtomicUsize::new(0),
                max,
            }
        }

        fn enter(&self) {
            assert!(self.now.fetch_add(1, Ordering::SeqCst) < self.max);
        }

        fn exit(&self) {
            self.now.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Slots are shared by threads that each have a runtime, as workers do. A wake that gets lost shows as a wait for [`PATIENCE`].
    #[test]
    fn threads_that_share_slots_never_exceed_a_limit_nor_lose_a_slot() {
        const THREADS: u64 = 4;
        const TASKS: u64 = 12;
        const CALLS: usize = 150;

        async fn calls(slots: Slots, counts: Arc<[Vec<Count>; 3]>, mut dice: Dice) -> usize {
            let mut gone = 0;
            for _ in 0..CALLS {
                let names = [dice.below(3), dice.below(3), dice.below(2)];
                let ask = Ask {
                    caller_max: counts[0][names[0]].max,
                    account_max: counts[1][names[1]].max,
                    upstream_max: counts[2][names[2]].max,
                    queue_max: 24,
                    ..Ask::new(
                        &format!("c{}", names[0]),
                        &format!("a{}", names[1]),
                        &format!("u{}", names[2]),
                    )
                };
                let (claim, now) = (ask.claim(), Instant::now());
                let answer = match dice.below(4) {
                    0 => {
                        let turns = dice.below(4);
                        let leaves = async {
                            for _ in 0..turns {
                                yield_now().await;
                            }
                        };
                        tokio::select! {
                            biased;
                            answer = slots.take(&claim, now + PATIENCE) => answer,
                            () = leaves => continue,
                        }
                    }
                    1 => slots.take(&claim, now).await,
                    _ => {
                        let answer = slots.take(&claim, now + PATIENCE).await;
                        let reason = answer.as_ref().err().map(|refused| refused.reason);
                        assert_ne!(reason, Some(Reason::TooLong), "a wake got lost");
                        answer
                    }
                };
                let Ok(slot) = answer else { continue };
                let counts = || names_of(names).map(|(kind, number)| &counts[kind][number]);
                counts().for_each(Count::enter);
                for _ in 0..dice.below(3) {
                    yield_now().await;
                }
                counts().for_each(Count::exit);
                drop(slot);
                gone += 1;
            }
            gone
        }

        let slots = Slots::new();
        let counts = Arc::new([vec![2, 3, 4], vec![2, 3, 4], vec![3, 4]].map(|maxes| {
            let counts: Vec<_> = maxes.into_iter().map(Count::of).collect();
            counts
        }));
        let gone: usize = std::thread::scope(|scope| {
            let threads = (0..THREADS).map(|thread| {
                let (slots, counts) = (slots.clone(), Arc::clone(&counts));
                scope.spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread()
                        .enable_time()
                        .build()
                        .unwrap();
                    let tasks = (0..TASKS).map(|task| {
                        let dice = Dice(thread * TASKS + task);
                        calls(slots.clone(), Arc::clone(&counts), dice)
                    });
                    runtime.block_on(async {
                        let tasks: JoinSet<usize> = tasks.collect();
                        tasks.join_all().await.into_iter().sum::<usize>()
                    })
                })
            });
            let threads: Vec<_> = threads.collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .sum()
        });
        assert!(gone > 0);
        assert_empty(&slots);
    }
}
