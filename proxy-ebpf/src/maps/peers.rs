// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The original destinations of processes on the host whose connections were made to a VIP instead.

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::macros::map;
use aya_ebpf::maps::LruHashMap;
use proxy_common::Endpoint;
use proxy_common::limits::DEFAULT_MAX_CONNECTIONS;

use crate::packet::Undecided;

/// The destinations by socket cookie. The map is pinned and has the size of the map of decided
/// connections.
#[map]
static PEERS: LruHashMap<u64, Endpoint> = LruHashMap::pinned(DEFAULT_MAX_CONNECTIONS, 0);

/// Records the destination that the process behind a socket connected to.
#[inline(always)]
pub fn remember(cookie: u64, addressed: Endpoint) -> Result<(), Undecided> {
    PEERS
        .insert(cookie, addressed, u64::from(BPF_ANY))
        .map_err(|_| Undecided::MapFull)
}

/// Returns the destination that the process behind a socket connected to.
#[inline(always)]
pub fn original(cookie: u64) -> Result<Endpoint, Undecided> {
    let entry = PEERS.get_ptr(cookie).ok_or(Undecided::NotTranslated)?;
    // SAFETY: the verifier has seen the null check; entries are replaced, not written in place.
    Ok(unsafe { *entry })
}
