//! The sockets that callers connect to, TCP or unix: where one is, and who connects to it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::net;
use std::path::Path;
use std::path::PathBuf;

use socket2::SockRef;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::net::UnixListener;
use tokio::net::UnixStream;

use crate::identity::Presented;
use crate::observe::remote::Remote;

/// Where callers connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// An address and a port.
    Tcp(SocketAddr),
    /// A unix socket's file.
    Unix(PathBuf),
}

/// What the address of a unix socket begins with.
pub const UNIX: &str = "unix:";

impl Address {
    /// The address and port, if it has them.
    #[must_use]
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

/// A socket that listens, but belongs to no runtime yet.
#[derive(Debug)]
pub enum Bound {
    /// TCP.
    Tcp(std::net::TcpListener),
    /// Unix.
    Unix(net::UnixListener),
}

impl Bound {
    /// Where it is.
    ///
    /// # Errors
    /// When the kernel doesn't say.
    pub fn address(&self) -> io::Result<Address> {
        match self {
            Self::Tcp(socket) => socket.local_addr().map(Address::Tcp),
            Self::Unix(socket) => {
                let address = socket.local_addr()?;
                let path = address.as_pathname().unwrap_or_else(|| Path::new(""));
                Ok(Address::Unix(path.to_owned()))
            }
        }
    }

    /// The next connection that the kernel has taken for us by now, and where it comes from. Asked of the kernel itself: what a runtime
    /// knows of the socket may be a moment old. Called within a runtime.
    ///
    /// # Errors
    /// When there's none, or the kernel won't give it.
    pub fn accept(&self) -> io::Result<(Stream, Remote)> {
        loop {
            let accepted = match self {
                Self::Tcp(socket) => socket.accept().and_then(|(stream, address)| {
                    stream.set_nonblocking(true)?;
                    Ok((
                        Stream::Tcp(TcpStream::from_std(stream)?),
                        Remote::Tcp(address),
                    ))
                }),
                Self::Unix(socket) => socket.accept().and_then(|(stream, _)| {
                    stream.set_nonblocking(true)?;
                    identified(UnixStream::from_std(stream)?)
                }),
            };
            match accepted {
                // One that has gone meanwhile hides none that is behind it.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                accepted => return accepted,
            }
        }
    }

    /// It listens: connections can come.
    ///
    /// # Errors
    /// When the kernel doesn't say.
    pub fn is_listening(&self) -> io::Result<bool> {
        match self {
            Self::Tcp(socket) => SockRef::from(socket).is_listener(),
            Self::Unix(socket) => SockRef::from(socket).is_listener(),
        }
    }

    /// Nobody waits in the kernel for the next connection.
    ///
    /// # Errors
    /// When the kernel says no.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.set_nonblocking(true),
            Self::Unix(socket) => socket.set_nonblocking(true),
        }
    }

    /// The same socket once more, with the same queue.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(socket) => socket.try_clone().map(Self::Tcp),
            Self::Unix(socket) => socket.try_clone().map(Self::Unix),
        }
    }
}

/// A socket that listens, in a runtime.
#[derive(Debug)]
pub enum Socket {
    /// TCP.
    Tcp(TcpListener),
    /// Unix.
    Unix(UnixListener),
}

impl Socket {
    /// Called within the runtime that waits for connections. The socket doesn't block.
    ///
    /// # Errors
    /// When the runtime can't watch it.
    pub fn from_bound(bound: Bound) -> io::Result<Self> {
        match bound {
            Bound::Tcp(socket) => TcpListener::from_std(socket).map(Self::Tcp),
            Bound::Unix(socket) => UnixListener::from_std(socket).map(Self::Unix),
        }
    }

    /// The next connection, and where it comes from. No connection is lost when this isn't waited for to its end.
    ///
    /// # Errors
    /// When the kernel won't give one, mostly for want of descriptors.
    pub async fn accept(&self) -> io::Result<(Stream, Remote)> {
        match self {
            Self::Tcp(socket) => {
                let (stream, address) = socket.accept().await?;
                Ok((Stream::Tcp(stream), Remote::Tcp(address)))
            }
            Self::Unix(socket) => {
                let (stream, _) = socket.accept().await?;
                identified(stream)
            }
        }
    }

    /// The socket without its runtime.
    ///
    /// # Errors
    /// When the runtime won't let go of it.
    pub fn into_bound(self) -> io::Result<Bound> {
        match self {
            Self::Tcp(socket) => socket.into_std().map(Bound::Tcp),
            Self::Unix(socket) => socket.into_std().map(Bound::Unix),
        }
    }
}

/// Who connected to a unix socket.
fn identified(stream: UnixStream) -> io::Result<(Stream, Remote)> {
    // Of the moment when it connected: what the process has become since then doesn't change it.
    let credentials = stream.peer_cred()?;
    let remote = Remote::Unix {
        // 0 is a process of another namespace.
        pid: credentials.pid().filter(|pid| *pid != 0),
        uid: credentials.uid(),
    };
    Ok((Stream::Unix(stream), remote))
}

/// A connection that was taken.
#[derive(Debug)]
pub enum Stream {
    /// TCP.
    Tcp(TcpStream),
    /// Unix.
    Unix(UnixStream),
}

/// What a connection without TLS says of its other end; `None` of one that has no business here: a loopback address can be reached from
/// elsewhere where the kernel is told to route it (`route_localnet`).
#[must_use]
pub fn presented(remote: Remote) -> Option<Presented> {
    match remote {
        Remote::Unix { uid, .. } => Some(Presented::Uid(uid)),
        Remote::Tcp(address) if address.ip().is_loopback() => Some(Presented::Loopback),
        Remote::Tcp(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::Address;
    use super::presented;
    use crate::identity::Presented;
    use crate::observe::remote::Remote;
    use std::net::SocketAddr;

    #[test]
    fn an_address_is_told_as_it_is_written() {
        let tcp: SocketAddr = "127.0.0.1:8443".parse().expect("an address");
        assert_eq!(Address::Tcp(tcp).to_string(), "127.0.0.1:8443");
        assert_eq!(
            Address::Unix("/run/a.sock".into()).to_string(),
            "unix:/run/a.sock"
        );
    }

    #[test]
    fn without_tls_a_user_and_this_machine_are_told_apart_and_nobody_else_is_let_in() {
        let unix = Remote::Unix { pid: None, uid: 7 };
        assert_eq!(presented(unix), Some(Presented::Uid(7)));
        for (from, known) in [
            ("127.0.0.1:1", Some(Presented::Loopback)),
            ("127.1.2.3:1", Some(Presented::Loopback)),
            ("[::1]:1", Some(Presented::Loopback)),
            ("192.0.2.1:1", None),
            ("0.0.0.0:1", None),
            ("[2001:db8::1]:1", None),
            // Such a socket listens on IPv4 too, and isn't the machine's alone.
            ("[::ffff:127.0.0.1]:1", None),
        ] {
            let remote = Remote::Tcp(from.parse().expect("an address"));
            assert_eq!(presented(remote), known, "{from}");
        }
    }
}
