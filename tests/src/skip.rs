// SPDX-License-Identifier: Apache-2.0

//! The list of what could not be tested on this machine, which `cargo xtask test` prints at the end.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

/// Removes the record of an earlier run: `test` did run.
///
/// # Errors
/// When the directory of records cannot be found.
pub fn clear(test: &str) -> Result<()> {
    // That there is none is fine.
    let _ = fs::remove_file(directory()?.join(format!("{test}.txt")));
    Ok(())
}

/// Records that `test` did not run here, and why.
///
/// # Errors
/// When the record cannot be written.
pub fn record(test: &str, reason: &str) -> Result<()> {
    let dir = directory()?;
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let path = dir.join(format!("{test}.txt"));
    eprintln!("skipped: {test}: {reason}");
    fs::write(&path, format!("{reason}\n")).with_context(|| format!("writing {}", path.display()))
}

/// `target/skipped`
fn directory() -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding this executable")?;
    // target/release/deps/paths-…
    let target = own
        .ancestors()
        .find(|dir| dir.join("CACHEDIR.TAG").is_file())
        .map_or_else(|| PathBuf::from("target"), PathBuf::from);
    Ok(target.join("skipped"))
}
