// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Looks up the proxy's sockets.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{bpf_sock, bpf_sock_tuple};
use aya_ebpf::helpers::{bpf_sk_lookup_tcp, bpf_sk_release, bpf_skc_lookup_tcp};
use proxy_common::service::{self, state};
use proxy_common::{Address, ConnectionKey, Endpoint};

use crate::maps::services;
use crate::packet::Undecided;

/// `BPF_F_CURRENT_NETNS`, which is -1, as the 32 bits that the helper expects.
const CURRENT_NETNS: u64 = 0xffff_ffff;
/// The lengths of `struct bpf_sock_tuple`, by which the helper recognises the family.
const IPV4_TUPLE: u32 = 12;
const IPV6_TUPLE: u32 = 36;
const ANY_IPV6: [u32; 4] = [0; 4];

/// The key of an IPv4 connection in the format of the socket look-up.
#[repr(C)]
struct Ipv4Tuple {
    client: u32,
    local: u32,
    client_port: u16,
    local_port: u16,
}

/// Calls the look-up with the key in the format of its family.
macro_rules! look_up {
    ($helper:ident, $ctx:expr, $key:expr) => {{
        let key: &ConnectionKey = $key;
        let (client, local) = (key.client(), key.local());
        let tuple;
        let (tuple, length): (*const bpf_sock_tuple, u32) =
            match (client.address().as_ipv4(), local.address().as_ipv4()) {
                (Some(client_address), Some(local_address)) => {
                    tuple = Ipv4Tuple {
                        client: client_address,
                        local: local_address,
                        client_port: client.port(),
                        local_port: local.port(),
                    };
                    ((&raw const tuple).cast(), IPV4_TUPLE)
                }
                _ => (core::ptr::from_ref(key).cast(), IPV6_TUPLE),
            };
        // SAFETY: `tuple` points to `length` initialised bytes in the layout of the family that the
        // helper recognises by the length.
        unsafe { $helper($ctx.as_ptr(), tuple.cast_mut(), length, CURRENT_NETNS, 0) }
    }};
}

/// Passes the proxy's listener on a VIP to `use_it`, if it exists at this moment.
#[inline(always)]
pub fn with_listener(
    ctx: &impl EbpfContext,
    vip: Endpoint,
    use_it: impl FnOnce(*mut bpf_sock) -> Result<(), Undecided>,
) -> Result<(), Undecided> {
    // No connection has port zero, so that only a listener is found. The client's address has the family of the VIP,
    // because the look-up uses both addresses.
    let from_nowhere = Endpoint::new(vip.address(), 0);
    let key = ConnectionKey::new(from_nowhere, vip);
    let socket: *mut bpf_sock = look_up!(bpf_sk_lookup_tcp, ctx, &key);
    if socket.is_null() {
        return Err(Undecided::NoListener);
    }
    let outcome = if is_proxy(socket, &vip.address()) {
        use_it(socket)
    } else {
        Err(Undecided::NoListener)
    };
    // SAFETY: the pointer is not null, and it is released on this only path.
    unsafe { bpf_sk_release(socket.cast()) };
    outcome
}

/// Returns whether a socket is a listener that counts as the proxy: one that is bound to the VIP. Another program's
/// listener on the wildcard address must not receive the API server's clients while the proxy is down.
#[inline(always)]
fn is_proxy(socket: *mut bpf_sock, vip: &Address) -> bool {
    // SAFETY: the pointer is not null.
    let (state, (ipv4, ipv6)) = unsafe { ((*socket).state, services::address(socket)) };
    let bound = match vip.as_ipv4() {
        // This is also true for an IPv6 socket that accepts IPv4.
        Some(word) => ipv4 == word || (services::takes_any_listener() && ipv4 == 0),
        None => ipv6 == vip.words() || (services::takes_any_listener() && ipv6 == ANY_IPV6),
    };
    state == state::LISTEN && bound
}

/// Returns whether the node has a connection that has not ended.
#[inline(always)]
pub fn goes_on(ctx: &impl EbpfContext, key: &ConnectionKey) -> bool {
    let socket: *mut bpf_sock = look_up!(bpf_skc_lookup_tcp, ctx, key);
    if socket.is_null() {
        return false;
    }
    // SAFETY: the pointer is not null, and it is released on this only path.
    let state = unsafe {
        let state = (*socket).state;
        bpf_sk_release(socket.cast());
        state
    };
    service::goes_on(state)
}
