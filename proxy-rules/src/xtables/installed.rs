// SPDX-License-Identifier: Apache-2.0

//! Finds the installed programs of the two flavours of iptables. Changes nothing, and reads no list of modules, because
//! a loaded module need not be in use.

use std::env;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::command::{self, Programs};
use super::{Error, Family, Flavour};

/// Directories that are searched after those of `PATH`, which often lacks them except in a login shell of root.
const SYSTEM_DIRS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// The iptables programs that are installed.
#[derive(Debug, Clone)]
pub struct Installed {
    programs: Vec<(Flavour, Family, Programs)>,
    /// The families that the caller needs.
    pub needed: Vec<Family>,
}

impl Installed {
    /// Finds the programs in `PATH` and the system directories.
    ///
    /// # Errors
    /// Returns an error if no flavour has all programs for the families `needed`, or if programs without a flavour in
    /// their name cannot be queried for it.
    pub async fn find(needed: &[Family]) -> Result<Self, Error> {
        Self::find_in(search_dirs(), needed).await
    }

    async fn find_in(dirs: Vec<PathBuf>, needed: &[Family]) -> Result<Self, Error> {
        let mut installed = Self {
            programs: Vec::new(),
            needed: needed.to_vec(),
        };
        for flavour in Flavour::ALL {
            for family in Family::ALL {
                let name = format!("{}-{flavour}", family.program());
                let programs = programs(&dirs, &name);
                installed
                    .programs
                    .extend(programs.map(|programs| (flavour, family, programs)));
            }
        }
        if installed.usable().is_empty() {
            installed.find_unnamed(&dirs).await?;
        }
        if installed.usable().is_empty() {
            return Err(installed.missing(&dirs));
        }
        Ok(installed)
    }

    /// Adds the programs without a flavour in their name, under the flavour that they report.
    async fn find_unnamed(&mut self, dirs: &[PathBuf]) -> Result<(), Error> {
        for family in Family::ALL {
            let name = family.program();
            let (Some(main), Some(programs)) = (find(dirs, name), programs(dirs, name)) else {
                continue;
            };
            let version = command::run(&main, &["--version"], "").await?;
            // Before 1.8 there was only one flavour, which the output does not name.
            let flavour = if version.contains("nf_tables") {
                Flavour::Nft
            } else {
                Flavour::Legacy
            };
            if self.programs(flavour, family).is_none() {
                self.programs.push((flavour, family, programs));
            }
        }
        Ok(())
    }

    /// Returns an error that lists the missing programs of the most complete set.
    fn missing(&self, dirs: &[PathBuf]) -> Error {
        let absent = |functions: &[&str]| {
            let mut names = Vec::new();
            for family in &self.needed {
                let all = functions.iter();
                names.extend(all.map(|function| format!("{}{function}", family.program())));
            }
            names.retain(|name| find(dirs, name).is_none());
            names
        };
        let sets = [
            absent(&["", "-save", "-restore"]),
            absent(&["-nft-save", "-nft-restore"]),
            absent(&["-legacy-save", "-legacy-restore"]),
        ];
        // If no program is installed at all, neither of the two flavoured sets is more complete than the first one.
        let whole = |names: &Vec<String>| names.len() == 2 * self.needed.len();
        let [unnamed, flavoured @ ..] = sets;
        let begun = flavoured.into_iter().filter(|names| !whole(names));
        let programs = begun.min_by_key(Vec::len).unwrap_or(unnamed);
        let dirs: Vec<_> = dirs.iter().map(|dir| dir.to_string_lossy()).collect();
        Error::Missing {
            programs: programs.join(", "),
            dirs: dirs.join(":"),
        }
    }

    /// Returns the flavours that have the programs for every needed family.
    #[must_use]
    pub fn usable(&self) -> Vec<Flavour> {
        let mut flavours = Flavour::ALL.to_vec();
        flavours.retain(|&flavour| {
            let mut needed = self.needed.iter();
            needed.all(|&family| self.programs(flavour, family).is_some())
        });
        flavours
    }

    /// Returns the programs of a flavour for a family.
    #[must_use]
    pub fn programs(&self, flavour: Flavour, family: Family) -> Option<&Programs> {
        self.programs
            .iter()
            .find(|(of, for_family, _)| (*of, *for_family) == (flavour, family))
            .map(|(_, _, programs)| programs)
    }
}

/// Returns the save and restore programs whose names begin with `name`.
fn programs(dirs: &[PathBuf], name: &str) -> Option<Programs> {
    Some(Programs {
        save: find(dirs, &format!("{name}-save"))?,
        restore: find(dirs, &format!("{name}-restore"))?,
    })
}

/// Finds a program in `PATH` and the system directories.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    find(&search_dirs(), name)
}

fn find(dirs: &[PathBuf], name: &str) -> Option<PathBuf> {
    let mut candidates = dirs.iter().map(|dir| dir.join(name));
    candidates.find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

fn search_dirs() -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = Vec::new();
    let path = env::var_os("PATH").unwrap_or_default();
    for dir in env::split_paths(&path).chain(SYSTEM_DIRS.map(PathBuf::from)) {
        // With a relative entry, the working directory would determine which program root runs.
        if dir.is_absolute() && !dirs.contains(&dir) {
            dirs.push(dir);
        }
    }
    dirs
}
