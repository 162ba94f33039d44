// SPDX-License-Identifier: Apache-2.0

//! The ipset program, and the sets as it lists them.

use std::path::{Path, PathBuf};

use crate::xtables::{self, CommandError, ParseError, command, find_program};

/// The directory that exists if the kernel has the ipset module.
const MODULE: &str = "/sys/module/ip_set";

/// A set in the output of ipset.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SavedSet {
    /// The name.
    pub name: String,
    /// The type, for example `hash:ip,port,ip`.
    pub kind: String,
    /// The family `inet` or `inet6`, if the type has one.
    pub family: Option<String>,
    /// The default timeout in seconds, if members expire.
    pub timeout: Option<u32>,
    /// The maximum number of members, if the type has one.
    pub max_elements: Option<u32>,
}

/// The ipset program.
#[derive(Debug, Clone)]
pub struct Ipset {
    program: PathBuf,
}

impl Ipset {
    /// Finds the program. Returns `None` if it is not installed.
    #[must_use]
    pub fn find() -> Option<Self> {
        let program = find_program("ipset")?;
        Some(Self { program })
    }

    /// Lists all sets of this network namespace.
    ///
    /// # Errors
    /// Returns an error if ipset fails or its output is incomplete.
    pub async fn list(&self) -> Result<Vec<SavedSet>, xtables::Error> {
        let text = self.run(&["list", "-terse"], "").await?;
        parse(&text).map_err(|source| xtables::Error::Dump {
            program: self.program.display().to_string(),
            source,
        })
    }

    /// Lists the sets. Returns an empty list if the kernel does not support sets.
    ///
    /// # Errors
    /// Returns an error under the same conditions as [`Ipset::list`].
    pub async fn list_if_any(&self) -> Result<Vec<SavedSet>, xtables::Error> {
        if !Path::new(MODULE).exists() {
            return Ok(Vec::new());
        }
        match self.list().await {
            Err(xtables::Error::Command(cause)) if cause.is_without_sets() => Ok(Vec::new()),
            listed => listed,
        }
    }

    /// Runs the program with these arguments and this input, and returns its output.
    ///
    /// # Errors
    /// Returns an error if the program cannot be run, fails or takes too long.
    pub async fn run(&self, args: &[&str], input: &str) -> Result<String, CommandError> {
        command::run(&self.program, args, input).await
    }
}

/// Parses the output of `ipset list -terse`.
///
/// # Errors
/// Returns an error if a set is printed without its parameters.
pub fn parse(text: &str) -> Result<Vec<SavedSet>, ParseError> {
    let mut sets: Vec<SavedSet> = Vec::new();
    let mut open: Option<SavedSet> = None;
    let cut_off = |set: SavedSet| ParseError::Set { name: set.name };
    for line in text.lines() {
        let Some((key, value)) = line.split_once(": ") else {
            continue;
        };
        match (key, &mut open) {
            ("Name", _) => {
                let begun = SavedSet {
                    name: value.trim().to_owned(),
                    ..SavedSet::default()
                };
                if let Some(unfinished) = open.replace(begun) {
                    return Err(cut_off(unfinished));
                }
            }
            ("Type", Some(set)) => value.trim().clone_into(&mut set.kind),
            ("Header", Some(set)) => set.read_header(value),
            // In every version, this line follows the parameters.
            ("References", _) => sets.extend(open.take()),
            _ => {}
        }
    }
    match open {
        Some(unfinished) => Err(cut_off(unfinished)),
        None => Ok(sets),
    }
}

impl SavedSet {
    /// Parses `family inet hashsize 1024 maxelem 65536 timeout 300 …`.
    fn read_header(&mut self, header: &str) {
        let mut words = header.split_whitespace();
        while let Some(word) = words.next() {
            match word {
                "family" => self.family = words.next().map(str::to_owned),
                "timeout" => self.timeout = words.next().and_then(|word| word.parse().ok()),
                "maxelem" => self.max_elements = words.next().and_then(|word| word.parse().ok()),
                _ => {}
            }
        }
    }
}
