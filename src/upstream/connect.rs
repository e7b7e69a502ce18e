//! From a host's name to a connection that hyper can use: DNS, TCP, TLS.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustls::ClientConfig;
use rustls::HandshakeKind;
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::ServerName;
use socket2::SockRef;
use socket2::TcpKeepalive;
use tokio::net::TcpStream;
use tokio::net::lookup_host;
use tokio::time::Instant;
use tokio::time::timeout_at;
use tokio_rustls::TlsConnector;

use crate::clock::Clock;
use crate::upstream::Error;
use crate::upstream::Settings;
use crate::upstream::Upstream;
use crate::upstream::wire::Socket;
use crate::upstream::wire::Stream;
use crate::upstream::wire::Wire;

/// TLS sessions that are remembered for each upstream.
const SESSIONS_MAX: usize = 64;

/// A peer that vanished without a word is found out after about a minute.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(30))
    .with_interval(Duration::from_secs(10))
    .with_retries(3);

/// The TLS side of an upstream. Verification can't be turned off.
///
/// # Errors
/// When the library refuses the settings.
pub(super) fn tls(
    settings: &Settings,
) -> Result<(TlsConnector, ServerName<'static>), rustls::Error> {
    // The provider is named, so that a second one in the tree could never be chosen by accident.
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(Arc::clone(&settings.roots.0))
        .with_no_client_auth();
    config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = ServerName::try_from(settings.base_url.host.to_string());
    let name = name.map_err(|_| {
        rustls::Error::General("the host's name can't be a server's name".to_owned())
    })?;
    Ok((TlsConnector::from(Arc::new(config)), name))
}

/// Resolves the name anew, and tries each address in turn: each has an equal share of the time that is left, so that one that
/// swallows packets doesn't hide the next. `first` says with which one to begin.
pub(super) async fn connect(
    upstream: &Upstream,
    clock: &Clock,
    deadline: Instant,
    first: usize,
) -> Result<(Wire, Socket), Error> {
    let resolved = timeout_at(deadline, addresses(&upstream.settings)).await;
    let mut addresses = resolved.map_err(|_| Error::ConnectTimeout)??;
    let mut last = Error::Resolve(io::Error::new(
        io::ErrorKind::NotFound,
        "the name has no address",
    ));
    let count = addresses.len();
    addresses.rotate_left(first % count.max(1));
    for (number, address) in addresses.into_iter().enumerate() {
        let now = clock.now();
        let share = deadline
            .saturating_duration_since(now)
            .div_f64((count - number) as f64);
        match timeout_at(now + share, try_address(upstream, address)).await {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(error)) => last = error,
            Err(_) => last = Error::ConnectTimeout,
        }
    }
    Err(last)
}

async fn try_address(upstream: &Upstream, address: SocketAddr) -> Result<(Wire, Socket), Error> {
    let with_address =
        |cause: io::Error| io::Error::new(cause.kind(), format!("{address}: {cause}"));
    let stream =
        TcpStream::connect(address)
            .await
            .map_err(|cause| match Errno::from_io_error(&cause) {
                // They say nothing of the host.
                Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    Error::Exhausted(with_address(cause))
                }
                _ => Error::Connect(with_address(cause)),
            })?;
    secure(upstream, stream)
        .await
        .map_err(|cause| Error::Tls(with_address(cause)))
}

/// Those that the operator wrote, or those that the name has just now and may lead to.
async fn addresses(settings: &Settings) -> Result<Vec<SocketAddr>, Error> {
    if !settings.resolve.is_empty() {
        return Ok(settings.resolve.clone());
    }
    let host = (&*settings.base_url.host, settings.base_url.port);
    let found = lookup_host(host).await.map_err(Error::Resolve)?.collect();
    settings.reach().filter(found).map_err(Error::Destination)
}

async fn secure(upstream: &Upstream, stream: TcpStream) -> io::Result<(Wire, Socket)> {
    // Neither is worth losing a connection for.
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(&stream).set_tcp_keepalive(&KEEPALIVE);
    let socket = Socket::new(stream);
    let stream = match &upstream.tls {
        Some((connector, name)) => {
            let stream = connector.connect(name.clone(), socket.clone()).await?;
            let resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
            upstream.handshakes[usize::from(resumed)].inc();
            Stream::Tls(Box::new(stream))
        }
        None => Stream::Plain(socket.clone()),
    };
    Ok((Wire::new(stream), socket))
}
