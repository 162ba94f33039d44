// SPDX-License-Identifier: Apache-2.0

//! Watches a directory of pins: the kernel reports when a pin is removed (inotify), and when a file system is mounted
//! or unmounted (`poll(2)` on mountinfo). The caller reads the pins to find out what has changed.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::bpffs::UNFINISHED;

const MOUNTS: &str = "/proc/self/mountinfo";
/// The events that remove a pin: the pin itself, its directory or its file system is removed.
const REMOVALS: u32 =
    libc::IN_DELETE | libc::IN_MOVED_FROM | libc::IN_DELETE_SELF | libc::IN_ONLYDIR;
/// The length of `struct inotify_event` of linux/inotify.h: watch, mask, cookie, and the length of the name that
/// follows.
const HEADER: usize = 16;

/// A watched directory.
pub struct Pins {
    root: PathBuf,
    inotify: AsyncFd<OwnedFd>,
    mounts: AsyncFd<File>,
    seen: Place,
}

/// The identity of a mounted BPF file system, which distinguishes it from a later mount at the same place.
#[derive(Debug, Default, PartialEq, Eq)]
struct Place {
    /// The lines of mountinfo whose mount points are ancestors of the directory.
    mounts: Vec<String>,
    /// The device and inode of the directory, or `None` if it does not exist.
    directory: Option<(u64, u64)>,
}

impl Pins {
    /// Watches the directories of pins below `root`, both existing and later ones.
    ///
    /// # Errors
    ///
    /// Returns an error if the kernel has no inotify, or if /proc is not mounted.
    pub fn watch(root: PathBuf) -> io::Result<Self> {
        // SAFETY: the call uses no memory of this process.
        let inotify = unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) };
        if inotify < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and has no other owner.
        let inotify = unsafe { OwnedFd::from_raw_fd(inotify) };
        // The file is opened before it is read, so that later changes are reported.
        let mounts = File::open(MOUNTS)?;
        // SAFETY: both values own their descriptors, which no other code closes.
        let (inotify, mounts) = unsafe {
            (
                AsyncFd::register_with_interest(inotify, Interest::READABLE)?,
                AsyncFd::register_with_interest(mounts, Interest::PRIORITY)?,
            )
        };
        Ok(Self {
            inotify,
            mounts,
            seen: Place::of(&root),
            root,
        })
    }

    /// Waits until a pin may have been removed. The future may be dropped while it waits.
    pub async fn removed(&mut self) {
        loop {
            self.add_watches();
            let gone = tokio::select! {
                changed = self.mounts.ready(Interest::PRIORITY) => match changed {
                    Ok(mut guard) => {
                        guard.clear_ready();
                        self.is_elsewhere()
                    }
                    Err(_) => std::future::pending().await,
                },
                removed = self.inotify.readable() => match removed {
                    Ok(mut guard) => {
                        matches!(guard.try_io(|fd| read(fd.get_ref())), Ok(Ok(true)))
                    }
                    Err(_) => std::future::pending().await,
                },
            };
            if gone {
                return;
            }
        }
    }

    /// Returns true if the pins are on another mount than before.
    fn is_elsewhere(&mut self) -> bool {
        let now = Place::of(&self.root);
        // A new directory does not mean that pins are lost.
        let lost = now.mounts != self.seen.mounts
            || (self.seen.directory.is_some() && now.directory != self.seen.directory);
        self.seen = now;
        lost
    }

    /// Watches the directories that exist. Existing watches are kept.
    fn add_watches(&mut self) {
        self.add_watch(&self.root);
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.add_watch(&entry.path());
            }
        }
        if self.seen.directory.is_none() {
            self.seen.directory = identity(&self.root);
        }
    }

    /// Adds a watch. If this fails, because the kernel limits the number of watches, the next resync finds lost pins.
    fn add_watch(&self, directory: &Path) {
        let Ok(path) = CString::new(directory.as_os_str().as_bytes()) else {
            return;
        };
        // SAFETY: the path ends with a zero byte.
        unsafe { libc::inotify_add_watch(self.inotify.as_raw_fd(), path.as_ptr(), REMOVALS) };
    }
}

impl Place {
    fn of(root: &Path) -> Self {
        let mounts = fs::read_to_string(MOUNTS).unwrap_or_default();
        Self {
            mounts: mounts_above(root, &mounts),
            directory: identity(root),
        }
    }
}

fn identity(directory: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(directory).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Returns the lines of mountinfo (proc(5)) whose mount points are ancestors of a path.
fn mounts_above(path: &Path, mountinfo: &str) -> Vec<String> {
    let is_above = |line: &&str| {
        let point = line.split(' ').nth(4);
        point.is_some_and(|point| path.starts_with(point.replace("\\040", " ")))
    };
    let above = mountinfo.lines().filter(is_above);
    above.map(str::to_owned).collect()
}

/// Reads the pending events. Returns true if a finished pin was removed.
fn read(inotify: &OwnedFd) -> io::Result<bool> {
    let mut buffer = [0_u8; 4096];
    // SAFETY: the buffer has space for the requested number of bytes.
    let length = unsafe {
        libc::read(
            inotify.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
        )
    };
    match usize::try_from(length) {
        Ok(length) => Ok(any_removed(&buffer[..length])),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

fn any_removed(mut events: &[u8]) -> bool {
    let mut removed = false;
    while let Some(header) = events.first_chunk::<HEADER>() {
        let length = u32::from_ne_bytes([header[12], header[13], header[14], header[15]]) as usize;
        let name = events.get(HEADER..HEADER + length).unwrap_or_default();
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        // An unfinished pin is not lost when it is renamed.
        removed |= !name.ends_with(UNFINISHED.as_bytes());
        events = events.get(HEADER + length..).unwrap_or_default();
    }
    removed
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
21 1 0:20 / / rw shared:1 - ext4 /dev/sda rw
30 21 0:29 / /sys/fs/bpf rw shared:9 - bpf bpf rw,mode=700
31 21 0:30 / /sys/fs/bpf-other rw - bpf bpf rw
32 21 0:31 / /a\\040b rw - bpf bpf rw
";

    fn ids(path: &str) -> Vec<String> {
        let lines = mounts_above(Path::new(path), MOUNTINFO);
        let ids = lines.iter().filter_map(|line| line.split(' ').next());
        ids.map(str::to_owned).collect()
    }

    #[test]
    fn mounts_above_a_directory() {
        assert_eq!(ids("/sys/fs/bpf/proxy-agent/v2"), ["21", "30"]);
        assert_eq!(ids("/a b/v1"), ["21", "32"]);
        assert_eq!(ids("/elsewhere"), ["21"]);
        assert!(mounts_above(Path::new("/x"), "garbage\n\n").is_empty());
    }

    fn event(name: &str) -> Vec<u8> {
        let mut bytes = vec![0; 12];
        let padded = (name.len() + 1).next_multiple_of(16);
        bytes.extend(u32::try_from(padded).unwrap().to_ne_bytes());
        bytes.extend(name.bytes());
        bytes.resize(HEADER + padded, 0);
        bytes
    }

    #[test]
    fn our_own_replacements_are_no_removals() {
        assert!(!any_removed(&event("7-new")));
        assert!(any_removed(&event("7")));
        assert!(any_removed(
            &[event("7-new"), event("CONNECTIONS")].concat()
        ));
        assert!(any_removed(&[0; HEADER]), "the directory itself");
        assert!(!any_removed(&[]));
    }
}
