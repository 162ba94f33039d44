// SPDX-License-Identifier: Apache-2.0

//! What leads to the proxy. Filled before the programs are attached and not changed afterwards.

use aya_ebpf::Global;
use aya_ebpf::macros::map;
use aya_ebpf::maps::HashMap;
use proxy_common::Endpoint;
use proxy_common::limits::{MAX_DESTINATIONS, port_bit};

use crate::packet::Undecided;

/// The VIPs with their ports, each leading to itself, and the services that are translated, each
/// leading to its VIP.
#[map]
static DESTINATIONS: HashMap<Endpoint, Endpoint> = HashMap::with_max_entries(MAX_DESTINATIONS, 0);

/// The ports of all destinations, a bit for each: most packets of a node go no further.
#[unsafe(no_mangle)]
static PORTS: Global<u64> = Global::new(0);

/// Whether any service is translated. The verifier removes what depends on it if not.
#[unsafe(no_mangle)]
static TRANSLATE: Global<u8> = Global::new(0);

/// Cookie of the network namespace that the agent works in; zero for the initial one.
#[unsafe(no_mangle)]
static HOST_NETNS: Global<u64> = Global::new(0);

/// False if no destination has this port (network byte order).
#[inline(always)]
pub fn may_be(port: u16) -> bool {
    PORTS.load() & port_bit(port) != 0
}

/// Whether any service is translated.
#[inline(always)]
pub fn are_translated() -> bool {
    TRANSLATE.load() != 0
}

/// Cookie of the network namespace that the agent works in; zero for the initial one.
#[inline(always)]
pub fn host_netns() -> u64 {
    HOST_NETNS.load()
}

/// The VIP that a destination leads to.
#[inline(always)]
pub fn vip_of(destination: &Endpoint) -> Result<Endpoint, Undecided> {
    let vip = DESTINATIONS
        .get_ptr(destination)
        .ok_or(Undecided::NotForProxy)?;
    // SAFETY: the verifier has seen the null check; entries do not change.
    Ok(unsafe { *vip })
}
