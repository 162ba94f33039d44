// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The Services whose connections end on the proxy, the listener of each, and the decided SYNs.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_ANY, bpf_sock};
use aya_ebpf::helpers::{bpf_map_lookup_elem, bpf_map_update_elem, bpf_sk_release};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, LruHashMap, SockHash};
use aya_ebpf::programs::SkLookupContext;
use proxy_common::limits::{
    DEFAULT_MAX_CONNECTIONS, MAX_SERVICES, MAX_VIPS, address_bit, port_bit,
};
use proxy_common::{Address, ConnectionKey, Endpoint, Service, ServicePorts};

use crate::packet::Undecided;

/// The Services by address and port. The agent fills the map before it attaches the programs; afterwards only
/// `draining` changes.
#[map]
static SERVICES: HashMap<Endpoint, Service> = HashMap::with_max_entries(MAX_SERVICES, 0);

/// The ports of each Service address.
#[map]
static SERVICE_PORTS: HashMap<Address, ServicePorts> = HashMap::with_max_entries(MAX_SERVICES, 0);

/// The proxy's listeners by VIP and port at which they were found. The kernel removes a socket from the map when it
/// stops listening. The map is pinned, so that the programs of two agents share it during an upgrade.
#[map]
static LISTENERS: SockHash<Endpoint> = SockHash::pinned(MAX_VIPS, 0);

/// The listeners that the agent requests, by socket cookie. The iterator removes the entries of those that it has
/// stored.
#[map]
static WANTED: HashMap<u64, Endpoint> = HashMap::with_max_entries(MAX_VIPS, 0);

/// Whether the classifier leaves `LISTENERS` alone: either the agent maintains it, because this kernel does not permit
/// classifiers to, or there is no Service.
#[unsafe(no_mangle)]
static KEPT_BY_AGENT: Global<u8> = Global::new(0);

/// The connections to Services whose SYN was decided: the contract between TC and the socket look-up, which takes place
/// once for each connection, microseconds later. A flood of SYNs evicts the oldest entries. The map is pinned like the
/// listeners.
#[map]
static OPENING: LruHashMap<ConnectionKey, u32> = LruHashMap::pinned(DEFAULT_MAX_CONNECTIONS, 0);

/// The set of the ports of all VIPs and Services, one bit for each: most packets of a node are not checked any further.
#[unsafe(no_mangle)]
static PORTS: Global<u64> = Global::new(0);

/// The set of the addresses of all Services, one bit for each; zero if there is none, in which case the verifier
/// removes code that depends on it.
#[unsafe(no_mangle)]
static SERVICE_ADDRESSES: Global<u64> = Global::new(0);

/// The cookie of the agent's network namespace; zero for the initial one.
#[unsafe(no_mangle)]
static HOST_NETNS: Global<u64> = Global::new(0);

/// Whether a listener on the wildcard address counts as the proxy.
#[unsafe(no_mangle)]
static ANY_LISTENER: Global<u8> = Global::new(0);

/// Returns false if no VIP or Service has this port (network byte order).
#[inline(always)]
pub fn may_be_port(port: u16) -> bool {
    PORTS.load() & port_bit(port) != 0
}

/// Returns false if this is certainly not the address of a Service.
#[inline(always)]
pub fn may_be_address(address: &Address) -> bool {
    SERVICE_ADDRESSES.load() & address_bit(address) != 0
}

/// Returns the cookie of the agent's network namespace; zero for the initial one.
#[inline(always)]
pub fn host_netns() -> u64 {
    HOST_NETNS.load()
}

/// Returns whether a listener on the wildcard address counts as the proxy.
#[inline(always)]
pub fn takes_any_listener() -> bool {
    ANY_LISTENER.load() != 0
}

/// Returns the Service of an address and port.
#[inline(always)]
pub fn get(endpoint: &Endpoint) -> Result<Service, Undecided> {
    let service = SERVICES.get_ptr(endpoint).ok_or(Undecided::NotForProxy)?;
    // SAFETY: the verifier has seen the null check; at most one word of an entry changes.
    Ok(unsafe { *service })
}

/// Returns the ports of a Service's address.
#[inline(always)]
pub fn ports(address: &Address) -> Result<ServicePorts, Undecided> {
    let ports = SERVICE_PORTS
        .get_ptr(address)
        .ok_or(Undecided::NotForProxy)?;
    // SAFETY: the verifier has seen the null check; entries do not change.
    Ok(unsafe { *ports })
}

/// Ensures that a listener on this address is stored for the socket look-up, at most once for each socket (classifiers
/// may do so from Linux 5.10 to 7.2).
#[inline(always)]
pub fn keep_listener(vip: &Endpoint, listener: *mut bpf_sock) -> Result<(), Undecided> {
    if keeps_one_like(vip, listener) {
        Ok(())
    } else if KEPT_BY_AGENT.load() != 0 {
        // The agent detects the missing listener.
        Err(Undecided::NoListener)
    } else {
        keep(vip, listener.cast())
    }
}

/// Returns whether a listener is stored that is bound to the same address.
#[inline(always)]
fn keeps_one_like(vip: &Endpoint, listener: *mut bpf_sock) -> bool {
    // SAFETY: the arguments are a map and its key.
    let kept: *mut bpf_sock = unsafe {
        bpf_map_lookup_elem(
            (&raw const LISTENERS).cast_mut().cast(),
            ptr::from_ref(vip).cast(),
        )
    }
    .cast();
    if kept.is_null() {
        return false;
    }
    // SAFETY: neither is null, and the stored one is released on this only path.
    unsafe {
        let is_same = address(kept) == address(listener);
        bpf_sk_release(kept.cast());
        is_same
    }
}

/// Returns the address that a socket is bound to, as IPv4 and as IPv6.
///
/// # Safety
///
/// The socket must be one that a look-up has found.
#[inline(always)]
pub unsafe fn address(socket: *mut bpf_sock) -> (u32, [u32; 4]) {
    // SAFETY: the caller guarantees that the socket is valid; the words are read one by one, as the verifier requires.
    unsafe {
        (
            ptr::read_volatile(&raw const (*socket).src_ip4),
            [
                ptr::read_volatile(&raw const (*socket).src_ip6[0]),
                ptr::read_volatile(&raw const (*socket).src_ip6[1]),
                ptr::read_volatile(&raw const (*socket).src_ip6[2]),
                ptr::read_volatile(&raw const (*socket).src_ip6[3]),
            ],
        )
    }
}

/// Stores a socket if the agent has requested it.
#[inline(always)]
pub fn keep_wanted(cookie: u64, socket: *mut c_void) {
    let Some(vip) = WANTED.get_ptr(cookie) else {
        return;
    };
    // SAFETY: the verifier has seen the null check; the agent changes no entry.
    let vip = unsafe { *vip };
    if keep(&vip, socket).is_ok() {
        // The agent reads from the remaining entries which listeners were not found.
        let _ = WANTED.remove(cookie);
    }
}

/// Stores a listener in the map.
#[inline(always)]
fn keep(vip: &Endpoint, listener: *mut c_void) -> Result<(), Undecided> {
    // SAFETY: the kernel accepts a socket as the value of this kind of map, and takes its own reference.
    let refused = unsafe {
        bpf_map_update_elem(
            (&raw const LISTENERS).cast_mut().cast(),
            ptr::from_ref(vip).cast(),
            listener.cast_const(),
            u64::from(BPF_ANY),
        )
    };
    if refused == 0 {
        Ok(())
    } else {
        Err(Undecided::MapFull)
    }
}

/// Assigns a connection to the listener of a VIP.
#[inline(always)]
pub fn assign(ctx: &SkLookupContext, vip: Endpoint) -> Result<(), Undecided> {
    LISTENERS
        .redirect_sk_lookup(ctx, vip, 0)
        .map_err(|_| Undecided::NoListener)
}

/// Records that the connection of a SYN is decided.
#[inline(always)]
pub fn decide(key: &ConnectionKey) -> Result<(), Undecided> {
    OPENING
        .insert(key, 1, u64::from(BPF_ANY))
        .map_err(|_| Undecided::MapFull)
}

/// Returns whether the SYN of a connection was decided.
#[inline(always)]
pub fn is_decided(key: &ConnectionKey) -> bool {
    OPENING.get_ptr(key).is_some()
}

/// Removes a decision.
#[inline(always)]
pub fn forget(key: &ConnectionKey) {
    // There may be no entry, or it may have been evicted: then there is nothing to remove.
    let _ = OPENING.remove(key);
}
