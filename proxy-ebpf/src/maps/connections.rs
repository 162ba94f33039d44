// SPDX-License-Identifier: Apache-2.0

//! The decided connections: the contract between the hooks.

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::macros::map;
use aya_ebpf::maps::LruHashMap;
use proxy_common::limits::DEFAULT_MAX_CONNECTIONS;
use proxy_common::{Connection, ConnectionKey, Endpoint, Segment};

use crate::packet::Undecided;

/// Pinned, so that it outlives the agent; its size is set when it is loaded.
#[map]
static CONNECTIONS: LruHashMap<ConnectionKey, Connection> =
    LruHashMap::pinned(DEFAULT_MAX_CONNECTIONS, 0);

/// The decision about a connection.
#[inline(always)]
pub fn get(key: &ConnectionKey) -> Result<Connection, Undecided> {
    let entry = CONNECTIONS.get_ptr(key).ok_or(Undecided::NoDecision)?;
    // SAFETY: the verifier has seen the null check. An entry is never written in place: a new one
    // takes its place in the map, so that this one is read as it was.
    Ok(unsafe { *entry })
}

/// Decides the connection that `syn` opens, replacing what an older one left behind.
#[inline(always)]
pub fn decide(key: &ConnectionKey, syn: &Segment, original: Endpoint) -> Result<(), Undecided> {
    CONNECTIONS
        .insert(
            key,
            Connection::opened_by(syn, original),
            u64::from(BPF_ANY),
        )
        .map_err(|_| Undecided::MapFull)
}

/// Takes a decision back.
#[inline(always)]
pub fn forget(key: &ConnectionKey) {
    // It may have been evicted meanwhile: then there is nothing to take back.
    let _ = CONNECTIONS.remove(key);
}
