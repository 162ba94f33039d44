// SPDX-License-Identifier: Apache-2.0

//! Where the checkout and its build results are, and how cargo is called in it.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;

use crate::sh;

/// The agent's package and program.
pub const AGENT: &str = "proxy-agent";

/// The webhook's program.
pub const WEBHOOK: &str = "apiserver-proxy-pod-webhook";

/// The tunnel's programs as one.
pub const TUNNEL: &str = "konnectivity";

/// A program that is shipped.
pub struct Shipped {
    /// Its package.
    pub package: &'static str,
    /// Its name.
    pub program: &'static str,
    /// The profile in Cargo.toml that it is built by, and the directory of the target directory. Tests on this machine run
    /// it as it is built by [`QUICK`].
    pub profile: &'static str,
}

/// All that is shipped.
pub const SHIPPED: [Shipped; 3] = [
    Shipped {
        package: AGENT,
        program: AGENT,
        profile: "dist",
    },
    Shipped {
        package: "proxy-webhook",
        program: WEBHOOK,
        profile: "release",
    },
    Shipped {
        package: "proxy-tunnel",
        program: TUNNEL,
        profile: "dist-fast",
    },
];

/// The profile in Cargo.toml of what tests and demos run.
pub const QUICK: &str = "quick";

/// The profile of what generates load where numbers are published.
pub const RELEASE: &str = "release";

/// The options of each cargo command that builds by a profile.
pub const fn by(profile: &'static str) -> [&'static str; 3] {
    ["--profile", profile, "--locked"]
}

/// What cargo builds and tests: everything that runs in user space. Commands that need one program only select all
/// packages too: with another selection the dependencies have other features, and are built again.
pub const USER_SPACE: &[&str] = &[
    "--workspace",
    "--exclude",
    "proxy-ebpf",
    "--exclude",
    "fuzz",
];

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
        // `cargo xtask` is `cargo run`, which describes xtask's package in variables. A build script that depends on one of
        // them (ring's) would run anew whenever cargo is called by hand in between, and all above it would be built again.
        for (name, _) in env::vars_os() {
            if of_own_package(&name) {
                command.env_remove(name);
            }
        }
        command
    }

    /// Reads a file of the checkout, by its path from the root.
    ///
    /// # Errors
    /// When it is missing or malformed.
    pub fn read_toml<T: DeserializeOwned>(&self, file: &str) -> Result<T> {
        let path = self.root.join(file);
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("cannot understand {}", path.display()))
    }

    /// Where cargo puts the program of this name for tests and demos.
    pub fn program(&self, name: &str) -> PathBuf {
        self.by_profile(QUICK, name)
    }

    /// Where cargo puts a program as it is shipped.
    pub fn shipped(&self, shipped: &Shipped) -> PathBuf {
        self.by_profile(shipped.profile, shipped.program)
    }

    /// Where cargo puts the program of this name with this profile.
    pub fn by_profile(&self, profile: &str, name: &str) -> PathBuf {
        self.target.join(profile).join(name)
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

/// Whether cargo sets this variable to describe the package of the program it runs.
fn of_own_package(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
}
