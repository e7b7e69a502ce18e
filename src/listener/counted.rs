//! What a gauge counts for as long as it lives.

use prometheus::IntGauge;

/// One of those that a gauge counts, until it's dropped.
#[derive(Debug)]
pub(super) struct Counted(IntGauge);

impl Counted {
    /// One more.
    #[must_use]
    pub(super) fn one_of(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
