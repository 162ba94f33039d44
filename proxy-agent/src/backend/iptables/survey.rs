// SPDX-License-Identifier: Apache-2.0

//! A look at the iptables tables of the node for those who do not keep rules there: each is read
//! when it is asked for, by whatever program there is. Nothing is changed or brought into being.

use super::Error;
use super::flavour::Installed;
use super::observe::SavedTable;
use super::snapshot::{self, Snapshot};

pub use super::flavour::Flavour;
pub use super::observe::words;
pub use super::rules::Family;

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
        let programs = format!("{}-{flavour}-save", family.program());
        return Err(Error::Unreadable { programs });
    }
    let mut snapshot = Snapshot::new(&installed);
    Ok(snapshot.table(flavour, family, name).await?.clone())
}
