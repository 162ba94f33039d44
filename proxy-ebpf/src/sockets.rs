// SPDX-License-Identifier: Apache-2.0

//! Looks for the proxy's sockets.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{bpf_sock, bpf_sock_tuple};
use aya_ebpf::helpers::{bpf_sk_release, bpf_skc_lookup_tcp};
use proxy_common::{ConnectionKey, Endpoint};

/// `BPF_F_CURRENT_NETNS`, -1 as the 32 bits that the helper wants.
const CURRENT_NETNS: u64 = 0xffff_ffff;
/// Lengths of `struct bpf_sock_tuple`, by which the helper tells the family.
const IPV4_TUPLE: u32 = 12;
const IPV6_TUPLE: u32 = 36;
const TCP_TIME_WAIT: u32 = 6;
const TCP_LISTEN: u32 = 10;

/// The key of an IPv4 connection as the socket look-up wants it.
#[repr(C)]
struct Ipv4Tuple {
    client: u32,
    vip: u32,
    client_port: u16,
    vip_port: u16,
}

/// What the proxy has for the addresses and ports of a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Proxy {
    /// No socket at all.
    Absent,
    /// A listener.
    Listening,
    /// A socket that only waits for late packets and gives way to a new connection.
    Waiting,
    /// A connection.
    Connected,
}

/// What the proxy has for a connection.
#[inline(always)]
pub fn proxy(ctx: &impl EbpfContext, key: &ConnectionKey) -> Proxy {
    let (client, vip) = (key.client(), key.vip());
    match (client.address().as_ipv4(), vip.address().as_ipv4()) {
        (Some(client_address), Some(vip_address)) => {
            let tuple = Ipv4Tuple {
                client: client_address,
                vip: vip_address,
                client_port: client.port(),
                vip_port: vip.port(),
            };
            look_up(ctx, (&raw const tuple).cast(), IPV4_TUPLE)
        }
        _ => look_up(ctx, core::ptr::from_ref(key).cast(), IPV6_TUPLE),
    }
}

/// Whether the proxy listens on a VIP at this moment.
#[inline(always)]
pub fn is_listening(ctx: &impl EbpfContext, vip: Endpoint) -> bool {
    // No connection has port zero, so that only a listener is found. The client's address has the
    // family of the VIP's, since the look-up goes by both.
    let nobody = Endpoint::new(vip.address(), 0);
    proxy(ctx, &ConnectionKey::new(nobody, vip)) == Proxy::Listening
}

#[inline(always)]
fn look_up(ctx: &impl EbpfContext, tuple: *const bpf_sock_tuple, length: u32) -> Proxy {
    // SAFETY: `tuple` points to `length` initialised bytes in the layout of the family that the
    // helper tells by the length.
    let socket: *mut bpf_sock =
        unsafe { bpf_skc_lookup_tcp(ctx.as_ptr(), tuple.cast_mut(), length, CURRENT_NETNS, 0) };
    if socket.is_null() {
        return Proxy::Absent;
    }
    // SAFETY: not null, and released on this only path.
    let state = unsafe {
        let state = (*socket).state;
        bpf_sk_release(socket.cast());
        state
    };
    match state {
        TCP_LISTEN => Proxy::Listening,
        TCP_TIME_WAIT => Proxy::Waiting,
        _ => Proxy::Connected,
    }
}
