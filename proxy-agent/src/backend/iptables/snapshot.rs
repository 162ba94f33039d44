// SPDX-License-Identifier: Apache-2.0

//! The tables as one pass sees them: each is read at most once, and only when it is asked for.
//! Never changes a table nor brings one into being. What the dumps mean is `observe.rs`'s business.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::{fs, io};

use super::Error;
use super::command::Programs;
use super::flavour::{Flavour, Installed};
use super::observe::{ParseError, Saved, SavedTable};
use super::rules::Family;

static EMPTY: SavedTable = SavedTable {
    chains: Vec::new(),
    rules: Vec::new(),
};

/// The tables read so far.
#[derive(Debug)]
pub struct Snapshot<'a> {
    installed: &'a Installed,
    nft: BTreeMap<Family, Saved>,
    legacy: BTreeMap<(Family, String), Saved>,
}

impl<'a> Snapshot<'a> {
    /// Nothing read yet.
    pub fn new(installed: &'a Installed) -> Self {
        Self {
            installed,
            nft: BTreeMap::new(),
            legacy: BTreeMap::new(),
        }
    }

    /// A table; an empty one if it is not there, or if no program is installed that could have
    /// made it.
    ///
    /// # Errors
    /// The table cannot be read completely.
    pub async fn table(
        &mut self,
        flavour: Flavour,
        family: Family,
        name: &str,
    ) -> Result<&SavedTable, Error> {
        let Some(programs) = self.installed.programs(flavour, family) else {
            return Ok(&EMPTY);
        };
        let saved = match flavour {
            Flavour::Nft => match self.nft.entry(family) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(unknown) => unknown.insert(read(flavour, programs, name).await?),
            },
            Flavour::Legacy => match self.legacy.entry((family, name.to_owned())) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(unknown) => {
                    // Reading a table that is not there would bring it into being.
                    unknown.insert(if has_legacy_table(family, name)? {
                        read(flavour, programs, name).await?
                    } else {
                        Saved::default()
                    })
                }
            },
        };
        if saved.is_incompatible(name) {
            return Err(Error::Incompatible {
                program: programs.save.display().to_string(),
                table: name.to_owned(),
            });
        }
        Ok(saved.table(name).unwrap_or(&EMPTY))
    }

    /// True if anybody but us has a rule, a chain or a policy in the legacy tables.
    ///
    /// # Errors
    /// A table cannot be read completely.
    pub async fn legacy_has_foreign_content(&mut self, family: Family) -> Result<bool, Error> {
        let mut names = legacy_tables(family)?;
        // Where kubelet uses legacy, its chain is in mangle, which is small.
        names.sort_by_key(|name| name != "mangle");
        for name in names {
            let table = self.table(Flavour::Legacy, family, &name).await?;
            if table.has_foreign_content() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Reads a legacy table, which must be there, or all nft tables: given a table, iptables-nft-save
/// would still have the kernel list every rule.
///
/// # Errors
/// The tables cannot be read completely.
pub async fn read(flavour: Flavour, programs: &Programs, table: &str) -> Result<Saved, Error> {
    let dump = |source| Error::Dump {
        program: programs.save.display().to_string(),
        source,
    };
    match flavour {
        Flavour::Nft => Saved::parse(&programs.save(None).await?).map_err(dump),
        Flavour::Legacy => {
            let saved = Saved::parse(&programs.save(Some(table)).await?).map_err(dump)?;
            if saved.table(table).is_none() {
                let table = table.to_owned();
                return Err(dump(ParseError::Absent { table }));
            }
            Ok(saved)
        }
    }
}

/// True if a legacy table is there in our netns.
///
/// # Errors
/// The kernel does not tell.
pub fn has_legacy_table(family: Family, name: &str) -> Result<bool, Error> {
    Ok(legacy_tables(family)?.iter().any(|table| table == name))
}

/// The legacy tables that are there in our netns.
///
/// # Errors
/// The kernel does not tell.
pub fn legacy_tables(family: Family) -> Result<Vec<String>, Error> {
    let path = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    match fs::read_to_string(path) {
        Ok(names) => Ok(names.lines().map(str::to_owned).collect()),
        // The kernel has no legacy iptables, or nobody has used it yet.
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(Error::LegacyTables { path, source }),
    }
}
