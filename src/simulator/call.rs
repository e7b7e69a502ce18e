//! One call that has passed the door: signed, charged and read. What operations know of the world besides their shop.

use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use crate::simulator::moment::Moment;
use crate::simulator::quota::Quota;
use crate::simulator::record::Record;

/// One call.
pub(super) struct Call<'a> {
    /// The account that signed it.
    pub(super) app_id: &'a str,
    /// The request's fields.
    pub(super) body: Record,
    /// The local time at which it's answered.
    pub(super) now: Moment,
    /// The accounts beside this one.
    pub(super) chain: &'a Chain,
}

/// The chain of shops: everything that isn't one shop's own. All configured accounts are one chain, the first is its head office.
pub(super) struct Chain {
    /// Every appId, in configured order.
    pub(super) app_ids: Vec<String>,
    /// Everyone's counters.
    pub(super) quota: Mutex<Quota>,
}

impl Chain {
    /// The counters, for as long as the guard lives.
    pub(super) fn quota(&self) -> MutexGuard<'_, Quota> {
        locked(&self.quota)
    }
}

/// The lock's value, also after a panic elsewhere: a stand-in with a half-done write is still of use.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
