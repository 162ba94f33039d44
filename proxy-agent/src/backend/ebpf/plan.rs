// SPDX-License-Identifier: Apache-2.0

//! Computes the operations from the observed to the desired state. Pure.

mod compare;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::net::IpAddr;
use std::path::PathBuf;

use proxy_common::guard::Link;

pub use compare::waiting;
use proxy_netlink::route::LinkKind;

use super::attachment::{AttachMode, Filter};
use super::desired::Desired;
use super::hook::{Hook, SocketHook, Target};
use super::observe::Observed;
use super::routes::Found;
use crate::backend::tables;
use crate::guard;
use crate::link::LinkTable;

/// Reason of attaching a tcx program to a link with a temporary filter.
const REPLACES_FILTER: &str = "it has a filter instead";

/// An operation.
#[derive(Debug, Clone)]
pub enum Op {
    /// Pin a map of the loaded programs again.
    PinMap {
        /// Its name.
        map: &'static str,
        /// The reason.
        reason: &'static str,
    },
    /// Change tables.
    Tables(tables::Op),
    /// Write the guard's map of links.
    Guard {
        /// All entries, by ifindex.
        links: BTreeMap<u32, Link>,
        /// The names of the guarded links, if they have changed.
        guarded: Option<Vec<String>>,
    },
    /// Attach a program to a link, or replace an older one.
    Attach {
        /// The direction.
        hook: Hook,
        /// The link.
        link: Target,
        /// The attachment mode.
        mode: AttachMode,
        /// The reason.
        reason: &'static str,
    },
    /// Remove the pin of a link that is gone or should not have the program.
    RemovePin {
        /// The direction.
        hook: Hook,
        /// Its ifindex.
        index: u32,
    },
    /// Attach a program to a hook of sockets, or replace an older one.
    AttachSocket {
        /// Its hook.
        hook: SocketHook,
        /// The reason.
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
        /// The source address of the node's packets to it.
        source: Option<IpAddr>,
        /// The reason.
        reason: &'static str,
    },
    /// Remove the agent's route of an address.
    RemoveRoute {
        /// The address.
        address: IpAddr,
    },
    /// Remove the pin of a link's XDP program, which detaches it.
    RemoveXdp {
        /// Its ifindex.
        index: u32,
    },
    /// Remove the agent's filter from a link.
    RemoveFilter {
        /// The filter.
        filter: Filter,
    },
    /// Remove the pinned maps, after their last use.
    RemovePins {
        /// Their directory.
        directory: PathBuf,
    },
}

/// The links on which packets of pods and from outside arrive.
///
/// On `lo` and on bridges packets may arrive after DNAT (docs/packet-path.md), too late for decisions. Packets of a bridge are
/// decided on its ports.
pub fn attachable(table: &LinkTable) -> BTreeMap<u32, String> {
    table
        .links
        .iter()
        .filter(|link| !matches!(link.kind, LinkKind::Loopback | LinkKind::Bridge))
        .map(|link| (link.index, link.name.clone()))
        .collect()
}

/// Plans in the order of dependency: what decided connections need, then the programs that decide, then removals. An attachment of
/// the other mode is removed only after the desired one exists; two decisions about a connection do no harm.
///
/// `waiting` are the links that [`super::pace`] defers.
pub fn plan(desired: &Desired, observed: &Observed, waiting: &BTreeSet<u32>) -> Vec<Op> {
    let mut ops = Vec::new();
    let mut removals = Vec::new();
    let of_tables = tables::plan(&desired.tables, &observed.tables);
    let of_tables = of_tables.into_iter().map(Op::Tables);
    let (deletions, installations): (Vec<_>, Vec<_>) =
        of_tables.partition(|op| matches!(op, Op::Tables(tables::Op::Delete(_))));
    removals.extend(deletions);
    for map in desired.maps.keys().copied() {
        if let Some(reason) = observed.map_fault(map, desired) {
            ops.push(Op::PinMap { map, reason });
        }
    }
    ops.extend(installations);
    ops.extend(socket_attachments(desired, observed, |hook| {
        !hook.is_of_cgroup()
    }));
    ops.extend(route_ops(desired, observed));
    // Before the programs are attached, so that it applies from the first packet on.
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

/// Attachments of the programs of sockets that `is_there` selects.
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

/// Additions and replacements of routes that make addresses local.
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
            // If the source address is unknown now, the existing one is kept.
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

/// Attachments of a hook's program, to guarded links or to the others.
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
            let replaces_filter =
                mode == AttachMode::Tcx && observed.filters.contains_key(&(hook, *index));
            ops.push(Op::Attach {
                hook,
                link: Target {
                    index: *index,
                    name: name.clone(),
                },
                mode,
                reason: if replaces_filter {
                    REPLACES_FILTER
                } else {
                    reason
                },
            });
        }
    }
    ops
}

/// Removals of a hook's programs from links that should not have them, or have them in the other mode.
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

/// The entries of the guard's map of links: the class of each link, and the bridge whose port it is.
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
    /// Whether it replaces a temporary filter by its tcx program, which repairs nothing.
    pub fn replaces_filter(&self, desired: &Desired) -> bool {
        let index = match self {
            Self::Attach { link, reason, .. } if *reason == REPLACES_FILTER => link.index,
            Self::RemoveFilter { filter } => filter.link.index,
            _ => return false,
        };
        desired.pace.is_some() && desired.links.contains_key(&index)
    }

    /// Whether it concerns a link that appeared or disappeared since the links in `seen` were read, so that it repairs nothing.
    pub fn follows_links(&self, seen: &BTreeSet<u32>, now: &BTreeMap<u32, String>) -> bool {
        match self {
            Self::Attach { link, .. } => !seen.contains(&link.index),
            Self::RemovePin { index, .. } | Self::RemoveXdp { index } => !now.contains_key(index),
            // The guard follows routes and links.
            Self::Guard { .. } => true,
            Self::PinMap { .. }
            | Self::Tables(_)
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
            Self::Tables(op) => op.fmt(f),
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
            Self::Guard { guarded: None, .. } => f.write_str("update the guard's map of links"),
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

#[cfg(test)]
mod tests;
