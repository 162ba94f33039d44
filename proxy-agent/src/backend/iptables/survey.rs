// SPDX-License-Identifier: Apache-2.0

//! A look at the iptables tables of the node for those who do not keep rules there: each is read
//! when it is asked for, by whatever program there is. Nothing is changed or brought into being.

use std::collections::BTreeSet;
use std::net::IpAddr;

use tracing::warn;

use super::Error;
use super::flavour::Installed;
use super::snapshot::{self, Snapshot};
use crate::instance::Instance;
use crate::reconcile::report::chain;

pub use super::flavour::Flavour;
pub use super::observe::{SavedRule, SavedTable, words};
pub use super::rules::{Family, owner};

/// The state of packets that are accepted of the proxy's own connections.
const UNTRACKED: &str = "UNTRACKED";
/// The tables that iptables-nft can make.
const NFT_TABLES: [&str; 5] = ["raw", "mangle", "nat", "filter", "security"];

/// A table; an empty one if it is not there.
///
/// # Errors
/// The table cannot be read completely, or no program is installed that could read it.
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

/// The tables of a flavour by name, each as far as it can be read; none where nobody can have made
/// one.
pub type Tables = Vec<(String, Result<SavedTable, Error>)>;

/// All tables of a flavour for a family that are there.
///
/// # Errors
/// They cannot be read, or legacy tables are there and no program that could read them.
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
        // Rules made by nobody's iptables-nft are seen over netlink by those who care.
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

/// The VIPs that an instance's rules name, as far as they can be read.
pub async fn owned_vips(owner: Instance) -> BTreeSet<IpAddr> {
    let mut vips = BTreeSet::new();
    for flavour in Flavour::ALL {
        for family in Family::ALL {
            let unread = |error: &Error| {
                warn!(
                    part = super::PART,
                    "cannot look for VIPs that rules name: {}",
                    chain(error)
                );
            };
            let tables = tables(flavour, family).await.inspect_err(unread);
            let tables = tables.unwrap_or_default().into_iter();
            let tables = tables.filter_map(|(_, table)| table.inspect_err(unread).ok());
            let rules = tables.flat_map(|table| table.rules);
            for rule in rules.filter(|rule| rule.owner == Some(owner)) {
                let words = words(&rule.spec).unwrap_or_default();
                // Such a rule names an API server, whose address may be one of the node.
                if words.iter().any(|word| word == UNTRACKED) {
                    continue;
                }
                let option = |name| words.windows(2).find(|pair| pair[0] == name);
                // A rule with both is about what comes from somewhere for the VIP.
                let address = option("-d").or_else(|| option("-s"));
                let host = address.and_then(|pair| pair[1].split('/').next());
                vips.extend(host.and_then(|host| host.parse::<IpAddr>().ok()));
            }
        }
    }
    vips
}

fn unreadable(flavour: Flavour, family: Family) -> Error {
    Error::Unreadable {
        programs: format!("{}-{flavour}-save", family.program()),
    }
}

/// A table as `iptables-save` prints it.
#[cfg(any(test, feature = "fuzzing"))]
pub fn parse(text: &str, name: &str) -> Option<SavedTable> {
    super::observe::Saved::parse(text)
        .ok()?
        .table(name)
        .cloned()
}
