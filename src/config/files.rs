//! Files that configuration names: certificates, revocation lists, and the secrets.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem;
use rustls::pki_types::pem::PemObject;

use crate::account::AppKey;
use crate::account::KeyFault;
use crate::config::reader::Reader;
use crate::config::value::shown_path;

/// A PEM file is larger than this only by mistake.
const PEM_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Reads a key file: regular, not open to others, with one key in it.
pub(super) fn app_key(reader: &Reader, path: &Path) -> Result<Arc<AppKey>, KeyFault> {
    // One byte more than a key may have, and room for the white space that is dropped.
    let limit = AppKey::LENGTH_MAX as u64 + 64;
    let content = reader
        .read(path, limit)
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => KeyFault::Missing,
            ErrorKind::PermissionDenied => KeyFault::Forbidden,
            ErrorKind::FileTooLarge => KeyFault::TooLong,
            _ => KeyFault::Unreadable,
        })?;
    if !content.access.is_private() {
        return Err(KeyFault::Permissions);
    }
    AppKey::new(&content.bytes)
}

/// All certificates of a PEM file, at least one.
pub(super) fn certificates(
    reader: &Reader,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, String> {
    several(reader, path, "a certificate", |bytes| {
        CertificateDer::pem_slice_iter(bytes).collect()
    })
}

/// All revocation lists of a PEM file, at least one.
pub(super) fn revocation_lists(
    reader: &Reader,
    path: &Path,
) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    several(reader, path, "a revocation list", |bytes| {
        CertificateRevocationListDer::pem_slice_iter(bytes).collect()
    })
}

/// The certificates of a PEM file, as what others must lead to.
pub(super) fn roots(reader: &Reader, path: &Path) -> Result<RootCertStore, String> {
    store(&certificates(reader, path)?).map_err(|error| format!("{}: {error}", shown_path(path)))
}

/// Certificates, as what others must lead to.
pub(super) fn store(certificates: &[CertificateDer<'static>]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for (number, certificate) in certificates.iter().enumerate() {
        let number = number + 1;
        roots
            .add(certificate.clone())
            .map_err(|_| format!("certificate {number} in it isn't one that TLS can use"))?;
    }
    Ok(roots)
}

/// A private key, and whether others may read its file.
pub(super) struct PrivateKey {
    pub(super) der: PrivateKeyDer<'static>,
    pub(super) open_to_others: bool,
}

/// The private key of a PEM file.
pub(super) fn private_key(reader: &Reader, path: &Path) -> Result<PrivateKey, String> {
    // Neither the path, which may be a key in the wrong place, nor what the file holds is repeated.
    let content = reader
        .read(path, PEM_BYTES_MAX)
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => "there is no such file".to_owned(),
            _ => format!("the file can't be read: {error}"),
        })?;
    let der = PrivateKeyDer::from_pem_slice(&content.bytes).map_err(|error| match error {
        _ if is_encrypted(&content.bytes) => {
            "the private key in it is encrypted: it must stand there without a passphrase"
                .to_owned()
        }
        pem::Error::NoItemsFound => "there's no private key in it".to_owned(),
        pem::Error::MissingSectionEnd { .. } => "it's cut short: a section has no end".to_owned(),
        _ => "it isn't well-formed PEM".to_owned(),
    })?;
    Ok(PrivateKey {
        der,
        open_to_others: content.access.mode & 0o007 != 0,
    })
}

/// PKCS #8 says so in the label (RFC 7468, section 11), older forms in a header (RFC 1421, section 4.6.1.1).
fn is_encrypted(pem: &[u8]) -> bool {
    let word = b"ENCRYPTED";
    pem.windows(word.len()).any(|window| window == word)
}

fn several<T>(
    reader: &Reader,
    path: &Path,
    what: &str,
    parse: impl Fn(&[u8]) -> Result<Vec<T>, pem::Error>,
) -> Result<Vec<T>, String> {
    let content = reader
        .read(path, PEM_BYTES_MAX)
        .map_err(|error| format!("{} can't be read: {error}", shown_path(path)))?;
    match parse(&content.bytes) {
        Ok(items) if items.is_empty() => {
            Err(format!("{}: there isn't {what} in it", shown_path(path)))
        }
        Ok(items) => Ok(items),
        Err(pem::Error::MissingSectionEnd { .. }) => Err(format!(
            "{}: it's cut short: a section has no end",
            shown_path(path)
        )),
        Err(_) => Err(format!("{}: it isn't well-formed PEM", shown_path(path))),
    }
}
