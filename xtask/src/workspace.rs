// SPDX-License-Identifier: Apache-2.0

//! Where the checkout and its build results are, and how cargo is called in it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;

use crate::build::SHIPPED;
use crate::sh;

/// The checkout this xtask belongs to.
pub struct Workspace {
    /// Its top directory.
    pub root: PathBuf,
    /// The target directory, absolute, with `CARGO_TARGET_DIR` and cargo's configuration applied.
    pub target: PathBuf,
}

impl Workspace {
    /// Asks cargo.
    ///
    /// # Errors
    /// When cargo cannot read the workspace's manifests.
    pub fn locate() -> Result<Self> {
        let manifest = manifest_dir().join("Cargo.toml");
        let json = sh::read(
            sh::command("cargo")
                .args(["metadata", "--no-deps", "--format-version", "1"])
                .arg("--manifest-path")
                .arg(manifest),
        )?;
        let metadata: serde_json::Value = serde_json::from_str(&json)
            .context("cargo metadata printed something else than JSON")?;
        let path = |key: &str| -> Result<PathBuf> {
            let value = metadata[key].as_str();
            Ok(value
                .with_context(|| format!("cargo metadata names no {key}"))?
                .into())
        };
        Ok(Self {
            root: path("workspace_root")?,
            target: path("target_directory")?,
        })
    }

    /// A cargo command at the top of the checkout.
    pub fn cargo(&self, subcommand: &str) -> Command {
        let mut command = sh::command("cargo");
        command
            .arg(subcommand)
            .current_dir(&self.root)
            // A relative CARGO_TARGET_DIR was relative to where the user stands, not to the top.
            .env("CARGO_TARGET_DIR", &self.target);
        command
    }

    /// Reads a file of the checkout, by its path from the root.
    ///
    /// # Errors
    /// When it is not there, or does not say what it should.
    pub fn read_toml<T: DeserializeOwned>(&self, file: &str) -> Result<T> {
        let path = self.root.join(file);
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("cannot understand {}", path.display()))
    }

    /// Where cargo puts the program of this name: what is shipped where its profile says, all others by
    /// `--release`.
    pub fn program(&self, name: &str) -> PathBuf {
        let shipped = SHIPPED.iter().find(|shipped| shipped.program == name);
        let profile = shipped.map_or("release", |shipped| shipped.profile);
        self.target.join(profile).join(name)
    }

    /// Does `work`, which builds another program of this name at the path it is given, and puts the one
    /// that was there back.
    ///
    /// # Errors
    /// When `work` fails, or the program cannot be put back.
    pub fn aside(&self, name: &str, work: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let built = self.program(name);
        let current = built.with_extension("current");
        let kept = fs::rename(&built, &current).is_ok();
        let outcome = work(&built);
        if kept {
            fs::rename(&current, &built)
                .with_context(|| format!("cannot put {} back", built.display()))?;
        }
        outcome
    }

    /// `path` as one writes it at the top of the checkout.
    pub fn relative<'a>(&self, path: &'a Path) -> &'a Path {
        path.strip_prefix(&self.root).unwrap_or(path)
    }
}

/// The directory of xtask's manifest. `cargo run` sets the variable; the compiled-in value serves
/// an xtask that is started by hand.
fn manifest_dir() -> PathBuf {
    env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), Into::into)
}
