// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The socket look-up of the network namespace: assigns the SYN of a decided connection to the proxy's listener, and
//! keeps every other listener from connections to the Services.
//!
//! The kernel runs it for packets that belong to no connection of the node, in two places: where the rule in raw
//! PREROUTING looks up a socket, before any NAT, and where the packet is delivered. So the rule untracks exactly the
//! packets that the proxy will receive.

use aya_ebpf::bindings::bpf_sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use proxy_common::{Address, ConnectionKey, Endpoint};

use crate::maps::services;
use crate::packet::Undecided;

const AF_INET: u32 = 2;
const PROTOCOL_TCP: u32 = 6;

/// Assigns the connection to the proxy. With [`Undecided::NotForProxy`] the connection belongs to another listener;
/// with any other error it must find no listener at all.
#[inline(always)]
pub fn steer(ctx: &SkLookupContext) -> Result<(), Undecided> {
    let lookup = ctx.lookup;
    // SAFETY: the kernel passes a valid context to the program.
    let (protocol, port) = unsafe { ((*lookup).protocol, (*lookup).local_port) };
    #[expect(clippy::cast_possible_truncation, reason = "a port has 16 bits")]
    let port = (port as u16).to_be();
    if protocol != PROTOCOL_TCP || !services::may_be_port(port) {
        return Err(Undecided::NotForProxy);
    }
    let (remote, local) = ends(lookup);
    let service = services::get(&Endpoint::new(local, port))?;
    // SAFETY: as above.
    let remote_port = unsafe { (*lookup).remote_port };
    let client = Endpoint::new(remote, remote_port);
    let key = ConnectionKey::new(client, Endpoint::new(local, port));
    if !services::is_decided(&key) {
        return Err(Undecided::NoDecision);
    }
    services::assign(ctx, service.vip())
}

/// Returns the addresses of the remote and the local end.
#[inline(always)]
fn ends(lookup: *mut bpf_sk_lookup) -> (Address, Address) {
    // SAFETY: the kernel passes a valid context to the program. The words are read one by one, as the verifier
    // requires.
    unsafe {
        if (*lookup).family == AF_INET {
            return (
                Address::from_ipv4((*lookup).remote_ip4),
                Address::from_ipv4((*lookup).local_ip4),
            );
        }
        (
            Address::from_ipv6([
                core::ptr::read_volatile(&raw const (*lookup).remote_ip6[0]),
                core::ptr::read_volatile(&raw const (*lookup).remote_ip6[1]),
                core::ptr::read_volatile(&raw const (*lookup).remote_ip6[2]),
                core::ptr::read_volatile(&raw const (*lookup).remote_ip6[3]),
            ]),
            Address::from_ipv6([
                core::ptr::read_volatile(&raw const (*lookup).local_ip6[0]),
                core::ptr::read_volatile(&raw const (*lookup).local_ip6[1]),
                core::ptr::read_volatile(&raw const (*lookup).local_ip6[2]),
                core::ptr::read_volatile(&raw const (*lookup).local_ip6[3]),
            ]),
        )
    }
}
