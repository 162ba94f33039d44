// SPDX-License-Identifier: Apache-2.0

//! The directory of pins on a BPF file system.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// `BPF_FS_MAGIC` of linux/magic.h.
const MAGIC: i128 = 0xcafe_4a11;
/// A pin is made under a name with this ending and then renamed.
pub const UNFINISHED: &str = "-new";

/// Why the directory cannot hold pins.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It, or the nearest directory above that exists, is on another file system.
    #[error(
        "--bpffs={path} is not on a BPF file system; mount one \
         (`mount -t bpf bpf /sys/fs/bpf`, in Kubernetes a hostPath volume) or name a directory on one",
        path = path.display()
    )]
    NotBpffs {
        /// The directory as given.
        path: PathBuf,
    },
    /// It cannot be looked at, created or changed.
    #[error("cannot {what} {path}", path = path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Checks that `path` is, or would be created, on a BPF file system. Changes nothing.
///
/// # Errors
///
/// If it is not, or the file system cannot be read.
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

/// Creates a directory and those above it.
///
/// # Errors
///
/// The kernel's answer, or that it would not be on a BPF file system.
pub fn create_dir(path: &Path) -> Result<(), Error> {
    check(path)?;
    fs::create_dir_all(path).map_err(|source| Error::Io {
        what: "create",
        path: path.to_owned(),
        source,
    })
}

/// The name that a pin has until it takes the place of an older one.
#[must_use]
pub fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(UNFINISHED);
    path.with_file_name(name)
}

/// Pins something under a name, in the place of what was there at once.
///
/// # Errors
///
/// What `pin` answers, or the kernel.
pub fn replace<E: From<Error>>(
    path: &Path,
    pin: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let fresh = unfinished(path);
    unpin(&fresh)?;
    pin(&fresh)?;
    Ok(rename(&fresh, path)?)
}

/// Removes a pin. The pinned object is freed unless something else refers to it.
///
/// # Errors
///
/// The kernel's answer, unless there was no such pin.
pub fn unpin(path: &Path) -> Result<(), Error> {
    absent_is_fine(fs::remove_file(path), "unpin", path)
}

/// Gives a pin another name, in the place of one that has it.
///
/// # Errors
///
/// The kernel's answer.
pub fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    fs::rename(from, to).map_err(|source| Error::Io {
        what: "rename",
        path: from.to_owned(),
        source,
    })
}

/// Completes what an agent that was killed left in a directory of pins: a pin that was to be renamed gets
/// its name, unless an older one has it.
///
/// # Errors
///
/// The kernel's answer.
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

/// Removes a directory if nothing is in it.
///
/// # Errors
///
/// The kernel's answer, unless it is not there or holds what others put there.
pub fn remove_empty_dir(path: &Path) -> Result<(), Error> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        result => absent_is_fine(result, "remove", path),
    }
}

/// Removes a directory with everything in it: pins, and directories of pins. What is not on a BPF
/// file system stays.
///
/// # Errors
///
/// The kernel's answer, unless it is not there.
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

/// The names in a directory, sorted; none if it does not exist.
///
/// # Errors
///
/// The kernel's answer.
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

/// The kind of file system a path is on. The field is signed with one C library and unsigned with
/// another, hence the wide type.
fn file_system(path: &Path) -> io::Result<i128> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: `path` ends with a zero and `stat` has room for the result.
    if unsafe { libc::statfs(path.as_ptr(), stat.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: filled by the call above.
    Ok(i128::from(unsafe { stat.assume_init() }.f_type))
}
