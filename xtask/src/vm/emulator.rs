// SPDX-License-Identifier: Apache-2.0

//! Where qemu comes from: from `PATH`, else from Debian's packages, unpacked below the target directory.
//! They are not installed: a machine may have a part of qemu already, in a version that does not go with
//! them, and apt would remove that.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::debian::numbers;
use crate::debian::Archive;
use crate::sh;

/// The program.
pub const QEMU: &str = "qemu-system-x86_64";

/// Debian's package of it.
const PACKAGE: &str = "qemu-system-x86";

/// The oldest version whose guests are reliable without KVM. With 7.2 one panicked where its kernel
/// patched a branch, in `__netif_receive_skb_core`, as if qemu had translated the code while
/// another processor changed it; with 10.0 none has. It is not confirmed that 8.1 was the first to
/// lock translated code.
const SOUND: [u32; 2] = [8, 1];

/// Where Debian's packages keep libraries.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];

/// Where they keep firmware.
const DATA: [&str; 2] = ["usr/share/qemu", "usr/share/seabios"];

/// qemu on this machine.
#[derive(Clone, Debug)]
pub struct Emulator {
    program: PathBuf,
    /// Where its packages are unpacked; none if it is installed.
    root: Option<PathBuf>,
}

impl Emulator {
    /// Finds it, and fetches it if there is none, or only an old one.
    ///
    /// # Errors
    /// When there is none, and it cannot be fetched.
    pub fn find(cache: &Path) -> Result<Self> {
        let installed = sh::find(QEMU, &sh::search_path()).map(|program| Self {
            program,
            root: None,
        });
        let why = match &installed {
            None => format!("there is no {QEMU} in PATH"),
            Some(emulator) => {
                let version = emulator.version()?;
                if numbers(&version).as_slice() >= SOUND.as_slice() {
                    return Ok(emulator.clone());
                }
                format!("guests of {QEMU} {version} are not reliable")
            }
        };
        let root = cache.join("qemu");
        let fetched = Self {
            program: root.join("usr/bin").join(QEMU),
            root: Some(root.clone()),
        };
        if fetched.program.is_file() {
            return Ok(fetched);
        }
        println!("vm: {why}: fetching one to {}", root.display());
        match (unpack(&root, &cache.join("qemu-apt")), installed) {
            (Ok(()), _) => Ok(fetched),
            (Err(error), Some(installed)) => {
                println!("vm: it is used all the same: {error:#}");
                Ok(installed)
            }
            (Err(error), None) => Err(error.context(format!(
                "{why}, and it cannot be had from Debian; install qemu by hand"
            ))),
        }
    }

    /// Its version, `7.2.22`.
    fn version(&self) -> Result<String> {
        let text = sh::read(self.command().arg("--version"))?;
        let version = text
            .split_once("version ")
            .and_then(|(_, rest)| rest.split_whitespace().next());
        Ok(version
            .with_context(|| format!("{QEMU} has no version: {text}"))?
            .to_owned())
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
            for data in DATA {
                command.arg("-L").arg(root.join(data));
            }
        }
        command
    }
}

/// Fetches qemu, of this machine's release of Debian or its backports, and the packages it needs that this
/// machine lacks.
fn unpack(root: &Path, lists: &Path) -> Result<()> {
    let release = codename(&fs::read_to_string("/etc/os-release").unwrap_or_default())
        .context("/etc/os-release does not name the release")?;
    let backports = format!("{release}-backports");
    let archive = Archive::of_this_machine(lists.to_owned(), &[&release, &backports])?;
    let packages = archive.plan(&backports, &[PACKAGE])?;
    if packages.is_empty() {
        bail!("{PACKAGE} is installed, and has no {QEMU}");
    }
    println!(
        "vm: with {} packages it needs; nothing is installed",
        packages.len() - 1
    );
    archive.unpack(packages, root)
}

/// The name of a release in the text of os-release(5): `bookworm`.
fn codename(text: &str) -> Option<String> {
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(name.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_release_is_read() {
        let text = "VERSION_ID=\"12\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        assert_eq!(codename(text).as_deref(), Some("bookworm"));
        assert_eq!(codename("ID=other\n"), None);
    }
}
