// SPDX-License-Identifier: Apache-2.0

//! One agent per run directory.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process;

/// Why the agent may not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another agent holds the lock.
    #[error(
        "another proxy-agent ({holder}) runs with --run-dir={directory}; stop it, or give this one \
         directories of its own with --run-dir and --bpffs",
        directory = directory.display()
    )]
    Held {
        /// Its process, as far as it told.
        holder: String,
        /// The run directory.
        directory: PathBuf,
    },
    /// The lock cannot be used.
    #[error("cannot use {path} in --run-dir", path = path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Held until the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of a run directory, which is created if it is missing.
    ///
    /// # Errors
    ///
    /// If another agent holds it, or the directory cannot be used.
    pub fn take(run_dir: &Path) -> Result<Self, Error> {
        let path = run_dir.join("lock");
        let failed = |source| Error::Io {
            path: path.clone(),
            source,
        };
        fs::create_dir_all(run_dir).map_err(failed)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let read = file.read_to_string(&mut pid);
                let holder = match (read, pid.trim()) {
                    (Ok(_), pid) if !pid.is_empty() => format!("pid {pid}"),
                    _ => "pid unknown".to_owned(),
                };
                return Err(Error::Held {
                    holder,
                    directory: run_dir.to_owned(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        file.set_len(0).map_err(failed)?;
        file.rewind().map_err(failed)?;
        writeln!(file, "{}", process::id()).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

/// A running agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// Its process; none if it is too new to have told.
    pub pid: Option<u32>,
}

/// The agent that runs with this run directory.
///
/// The lock is taken and given back at once, shared, so that others who ask are not in the way.
///
/// # Errors
///
/// If the lock file is there and cannot be opened or locked.
pub fn holder(run_dir: &Path) -> io::Result<Option<Holder>> {
    let mut file = match File::open(run_dir.join("lock")) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid)?;
            let pid = pid.trim().parse().ok();
            Ok(Some(Holder { pid }))
        }
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_agent_is_refused_and_told_of_the_first() {
        let directory = std::env::temp_dir().join(format!("proxy-agent-lock-{}", process::id()));
        let first = Lock::take(&directory).unwrap();
        let error = Lock::take(&directory).unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&format!("pid {}", process::id())),
            "{error}"
        );
        let pid = Some(process::id());
        assert_eq!(holder(&directory).unwrap(), Some(Holder { pid }));
        drop(first);
        assert_eq!(holder(&directory).unwrap(), None);
        assert!(Lock::take(&directory).is_ok());
        fs::remove_dir_all(&directory).unwrap();
    }
}
