// SPDX-License-Identifier: Apache-2.0

//! What has to be done to get from what is observed to what is desired. Pure.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use super::attach::{AttachMode, Filter};
use super::observe::Observed;
use crate::link::{LinkKind, LinkTable};
use crate::netfilter::Table;

/// What should be in the kernel.
#[derive(Debug)]
pub struct Desired {
    /// Both tables; one without chains should not be there.
    pub tables: Vec<Table>,
    /// Names of the links to attach to, by ifindex.
    pub links: BTreeMap<u32, String>,
    /// How.
    pub mode: AttachMode,
    /// Id of the loaded ingress program; none in a dry run.
    pub ingress: Option<u32>,
}

/// A link as operations name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its ifindex.
    pub index: u32,
    /// Its name.
    pub name: String,
}

/// One change.
#[derive(Debug, Clone)]
pub enum Op {
    /// Put tables in place, whole.
    InstallTables {
        /// The tables, each with the reason.
        tables: Vec<(Table, &'static str)>,
        /// Connections may have come and gone unverified while it was not there.
        forget: bool,
    },
    /// Delete a table that no VIP needs.
    DeleteTable {
        /// The table.
        table: Table,
    },
    /// Attach the ingress program to a link, or replace an older one there.
    Attach {
        /// The link.
        link: Target,
        /// How.
        mode: AttachMode,
        /// Why.
        reason: &'static str,
    },
    /// Remove the pin of a link that is gone or must not have the program.
    RemovePin {
        /// Its ifindex.
        index: u32,
    },
    /// Remove our filter from a link.
    RemoveFilter {
        /// The filter.
        filter: Filter,
    },
}

/// The links that bring packets of pods and of the wire.
///
/// On `lo` and on bridge masters packets may arrive after DNAT (kernel-facts in docs/packet-path.md):
/// nothing may be decided there. A bridge's packets are decided at its ports.
pub fn attachable(table: &LinkTable) -> BTreeMap<u32, String> {
    table
        .links
        .iter()
        .filter(|link| !matches!(link.kind, LinkKind::Loopback | LinkKind::Bridge))
        .map(|link| (link.index, link.name.clone()))
        .collect()
}

/// Verdicts before programs: until a connection can be untracked in both directions nothing should
/// decide it. Removals last.
pub fn plan(desired: &Desired, observed: &Observed) -> Vec<Op> {
    let mut ops = Vec::new();
    let mut removals = Vec::new();
    let mut tables = Vec::new();
    let mut forget = false;
    for table in &desired.tables {
        let Some(outline) = observed.tables.get(&table.title()) else {
            // It could not be read: nothing is known, nothing is done.
            continue;
        };
        let wanted = (!table.chains.is_empty()).then(|| table.outline());
        if *outline == wanted {
            continue;
        }
        let table = table.clone();
        match (outline, wanted) {
            (_, None) => removals.push(Op::DeleteTable { table }),
            (None, Some(_)) => {
                forget = true;
                tables.push((table, "it is missing"));
            }
            (Some(outline), Some(wanted)) => {
                forget |= !outline.has_rules_of(&wanted);
                tables.push((table, "it differs"));
            }
        }
    }
    if !tables.is_empty() {
        ops.push(Op::InstallTables { tables, forget });
    }
    for (index, name) in &desired.links {
        let Some(reason) = observed.attachment_fault(*index, desired) else {
            continue;
        };
        ops.push(Op::Attach {
            link: Target {
                index: *index,
                name: name.clone(),
            },
            mode: desired.mode,
            reason,
        });
    }
    for index in &observed.pins {
        if desired.mode != AttachMode::Tcx || !desired.links.contains_key(index) {
            removals.push(Op::RemovePin { index: *index });
        }
    }
    for filter in observed.filters.values() {
        if desired.mode != AttachMode::Clsact || !desired.links.contains_key(&filter.link.index) {
            removals.push(Op::RemoveFilter {
                filter: filter.clone(),
            });
        }
    }
    ops.append(&mut removals);
    ops
}

impl Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InstallTables { tables, .. } => {
                let told: Vec<_> = tables
                    .iter()
                    .map(|(table, reason)| format!("{} ({reason})", table.title()))
                    .collect();
                write!(f, "install nf_tables table {}", told.join(" and "))
            }
            Self::DeleteTable { table } => {
                write!(f, "delete nf_tables table {}", table.title())
            }
            Self::Attach { link, mode, reason } => {
                write!(f, "attach vip_ingress to link {link} by {mode}: {reason}")
            }
            Self::RemovePin { index } => {
                write!(f, "remove the pinned tcx link of ifindex {index}")
            }
            Self::RemoveFilter { filter } => write!(
                f,
                "remove the clsact filter vip_ingress (priority {}) from link {}",
                filter.priority, filter.link
            ),
        }
    }
}

impl Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (ifindex {})", self.name, self.index)
    }
}

#[cfg(test)]
mod tests;
