// SPDX-License-Identifier: Apache-2.0

//! Debian's kernel packages: which there are, and fetching one. apt works on lists and a cache of its
//! own below the target directory; the machine's own sources and packages are not touched.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};

use crate::sh;

/// Where kernels are looked for. 5.10 is in bullseye, 6.1 in bookworm, 6.12 in trixie, the newest in
/// trixie's backports or in sid.
const SUITES: [&str; 6] = [
    "bullseye",
    "bookworm",
    "bookworm-backports",
    "trixie",
    "trixie-backports",
    "sid",
];

/// The keys that Debian signs its lists with, of the package `debian-archive-keyring`.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Names a mirror of Debian for machines whose own sources are not Debian's.
const MIRROR_VARIABLE: &str = "DEBIAN_MIRROR";

/// The package that depends on the kernel of each suite.
const POINTER: &str = "linux-image-amd64";

/// Package lists of this age are read again.
const FRESH: Duration = Duration::from_hours(24);

/// apt with lists of its own.
pub struct Archive {
    dir: PathBuf,
    /// apt's list of what is installed.
    status: PathBuf,
}

/// A package in one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version, for example `6.12.117-1`.
    pub version: String,
}

impl Archive {
    /// Reads the package lists with Debian's kernels, unless those in `dir` are fresh.
    ///
    /// # Errors
    /// When this machine's sources name no mirror of Debian, or the mirror cannot be reached.
    pub fn of_kernels(dir: PathBuf) -> Result<Self> {
        let status = dir.join("status");
        make_dir(&dir)?;
        write(&status, "")?;
        let archive = Self { dir, status };
        archive.refresh(&SUITES)?;
        Ok(archive)
    }

    /// As [`Archive::of_kernels`], with what goes with the packages that are installed on this machine.
    ///
    /// # Errors
    /// As [`Archive::of_kernels`].
    pub fn of_this_machine(dir: PathBuf, suites: &[&str]) -> Result<Self> {
        let archive = Self {
            dir,
            status: "/var/lib/dpkg/status".into(),
        };
        archive.refresh(suites)?;
        Ok(archive)
    }

    fn refresh(&self, suites: &[&str]) -> Result<()> {
        let stamp = self.dir.join("refreshed");
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
        let _ = fs::remove_file(self.versions());
        write(&stamp, "")
    }

    /// The file with the versions of all kernels: asking apt each time costs seconds.
    fn versions(&self) -> PathBuf {
        self.dir.join("kernels")
    }

    /// The kernels there are, newest first.
    ///
    /// # Errors
    /// When the list of them cannot be read.
    pub fn kernels(&self) -> Result<Vec<Package>> {
        let path = self.versions();
        let versions = if let Ok(versions) = fs::read_to_string(&path) {
            versions
        } else {
            let record = self.apt_cache(POINTER)?;
            let versions: Vec<&str> = record
                .lines()
                .filter_map(|line| line.strip_prefix("Version: "))
                .collect();
            let versions = versions.join("\n");
            write(&path, &versions)?;
            versions
        };
        let mut kernels: Vec<Package> = versions
            .lines()
            .map(|version| Package {
                name: POINTER.to_owned(),
                version: version.to_owned(),
            })
            .collect();
        kernels.sort_by_key(|package| std::cmp::Reverse(numbers(&package.version)));
        Ok(kernels)
    }

    /// Fetches the packages that hold a kernel and its modules into a directory.
    ///
    /// # Errors
    /// When they cannot be fetched.
    pub fn fetch(&self, kernel: &Package, into: &Path) -> Result<Vec<PathBuf>> {
        let mut wanted = vec![kernel.clone()];
        let mut next = 0;
        while let Some(package) = wanted.get(next).cloned() {
            for dependency in self.dependencies(&package)? {
                if !wanted.contains(&dependency) {
                    wanted.push(dependency);
                }
            }
            next += 1;
        }
        let wanted = wanted
            .iter()
            .map(|package| format!("{}={}", package.name, package.version));
        download(self.apt("apt-get"), wanted, into)
    }

    /// What a package needs of the kernel: in the same version, and not the small packages around it.
    fn dependencies(&self, package: &Package) -> Result<Vec<Package>> {
        let record = self.apt_cache(&format!("{}={}", package.name, package.version))?;
        let depends = record
            .lines()
            .find_map(|line| line.strip_prefix("Depends: "))
            .unwrap_or_default();
        Ok(kernel_parts(depends))
    }

    fn apt_cache(&self, what: &str) -> Result<String> {
        sh::read(self.apt("apt-cache").args(["show", what]))
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
             guests need comes from there. {MIRROR_VARIABLE}=URL names one"
        ),
    }
}

/// The parts of a kernel in a line of dependencies. Their names have a version: `linux-image-6.1.0-50-amd64
/// (= 6.1.176-1)`, `linux-modules-7.3.4+deb13-amd64 (= …)`.
fn kernel_parts(depends: &str) -> Vec<Package> {
    depends
        .split(", ")
        .filter_map(|dependency| {
            let (name, version) = dependency.strip_suffix(')')?.split_once(" (= ")?;
            let is_part = ["linux-image-", "linux-binary-", "linux-modules-"]
                .iter()
                .any(|part| {
                    name.strip_prefix(part)
                        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
                });
            is_part.then(|| Package {
                name: name.to_owned(),
                version: version.to_owned(),
            })
        })
        .collect()
}

/// The numbers of a version up to Debian's revision, to compare kernels by: 6.12.117-1 → 6, 12, 117.
pub fn numbers(version: &str) -> Vec<u32> {
    let upstream = version
        .split(|c: char| !(c.is_ascii_digit() || c == '.'))
        .next()
        .unwrap_or_default();
    upstream
        .split('.')
        .map_while(|part| part.parse().ok())
        .collect()
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

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Makes a directory with those above it.
pub fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_kernel_are_told_from_what_stands_around_it() {
        let names = |depends: &str| -> Vec<String> {
            kernel_parts(depends)
                .into_iter()
                .map(|package| package.name)
                .collect()
        };
        assert_eq!(
            names("linux-image-6.1.0-50-amd64 (= 6.1.176-1)"),
            ["linux-image-6.1.0-50-amd64"]
        );
        assert_eq!(
            names(
                "dracut | initramfs-tools (>= 0.120) | linux-initramfs-tool, linux-base-7.3.4+deb13-amd64 (= \
                 7.3.4-1), linux-binary-7.3.4+deb13-amd64 (= 7.3.4-1), linux-modules-7.3.4+deb13-amd64 (= 7.3.4-1), \
                 linux-modules-amd64 (= 7.3.4-1)"
            ),
            [
                "linux-binary-7.3.4+deb13-amd64",
                "linux-modules-7.3.4+deb13-amd64"
            ]
        );
    }

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert_eq!(numbers("6.12.95-1~bpo12+1"), [6, 12, 95]);
        assert_eq!(numbers("7.3.4+deb13-amd64"), [7, 3, 4]);
        assert!(numbers("6.12.117-1") > numbers("6.1.176-1"));
    }
}
