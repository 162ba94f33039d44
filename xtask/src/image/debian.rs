// SPDX-License-Identifier: Apache-2.0

//! Debian packages for the image: apt fetches and verifies them with its own state below the target directory.
//! Therefore neither root nor a foreign architecture in dpkg is needed, and this machine's packages are not changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};

use super::arch::Arch;
use crate::sh;

/// The release that packages are fetched from.
pub const RELEASE: &str = "bookworm";

/// The keys that sign the release, from the package debian-archive-keyring.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The age after which package lists are fetched again.
const MAX_AGE: Duration = Duration::from_hours(12);

/// A package whose files the image may contain.
#[derive(Debug)]
pub struct Wanted {
    /// The name of the package.
    pub name: &'static str,
    /// The SPDX expression for the files that the image contains, from the package's copyright file.
    pub licence: &'static str,
}

/// All packages that may be needed. The image omits a package if it contains none of its files.
pub const PACKAGES: &[Wanted] = &[
    wanted("base-files", "GPL-2.0-or-later"),
    wanted("ipset", "GPL-2.0-only"),
    wanted("iptables", IPTABLES),
    wanted("libc6", "LGPL-2.1-or-later"),
    wanted("libip4tc2", IPTABLES),
    wanted("libip6tc2", IPTABLES),
    wanted("libipset13", "GPL-2.0-only"),
    wanted("libmnl0", "LGPL-2.1-or-later"),
    wanted("libnetfilter-conntrack3", "GPL-2.0-or-later"),
    wanted("libnfnetlink0", "GPL-2.0-or-later"),
    wanted("libnftnl11", "GPL-2.0-or-later AND GPL-2.0-only"),
    wanted("libxtables12", IPTABLES),
    wanted("netbase", "GPL-2.0-only"),
];

const IPTABLES: &str = "GPL-2.0-only AND GPL-2.0-or-later";

const fn wanted(name: &'static str, licence: &'static str) -> Wanted {
    Wanted { name, licence }
}

/// A fetched package.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Package {
    /// The name.
    pub name: String,
    /// The version.
    pub version: String,
    /// The source package, with its version if it differs: `iptables`, `gcc-12 (12.2.0-14)`.
    pub source: String,
    /// The architecture: `all`, or that of the image.
    pub architecture: String,
    /// The licence as an SPDX expression.
    pub licence: String,
    /// The paragraph that dpkg would store for the package.
    pub control: String,
    /// The path of the package's file.
    pub file: PathBuf,
}

/// An instance of apt with its own state, for one architecture.
pub struct Apt {
    directory: PathBuf,
    arch: Arch,
}

impl Apt {
    /// Returns an instance with its state in `directory`.
    pub fn new(directory: &Path, arch: Arch) -> Self {
        Self {
            directory: directory.join(format!("apt-{}", arch.name())),
            arch,
        }
    }

    /// Returns the reason if this machine cannot fetch Debian packages.
    pub fn is_impossible() -> Option<String> {
        let path = sh::search_path();
        let missing = ["apt-get", "dpkg-deb"]
            .iter()
            .find(|program| sh::find(program, &path).is_none());
        if let Some(program) = missing {
            return Some(format!(
                "{program} is missing: images are built on Debian and Ubuntu"
            ));
        }
        (!Path::new(KEYRING).exists())
            .then(|| format!("{KEYRING} is missing: install debian-archive-keyring"))
    }

    /// Fetches the newest version of every package in [`PACKAGES`].
    ///
    /// # Errors
    /// Returns an error if one cannot be fetched, or if apt does not trust it.
    pub fn packages(&self) -> Result<Vec<Package>> {
        let directory = self.directory.join("packages");
        if self.refresh()? || !directory.is_dir() {
            let names: Vec<&str> = PACKAGES.iter().map(|wanted| wanted.name).collect();
            self.download(&names, &directory)?;
        }
        let files = files(&directory)?;
        let mut packages = files
            .iter()
            .map(|file| read(file))
            .collect::<Result<Vec<_>>>()?;
        packages.sort();
        let names: Vec<&str> = packages.iter().map(|package| &*package.name).collect();
        let wanted: Vec<&str> = PACKAGES.iter().map(|wanted| wanted.name).collect();
        if names != wanted {
            bail!(
                "{} holds {names:?} and should hold {wanted:?}: remove it",
                directory.display()
            );
        }
        Ok(packages)
    }

    /// Unpacks one package into a directory of its own, and returns the directory.
    ///
    /// # Errors
    /// Returns an error if this version does not exist for this architecture.
    pub fn unpacked(&self, name: &str, version: &str) -> Result<PathBuf> {
        let target = self.directory.join(format!("{name}_{version}"));
        if target.is_dir() {
            return Ok(target);
        }
        self.refresh()?;
        let download = self.directory.join("download");
        self.download(&[&format!("{name}={version}")], &download)?;
        let partial = target.with_extension("partial");
        remove(&partial)?;
        for file in files(&download)? {
            sh::run(
                sh::command("dpkg-deb")
                    .arg("--extract")
                    .arg(file)
                    .arg(&partial),
            )?;
        }
        remove(&download)?;
        fs::rename(&partial, &target)
            .with_context(|| format!("cannot rename {}", partial.display()))?;
        Ok(target)
    }

    /// Fetches the package lists unless they are fresh. Returns whether it fetched them.
    fn refresh(&self) -> Result<bool> {
        let stamp = self.directory.join("refreshed");
        let age = fs::metadata(&stamp)
            .and_then(|meta| meta.modified())
            .ok()
            .and_then(|then| SystemTime::now().duration_since(then).ok());
        if age.is_some_and(|age| age < MAX_AGE) {
            return Ok(false);
        }
        for below in ["lists/partial", "cache/archives/partial"] {
            let path = self.directory.join(below);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        let options = format!("[arch={} signed-by={KEYRING}]", self.arch.name());
        let archive = "http://deb.debian.org/debian";
        let sources = format!(
            "deb {options} {archive} {RELEASE} main\n\
             deb {options} {archive} {RELEASE}-updates main\n\
             deb {options} {archive}-security {RELEASE}-security main\n"
        );
        self.write("sources.list", &sources)?;
        self.write("apt.conf", &self.settings())?;
        // For this apt no package is installed.
        self.write("status", "")?;
        sh::run(self.apt().args(["update", "-q"]))
            .context("apt cannot read Debian's package lists")?;
        self.write("refreshed", "")?;
        Ok(true)
    }

    fn download(&self, packages: &[&str], directory: &Path) -> Result<()> {
        remove(directory)?;
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let outcome = sh::run(
            self.apt()
                .arg("download")
                .arg("-q")
                .args(packages)
                .current_dir(directory),
        );
        if outcome.is_err() {
            remove(directory)?;
        }
        outcome.with_context(|| format!("apt cannot fetch packages of {}", self.arch.name()))
    }

    fn apt(&self) -> Command {
        let mut command = sh::command("apt-get");
        command.env("APT_CONFIG", self.directory.join("apt.conf"));
        command
    }

    /// Returns the settings that keep apt from changing this machine's state.
    fn settings(&self) -> String {
        let path = |below: &str| self.directory.join(below).display().to_string();
        let arch = self.arch.name();
        [
            ("Dir::Etc::SourceList", &*path("sources.list")),
            ("Dir::Etc::SourceParts", "/dev/null"),
            ("Dir::Etc::Preferences", "/dev/null"),
            ("Dir::Etc::PreferencesParts", "/dev/null"),
            ("Dir::State::Lists", &path("lists")),
            ("Dir::State::status", &path("status")),
            ("Dir::Cache", &path("cache")),
            ("APT::Architecture", arch),
            ("APT::Architectures", arch),
            // apt's own user could not write below the target directory.
            ("APT::Sandbox::User", "root"),
            ("Acquire::Languages", "none"),
            (
                "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled",
                "false",
            ),
        ]
        .iter()
        .map(|(name, value)| format!("{name} \"{value}\";"))
        .collect::<Vec<_>>()
        .join("\n")
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.directory.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Reads the control data of a package.
fn read(file: &Path) -> Result<Package> {
    let control = sh::read(sh::command("dpkg-deb").arg("--field").arg(file))?;
    let field = |name: &str| {
        control
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
            .map(str::to_owned)
    };
    let wants = |name: &str| field(name).with_context(|| format!("{}: no {name}", file.display()));
    let name = wants("Package")?;
    let known = PACKAGES.iter().find(|wanted| wanted.name == name);
    let known = known.with_context(|| format!("{name} is none of the image's packages"))?;
    Ok(Package {
        version: wants("Version")?,
        source: field("Source").unwrap_or_else(|| name.clone()),
        architecture: wants("Architecture")?,
        licence: known.licence.to_owned(),
        // Scanners of images require this field.
        control: control.replacen('\n', "\nStatus: install ok installed\n", 1),
        file: file.to_owned(),
        name,
    })
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        files.push(entry?.path());
    }
    files.sort();
    Ok(files)
}

/// Removes a directory if it exists.
pub fn remove(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)
            .with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    Ok(())
}
