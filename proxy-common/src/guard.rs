// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Decides which packets are dropped so that only this node can reach the VIPs. All hooks share this decision:
//! [`examine`] parses any packet, [`judge`] decides about a parsed one.
//!
//! Dropped are packets from outside to a VIP with one of the proxy's ports, packets with a spoofed VIP as their source,
//! and neighbours' requests for a VIP. No other packet is dropped.

mod read;

pub use read::{ETH_P_IP, ETH_P_IPV6, Frame, Ipv4Ends, Ipv6Ends, examine};

use crate::addr::{Address, Endpoint};

/// The role of a link for the guard and for routes; the value of a map whose key is the ifindex.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Link {
    flags: u32,
    /// The ifindex of the bridge that the link is a port of; zero if it is not a port.
    master: u32,
}

/// The cause of a drop. The number is the index in [`Counters::dropped`](crate::Counters::dropped) and does not change
/// between versions.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The packet arrived on a guarded link and is addressed to the proxy.
    Outside = 0,
    /// The packet has a VIP as its source, or is addressed to the proxy from a loopback address.
    SpoofedSource = 1,
    /// A neighbour on a guarded link requests the hardware address of a VIP or a Service address.
    Neighbour = 2,
    /// The packet appears to be the proxy's reply from a Service address and cannot be genuine: it has another source
    /// port, or resets a connection that has not ended.
    StrayReply = 3,
}

/// A packet that must be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// The cause of the drop.
    pub cause: Cause,
    /// The VIP and port under which the packet is counted.
    pub vip: Endpoint,
}

/// The destination port of a packet behind the IP headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// A TCP port in network byte order.
    Tcp(u16),
    /// The packet is not TCP.
    Other,
    /// The packet may be TCP and its port cannot be read: it is a later fragment, or has more headers than the guard
    /// reads.
    Unknown,
}

/// The facts that the guard's decision depends on.
pub trait Knowledge {
    /// Returns false if an address is certainly not a VIP. This needs no look-up.
    fn may_be_vip(&self, address: &Address) -> bool;
    /// Returns the endpoint under which packets with this VIP and without a readable port are counted, or `None` if the
    /// address is not a VIP.
    fn vip(&self, address: &Address) -> Option<Endpoint>;
    /// Returns the endpoint under which a neighbour's request for this address is counted, or `None` if it is neither a
    /// VIP nor an address of a Service that ends on the proxy.
    fn asked(&self, address: &Address) -> Option<Endpoint>;
    /// Returns whether this is a VIP with one of the proxy's ports.
    fn is_proxy(&self, endpoint: &Endpoint) -> bool;
    /// Returns whether packets with this source are permitted from outside.
    fn is_allowed(&self, source: &Address) -> bool;
    /// Returns the role of the packet's link.
    fn link(&self) -> Link;
}

impl Link {
    const GUARDED: u32 = 1;
    const INNER: u32 = 2;
    const TAGGED: u32 = 4;

    /// Creates the role of a link that is not a port of a bridge. `guarded`: packets that arrive on the link come from
    /// outside of the node. `inner`: packets that arrive on the link may have been sent by the node itself. `tagged`:
    /// packets with a VLAN tag are not seen again without it; they are if a VLAN link is based on this link.
    #[must_use]
    pub const fn new(guarded: bool, inner: bool, tagged: bool) -> Self {
        let mut flags = 0;
        if guarded {
            flags |= Self::GUARDED;
        }
        if inner {
            flags |= Self::INNER;
        }
        if tagged {
            flags |= Self::TAGGED;
        }
        Self { flags, master: 0 }
    }

    /// Returns the same role for a port of the bridge with this ifindex.
    #[must_use]
    pub const fn port_of(self, master: u32) -> Self {
        Self { master, ..self }
    }

    /// Returns the ifindex of the bridge that the link is a port of; zero if it is not a port.
    #[inline(always)]
    #[must_use]
    pub const fn master(self) -> u32 {
        self.master
    }

    /// Returns whether packets that arrive on the link come from outside of the node.
    #[inline(always)]
    #[must_use]
    pub const fn is_guarded(self) -> bool {
        self.flags & Self::GUARDED != 0
    }

    /// Returns whether packets that arrive on the link may have been sent by the node itself.
    #[inline(always)]
    #[must_use]
    pub const fn is_inner(self) -> bool {
        self.flags & Self::INNER != 0
    }

    /// Returns whether packets with a VLAN tag are checked on this link.
    #[inline(always)]
    #[must_use]
    pub const fn takes_tagged(self) -> bool {
        self.flags & Self::TAGGED != 0
    }
}

impl Cause {
    /// All causes in the order of their numbers.
    pub const ALL: [Self; 4] = [
        Self::Outside,
        Self::SpoofedSource,
        Self::Neighbour,
        Self::StrayReply,
    ];
}

/// Returns false if a packet with these addresses is certainly not dropped. This costs one look-up of the link for a
/// packet of a pod to the VIP, and none for nearly every other packet.
#[inline(always)]
pub fn concerns(known: &impl Knowledge, source: &Address, destination: &Address) -> bool {
    known.may_be_vip(source)
        || (known.may_be_vip(destination) && (source.is_loopback() || known.link().is_guarded()))
}

/// Decides about a packet with these addresses. `port` is called only if the decision depends on it.
///
/// # Errors
///
/// Returns an error if the packet must be dropped.
#[inline(always)]
pub fn judge(
    known: &impl Knowledge,
    source: &Address,
    destination: &Address,
    port: impl FnOnce() -> Port,
) -> Result<(), Refused> {
    if !concerns(known, source, destination) {
        return Ok(());
    }
    if known.may_be_vip(source)
        && let Some(vip) = known.vip(source)
        && !known.link().is_inner()
    {
        let cause = Cause::SpoofedSource;
        return Err(Refused { cause, vip });
    }
    let local = source.is_loopback();
    if !local && !known.link().is_guarded() {
        return Ok(());
    }
    let Some(counted) = known.vip(destination) else {
        return Ok(());
    };
    let vip = match port() {
        Port::Other => return Ok(()),
        Port::Unknown => counted,
        Port::Tcp(port) => {
            let endpoint = Endpoint::new(*destination, port);
            if !known.is_proxy(&endpoint) {
                return Ok(());
            }
            endpoint
        }
    };
    let cause = if local {
        Cause::SpoofedSource
    } else if known.is_allowed(source) {
        return Ok(());
    } else {
        Cause::Outside
    };
    Err(Refused { cause, vip })
}

/// Decides about a neighbour's request for an address.
///
/// # Errors
///
/// Returns an error if the request must be dropped.
#[inline(always)]
fn judge_question(
    known: &impl Knowledge,
    source: &Address,
    target: &Address,
) -> Result<(), Refused> {
    if !known.link().is_guarded() {
        return Ok(());
    }
    match known.asked(target) {
        Some(vip) if !known.is_allowed(source) => Err(Refused {
            cause: Cause::Neighbour,
            vip,
        }),
        _ => Ok(()),
    }
}

// SAFETY: `repr(C)`, two integers of the same size, any bit pattern is valid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Link {}

#[cfg(test)]
mod tests;
