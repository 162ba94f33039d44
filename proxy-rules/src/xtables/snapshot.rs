// SPDX-License-Identifier: Apache-2.0

//! The tables as one pass sees them: each is read at most once, and only when it is needed. Reading never changes or
//! creates a table. `saved.rs` parses the output.
//!
//! The flavour that the node uses is determined as in `iptables-wrappers`, which the images of kube-proxy and most CNIs
//! use: <https://github.com/kubernetes-sigs/iptables-wrappers>.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::{fs, io};

use proxy_netlink::netfilter;

use super::command::Programs;
use super::installed::Installed;
use super::saved::{ParseError, Saved, SavedTable};
use super::{Error, Family, Flavour, NFT_TABLES};
use crate::Marks;

/// The chains that kubelet creates in the mangle table of the flavour that it uses; the second one only up to
/// Kubernetes 1.24.
const KUBELET_CHAINS: [&str; 2] = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"];

static EMPTY: SavedTable = SavedTable {
    chains: Vec::new(),
    rules: Vec::new(),
};

/// The tables that have been read so far.
#[derive(Debug)]
pub struct Snapshot<'a> {
    installed: &'a Installed,
    nft: BTreeMap<Family, Saved>,
    legacy: BTreeMap<(Family, String), Saved>,
}

impl<'a> Snapshot<'a> {
    /// Creates a snapshot in which no table has been read yet.
    #[must_use]
    pub fn new(installed: &'a Installed) -> Self {
        Self {
            installed,
            nft: BTreeMap::new(),
            legacy: BTreeMap::new(),
        }
    }

    /// Returns a table, or an empty one if it does not exist or if no program is installed that could have created it.
    ///
    /// # Errors
    /// Returns an error if the table cannot be read completely.
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
                Entry::Vacant(unknown) => unknown.insert(if has_nft_tables(family) {
                    read(flavour, programs, name).await?
                } else {
                    Saved::default()
                }),
            },
            Flavour::Legacy => match self.legacy.entry((family, name.to_owned())) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(unknown) => {
                    // Reading a table that does not exist would create it.
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

    /// Returns the flavour that the node currently uses: nft if kubelet's chains are in its mangle table, otherwise
    /// legacy if other programs have any content in its tables, otherwise nft.
    ///
    /// # Errors
    /// Returns an error if the tables of a needed family cannot be read.
    pub async fn detect(&mut self, marks: Marks) -> Result<Flavour, Error> {
        let installed = self.installed;
        if let [only] = installed.usable()[..] {
            return Ok(only);
        }
        for family in Family::ALL {
            match self.table(Flavour::Nft, family, "mangle").await {
                Ok(mangle) if KUBELET_CHAINS.iter().any(|name| mangle.has_chain(name)) => {
                    return Ok(Flavour::Nft);
                }
                Err(cause) if cause.is_without_nf_tables() => return Ok(Flavour::Legacy),
                Err(cause) if installed.needed.contains(&family) => return Err(cause),
                _ => {}
            }
        }
        for family in Family::ALL {
            match self.legacy_has_foreign_content(family, marks).await {
                Ok(true) => return Ok(Flavour::Legacy),
                Err(cause) if installed.needed.contains(&family) => return Err(cause),
                _ => {}
            }
        }
        Ok(Flavour::Nft)
    }

    /// Returns true if another program has a rule, a chain or a policy in the legacy tables.
    ///
    /// # Errors
    /// Returns an error if a table cannot be read completely.
    pub async fn legacy_has_foreign_content(
        &mut self,
        family: Family,
        marks: Marks,
    ) -> Result<bool, Error> {
        let mut names = legacy_tables(family)?;
        // If kubelet uses legacy, its chain is in the mangle table, which is small.
        names.sort_by_key(|name| name != "mangle");
        for name in names {
            let table = self.table(Flavour::Legacy, family, &name).await?;
            if table.has_foreign_content(marks) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Reads a legacy table, which must exist, or all nft tables: even for a single table, iptables-nft-save would make the
/// kernel list every rule.
///
/// # Errors
/// Returns an error if the tables cannot be read completely.
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

/// Returns false if the kernel has no table that iptables-nft can have created. In that case its program, which takes
/// some milliseconds to start, would print nothing. If the kernel does not respond, the program has to be run.
fn has_nft_tables(family: Family) -> bool {
    let family = match family {
        Family::V4 => netfilter::Family::IPv4,
        Family::V6 => netfilter::Family::IPv6,
    };
    let look = || {
        let mut socket = netfilter::Socket::open()?;
        for name in NFT_TABLES {
            if netfilter::has_table(family, name, &mut socket)? {
                return Ok(true);
            }
        }
        Ok::<_, netfilter::Error>(false)
    };
    look().unwrap_or(true)
}

/// Returns true if a legacy table exists in the current network namespace.
///
/// # Errors
/// Returns an error if the kernel's list cannot be read.
pub fn has_legacy_table(family: Family, name: &str) -> Result<bool, Error> {
    Ok(legacy_tables(family)?.iter().any(|table| table == name))
}

/// Returns the legacy tables that exist in the current network namespace.
///
/// # Errors
/// Returns an error if the kernel's list cannot be read.
pub fn legacy_tables(family: Family) -> Result<Vec<String>, Error> {
    let path = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    match fs::read_to_string(path) {
        Ok(names) => Ok(names.lines().map(str::to_owned).collect()),
        // The kernel has no legacy iptables, or it has not been used yet.
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(Error::LegacyTables { path, source }),
    }
}
