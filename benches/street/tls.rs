//! TLS as a service's library has it: the gateway's CA is trusted, and a certificate is shown.

use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::Result;

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    Ok(CertificateDer::pem_file_iter(path)?.collect::<std::result::Result<_, _>>()?)
}

/// One key exchange for everybody, which all of them have: what is compared is proxies, not curves.
fn provider(post_quantum: bool) -> Arc<rustls::crypto::CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    if !post_quantum {
        provider.kx_groups = vec![aws_lc_rs::kx_group::X25519];
    }
    Arc::new(provider)
}

/// A client that comes with the certificate of `name`.
pub fn client(
    folder: &Path,
    name: &str,
    protocol: &[u8],
    resumes: bool,
    post_quantum: bool,
) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for each in certificates(&folder.join("callers-ca.pem"))? {
        roots.add(each)?;
    }
    let chain = certificates(&folder.join(format!("{name}.pem")))?;
    let key = PrivateKeyDer::from_pem_file(folder.join(format!("{name}.key")))?;
    let mut config = ClientConfig::builder_with_provider(provider(post_quantum))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![protocol.to_vec()];
    if !resumes {
        config.resumption = Resumption::disabled();
    }
    Ok(Arc::new(config))
}

/// The stub's side: anybody may connect.
pub fn server(folder: &Path) -> Result<Arc<ServerConfig>> {
    let chain = certificates(&folder.join("gateway.pem"))?;
    let key = PrivateKeyDer::from_pem_file(folder.join("gateway.key"))?;
    let mut config = ServerConfig::builder_with_provider(provider(false))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
