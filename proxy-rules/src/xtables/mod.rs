// SPDX-License-Identifier: Apache-2.0

//! The tables of iptables, of both flavours, as its programs print and change them: the rules of all programs as
//! values, with their owners. A table is read on request, with whichever program is installed; reading creates no table
//! or module. `backend::iptables` knows which rules the agent maintains there.

pub mod command;
mod error;
mod installed;
mod saved;
pub mod snapshot;

use std::fmt::{self, Display};
use std::net::IpAddr;

pub use command::CommandError;
pub use error::Error;
pub use installed::{Installed, find_program};
pub use saved::{ParseError, Saved, SavedChain, SavedRule, SavedTable, contains, words};
pub use snapshot::Snapshot;

/// An address family, which has its own iptables programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4: iptables
    V4,
    /// IPv6: ip6tables
    V6,
}

/// The part of the kernel that iptables programs use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flavour {
    /// `nf_tables`
    Nft,
    /// `ip_tables` and `ip6_tables`
    Legacy,
}

/// The tables that iptables-nft can create.
const NFT_TABLES: [&str; 5] = ["raw", "mangle", "nat", "filter", "security"];

impl Family {
    /// Both families, in the order in which they are processed.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Returns the family of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Returns the name of the family's program, without flavour and function.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::V4 => "iptables",
            Self::V6 => "ip6tables",
        }
    }

    /// Returns the prefix length of a single address, as text.
    #[must_use]
    pub fn host_bits(self) -> &'static str {
        match self {
            Self::V4 => "32",
            Self::V6 => "128",
        }
    }
}

impl Flavour {
    /// Both flavours.
    pub const ALL: [Self; 2] = [Self::Nft, Self::Legacy];

    /// Returns the other flavour.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Nft => Self::Legacy,
            Self::Legacy => Self::Nft,
        }
    }
}

impl Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        })
    }
}

/// Returns a table, or an empty one if it does not exist.
///
/// # Errors
/// Returns an error if the table cannot be read completely, or if no program that could read it is installed.
pub async fn table(flavour: Flavour, family: Family, name: &str) -> Result<SavedTable, Error> {
    if flavour == Flavour::Legacy && !snapshot::has_legacy_table(family, name)? {
        return Ok(SavedTable::default());
    }
    let installed = Installed::find(&[family]).await?;
    if installed.programs(flavour, family).is_none() {
        return Err(unreadable(flavour, family));
    }
    let mut snapshot = Snapshot::new(&installed);
    Ok(snapshot.table(flavour, family, name).await?.clone())
}

/// The tables of a flavour by name, each with its own result. The list is empty if no table can exist.
pub type Tables = Vec<(String, Result<SavedTable, Error>)>;

/// Returns all existing tables of a flavour for a family.
///
/// # Errors
/// Returns an error if the tables cannot be read, or if legacy tables exist and no program that could read them is
/// installed.
pub async fn tables(flavour: Flavour, family: Family) -> Result<Tables, Error> {
    let names = match flavour {
        Flavour::Legacy => snapshot::legacy_tables(family)?,
        Flavour::Nft => NFT_TABLES.map(str::to_owned).to_vec(),
    };
    if names.is_empty() {
        return Ok(Tables::new());
    }
    let installed = Installed::find(&[family]).await;
    let has_program = |installed: &Installed| installed.programs(flavour, family).is_some();
    let installed = match (installed, flavour) {
        (Ok(installed), _) if has_program(&installed) => installed,
        // Without iptables-nft such rules are native ones, which are read over netlink.
        (_, Flavour::Nft) => return Ok(Tables::new()),
        (Err(error), Flavour::Legacy) => return Err(error),
        (Ok(_), Flavour::Legacy) => return Err(unreadable(flavour, family)),
    };
    let mut snapshot = Snapshot::new(&installed);
    let mut tables = Tables::new();
    for name in names {
        let table = match snapshot.table(flavour, family, &name).await {
            Err(error) if error.is_without_nf_tables() => continue,
            result => result.cloned(),
        };
        tables.push((name, table));
    }
    Ok(tables)
}

fn unreadable(flavour: Flavour, family: Family) -> Error {
    Error::Unreadable {
        programs: format!("{}-{flavour}-save", family.program()),
    }
}

/// Parses a table from the output of `iptables-save`.
#[must_use]
pub fn parse(text: &str, name: &str) -> Option<SavedTable> {
    Saved::parse(text).ok()?.table(name).cloned()
}
