// SPDX-License-Identifier: Apache-2.0

//! Creates cgroups of cgroup2 for processes of a node, as service managers and container runtimes do.

use std::fs;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::cmd;

/// The maximum time until the kernel has removed exited processes from a cgroup.
const REMOVAL: Duration = Duration::from_secs(10);

/// Returns the root of the cgroup2 hierarchy.
///
/// # Errors
/// Returns an error if there is no cgroup2 file system.
pub fn root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").context("reading /proc/mounts")?;
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|words| words.get(2) == Some(&"cgroup2"))
        .map(|words| PathBuf::from(words[1]))
        .context("no cgroup2 file system in /proc/mounts")
}

/// A cgroup below the root, which is removed when this is dropped: its processes must have exited by then.
#[derive(Debug)]
pub struct Cgroup {
    name: String,
    directory: PathBuf,
}

impl Cgroup {
    /// Creates a cgroup.
    ///
    /// # Errors
    /// Returns an error if there is no cgroup2 file system, or if it is not writable.
    pub fn new(name: &str) -> Result<Self> {
        let directory = root()?.join(name);
        fs::create_dir(&directory).with_context(|| format!("making {}", directory.display()))?;
        Ok(Self {
            name: name.to_owned(),
            directory,
        })
    }

    /// Returns the cgroup's path in the form in which the agent shows it.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/{}", self.name)
    }

    /// Makes a command run in the cgroup.
    ///
    /// # Errors
    /// Returns an error if the cgroup does not exist any more.
    pub fn enter(&self, command: &mut Command) -> Result<()> {
        let path = self.directory.join("cgroup.procs");
        let mut procs = fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        // SAFETY: write(2) is async-signal-safe, and the closure owns the descriptor.
        unsafe {
            // 0 stands for the writing process.
            command.pre_exec(move || procs.write_all(b"0"));
        }
        Ok(())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The cgroup is busy until its killed processes are gone.
        let removed = cmd::wait_until(REMOVAL, "the cgroup to be empty", || {
            Ok(fs::remove_dir(&self.directory).ok())
        });
        if let Err(error) = removed {
            eprintln!("{} stays: {error:#}", self.directory.display());
        }
    }
}
