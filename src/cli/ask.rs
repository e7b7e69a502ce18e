//! Asks the gateway beside this command, at its admin address.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use anyhow::bail;
use bytes::Bytes;
use http::Request;
use http::StatusCode;
use http::header;
use http_body_util::BodyExt;
use http_body_util::Empty;
use http_body_util::Limited;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::runtime;
use tokio::time::timeout;

/// A healthy gateway answers in a millisecond.
const TIMEOUT: Duration = Duration::from_secs(3);

/// What's at this path, as text of at most so many bytes.
///
/// # Errors
/// When no whole answer comes in time.
pub(super) fn get(
    address: SocketAddr,
    path: &str,
    bytes_max: usize,
) -> anyhow::Result<(StatusCode, String)> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let asked = runtime.block_on(async { timeout(TIMEOUT, ask(address, path, bytes_max)).await });
    asked
        .with_context(|| format!("no answer from {address}"))?
        .with_context(|| format!("no answer from {address}"))
}

/// An address that was bound for all interfaces is asked on this machine's own.
pub(super) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

async fn ask(
    address: SocketAddr,
    path: &str,
    bytes_max: usize,
) -> anyhow::Result<(StatusCode, String)> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path)
        .header(header::HOST, address.to_string())
        .body(Empty::<Bytes>::new())?;
    let asked = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), bytes_max)
            .collect()
            .await
            .map_err(|error| anyhow::anyhow!(error))?;
        Ok((
            status,
            String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        ))
    };
    let mut asked = std::pin::pin!(asked);
    tokio::select! {
        answer = &mut asked => answer,
        ended = connection => match ended {
            // Who closes after the answer has sent it.
            Ok(()) => asked.await,
            Err(error) => bail!("the connection ended: {error}"),
        },
    }
}
