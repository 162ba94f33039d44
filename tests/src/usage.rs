// SPDX-License-Identifier: Apache-2.0

//! Reads resource usage and limits of a process, from procfs and its processor clock.

use std::fs;
use std::io;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// Returns the processor time that a process has used so far, with all its threads.
///
/// # Errors
/// Returns an error if the process has exited.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let mut clock = 0;
    // SAFETY: the pointer is valid for the call.
    let errno = unsafe { libc::clock_getcpuclockid(libc::pid_t::try_from(pid)?, &raw mut clock) };
    if errno != 0 {
        return Err(io::Error::from_raw_os_error(errno))
            .with_context(|| format!("the processor clock of process {pid}"));
    }
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is valid for the call.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error())
            .with_context(|| format!("the processor time of process {pid}"));
    }
    Ok(Duration::new(
        u64::try_from(time.tv_sec)?,
        u32::try_from(time.tv_nsec)?,
    ))
}

/// Returns the resident memory of a process, in bytes, counted page by page: `VmRSS` in its status is an estimate since
/// Linux 6.2.
///
/// # Errors
/// Returns an error if the process has exited.
pub fn resident_memory(pid: u32) -> Result<u64> {
    memory(pid, "smaps_rollup", "Rss:")
}

/// Returns the number of files that a process has open.
///
/// # Errors
/// Returns an error if the process has exited.
pub fn open_files(pid: u32) -> Result<usize> {
    entries(pid, "fd")
}

/// Returns the number of threads of a process.
///
/// # Errors
/// Returns an error if the process has exited.
pub fn threads(pid: u32) -> Result<usize> {
    entries(pid, "task")
}

fn entries(pid: u32, directory: &str) -> Result<usize> {
    let path = format!("/proc/{pid}/{directory}");
    let entries = fs::read_dir(&path).with_context(|| format!("reading {path}"))?;
    Ok(entries.count())
}

/// Returns the peak resident memory of a process, in bytes.
///
/// # Errors
/// Returns an error if the process has exited.
pub fn peak_memory(pid: u32) -> Result<u64> {
    memory(pid, "status", "VmHWM:")
}

fn memory(pid: u32, file: &str, key: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/{file}");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let kilobytes: u64 = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_suffix("kB"))
        .with_context(|| format!("no {key} in {path}"))?
        .trim()
        .parse()?;
    Ok(kilobytes * 1024)
}

/// Raises the limit of open files of this process, and of those that it starts from now on, to at least `count`, or to
/// the hard limit where that cannot be raised: thousands of connections have both their ends here. Returns the new
/// limit. Other tests in the process are not affected.
///
/// # Panics
/// Panics if the limit cannot be read.
#[expect(
    clippy::must_use_candidate,
    reason = "most callers only have the limit raised"
)]
pub fn allow_open_files(count: u32) -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a valid structure.
    let unknown = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    assert_eq!(unknown, 0, "the limit of open files");
    let most = limit.rlim_max;
    for files in [most.max(count.into()), most] {
        let wanted = libc::rlimit {
            rlim_cur: files,
            rlim_max: files,
        };
        // SAFETY: as above.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const wanted) } == 0 {
            return files;
        }
    }
    limit.rlim_cur
}
