// SPDX-License-Identifier: Apache-2.0

//! Runs the iptables programs with a time limit. Errors contain the command and its output. `installed.rs` finds the
//! programs.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::time;

/// The time after which a program is killed. It is longer than the wait for the lock.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The option that limits the wait for the xtables lock to 5 s.
const WAIT: &str = "--wait=5";

/// The exit status of iptables if it could not acquire a resource, such as its lock.
/// <https://git.netfilter.org/iptables/tree/include/xtables.h> (`RESOURCE_PROBLEM`)
const RESOURCE_PROBLEM: i32 = 4;

/// The programs for one family in one flavour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// The program that prints tables.
    pub save: PathBuf,
    /// The program that changes a table.
    pub restore: PathBuf,
}

/// The reason why a program failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The program could not be started, or its input or output failed.
    #[error("cannot run `{command}`")]
    Run {
        /// The command line.
        command: String,
        /// The error that the kernel returned.
        #[source]
        source: io::Error,
    },
    /// The program did not end within the time limit.
    #[error(
        "`{command}` did not end within {} s and was killed; the next pass tries again",
        TIMEOUT.as_secs()
    )]
    Timeout {
        /// The command line.
        command: String,
    },
    /// Another process held the xtables lock the whole time.
    #[error(
        "`{command}` could not get the xtables lock (/run/xtables.lock) within 5 s: kube-proxy, \
         kubelet, the CNI or another iptables holds it (`fuser -v /run/xtables.lock` tells \
         which); the next pass tries again. It said: {stderr}"
    )]
    Locked {
        /// The command line.
        command: String,
        /// The output on stderr.
        stderr: String,
    },
    /// The program ended with an error.
    #[error("`{command}` failed ({status}): {stderr}")]
    Failed {
        /// The command line.
        command: String,
        /// The exit status.
        status: ExitStatus,
        /// The output on stderr.
        stderr: String,
    },
}

impl Programs {
    /// Returns the output of `iptables-save` for one table, or for all existing tables.
    ///
    /// # Errors
    /// Returns an error if the program cannot be run, fails or takes too long.
    pub async fn save(&self, table: Option<&str>) -> Result<String, CommandError> {
        match table {
            Some(table) => run(&self.save, &["-t", table], "").await,
            None => run(&self.save, &[], "").await,
        }
    }

    /// Tests whether `iptables-restore` and the kernel support the matches and targets of the rules in `input`. Changes
    /// no rule.
    ///
    /// # Errors
    /// Returns an error if they are not supported, or under the same conditions as [`Programs::restore`].
    pub async fn test(&self, input: &str) -> Result<(), CommandError> {
        let output = run(&self.restore, &["--noflush", "--test", WAIT], input).await;
        output.map(drop)
    }

    /// Makes `iptables-restore` apply `input` without flushing anything.
    ///
    /// # Errors
    /// Returns an error if the program cannot be run, fails, cannot acquire the xtables lock or takes too long.
    pub async fn restore(&self, input: &str) -> Result<(), CommandError> {
        let output = run(&self.restore, &["--noflush", WAIT], input).await;
        output.map(drop)
    }
}

impl CommandError {
    /// Returns true if ipset could not remove a set because a rule uses it.
    #[must_use]
    pub fn is_set_in_use(&self) -> bool {
        matches!(self, Self::Failed { stderr, .. } if stderr.contains("it is in use"))
    }

    /// Returns true if ipset reported that the kernel does not support sets.
    #[must_use]
    pub fn is_without_sets(&self) -> bool {
        matches!(self, Self::Failed { stderr, .. } if stderr.contains("Cannot open session to kernel"))
    }

    /// Returns true if an nft flavoured program reported that the kernel has no `nf_tables`.
    #[must_use]
    pub fn is_without_nf_tables(&self) -> bool {
        let Self::Failed { stderr, .. } = self else {
            return false;
        };
        // The kernel has no NETLINK_NETFILTER at all, or no subsystem nf_tables.
        stderr.contains("Protocol not supported")
            || stderr.contains("rule set generation id: Invalid argument")
    }
}

/// Runs a program with `input` and returns its output.
///
/// # Errors
/// Returns an error if the program cannot be run, does not exit with 0 or takes too long.
pub async fn run(program: &Path, args: &[&str], input: &str) -> Result<String, CommandError> {
    let parts = [program.as_os_str()].into_iter();
    let command = parts
        .chain(args.iter().map(OsStr::new))
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ");
    let output = match time::timeout(TIMEOUT, exchange(program, args, input)).await {
        Ok(Ok(output)) => output,
        Ok(Err(source)) => return Err(CommandError::Run { command, source }),
        Err(_) => return Err(CommandError::Timeout { command }),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = one_line(&output.stderr);
    if output.status.code() == Some(RESOURCE_PROBLEM) && stderr.contains("xtables lock") {
        return Err(CommandError::Locked { command, stderr });
    }
    Err(CommandError::Failed {
        command,
        status: output.status,
        stderr,
    })
}

/// Runs a program until it ends. The program is killed if the future is dropped.
async fn exchange(program: &Path, args: &[&str], input: &str) -> io::Result<std::process::Output> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(if input.is_empty() {
            Stdio::null()
        } else {
            Stdio::piped()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let stdin = child.stdin.take();
    let feed = async {
        match stdin {
            Some(mut stdin) => stdin.write_all(input.as_bytes()).await,
            None => Ok(()),
        }
    };
    let (written, output) = tokio::join!(feed, child.wait_with_output());
    let output = output?;
    match written {
        // A program that ended early reports the reason itself.
        Err(cause) if output.status.success() => Err(cause),
        _ => Ok(output),
    }
}

fn one_line(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let text = lines.collect::<Vec<_>>().join("; ");
    if text.is_empty() {
        "nothing was printed".to_owned()
    } else {
        text
    }
}
