//! The steps of an orderly end, which every long-lived task watches.

use tokio_util::sync::CancellationToken;

/// Readiness fails first, then no more connections are taken, then what is left is cut. Each step stays once it's reached.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    /// Not ready any more; serving goes on, and answers ask callers to leave.
    pub draining: CancellationToken,
    /// No more connections are taken; open ones end with the answer they wait for.
    pub closing: CancellationToken,
    /// Time is up.
    pub cut: CancellationToken,
}
