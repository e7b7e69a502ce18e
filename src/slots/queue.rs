//! Who waits for one upstream: a line for each caller, and the lines take turns. It counts nothing and never decides who has room.

use std::collections::VecDeque;

use tokio::sync::oneshot;

/// Callers and accounts are rows of their tallies. Dropping a waiter tells nobody; sending on `granted` does.
pub(super) struct Waiter {
    /// Rises with each waiter of the process.
    pub(super) ticket: u64,
    /// Whose slot it needs besides its caller's.
    pub(super) account: usize,
    /// Rings when it has its slot.
    pub(super) granted: oneshot::Sender<()>,
}

/// One caller's waiters, oldest first. There is no empty line.
struct Line {
    caller: usize,
    waiters: VecDeque<Waiter>,
}

/// The lines, with the one first whose turn it is.
#[derive(Default)]
pub(super) struct Queue {
    lines: VecDeque<Line>,
}

impl Queue {
    /// How many of `caller`'s wait.
    pub(super) fn held_by(&self, caller: usize) -> usize {
        self.lines
            .iter()
            .find(|line| line.caller == caller)
            .map_or(0, |line| line.waiters.len())
    }

    /// The last of its caller's line; a caller who had none gets the last turn.
    pub(super) fn push(&mut self, caller: usize, waiter: Waiter) {
        if let Some(line) = self.lines.iter_mut().find(|line| line.caller == caller) {
            line.waiters.push_back(waiter);
        } else {
            self.lines.push_back(Line {
                caller,
                waiters: VecDeque::from([waiter]),
            });
        }
    }

    /// Takes out who goes next, with its caller: the oldest whose account has room, in the first line whose caller has. That line has
    /// the last turn then; the others, passed over or not, keep theirs.
    pub(super) fn next(
        &mut self,
        caller_has_room: impl Fn(usize) -> bool,
        account_has_room: impl Fn(usize) -> bool,
    ) -> Option<(usize, Waiter)> {
        let (turn, place) = self.lines.iter().enumerate().find_map(|(turn, line)| {
            if !caller_has_room(line.caller) {
                return None;
            }
            let mut accounts = line.waiters.iter().map(|waiter| waiter.account);
            Some((turn, accounts.position(&account_has_room)?))
        })?;
        let mut line = self.lines.remove(turn)?;
        let waiter = line.waiters.remove(place)?;
        let caller = line.caller;
        if !line.waiters.is_empty() {
            self.lines.push_back(line);
        }
        Some((caller, waiter))
    }

    /// Takes out the waiter with this ticket; says whether it was there.
    pub(super) fn remove(&mut self, caller: usize, ticket: u64) -> bool {
        let Some(turn) = self.lines.iter().position(|line| line.caller == caller) else {
            return false;
        };
        let line = &mut self.lines[turn];
        let Ok(place) = line
            .waiters
            .binary_search_by_key(&ticket, |waiter| waiter.ticket)
        else {
            return false;
        };
        line.waiters.remove(place);
        if line.waiters.is_empty() {
            self.lines.remove(turn);
        }
        true
    }

    /// Nobody waits.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::Queue;
    use super::Waiter;

    /// Each of `waiters` is its caller and its account; the ticket is its place in the list.
    fn queue(waiters: &[(usize, usize)]) -> Queue {
        let mut queue = Queue::default();
        for (ticket, &(caller, account)) in (0..).zip(waiters) {
            let (granted, _) = oneshot::channel();
            queue.push(
                caller,
                Waiter {
                    ticket,
                    account,
                    granted,
                },
            );
        }
        queue
    }

    /// The tickets in the order in which they go while these callers and accounts have no room.
    fn order(queue: &mut Queue, full_callers: &[usize], full_accounts: &[usize]) -> Vec<u64> {
        let mut order = Vec::new();
        while let Some((_, waiter)) = queue.next(
            |caller| !full_callers.contains(&caller),
            |account| !full_accounts.contains(&account),
        ) {
            order.push(waiter.ticket);
        }
        order
    }

    #[test]
    fn lines_take_turns_and_each_is_first_in_first_out() {
        for (waiters, full_callers, full_accounts, expected) in [
            (&[][..], &[][..], &[][..], &[][..]),
            (&[(7, 0), (7, 0), (7, 0)], &[], &[], &[0, 1, 2]),
            (
                &[(7, 0), (7, 0), (7, 0), (8, 0), (9, 0), (8, 0)],
                &[],
                &[],
                &[0, 3, 4, 1, 5, 2],
            ),
            // Passed over: a caller, and an account within a line.
            (&[(7, 0), (8, 0), (7, 0), (8, 0)], &[7], &[], &[1, 3]),
            (&[(7, 0), (7, 1), (8, 0), (7, 1)], &[], &[0], &[1, 3]),
            (&[(7, 0), (8, 1)], &[7], &[1], &[]),
        ] {
            assert_eq!(
                order(&mut queue(waiters), full_callers, full_accounts),
                expected,
                "{waiters:?} without {full_callers:?}, {full_accounts:?}"
            );
        }
    }

    #[test]
    fn who_is_passed_over_keeps_its_turn() {
        let mut queue = queue(&[(7, 0), (8, 0), (9, 0), (8, 0), (7, 1), (7, 0)]);
        assert_eq!(order(&mut queue, &[7, 9], &[]), [1, 3]);
        assert_eq!(order(&mut queue, &[9], &[0]), [4]);
        assert_eq!(order(&mut queue, &[], &[]), [2, 0, 5]);
    }

    #[test]
    fn a_waiter_can_be_taken_out_wherever_it_stands() {
        for (gone, expected) in [
            (0, [1, 3, 2]),
            (1, [0, 3, 2]),
            (2, [0, 3, 1]),
            (3, [0, 1, 2]),
        ] {
            let mut queue = queue(&[(7, 0), (7, 0), (7, 0), (8, 0)]);
            let (caller, other) = if gone == 3 { (8, 7) } else { (7, 8) };
            assert!(!queue.remove(other, gone), "{gone}");
            assert!(queue.remove(caller, gone), "{gone}");
            assert!(!queue.remove(caller, gone), "{gone}");
            assert_eq!(queue.held_by(7) + queue.held_by(8), 3);
            assert_eq!(order(&mut queue, &[], &[]), expected, "{gone}");
            assert!(queue.is_empty());
        }
    }
}
