// SPDX-License-Identifier: Apache-2.0

//! Creates, enters and removes network namespaces. Their contents are set up in `node.rs`.
//!
//! A namespace is entered with setns(2) only: `ip netns exec` also mounts a new /sys, which hides bpffs and cgroupfs.

use std::fs::{self, File};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::cmd;

/// The directory in which named network namespaces are mounted.
pub const NETNS_DIR: &str = "/run/netns";

/// A named network namespace, which is removed, with every process in it, when this is dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
    keep: bool,
}

impl Netns {
    /// Creates a namespace, sets its `lo` up, and disables IPv6 duplicate address detection.
    ///
    /// # Errors
    /// Returns an error if the caller is not root, or if the name is in use.
    pub fn new(name: &str) -> Result<Self> {
        cmd::run(Command::new("ip").args(["netns", "add", name]), "")?;
        let path = Path::new(NETNS_DIR).join(name);
        let netns = Self {
            name: name.to_owned(),
            file: File::open(&path).with_context(|| format!("opening {}", path.display()))?,
            keep: false,
        };
        for conf in ["all", "default"] {
            netns.sysctl(&format!("net/ipv6/conf/{conf}/accept_dad"), "0")?;
        }
        netns.ip("link set lo up\n")?;
        Ok(netns)
    }

    /// Returns its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the command line that opens a shell in it.
    #[must_use]
    pub fn nsenter(&self) -> String {
        format!("nsenter --net={NETNS_DIR}/{}", self.name)
    }

    /// Makes the namespace stay when this is dropped, for debugging.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Runs `f` on a thread inside the namespace. Sockets that it creates stay in the namespace.
    ///
    /// # Panics
    /// Panics if `f` panics, or if the namespace cannot be entered.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let fd = self.file.as_raw_fd();
        std::thread::scope(|scope| {
            scope
                .spawn(move || {
                    enter(fd).expect("setns(2) as root into a namespace that is held open");
                    f()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Returns a command that will run inside the namespace.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let fd = self.file.as_raw_fd();
        // SAFETY: setns(2) is async-signal-safe, and the descriptor is open in the child until exec.
        unsafe { command.pre_exec(move || enter(fd)) };
        command
    }

    /// Runs a command line, split at white space, inside the namespace, and returns its output.
    ///
    /// # Errors
    /// Returns an error if the command does not exit with 0.
    pub fn exec(&self, line: &str) -> Result<String> {
        self.feed(line, "")
    }

    /// Works like [`Netns::exec`], with `input` on the standard input.
    ///
    /// # Errors
    /// Returns an error if the command does not exit with 0.
    pub fn feed(&self, line: &str, input: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command line")?;
        cmd::run(self.command(program).args(words), input)
            .with_context(|| format!("in netns {}", self.name))
    }

    /// Runs lines of `ip` commands in one process.
    ///
    /// # Errors
    /// Returns the error of the first line that fails.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.feed("ip -batch -", lines).map(drop)
    }

    /// Sets a sysctl of the namespace; the name is its path below /proc/sys.
    ///
    /// # Errors
    /// Returns an error if the kernel does not have it.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        // /proc/sys/net shows the namespace of the thread that reads it.
        self.run(|| fs::write(format!("/proc/sys/{key}"), value))
            .with_context(|| format!("setting sysctl {key}={value} in netns {}", self.name))
    }

    /// Returns the index of a link.
    ///
    /// # Errors
    /// Returns an error if there is no such link.
    pub fn ifindex(&self, link: &str) -> Result<u32> {
        let shown = self.exec(&format!("ip -o link show dev {link}"))?;
        let index = shown.split(':').next().unwrap_or_default();
        index
            .trim()
            .parse()
            .with_context(|| format!("parsing {shown:?}"))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if !self.keep {
            remove(&self.name);
        }
    }
}

/// Moves the calling thread into the namespace.
fn enter(fd: RawFd) -> std::io::Result<()> {
    // SAFETY: setns has no memory effects.
    if unsafe { libc::setns(fd, libc::CLONE_NEWNET) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

/// Kills every process in the named namespace and removes it. It is no error if it does not exist.
pub fn remove(name: &str) {
    let path = Path::new(NETNS_DIR).join(name);
    for pid in processes_in(&path) {
        // SAFETY: kill has no memory effects.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
    let _ = Command::new("ip").args(["netns", "del", name]).output();
}

/// Returns the processes, except this one, whose main thread is in the namespace that is mounted at `path`.
fn processes_in(path: &PathBuf) -> Vec<libc::pid_t> {
    let Ok(wanted) = fs::metadata(path) else {
        return Vec::new();
    };
    let own = std::process::id().to_string();
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|pid| *pid != own)
        .filter_map(|pid| pid.parse().ok())
        .filter(|pid: &libc::pid_t| {
            fs::metadata(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|ns| ns.ino() == wanted.ino() && ns.dev() == wanted.dev())
        })
        .collect()
}
