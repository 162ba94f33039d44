// SPDX-License-Identifier: Apache-2.0

//! Records the tests that were skipped on this machine, which `cargo xtask test` lists at the end.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

const RELEASE: &str = "/proc/sys/kernel/osrelease";

/// The first Linux version with tcx.
const TCX: (u32, u32) = (6, 6);

/// The first Linux version that refuses traffic control programs that change a SOCKMAP.
const AGENT_KEEPS_LISTENERS: (u32, u32) = (7, 3);

/// Removes the record of an earlier run, because `test` did run.
///
/// # Errors
/// Returns an error if the directory of records cannot be found.
pub fn clear(test: &str) -> Result<()> {
    // It is no error if there is no record.
    let _ = fs::remove_file(directory()?.join(format!("{test}.txt")));
    Ok(())
}

/// Records that `test` was skipped, and the reason.
///
/// # Errors
/// Returns an error if the record cannot be written.
pub fn record(test: &str, reason: &str) -> Result<()> {
    let dir = directory()?;
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let path = dir.join(format!("{test}.txt"));
    eprintln!("skipped: {test}: {reason}");
    fs::write(&path, format!("{reason}\n")).with_context(|| format!("writing {}", path.display()))
}

/// Returns true if `test` has to be skipped because this kernel is older than Linux `first`, which introduced `what`;
/// this is then recorded.
///
/// # Errors
/// Returns an error if the record cannot be written, or if the kernel's version cannot be read.
pub fn before(first: (u32, u32), what: &str, test: &str) -> Result<bool> {
    clear(test)?;
    if is_at_least(first)? {
        return Ok(false);
    }
    let (major, minor) = first;
    record(test, &format!("{what}: Linux {major}.{minor} and newer"))?;
    Ok(true)
}

/// Works like [`before`], for a test of tcx.
///
/// # Errors
/// Returns the same errors as [`before`].
pub fn without_tcx(test: &str) -> Result<bool> {
    before(TCX, "tcx", test)
}

/// Returns true if this kernel has tcx.
///
/// # Errors
/// Returns an error if the kernel's version cannot be read.
pub fn has_tcx() -> Result<bool> {
    is_at_least(TCX)
}

/// Returns true if this kernel lets traffic control programs store the proxy's listeners. Otherwise the agent stores
/// them when it notices them.
///
/// # Errors
/// Returns an error if the kernel's version cannot be read.
pub fn programs_keep_listeners() -> Result<bool> {
    Ok(!is_at_least(AGENT_KEEPS_LISTENERS)?)
}

/// Returns true if this kernel is Linux `first` or newer.
///
/// # Errors
/// Returns an error if the kernel's version cannot be read.
fn is_at_least(first: (u32, u32)) -> Result<bool> {
    let release = fs::read_to_string(RELEASE).with_context(|| format!("reading {RELEASE}"))?;
    let mut numbers = release.split(['.', '-']).map(str::parse);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        bail!("{RELEASE}: {release}");
    };
    Ok((major, minor) >= first)
}

/// Returns `target/skipped`.
fn directory() -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding this executable")?;
    // The test's own path is target/quick/deps/paths-….
    let target = own
        .ancestors()
        .find(|dir| dir.join("CACHEDIR.TAG").is_file())
        .map_or_else(|| PathBuf::from("target"), PathBuf::from);
    Ok(target.join("skipped"))
}
