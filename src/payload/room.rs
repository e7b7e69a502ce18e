//! How much memory all bodies together may take, so that callers who send large ones at the same time are refused in time, and not
//! the process by the kernel. Small bodies, which come in one piece and don't wait for their rest, aren't counted; what has come of one that
//! waits is.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use prometheus::IntGauge;

use crate::name::CallerName;

/// One caller may hold one part in so many, rounded up.
pub const SHARES: usize = 2;

/// For the whole process.
#[derive(Clone)]
pub struct Room {
    taken: Arc<Mutex<Taken>>,
    /// How many bytes that are, for the metrics.
    shown: IntGauge,
}

#[derive(Default)]
struct Taken {
    bytes: usize,
    by_caller: HashMap<CallerName, usize>,
}

/// There's no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// For this caller, by its own bodies.
    #[error("bodies of this caller take {0} bytes of the gateway's memory already")]
    Caller(usize),
    /// For anybody.
    #[error("bodies take {0} bytes of the gateway's memory already")]
    All(usize),
}

/// What one body takes, until it's dropped.
pub struct Held {
    room: Room,
    caller: CallerName,
    bytes: usize,
}

impl Room {
    /// With nothing in it; what is taken is shown.
    #[must_use]
    pub fn new(shown: IntGauge) -> Self {
        Self {
            taken: Arc::default(),
            shown,
        }
    }

    /// Nothing yet, for a body of this caller.
    #[must_use]
    pub fn hold(&self, caller: CallerName) -> Held {
        Held {
            room: self.clone(),
            caller,
            bytes: 0,
        }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room").finish_non_exhaustive()
    }
}

impl Held {
    /// Takes so much more, where all bodies may take `max`.
    ///
    /// # Errors
    /// When that would be more, or more than the caller's share.
    pub fn grow(&mut self, bytes: usize, max: usize) -> Result<(), Full> {
        let mut taken = self.room.taken();
        if taken.bytes.saturating_add(bytes) > max {
            return Err(Full::All(taken.bytes));
        }
        let callers = taken.by_caller.entry(self.caller.clone()).or_default();
        if callers.saturating_add(bytes) > max.div_ceil(SHARES) {
            return Err(Full::Caller(*callers));
        }
        *callers += bytes;
        taken.bytes += bytes;
        self.bytes += bytes;
        self.room.shown.add(bytes_shown(bytes));
        Ok(())
    }
}

fn bytes_shown(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut taken = self.room.taken();
        taken.bytes -= self.bytes;
        self.room.shown.sub(bytes_shown(self.bytes));
        if let Some(callers) = taken.by_caller.get_mut(&self.caller) {
            *callers -= self.bytes;
            if *callers == 0 {
                taken.by_caller.remove(&self.caller);
            }
        }
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Held({} bytes)", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::Full;
    use super::Room;
    use crate::name::CallerName;
    use prometheus::IntGauge;
    use proptest::prelude::*;

    fn caller(name: &str) -> CallerName {
        CallerName::new(name).expect("a name")
    }

    fn room() -> Room {
        Room::new(IntGauge::new("bytes", "bytes").expect("a good name"))
    }

    #[test]
    fn a_caller_has_half_of_it_and_all_have_no_more_than_there_is() {
        let room = room();
        let (mut one, mut two) = (room.hold(caller("one")), room.hold(caller("two")));
        assert_eq!(one.grow(5, 9), Ok(()));
        assert_eq!(one.grow(1, 9), Err(Full::Caller(5)));
        let mut another = room.hold(caller("one"));
        assert_eq!(another.grow(1, 9), Err(Full::Caller(5)));
        assert_eq!(two.grow(4, 9), Ok(()));
        assert_eq!(two.grow(1, 9), Err(Full::All(9)));
        drop(one);
        assert_eq!(another.grow(5, 9), Ok(()));
        drop((two, another));
        let taken = room.taken();
        assert_eq!((taken.bytes, taken.by_caller.len()), (0, 0));
    }

    proptest! {
        /// Whatever comes and goes, what is taken is what is held.
        #[test]
        fn what_is_taken_is_what_is_held(steps in proptest::collection::vec((0usize..3, 0usize..40, any::<bool>()), 1..100)) {
            let (room, max) = (room(), 100);
            let mut held: Vec<super::Held> = Vec::new();
            for (who, bytes, leaves) in steps {
                if leaves && !held.is_empty() {
                    held.remove(bytes % held.len());
                } else {
                    let mut one = room.hold(caller(["a", "b", "c"][who]));
                    let _ = one.grow(bytes, max);
                    held.push(one);
                }
                let sum = held.iter().map(|held| held.bytes).sum::<usize>();
                prop_assert_eq!(room.taken().bytes, sum);
                prop_assert!(sum <= max);
            }
            drop(held);
            prop_assert!(room.taken().by_caller.is_empty());
        }
    }
}
