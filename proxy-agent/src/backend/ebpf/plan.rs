// SPDX-License-Identifier: Apache-2.0

//! What has to be done to get from what is observed to what is desired. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::path::PathBuf;

use proxy_common::guard::Link;

use super::attach::{AttachMode, Filter};
use super::hook::{Hook, SocketHook};
use super::observe::Observed;
use crate::backend::tables;
use crate::config::Service;
use crate::guard;
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
    /// The maps that are pinned, by name, with their ids; in a dry run without.
    pub maps: BTreeMap<&'static str, Option<u32>>,
    /// The hooks of links that are wanted, with the ids of the loaded programs; in a dry run
    /// without.
    pub hooks: BTreeMap<Hook, Option<u32>>,
    /// The same for the root cgroup.
    pub sockets: BTreeMap<SocketHook, Option<u32>>,
    /// What the programs should know of links.
    pub guard: guard::Links,
    /// Services that an earlier agent translated and this one does not.
    pub given_up: Vec<Service>,
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
    /// Pin a map of the loaded programs again.
    PinMap {
        /// Its name.
        map: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// Put tables in place, whole.
    InstallTables {
        /// The tables, each with the reason.
        tables: Vec<(Table, &'static str)>,
        /// Packets have met other rules, or none.
        unguarded: bool,
    },
    /// Delete a table that no VIP needs.
    DeleteTable {
        /// The table.
        table: Table,
    },
    /// Tell the programs what links are.
    Guard {
        /// All of them that are something, by ifindex.
        links: BTreeMap<u32, Link>,
        /// The names of the guarded ones, if they are not those of before.
        guarded: Option<Vec<String>>,
    },
    /// Attach a program to a link, or replace an older one there.
    Attach {
        /// In which direction.
        hook: Hook,
        /// The link.
        link: Target,
        /// How.
        mode: AttachMode,
        /// Why.
        reason: &'static str,
    },
    /// Remove the pin of a link that is gone or must not have the program.
    RemovePin {
        /// In which direction.
        hook: Hook,
        /// Its ifindex.
        index: u32,
    },
    /// Attach a program to the root cgroup, or replace an older one there.
    AttachSocket {
        /// Its hook.
        hook: SocketHook,
        /// Why.
        reason: &'static str,
    },
    /// Detach a program from the root cgroup.
    DetachSocket {
        /// Its hook.
        hook: SocketHook,
    },
    /// Give live translated connections over to conntrack.
    HandOver {
        /// Those of these services only.
        services: Option<Vec<Service>>,
    },
    /// Remove the pin of a link's XDP program, which detaches it.
    RemoveXdp {
        /// Its ifindex.
        index: u32,
    },
    /// Remove our filter from a link.
    RemoveFilter {
        /// The filter.
        filter: Filter,
    },
    /// Remove the pinned maps, when nothing uses them any more.
    RemovePins {
        /// Where they are.
        directory: PathBuf,
    },
}

/// The links that bring packets of pods and of the wire.
///
/// On `lo` and on bridge masters packets may arrive after DNAT (docs/packet-path.md):
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
/// decide it. Removals last, but for what decides.
pub fn plan(desired: &Desired, observed: &Observed) -> Vec<Op> {
    let mut ops = Vec::new();
    let mut removals = Vec::new();
    let tables = tables::drift(&desired.tables, &observed.tables);
    let deletions = tables.delete.into_iter();
    removals.extend(deletions.map(|table| Op::DeleteTable { table }));
    for map in desired.maps.keys().copied() {
        if let Some(reason) = observed.map_fault(map, desired) {
            ops.push(Op::PinMap { map, reason });
        }
    }
    if !desired.given_up.is_empty() {
        ops.push(hand_over(desired));
    }
    if !tables.install.is_empty() {
        ops.push(Op::InstallTables {
            tables: tables.install,
            unguarded: tables.unguarded,
        });
    }
    // Before the programs are attached: from the first packet on.
    ops.extend(guard_op(desired, observed));
    ops.extend(attachments(desired, observed));
    for hook in desired.sockets.keys() {
        if let Some(reason) = observed.socket_fault(*hook, desired) {
            let hook = *hook;
            ops.push(Op::AttachSocket { hook, reason });
        }
    }
    if !desired.given_up.is_empty() {
        // Those that the programs before these ones have decided in the meantime.
        ops.push(hand_over(desired));
    }
    let detachments = detachments(desired, observed, Hook::Egress);
    removals.extend(detachments.map(|(_, op)| op));
    for hook in observed.sockets.keys().copied() {
        if !desired.sockets.contains_key(&hook) {
            removals.push(Op::DetachSocket { hook });
        }
    }
    ops.append(&mut removals);
    ops
}

/// What attaches programs to links, and what has to go from them before.
///
/// Two programs on a link would decide each SYN twice, and the second one takes what the first has
/// translated for a connection to the VIP. Links change one by one, so that each is without for a moment
/// only.
fn attachments(desired: &Desired, observed: &Observed) -> Vec<Op> {
    let mut others: BTreeMap<u32, Vec<Op>> = BTreeMap::new();
    for (index, op) in detachments(desired, observed, Hook::Ingress) {
        others.entry(index).or_default().push(op);
    }
    let mut ops = Vec::new();
    for hook in desired.hooks.keys() {
        for (index, name) in &desired.links {
            let Some(reason) = observed.attachment_fault(*hook, *index, desired) else {
                continue;
            };
            if *hook == Hook::Ingress {
                ops.extend(others.remove(index).into_iter().flatten());
            }
            ops.push(Op::Attach {
                hook: *hook,
                link: Target {
                    index: *index,
                    name: name.clone(),
                },
                mode: desired.mode,
                reason,
            });
        }
    }
    others.into_values().flatten().chain(ops).collect()
}

/// What removes the programs of a hook from links that should not have them, or have them attached in
/// the other way; each with the link's ifindex.
fn detachments<'a>(
    desired: &'a Desired,
    observed: &'a Observed,
    hook: Hook,
) -> impl Iterator<Item = (u32, Op)> + 'a {
    let wanted = move |mode, index| {
        desired.mode == mode
            && desired.hooks.contains_key(&hook)
            && desired.links.contains_key(&index)
    };
    let pins = observed.pins.iter().copied();
    let pins = pins.filter(move |(of, index)| *of == hook && !wanted(AttachMode::Tcx, *index));
    let filters = observed.filters.values().filter(move |filter| {
        filter.hook == hook && !wanted(AttachMode::Clsact, filter.link.index)
    });
    let unpin = pins.map(|(hook, index)| (index, Op::RemovePin { hook, index }));
    unpin.chain(filters.map(|filter| {
        let filter = filter.clone();
        (filter.link.index, Op::RemoveFilter { filter })
    }))
}

/// What the programs should know of each link.
pub fn guard_links(links: &guard::Links) -> BTreeMap<u32, Link> {
    let guard::Links {
        guarded,
        inner,
        tagged,
        ..
    } = links;
    let all = guarded.keys().chain(inner.keys()).chain(tagged);
    let link = |index| {
        Link::new(
            guarded.contains_key(index),
            inner.contains_key(index),
            tagged.contains(index),
        )
    };
    all.map(|index| (*index, link(index))).collect()
}

fn guard_op(desired: &Desired, observed: &Observed) -> Option<Op> {
    let before = observed.guard.as_ref()?;
    let links = guard_links(&desired.guard);
    if *before == links {
        return None;
    }
    let names = &desired.guard.guarded;
    let guarded_before = before.iter().filter(|(_, link)| link.is_guarded());
    let is_same = guarded_before.map(|(index, _)| index).eq(names.keys());
    Some(Op::Guard {
        guarded: (!is_same).then(|| names.values().cloned().collect()),
        links,
    })
}

fn hand_over(desired: &Desired) -> Op {
    Op::HandOver {
        services: Some(desired.given_up.clone()),
    }
}

impl Op {
    /// Whether it concerns a link that came or went since the links in `seen` were there: then
    /// nothing was broken.
    pub fn follows_links(&self, seen: &BTreeSet<u32>, now: &BTreeMap<u32, String>) -> bool {
        match self {
            Self::Attach { link, .. } => !seen.contains(&link.index),
            Self::RemovePin { index, .. } | Self::RemoveXdp { index } => !now.contains_key(index),
            // It follows routes and links.
            Self::Guard { .. } => true,
            Self::PinMap { .. }
            | Self::InstallTables { .. }
            | Self::DeleteTable { .. }
            | Self::AttachSocket { .. }
            | Self::DetachSocket { .. }
            | Self::HandOver { .. }
            | Self::RemoveFilter { .. }
            | Self::RemovePins { .. } => false,
        }
    }
}

impl Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PinMap { map, reason } => write!(f, "pin the map {map}: {reason}"),
            Self::InstallTables { tables, .. } => f.write_str(&tables::installation(tables)),
            Self::DeleteTable { table } => {
                write!(f, "delete nf_tables table {}", table.title())
            }
            Self::Attach {
                hook,
                link,
                mode,
                reason,
            } => {
                write!(f, "attach {hook} to link {link} by {mode}: {reason}")
            }
            Self::RemovePin { hook, index } => {
                write!(f, "remove the pinned tcx link of {hook}, ifindex {index}")
            }
            Self::Guard { guarded: None, .. } => f.write_str("note which links lead where"),
            Self::Guard {
                guarded: Some(names),
                ..
            } if names.is_empty() => f.write_str("guard no link"),
            Self::Guard {
                guarded: Some(names),
                ..
            } => write!(f, "guard {}", names.join(", ")),
            Self::RemoveXdp { index } => {
                write!(f, "remove the pinned link of vip_guard, ifindex {index}")
            }
            Self::AttachSocket { hook, reason } => {
                write!(f, "attach {hook} to the root cgroup: {reason}")
            }
            Self::DetachSocket { hook } => write!(f, "detach {hook} from the root cgroup"),
            Self::HandOver { services: None } => {
                f.write_str("hand translated connections over to conntrack")
            }
            Self::HandOver {
                services: Some(services),
            } => {
                let told: Vec<_> = services
                    .iter()
                    .map(|service| service.cluster_ip.to_string())
                    .collect();
                write!(
                    f,
                    "hand translated connections to {} over to conntrack",
                    told.join(", ")
                )
            }
            Self::RemoveFilter { filter } => write!(
                f,
                "remove the clsact filter {} (priority {}) from link {}",
                filter.hook, filter.priority, filter.link
            ),
            Self::RemovePins { directory } => {
                write!(f, "remove the pinned maps in {}", directory.display())
            }
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
