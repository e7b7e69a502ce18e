//! Certificates that were found good a moment ago. Services that come back after a restart come all at once, each with many connections, and to
//! verify the same certificate for each is a third of what a resumed session costs.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::listener::Gate;
use crate::listener::standing;
use crate::listener::standing::Verdict;

/// For so long a verification counts for others with the same certificates. What ends within that time ends its connections too.
const COUNTS_FOR: Duration = Duration::from_secs(1);

/// Chains that are remembered.
const CHAINS_MAX: usize = 1_024;

/// What was verified, and when. Each reload of certificates or revocation lists makes it void.
#[derive(Debug, Default)]
pub(super) struct Verified(Mutex<HashMap<Box<[CertificateDer<'static>]>, Found>>);

#[derive(Clone, Copy, Debug)]
struct Found {
    /// The number of the gate that it was found good by.
    gate: u64,
    at: Instant,
}

impl Found {
    fn counts(&self, gate: u64, now: Instant) -> bool {
        self.gate == gate && now.duration_since(self.at) < COUNTS_FOR
    }
}

impl Verified {
    /// Verifies these by `gate`, unless that was done a moment ago.
    pub(super) fn verify(
        &self,
        gate: &Gate,
        chain: &[CertificateDer<'static>],
        clock: &Clock,
    ) -> Verdict {
        self.or_else(gate.number, chain, clock.now(), || {
            standing::verify(gate, chain, clock)
        })
    }

    fn or_else(
        &self,
        gate: u64,
        chain: &[CertificateDer<'static>],
        now: Instant,
        verify: impl FnOnce() -> Verdict,
    ) -> Verdict {
        let known = self.found().get(chain).copied();
        if known.is_some_and(|found| found.counts(gate, now)) {
            return Ok(());
        }
        verify()?;
        let mut found = self.found();
        if found.len() >= CHAINS_MAX {
            found.retain(|_, found| found.counts(gate, now));
        }
        if found.len() < CHAINS_MAX {
            // What TLS shows may be a part of something larger.
            let owned = chain.iter().map(|each| each.clone().into_owned());
            found.insert(owned.collect(), Found { gate, at: now });
        }
        Ok(())
    }

    fn found(&self) -> MutexGuard<'_, HashMap<Box<[CertificateDer<'static>]>, Found>> {
        // Nothing that holds it can panic half-way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::CHAINS_MAX;
    use super::COUNTS_FOR;
    use super::Verified;
    use rustls::pki_types::CertificateDer;
    use std::time::Duration;
    use tokio::time::Instant;

    #[test]
    fn what_was_good_a_moment_ago_is_good_by_the_same_gate_alone_and_not_for_long() {
        let (verified, now) = (Verified::default(), Instant::now());
        let (one, other) = (
            [CertificateDer::from(vec![1])],
            [CertificateDer::from(vec![2])],
        );
        let refuses = || Err("revoked");
        let late = now + COUNTS_FOR;
        assert_eq!(verified.or_else(1, &one, now, refuses), Err("revoked"));
        assert_eq!(
            verified.or_else(1, &one, now, refuses),
            Err("revoked"),
            "what wasn't good isn't remembered"
        );
        assert_eq!(verified.or_else(1, &one, now, || Ok(())), Ok(()));
        let soon = late - Duration::from_millis(1);
        assert_eq!(verified.or_else(1, &one, soon, refuses), Ok(()));
        assert_eq!(verified.or_else(1, &other, now, refuses), Err("revoked"));
        assert_eq!(verified.or_else(2, &one, now, refuses), Err("revoked"));
        assert_eq!(verified.or_else(1, &one, late, refuses), Err("revoked"));
    }

    #[test]
    fn it_remembers_so_many_and_forgets_what_no_longer_counts() {
        let (verified, now) = (Verified::default(), Instant::now());
        let chain = |number: usize| [CertificateDer::from(number.to_le_bytes().to_vec())];
        for number in 0..CHAINS_MAX + 10 {
            assert_eq!(verified.or_else(1, &chain(number), now, || Ok(())), Ok(()));
        }
        assert_eq!(verified.found().len(), CHAINS_MAX);
        let later = now + COUNTS_FOR;
        assert_eq!(verified.or_else(1, &chain(0), later, || Ok(())), Ok(()));
        assert_eq!(
            verified.or_else(1, &chain(CHAINS_MAX), later, || Ok(())),
            Ok(())
        );
        assert_eq!(verified.found().len(), 2);
    }
}
