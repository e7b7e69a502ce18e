//! Where a caller is, as the log tells it.

use std::fmt;
use std::net::SocketAddr;

/// The other end of a caller's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remote {
    /// An address and a port.
    Tcp(SocketAddr),
    /// A process of this machine, as it was when it connected to a unix socket.
    Unix {
        /// Its number, if it has one in this process's namespace.
        pid: Option<i32>,
        /// Its user.
        uid: u32,
    },
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix {
                pid: Some(pid),
                uid,
            } => write!(f, "unix pid {pid} uid {uid}"),
            Self::Unix { pid: None, uid } => write!(f, "unix uid {uid}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Remote;

    #[test]
    fn each_place_has_one_text() {
        let tcp = Remote::Tcp(([127, 0, 0, 1], 4711).into());
        assert_eq!(tcp.to_string(), "127.0.0.1:4711");
        let unix = |pid| Remote::Unix { pid, uid: 1000 }.to_string();
        assert_eq!(unix(Some(42)), "unix pid 42 uid 1000");
        assert_eq!(unix(None), "unix uid 1000");
    }
}
