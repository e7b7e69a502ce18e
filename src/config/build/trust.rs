//! What certificates, CAs and revocation lists say of themselves: when they end, and whether they belong together. What is wrong with
//! that is worth a word, and no reason not to start: an outage isn't mended by another one.

use std::sync::Arc;
use std::time::Duration;

use rustls::CertificateError;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::UnixTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;
use x509_parser::parse_x509_crl;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::time::ASN1Time;

use crate::config::Ending;
use crate::config::day;

/// The listener's files, as far as they could be read.
pub(super) struct Trust<'a> {
    pub(super) chain: &'a [CertificateDer<'static>],
    pub(super) authorities: &'a [CertificateDer<'static>],
    pub(super) lists: &'a [CertificateRevocationListDer<'static>],
    /// A list past its next update refuses everybody.
    pub(super) expired_list_refuses: bool,
    /// Wall time since 1970-01-01 UTC.
    pub(super) now: Duration,
}

/// Something that an operator wants to know, by the key below `listener`.
pub(super) type Remark = (&'static str, String);

impl Trust<'_> {
    /// What's wrong.
    pub(super) fn remarks(&self) -> Vec<Remark> {
        let mut remarks = Vec::new();
        let chain = parsed(self.chain);
        for (number, certificate) in chain.iter().enumerate() {
            let which = if number == 0 {
                "the certificate".to_owned()
            } else {
                format!("certificate {} of the file", number + 1)
            };
            remarks.extend(self.dates("certificate", &which, certificate));
        }
        remarks.extend(self.path(&chain).map(|what| ("certificate", what)));
        let authorities = parsed(self.authorities);
        for authority in &authorities {
            let which = format!("the certificate of {}", authority.subject());
            if !authority.is_ca() {
                let what = format!("{which} isn't a CA's: nobody's can lead to it");
                remarks.push(("client_ca", what));
            }
            remarks.extend(self.dates("client_ca", &which, authority));
        }
        let lists = parsed_lists(self.lists);
        for list in &lists {
            if let Some(due) = list.next_update()
                && self.expired_list_refuses
                && seconds(due) <= self.now
            {
                let what = format!(
                    "the list of {} was to be renewed by {}: everybody it covers is refused",
                    list.issuer(),
                    day(seconds(due))
                );
                remarks.push(("client_crl", what));
            }
        }
        if !lists.is_empty() {
            let uncovered = |authority: &&X509Certificate<'_>| {
                lists
                    .iter()
                    .all(|list| list.issuer() != authority.subject())
            };
            for authority in authorities.iter().filter(uncovered) {
                let what = format!(
                    "none of the lists is of {}: everybody with a certificate of it is refused",
                    authority.subject()
                );
                remarks.push(("client_crl", what));
            }
        }
        remarks
    }

    /// When each of them ends.
    pub(super) fn endings(&self) -> Vec<Ending> {
        let certificates = |key, list: &[CertificateDer<'static>]| {
            parsed(list)
                .iter()
                .map(|certificate| Ending {
                    key,
                    of: certificate.subject().to_string(),
                    at: seconds(certificate.validity().not_after),
                })
                .collect::<Vec<_>>()
        };
        let mut endings = certificates("listener.certificate", self.chain);
        endings.extend(certificates("listener.client_ca", self.authorities));
        let lists = parsed_lists(self.lists);
        let due = lists.iter().filter_map(|list| {
            Some(Ending {
                key: "listener.client_crl",
                of: list.issuer().to_string(),
                at: seconds(list.next_update()?),
            })
        });
        endings.extend(due);
        endings
    }

    fn dates(
        &self,
        key: &'static str,
        which: &str,
        certificate: &X509Certificate<'_>,
    ) -> Option<Remark> {
        let (from, until) = (
            seconds(certificate.validity().not_before),
            seconds(certificate.validity().not_after),
        );
        if until <= self.now {
            Some((key, format!("{which} ended on {}", day(until))))
        } else if from > self.now {
            Some((key, format!("{which} isn't valid before {}", day(from))))
        } else {
            None
        }
    }

    /// Whether our certificate leads to the last one of its file, or to a CA that's known here; of another CA nothing can be said.
    fn path(&self, chain: &[X509Certificate<'_>]) -> Option<String> {
        let (leaf, rest) = chain.split_first()?;
        let Some(name) = server_name(leaf) else {
            return Some(
                "the certificate has no DNS name and no address by which callers could verify it"
                    .to_owned(),
            );
        };
        let known = parsed(self.authorities);
        let above = rest.iter().chain(&known);
        let follows = |above: &X509Certificate<'_>| above.subject() == leaf.issuer();
        if !above.clone().any(follows) {
            return (!rest.is_empty()).then(|| {
                format!(
                    "the certificate is of {}, which isn't in the file",
                    leaf.issuer()
                )
            });
        }
        let mut anchors = RootCertStore::empty();
        let last = self.chain.last().filter(|_| !rest.is_empty());
        anchors.add_parsable_certificates(last.into_iter().chain(self.authorities).cloned());
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(anchors), provider);
        let now = UnixTime::since_unix_epoch(self.now);
        let verified = verifier.build().ok()?.verify_server_cert(
            &self.chain[0],
            &self.chain[1..],
            &name,
            &[],
            now,
        );
        match verified {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::UnknownIssuer | CertificateError::BadSignature,
            )) => Some(format!(
                "the certificates of the file don't lead from one to the next: {} didn't issue the first",
                leaf.issuer()
            )),
            Err(rustls::Error::InvalidCertificate(
                CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. },
            )) => Some("the certificate isn't for servers (extended key usage)".to_owned()),
            // Dates are told by themselves.
            Ok(_) | Err(_) => None,
        }
    }
}

fn server_name(certificate: &X509Certificate<'_>) -> Option<ServerName<'static>> {
    let names = certificate.subject_alternative_name().ok()??;
    names
        .value
        .general_names
        .iter()
        .find_map(|name| match name {
            // Of a wildcard, any name will do.
            GeneralName::DNSName(name) => ServerName::try_from(name.replacen('*', "any", 1)).ok(),
            GeneralName::IPAddress(bytes) => {
                let address = match bytes.len() {
                    4 => <[u8; 4]>::try_from(*bytes).ok().map(std::net::IpAddr::from),
                    _ => <[u8; 16]>::try_from(*bytes)
                        .ok()
                        .map(std::net::IpAddr::from),
                };
                address.map(ServerName::from)
            }
            _ => None,
        })
}

/// What the TLS library has refused is told elsewhere.
fn parsed<'a>(list: &'a [CertificateDer<'static>]) -> Vec<X509Certificate<'a>> {
    list.iter()
        .filter_map(|der| parse_x509_certificate(der).ok())
        .map(|(_, certificate)| certificate)
        .collect()
}

fn parsed_lists<'a>(
    list: &'a [CertificateRevocationListDer<'static>],
) -> Vec<CertificateRevocationList<'a>> {
    list.iter()
        .filter_map(|der| parse_x509_crl(der).ok())
        .map(|(_, list)| list)
        .collect()
}

fn seconds(time: ASN1Time) -> Duration {
    Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or_default())
}
