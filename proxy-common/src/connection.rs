// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The key of a connection between a client and this node, in the format of maps and of the
//! kernel's socket look-up.

use crate::addr::{Address, Endpoint};
use crate::packet::Segment;

/// Identifies a connection between a client and an address of this node, in network byte order.
///
/// The layout is that of the kernel's `struct bpf_sock_tuple` for IPv6, so that the key of an IPv6
/// connection can be passed to the socket look-up unchanged.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionKey {
    client: Address,
    local: Address,
    client_port: u16,
    local_port: u16,
}

impl ConnectionKey {
    /// Returns the key of the connection between `client` and `local`, an endpoint of this node.
    #[inline(always)]
    #[must_use]
    pub const fn new(client: Endpoint, local: Endpoint) -> Self {
        Self {
            client: client.address(),
            local: local.address(),
            client_port: client.port(),
            local_port: local.port(),
        }
    }

    /// Returns the key of the connection of a segment that a client sent.
    #[inline(always)]
    #[must_use]
    pub const fn of_request(segment: &Segment) -> Self {
        Self::new(segment.source(), segment.destination())
    }

    /// Returns the client's end.
    #[inline(always)]
    #[must_use]
    pub const fn client(&self) -> Endpoint {
        Endpoint::new(self.client, self.client_port)
    }

    /// Returns this node's end.
    #[inline(always)]
    #[must_use]
    pub const fn local(&self) -> Endpoint {
        Endpoint::new(self.local, self.local_port)
    }
}

// SAFETY: `repr(C)`, integers only, no padding (see the layout test), any bit pattern is valid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for ConnectionKey {}

#[cfg(test)]
mod tests {
    use core::mem::{align_of, offset_of, size_of};
    use std::net::SocketAddr;

    use super::*;

    /// `struct bpf_sock_tuple`: saddr, daddr, sport, dport.
    #[test]
    fn the_layout_is_that_of_the_socket_look_up() {
        assert_eq!(size_of::<ConnectionKey>(), 36);
        assert_eq!(align_of::<ConnectionKey>(), 4);
        assert_eq!(offset_of!(ConnectionKey, local), 16);
        assert_eq!(offset_of!(ConnectionKey, client_port), 32);
        assert_eq!(offset_of!(ConnectionKey, local_port), 34);
    }

    #[test]
    fn both_ends_are_given_back() {
        let client = Endpoint::from("10.244.0.10:40000".parse::<SocketAddr>().unwrap());
        let local = Endpoint::from("[fd00::1]:443".parse::<SocketAddr>().unwrap());
        let key = ConnectionKey::new(client, local);
        assert_eq!((key.client(), key.local()), (client, local));
    }
}
