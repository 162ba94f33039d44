// SPDX-License-Identifier: Apache-2.0

//! Debian's kernel packages: which there are, and fetching one.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::debian::{Archive, download, write};
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

/// The package that depends on the kernel of each suite.
const POINTER: &str = "linux-image-amd64";

/// The kernels of an archive.
pub struct Kernels(Archive);

/// A package in one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version, for example `6.12.117-1`.
    pub version: String,
}

impl Kernels {
    /// Reads the package lists with Debian's kernels, unless those in `dir` are fresh.
    ///
    /// # Errors
    /// When this machine's sources name no mirror of Debian, or the mirror cannot be reached.
    pub fn read(dir: PathBuf) -> Result<Self> {
        Archive::empty(dir, &SUITES).map(Self)
    }

    /// The versions of all kernels, one a line, as apt has them; asking apt each time costs seconds.
    fn versions(&self) -> Result<String> {
        let path = self.0.dir().join("kernels");
        let time = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
        if time(&path) >= time(&self.0.stamp())
            && let Ok(versions) = fs::read_to_string(&path)
        {
            return Ok(versions);
        }
        let record = self.apt_cache(POINTER)?;
        let versions: Vec<&str> = record
            .lines()
            .filter_map(|line| line.strip_prefix("Version: "))
            .collect();
        let versions = versions.join("\n");
        write(&path, &versions)?;
        Ok(versions)
    }

    /// The kernels there are, newest first.
    ///
    /// # Errors
    /// When the list of them cannot be read.
    pub fn kernels(&self) -> Result<Vec<Package>> {
        let mut kernels: Vec<Package> = self
            .versions()?
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
        download(self.0.apt("apt-get"), wanted, into)
    }

    /// The packages of the kernel that a package depends on: in the same version, and not the small
    /// packages around it.
    fn dependencies(&self, package: &Package) -> Result<Vec<Package>> {
        let record = self.apt_cache(&format!("{}={}", package.name, package.version))?;
        let depends = record
            .lines()
            .find_map(|line| line.strip_prefix("Depends: "))
            .unwrap_or_default();
        Ok(kernel_parts(depends))
    }

    fn apt_cache(&self, what: &str) -> Result<String> {
        sh::read(self.0.apt("apt-cache").args(["show", what]))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_kernel_are_found_in_their_surroundings() {
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
