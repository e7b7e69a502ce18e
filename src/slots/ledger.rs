//! The counts and the queues of the whole process, and the one rule between them: nobody waits who could go. It waits for nothing,
//! reads no clock and never wakes anybody itself: whoever holds its lock does, afterwards.

use tokio::sync::oneshot;

use crate::name::AccountName;
use crate::name::CallerName;
use crate::name::UpstreamName;
use crate::slots::Claim;
use crate::slots::Limit;
use crate::slots::QUEUE_SHARES;
use crate::slots::Reason;
use crate::slots::Refused;
use crate::slots::queue::Queue;
use crate::slots::queue::Waiter;
use crate::slots::tally::Tallies;
use crate::slots::tally::Tally;

/// Where one call is counted: rows that are its names' for as long as it is.
#[derive(Clone, Copy)]
pub(super) struct Seat {
    caller: usize,
    account: usize,
    upstream: usize,
}

/// Where one call waits, or has waited.
#[derive(Clone, Copy)]
pub(super) struct Place {
    seat: Seat,
    ticket: u64,
}

/// What a claim has come to.
pub(super) enum Answer {
    /// It holds a slot.
    Taken(Seat),
    /// It waits, and is told on the channel when it holds a slot.
    Queued(Place, oneshot::Receiver<()>),
}

/// Waiters who hold a slot now and don't know yet.
#[must_use = "they wait to be told"]
#[derive(Default)]
pub(super) struct Granted(Vec<oneshot::Sender<()>>);

impl Granted {
    /// Wakes them. Not under the lock: a waker is a runtime's code, and may end in dropping a slot.
    pub(super) fn tell(self) {
        for granted in self.0 {
            // Who has left meanwhile finds out when it looks for its place, and gives the slot back.
            let _ = granted.send(());
        }
    }
}

/// All that is counted.
pub(super) struct Ledger {
    callers: Tallies<CallerName>,
    accounts: Tallies<AccountName>,
    upstreams: Tallies<UpstreamName>,
    /// By the upstream's row. A row without a queue has had no waiter yet.
    queues: Vec<Queue>,
    ticket_next: u64,
}

impl Ledger {
    /// No calls.
    pub(super) fn new() -> Self {
        Self {
            callers: Tallies::new(),
            accounts: Tallies::new(),
            upstreams: Tallies::new(),
            queues: Vec::new(),
            ticket_next: 0,
        }
    }

    /// Takes a slot, a place in the queue or neither; and lets go who can because this claim's limits are higher than the last's.
    pub(super) fn claim(&mut self, claim: &Claim<'_>) -> (Result<Answer, Refused>, Granted) {
        let (caller, more_caller) = self.callers.row(claim.caller, claim.caller_max);
        let (account, more_account) = self.accounts.row(claim.account, claim.account_max);
        let (upstream, more_upstream) = self.upstreams.row(claim.upstream, claim.upstream_max);
        let seat = Seat {
            caller,
            account,
            upstream,
        };
        // Who waits goes before who comes.
        let granted = if more_caller || more_account || more_upstream {
            self.settle(upstream)
        } else {
            Granted::default()
        };
        let answer = match self.full(seat) {
            None => {
                for tally in self.tallies(seat) {
                    tally.in_flight += 1;
                }
                Ok(Answer::Taken(seat))
            }
            Some(full) => self
                .queue(seat, claim.queue_max)
                .map_err(|reason| Refused { full, reason }),
        };
        (answer, granted)
    }

    /// Ends a wait: the seat when the slot has come, or else, out of the queue, the limit that was in the way.
    pub(super) fn leave(&mut self, place: Place) -> Result<Seat, Limit> {
        let Place { seat, ticket } = place;
        let waits = self
            .queues
            .get_mut(seat.upstream)
            .is_some_and(|queue| queue.remove(seat.caller, ticket));
        if !waits {
            return Ok(seat);
        }
        let full = self.full(seat).expect("nobody waits who could go");
        for tally in self.tallies(seat) {
            tally.waiting -= 1;
        }
        Err(full)
    }

    /// Gives a slot back, and lets go who can now.
    pub(super) fn release(&mut self, seat: Seat) -> Granted {
        for tally in self.tallies(seat) {
            tally.in_flight -= 1;
        }
        self.settle(seat.upstream)
    }

    /// The counts of one upstream.
    #[cfg(test)]
    pub(super) fn upstream(&self, name: &UpstreamName) -> Tally {
        self.upstreams.of(name)
    }

    /// The limit that is in the way, the narrowest first.
    fn full(&self, seat: Seat) -> Option<Limit> {
        if !self.callers[seat.caller].has_room() {
            Some(Limit::Caller)
        } else if !self.accounts[seat.account].has_room() {
            Some(Limit::Account)
        } else if !self.upstreams[seat.upstream].has_room() {
            Some(Limit::Upstream)
        } else {
            None
        }
    }

    fn queue(&mut self, seat: Seat, queue_max: usize) -> Result<Answer, Reason> {
        let rows = self.queues.len().max(seat.upstream + 1);
        self.queues.resize_with(rows, Queue::default);
        let queue = &mut self.queues[seat.upstream];
        if self.upstreams[seat.upstream].waiting >= queue_max {
            return Err(Reason::QueueFull);
        }
        if queue.held_by(seat.caller) >= queue_max.div_ceil(QUEUE_SHARES) {
            return Err(Reason::ShareFull);
        }
        let ticket = self.ticket_next;
        self.ticket_next += 1;
        let (granted, told) = oneshot::channel();
        let waiter = Waiter {
            ticket,
            account: seat.account,
            granted,
        };
        queue.push(seat.caller, waiter);
        for tally in self.tallies(seat) {
            tally.waiting += 1;
        }
        Ok(Answer::Queued(Place { seat, ticket }, told))
    }

    /// Lets go all who can. One pass is enough: each who goes leaves less room to those who were passed over.
    ///
    /// What a call at `last` gave back of its caller and its account is offered to the upstreams after it first, in a ring, so that one
    /// busy upstream doesn't keep a caller's whole limit from that caller's waiters elsewhere. Where nobody waits, or there's no room,
    /// it costs one look for each upstream.
    fn settle(&mut self, last: usize) -> Granted {
        let mut granted = Granted::default();
        for step in 1..=self.queues.len() {
            let upstream = (last + step) % self.queues.len();
            while self.upstreams[upstream].has_room() {
                let next = self.queues[upstream].next(
                    |caller| self.callers[caller].has_room(),
                    |account| self.accounts[account].has_room(),
                );
                let Some((caller, waiter)) = next else { break };
                let seat = Seat {
                    caller,
                    account: waiter.account,
                    upstream,
                };
                for tally in self.tallies(seat) {
                    tally.waiting -= 1;
                    tally.in_flight += 1;
                }
                granted.0.push(waiter.granted);
            }
        }
        granted
    }

    fn tallies(&mut self, seat: Seat) -> [&mut Tally; 3] {
        [
            &mut self.callers[seat.caller],
            &mut self.accounts[seat.account],
            &mut self.upstreams[seat.upstream],
        ]
    }

    /// No calls.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.callers.are_idle()
            && self.accounts.are_idle()
            && self.upstreams.are_idle()
            && self.queues.iter().all(Queue::is_empty)
    }
}
