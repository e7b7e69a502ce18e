//! `simulate`: the stand-in KYBIO host as a process of its own.

use std::fs;
use std::io;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use anyhow::bail;
use clap::Args;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use tokio::net::TcpListener;
use tokio::runtime;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::cli::signals::Signals;
use crate::clock::Clock;
use crate::config::environment;
use crate::observe::log;
use crate::simulator::Account;
use crate::simulator::QUOTA_PER_DAY;
use crate::simulator::Settings;
use crate::simulator::Simulator;

/// What to stand in for.
#[derive(Args, Debug)]
pub(super) struct Arguments {
    /// Where to listen
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9443")]
    address: SocketAddr,
    /// The certificate, PEM; without one it speaks plain HTTP, to this machine alone
    #[arg(long, value_name = "FILE", requires = "private_key")]
    certificate: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE", requires = "certificate")]
    private_key: Option<PathBuf>,
    /// An appId and the file with its appKey, or with several, one a line, that are all taken; may be given several times. Read again on
    /// SIGHUP. Never a live one
    #[arg(long = "account", value_name = "APP_ID=KEY_FILE", value_parser = account, required = true)]
    accounts: Vec<(String, PathBuf)>,
    /// Calls a day for each account, failures counted
    #[arg(long, value_name = "CALLS", default_value_t = QUOTA_PER_DAY)]
    quota_per_day: u32,
    /// Where to take control calls that set faults, plain HTTP, to this machine alone; see docs/simulator.md
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<SocketAddr>,
}

fn account(text: &str) -> Result<(String, PathBuf), String> {
    let (app_id, file) = text.split_once('=').ok_or("write it as app_id=key_file")?;
    Ok((app_id.to_owned(), file.into()))
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let tls = match (&arguments.certificate, &arguments.private_key) {
        (Some(certificate), Some(key)) => Some(acceptor(&read(certificate)?, &read(key)?)?),
        _ if arguments.address.ip().is_loopback() => None,
        _ => bail!(
            "plain HTTP is for this machine alone: give --certificate and --private-key, or a loopback --address"
        ),
    };
    if arguments
        .admin
        .is_some_and(|admin| !admin.ip().is_loopback())
    {
        bail!("control calls are for this machine alone: give a loopback --admin");
    }
    let settings = Settings {
        accounts: accounts(&arguments.accounts)?,
        quota_per_day: arguments.quota_per_day,
    };
    let log = log::Settings {
        format: log::Format::Human,
        level: log::Level::Info,
        plain: environment::no_color(),
    };
    let (subscriber, _, _writer) = log::subscriber(&log);
    let _ = tracing::subscriber::set_global_default(subscriber);
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(settings, tls, arguments))
}

fn accounts(arguments: &[(String, PathBuf)]) -> anyhow::Result<Vec<Account>> {
    let accounts = arguments.iter().map(|(app_id, file)| {
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let app_keys = text.lines().map(str::trim).filter(|key| !key.is_empty());
        let app_keys: Vec<_> = app_keys.map(ToOwned::to_owned).collect();
        if app_keys.is_empty() {
            bail!("{}: there's no key in it", file.display());
        }
        Ok(Account {
            app_id: app_id.clone(),
            app_keys,
        })
    });
    accounts.collect()
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}

async fn serve(
    settings: Settings,
    tls: Option<TlsAcceptor>,
    arguments: &Arguments,
) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::watch()?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let listener = bound(arguments.address).await?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let count = settings.accounts.len();
    let mut banner = format!(
        "A stand-in for a KYBIO host, with {count} account{}, at {scheme}://{}\n\
         Each answer's header x-kybio-simulator-answer says whether it is documented or assumed.\n",
        if count == 1 { "" } else { "s" },
        listener.local_addr()?
    );
    let admin = match arguments.admin {
        Some(address) => Some(bound(address).await?),
        None => None,
    };
    if let Some(admin) = &admin {
        banner.push_str(&format!(
            "It misbehaves when told to, for example with its next call:\n\
             curl -d '{{\"fault\":\"reset-after-reading\",\"calls\":1}}' http://{}/faults\n",
            admin.local_addr()?
        ));
    }
    io::stdout().lock().write_all(banner.as_bytes())?;
    let stop = CancellationToken::new();
    let simulator = Arc::new(Simulator::new(settings, Clock::system()));
    let serving = Arc::clone(&simulator).serve(listener, tls, stop.clone());
    let controlled = async {
        if let Some(admin) = admin {
            Arc::clone(&simulator).control(admin, stop.clone()).await;
        }
    };
    let changed = async {
        while hang_up.recv().await.is_some() {
            match accounts(&arguments.accounts) {
                Ok(accounts) => {
                    simulator.change_keys(accounts);
                    tracing::info!("keys read again");
                }
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "keys not read again");
                }
            }
        }
    };
    let ended = async {
        signals.wish_to_end().await;
        stop.cancel();
    };
    tokio::select! {
        _ = async { tokio::join!(serving, controlled, ended) } => {}
        () = changed => {}
    }
    Ok(ExitCode::SUCCESS)
}

async fn bound(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| address.to_string())
}

/// The TLS side of a stand-in host, which asks for no client certificate.
pub(super) fn acceptor(chain: &[u8], key: &[u8]) -> anyhow::Result<TlsAcceptor> {
    let chain = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<Vec<_>, _>>()
        .context("the certificate")?;
    let key = PrivateKeyDer::from_pem_slice(key).context("the private key")?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
