// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The Services whose connections end on the proxy, the listener of each, and the SYNs that were
//! decided.

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

/// By address and port. Filled before the programs are attached; afterwards only `draining` changes.
#[map]
static SERVICES: HashMap<Endpoint, Service> = HashMap::with_max_entries(MAX_SERVICES, 0);

/// The ports of each Service address.
#[map]
static SERVICE_PORTS: HashMap<Address, ServicePorts> = HashMap::with_max_entries(MAX_SERVICES, 0);

/// The proxy's listeners, each by the VIP and port that it was found at. A socket leaves the map by itself
/// when it stops listening. Pinned, so that the programs of two agents share them during an upgrade.
#[map]
static LISTENERS: SockHash<Endpoint> = SockHash::pinned(MAX_VIPS, 0);

/// The listeners that the agent wants to be kept, by the cookies of their sockets. The iterator takes out what it
/// has kept.
#[map]
static WANTED: HashMap<u64, Endpoint> = HashMap::with_max_entries(MAX_VIPS, 0);

/// Whether the classifier leaves `LISTENERS` alone: the agent keeps them, since this kernel refuses classifiers to, or
/// there is no Service.
#[unsafe(no_mangle)]
static KEPT_BY_AGENT: Global<u8> = Global::new(0);

/// The connections to Services whose SYN was decided: the contract between TC and the socket
/// look-up, which takes place once for each connection, microseconds later. What is evicted under a
/// flood of SYNs is the oldest of them. Pinned like the listeners.
#[map]
static OPENING: LruHashMap<ConnectionKey, u32> = LruHashMap::pinned(DEFAULT_MAX_CONNECTIONS, 0);

/// The ports of all VIPs and Services, a bit for each: most packets of a node go no further.
#[unsafe(no_mangle)]
static PORTS: Global<u64> = Global::new(0);

/// The addresses of all Services, a bit for each; zero if there is none, and then the verifier removes code that
/// depends on it.
#[unsafe(no_mangle)]
static SERVICE_ADDRESSES: Global<u64> = Global::new(0);

/// Cookie of the network namespace that the agent works in; zero for the initial one.
#[unsafe(no_mangle)]
static HOST_NETNS: Global<u64> = Global::new(0);

/// Whether a listener on the wildcard address counts as the proxy.
#[unsafe(no_mangle)]
static ANY_LISTENER: Global<u8> = Global::new(0);

/// False if no VIP or Service has this port (network byte order).
#[inline(always)]
pub fn may_be_port(port: u16) -> bool {
    PORTS.load() & port_bit(port) != 0
}

/// False if this is certainly no Service address.
#[inline(always)]
pub fn may_be_address(address: &Address) -> bool {
    SERVICE_ADDRESSES.load() & address_bit(address) != 0
}

/// Cookie of the network namespace that the agent works in; zero for the initial one.
#[inline(always)]
pub fn host_netns() -> u64 {
    HOST_NETNS.load()
}

/// Whether a listener on the wildcard address counts as the proxy.
#[inline(always)]
pub fn takes_any_listener() -> bool {
    ANY_LISTENER.load() != 0
}

/// The Service of an address and port.
#[inline(always)]
pub fn get(endpoint: &Endpoint) -> Result<Service, Undecided> {
    let service = SERVICES.get_ptr(endpoint).ok_or(Undecided::NotForProxy)?;
    // SAFETY: the verifier has seen the null check; of an entry one word changes at most.
    Ok(unsafe { *service })
}

/// The ports of a Service address.
#[inline(always)]
pub fn ports(address: &Address) -> Result<ServicePorts, Undecided> {
    let ports = SERVICE_PORTS
        .get_ptr(address)
        .ok_or(Undecided::NotForProxy)?;
    // SAFETY: the verifier has seen the null check; entries do not change.
    Ok(unsafe { *ports })
}

/// Sees to it that a listener on this address is kept for the socket look-up, which is at most once for each
/// socket (classifiers may do so from Linux 5.10 to 7.2).
#[inline(always)]
pub fn keep_listener(vip: &Endpoint, listener: *mut bpf_sock) -> Result<(), Undecided> {
    if keeps_one_like(vip, listener) {
        Ok(())
    } else if KEPT_BY_AGENT.load() != 0 {
        // The agent will notice.
        Err(Undecided::NoListener)
    } else {
        keep(vip, listener.cast())
    }
}

/// Whether a listener is kept that is bound to the same address.
#[inline(always)]
fn keeps_one_like(vip: &Endpoint, listener: *mut bpf_sock) -> bool {
    // SAFETY: a map and its key.
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
    // SAFETY: neither is null, and the kept one is released on this only path.
    unsafe {
        let is_same = address(kept) == address(listener);
        bpf_sk_release(kept.cast());
        is_same
    }
}

/// The address that a socket is bound to, as IPv4 and as IPv6.
///
/// # Safety
///
/// The socket is one that a look-up has found.
#[inline(always)]
pub unsafe fn address(socket: *mut bpf_sock) -> (u32, [u32; 4]) {
    // SAFETY: by the caller; the words are read one by one, as the verifier wants it.
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

/// Keeps a socket if the agent wants it to be kept.
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

/// Puts a listener into the map.
#[inline(always)]
fn keep(vip: &Endpoint, listener: *mut c_void) -> Result<(), Undecided> {
    // SAFETY: the kernel takes a socket as the value of this kind of map, and a reference of its own.
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

/// Gives a connection to the listener of a VIP.
#[inline(always)]
pub fn assign(ctx: &SkLookupContext, vip: Endpoint) -> Result<(), Undecided> {
    LISTENERS
        .redirect_sk_lookup(ctx, vip, 0)
        .map_err(|_| Undecided::NoListener)
}

/// Decides the connection that a SYN opens.
#[inline(always)]
pub fn decide(key: &ConnectionKey) -> Result<(), Undecided> {
    OPENING
        .insert(key, 1, u64::from(BPF_ANY))
        .map_err(|_| Undecided::MapFull)
}

/// Whether the SYN of a connection was decided.
#[inline(always)]
pub fn is_decided(key: &ConnectionKey) -> bool {
    OPENING.get_ptr(key).is_some()
}

/// Takes a decision back.
#[inline(always)]
pub fn forget(key: &ConnectionKey) {
    // It may be none, or have been evicted: then there is nothing to take back.
    let _ = OPENING.remove(key);
}
