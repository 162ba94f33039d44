// SPDX-License-Identifier: Apache-2.0

//! From what should be and what is to the operations between them. Pure: no kernel, no clock.

use std::fmt;
use std::net::IpAddr;

use proxy_netlink::route::{Address, Link, LinkKind, Prefix};

use super::table::{LinkTable, is_owned};
use crate::config::AddressScope;

/// A link that Cilium makes on every node. Cilium ignores addresses of the scopes link and host:
/// `AddressScopeMax` in <https://github.com/cilium/cilium/blob/v1.16.0/pkg/defaults/defaults_linux.go>.
const CILIUM_LINK: &str = "cilium_host";

/// What should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// The VIPs.
    pub vips: Vec<IpAddr>,
    /// The name of the link that carries them.
    pub interface: String,
    /// Whether the kernel may take a VIP as the source of other traffic.
    pub scope: AddressScope,
    /// What earlier starts have put on the node.
    pub earlier: Earlier,
}

/// What earlier starts have put on the node and may still be there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Earlier {
    /// Their VIPs, each with the name of its link.
    pub vips: Vec<(IpAddr, String)>,
    /// The names of the links that they used.
    pub links: Vec<String>,
}

/// One change. The link that carries the VIPs is given by its name, as it may not exist yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Create the link as a dummy, marked as ours and set up.
    CreateDummy {
        /// Its name.
        link: String,
    },
    /// Set the link up.
    SetUp {
        /// Its name.
        link: String,
    },
    /// Add a VIP to the link.
    Add {
        /// The VIP.
        vip: IpAddr,
        /// The link's name.
        link: String,
    },
    /// Let a VIP that would expire stay forever.
    Extend {
        /// The VIP.
        vip: IpAddr,
        /// The link's name.
        link: String,
    },
    /// Change the scope of an IPv4 VIP. The kernel does not do that in place, so another copy of the VIP holds
    /// it on the link meanwhile.
    Rescope {
        /// The VIP as it is.
        old: Address,
        /// The link's name.
        link: String,
        /// What the kernel may take it for from then on.
        source: Source,
    },
    /// Have the kernel take an IPv6 VIP as a source, or not. That is done in place.
    Prefer {
        /// The VIP.
        vip: IpAddr,
        /// The link's name.
        link: String,
        /// What the kernel may take it for from then on.
        source: Source,
    },
    /// Remove a VIP from the link and at once add it as it should be. Only where the kernel neither
    /// corrects an address in place nor lets both stand side by side.
    Replace {
        /// The VIP as it is.
        old: Address,
        /// The link's name.
        link: String,
        /// What is wrong with it.
        fault: Fault,
    },
    /// Remove a VIP from where it should not be. Done only once the VIP is where it should be.
    Remove {
        /// The VIP as it is.
        old: Address,
        /// The name of the link it is on.
        link: String,
    },
    /// Delete a link that an earlier run created and that is not needed any more.
    DeleteLink {
        /// Its ifindex.
        index: u32,
        /// Its name.
        link: String,
    },
}

/// Whether the kernel takes a VIP as the source of traffic that is not bound to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// It may: scope global, or preferred.
    Any,
    /// It does not where there is another address: scope link, or deprecated.
    Never,
}

/// Why an address on the right link is not right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Its prefix holds more than the address, or it has a peer.
    Prefix,
    /// Duplicate address detection has not ended, or not well.
    Detection,
}

/// Something that is not as desired and that no operation here may repair.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Removing the address would delete foreign ones.
    #[error(
        "the kernel would delete {} with it, as promote_secondaries is off: remove it by hand, or run \
         `sysctl -w net.ipv4.conf.{link}.promote_secondaries=1`",
        list(.takes_along)
    )]
    TakesAlong {
        /// The name of the link.
        link: String,
        /// What would be deleted.
        takes_along: Vec<Prefix>,
    },
    /// The link belongs to a VRF.
    #[error(
        "it belongs to the VRF {vrf}, and nothing outside that VRF reaches an address on it: choose \
         another --interface, or run `ip link set dev {link} nomaster`"
    )]
    InVrf {
        /// The name of the link.
        link: String,
        /// The name of the VRF.
        vrf: String,
    },
}

/// The way from what is to what should be.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What to do, in this order.
    pub ops: Vec<Op>,
    /// What has to be left as it is, as (what was wanted, why not).
    pub refusals: Vec<(String, Refusal)>,
}

impl Desired {
    /// What the kernel may take the VIPs for on this node.
    pub fn source(&self, table: &LinkTable) -> Source {
        let is_global = match self.scope {
            AddressScope::Global => true,
            AddressScope::Link => false,
            AddressScope::Auto => table.by_name(CILIUM_LINK).is_some(),
        };
        if is_global {
            Source::Any
        } else {
            Source::Never
        }
    }
}

impl Source {
    /// The scope of an IPv4 VIP.
    pub fn scope(self) -> u8 {
        match self {
            Self::Any => libc::RT_SCOPE_UNIVERSE,
            Self::Never => libc::RT_SCOPE_LINK,
        }
    }
}

impl Plan {
    /// The VIPs whose scope changes.
    pub fn rescoped(&self) -> impl Iterator<Item = IpAddr> {
        self.ops.iter().filter_map(|op| match op {
            Op::Rescope { old, .. } => Some(old.ip),
            _ => None,
        })
    }
}

/// The operations that make `table` carry what is desired.
pub fn plan(desired: &Desired, table: &LinkTable) -> Plan {
    let mut plan = Plan::default();
    let link = || desired.interface.clone();
    let target = table.by_name(&desired.interface);
    match target {
        None => plan.ops.push(Op::CreateDummy { link: link() }),
        Some(found) => {
            if let Some(vrf) = vrf_of(found, table) {
                let refusal = Refusal::InVrf {
                    link: found.name.clone(),
                    vrf: vrf.to_owned(),
                };
                let wanted = format!("keep the VIPs on {}", found.name);
                plan.refusals.push((wanted, refusal));
            }
            if !found.up {
                plan.ops.push(Op::SetUp { link: link() });
            }
        }
    }
    let source = desired.source(table);
    for vip in &desired.vips {
        let here: Vec<_> = target
            .map(|target| on_link(table, *vip, target.index).collect())
            .unwrap_or_default();
        plan.ops
            .extend(correct(*vip, &desired.interface, &here, source));
    }
    // Only now that each VIP is where it belongs: there is no moment without it.
    for vip in &desired.vips {
        for old in table.addresses.iter().filter(|address| address.ip == *vip) {
            let on_target = target.is_some_and(|target| target.index == old.index);
            // The kernel cannot hold a second copy of an IPv6 address on a link: that was replaced.
            if on_target && (is_exact(old) || vip.is_ipv6()) {
                continue;
            }
            remove(old, table, &mut plan);
        }
    }
    for (vip, link) in &desired.earlier.vips {
        if desired.vips.contains(vip) {
            continue;
        }
        // As the agent adds them: one that differs belongs to another program.
        let copies = table.by_name(link).into_iter();
        let copies = copies.flat_map(|link| on_link(table, *vip, link.index));
        for old in copies.filter(|old| is_exact(old)) {
            remove(old, table, &mut plan);
        }
    }
    plan.ops
        .extend(abandoned(desired, table, target, &plan.refusals));
    plan
}

/// The operations of a teardown: the VIPs go from their link, and a link of ours goes with them.
pub fn plan_teardown(desired: &Desired, table: &LinkTable) -> Plan {
    let mut plan = Plan::default();
    let Some(target) = table.by_name(&desired.interface) else {
        return plan;
    };
    for vip in &desired.vips {
        for old in on_link(table, *vip, target.index).filter(|old| is_exact(old)) {
            plan.ops.push(Op::Remove {
                old: old.clone(),
                link: target.name.clone(),
            });
        }
    }
    if is_disposable(target, table) {
        plan.ops.push(Op::DeleteLink {
            index: target.index,
            link: target.name.clone(),
        });
    }
    plan
}

/// The operation that makes a VIP right on its link, given the copies that are there.
fn correct(vip: IpAddr, link: &str, here: &[&Address], source: Source) -> Option<Op> {
    let link = link.to_owned();
    let replace = |old: &Address, link, fault| Op::Replace {
        old: old.clone(),
        link,
        fault,
    };
    match here.iter().copied().find(|address| is_exact(address)) {
        // IPv4 copies with another prefix or a peer can stay beside it for a moment.
        None if vip.is_ipv4() => Some(Op::Add { vip, link }),
        None => Some(match here.first() {
            Some(old) => replace(old, link, Fault::Prefix),
            None => Op::Add { vip, link },
        }),
        Some(old) if old.unusable => Some(replace(old, link, Fault::Detection)),
        // IPv6 derives the scope from the address, IPv4 does not go by deprecation.
        Some(old) if vip.is_ipv4() && old.scope != source.scope() => Some(Op::Rescope {
            old: old.clone(),
            link,
            source,
        }),
        Some(old) if !old.permanent => Some(Op::Extend { vip, link }),
        Some(old) if vip.is_ipv6() && old.deprecated != (source == Source::Never) => {
            Some(Op::Prefer { vip, link, source })
        }
        Some(_) => None,
    }
}

/// Plans the removal of a copy, unless something foreign would go with it.
fn remove(old: &Address, table: &LinkTable, plan: &mut Plan) {
    let op = Op::Remove {
        old: old.clone(),
        link: table.name_of(old.index),
    };
    let foreign = table.takes_along(old);
    if foreign.is_empty() {
        plan.ops.push(op);
    } else {
        let refusal = Refusal::TakesAlong {
            link: table.name_of(old.index),
            takes_along: foreign.to_vec(),
        };
        plan.refusals.push((op.to_string(), refusal));
    }
}

/// Deletes the links of ours that lose their last address in this plan, as after a change of
/// `--interface`, or that an earlier start has used. Another owned link that carries no VIP of this agent
/// may be another agent's.
fn abandoned(
    desired: &Desired,
    table: &LinkTable,
    target: Option<&Link>,
    refusals: &[(String, Refusal)],
) -> Vec<Op> {
    if !refusals.is_empty() {
        return Vec::new();
    }
    table
        .links
        .iter()
        .filter(|link| target.is_none_or(|target| target.index != link.index))
        .filter(|link| is_disposable(link, table))
        .filter(|link| {
            let carries = |vip: &IpAddr| on_link(table, *vip, link.index).next().is_some();
            desired.earlier.links.contains(&link.name) || desired.vips.iter().any(carries)
        })
        .map(|link| Op::DeleteLink {
            index: link.index,
            link: link.name.clone(),
        })
        .collect()
}

/// Ours, and not used for anything else.
fn is_disposable(link: &Link, table: &LinkTable) -> bool {
    is_owned(link)
        && link.kind == LinkKind::Dummy
        && link.master.is_none()
        && !table.shared.contains(&link.index)
}

fn vrf_of<'a>(link: &Link, table: &'a LinkTable) -> Option<&'a str> {
    let master = table.by_index(link.master?)?;
    (master.kind == LinkKind::Vrf).then_some(master.name.as_str())
}

fn on_link(table: &LinkTable, vip: IpAddr, index: u32) -> impl Iterator<Item = &Address> {
    table
        .addresses
        .iter()
        .filter(move |address| address.ip == vip && address.index == index)
}

/// A host address without a peer, as the agent adds it.
fn is_exact(address: &Address) -> bool {
    address.peer.is_none() && address.prefix_len == host_prefix(address.ip)
}

/// The length of a prefix that holds one address.
pub fn host_prefix(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn list(prefixes: &[Prefix]) -> String {
    let words: Vec<_> = prefixes.iter().map(Prefix::to_string).collect();
    words.join(", ")
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateDummy { link } => write!(f, "create link {link} as a dummy and set it up"),
            Self::SetUp { link } => write!(f, "set link {link} up"),
            Self::Add { vip, link } => write!(f, "add {vip}/{} to {link}", host_prefix(*vip)),
            Self::Extend { vip, link } => {
                write!(f, "let {vip}/{} stay on {link} forever", host_prefix(*vip))
            }
            Self::Replace {
                old,
                link,
                fault: fault @ Fault::Prefix,
            } => {
                let (vip, len) = (old.ip, host_prefix(old.ip));
                write!(f, "replace {old} on {link} by {vip}/{len} ({fault})")
            }
            Self::Replace { old, link, fault } => write!(f, "add {old} to {link} anew ({fault})"),
            Self::Rescope { old, link, source } => {
                let scope = match source {
                    Source::Any => "global",
                    Source::Never => "link",
                };
                write!(f, "give {old} on {link} the scope {scope}")
            }
            Self::Prefer { vip, link, source } => {
                let not = match source {
                    Source::Any => "",
                    Source::Never => "not ",
                };
                let len = host_prefix(*vip);
                write!(f, "have {vip}/{len} on {link} {not}preferred as a source")
            }
            Self::Remove { old, link } => write!(f, "remove {old} from {link}"),
            Self::DeleteLink { link, .. } => {
                write!(f, "delete link {link}, which the agent created")
            }
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prefix => "wrong prefix or peer",
            Self::Detection => "held up by duplicate address detection",
        })
    }
}
