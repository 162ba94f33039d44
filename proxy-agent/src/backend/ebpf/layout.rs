// SPDX-License-Identifier: Apache-2.0

//! Versions of the layout of pins, which are the names of their directories. Maps and programs of one version belong together; an
//! agent that finds another version beside its own takes over its connections and removes it.

use std::path::{Path, PathBuf};

use proxy_kernel::bpffs;

use crate::config::Config;
use crate::state::owned::Owned;

/// The directories of pins of all starts: the configured one, then those of [`earlier`] starts.
///
/// # Errors
///
/// The kernel's error.
pub fn all(config: &Config) -> Result<Vec<PathBuf>, bpffs::Error> {
    Ok([vec![config.bpffs.clone()], earlier(config)?].concat())
}

/// The directories of pins of earlier starts: other layouts beside the configured one, and other directories.
///
/// # Errors
///
/// The kernel's error.
pub fn earlier(config: &Config) -> Result<Vec<PathBuf>, bpffs::Error> {
    let mut earlier = others(&config.bpffs)?;
    for former in Owned::load(&config.run_dir).bpffs {
        if former != config.bpffs && former.is_dir() && !earlier.contains(&former) {
            earlier.push(former);
        }
    }
    Ok(earlier)
}

/// The directories of other versions beside this one, sorted; empty if its name is no version.
///
/// # Errors
///
/// The kernel's error.
pub fn others(bpffs: &Path) -> Result<Vec<PathBuf>, bpffs::Error> {
    let (Some(parent), Some(own)) = (bpffs.parent(), bpffs.file_name()) else {
        return Ok(Vec::new());
    };
    if !is_version(bpffs) {
        return Ok(Vec::new());
    }
    let names = bpffs::names(parent)?.into_iter();
    let others = names.filter(|name| own != name.as_str());
    let others = others.map(|name| parent.join(name));
    Ok(others.filter(|path| is_version(path)).collect())
}

/// Whether a directory's name is a version of the layout: `v` and a number.
pub fn is_version(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.strip_prefix('v').is_some_and(|number| {
        !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::paths::LAYOUT;

    #[test]
    fn versions_are_numbers() {
        for name in ["v0", "v1", "v12"] {
            assert!(is_version(Path::new(name)), "{name}");
        }
        for name in ["", "v", "1", "v1-new", "v-1", "vip", "w1"] {
            assert!(!is_version(Path::new(name)), "{name}");
        }
        assert!(is_version(Path::new(LAYOUT)));
    }
}
