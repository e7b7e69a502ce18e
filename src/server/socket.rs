//! Listening sockets.

use std::io;
use std::io::ErrorKind;
use std::net::SocketAddr;

use listenfd::ListenFd;
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

const LISTENER: &str = "listener.address";
const ADMIN: &str = "admin.address";

/// Where callers connect.
#[derive(Debug)]
pub(super) struct Door {
    /// The file of a unix socket that we made; it's dropped before the socket is.
    pub(super) file: Option<SocketFile>,
    /// It listens, and doesn't block.
    pub(super) bound: Bound,
    /// It belongs to whoever passed it, and so does what waits in its queue: the next process on it may be about to take that.
    pub(super) passed: bool,
}

/// The listener's socket: the one that was passed, or else one of our own.
///
/// # Errors
/// When the address can't be had, or the passed socket isn't what is configured.
pub(super) fn door(passed: Option<Bound>, config: &config::Door) -> Result<Door, Error> {
    if let Some(bound) = passed {
        check_passed(&bound, config)?;
        return Ok(Door {
            file: None,
            bound,
            passed: true,
        });
    }
    let (file, bound) = match &config.address {
        Address::Tcp(address) => (
            None,
            Bound::Tcp(bind(LISTENER, *address, config.reuse_port)?),
        ),
        Address::Unix(path) => {
            let bound = unix::bind(path, config.socket_mode);
            let (socket, file) = bound.map_err(|error| {
                let cause = match error {
                    unix::Error::NotASocket => return Error::NotASocket(config.address.clone()),
                    unix::Error::Taken => ErrorKind::AddrInUse.into(),
                    unix::Error::System(cause) => cause,
                };
                Error::Bind {
                    key: LISTENER,
                    address: config.address.clone(),
                    cause,
                }
            })?;
            (Some(file), Bound::Unix(socket))
        }
    };
    Ok(Door {
        file,
        bound,
        passed: false,
    })
}

/// The admin's socket: the one that was passed, or else one of our own.
///
/// # Errors
/// When the address can't be had, or the passed socket isn't TCP.
pub(super) fn admin(
    passed: Option<Bound>,
    address: SocketAddr,
) -> Result<std::net::TcpListener, Error> {
    let Some(bound) = passed else {
        return bind(ADMIN, address, false);
    };
    warn_if_elsewhere(ADMIN, &Address::Tcp(address), &bound.address()?);
    match bound {
        Bound::Tcp(socket) => Ok(socket),
        Bound::Unix(_) => Err(Error::Passed {
            key: ADMIN,
            fault: "is a unix socket, and has to be TCP".to_owned(),
        }),
    }
}

/// Sockets that whoever started this process had bound already (sd_listen_fds(3)), such as systemd for a `.socket` unit. The first is
/// the listener's, a second one the admin's.
#[derive(Debug, Default)]
pub struct Passed {
    /// The listener's.
    pub(super) listener: Option<Bound>,
    /// The admin's.
    pub(super) admin: Option<Bound>,
}

impl Passed {
    /// Takes them, if there are any, and the environment's word of them, so that nobody else does. To be called while there is one thread
    /// alone, because others might be reading the environment.
    ///
    /// # Errors
    /// When what was passed isn't one or two sockets that listen.
    pub fn take() -> Result<Self, Error> {
        let mut descriptors = ListenFd::from_env();
        let count = descriptors.len();
        if count > 2 {
            return Err(Error::Passed {
                key: LISTENER,
                fault: format!(
                    "is one of {count}; the first is the listener's, a second one the admin's, and there is no use for more"
                ),
            });
        }
        Ok(Self {
            listener: taken(&mut descriptors, 0, LISTENER)?,
            admin: taken(&mut descriptors, 1, ADMIN)?,
        })
    }
}

fn taken(
    descriptors: &mut ListenFd,
    index: usize,
    key: &'static str,
) -> Result<Option<Bound>, Error> {
    let fault = |fault: &str| Error::Passed {
        key,
        fault: fault.to_owned(),
    };
    let tcp = descriptors.take_tcp_listener(index);
    let either = tcp
        .map(|socket| socket.map(Bound::Tcp))
        .or_else(|_| Ok(descriptors.take_unix_listener(index)?.map(Bound::Unix)));
    let taken = either.map_err(|_: io::Error| fault("is neither TCP nor a unix stream socket"))?;
    if let Some(bound) = &taken {
        if !bound.is_listening()? {
            return Err(fault("doesn't listen"));
        }
        // Whoever passed it may have had no use for that.
        bound.set_nonblocking()?;
    }
    Ok(taken)
}

/// A socket of another kind would let in others than configuration says.
fn check_passed(bound: &Bound, config: &config::Door) -> Result<(), Error> {
    let (found, wanted) = (bound.address()?, &config.address);
    let fault = |fault| Error::Passed {
        key: LISTENER,
        fault,
    };
    match (&found, wanted) {
        (Address::Tcp(found), Address::Unix(_)) => {
            return Err(fault(format!(
                "is TCP, {found}, but a unix socket is configured, {wanted}"
            )));
        }
        (Address::Unix(_), Address::Tcp(_)) => {
            return Err(fault(format!(
                "is a unix socket, {found}, but TCP is configured, {wanted}"
            )));
        }
        (Address::Tcp(address), Address::Tcp(_))
            if config.terms.is_none() && !address.ip().is_loopback() =>
        {
            return Err(fault(format!(
                "is at {address}, and without TLS it has to be on loopback"
            )));
        }
        (Address::Tcp(_), Address::Tcp(_)) | (Address::Unix(_), Address::Unix(_)) => {}
    }
    warn_if_elsewhere(LISTENER, wanted, &found);
    Ok(())
}

/// The passed socket holds, but whoever configured another address should know.
fn warn_if_elsewhere(key: &str, wanted: &Address, found: &Address) {
    let same = match (wanted, found) {
        (Address::Tcp(wanted), Address::Tcp(found)) => {
            wanted.ip() == found.ip() && [0, found.port()].contains(&wanted.port())
        }
        (Address::Unix(wanted), Address::Unix(found)) => {
            wanted == found
                || matches!((wanted.canonicalize(), found.canonicalize()), (Ok(one), Ok(other)) if one == other)
        }
        _ => true,
    };
    if !same {
        tracing::warn!(key, configured = %wanted, passed = %found, "the socket that was passed is at another address than the configured one: the passed one holds");
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
