// SPDX-License-Identifier: Apache-2.0

//! Processes of this network namespace, from /proc, and their sockets. Processes of other PID namespaces are not
//! visible.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// The process ID.
    pub pid: u32,
    /// The words of the command line.
    pub words: Vec<String>,
    /// The environment as `NAME=VALUE`; empty if this process lacks the permission to read it.
    pub environment: Vec<String>,
}

impl Process {
    /// Returns the name of the program, from the command line.
    pub fn program(&self) -> &str {
        let path = self.words.first().map_or("", String::as_str);
        path.rsplit('/').next().unwrap_or(path)
    }
}

/// A process in a cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The process ID.
    pub pid: u32,
    /// The process ID of the parent.
    pub parent: u32,
    /// The name in /proc: at most 15 bytes of the program's name.
    pub name: String,
}

/// Returns the processes in a cgroup, specified by its directory. Processes in PID namespaces that are not visible from
/// here, and those that have ended in the meantime, are omitted.
///
/// # Errors
///
/// Returns an error if the list cannot be read.
pub fn in_cgroup(directory: &Path) -> io::Result<Vec<Member>> {
    let pids = fs::read_to_string(directory.join("cgroup.procs"))?;
    // Zero stands for a process that is not visible from here.
    let pids = pids.lines().filter_map(|line| line.parse().ok());
    Ok(pids.filter(|pid| *pid != 0).filter_map(member).collect())
}

/// Returns `None` if the process has ended.
fn member(pid: u32) -> Option<Member> {
    parse(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Parses /proc/PID/stat (proc(5)). The name is in parentheses and may contain any byte.
fn parse(pid: u32, stat: &str) -> Option<Member> {
    let (_, rest) = stat.split_once('(')?;
    let (name, rest) = rest.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    Some(Member {
        pid,
        parent: fields.nth(1)?.parse().ok()?,
        name: name.to_owned(),
    })
}

/// Returns all processes in the network namespace of this one, as far as this process has the permission to inspect
/// them.
///
/// # Errors
///
/// Returns an error if /proc cannot be read.
pub fn in_this_netns() -> io::Result<Vec<Process>> {
    let own = fs::read_link("/proc/thread-self/ns/net")?;
    let found = pids()?
        .into_iter()
        .filter(|(_, directory)| {
            fs::read_link(directory.join("ns/net")).is_ok_and(|netns| netns == own)
        })
        .map(|(pid, directory)| Process {
            pid,
            words: strings(&directory.join("cmdline")),
            environment: strings(&directory.join("environ")),
        })
        .filter(|process| !process.words.is_empty());
    Ok(found.collect())
}

/// Returns the process that holds each of these sockets, by the socket's inode.
#[must_use]
pub fn holders(inodes: &[u64]) -> BTreeMap<u64, (u32, String)> {
    let mut holders = BTreeMap::new();
    // A holder that is not visible is missing from the result.
    for (pid, directory) in pids().unwrap_or_default() {
        let Ok(descriptors) = fs::read_dir(directory.join("fd")) else {
            continue;
        };
        for descriptor in descriptors.flatten() {
            let Ok(target) = fs::read_link(descriptor.path()) else {
                continue;
            };
            let Some(inode) = socket_inode(target.as_os_str().as_bytes()) else {
                continue;
            };
            if inodes.contains(&inode) {
                let name = fs::read_to_string(directory.join("comm")).unwrap_or_default();
                holders.insert(inode, (pid, name.trim().to_owned()));
            }
        }
    }
    holders
}

/// Parses the inode from `socket:[123]`.
fn socket_inode(target: &[u8]) -> Option<u64> {
    let number = target.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

fn pids() -> io::Result<Vec<(u32, PathBuf)>> {
    pids_of(fs::read_dir("/proc")?)
}

/// Returns the directories of processes. A list that ends early is an error.
fn pids_of(
    entries: impl Iterator<Item = io::Result<fs::DirEntry>>,
) -> io::Result<Vec<(u32, PathBuf)>> {
    let mut pids = Vec::new();
    for entry in entries {
        let entry = entry?;
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        pids.extend(pid.map(|pid| (pid, entry.path())));
    }
    Ok(pids)
}

/// Returns the zero-terminated strings in a file, or an empty list if it cannot be read.
fn strings(path: &Path) -> Vec<String> {
    let content = fs::read(path).unwrap_or_default();
    content
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn this_process_is_found_with_its_sockets() {
        let own = std::process::id();
        let processes = in_this_netns().unwrap();
        assert!(processes.iter().any(|process| process.pid == own));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let path = format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&listener)
        );
        let target = fs::read_link(path).unwrap();
        let inode = socket_inode(target.as_os_str().as_bytes()).unwrap();
        assert_eq!(holders(&[inode])[&inode].0, own);
        assert_eq!(socket_inode(b"pipe:[7]"), None);
    }

    #[test]
    fn a_list_of_processes_that_ends_early_is_an_error() {
        let whole = || fs::read_dir("/proc").unwrap();
        assert!(!pids_of(whole()).unwrap().is_empty());
        let broken = std::iter::once(Err(io::Error::from_raw_os_error(libc::EIO)));
        assert!(pids_of(whole().take(20).chain(broken)).is_err());
    }

    #[test]
    fn a_name_may_hold_anything() {
        let read = parse(7, "7 (a) R (1) S 3 7 7 0 -1 4194560").unwrap();
        assert_eq!((read.parent, &*read.name), (3, "a) R (1"));
        assert_eq!(parse(7, "7 (a"), None);
        let own = member(std::process::id()).unwrap();
        assert_eq!(own.parent, std::os::unix::process::parent_id());
    }

    proptest! {
        #[test]
        fn any_text_is_read(text: String) {
            let _ = parse(7, &text);
        }
    }
}
