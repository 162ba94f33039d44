// SPDX-License-Identifier: Apache-2.0

//! Listens to what the kernel tells about links, addresses, default routes, traffic control, nf_tables and pins, and
//! passes on what may concern us. What is done about it is decided by a full look at the node:
//! an event only says that it is time for one.

mod datagram;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;

use std::fmt::{self, Display};
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};
use tokio::time::{Instant, sleep_until};

use self::datagram::{author, in_netfilter_events, in_route_events};
use super::author::By;
use super::pins::Pins;

/// Multicast groups of linux/rtnetlink.h and linux/netfilter/nfnetlink.h.
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_TC: u32 = 4;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
const RTNLGRP_IPV6_ROUTE: u32 = 11;
const RTNLGRP_NEXTHOP: u32 = 32;
const NFNLGRP_NFTABLES: u32 = 7;
/// Room for a burst of events; what does not fit is made up for by a full look.
const RECEIVE_BUFFER: usize = 1 << 20;
/// nf_tables tells who made a change behind the change itself, at once. A kernel that does not is not
/// waited for longer.
const SIGNATURE: Duration = Duration::from_millis(2);

/// Something that may concern us, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A link came, went or changed.
    Link,
    /// One of the addresses was added or removed.
    Address(IpAddr),
    /// A default route came, went or changed, or a next hop with a number of its own.
    Route,
    /// A route of one of the addresses was removed.
    LocalRoute(IpAddr),
    /// A queueing discipline or filter was removed.
    TrafficControl,
    /// Something of a table we watch was changed.
    Table(String),
    /// Pins were removed, or the BPF file system was unmounted or mounted.
    Pins,
    /// More happened than the socket could hold.
    Overrun,
}

/// An event, and who brought it about if the kernel tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// What happened.
    pub event: Event,
    /// Who did it, maybe without a name.
    pub by: Option<By>,
}

impl Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link => f.write_str("a link changed"),
            Self::Address(ip) => write!(f, "address {ip} changed"),
            Self::Route => f.write_str("a default route changed"),
            Self::LocalRoute(ip) => write!(f, "the route of {ip} was removed"),
            Self::TrafficControl => f.write_str("traffic control objects were removed"),
            Self::Table(name) => write!(f, "nf_tables table {name} changed"),
            Self::Pins => f.write_str("pins were removed"),
            Self::Overrun => f.write_str("events were lost"),
        }
    }
}

/// Which events concern us.
#[derive(Debug, Clone, Default)]
pub struct Interest {
    /// Addresses that count when they come or go: VIPs and Services.
    pub addresses: Vec<IpAddr>,
    /// Default routes.
    pub routes: bool,
    /// Addresses whose routes count when they are removed.
    pub local_routes: Vec<IpAddr>,
    /// Tables of which every change counts.
    pub tables: Vec<String>,
    /// Tables and chains of which removals count: those that iptables rules live in.
    pub chains: Vec<(&'static str, &'static str)>,
    /// A directory of pins of which removals count.
    pub pins: Option<PathBuf>,
}

/// The two netlink sockets that carry events, and the watch over pins.
pub struct Monitor {
    route: TokioSocket,
    /// Absent where the kernel has no nfnetlink: then nothing can change there either.
    netfilter: Option<TokioSocket>,
    pins: Option<Pins>,
    interest: Interest,
    unsigned: Option<Unsigned>,
}

/// A change of nf_tables of which the author is still to be told.
struct Unsigned {
    event: Event,
    /// The port id it came from.
    port: u32,
    until: Instant,
}

impl Monitor {
    /// Subscribes in the current network namespace.
    ///
    /// # Errors
    ///
    /// If the kernel refuses the rtnetlink subscription.
    pub fn open(interest: Interest) -> io::Result<Self> {
        let mut groups = vec![
            RTNLGRP_LINK,
            RTNLGRP_TC,
            RTNLGRP_IPV4_IFADDR,
            RTNLGRP_IPV6_IFADDR,
        ];
        if interest.routes || !interest.local_routes.is_empty() {
            groups.extend([RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE]);
        }
        let mut route = subscribe(NETLINK_ROUTE, &groups)?;
        if interest.routes {
            // Since Linux 5.3; a kernel before that has no such next hops.
            let _ = route.socket_mut().add_membership(RTNLGRP_NEXTHOP);
        }
        let netfilter = subscribe(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES]).ok();
        // Without it pins are looked after in each resync.
        let pins = interest.pins.clone();
        let pins = pins.and_then(|root| Pins::watch(root).ok());
        Ok(Self {
            route,
            netfilter,
            pins,
            interest,
            unsigned: None,
        })
    }

    /// Waits for the next event that may concern us. May be dropped while it waits.
    pub async fn next(&mut self) -> Notice {
        loop {
            let until = self.unsigned.as_ref().map(|change| change.until);
            let notice = tokio::select! {
                // In this order: the author comes before the end of the wait for it.
                biased;
                received = receive(self.netfilter.as_ref()) => match received {
                    Ok((datagram, _)) => self.in_netfilter(&datagram),
                    Err(_) => Some(OVERRUN),
                },
                received = self.route.recv_from_full() => match received {
                    Ok((datagram, _)) => in_route_events(&datagram, &self.interest)
                        .map(|(event, port)| Notice { event, by: By::port(port) }),
                    // ENOBUFS: the queue was full and events were dropped.
                    Err(_) => Some(OVERRUN),
                },
                () = removed(self.pins.as_mut()) => Some(Notice { event: Event::Pins, by: None }),
                () = reached(until) => self.unsigned.take().map(|change| Notice {
                    event: change.event,
                    by: By::port(change.port),
                }),
            };
            if let Some(notice) = notice {
                return notice;
            }
        }
    }

    /// A change is passed on together with its author.
    fn in_netfilter(&mut self, datagram: &[u8]) -> Option<Notice> {
        if self.unsigned.is_none() {
            let (event, port) = in_netfilter_events(datagram, &self.interest)?;
            let until = Instant::now() + SIGNATURE;
            self.unsigned = Some(Unsigned { event, port, until });
        }
        let by = author(datagram)?;
        let change = self.unsigned.take()?;
        Some(Notice {
            event: change.event,
            by: Some(by),
        })
    }
}

const OVERRUN: Notice = Notice {
    event: Event::Overrun,
    by: None,
};

/// Waits until pins are removed; for ever without a watch.
async fn removed(pins: Option<&mut Pins>) {
    match pins {
        Some(pins) => pins.removed().await,
        None => std::future::pending().await,
    }
}

/// Waits for a moment; for ever without one.
async fn reached(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

async fn receive(socket: Option<&TokioSocket>) -> io::Result<(Vec<u8>, SocketAddr)> {
    match socket {
        Some(socket) => socket.recv_from_full().await,
        None => std::future::pending().await,
    }
}

fn subscribe(protocol: isize, groups: &[u32]) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocol)?;
    let inner = socket.socket_mut();
    inner.bind(&SocketAddr::new(0, 0))?;
    inner.set_rx_buf_sz(RECEIVE_BUFFER)?;
    for group in groups {
        inner.add_membership(*group)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests;
