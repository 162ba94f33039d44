// SPDX-License-Identifier: Apache-2.0

//! Listening Unix sockets: the mode of the socket file, the handling of an existing file, and the removal of the file.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;
use tokio::net::UnixListener;

use super::BACKLOG;

/// The mode of the socket file: the owner and its group may connect.
const MODE: u32 = 0o770;

/// The policy for an existing file with the socket's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// An existing socket is removed; any other file is an error.
    Remove,
    /// An existing file is an error.
    Keep,
}

/// The reason why a program cannot listen on a Unix socket.
#[derive(Debug, Error)]
pub enum UnixError {
    /// The file exists and is not a socket.
    #[error("{} exists and is no socket; remove it, or give another name with {flag}", path.display())]
    NoSocket {
        /// The path of the file.
        path: PathBuf,
        /// The flag that specifies the socket.
        flag: &'static str,
    },
    /// The socket file of a previous process cannot be removed.
    #[error("cannot remove the old socket {}; remove it, or give another name with {flag}", path.display())]
    Remove {
        /// The path of the file.
        path: PathBuf,
        /// The flag that specifies the socket.
        flag: &'static str,
        /// The error that the kernel returned.
        #[source]
        source: io::Error,
    },
    /// The kernel rejected the path.
    #[error("cannot listen on {}; its directory must exist and the name be free, or give another one with {flag}", path.display())]
    Listen {
        /// The path of the file.
        path: PathBuf,
        /// The flag that specifies the socket.
        flag: &'static str,
        /// The error that the kernel returned.
        #[source]
        source: io::Error,
    },
}

/// A listening Unix socket. Its file is removed when the listener is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    _file: SocketFile,
}

impl Listener {
    /// Listens on `path`, with mode 0770 for the file. Errors contain `flag`. Must be called within a runtime.
    ///
    /// # Errors
    /// Returns an error if another file with this name exists and is not removed, or if the kernel rejects the path.
    pub fn bind(path: &Path, flag: &'static str, existing: Existing) -> Result<Self, UnixError> {
        if existing == Existing::Remove {
            remove_socket(path, flag)?;
        }
        let failed = |source| UnixError::Listen {
            path: path.to_owned(),
            flag,
            source,
        };
        let socket = private_socket().map_err(failed)?;
        socket
            .bind(&SockAddr::unix(path).map_err(failed)?)
            .map_err(failed)?;
        let file = SocketFile::of(path).map_err(failed)?;
        // The process's umask has removed bits from the mode.
        fs::set_permissions(path, Permissions::from_mode(MODE)).map_err(failed)?;
        socket.listen(BACKLOG).map_err(failed)?;
        let socket = StdListener::from(OwnedFd::from(socket));
        Ok(Self {
            socket: UnixListener::from_std(socket).map_err(failed)?,
            _file: file,
        })
    }

    /// Returns the socket.
    #[must_use]
    pub const fn socket(&self) -> &UnixListener {
        &self.socket
    }
}

/// Creates a socket whose file never has more permissions than [`MODE`]. Linux takes the file's mode from the socket
/// when the socket is bound (`unix_bind_bsd` in `net/unix/af_unix.c`), so no other user can connect before the mode is
/// set.
fn private_socket() -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    let file = File::from(OwnedFd::from(socket));
    file.set_permissions(Permissions::from_mode(MODE))?;
    Ok(Socket::from(OwnedFd::from(file)))
}

fn remove_socket(path: &Path, flag: &'static str) -> Result<(), UnixError> {
    let path_and_flag = || (path.to_owned(), flag);
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            let (path, flag) = path_and_flag();
            return Err(UnixError::NoSocket { path, flag });
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        _ => {}
    }
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            let (path, flag) = path_and_flag();
            Err(UnixError::Remove { path, flag, source })
        }
        _ => Ok(()),
    }
}

/// The file of a socket. It is removed when this value is dropped, unless it has been replaced: a later process may
/// have created its own file there.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            identity: identity(path)?,
        })
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity) {
            // If the file cannot be removed here, the next process that listens on this path removes it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process;

    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("serve-unix-{}-{name}", process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn socket(&self) -> PathBuf {
            self.0.join("s")
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn bind(path: &Path, existing: Existing) -> Result<Listener, UnixError> {
        Listener::bind(path, "--uds-name", existing)
    }

    #[tokio::test]
    async fn the_file_has_its_mode_and_goes_with_the_listener() {
        let scratch = Scratch::new("mode");
        let path = scratch.socket();
        let listener = bind(&path, Existing::Keep).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o770);
        tokio::net::UnixStream::connect(&path).await.unwrap();
        listener.socket().accept().await.unwrap();
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn the_socket_of_a_predecessor_is_removed_only_if_asked() {
        let scratch = Scratch::new("old");
        let path = scratch.socket();
        drop(StdListener::bind(&path).unwrap());
        let error = bind(&path, Existing::Keep).unwrap_err();
        assert!(error.to_string().contains("--uds-name"), "{error}");
        let first = bind(&path, Existing::Remove).unwrap();
        let second = bind(&path, Existing::Remove).unwrap();
        // The file now belongs to the second listener.
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn only_sockets_are_removed() {
        let scratch = Scratch::new("file");
        let path = scratch.socket();
        fs::write(&path, "kept").unwrap();
        let error = bind(&path, Existing::Remove).unwrap_err();
        assert!(error.to_string().contains("no socket"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "kept");
    }

    #[tokio::test]
    async fn a_missing_directory_is_an_error() {
        let scratch = Scratch::new("missing");
        let path = scratch.0.join("no/such/s");
        let error = bind(&path, Existing::Remove).unwrap_err();
        assert!(error.to_string().contains("no/such/s"), "{error}");
    }
}
