// SPDX-License-Identifier: Apache-2.0

//! Debian's packages, fetched and unpacked below the target directory: guests' kernels, qemu, the tunnel's
//! peers. apt works on lists and a cache of its own there; nothing is installed, and the machine's own sources
//! and packages are not touched.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};

use crate::sh;

/// The keys that Debian signs its lists with, of the package `debian-archive-keyring`.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Names a mirror of Debian for machines whose own sources are not Debian's.
const MIRROR_VARIABLE: &str = "DEBIAN_MIRROR";

/// Package lists of this age are read again.
const FRESH: Duration = Duration::from_hours(24);

/// apt with lists of its own.
pub struct Archive {
    dir: PathBuf,
    /// apt's list of installed packages.
    status: PathBuf,
}

impl Archive {
    /// Reads the package lists of these suites into `dir`, unless those there are fresh. No package counts as
    /// installed.
    ///
    /// # Errors
    /// When this machine's sources name no mirror of Debian, or the mirror cannot be reached.
    pub fn empty(dir: PathBuf, suites: &[&str]) -> Result<Self> {
        let status = dir.join("status");
        make_dir(&dir)?;
        write(&status, "")?;
        let archive = Self { dir, status };
        archive.refresh(suites)?;
        Ok(archive)
    }

    /// As [`Archive::empty`], but the packages that are installed on this machine count.
    ///
    /// # Errors
    /// As [`Archive::empty`].
    pub fn of_this_machine(dir: PathBuf, suites: &[&str]) -> Result<Self> {
        let archive = Self {
            dir,
            status: "/var/lib/dpkg/status".into(),
        };
        archive.refresh(suites)?;
        Ok(archive)
    }

    /// Where the lists are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A file as old as the lists.
    pub fn stamp(&self) -> PathBuf {
        self.dir.join("refreshed")
    }

    fn refresh(&self, suites: &[&str]) -> Result<()> {
        let stamp = self.stamp();
        let age = fs::metadata(&stamp)
            .and_then(|meta| meta.modified())
            .ok()
            .and_then(|time| SystemTime::now().duration_since(time).ok());
        if age.is_some_and(|age| age <= FRESH) {
            return Ok(());
        }
        for part in ["lists/partial", "cache/archives/partial"] {
            make_dir(&self.dir.join(part))?;
        }
        let mirror = mirror()?;
        let mut sources = String::new();
        for suite in suites {
            // Packages only: the lists hold much else.
            let _ = writeln!(
                sources,
                "deb [arch=amd64 target=Packages signed-by={KEYRING}] {mirror} {suite} main"
            );
        }
        write(&self.dir.join("sources.list"), &sources)?;
        sh::run(self.apt("apt-get").args(["update", "-q"]))
            .context("is a mirror of Debian reachable from here?")?;
        write(&stamp, "")
    }

    /// The packages, each as `NAME=VERSION`, that installing these ones would install, in the version of
    /// `release` where it has one.
    ///
    /// # Errors
    /// When one of them does not exist or cannot be installed.
    pub fn plan(&self, release: &str, packages: &[&str]) -> Result<Vec<String>> {
        let plan = sh::read(
            self.apt("apt-get")
                .args(["install", "--simulate", "--no-install-recommends"])
                .args(["--target-release", release])
                .args(packages),
        )?;
        Ok(to_install(&plan))
    }

    /// Fetches packages, each `NAME` or `NAME=VERSION`, and unpacks them into `root`, which is replaced when all
    /// of them are there.
    ///
    /// # Errors
    /// When one of them cannot be had.
    pub fn unpack(&self, packages: Vec<String>, root: &Path) -> Result<()> {
        let partial = root.with_extension("partial");
        for old in [root, &partial] {
            if old.exists() {
                fs::remove_dir_all(old)
                    .with_context(|| format!("cannot remove {}", old.display()))?;
            }
        }
        let archives = partial.join("archives");
        let files = download(self.apt("apt-get"), packages, &archives)?;
        extract(&files, &partial)?;
        fs::remove_dir_all(&archives)
            .with_context(|| format!("cannot remove {}", archives.display()))?;
        fs::rename(&partial, root).with_context(|| format!("cannot make {}", root.display()))
    }

    /// apt-get or apt-cache with these lists.
    pub fn apt(&self, program: &str) -> Command {
        let mut command = sh::command(program);
        let of = |key: &str, path: &str| format!("{key}={}", self.dir.join(path).display());
        let nothing = |key: &str| format!("{key}=/dev/null");
        let options = [
            of("Dir::State", ""),
            of("Dir::State::lists", "lists"),
            format!("Dir::State::status={}", self.status.display()),
            of("Dir::Cache", "cache"),
            of("Dir::Etc::sourcelist", "sources.list"),
            // Where the machine's own settings keep no cache, each call would take seconds.
            of("Dir::Cache::pkgcache", "cache/pkgcache.bin"),
            of("Dir::Cache::srcpkgcache", "cache/srcpkgcache.bin"),
            nothing("Dir::Etc::sourceparts"),
            nothing("Dir::Etc::preferences"),
            nothing("Dir::Etc::preferencesparts"),
            "APT::Architecture=amd64".to_owned(),
            "Acquire::Languages=none".to_owned(),
            // Lists of a release that is not changed any more are old.
            "Acquire::Check-Valid-Until=false".to_owned(),
        ];
        for option in options {
            command.args(["-o", &option]);
        }
        command
    }
}

/// The mirror this machine itself is installed from.
fn mirror() -> Result<String> {
    if let Some(mirror) = env::var(MIRROR_VARIABLE)
        .ok()
        .filter(|text| !text.is_empty())
    {
        return Ok(mirror);
    }
    let format = "$(LABEL) $(REPO_URI)";
    let targets = sh::read(sh::command("apt-get").args([
        "indextargets",
        "--format",
        format,
        "Created-By: Packages",
    ]))?;
    // Security updates have the label Debian-Security and a place of their own.
    let mirror = targets
        .lines()
        .find_map(|line| line.strip_prefix("Debian "));
    match mirror {
        Some(mirror) => Ok(mirror.to_owned()),
        None => bail!(
            "no mirror of Debian is among this machine's package sources (after `apt-get update`): what \
             is to be fetched comes from there. {MIRROR_VARIABLE}=URL names one"
        ),
    }
}

/// Fetches packages, by apt-get as it is given, into a directory; their files.
pub fn download(
    mut apt: Command,
    packages: impl IntoIterator<Item = String>,
    into: &Path,
) -> Result<Vec<PathBuf>> {
    make_dir(into)?;
    apt.current_dir(into).args(["download", "-q"]);
    // Run as root, apt would take another user's rights, who may not write here.
    apt.args(["-o", "APT::Sandbox::User=root"]);
    sh::run(apt.args(packages))?;
    packages_in(into)
}

/// Unpacks packages into one directory.
pub fn extract(packages: &[PathBuf], into: &Path) -> Result<()> {
    make_dir(into)?;
    for package in packages {
        sh::run(
            sh::command("dpkg-deb")
                .arg("--extract")
                .args([package, into]),
        )?;
    }
    Ok(())
}

/// The packages that lie in a directory.
pub fn packages_in(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    let mut packages: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "deb"))
        .collect();
    packages.sort();
    Ok(packages)
}

/// Writes a file.
pub fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Makes a directory with those above it.
pub fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))
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
