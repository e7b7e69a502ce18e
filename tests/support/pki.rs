//! Certificates of every kind that a caller could come with.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use time::OffsetDateTime;

/// A CA that issues whatever is asked for.
pub struct Pki {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// The certificates that lead from it to the root, its own first, PEM; of a root, none.
    above: String,
    name: String,
}

/// A certificate with its key, PEM.
#[derive(Clone)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

/// What is asked for.
pub struct Wanted<'a> {
    pub uris: &'a [&'a str],
    pub dns: &'a [&'a str],
    pub from: OffsetDateTime,
    pub until: OffsetDateTime,
    pub usage: ExtendedKeyUsagePurpose,
    pub serial: u64,
    pub is_ca: bool,
}

impl Default for Wanted<'_> {
    fn default() -> Self {
        let (from, until) = (date_time_ymd(2020, 1, 1), date_time_ymd(2100, 1, 1));
        Self {
            uris: &[],
            dns: &[],
            from,
            until,
            usage: ExtendedKeyUsagePurpose::ClientAuth,
            serial: 7,
            is_ca: false,
        }
    }
}

impl Pki {
    pub fn new() -> Self {
        // Two CAs of one name would be told apart by their signatures alone, which is another fault.
        Self::root(format!("test CA {}", uuid::Uuid::now_v7()))
    }

    /// Another root of the same name, with a key of its own.
    pub fn forged(&self) -> Self {
        Self::root(self.name.clone())
    }

    fn root(name: String) -> Self {
        let key = KeyPair::generate().unwrap();
        Self {
            issuer: CertifiedIssuer::self_signed(authority(&name), key).unwrap(),
            above: String::new(),
            name,
        }
    }

    /// A CA below this one, with something changed. What it issues comes with its own certificate.
    pub fn below(&self, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let name = format!("test CA {}", uuid::Uuid::now_v7());
        let mut params = authority(&name);
        params.use_authority_key_identifier_extension = true;
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::signed_by(params, key, &self.issuer).unwrap();
        let above = issuer.pem() + &self.above;
        Self {
            issuer,
            above,
            name,
        }
    }

    /// Its common name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn certificate(&self) -> String {
        self.issuer.pem()
    }

    pub fn server(&self, host: &str) -> Pair {
        self.issue(&Wanted {
            dns: &[host],
            usage: ExtendedKeyUsagePurpose::ServerAuth,
            ..Wanted::default()
        })
    }

    pub fn caller(&self, uri: &str) -> Pair {
        self.issue(&Wanted {
            uris: &[uri],
            ..Wanted::default()
        })
    }

    pub fn issue(&self, wanted: &Wanted<'_>) -> Pair {
        self.issue_with(wanted, |_| {})
    }

    /// With something changed that can't be asked for.
    pub fn issue_with(
        &self,
        wanted: &Wanted<'_>,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Pair {
        let key = KeyPair::generate().unwrap();
        let mut params = params(wanted);
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Pair {
            certificate: certificate.pem() + &self.above,
            key: key.serialize_pem(),
        }
    }

    pub fn self_signed(wanted: &Wanted<'_>) -> Pair {
        Self::self_signed_with(wanted, |_| {})
    }

    pub fn self_signed_with(
        wanted: &Wanted<'_>,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Pair {
        let key = KeyPair::generate().unwrap();
        let mut params = params(wanted);
        change(&mut params);
        Pair {
            certificate: params.self_signed(&key).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    /// A revocation list of these serial numbers, whose next update is due at `until`.
    pub fn revocation_list(&self, serials: &[u64], until: OffsetDateTime) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2021, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2021, 1, 1),
            next_update: until,
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        roots
    }

    /// For a client that trusts this CA.
    pub fn client_config(
        &self,
        pair: Option<&Pair>,
        alpn: &[&str],
        versions: &[&'static SupportedProtocolVersion],
    ) -> ClientConfig {
        self.client_showing(pair.map(Pair::shown), alpn, versions)
    }

    /// For a client that shows this, whether it's a certificate or not.
    pub fn client_showing(
        &self,
        shown: Option<CertifiedKey>,
        alpn: &[&str],
        versions: &[&'static SupportedProtocolVersion],
    ) -> ClientConfig {
        self.client_by(default_provider(), shown, alpn, versions)
    }

    /// For a client with its own choice of cryptography.
    pub fn client_by(
        &self,
        provider: CryptoProvider,
        shown: Option<CertifiedKey>,
        alpn: &[&str],
        versions: &[&'static SupportedProtocolVersion],
    ) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(self.roots());
        let mut config = match shown {
            Some(shown) => {
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(shown)))
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }
}

impl Pair {
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(self.certificate.as_bytes())
            .collect::<Result<_, _>>()
            .unwrap()
    }

    /// As a client shows it.
    pub fn shown(&self) -> CertifiedKey {
        let key = default_provider()
            .key_provider
            .load_private_key(self.key())
            .unwrap();
        CertifiedKey::new(self.chain(), key)
    }

    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap()
    }

    /// For a server that asks for no client certificate.
    pub fn server_config(&self) -> ServerConfig {
        ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(self.chain(), self.key())
            .unwrap()
    }
}

fn authority(common: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(common);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn params(wanted: &Wanted<'_>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = name("test leaf");
    let uris = wanted
        .uris
        .iter()
        .map(|uri| SanType::URI((*uri).try_into().unwrap()));
    let dns = wanted
        .dns
        .iter()
        .map(|name| SanType::DnsName((*name).try_into().unwrap()));
    params.subject_alt_names = uris.chain(dns).collect();
    params.extended_key_usages = vec![wanted.usage.clone()];
    params.serial_number = Some(SerialNumber::from(wanted.serial));
    params.use_authority_key_identifier_extension = true;
    (params.not_before, params.not_after) = (wanted.from, wanted.until);
    if wanted.is_ca {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    }
    params
}

pub fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}
