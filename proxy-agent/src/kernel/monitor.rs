// SPDX-License-Identifier: Apache-2.0

//! Listens to what the kernel tells about links, addresses, traffic control and nf_tables, and
//! passes on what may concern us. What is done about it is decided by a full look at the node:
//! an event only says that it is time for one.

use std::fmt::{self, Display};
use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, NfTablesMessage, RuleAttribute, RuleMessage, TableAttribute,
    TableMessage,
};
use netlink_packet_netfilter::{NetfilterMessage, NetfilterMessageInner};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};

/// Multicast groups of linux/rtnetlink.h and linux/netfilter/nfnetlink.h.
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_TC: u32 = 4;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
const NFNLGRP_NFTABLES: u32 = 7;
/// Room for a burst of events; what does not fit is made up for by a full look.
const RECEIVE_BUFFER: usize = 1 << 20;

/// Something that may concern us, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A link came, went or changed.
    Link,
    /// One of the VIPs was added or removed.
    Address(IpAddr),
    /// A queueing discipline or filter was removed.
    TrafficControl,
    /// Something of a table we watch was changed.
    Table(String),
    /// More happened than the socket could hold.
    Overrun,
}

impl Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link => f.write_str("a link changed"),
            Self::Address(ip) => write!(f, "address {ip} changed"),
            Self::TrafficControl => f.write_str("traffic control objects were removed"),
            Self::Table(name) => write!(f, "nf_tables table {name} changed"),
            Self::Overrun => f.write_str("events were lost"),
        }
    }
}

/// Which events concern us.
#[derive(Debug, Clone, Default)]
pub struct Interest {
    /// The VIPs.
    pub vips: Vec<IpAddr>,
    /// Tables of which every change counts.
    pub tables: Vec<&'static str>,
    /// Tables and chains of which removals count: those that iptables rules live in.
    pub chains: Vec<(&'static str, &'static str)>,
}

/// The two netlink sockets that carry events.
pub struct Monitor {
    route: TokioSocket,
    /// Absent where the kernel has no nfnetlink: then nothing can change there either.
    netfilter: Option<TokioSocket>,
    interest: Interest,
}

impl Monitor {
    /// Subscribes in the current network namespace.
    ///
    /// # Errors
    ///
    /// If the kernel refuses the rtnetlink subscription.
    pub fn open(interest: Interest) -> io::Result<Self> {
        let route = subscribe(
            NETLINK_ROUTE,
            &[
                RTNLGRP_LINK,
                RTNLGRP_TC,
                RTNLGRP_IPV4_IFADDR,
                RTNLGRP_IPV6_IFADDR,
            ],
        )?;
        let netfilter = subscribe(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES]).ok();
        Ok(Self {
            route,
            netfilter,
            interest,
        })
    }

    /// Waits for the next event that may concern us.
    pub async fn next(&mut self) -> Event {
        loop {
            let (received, of_route) = tokio::select! {
                received = self.route.recv_from_full() => (received, true),
                received = receive(self.netfilter.as_ref()) => (received, false),
            };
            let event = match received {
                Ok((datagram, _)) if of_route => in_route_events(&datagram, &self.interest),
                Ok((datagram, _)) => in_netfilter_events(&datagram, &self.interest),
                // ENOBUFS: the queue was full and events were dropped.
                Err(_) => Some(Event::Overrun),
            };
            if let Some(event) = event {
                return event;
            }
        }
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

/// The first event of interest among rtnetlink messages.
fn in_route_events(datagram: &[u8], interest: &Interest) -> Option<Event> {
    each_message(datagram, |bytes| {
        let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) else {
            // A message of a newer kernel: what it says is found by looking.
            return Some(Event::Link);
        };
        let NetlinkPayload::InnerMessage(message) = message.payload else {
            return None;
        };
        match message {
            RouteNetlinkMessage::NewLink(_) | RouteNetlinkMessage::DelLink(_) => Some(Event::Link),
            RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) => {
                let ip = local_address(&address)?;
                interest.vips.contains(&ip).then_some(Event::Address(ip))
            }
            RouteNetlinkMessage::DelQueueDiscipline(_)
            | RouteNetlinkMessage::DelTrafficFilter(_) => Some(Event::TrafficControl),
            _ => None,
        }
    })
}

/// The host's end of an address: `IFA_LOCAL` where there is one.
fn local_address(message: &AddressMessage) -> Option<IpAddr> {
    let mut found = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => return Some(*ip),
            AddressAttribute::Address(ip) => found = Some(*ip),
            _ => {}
        }
    }
    found
}

/// The first event of interest among nf_tables messages.
fn in_netfilter_events(datagram: &[u8], interest: &Interest) -> Option<Event> {
    each_message(datagram, |bytes| {
        let message = NetlinkMessage::<NetfilterMessage>::deserialize(bytes).ok()?;
        let NetlinkPayload::InnerMessage(NetfilterMessage {
            inner: NetfilterMessageInner::NfTables(message),
            ..
        }) = message.payload
        else {
            return None;
        };
        let (table, chain, removal) = subject(&message)?;
        let ours = interest.tables.iter().any(|name| *name == table);
        let watched = removal
            && interest.chains.iter().any(|(of_table, name)| {
                *of_table == table && chain.as_deref().is_none_or(|chain| chain == *name)
            });
        (ours || watched).then_some(Event::Table(table))
    })
}

/// Table and chain that a message is about, and whether something was removed there.
fn subject(message: &NfTablesMessage) -> Option<(String, Option<String>, bool)> {
    let (table, chain) = match message {
        NfTablesMessage::NewTable(table) | NfTablesMessage::DeleteTable(table) => {
            (table_name(table)?, None)
        }
        NfTablesMessage::NewChain(chain) | NfTablesMessage::DeleteChain(chain) => {
            chain_name(chain)?
        }
        NfTablesMessage::NewRule(rule) | NfTablesMessage::DeleteRule(rule) => chain_of(rule)?,
        _ => return None,
    };
    let removal = matches!(
        message,
        NfTablesMessage::DeleteTable(_)
            | NfTablesMessage::DeleteChain(_)
            | NfTablesMessage::DeleteRule(_)
    );
    Some((table, chain, removal))
}

fn table_name(message: &TableMessage) -> Option<String> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            TableAttribute::Name(name) => Some(name.clone()),
            _ => None,
        })
}

fn chain_name(message: &ChainMessage) -> Option<(String, Option<String>)> {
    let (mut table, mut chain) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            ChainAttribute::Table(name) => table = Some(name.clone()),
            ChainAttribute::Name(name) => chain = Some(name.clone()),
            _ => {}
        }
    }
    Some((table?, chain))
}

fn chain_of(message: &RuleMessage) -> Option<(String, Option<String>)> {
    let (mut table, mut chain) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Table(name) => table = Some(name.clone()),
            RuleAttribute::Chain(name) => chain = Some(name.clone()),
            _ => {}
        }
    }
    Some((table?, chain))
}

/// Runs `look` on each netlink message of a datagram until it finds something.
fn each_message(datagram: &[u8], look: impl Fn(&[u8]) -> Option<Event>) -> Option<Event> {
    let mut rest = datagram;
    while let Some(length) = rest.first_chunk::<4>() {
        let length = usize::try_from(u32::from_ne_bytes(*length)).ok()?;
        let message = rest.get(..length).filter(|message| message.len() >= 16)?;
        if let Some(event) = look(message) {
            return Some(event);
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

#[cfg(test)]
mod tests;
