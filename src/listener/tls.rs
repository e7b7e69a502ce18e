//! The caller's side of TLS: a client certificate is demanded, and each refusal has a reason that can be counted.

use std::io;
use std::sync::Arc;
use std::sync::OnceLock;
use std::time::Duration;

use rustls::CertificateError;
use rustls::DigitallySignedStruct;
use rustls::DistinguishedName;
use rustls::OtherError;
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::SignatureScheme;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::UnixTime;
use rustls::server::NoServerSessionStorage;
use rustls::server::ProducesTickets;
use rustls::server::ResolvesServerCert;
use rustls::server::VerifierBuilderError;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerified;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls::sign::SingleCertAndKey;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;
use x509_parser::parse_x509_crl;

use crate::identity::Names;
use crate::observe::log::harmless;

/// Tickets for each TLS 1.3 handshake: one is enough for a caller that comes back.
const TICKETS: usize = 1;

/// Everything that the listener's TLS is made of.
#[derive(Debug)]
pub struct Material {
    /// Our certificate first, then what leads to the CA.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: PrivateKeyDer<'static>,
    /// Whom callers' certificates must lead to.
    pub client_roots: RootCertStore,
    /// With at least one, a certificate of unknown status is refused.
    pub client_crls: Vec<CertificateRevocationListDer<'static>>,
    /// A revocation list past its next update refuses everybody that it covers.
    pub refuse_expired_crl: bool,
}

/// Why the material can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Key and certificate don't belong together, or one of them can't be used.
    #[error("certificate and private key: {0}")]
    Certificate(#[from] rustls::Error),
    /// The CA or a revocation list can't be used.
    #[error("client CA or revocation list: {0}")]
    Clients(#[from] VerifierBuilderError),
}

/// What callers meet: our certificate and ticket keys, and how theirs are verified.
#[derive(Clone, Debug)]
pub struct Terms {
    provider: Arc<CryptoProvider>,
    certificate: Arc<SingleCertAndKey>,
    /// What makes and opens sessions' tickets.
    pub(super) tickets: Arc<dyn ProducesTickets>,
    /// For certificates that were let in before: resumed sessions, and connections that were open when this came into force.
    pub verifier: Arc<dyn ClientCertVerifier>,
    /// When the first revocation list ends that refuses everybody then, since 1970-01-01 UTC.
    pub lists_end: Option<Duration>,
}

/// # Errors
/// When parts don't fit together.
pub fn terms(material: &Material) -> Result<Terms, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let roots = Arc::new(material.client_roots.clone());
    // Without `allow_unauthenticated`, a client certificate is demanded.
    let mut verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
    if !material.client_crls.is_empty() {
        verifier = verifier.with_crls(material.client_crls.iter().cloned());
        if material.refuse_expired_crl {
            verifier = verifier.enforce_revocation_expiration();
        }
    }
    let verifier = verifier.build()?;
    let certificate =
        CertifiedKey::from_der(material.chain.clone(), material.key.clone_key(), &provider)?;
    let lists_end = material
        .client_crls
        .iter()
        .filter(|_| material.refuse_expired_crl)
        .filter_map(|list| {
            let (_, list) = parse_x509_crl(list).ok()?;
            u64::try_from(list.next_update()?.timestamp()).ok()
        })
        .min()
        .map(Duration::from_secs);
    Ok(Terms {
        provider,
        certificate: Arc::new(SingleCertAndKey::from(certificate)),
        // With each new set of certificates come new keys for tickets, so that no session of before is resumed.
        tickets: Ticketer::new()?,
        verifier,
        lists_end,
    })
}

impl Terms {
    /// For one handshake: a verifier of its own, which keeps a certificate that it refuses. The library's error doesn't say whose it was.
    pub(super) fn witnessed(&self) -> (Arc<ServerConfig>, Arc<Witness>) {
        let witness = Arc::new(Witness {
            verifier: Arc::clone(&self.verifier),
            refused: OnceLock::new(),
        });
        let provider = Arc::clone(&self.provider);
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for both versions")
            .with_client_cert_verifier(Arc::clone(&witness) as Arc<dyn ClientCertVerifier>)
            .with_cert_resolver(Arc::clone(&self.certificate) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Sessions are resumed by tickets, so that nothing is kept here for those who don't come back. The library doesn't verify a
        // resumed session again: the listener does.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = Arc::clone(&self.tickets);
        config.send_tls13_tickets = TICKETS;
        config.max_early_data_size = 0;
        // Without an extended master secret, a TLS 1.2 session can be tied to another one's (RFC 7627, section 1).
        config.require_ems = true;
        (Arc::new(config), witness)
    }
}

/// Certificates that a caller may bring beside its own. The verifier tries those that lead nowhere in every order, so that a few more
/// than anybody needs would keep a thread busy for a second, before it's known who asks; with so many it's some hundred tries.
const INTERMEDIATES_MAX: usize = 5;

/// All certificates of one caller together, in bytes. They're kept for as long as its connection is open.
const CHAIN_BYTES_MAX: usize = 32 * 1024;

/// More certificates than are looked at. Its name is told as the cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Excess {
    #[error("more than {INTERMEDIATES_MAX} certificates beside the caller's own")]
    TooManyIntermediates,
    #[error("certificates of more than {CHAIN_BYTES_MAX} bytes")]
    TooManyBytes,
}

fn check_size(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Result<(), Excess> {
    let bytes = intermediates.iter().map(|other| other.len()).sum::<usize>();
    if intermediates.len() > INTERMEDIATES_MAX {
        Err(Excess::TooManyIntermediates)
    } else if bytes.saturating_add(leaf.len()) > CHAIN_BYTES_MAX {
        Err(Excess::TooManyBytes)
    } else {
        Ok(())
    }
}

/// Verifies the certificate of one caller.
#[derive(Debug)]
pub(super) struct Witness {
    verifier: Arc<dyn ClientCertVerifier>,
    refused: OnceLock<Vec<CertificateDer<'static>>>,
}

impl Witness {
    /// The chain that was refused, if one was.
    pub(super) fn refused(&self) -> Option<&[CertificateDer<'static>]> {
        self.refused.get().map(Vec::as_slice)
    }

    fn keep<T>(
        &self,
        verdict: Result<T, rustls::Error>,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
    ) -> Result<T, rustls::Error> {
        if verdict.is_err() {
            let chain = std::iter::once(leaf).chain(others);
            let chain = chain.map(|each| each.clone().into_owned()).collect();
            // A handshake ends with the first.
            let _ = self.refused.set(chain);
        }
        verdict
    }
}

impl ClientCertVerifier for Witness {
    fn offer_client_auth(&self) -> bool {
        self.verifier.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.verifier.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verdict = match check_size(leaf, intermediates) {
            Ok(()) => self.verifier.verify_client_cert(leaf, intermediates, now),
            Err(excess) => {
                let other = CertificateError::Other(OtherError(Arc::new(excess)));
                Err(rustls::Error::InvalidCertificate(other))
            }
        };
        self.keep(verdict, leaf, intermediates)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let verdict = self
            .verifier
            .verify_tls12_signature(message, leaf, signature);
        self.keep(verdict, leaf, &[])
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let verdict = self
            .verifier
            .verify_tls13_signature(message, leaf, signature);
        self.keep(verdict, leaf, &[])
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// Whose a certificate says it is, for the log: what it says of itself needn't be true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bearer {
    pub(super) subject: String,
    pub(super) issuer: String,
    /// Upper-case hexadecimal, as `openssl x509 -serial` prints it.
    pub(super) serial: String,
    /// Subject alternative names, as configuration would write them.
    pub(super) names: String,
    /// What it brought along: subject and serial of each.
    pub(super) intermediates: String,
}

/// Characters of each of its texts.
pub(super) const BEARER_TEXT_MAX: usize = 256;

impl Bearer {
    /// `None` if the first certificate can't be read.
    pub(super) fn of(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let (leaf, others) = chain.split_first()?;
        let (_, certificate) = parse_x509_certificate(leaf).ok()?;
        let others = others.iter().filter_map(|other| {
            let (_, other) = parse_x509_certificate(other).ok()?;
            Some(format!("{} ({})", other.subject(), serial(&other)))
        });
        Some(Self {
            subject: harmless(&certificate.subject().to_string(), BEARER_TEXT_MAX),
            issuer: harmless(&certificate.issuer().to_string(), BEARER_TEXT_MAX),
            serial: harmless(&serial(&certificate), BEARER_TEXT_MAX),
            names: harmless(&holder(leaf).names.to_string(), BEARER_TEXT_MAX),
            intermediates: harmless(&others.collect::<Vec<_>>().join(", "), BEARER_TEXT_MAX),
        })
    }
}

fn serial(certificate: &X509Certificate<'_>) -> String {
    let bytes = certificate.raw_serial();
    // The first byte says that the number isn't negative, and is no part of it.
    let bytes = bytes.strip_prefix(&[0]).filter(|rest| !rest.is_empty());
    const_hex::encode_upper(bytes.unwrap_or_else(|| certificate.raw_serial()))
}

/// What a verified certificate says of its holder.
#[derive(Clone, Debug, Default)]
pub struct Holder {
    /// Subject alternative names.
    pub names: Names,
    /// When it ends, since 1970-01-01 UTC; zero if it can't be read.
    pub ends: Duration,
}

/// Reads a verified certificate; one that can't be read is nobody's, and has ended.
#[must_use]
pub fn holder(certificate: &CertificateDer<'_>) -> Holder {
    let mut holder = Holder::default();
    let Ok((_, certificate)) = parse_x509_certificate(certificate) else {
        return holder;
    };
    let ends = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or_default();
    // That last second is within (RFC 5280, section 4.1.2.5).
    holder.ends = Duration::from_secs(ends.saturating_add(1));
    let Ok(Some(extension)) = certificate.subject_alternative_name() else {
        return holder;
    };
    for name in &extension.value.general_names {
        match name {
            GeneralName::URI(uri) => holder.names.uris.push((*uri).to_owned()),
            GeneralName::DNSName(name) => holder.names.dns.push((*name).to_owned()),
            // Somebody else may read a URI where we can't: then it's not the only one, or not a SPIFFE ID.
            GeneralName::Invalid(..) => holder.names.uris.push(String::new()),
            _ => {}
        }
    }
    holder
}

/// Why a handshake failed, as one of [`HANDSHAKE_FAILURES`](crate::observe::metrics::HANDSHAKE_FAILURES).
#[must_use]
pub fn reason(error: &io::Error) -> &'static str {
    error
        .get_ref()
        .and_then(|inner| inner.downcast_ref())
        .map_or("protocol", reason_of)
}

/// The same for the library's own error.
#[must_use]
pub fn reason_of(error: &rustls::Error) -> &'static str {
    match error {
        rustls::Error::NoCertificatesPresented => "none",
        rustls::Error::InvalidCertificate(fault) => certificate_reason(fault),
        rustls::Error::InvalidCertRevocationList(_) => "revocation-unknown",
        _ => "protocol",
    }
}

fn certificate_reason(fault: &CertificateError) -> &'static str {
    match fault {
        CertificateError::UnknownIssuer => "unknown-issuer",
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "not-yet-valid"
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "wrong-usage"
        }
        CertificateError::Revoked => "revoked",
        CertificateError::UnknownRevocationStatus => "revocation-unknown",
        CertificateError::ExpiredRevocationList
        | CertificateError::ExpiredRevocationListContext { .. } => "crl-expired",
        CertificateError::BadSignature
        | CertificateError::UnsupportedSignatureAlgorithmContext { .. } => "bad-signature",
        // The verifier's own word for it has no variant here.
        CertificateError::Other(other) if other.to_string() == "CaUsedAsEndEntity" => "ca-as-leaf",
        _ => "malformed",
    }
}
