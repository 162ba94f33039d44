// SPDX-License-Identifier: Apache-2.0

//! Fetches Debian packages and unpacks them below the target directory: guests' kernels, qemu, and upstream's programs
//! for the tunnel's tests. apt uses its own lists and cache there; nothing is installed, and the machine's own sources
//! and packages are not changed.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};

use crate::sh;

/// The keys with which Debian signs its lists, from the package `debian-archive-keyring`.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The variable with a mirror of Debian, for machines whose own sources are not Debian's.
const MIRROR_VARIABLE: &str = "DEBIAN_MIRROR";

/// The age after which package lists are fetched again.
const FRESH: Duration = Duration::from_hours(24);

/// An instance of apt with its own lists.
pub struct Archive {
    dir: PathBuf,
    /// The path of apt's list of installed packages.
    status: PathBuf,
}

impl Archive {
    /// Fetches the package lists of these suites into `dir`, unless the existing ones are fresh. No package counts as
    /// installed.
    ///
    /// # Errors
    /// Returns an error if this machine's sources contain no mirror of Debian, or if the mirror cannot be reached.
    pub fn empty(dir: PathBuf, suites: &[&str]) -> Result<Self> {
        let status = dir.join("status");
        make_dir(&dir)?;
        write(&status, "")?;
        let archive = Self { dir, status };
        archive.refresh(suites)?;
        Ok(archive)
    }

    /// Does the same as [`Archive::empty`], but the packages that are installed on this machine count as installed.
    ///
    /// # Errors
    /// Returns an error under the same conditions as [`Archive::empty`].
    pub fn of_this_machine(dir: PathBuf, suites: &[&str]) -> Result<Self> {
        let archive = Self {
            dir,
            status: "/var/lib/dpkg/status".into(),
        };
        archive.refresh(suites)?;
        Ok(archive)
    }

    /// Returns the directory of the lists.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns a file that is as old as the lists.
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
            // Only the package lists are enabled; the other lists are large.
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

    /// Returns the packages, each as `NAME=VERSION`, that an installation of these packages would install, in the
    /// version of `release` if it has one.
    ///
    /// # Errors
    /// Returns an error if one of them does not exist or cannot be installed.
    pub fn plan(&self, release: &str, packages: &[&str]) -> Result<Vec<String>> {
        let plan = sh::read(
            self.apt("apt-get")
                .args(["install", "--simulate", "--no-install-recommends"])
                .args(["--target-release", release])
                .args(packages),
        )?;
        Ok(to_install(&plan))
    }

    /// Fetches packages, each as `NAME` or `NAME=VERSION`, and unpacks them into `root`, which is replaced after all of
    /// them have been fetched.
    ///
    /// # Errors
    /// Returns an error if one of them cannot be fetched or unpacked.
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

    /// Returns a command for apt-get or apt-cache with these lists.
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
            // If the machine's own settings disable the cache, each call would take seconds.
            of("Dir::Cache::pkgcache", "cache/pkgcache.bin"),
            of("Dir::Cache::srcpkgcache", "cache/srcpkgcache.bin"),
            nothing("Dir::Etc::sourceparts"),
            nothing("Dir::Etc::preferences"),
            nothing("Dir::Etc::preferencesparts"),
            "APT::Architecture=amd64".to_owned(),
            "Acquire::Languages=none".to_owned(),
            // The lists of a release that is no longer updated are old.
            "Acquire::Check-Valid-Until=false".to_owned(),
        ];
        for option in options {
            command.args(["-o", &option]);
        }
        command
    }
}

/// Returns the mirror from which this machine itself was installed.
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
    // Security updates have the label Debian-Security and another address.
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

/// Fetches packages with this apt-get into a directory, and returns their files.
pub fn download(
    mut apt: Command,
    packages: impl IntoIterator<Item = String>,
    into: &Path,
) -> Result<Vec<PathBuf>> {
    make_dir(into)?;
    apt.current_dir(into).args(["download", "-q"]);
    // As root, apt would change to another user, who may not write here.
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

/// Returns the packages in a directory.
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

/// Creates a directory and its parents.
pub fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))
}

/// Returns the packages, with their versions, that a simulated installation would install.
fn to_install(plan: &str) -> Vec<String> {
    plan.lines()
        .filter_map(|line| {
            let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
            // For an upgrade, the line contains the old version before this one, in square brackets.
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
