// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Which packets are dropped so that the VIPs answer to this node only. One decision for all hooks:
//! [`examine`] reads any packet, [`judge`] decides about one that is read.
//!
//! Dropped are packets from outside for a VIP with one of the proxy's ports, packets that pretend to
//! come from a VIP, and questions of neighbours for a VIP. Nothing else, whatever it is.

mod read;

pub use read::{ETH_P_IP, ETH_P_IPV6, Frame, Ipv4Ends, Ipv6Ends, examine};

use crate::addr::{Address, Endpoint};

/// The role of a link for the guard and for routes; the value of a map whose key is the ifindex.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Link {
    flags: u32,
    /// The ifindex of the bridge that the link is a port of; zero if it is none.
    master: u32,
}

/// Why a packet is dropped. The number is the place in
/// [`Counters::dropped`](crate::Counters::dropped) and does not change between versions.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// It came by a guarded link and is addressed to the proxy.
    Outside = 0,
    /// It has a VIP as its source, or is addressed to the proxy from a loopback address.
    SpoofedSource = 1,
    /// A neighbour on a guarded link asks who has a VIP or a Service address.
    Neighbour = 2,
    /// It claims to be the proxy's reply from a Service address and cannot be: the reply has another
    /// source port, or resets a connection that goes on.
    StrayReply = 3,
}

/// A packet that is to be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub cause: Cause,
    /// Under which VIP and port it is counted.
    pub vip: Endpoint,
}

/// Where a packet wants to go, behind the IP headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// A TCP port, network byte order.
    Tcp(u16),
    /// It is not TCP.
    Other,
    /// It may be TCP and its port cannot be read: a later fragment, or more headers than the guard
    /// reads.
    Unknown,
}

/// The facts by which the guard decides.
pub trait Knowledge {
    /// False if an address is certainly no VIP; costs nothing.
    fn may_be_vip(&self, address: &Address) -> bool;
    /// Under which endpoint packets are counted that have this VIP and no readable port; none if
    /// the address is no VIP.
    fn vip(&self, address: &Address) -> Option<Endpoint>;
    /// Under which endpoint a neighbour's question for this address is counted; none if it is neither a
    /// VIP nor an address of a Service that ends on the proxy.
    fn asked(&self, address: &Address) -> Option<Endpoint>;
    /// Whether this is a VIP with one of the proxy's ports.
    fn is_proxy(&self, endpoint: &Endpoint) -> bool;
    /// Whether this source may come from outside.
    fn is_allowed(&self, source: &Address) -> bool;
    /// The role of the packet's link.
    fn link(&self) -> Link;
}

impl Link {
    const GUARDED: u32 = 1;
    const INNER: u32 = 2;
    const TAGGED: u32 = 4;

    /// `guarded`: packets that arrive there come from outside of the node. `inner`: packets that
    /// arrive there may have been sent by the node itself. `tagged`: packets with a VLAN tag are
    /// not seen again without, as they are where a VLAN link sits on this one.
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

    /// The same link as a port of the bridge with this ifindex.
    #[must_use]
    pub const fn port_of(self, master: u32) -> Self {
        Self { master, ..self }
    }

    /// The ifindex of the bridge that the link is a port of; zero if it is none.
    #[inline(always)]
    #[must_use]
    pub const fn master(self) -> u32 {
        self.master
    }

    /// Whether packets that arrive there come from outside of the node.
    #[inline(always)]
    #[must_use]
    pub const fn is_guarded(self) -> bool {
        self.flags & Self::GUARDED != 0
    }

    /// Whether packets that arrive there may have been sent by the node itself.
    #[inline(always)]
    #[must_use]
    pub const fn is_inner(self) -> bool {
        self.flags & Self::INNER != 0
    }

    /// Whether packets with a VLAN tag are judged there.
    #[inline(always)]
    #[must_use]
    pub const fn takes_tagged(self) -> bool {
        self.flags & Self::TAGGED != 0
    }
}

impl Cause {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 4] = [
        Self::Outside,
        Self::SpoofedSource,
        Self::Neighbour,
        Self::StrayReply,
    ];
}

/// False if a packet with these addresses is certainly not dropped. That costs a packet of a pod to
/// the VIP one look-up of its link, and nearly every other packet none.
#[inline(always)]
pub fn concerns(known: &impl Knowledge, source: &Address, destination: &Address) -> bool {
    known.may_be_vip(source)
        || (known.may_be_vip(destination) && (source.is_loopback() || known.link().is_guarded()))
}

/// Decides about a packet with these addresses. `port` is asked only where it matters.
///
/// # Errors
///
/// If the packet is to be dropped.
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

/// Decides about a neighbour's question for an address.
///
/// # Errors
///
/// If the question is to be dropped.
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
