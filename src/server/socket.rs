//! Listening sockets.

use std::net::SocketAddr;

use socket2::Domain;
use socket2::Protocol;
use socket2::Socket;
use socket2::Type;

use crate::server::Error;

/// Connections that wait in the kernel until they're taken.
const BACKLOG: i32 = 4_096;

/// A listening socket that doesn't block. `key` is the one that names its address.
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
    bound().map_err(|cause| Error::Bind {
        key,
        address,
        cause,
    })
}
