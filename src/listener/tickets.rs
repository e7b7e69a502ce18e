//! Session tickets that end with the caller's certificate.
//!
//! A session is resumed with the certificate that it began with, and each resumption gives a new ticket for the same. Once that certificate
//! has ended, the listener refuses the session: rightly, but too late for a handshake that asks for the caller's new one. So such a ticket
//! isn't taken at all, and the handshake is a full one.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::server::ProducesTickets;
use x509_parser::parse_x509_certificate;

use crate::clock::Clock;
use crate::listener::tls::holder;

/// Tickets of another maker, each with an end.
pub(super) struct Tickets {
    maker: Arc<dyn ProducesTickets>,
    clock: Clock,
}

impl Tickets {
    pub(super) fn new(maker: Arc<dyn ProducesTickets>, clock: Clock) -> Self {
        Self { maker, clock }
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        self.maker.enabled()
    }

    fn lifetime(&self) -> u32 {
        self.maker.lifetime()
    }

    fn encrypt(&self, session: &[u8]) -> Option<Vec<u8>> {
        // Without a certificate that can be found there's no ticket, and the next handshake is a full one.
        let ends = certificate_ends(session)?;
        let mut plain = ends.as_secs().to_be_bytes().to_vec();
        plain.extend_from_slice(session);
        self.maker.encrypt(&plain)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let mut plain = self.maker.decrypt(ticket)?;
        let (ends, _) = plain.split_first_chunk()?;
        let ends = Duration::from_secs(u64::from_be_bytes(*ends));
        if self.clock.since_epoch() >= ends {
            return None;
        }
        plain.drain(..ENDS_LENGTH);
        Some(plain)
    }
}

const ENDS_LENGTH: usize = size_of::<u64>();

/// What a DER certificate of more than 255 bytes begins with: a sequence whose length has two bytes (X.690, section 8.1.3).
const SEQUENCE: [u8; 2] = [0x30, 0x82];

/// When the first certificate in a session ends. The library doesn't say where in its session it is, but TLS writes certificates with
/// their length in three bytes before them (RFC 8446, section 4.4.2), and so does the library.
fn certificate_ends(session: &[u8]) -> Option<Duration> {
    (LENGTH_BYTES..session.len()).find_map(|at| {
        if !session[at..].starts_with(&SEQUENCE) {
            return None;
        }
        let length = &session[at - LENGTH_BYTES..at];
        let length = length
            .iter()
            .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        let der = session[at..].get(..length)?;
        let (rest, _) = parse_x509_certificate(der).ok()?;
        rest.is_empty()
            .then(|| holder(&CertificateDer::from(der)).ends)
    })
}

const LENGTH_BYTES: usize = 3;

#[cfg(test)]
mod tests {
    use super::Tickets;
    use super::certificate_ends;
    use crate::clock::Clock;
    use rcgen::CertificateParams;
    use rcgen::KeyPair;
    use rcgen::date_time_ymd;
    use rustls::crypto::aws_lc_rs::Ticketer;
    use rustls::server::ProducesTickets;
    use std::time::Duration;

    /// 2030-01-01.
    const END: u64 = 1_893_456_000;

    fn session() -> Vec<u8> {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.not_after = date_time_ymd(2030, 1, 1);
        let der = params
            .self_signed(&key)
            .expect("a certificate")
            .der()
            .to_vec();
        let mut session = vec![1, 2, 0x30, 0x82, 0, 3, 4];
        session.extend(&u32::try_from(der.len()).expect("short").to_be_bytes()[1..]);
        session.extend(der);
        session.extend([5, 6]);
        session
    }

    fn tickets(now: u64) -> Tickets {
        let maker = Ticketer::new().expect("randomness");
        Tickets::new(maker, Clock::fixed(Duration::from_secs(now)))
    }

    #[test]
    fn a_ticket_is_good_until_its_certificate_ends() {
        let session = session();
        // Its last second is within.
        assert_eq!(
            certificate_ends(&session),
            Some(Duration::from_secs(END + 1))
        );
        let before = tickets(END);
        let ticket = before.encrypt(&session).expect("a ticket");
        assert_eq!(before.decrypt(&ticket), Some(session));
        let after = Tickets::new(before.maker, Clock::fixed(Duration::from_secs(END + 1)));
        assert_eq!(after.decrypt(&ticket), None);
    }

    #[test]
    fn a_session_without_a_certificate_has_no_ticket() {
        for odd in [&b""[..], b"0", b"\x00\x00\x04\x30\x82\x00\x00", &[0x30; 64]] {
            assert_eq!(certificate_ends(odd), None);
            assert_eq!(tickets(0).encrypt(odd), None);
        }
    }

    #[test]
    fn what_is_no_ticket_is_none() {
        for odd in [&b""[..], b"odd", &[0; 100]] {
            assert_eq!(tickets(0).decrypt(odd), None);
        }
    }
}
