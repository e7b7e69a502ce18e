//! How many calls each name has under way and how many wait. A name that has neither is remembered until there are too many of them: names come
//! from configuration, and the next call's are mostly the last one's.

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

/// So many names are remembered, whether they have calls or not.
const ROWS_KEPT: usize = 1_024;

/// The tallies of all names of one kind. Each is found by its name once and by its row from then on.
pub(super) struct Tallies<N> {
    rows: HashMap<N, usize>,
    tallies: Vec<Tally>,
    free: Vec<usize>,
    /// With so many rows, those of names without calls are free before there's another.
    rows_max: usize,
}

impl<N: Clone + Eq + Hash> Tallies<N> {
    /// None.
    pub(super) fn new() -> Self {
        Self {
            rows: HashMap::new(),
            tallies: Vec::new(),
            free: Vec::new(),
            rows_max: ROWS_KEPT,
        }
    }

    /// The name's row, and whether `max` is more than it was. The row is the name's for as long as it has calls.
    pub(super) fn row(&mut self, name: &N, max: usize) -> (usize, bool) {
        if let Some(&row) = self.rows.get(name) {
            let raised = self[row].max < max;
            self[row].max = max;
            return (row, raised);
        }
        if self.free.is_empty() && self.tallies.len() >= self.rows_max {
            self.forget_idle();
        }
        let fresh = Tally {
            max,
            ..Tally::default()
        };
        let row = match self.free.pop() {
            Some(row) => {
                self.tallies[row] = fresh;
                row
            }
            None => {
                self.tallies.push(fresh);
                self.tallies.len() - 1
            }
        };
        self.rows.insert(name.clone(), row);
        (row, false)
    }

    fn forget_idle(&mut self) {
        let Self {
            rows,
            tallies,
            free,
            ..
        } = self;
        rows.retain(|_, row| {
            let idle = tallies[*row].is_idle();
            if idle {
                free.push(*row);
            }
            !idle
        });
        // At least as many new names as names that stay come before all are looked at again, however many are busy.
        self.rows_max = ROWS_KEPT.max(2 * self.rows.len());
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
    pub(super) fn are_idle(&self) -> bool {
        self.tallies.iter().all(Tally::is_idle)
    }
}

impl<N> Index<usize> for Tallies<N> {
    type Output = Tally;

    fn index(&self, row: usize) -> &Tally {
        &self.tallies[row]
    }
}

impl<N> IndexMut<usize> for Tallies<N> {
    fn index_mut(&mut self, row: usize) -> &mut Tally {
        &mut self.tallies[row]
    }
}

#[cfg(test)]
mod tests {
    use super::ROWS_KEPT;
    use super::Tallies;

    #[test]
    fn a_name_keeps_its_row_while_it_has_calls() {
        let mut tallies = Tallies::new();
        let (a, _) = tallies.row(&usize::MAX, 1);
        let (b, _) = tallies.row(&(usize::MAX - 1), 1);
        assert_ne!(a, b);
        tallies[a].in_flight = 1;
        tallies[b].waiting = 1;
        for name in 0..3 * ROWS_KEPT {
            let (row, _) = tallies.row(&name, 1);
            assert!(row != a && row != b, "{name}");
            assert_eq!(tallies[row], tallies.of(&name));
            assert_eq!(tallies[row].in_flight, 0);
        }
        assert_eq!(tallies.row(&usize::MAX, 1), (a, false));
        assert_eq!(tallies.row(&(usize::MAX - 1), 1), (b, false));
        assert_eq!((tallies[a].in_flight, tallies[b].waiting), (1, 1));
        assert!(!tallies.are_idle());
        tallies[a].in_flight = 0;
        tallies[b].waiting = 0;
        assert!(tallies.are_idle());
    }

    /// However many names come and go, rows are as many as are kept; or twice as many as were busy at a time.
    #[test]
    fn names_without_calls_are_remembered_up_to_a_limit() {
        let mut tallies = Tallies::new();
        for name in 0..10 * ROWS_KEPT {
            tallies.row(&name, 1);
        }
        assert_eq!(tallies.tallies.len(), ROWS_KEPT);
        assert!(tallies.rows.len() <= ROWS_KEPT);

        let busy = 3 * ROWS_KEPT;
        for name in 0..busy {
            let (row, _) = tallies.row(&name, 1);
            tallies[row].in_flight = 1;
        }
        for name in busy..10 * busy {
            tallies.row(&name, 1);
        }
        assert!(tallies.tallies.len() <= 2 * busy);
        for name in 0..busy {
            let (row, _) = tallies.row(&name, 1);
            assert_eq!(tallies[row].in_flight, 1);
            tallies[row].in_flight = 0;
        }
        let rows = tallies.tallies.len();
        for name in busy..10 * busy {
            tallies.row(&name, 1);
        }
        assert_eq!(tallies.tallies.len(), rows, "none is lost");
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
