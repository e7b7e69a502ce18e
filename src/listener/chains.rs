//! The certificates that callers came with, each chain kept once: a caller has few of them, and many connections.

use std::collections::HashSet;
use std::mem::take;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use rustls::pki_types::CertificateDer;

type Certificates = Arc<[CertificateDer<'static>]>;

/// All chains of open connections.
#[derive(Debug, Default)]
pub(super) struct Chains(Arc<Mutex<HashSet<Certificates>>>);

/// That of one connection. The last one with the same certificates takes them along when it's dropped.
#[derive(Debug)]
pub(super) struct Chain {
    certificates: Certificates,
    chains: Arc<Mutex<HashSet<Certificates>>>,
}

impl Chains {
    /// The chain of these, its owner's first.
    pub(super) fn keep(&self, certificates: &[CertificateDer<'static>]) -> Chain {
        let mut chains = lock(&self.0);
        let certificates = match chains.get(certificates) {
            Some(same) => Arc::clone(same),
            None => {
                // What TLS shows may be a part of something larger.
                let owned = certificates.iter().map(|each| each.clone().into_owned());
                let new: Certificates = owned.collect();
                chains.insert(Arc::clone(&new));
                new
            }
        };
        Chain {
            certificates,
            chains: Arc::clone(&self.0),
        }
    }
}

impl Chain {
    /// The owner's certificate first, then what leads to the CA.
    pub(super) fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        let mut chains = lock(&self.chains);
        // Given up before anybody else can count them.
        let certificates = take(&mut self.certificates);
        // Here, and in the set.
        if Arc::strong_count(&certificates) == 2 {
            chains.remove(&*certificates);
        }
    }
}

fn lock(chains: &Mutex<HashSet<Certificates>>) -> MutexGuard<'_, HashSet<Certificates>> {
    // Nothing that holds it can panic half-way through a change.
    chains.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::Chains;
    use rustls::pki_types::CertificateDer;
    use std::ptr;

    #[test]
    fn the_same_certificates_are_kept_once_and_no_longer_than_anybody_has_them() {
        let certificate = |byte: u8| CertificateDer::from(vec![byte; 500]);
        let (orders, tills) = ([certificate(1), certificate(9)], [certificate(2)]);
        let chains = Chains::default();
        let first = chains.keep(&orders);
        let second = chains.keep(&orders);
        let other = chains.keep(&tills);
        assert_eq!(first.certificates(), orders);
        assert_eq!(other.certificates(), tills);
        assert!(ptr::eq(first.certificates(), second.certificates()));
        assert!(!ptr::eq(first.certificates(), other.certificates()));
        let known = || chains.0.lock().expect("whole").len();
        assert_eq!(known(), 2);
        drop(first);
        assert_eq!(known(), 2, "the second one has them");
        assert!(ptr::eq(
            second.certificates(),
            chains.keep(&orders).certificates()
        ));
        drop(second);
        assert_eq!(known(), 1);
        drop(other);
        assert_eq!(known(), 0, "nothing is kept");
    }
}
