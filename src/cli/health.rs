//! `health`: is the gateway beside this command ready? For containers that have no shell and no curl.

use std::io;
use std::io::Write;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::process::ExitCode;
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

use crate::cli::Configured;
use crate::cli::say_faults;
use crate::config;

/// A healthy gateway answers in a millisecond.
const TIMEOUT: Duration = Duration::from_secs(3);

/// `/readyz` is a few words.
const BODY_BYTES_MAX: usize = 4_096;

pub(super) fn run(configured: &Configured) -> anyhow::Result<ExitCode> {
    let address = match config::admin_address(&configured.config, &configured.set) {
        Ok(address) => reachable(address),
        Err(faults) => return Ok(say_faults(&faults)),
    };
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let asked = runtime.block_on(async { timeout(TIMEOUT, ask(address)).await });
    let (status, body) = asked
        .with_context(|| format!("no answer from {address}"))?
        .with_context(|| format!("no answer from {address}"))?;
    write!(io::stdout().lock(), "{body}")?;
    Ok(if status == StatusCode::OK {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// An address that was bound for all interfaces is asked on this machine's own.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

async fn ask(address: SocketAddr) -> anyhow::Result<(StatusCode, String)> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get("/readyz")
        .header(header::HOST, address.to_string())
        .body(Empty::<Bytes>::new())?;
    let asked = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), BODY_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| anyhow::anyhow!(error))?;
        Ok((
            status,
            String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        ))
    };
    tokio::select! {
        answer = asked => answer,
        ended = connection => bail!("the connection ended: {ended:?}"),
    }
}
