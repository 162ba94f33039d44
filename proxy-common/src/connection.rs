// SPDX-License-Identifier: Apache-2.0

//! The map of decided connections: its key, its value, and the rules that read it.
//!
//! A connection is decided once, at its SYN, before any NAT. An entry may outlive its connection;
//! these rules make sure that it never speaks for another one.

use crate::addr::{Address, Endpoint};
use crate::packet::Segment;

/// Names a connection between a client and the VIP. Network byte order.
///
/// The layout is that of the kernel's `struct bpf_sock_tuple` for IPv6, so that the key of an IPv6
/// connection can be handed to the socket look-up as it is.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionKey {
    client: Address,
    vip: Address,
    client_port: u16,
    vip_port: u16,
}

/// What was seen of a connection when it was decided.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// Sequence number of the SYN, host byte order.
    isn: u32,
    /// Bytes the SYN carried (TCP Fast Open): the answer may acknowledge them too.
    syn_payload: u32,
    /// What the client addressed, if it was not the VIP itself.
    original: Endpoint,
}

impl ConnectionKey {
    /// The connection between `client` and `vip`.
    #[inline(always)]
    #[must_use]
    pub const fn new(client: Endpoint, vip: Endpoint) -> Self {
        Self {
            client: client.address(),
            vip: vip.address(),
            client_port: client.port(),
            vip_port: vip.port(),
        }
    }

    /// The connection of a segment that a client sent to the VIP.
    #[inline(always)]
    #[must_use]
    pub const fn of_request(segment: &Segment) -> Self {
        Self::new(segment.source(), segment.destination())
    }

    /// The connection of a segment that the VIP sent to a client.
    #[inline(always)]
    #[must_use]
    pub const fn of_reply(segment: &Segment) -> Self {
        Self::new(segment.destination(), segment.source())
    }

    /// The client's end.
    #[inline(always)]
    #[must_use]
    pub const fn client(&self) -> Endpoint {
        Endpoint::new(self.client, self.client_port)
    }

    /// The VIP's end.
    #[inline(always)]
    #[must_use]
    pub const fn vip(&self) -> Endpoint {
        Endpoint::new(self.vip, self.vip_port)
    }
}

impl Connection {
    /// The decision about the connection that `syn` opens. `original` is what the client addressed
    /// if that is translated to the VIP, [`Endpoint::NONE`] otherwise.
    #[inline(always)]
    #[must_use]
    pub const fn opened_by(syn: &Segment, original: Endpoint) -> Self {
        Self {
            isn: syn.seq(),
            syn_payload: syn.payload(),
            original,
        }
    }

    /// The decision about a connection that is already open: whatever its SYN was, it has been
    /// answered.
    #[must_use]
    pub const fn taken_over() -> Self {
        Self {
            isn: 0,
            syn_payload: 0,
            original: Endpoint::NONE,
        }
    }

    /// What the client addressed, if that is translated to the VIP; [`Endpoint::NONE`] otherwise.
    #[inline(always)]
    #[must_use]
    pub const fn original(&self) -> Endpoint {
        self.original
    }

    /// Whether the connection is translated.
    #[inline(always)]
    #[must_use]
    pub fn is_translated(&self) -> bool {
        self.original != Endpoint::NONE
    }

    /// Whether `syn` is the one that was decided, or its retransmission.
    #[inline(always)]
    #[must_use]
    pub const fn is_opened_by(&self, syn: &Segment) -> bool {
        self.isn == syn.seq()
    }

    /// Whether `syn`, now addressed to the VIP, was addressed to a service until it was translated: where
    /// links are stacked (macvlan, bond), each of them shows the packet to the programs.
    #[inline(always)]
    #[must_use]
    pub fn has_translated(&self, syn: &Segment) -> bool {
        self.is_translated() && self.is_opened_by(syn)
    }

    /// Whether a segment from the client is under this decision. A SYN that nobody decided is not,
    /// though an entry of the same client port may still be there.
    #[inline(always)]
    #[must_use]
    pub const fn covers_request(&self, segment: &Segment) -> bool {
        !segment.opens() || self.is_opened_by(segment)
    }

    /// Whether a segment from the VIP is under this decision. An answer to a SYN must acknowledge
    /// the one that was decided; if it does not, another connection reached the VIP by somebody's
    /// DNAT from the same client port, and this entry is a left-over.
    #[inline(always)]
    #[must_use]
    pub const fn covers_reply(&self, segment: &Segment) -> bool {
        let acknowledged = segment.ack().wrapping_sub(self.isn).wrapping_sub(1);
        !segment.answers_opening() || acknowledged <= self.syn_payload
    }
}

// SAFETY: `repr(C)`, integers only, no padding (see the layout test), any bit pattern is valid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for ConnectionKey {}

// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Connection {}

#[cfg(test)]
mod tests;
