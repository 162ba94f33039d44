// SPDX-License-Identifier: Apache-2.0

//! An image's file system: our programs; from Debian's packages, the programs that the iptables backend calls and the
//! libraries that these name; and the files that the licences require. It contains nothing else: no shell, and no
//! package manager.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::arch::Arch;
use super::debian::Package;
use super::elf;
use super::kind::Kind;
use super::tree::{Node, Tree};
use crate::sh;

/// The directory of our programs.
const PROGRAMS: &str = "usr/bin";

/// The order of the sources in which host names are looked up. A statically linked program has no other sources.
const NAMES: (&str, &str) = ("etc/nsswitch.conf", "hosts: files dns\n");

/// The directories that have moved below /usr.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

/// The directories where container runtimes mount file systems, or where programs write.
const EMPTY: [(&str, u32); 6] = [
    ("dev", 0o755),
    ("etc", 0o755),
    ("proc", 0o555),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
];

/// The flavour of a program without a flavour in its name, which is Debian's default.
const DEFAULT_FLAVOUR: &str = "nft";

/// A file system, and the packages that its files come from.
#[derive(Debug)]
pub struct Rootfs {
    /// The files.
    pub tree: Tree,
    /// The packages in the order of their names.
    pub packages: Vec<Package>,
    /// Our programs, each with its size in bytes.
    programs: Vec<(String, u64)>,
}

impl Rootfs {
    /// Adds one of our programs.
    ///
    /// # Errors
    /// Returns an error if the path has no file name.
    pub fn add_program(&mut self, path: &Path, bytes: Vec<u8>) -> Result<()> {
        let name = path.file_name().context("a program without a name")?;
        let name = name.display().to_string();
        let path = format!("{PROGRAMS}/{name}");
        self.programs.push((name, bytes.len() as u64));
        self.tree.add(&path, Node::File(0o755, bytes));
        Ok(())
    }

    /// Returns our programs with their sizes, for people.
    pub fn sizes(&self) -> String {
        let sizes = self.programs.iter();
        let sizes = sizes.map(|(name, size)| format!("{name} {}", sh::size(*size)));
        sizes.collect::<Vec<_>>().join(", ")
    }
}

/// Assembles the file system, without our programs.
///
/// # Errors
/// Returns an error if a package cannot be read, or if a program needs a library that no package contains.
pub fn assemble(kind: Kind, arch: Arch, packages: &[Package]) -> Result<Rootfs> {
    let mut tree = Tree::default();
    for (path, mode) in EMPTY {
        tree.add(path, Node::Directory(mode));
    }
    tree.add_text(NAMES.0, NAMES.1);
    let packages = if kind.has_packages() {
        add_packages(arch, packages, &mut tree)?
    } else {
        Vec::new()
    };
    for (name, target) in kind.links() {
        tree.add_link(name, target);
    }
    Ok(Rootfs {
        tree,
        packages,
        programs: Vec::new(),
    })
}

/// Adds the wanted files of the packages, and returns the packages of which there is a file.
fn add_packages(arch: Arch, packages: &[Package], rootfs: &mut Tree) -> Result<Vec<Package>> {
    let mut all: BTreeMap<String, (usize, Node)> = BTreeMap::new();
    for (number, package) in packages.iter().enumerate() {
        for (path, node) in contents(package)? {
            all.insert(path, (number, node));
        }
    }
    for directory in MERGED {
        rootfs.add_link(directory, &format!("usr/{directory}"));
        rootfs.add(&format!("usr/{directory}"), Node::Directory(0o755));
    }
    let mut used = vec![false; packages.len()];
    for (path, (number, node)) in &all {
        if is_wanted(path, arch) {
            rootfs.add(path, node.clone());
            used[*number] = true;
        }
    }
    add_libraries(arch, &all, rootfs, &mut used)?;
    for family in ["iptables", "ip6tables"] {
        for suffix in ["", "-save", "-restore"] {
            let target = format!("{family}-{DEFAULT_FLAVOUR}{suffix}");
            if rootfs.get(&format!("usr/sbin/{target}")).is_none() {
                bail!("the packages have no {target}");
            }
            rootfs.add_link(&format!("usr/sbin/{family}{suffix}"), &target);
        }
    }
    let packages: Vec<Package> = packages
        .iter()
        .zip(&used)
        .filter(|(_, used)| **used)
        .map(|(package, _)| package.clone())
        .collect();
    for package in &packages {
        let copyright = format!("usr/share/doc/{}/copyright", package.name);
        let (_, node) = all
            .get(&copyright)
            .with_context(|| format!("{} has no copyright file", package.name))?;
        rootfs.add(&copyright, node.clone());
        // Scanners of images without dpkg read the installed packages from this directory.
        rootfs.add_text(
            &format!("var/lib/dpkg/status.d/{}", package.name),
            package.control.as_str(),
        );
    }
    Ok(packages)
}

/// Returns the files of a package, below /usr if their directory has moved there.
fn contents(package: &Package) -> Result<Vec<(String, Node)>> {
    let output = sh::command("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(&package.file)
        .output()
        .context("cannot start dpkg-deb")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} is no package: {}", package.file.display(), said.trim());
    }
    let mut found = Vec::new();
    let mut archive = tar::Archive::new(&output.stdout[..]);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.display().to_string();
        let path = merged(path.trim_start_matches("./"));
        let mode = entry.header().mode()? & 0o777;
        let kind = entry.header().entry_type();
        if kind.is_symlink() {
            let target = entry.link_name()?.context("a link without a target")?;
            found.push((path, Node::Link(target.display().to_string())));
        } else if kind.is_file() {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            found.push((path, Node::File(mode, bytes)));
        }
    }
    Ok(found)
}

fn merged(path: &str) -> String {
    let top = path.split('/').next().unwrap_or_default();
    if MERGED.contains(&top) {
        format!("usr/{path}")
    } else {
        path.to_owned()
    }
}

/// Returns whether a file is selected by its name. Libraries are selected because programs name them.
fn is_wanted(path: &str, arch: Arch) -> bool {
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    match directory {
        "usr/sbin" => {
            let tool = ["iptables-", "ip6tables-"].iter().find_map(|family| {
                name.strip_prefix(family)?
                    .strip_prefix("legacy")
                    .or_else(|| name.strip_prefix(family)?.strip_prefix("nft"))
            });
            let tool = tool.is_some_and(|rest| ["", "-save", "-restore"].contains(&rest));
            tool || ["xtables-legacy-multi", "xtables-nft-multi", "ipset"].contains(&name)
        }
        // This includes extensions that the agent does not use, because it lists other programs' rules with them.
        _ if directory == format!("usr/lib/{}/xtables", arch.triplet()) => {
            ["libxt_", "libipt_", "libip6t_"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
        }
        "etc" => ["ethertypes", "protocols", "services", "os-release"].contains(&name),
        "usr/lib" => name == "os-release",
        // The copyright files refer to these licences.
        "usr/share/common-licenses" => true,
        _ => false,
    }
}

/// Adds the libraries that programs name, those that these libraries name, and the dynamic loader.
fn add_libraries(
    arch: Arch,
    all: &BTreeMap<String, (usize, Node)>,
    rootfs: &mut Tree,
    used: &mut [bool],
) -> Result<()> {
    let libraries = format!("usr/lib/{}", arch.triplet());
    let mut todo: Vec<String> = rootfs.iter().map(|(path, _)| path.to_owned()).collect();
    while let Some(path) = todo.pop() {
        let Some(Node::File(_, bytes)) = rootfs.get(&path) else {
            continue;
        };
        let Some(needs) = elf::needs(bytes).with_context(|| format!("cannot read {path}"))? else {
            continue;
        };
        let loader = needs
            .interpreter
            .map(|path| merged(path.trim_start_matches('/')));
        let named = needs
            .libraries
            .iter()
            .map(|name| format!("{libraries}/{name}"));
        for mut wanted in loader.into_iter().chain(named) {
            while rootfs.get(&wanted).is_none() {
                let (number, node) = all
                    .get(&wanted)
                    .with_context(|| format!("{path} needs {wanted}, and no package has it"))?;
                rootfs.add(&wanted, node.clone());
                used[*number] = true;
                match node {
                    Node::Link(target) => wanted = resolved(&wanted, target),
                    _ => todo.push(wanted.clone()),
                }
            }
        }
    }
    Ok(())
}

/// Returns the target of a link at `path`.
fn resolved(path: &str, target: &str) -> String {
    if let Some(absolute) = target.strip_prefix('/') {
        return merged(absolute);
    }
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    merged(&parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_where_they_should() {
        let from = "usr/lib64/ld-linux-x86-64.so.2";
        for target in [
            "/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
            "../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
        ] {
            assert_eq!(
                resolved(from, target),
                "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
            );
        }
        assert_eq!(resolved("usr/lib/a.so.1", "a.so.1.2"), "usr/lib/a.so.1.2");
    }

    #[test]
    fn programs_are_taken_by_name() {
        for wanted in [
            "usr/sbin/iptables-legacy",
            "usr/sbin/ip6tables-nft-restore",
            "usr/sbin/ipset",
            "usr/lib/aarch64-linux-gnu/xtables/libxt_set.so",
        ] {
            assert!(is_wanted(wanted, Arch::Arm64), "{wanted}");
        }
        for other in [
            "usr/sbin/iptables-apply",
            "usr/sbin/iptables-nft-translate",
            "usr/sbin/ebtables-nft",
            "usr/lib/x86_64-linux-gnu/xtables/libxt_set.so",
            "usr/lib/aarch64-linux-gnu/libc.so.6",
        ] {
            assert!(!is_wanted(other, Arch::Arm64), "{other}");
        }
    }
}
