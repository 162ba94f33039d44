// SPDX-License-Identifier: Apache-2.0

//! The maps, and every access to them.

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, LruHashMap};
use proxy_common::limits::{DEFAULT_MAX_CONNECTIONS, MAX_VIPS};
use proxy_common::{Connection, ConnectionKey, Endpoint, Segment};

use crate::packet::Undecided;

/// The decided connections: the contract between the hooks. Pinned, so that it outlives the agent;
/// its size is set when it is loaded.
#[map]
static CONNECTIONS: LruHashMap<ConnectionKey, Connection> =
    LruHashMap::pinned(DEFAULT_MAX_CONNECTIONS, 0);

/// The VIPs with their ports. Filled before the programs are attached.
#[map]
static VIPS: HashMap<Endpoint, u32> = HashMap::with_max_entries(MAX_VIPS, 0);

/// Whether an endpoint is a VIP with a port of the proxy.
#[inline(always)]
pub fn is_vip(endpoint: &Endpoint) -> bool {
    VIPS.get_ptr(endpoint).is_some()
}

/// The decision about a connection.
#[inline(always)]
pub fn get(key: &ConnectionKey) -> Result<Connection, Undecided> {
    let entry = CONNECTIONS.get_ptr(key).ok_or(Undecided::NoDecision)?;
    // SAFETY: the verifier has seen the null check; a torn read of an entry that is being replaced
    // gives a number that fits no handshake, which leaves the packet tracked.
    Ok(unsafe { *entry })
}

/// Decides the connection that `syn` opens, replacing what an older one left behind.
#[inline(always)]
pub fn decide(key: &ConnectionKey, syn: &Segment) -> Result<(), Undecided> {
    let entry = Connection::opened_by(syn);
    CONNECTIONS
        .insert(key, entry, u64::from(BPF_ANY))
        .map_err(|_| Undecided::MapFull)
}

/// Takes a decision back.
#[inline(always)]
pub fn forget(key: &ConnectionKey) {
    // It may have been evicted meanwhile: then there is nothing to take back.
    let _ = CONNECTIONS.remove(key);
}
