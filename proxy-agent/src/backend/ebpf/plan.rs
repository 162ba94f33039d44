// SPDX-License-Identifier: Apache-2.0

//! What has to be done to get from what is observed to what is desired. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::net::IpAddr;
use std::path::PathBuf;

use proxy_common::guard::Link;

use super::attach::{AttachMode, Filter};
use super::hook::{Hook, SocketHook};
use super::observe::Observed;
use super::pace::Pace;
use super::routes::Found;
use crate::backend::tables;
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
    /// How many at once; none for all.
    pub pace: Option<Pace>,
    /// The maps that are pinned, by name, with their ids; in a dry run without.
    pub maps: BTreeMap<&'static str, Option<u32>>,
    /// The hooks of links that are wanted, with the ids of the loaded programs; in a dry run
    /// without.
    pub hooks: BTreeMap<Hook, Option<u32>>,
    /// The same for hooks of sockets.
    pub sockets: BTreeMap<SocketHook, Option<u32>>,
    /// The Service addresses that are local to the node, each with the source of packets to it.
    pub routes: BTreeMap<IpAddr, Option<IpAddr>>,
    /// Service addresses that were local and are not any more.
    pub former_routes: BTreeSet<IpAddr>,
    /// What the programs should know of links.
    pub guard: BTreeMap<u32, Link>,
    /// The names of the guarded ones.
    pub guarded: BTreeMap<u32, String>,
}

impl Desired {
    /// The id of the loaded program of a hook; none in a dry run without one.
    pub fn program(&self, hook: Hook) -> Option<u32> {
        self.hooks.get(&hook).copied().flatten()
    }
}

/// Why a tcx program comes to a link that has our filter.
const STOOD_IN: &str = "it has a filter instead";

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
    /// Attach a program to a hook of sockets, or replace an older one there.
    AttachSocket {
        /// Its hook.
        hook: SocketHook,
        /// Why.
        reason: &'static str,
    },
    /// Detach a program from a hook of sockets.
    DetachSocket {
        /// Its hook.
        hook: SocketHook,
    },
    /// Make a Service address local to the node.
    AddRoute {
        /// The address.
        address: IpAddr,
        /// The source of what the node sends to it.
        source: Option<IpAddr>,
        /// Why.
        reason: &'static str,
    },
    /// Remove our route of an address.
    RemoveRoute {
        /// The address.
        address: IpAddr,
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

/// First what a decided connection needs, the programs that decide last; removals after that. The other way of
/// attaching goes from a link only when ours is there: to be decided twice does no harm.
///
/// `waiting`: the links that [`super::pace`] lets wait.
pub fn plan(desired: &Desired, observed: &Observed, waiting: &BTreeSet<u32>) -> Vec<Op> {
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
    if !tables.install.is_empty() {
        ops.push(Op::InstallTables {
            tables: tables.install,
        });
    }
    ops.extend(socket_attachments(desired, observed, |hook| {
        !hook.is_of_cgroup()
    }));
    ops.extend(route_ops(desired, observed));
    // Before the programs are attached: from the first packet on.
    ops.extend(guard_op(desired, observed));
    // Guarded links first.
    for is_first in [true, false] {
        for hook in desired.hooks.keys() {
            ops.extend(attachments(desired, observed, *hook, is_first, waiting));
        }
    }
    ops.extend(socket_attachments(
        desired,
        observed,
        SocketHook::is_of_cgroup,
    ));
    for hook in Hook::ALL.into_iter().rev() {
        removals.extend(detachments(desired, observed, hook, waiting));
    }
    for hook in observed.sockets.keys().copied() {
        if !desired.sockets.contains_key(&hook) {
            removals.push(Op::DetachSocket { hook });
        }
    }
    for address in desired.former_routes.iter().copied() {
        removals.push(Op::RemoveRoute { address });
    }
    ops.append(&mut removals);
    ops
}

/// What attaches the programs of sockets of one place.
fn socket_attachments(
    desired: &Desired,
    observed: &Observed,
    is_there: fn(SocketHook) -> bool,
) -> Vec<Op> {
    let hooks = desired
        .sockets
        .keys()
        .copied()
        .filter(|hook| is_there(*hook));
    hooks
        .filter_map(|hook| {
            let reason = observed.socket_fault(hook, desired)?;
            Some(Op::AttachSocket { hook, reason })
        })
        .collect()
}

/// What makes addresses local that are not, or whose route has another source.
fn route_ops(desired: &Desired, observed: &Observed) -> Vec<Op> {
    let mut ops = Vec::new();
    for (address, source) in &desired.routes {
        let (address, source) = (*address, *source);
        match observed.routes.get(&address) {
            Some(Found::Missing) => {
                let reason = "it is missing";
                ops.push(Op::AddRoute {
                    address,
                    source,
                    reason,
                });
            }
            // Without a source that is known now, the one that is there will do.
            Some(Found::Ours(found)) if source.is_some() && *found != source => {
                let reason = "its source differs";
                ops.extend([
                    Op::RemoveRoute { address },
                    Op::AddRoute {
                        address,
                        source,
                        reason,
                    },
                ]);
            }
            Some(Found::Ours(_) | Found::Foreign) | None => {}
        }
    }
    ops
}

/// What attaches the program of a hook to guarded links, or to the others.
fn attachments(
    desired: &Desired,
    observed: &Observed,
    hook: Hook,
    guarded: bool,
    waiting: &BTreeSet<u32>,
) -> Vec<Op> {
    let mut ops = Vec::new();
    for (index, name) in &desired.links {
        if desired.guarded.contains_key(index) != guarded
            || (hook == Hook::Egress && observed.ingress_only.contains(index))
        {
            continue;
        }
        let mode = if waiting.contains(index) {
            AttachMode::Clsact
        } else {
            desired.mode
        };
        if let Some(reason) = observed.attachment_fault(mode, hook, *index, desired) {
            let stands_in =
                mode == AttachMode::Tcx && observed.filters.contains_key(&(hook, *index));
            ops.push(Op::Attach {
                hook,
                link: Target {
                    index: *index,
                    name: name.clone(),
                },
                mode,
                reason: if stands_in { STOOD_IN } else { reason },
            });
        }
    }
    ops
}

/// What removes the programs of a hook from links that should not have them, or have them attached in
/// the other way.
fn detachments(
    desired: &Desired,
    observed: &Observed,
    hook: Hook,
    waiting: &BTreeSet<u32>,
) -> Vec<Op> {
    let wanted = |mode, index| {
        (desired.mode == mode || (mode == AttachMode::Clsact && waiting.contains(&index)))
            && desired.hooks.contains_key(&hook)
            && desired.links.contains_key(&index)
    };
    let pins = observed.pins.iter().copied();
    let pins = pins.filter(|(of, index)| *of == hook && !wanted(AttachMode::Tcx, *index));
    let unpin = pins.map(|(hook, index)| Op::RemovePin { hook, index });
    let filters = observed
        .filters
        .values()
        .filter(|filter| filter.hook == hook && !wanted(AttachMode::Clsact, filter.link.index));
    let remove = filters.map(|filter| Op::RemoveFilter {
        filter: filter.clone(),
    });
    unpin.chain(remove).collect()
}

/// What the programs should know of each link: what it is to the guard, and of which bridge it is a port.
pub fn guard_links(links: &guard::Links, table: &LinkTable) -> BTreeMap<u32, Link> {
    let guard::Links {
        guarded,
        inner,
        tagged,
        ..
    } = links;
    let bridges = table.links.iter();
    let bridges: BTreeSet<_> = bridges
        .filter(|link| link.kind == LinkKind::Bridge)
        .map(|link| link.index)
        .collect();
    let ports: BTreeMap<u32, u32> = table
        .links
        .iter()
        .filter_map(|link| Some((link.index, link.master.filter(|of| bridges.contains(of))?)))
        .collect();
    let all = guarded
        .keys()
        .chain(inner.keys())
        .chain(tagged)
        .chain(ports.keys());
    let link = |index| {
        Link::new(
            guarded.contains_key(index),
            inner.contains_key(index),
            tagged.contains(index),
        )
        .port_of(ports.get(index).copied().unwrap_or_default())
    };
    all.map(|index| (*index, link(index))).collect()
}

fn guard_op(desired: &Desired, observed: &Observed) -> Option<Op> {
    let before = observed.guard.as_ref()?;
    let links = desired.guard.clone();
    if *before == links {
        return None;
    }
    let names = &desired.guarded;
    let guarded_before = before.iter().filter(|(_, link)| link.is_guarded());
    let is_same = guarded_before.map(|(index, _)| index).eq(names.keys());
    Some(Op::Guard {
        guarded: (!is_same).then(|| names.values().cloned().collect()),
        links,
    })
}

impl Op {
    /// Whether it has a tcx program take the place of the filter that stood in for it: then nothing was broken.
    pub fn ends_a_wait(&self, desired: &Desired) -> bool {
        let index = match self {
            Self::Attach { link, reason, .. } if *reason == STOOD_IN => link.index,
            Self::RemoveFilter { filter } => filter.link.index,
            _ => return false,
        };
        desired.pace.is_some() && desired.links.contains_key(&index)
    }

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
            | Self::AddRoute { .. }
            | Self::RemoveRoute { .. }
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
                write!(f, "attach {hook} to {}: {reason}", place(*hook))
            }
            Self::DetachSocket { hook } => write!(f, "detach {hook} from {}", place(*hook)),
            Self::AddRoute {
                address,
                source,
                reason,
            } => {
                write!(f, "add the local route of {address}")?;
                if let Some(source) = source {
                    write!(f, " with source {source}")?;
                }
                write!(f, ": {reason}")
            }
            Self::RemoveRoute { address } => write!(f, "remove the local route of {address}"),
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

fn place(hook: SocketHook) -> &'static str {
    if hook.is_of_cgroup() {
        "the root cgroup"
    } else {
        "the network namespace"
    }
}

impl Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (ifindex {})", self.name, self.index)
    }
}

#[cfg(test)]
mod tests;
