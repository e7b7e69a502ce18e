//! The file of a unix socket: made with its permissions, taken over only from the dead, and removed only while it's ours.

use std::fs;
use std::fs::File;
use std::fs::Permissions;
use std::fs::TryLockError;
use std::io;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::Mode;
use rustix::fs::fchmod;
use socket2::Domain;
use socket2::SockAddr;
use socket2::Socket;
use socket2::Type;

use crate::server::socket::BACKLOG;

/// A unix socket's file that this process has made. It's removed when this is dropped, if it's still the one that was made: by then
/// somebody may have put another gateway's in its place.
///
/// To be dropped while the socket is open. Nobody else takes the file over then, and its number can't be given to another file.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    device: u64,
    number: u64,
}

/// Why there's no socket.
#[derive(Debug)]
pub(super) enum Error {
    /// There's something there that isn't a socket. It's left alone.
    NotASocket,
    /// Somebody listens there, or is about to.
    Taken,
    /// The kernel says no.
    System(io::Error),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

/// A socket at `path` that listens and doesn't block, and whose file has this mode from its first moment on.
pub(super) fn bind(path: &Path, mode: u32) -> Result<(UnixListener, SocketFile), Error> {
    // Of two gateways that start at the same time, both could find the same dead one's file, and one remove the other's new one. The lock
    // ends with this function.
    let folder = path.parent().filter(|folder| *folder != Path::new(""));
    let folder = File::open(folder.unwrap_or_else(|| Path::new(".")))?;
    folder.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => Error::Taken,
        TryLockError::Error(error) => Error::System(error),
    })?;
    remove_dead(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    // Linux makes the file with the permissions that the socket has, less the umask,
    fchmod(&socket, Mode::from_raw_mode(mode)).map_err(io::Error::from)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let made = fs::symlink_metadata(path)?;
    let file = SocketFile {
        path: path.to_owned(),
        device: made.dev(),
        number: made.ino(),
    };
    // and these give back what the umask took. Nobody can connect before it listens.
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    socket.listen(BACKLOG)?;
    Ok((socket.into(), file))
}

/// Removes a socket's file if nobody listens there any more.
fn remove_dead(path: &Path) -> Result<(), Error> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.into()),
        Ok(found) if !found.file_type().is_socket() => return Err(Error::NotASocket),
        Ok(_) => {}
    }
    let caller = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A full queue would have us wait otherwise; it's somebody's.
    caller.set_nonblocking(true)?;
    match caller.connect(&SockAddr::unix(path)?) {
        Ok(()) => Err(Error::Taken),
        Err(error) => match error.kind() {
            ErrorKind::WouldBlock => Err(Error::Taken),
            ErrorKind::ConnectionRefused => Ok(fs::remove_file(path)?),
            ErrorKind::NotFound => Ok(()),
            _ => Err(error.into()),
        },
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.number));
        if ours {
            // One that stays is taken over at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Error;
    use super::bind;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_file_has_its_mode_whatever_was_there_before_and_goes_with_its_maker() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("gateway.sock");
        for mode in [0o600, 0o660, 0o777] {
            // What is left of a process that was killed.
            drop(std::os::unix::net::UnixListener::bind(&path).expect("the path is free"));
            let (socket, file) = bind(&path, mode).expect("the one before is dead");
            let found = fs::metadata(&path).expect("a file").permissions().mode();
            assert_eq!(found & 0o7777, mode, "{mode:o}");
            UnixStream::connect(&path).expect("it listens");
            drop(file);
            assert!(!path.exists());
            drop(socket);
        }
    }

    #[test]
    fn a_file_that_somebody_listens_on_is_taken() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("gateway.sock");
        let (socket, file) = bind(&path, 0o600).expect("the path is free");
        assert!(matches!(bind(&path, 0o600), Err(Error::Taken)));
        assert!(path.exists());
        // Once the file is gone the path is free, though the socket may still have its last callers.
        drop(file);
        let second = bind(&path, 0o600).expect("the path is free");
        drop((socket, second));
    }

    #[test]
    fn a_gateway_that_starts_at_the_same_moment_is_waited_for_by_nobody() {
        let folder = tempfile::tempdir().expect("a folder");
        let lock = fs::File::open(folder.path()).expect("a folder");
        lock.lock().expect("nobody else has it");
        let path = folder.path().join("gateway.sock");
        assert!(matches!(bind(&path, 0o600), Err(Error::Taken)));
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("precious");
        fs::write(&path, "precious").expect("written");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path().join("nowhere"), &link).expect("linked");
        for path in [&path, &link, &folder.path().to_owned()] {
            assert!(matches!(bind(path, 0o600), Err(Error::NotASocket)));
        }
        assert_eq!(fs::read(&path).expect("it's there"), b"precious");
        assert!(fs::symlink_metadata(&link).is_ok());
    }

    #[test]
    fn the_file_of_another_is_not_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("gateway.sock");
        let (socket, file) = bind(&path, 0o600).expect("the path is free");
        fs::remove_file(&path).expect("somebody removes it");
        let (other_socket, other) = bind(&path, 0o600).expect("the path is free");
        drop(file);
        assert!(path.exists(), "it's the other's");
        drop(other);
        assert!(!path.exists());
        drop((socket, other_socket));
    }
}
