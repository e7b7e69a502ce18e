//! Files that configuration names: certificates, revocation lists, and the secrets.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::Path;

use rustix::process::getegid;
use rustix::process::getgroups;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem;
use rustls::pki_types::pem::PemObject;

use crate::account::AppKey;
use crate::account::KeyFault;
use crate::config::environment;
use crate::config::reader::Reader;

/// A PEM file is larger than this only by mistake.
const PEM_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Reads a key file: regular, not open to others, with one key in it.
pub(super) fn app_key(reader: &Reader, path: &Path) -> Result<AppKey, KeyFault> {
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
    let credential =
        environment::credentials_directory().is_some_and(|folder| path.starts_with(folder));
    let private = is_private(content.mode, content.group)
        || (credential && is_from_systemd(content.mode, content.user, content.group));
    if !private {
        return Err(KeyFault::Permissions);
    }
    AppKey::new(&content.bytes)
}

/// Others have no access, and the group may read only if the process belongs to it.
fn is_private(mode: u32, group: u32) -> bool {
    let ours = || {
        getegid().as_raw() == group
            || getgroups().is_ok_and(|groups| groups.iter().any(|ours| ours.as_raw() == group))
    };
    mode & 0o027 == 0 && (mode & 0o040 == 0 || ours())
}

/// Since version 254, systemd hands credentials over as root's, with an ACL for the service's user: what looks like the group's right
/// to read is the ACL's mask (systemd issue 29435). The folder itself lets nobody else in.
fn is_from_systemd(mode: u32, user: u32, group: u32) -> bool {
    mode & 0o777 == 0o440 && user == 0 && group == 0
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

/// A file in a fault, unless its name may be a key that was written in the place of one.
fn named(path: &Path) -> String {
    let name = path.file_name().and_then(OsStr::to_str);
    if name.is_some_and(AppKey::may_be) {
        "the file".to_owned()
    } else {
        path.display().to_string()
    }
}

/// The certificates of a PEM file, as what others must lead to.
pub(super) fn roots(reader: &Reader, path: &Path) -> Result<RootCertStore, String> {
    store(&certificates(reader, path)?).map_err(|error| format!("{}: {error}", named(path)))
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
        open_to_others: content.mode & 0o007 != 0,
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
        .map_err(|error| format!("{} can't be read: {error}", named(path)))?;
    match parse(&content.bytes) {
        Ok(items) if items.is_empty() => Err(format!("{}: there isn't {what} in it", named(path))),
        Ok(items) => Ok(items),
        Err(pem::Error::MissingSectionEnd { .. }) => Err(format!(
            "{}: it's cut short: a section has no end",
            named(path)
        )),
        Err(_) => Err(format!("{}: it isn't well-formed PEM", named(path))),
    }
}

#[cfg(test)]
mod tests {
    use super::is_from_systemd;
    use super::is_private;
    use rustix::process::getegid;

    #[test]
    fn credentials_as_systemd_hands_them_over_are_private() {
        assert!(is_from_systemd(0o100_440, 0, 0));
        for (mode, user, group) in [
            (0o100_444, 0, 0),
            (0o100_640, 0, 0),
            (0o100_440, 1, 0),
            (0o100_440, 0, 1),
        ] {
            assert!(
                !is_from_systemd(mode, user, group),
                "{mode:o} {user} {group}"
            );
        }
    }

    #[test]
    fn a_key_file_is_private_or_its_groups() {
        let ours = getegid().as_raw();
        for mode in [0o100_400, 0o100_600, 0o100_440, 0o100_640] {
            assert!(is_private(mode, ours), "{mode:o}");
        }
        for mode in [
            0o100_644, 0o100_404, 0o100_602, 0o100_660, 0o100_620, 0o100_601,
        ] {
            assert!(!is_private(mode, ours), "{mode:o}");
        }
        assert!(!is_private(0o100_440, 4_000_000_000));
        assert!(is_private(0o100_400, 4_000_000_000));
    }
}
