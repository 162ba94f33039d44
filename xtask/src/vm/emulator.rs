// SPDX-License-Identifier: Apache-2.0

//! Where qemu comes from: from `PATH`, else from Debian's packages, unpacked below the target directory.
//! They are not installed: a machine may have a part of qemu already, in a version that does not go with
//! them, and apt would remove that.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::debian::{download, extract};
use crate::sh;

/// The program.
pub const QEMU: &str = "qemu-system-x86_64";

/// Debian's package of it.
const PACKAGE: &str = "qemu-system-x86";

/// Where Debian's packages keep libraries.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];

/// qemu on this machine.
#[derive(Debug)]
pub struct Emulator {
    program: PathBuf,
    /// Where its packages are unpacked; none if it is installed.
    root: Option<PathBuf>,
}

impl Emulator {
    /// Finds it, and fetches it if there is none.
    ///
    /// # Errors
    /// When it cannot be fetched.
    pub fn find(cache: &Path) -> Result<Self> {
        if let Some(program) = sh::find(QEMU, &sh::search_path()) {
            return Ok(Self {
                program,
                root: None,
            });
        }
        let root = cache.join("qemu");
        let program = root.join("usr/bin").join(QEMU);
        if !program.is_file() {
            unpack(&root).with_context(|| {
                format!(
                    "there is no {QEMU} in PATH, and it cannot be had from this machine's package sources: \
                     `apt-get update` reads their lists, or install qemu by hand"
                )
            })?;
        }
        Ok(Self {
            program,
            root: Some(root),
        })
    }

    /// Starts it. What else it needs it finds from where it lies.
    pub fn command(&self) -> Command {
        let mut command = sh::command(&self.program);
        if let Some(root) = &self.root {
            let paths: Vec<OsString> = LIBRARIES
                .iter()
                .map(|path| root.join(path).into_os_string())
                .collect();
            command.env(
                "LD_LIBRARY_PATH",
                paths.join(OsString::from(":").as_os_str()),
            );
        }
        command
    }
}

/// Fetches qemu and the packages it needs that this machine lacks.
fn unpack(root: &Path) -> Result<()> {
    let plan = sh::read(sh::command("apt-get").args([
        "install",
        "--simulate",
        "--no-install-recommends",
        PACKAGE,
    ]))?;
    let packages = to_install(&plan);
    if packages.is_empty() {
        bail!("{PACKAGE} is installed, and has no {QEMU}");
    }
    println!(
        "vm: {QEMU} is missing: fetching it with {} packages it needs, to {}; nothing is installed",
        packages.len() - 1,
        root.display()
    );
    let partial = root.with_extension("partial");
    for old in [root, &partial] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("cannot remove {}", old.display()))?;
        }
    }
    let archives = partial.join("archives");
    let files = download(sh::command("apt-get"), packages, &archives)?;
    extract(&files, &partial)?;
    fs::remove_dir_all(&archives)
        .with_context(|| format!("cannot remove {}", archives.display()))?;
    fs::rename(&partial, root).with_context(|| format!("cannot make {}", root.display()))
}

/// The packages, with their versions, that a simulated installation would install.
fn to_install(plan: &str) -> Vec<String> {
    plan.lines()
        .filter_map(|line| {
            let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
            // An upgrade has the old version in between, in square brackets.
            let (_, version) = rest.split_once('(')?;
            let version = version.split(' ').next()?;
            Some(format!("{name}={version}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_apt_would_install_is_read() {
        let plan = "Reading package lists...\n\
                    Remv qemu-utils [1:10.0.2+ds-2+deb13u1~bpo12+1]\n\
                    Inst seabios (1.16.2-1 Debian:12.15/oldstable [all])\n\
                    Inst libnl-3-200 [3.6-1] (3.7.0-0.2+b1 Debian:12.15/oldstable [amd64]) []\n\
                    Conf seabios (1.16.2-1 Debian:12.15/oldstable [all])\n";
        assert_eq!(
            to_install(plan),
            ["seabios=1.16.2-1", "libnl-3-200=3.7.0-0.2+b1"]
        );
    }
}
