// SPDX-License-Identifier: Apache-2.0

//! The lock that allows one agent per run directory.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::Duration;

/// The lock file's name in the run directory.
const FILE: &str = "lock";
/// Number of attempts and the delay between them: [`is_held`] takes the lock for a moment.
const TRIES: u32 = 3;
const APART: Duration = Duration::from_millis(10);

/// Why the agent may not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another agent holds the lock.
    #[error(
        "another proxy-agent ({holder}) runs with --run-dir={directory}; stop it, or give this one \
         a name of its own with --instance, or directories with --run-dir and --bpffs",
        directory = directory.display()
    )]
    Held {
        /// Its process, as far as known.
        holder: String,
        /// The run directory.
        directory: PathBuf,
    },
    /// The lock file could not be used.
    #[error("cannot use {path} in --run-dir", path = path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
}

/// Held until the process ends for any reason.
#[derive(Debug)]
pub struct Lock {
    file: File,
    directory: PathBuf,
}

impl Lock {
    /// Takes the lock of a run directory, which is created if it does not exist.
    ///
    /// # Errors
    ///
    /// If another agent holds it, or the file system returns an error.
    pub fn take(run_dir: &Path) -> Result<Self, Error> {
        let path = run_dir.join(FILE);
        loop {
            let lock = Self::take_once(run_dir, &path)?;
            // The last owner may have removed the file after it was opened here: its lock would exclude nobody.
            if is_same(&lock.file, &path) {
                return Ok(lock);
            }
        }
    }

    fn take_once(run_dir: &Path, path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Io {
            path: path.to_owned(),
            source,
        };
        fs::create_dir_all(run_dir).map_err(failed)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        let mut locked = file.try_lock();
        for _ in 1..TRIES {
            if !matches!(locked, Err(TryLockError::WouldBlock)) {
                break;
            }
            thread::sleep(APART);
            locked = file.try_lock();
        }
        match locked {
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
        Ok(Self {
            file,
            directory: run_dir.to_owned(),
        })
    }

    /// Whether an agent has run with this run directory since the last clean-up.
    pub fn was_used(run_dir: &Path) -> bool {
        run_dir.join(FILE).exists()
    }

    /// Releases the lock and removes the run directory. Returns false if it remains, as a mount point or with files of
    /// others.
    pub fn remove(self) -> bool {
        let file = fs::remove_file(self.directory.join(FILE));
        file.and_then(|()| fs::remove_dir(&self.directory)).is_ok()
    }
}

/// Whether a path still names an open file.
fn is_same(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// Whether an agent with this run directory runs.
///
/// # Errors
///
/// If the lock file cannot be used.
pub fn is_held(run_dir: &Path) -> Result<bool, Error> {
    let path = run_dir.join(FILE);
    let tried = match File::open(&path) {
        // Shared, so that concurrent calls do not see each other's lock.
        Ok(file) => file.try_lock_shared(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(Error::Io { path, source }),
    };
    match tried {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(source)) => Err(Error::Io { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_fails_and_names_the_first_holder() {
        let directory = std::env::temp_dir().join(format!("proxy-agent-lock-{}", process::id()));
        assert!(!is_held(&directory).unwrap());
        let first = Lock::take(&directory).unwrap();
        assert!(is_held(&directory).unwrap());
        let error = Lock::take(&directory).unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&format!("pid {}", process::id())),
            "{error}"
        );
        drop(first);
        assert!(!is_held(&directory).unwrap());
        assert!(Lock::was_used(&directory));
        assert!(Lock::take(&directory).unwrap().remove());
        assert!(!directory.exists() && !Lock::was_used(&directory));
    }
}
