// SPDX-License-Identifier: Apache-2.0

//! The names of the objects that a run creates on the machine, and the removal of leftovers of killed runs.
//!
//! Every process that uses the harness holds a lock on `/run/proxy-agent-tests/<pid>.lock` as long as it runs. An
//! object with the process ID of a lock that no process holds is a leftover.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};

use crate::{cgroup, netns};

/// The directory below which every node has its own directory.
pub const STATE_DIR: &str = "/run/proxy-agent-tests";

/// Returns a name for a node that no other node on this machine has: `<pid>-<n>`.
///
/// The first call acquires this process's lock and removes the leftovers of earlier runs.
///
/// # Errors
/// Returns an error if the state directory cannot be written, for example because the user is not root.
pub fn unique_id() -> Result<String> {
    static LOCK: OnceLock<Result<File, String>> = OnceLock::new();
    static NEXT: AtomicU32 = AtomicU32::new(0);
    LOCK.get_or_init(|| {
        let lock = take_own_lock().map_err(|e| format!("{e:#}"))?;
        let _ = remove();
        // SAFETY: the function is `extern "C"` and does not unwind.
        unsafe { libc::atexit(at_exit) };
        Ok(lock)
    })
    .as_ref()
    .map_err(|e| anyhow::anyhow!("{e}"))?;
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    Ok(format!("{}-{n}", std::process::id()))
}

/// Immediately removes everything with the ID of this process, for an exit on a signal.
pub fn remove_own() {
    remove_of(&std::process::id().to_string());
    remove_state_dir();
}

/// Removes the state directory; this fails, as intended, while other runs have files in it.
fn remove_state_dir() {
    let _ = fs::remove_dir(STATE_DIR);
}

/// Returns true if the namespaces of failed tests are kept: `PROXY_AGENT_TEST_KEEP=1`.
#[must_use]
pub fn keep_failed() -> bool {
    std::env::var_os("PROXY_AGENT_TEST_KEEP").is_some_and(|value| value == "1")
}

extern "C" fn at_exit() {
    if !keep_failed() {
        remove_own();
    }
}

/// Removes the leftovers of processes that have exited; returns the number of those processes.
#[must_use]
pub fn remove() -> usize {
    let mut pids: Vec<String> = names_in(netns::NETNS_DIR)
        .filter_map(|name| owner_of_netns(&name).map(str::to_owned))
        .chain(names_in(STATE_DIR).filter_map(|name| owner_of_state(&name).map(str::to_owned)))
        .collect();
    pids.sort_unstable();
    pids.dedup();
    let mut removed = 0;
    for pid in &pids {
        match Owner::of(pid) {
            Owner::Alive => {}
            // The lock is held until the leftovers are gone.
            Owner::Dead(_lock) => {
                remove_of(pid);
                removed += 1;
            }
        }
    }
    if removed > 0 {
        remove_state_dir();
    }
    removed
}

fn lock_path(pid: &str) -> PathBuf {
    Path::new(STATE_DIR).join(format!("{pid}.lock"))
}

fn take_own_lock() -> Result<File> {
    let path = lock_path(&std::process::id().to_string());
    loop {
        fs::create_dir_all(STATE_DIR)
            .with_context(|| format!("creating {STATE_DIR}: the tests and the demo need root"))?;
        let file = match File::create(&path) {
            // Another run has just removed the empty directory.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file.with_context(|| format!("creating {}", path.display()))?,
        };
        // Until the file is locked, another process that removes leftovers may mistake it for one; the loop tries again
        // then.
        let is_ours = try_lock(&file)
            && fs::metadata(&path).is_ok_and(|now| {
                file.metadata()
                    .is_ok_and(|locked| locked.ino() == now.ino())
            });
        if is_ours {
            return Ok(file);
        }
    }
}

fn try_lock(file: &File) -> bool {
    // SAFETY: flock has no memory effects.
    unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) == 0 }
}

/// The state of a process that used the harness.
enum Owner {
    Alive,
    /// It has exited. The value is its lock, or `None` if the lock file is gone, too.
    Dead(Option<File>),
}

impl Owner {
    fn of(pid: &str) -> Self {
        if pid == std::process::id().to_string() {
            return Self::Alive;
        }
        match OpenOptions::new().write(true).open(lock_path(pid)) {
            Ok(file) if try_lock(&file) => Self::Dead(Some(file)),
            Ok(_) => Self::Alive,
            Err(_) => Self::Dead(None),
        }
    }
}

fn remove_of(pid: &str) {
    // The names have the same form as those of namespaces. A cgroup with processes remains until they have exited.
    if let Ok(root) = cgroup::root() {
        for name in names_in(&root).filter(|name| owner_of_netns(name) == Some(pid)) {
            let _ = fs::remove_dir(root.join(name));
        }
    }
    for name in names_in(netns::NETNS_DIR).filter(|name| owner_of_netns(name) == Some(pid)) {
        netns::remove(&name);
    }
    for name in names_in(STATE_DIR).filter(|name| owner_of_state(name) == Some(pid)) {
        remove_state(&Path::new(STATE_DIR).join(name));
    }
}

/// Removes a node's directory with the file systems mounted in it, or a lock.
pub fn remove_state(path: &Path) {
    if path.is_dir() {
        for mounted in names_in(path) {
            unmount(&path.join(mounted));
        }
        let _ = fs::remove_dir_all(path);
    } else {
        let _ = fs::remove_file(path);
    }
}

fn unmount(path: &Path) {
    use std::os::unix::ffi::OsStrExt as _;
    if let Ok(path) = std::ffi::CString::new(path.as_os_str().as_bytes()) {
        // SAFETY: the path is a C string that outlives the call. It is no error if nothing is mounted.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
}

fn names_in(dir: impl AsRef<Path>) -> impl Iterator<Item = String> {
    fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
}

/// Returns the process ID in `pa-<pid>-<n>-<role>`.
fn owner_of_netns(name: &str) -> Option<&str> {
    let pid = name.strip_prefix("pa-")?.split('-').next()?;
    pid.bytes().all(|b| b.is_ascii_digit()).then_some(pid)
}

/// Returns the process ID in `<pid>-<n>` or `<pid>.lock`.
fn owner_of_state(name: &str) -> Option<&str> {
    let pid = name.split(['-', '.']).next()?;
    (!pid.is_empty() && pid.bytes().all(|b| b.is_ascii_digit())).then_some(pid)
}

#[cfg(test)]
mod tests {
    use super::{owner_of_netns, owner_of_state};

    #[test]
    fn owners_are_read_from_names() {
        assert_eq!(owner_of_netns("pa-123-0-node"), Some("123"));
        assert_eq!(owner_of_netns("pa-x-0-node"), None);
        assert_eq!(owner_of_netns("cni-123-0"), None);
        assert_eq!(owner_of_state("123-0"), Some("123"));
        assert_eq!(owner_of_state("123.lock"), Some("123"));
        assert_eq!(owner_of_state("other"), None);
    }
}
