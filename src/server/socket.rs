//! Listening sockets.

use std::io;
use std::io::ErrorKind;
use std::net::SocketAddr;

use socket2::Domain;
use socket2::Protocol;
use socket2::Socket;
use socket2::Type;

use crate::config;
use crate::listener::socket::Address;
use crate::listener::socket::Bound;
use crate::server::Error;
use crate::server::unix;
use crate::server::unix::SocketFile;

/// Connections that wait in the kernel until they're taken.
pub(super) const BACKLOG: i32 = 4_096;

/// Where callers connect.
#[derive(Debug)]
pub(super) struct Door {
    /// The file of a unix socket that we made; it's dropped before the socket is.
    pub(super) file: Option<SocketFile>,
    /// It listens, and doesn't block.
    pub(super) bound: Bound,
}

/// The listener's socket.
///
/// # Errors
/// When the address can't be had.
pub(super) fn door(config: &config::Door) -> Result<Door, Error> {
    const KEY: &str = "listener.address";
    match &config.address {
        Address::Tcp(address) => Ok(Door {
            file: None,
            bound: Bound::Tcp(bind(KEY, *address, config.reuse_port)?),
        }),
        Address::Unix(path) => match unix::bind(path, config.socket_mode) {
            Ok((socket, file)) => Ok(Door {
                file: Some(file),
                bound: Bound::Unix(socket),
            }),
            Err(unix::Error::NotASocket) => Err(Error::NotASocket(config.address.clone())),
            Err(unix::Error::Taken) => Err(Error::Bind {
                key: KEY,
                address: config.address.clone(),
                cause: ErrorKind::AddrInUse.into(),
            }),
            Err(unix::Error::System(cause)) => Err(Error::Bind {
                key: KEY,
                address: config.address.clone(),
                cause,
            }),
        },
    }
}

/// A listening TCP socket that doesn't block. `key` is the one that names its address.
///
/// # Errors
/// When the address can't be had.
pub(super) fn bind(
    key: &'static str,
    address: SocketAddr,
    reuse_port: bool,
) -> Result<std::net::TcpListener, Error> {
    let bound = || {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        // A restart isn't to wait for the connections of the one before it; on Linux this doesn't let two processes listen.
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(reuse_port)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    bound().map_err(|cause: io::Error| Error::Bind {
        key,
        address: Address::Tcp(address),
        cause,
    })
}
