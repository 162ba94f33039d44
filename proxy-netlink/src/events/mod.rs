// SPDX-License-Identifier: Apache-2.0

//! Receives the kernel's notifications about links, addresses, routes, traffic control and nf_tables, and selects those
//! that are reported. An event only means that a change is possible: the receiver reads the node's state to find out
//! what changed.

mod datagram;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;

use std::fmt::{self, Display};
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};
use tokio::time::{Instant, sleep_until};

use self::datagram::{actor, in_netfilter_events, in_route_events};
use crate::actor::Actor;

/// Multicast groups of linux/rtnetlink.h and linux/netfilter/nfnetlink.h.
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_TC: u32 = 4;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
const RTNLGRP_IPV6_ROUTE: u32 = 11;
const RTNLGRP_NEXTHOP: u32 = 32;
const NFNLGRP_NFTABLES: u32 = 7;
/// The size of the receive buffer, in bytes, for bursts of events. Events that do not fit are reported as
/// [`Event::Overrun`].
const RECEIVE_BUFFER: usize = 1 << 20;
/// The time to wait for the process that made a change. nf_tables reports it immediately after the change; the limit is
/// for kernels that do not report it.
const SIGNATURE: Duration = Duration::from_millis(2);

/// A change that the kernel reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A link was added, removed or changed.
    Link,
    /// One of the addresses was added or removed.
    Address(IpAddr),
    /// A default route, or a next hop that is an object of its own, was added, removed or changed.
    Route,
    /// The route of one of the addresses was removed.
    LocalRoute(IpAddr),
    /// A queueing discipline or a filter was removed.
    TrafficControl,
    /// An object in a watched table was changed.
    Table(String),
    /// Events were lost because the socket's receive buffer was full.
    Overrun,
}

/// An event, and the process that caused it if the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The event.
    pub event: Event,
    /// The process that caused the event, possibly without its name.
    pub by: Option<Actor>,
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
            Self::Overrun => f.write_str("events were lost"),
        }
    }
}

/// The selection of events that are reported.
#[derive(Debug, Clone, Default)]
pub struct Interest {
    /// Addresses whose addition and removal are reported: VIPs and Services.
    pub addresses: Vec<IpAddr>,
    /// True if changes of default routes are reported.
    pub routes: bool,
    /// Addresses for which the removal of a route is reported.
    pub local_routes: Vec<IpAddr>,
    /// Tables in which every change is reported.
    pub tables: Vec<String>,
    /// Tables and chains in which removals are reported: those that contain iptables rules.
    pub chains: Vec<(&'static str, &'static str)>,
    /// Tables and chains in which new rules and changes of the policy are reported too: filters.
    pub filters: Vec<(&'static str, &'static str)>,
}

/// The two netlink sockets that carry events.
pub struct Events {
    route: TokioSocket,
    /// The netfilter socket. It is absent if the kernel has no nfnetlink, in which case there are no such changes
    /// either.
    netfilter: Option<TokioSocket>,
    interest: Interest,
    unsigned: Option<Unsigned>,
}

/// A change of nf_tables whose process has not been reported yet.
struct Unsigned {
    event: Event,
    /// The port ID in the message about the change.
    port: u32,
    until: Instant,
}

impl Events {
    /// Subscribes to the events of the current network namespace.
    ///
    /// # Errors
    ///
    /// Returns an error if the kernel rejects the rtnetlink subscription.
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
            // The group exists since Linux 5.3. An older kernel has no such next hops.
            let _ = route.socket_mut().add_membership(RTNLGRP_NEXTHOP);
        }
        let netfilter = subscribe(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES]).ok();
        Ok(Self {
            route,
            netfilter,
            interest,
            unsigned: None,
        })
    }

    /// Waits for the next relevant event. The future may be dropped while it waits.
    pub async fn next(&mut self) -> Notice {
        loop {
            let until = self.unsigned.as_ref().map(|change| change.until);
            let notice = tokio::select! {
                // The order matters: the message about the process must be processed before the wait for it times out.
                biased;
                received = receive(self.netfilter.as_ref()) => match received {
                    Ok((datagram, _)) => self.in_netfilter(&datagram),
                    Err(_) => Some(OVERRUN),
                },
                received = self.route.recv_from_full() => match received {
                    Ok((datagram, _)) => in_route_events(&datagram, &self.interest)
                        .map(|(event, port)| Notice { event, by: Actor::of_port(port) }),
                    // ENOBUFS: the queue was full and events were dropped.
                    Err(_) => Some(OVERRUN),
                },
                () = reached(until) => self.unsigned.take().map(|change| Notice {
                    event: change.event,
                    by: Actor::of_port(change.port),
                }),
            };
            if let Some(notice) = notice {
                return notice;
            }
        }
    }

    /// Processes a datagram. A change is held back until its process is known.
    fn in_netfilter(&mut self, datagram: &[u8]) -> Option<Notice> {
        if self.unsigned.is_none() {
            let (event, port) = in_netfilter_events(datagram, &self.interest)?;
            let until = Instant::now() + SIGNATURE;
            self.unsigned = Some(Unsigned { event, port, until });
        }
        let by = actor(datagram)?;
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

/// Waits until a moment, or forever if there is none.
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
