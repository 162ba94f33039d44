// SPDX-License-Identifier: Apache-2.0

//! A directory for the files of a test or of a process.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::leftovers;

/// A directory that is removed when dropped.
#[derive(Debug)]
pub struct Dir(PathBuf);

impl Dir {
    /// Makes one that is swept if this process is killed.
    ///
    /// # Errors
    /// When it cannot be made: not root.
    pub fn new() -> Result<Self> {
        let path = Path::new(leftovers::STATE_DIR).join(leftovers::unique_id()?);
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
