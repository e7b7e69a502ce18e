//! `pki`: a throwaway CA, certificates for the gateway, a stand-in host and callers, and a revocation list. For development alone.

use std::fs;
use std::fs::OpenOptions;
use std::io;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use anyhow::bail;
use clap::Args;
use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::CertificateRevocationListParams;
use rcgen::CertifiedIssuer;
use rcgen::DistinguishedName;
use rcgen::DnType;
use rcgen::ExtendedKeyUsagePurpose;
use rcgen::IsCa;
use rcgen::KeyIdMethod;
use rcgen::KeyPair;
use rcgen::KeyUsagePurpose;
use rcgen::SanType;
use rcgen::SerialNumber;
use time::Duration;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::clock::Clock;
use crate::identity::Identity;

/// What to make, and where.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// The folder to make the files in
    #[arg(long, value_name = "FOLDER", default_value = "tls")]
    out: PathBuf,
    /// A name or address of the gateway, beside localhost and 127.0.0.1; may be given several times
    #[arg(long, value_name = "HOST")]
    host: Vec<String>,
    /// A caller and the identity in its certificate; may be given several times
    #[arg(long, value_name = "NAME=IDENTITY", value_parser = caller, default_value = "orders=spiffe://shop.example/orders")]
    caller: Vec<(String, Identity)>,
    /// How long they hold
    #[arg(long, value_name = "DAYS", default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=3650))]
    days: u16,
}

fn caller(text: &str) -> Result<(String, Identity), String> {
    let (name, identity) = text.split_once('=').ok_or("write it as name=identity")?;
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if name == "gateway" || name == "callers-ca" {
        return Err(format!("{name} is the name of another file that is made"));
    }
    if name.is_empty() || !name.bytes().all(legal) {
        return Err("the name becomes a file's: letters, digits, - and _ alone".to_owned());
    }
    match Identity::parse(identity).map_err(|error| error.to_string())? {
        Identity::Uid(_) | Identity::Loopback => Err(format!(
            "{identity} is for listeners without TLS, and in no certificate"
        )),
        certified => Ok((name.to_owned(), certified)),
    }
}

/// A throwaway CA.
pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    from: OffsetDateTime,
    until: OffsetDateTime,
}

/// A certificate with its key, PEM.
pub(super) struct Pair {
    pub(super) certificate: String,
    pub(super) key: String,
}

impl Authority {
    /// Holds for `days` from an hour ago on, so that clocks may differ a little.
    pub(super) fn new(clock: &Clock, days: u16) -> anyhow::Result<Self> {
        let now =
            OffsetDateTime::from_unix_timestamp(i64::try_from(clock.since_epoch().as_secs())?)?;
        let (from, until) = (now - Duration::HOUR, now + Duration::days(days.into()));
        // Each has a name of its own, or a certificate of another one would seem to have a broken signature.
        let name = format!("kybio-gateway throwaway CA {}", Uuid::now_v7().simple());
        let mut params = params(&name, from, until);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(Self {
            issuer: CertifiedIssuer::self_signed(params, KeyPair::generate()?)?,
            from,
            until,
        })
    }

    /// The CA's own certificate, PEM.
    pub(super) fn certificate(&self) -> String {
        self.issuer.pem()
    }

    /// For a server of these names and addresses.
    pub(super) fn server(&self, hosts: &[&str]) -> anyhow::Result<Pair> {
        let names = hosts.iter().map(|host| match host.parse::<IpAddr>() {
            Ok(address) => Ok(SanType::IpAddress(address)),
            Err(_) => Ok(SanType::DnsName(
                (*host)
                    .try_into()
                    .with_context(|| format!("{host:?} is no host"))?,
            )),
        });
        let names = names.collect::<anyhow::Result<Vec<_>>>()?;
        self.issue(
            hosts.first().copied().unwrap_or("server"),
            names,
            ExtendedKeyUsagePurpose::ServerAuth,
        )
    }

    /// For a caller of this identity.
    pub(super) fn caller(&self, name: &str, identity: &Identity) -> anyhow::Result<Pair> {
        let san = match identity {
            Identity::Spiffe(uri) => SanType::URI(uri.as_str().try_into()?),
            Identity::Dns(host) => SanType::DnsName(host.as_str().try_into()?),
            Identity::Uid(_) | Identity::Loopback => {
                bail!("{identity} is in no certificate")
            }
        };
        self.issue(name, vec![san], ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn issue(
        &self,
        name: &str,
        names: Vec<SanType>,
        usage: ExtendedKeyUsagePurpose,
    ) -> anyhow::Result<Pair> {
        let key = KeyPair::generate()?;
        let mut params = params(name, self.from, self.until);
        params.subject_alt_names = names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Pair {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    /// A revocation list that revokes nothing yet, PEM.
    pub(super) fn revocation_list(&self) -> anyhow::Result<String> {
        let params = CertificateRevocationListParams {
            this_update: self.from,
            next_update: self.until,
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(params.signed_by(&self.issuer)?.pem()?)
    }
}

fn params(name: &str, from: OffsetDateTime, until: OffsetDateTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    (params.not_before, params.not_after) = (from, until);
    params
}

/// Writes a file that must not be there yet; keys for their owner alone.
pub(super) fn write_new(path: &Path, text: &str, private: bool) -> anyhow::Result<()> {
    let mode = if private { 0o600 } else { 0o644 };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .with_context(|| path.display().to_string())?;
    file.write_all(text.as_bytes())
        .with_context(|| path.display().to_string())
}

impl Pair {
    /// `NAME.pem` and `NAME.key` in a folder.
    pub(super) fn write(&self, folder: &Path, name: &str) -> anyhow::Result<()> {
        write_new(&folder.join(format!("{name}.key")), &self.key, true)?;
        write_new(
            &folder.join(format!("{name}.pem")),
            &self.certificate,
            false,
        )
    }
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let folder = &arguments.out;
    if folder.join("callers-ca.pem").exists() {
        bail!(
            "{} has certificates already: remove it, or name another --out",
            folder.display()
        );
    }
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let authority = Authority::new(&Clock::system(), arguments.days)?;
    let mut hosts = vec!["localhost", "127.0.0.1", "::1"];
    hosts.extend(arguments.host.iter().map(String::as_str));
    authority.server(&hosts)?.write(folder, "gateway")?;
    for (name, identity) in &arguments.caller {
        authority.caller(name, identity)?.write(folder, name)?;
    }
    write_new(
        &folder.join("callers.crl"),
        &authority.revocation_list()?,
        false,
    )?;
    write_new(
        &folder.join("callers-ca.pem"),
        &authority.certificate(),
        false,
    )?;
    let mut out = io::stdout().lock();
    let folder = folder.display();
    writeln!(
        out,
        "For development alone; they hold {} days.",
        arguments.days
    )?;
    writeln!(
        out,
        "  {folder}/callers-ca.pem          the CA of all of them; its key wasn't kept"
    )?;
    writeln!(
        out,
        "  {folder}/callers.crl             its revocation list, empty"
    )?;
    writeln!(
        out,
        "  {folder}/gateway.pem, .key       for {}",
        hosts.join(", ")
    )?;
    for (name, identity) in &arguments.caller {
        writeln!(
            out,
            "  {folder}/{name}.pem, .key  for the caller {identity}"
        )?;
    }
    Ok(ExitCode::SUCCESS)
}
