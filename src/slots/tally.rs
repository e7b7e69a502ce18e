//! How many calls each name has under way and how many wait. It never remembers a name that has neither.

use std::collections::HashMap;
use std::hash::Hash;
use std::ops::Index;
use std::ops::IndexMut;

/// The calls of one name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Calls that hold a slot.
    pub(super) in_flight: usize,
    /// Calls that wait for one.
    pub(super) waiting: usize,
    /// How many may hold one, as the latest claim said.
    max: usize,
}

impl Tally {
    /// One more may hold a slot.
    pub(super) fn has_room(&self) -> bool {
        self.in_flight < self.max
    }

    fn is_idle(&self) -> bool {
        self.in_flight == 0 && self.waiting == 0
    }
}

/// The tallies of all names of one kind that have calls now. Each is found by its name once and by its row from then on.
pub(super) struct Tallies<N> {
    rows: HashMap<N, usize>,
    /// A free row keeps its last name until the next moves in.
    tallies: Vec<(N, Tally)>,
    free: Vec<usize>,
}

impl<N: Clone + Eq + Hash> Tallies<N> {
    /// None.
    pub(super) fn new() -> Self {
        Self {
            rows: HashMap::new(),
            tallies: Vec::new(),
            free: Vec::new(),
        }
    }

    /// The name's row, and whether `max` is more than it was. The row is the name's until [`forget_idle`](Self::forget_idle).
    pub(super) fn row(&mut self, name: &N, max: usize) -> (usize, bool) {
        if let Some(&row) = self.rows.get(name) {
            let raised = self[row].max < max;
            self[row].max = max;
            return (row, raised);
        }
        let fresh = Tally {
            max,
            ..Tally::default()
        };
        let row = match self.free.pop() {
            Some(row) => {
                self.tallies[row] = (name.clone(), fresh);
                row
            }
            None => {
                self.tallies.push((name.clone(), fresh));
                self.tallies.len() - 1
            }
        };
        self.rows.insert(name.clone(), row);
        (row, false)
    }

    /// Gives the row back, unless it has calls. Only for a row that is a name's now.
    pub(super) fn forget_idle(&mut self, row: usize) {
        let (name, tally) = &self.tallies[row];
        if tally.is_idle() {
            self.rows.remove(name);
            self.free.push(row);
        }
    }

    /// The tally by name; zeros when the name has no calls.
    #[cfg(test)]
    pub(super) fn of(&self, name: &N) -> Tally {
        self.rows
            .get(name)
            .map_or_else(Tally::default, |&row| self[row])
    }

    /// No name has calls.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.free.len() == self.tallies.len()
    }
}

impl<N> Index<usize> for Tallies<N> {
    type Output = Tally;

    fn index(&self, row: usize) -> &Tally {
        &self.tallies[row].1
    }
}

impl<N> IndexMut<usize> for Tallies<N> {
    fn index_mut(&mut self, row: usize) -> &mut Tally {
        &mut self.tallies[row].1
    }
}

#[cfg(test)]
mod tests {
    use super::Tallies;

    #[test]
    fn a_name_keeps_its_row_while_it_has_calls_and_no_longer() {
        let mut tallies = Tallies::new();
        let (a, _) = tallies.row(&"a", 1);
        let (b, _) = tallies.row(&"b", 1);
        assert_ne!(a, b);
        tallies[a].in_flight = 1;
        tallies[b].waiting = 1;
        tallies.forget_idle(a);
        tallies.forget_idle(b);
        assert_eq!(tallies.row(&"a", 1), (a, false));
        assert_eq!(tallies.row(&"b", 1), (b, false));
        tallies[a].in_flight = 0;
        tallies.forget_idle(a);
        assert_eq!(tallies.row(&"c", 1), (a, false), "the row is used again");
        assert_eq!(tallies[a].in_flight, 0);
        assert_eq!(tallies.of(&"b").waiting, 1);
        assert_eq!(tallies.of(&"a").in_flight, 0);
        tallies[b].waiting = 0;
        tallies.forget_idle(b);
        tallies.forget_idle(a);
        assert!(tallies.is_empty());
    }

    #[test]
    fn the_latest_limit_counts_and_a_raise_is_told() {
        let mut tallies = Tallies::new();
        for (max, raised, room) in [
            (2, false, false),
            (2, false, false),
            (3, true, true),
            (1, false, false),
            (2, true, false),
        ] {
            let (row, told) = tallies.row(&"a", max);
            tallies[row].in_flight = 2;
            assert_eq!((told, tallies[row].has_room()), (raised, room), "{max}");
        }
    }
}
