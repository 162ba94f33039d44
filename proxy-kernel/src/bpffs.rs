// SPDX-License-Identifier: Apache-2.0

//! The directory of pins on a BPF file system.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// `BPF_FS_MAGIC` of linux/magic.h.
const MAGIC: i128 = 0xcafe_4a11;
/// The suffix of the name under which a pin is created before it is renamed.
pub const UNFINISHED: &str = "-new";

/// The reason why the directory cannot hold pins.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory, or its nearest existing ancestor, is on another file system.
    #[error(
        "--bpffs={path} is not on a BPF file system; mount one \
         (`mount -t bpf bpf /sys/fs/bpf`, in Kubernetes a hostPath volume) or name a directory on one",
        path = path.display()
    )]
    NotBpffs {
        /// The configured directory.
        path: PathBuf,
    },
    /// The directory cannot be examined, created or changed.
    #[error("cannot {what} {path}", path = path.display())]
    Io {
        /// The attempted operation.
        what: &'static str,
        /// The file to which the operation was applied.
        path: PathBuf,
        /// The error that the kernel returned.
        #[source]
        source: io::Error,
    },
}

/// Checks that `path` is, or would be created, on a BPF file system. Changes nothing.
///
/// # Errors
///
/// Returns an error if it is not, or if the file system cannot be read.
pub fn check(path: &Path) -> Result<(), Error> {
    let existing = path
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(Path::new("/"));
    if file_system(existing).map_err(|source| Error::Io {
        what: "look at",
        path: existing.to_owned(),
        source,
    })? == MAGIC
    {
        Ok(())
    } else {
        Err(Error::NotBpffs {
            path: path.to_owned(),
        })
    }
}

/// Creates a directory and its ancestors.
///
/// # Errors
///
/// Returns the kernel's error, or an error if the directory would not be on a BPF file system.
pub fn create_dir(path: &Path) -> Result<(), Error> {
    check(path)?;
    fs::create_dir_all(path).map_err(|source| Error::Io {
        what: "create",
        path: path.to_owned(),
        source,
    })
}

/// Returns the name of a pin until it replaces an older one.
#[must_use]
pub fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(UNFINISHED);
    path.with_file_name(name)
}

/// Pins an object under a name and atomically replaces an existing pin.
///
/// # Errors
///
/// Returns the error of `pin` or of the kernel.
pub fn replace<E: From<Error>>(
    path: &Path,
    pin: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let fresh = unfinished(path);
    unpin(&fresh)?;
    pin(&fresh)?;
    Ok(rename(&fresh, path)?)
}

/// Removes a pin. The pinned object is freed unless another reference to it exists.
///
/// # Errors
///
/// Returns the kernel's error, unless it means that the pin does not exist.
pub fn unpin(path: &Path) -> Result<(), Error> {
    absent_is_fine(fs::remove_file(path), "unpin", path)
}

/// Renames a pin and replaces an existing one.
///
/// # Errors
///
/// Returns the kernel's error.
pub fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    fs::rename(from, to).map_err(|source| Error::Io {
        what: "rename",
        path: from.to_owned(),
        source,
    })
}

/// Completes the pins that a killed agent left unfinished in a directory: a pin that was to be renamed receives its
/// final name, unless an older pin has it.
///
/// # Errors
///
/// Returns the kernel's error.
pub fn finish_pins(directory: &Path) -> Result<(), Error> {
    for name in names(directory)? {
        let Some(finished) = name.strip_suffix(UNFINISHED) else {
            continue;
        };
        let (fresh, finished) = (directory.join(&name), directory.join(finished));
        if finished.exists() {
            unpin(&fresh)?;
        } else {
            rename(&fresh, &finished)?;
        }
    }
    Ok(())
}

/// Removes a directory if it is empty.
///
/// # Errors
///
/// Returns the kernel's error, unless the directory does not exist or contains files of other programs.
pub fn remove_empty_dir(path: &Path) -> Result<(), Error> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        result => absent_is_fine(result, "remove", path),
    }
}

/// Removes a directory with its pins and subdirectories. A directory that is not on a BPF file system is kept.
///
/// # Errors
///
/// Returns the kernel's error, unless the directory does not exist.
pub fn remove_dir(path: &Path) -> Result<(), Error> {
    let failed = |source| Error::Io {
        what: "look at",
        path: path.to_owned(),
        source,
    };
    match file_system(path) {
        Ok(MAGIC) => {}
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => return Ok(()),
    }
    absent_is_fine(fs::remove_dir_all(path), "remove", path)
}

/// Returns the names in a directory, sorted, or an empty list if it does not exist.
///
/// # Errors
///
/// Returns the kernel's error.
pub fn names(path: &Path) -> Result<Vec<String>, Error> {
    let failed = |source| Error::Io {
        what: "read",
        path: path.to_owned(),
        source,
    };
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<Vec<_>>>()
        .map_err(failed)?;
    names.sort_unstable();
    Ok(names)
}

fn absent_is_fine(result: io::Result<()>, what: &'static str, path: &Path) -> Result<(), Error> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(|source| Error::Io {
            what,
            path: path.to_owned(),
            source,
        }),
    }
}

/// Returns the type of a path's file system. The result is wide because the field is signed in one C library and
/// unsigned in another.
fn file_system(path: &Path) -> io::Result<i128> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: `path` ends with a zero byte, and `stat` has space for the result.
    if unsafe { libc::statfs(path.as_ptr(), stat.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above has filled the structure.
    Ok(i128::from(unsafe { stat.assume_init() }.f_type))
}
