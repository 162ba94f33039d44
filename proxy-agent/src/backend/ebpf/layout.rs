// SPDX-License-Identifier: Apache-2.0

//! The version of what is pinned: it is the name of the directory. Maps and programs of one version
//! fit each other; an agent that finds another version beside its own takes over from it and
//! removes it.

use std::path::{Path, PathBuf};

use crate::kernel::bpffs;

/// The version of the layout, and the last part of the directory in which the agent pins unless it is
/// told otherwise. It changes with the keys, the values or the meaning of a map that outlives the
/// agent.
pub const VERSION: &str = "v2";

/// The directories of other versions beside one, sorted; none if its name is no version.
///
/// # Errors
///
/// The kernel's answer.
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

/// Whether a directory is called after a layout: `v` and a number.
pub fn is_version(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.strip_prefix('v').is_some_and(|number| {
        !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers() {
        for name in ["v0", "v1", "v12"] {
            assert!(is_version(Path::new(name)), "{name}");
        }
        for name in ["", "v", "1", "v1-new", "v-1", "vip", "w1"] {
            assert!(!is_version(Path::new(name)), "{name}");
        }
        assert!(is_version(Path::new(VERSION)));
    }
}
