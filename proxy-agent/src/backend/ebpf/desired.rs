// SPDX-License-Identifier: Apache-2.0

//! The desired state of this backend.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proxy_common::guard::Link;
use proxy_netlink::netfilter::Table;

use super::attachment::AttachMode;
use super::hook::{Hook, SocketHook};
use super::pace::Pace;

/// The desired state of this backend.
#[derive(Debug)]
pub struct Desired {
    /// The tables; one without chains should not exist.
    pub tables: Vec<Table>,
    /// Names of the links to attach to, by ifindex.
    pub links: BTreeMap<u32, String>,
    /// The attachment mode.
    pub mode: AttachMode,
    /// Limit of new attachments per pass; none: no limit.
    pub pace: Option<Pace>,
    /// The pinned maps, by name, with their ids; without ids in a dry run.
    pub maps: BTreeMap<&'static str, Option<u32>>,
    /// The hooks of links, with the ids of the loaded programs; without ids in a dry run.
    pub hooks: BTreeMap<Hook, Option<u32>>,
    /// The hooks of sockets, likewise.
    pub sockets: BTreeMap<SocketHook, Option<u32>>,
    /// The Service addresses that are local to the node, with the source address of packets to each.
    pub routes: BTreeMap<IpAddr, Option<IpAddr>>,
    /// Service addresses that are no longer local.
    pub former_routes: BTreeSet<IpAddr>,
    /// The content of the guard's map of links.
    pub guard: BTreeMap<u32, Link>,
    /// The names of the guarded links, by ifindex.
    pub guarded: BTreeMap<u32, String>,
}

impl Desired {
    /// The id of the loaded program of a hook; none in a dry run without a running agent.
    pub fn program(&self, hook: Hook) -> Option<u32> {
        self.hooks.get(&hook).copied().flatten()
    }
}
