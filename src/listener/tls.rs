//! The caller's side of TLS: a client certificate is demanded, and each refusal has a reason that can be counted.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::CertificateError;
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::NoServerSessionStorage;
use rustls::server::VerifierBuilderError;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

use crate::identity::Names;

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
    /// For handshakes.
    pub config: Arc<ServerConfig>,
    /// For certificates that were let in before: resumed sessions, and connections that were open when this came into force.
    pub verifier: Arc<dyn ClientCertVerifier>,
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
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::clone(&verifier))
        .with_single_cert(material.chain.clone(), material.key.clone_key())?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Sessions are resumed by tickets, so that nothing is kept here for those who don't come back. The library doesn't verify a resumed
    // session again: the listener does. With each new set of certificates come new keys for tickets, so that no session of before is
    // resumed.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = Ticketer::new()?;
    config.send_tls13_tickets = TICKETS;
    config.max_early_data_size = 0;
    Ok(Terms {
        config: Arc::new(config),
        verifier,
    })
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
