// SPDX-License-Identifier: Apache-2.0

//! What the kernel's datagrams tell.

use std::net::IpAddr;

use netlink_packet_core::{NetlinkPayload, NlasIterator};
use netlink_packet_netfilter::nftables::{GenAttribute, NfTablesMessage};
use netlink_packet_netfilter::{NetfilterMessage, NetfilterMessageInner};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};

use super::{Event, Interest};
use crate::kernel::author::By;
use crate::kernel::netlink;

/// The first event of interest among rtnetlink messages, and the port id it came from.
pub fn in_route_events(datagram: &[u8], interest: &Interest) -> Option<(Event, u32)> {
    each_message(datagram, |bytes| {
        Some((route_event(bytes, interest)?, port_of(bytes)))
    })
}

fn route_event(bytes: &[u8], interest: &Interest) -> Option<Event> {
    if let Some(is_default) = default_route(bytes) {
        if is_default {
            return interest.routes.then_some(Event::Route);
        }
        return removed_route(bytes, &interest.local_routes).map(Event::LocalRoute);
    }
    let Ok(message) = netlink::decode::<RouteNetlinkMessage>(bytes) else {
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
            interest
                .addresses
                .contains(&ip)
                .then_some(Event::Address(ip))
        }
        RouteNetlinkMessage::DelQueueDiscipline(_) | RouteNetlinkMessage::DelTrafficFilter(_) => {
            Some(Event::TrafficControl)
        }
        _ => None,
    }
}

/// Whether a message about a route is about a default route; none if it is about something else. Looked
/// at as bytes: there are nodes with a million routes.
fn default_route(bytes: &[u8]) -> Option<bool> {
    const NEW_ROUTE: u16 = 24;
    const DELETE_ROUTE: u16 = 25;
    const NEW_NEXTHOP: u16 = 104;
    const DELETE_NEXTHOP: u16 = 105;
    /// Where the length of the destination's prefix stands: behind the header and the family.
    const LENGTH: usize = 17;
    let kind = bytes.get(4..6)?.first_chunk()?;
    match u16::from_ne_bytes(*kind) {
        NEW_ROUTE | DELETE_ROUTE => Some(bytes.get(LENGTH) == Some(&0)),
        NEW_NEXTHOP | DELETE_NEXTHOP => Some(true),
        _ => None,
    }
}

/// The address among these whose route a message says is removed.
fn removed_route(bytes: &[u8], addresses: &[IpAddr]) -> Option<IpAddr> {
    const DELETE_ROUTE: u16 = 25;
    const DESTINATION: u16 = 1;
    /// `struct nlmsghdr` and `struct rtmsg`.
    const HEADERS: usize = 16 + 12;
    let kind = bytes.get(4..6)?.first_chunk()?;
    if addresses.is_empty() || u16::from_ne_bytes(*kind) != DELETE_ROUTE {
        return None;
    }
    for attribute in NlasIterator::new(bytes.get(HEADERS..)?) {
        let attribute = attribute.ok()?;
        if attribute.kind() == DESTINATION {
            let ip = match attribute.value().len() {
                4 => IpAddr::from(*attribute.value().first_chunk::<4>()?),
                _ => IpAddr::from(*attribute.value().first_chunk::<16>()?),
            };
            return addresses.contains(&ip).then_some(ip);
        }
    }
    None
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

/// The first event of interest among nf_tables messages, and the port id it came from.
pub fn in_netfilter_events(datagram: &[u8], interest: &Interest) -> Option<(Event, u32)> {
    each_message(datagram, |bytes| {
        let Subject {
            table,
            chain,
            is_removal,
        } = Subject::of(bytes)?;
        let ours = interest.tables.contains(&table);
        let watched = is_removal
            && interest.chains.iter().any(|(of_table, name)| {
                *of_table == table && chain.as_deref().is_none_or(|chain| chain == *name)
            });
        (ours || watched).then_some((Event::Table(table), port_of(bytes)))
    })
}

/// Who made the changes before this message (`NFT_MSG_NEWGEN`, with the process since Linux 4.14).
pub fn author(datagram: &[u8]) -> Option<By> {
    /// `NFT_MSG_NEWGEN`
    const NEW_GENERATION: u8 = 15;
    each_message(datagram, |bytes| {
        // Taking any other message apart takes longer, and a change of ours has hundreds of them.
        if nf_tables_kind(bytes)? != NEW_GENERATION {
            return None;
        }
        let NfTablesMessage::NewGen(message) = nf_tables(bytes)? else {
            return None;
        };
        let (mut pid, mut name) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                GenAttribute::ProcPid(id) => pid = Some(*id),
                GenAttribute::ProcName(comm) => name = Some(comm.clone()),
                _ => {}
            }
        }
        match pid {
            Some(pid) => Some(By { pid, name }),
            None => By::port(port_of(bytes)),
        }
    })
}

/// Which message of nf_tables it is (`enum nf_tables_msg_types`); none if it is of another subsystem.
fn nf_tables_kind(bytes: &[u8]) -> Option<u8> {
    /// `NFNL_SUBSYS_NFTABLES`.
    const SUBSYSTEM: u8 = 10;
    let [kind, subsystem] = u16::from_ne_bytes(*bytes.get(4..6)?.first_chunk()?).to_le_bytes();
    (subsystem == SUBSYSTEM).then_some(kind)
}

fn nf_tables(bytes: &[u8]) -> Option<NfTablesMessage> {
    let message = netlink::decode::<NetfilterMessage>(bytes).ok()?;
    match message.payload {
        NetlinkPayload::InnerMessage(NetfilterMessage {
            inner: NetfilterMessageInner::NfTables(message),
            ..
        }) => Some(message),
        _ => None,
    }
}

/// The port id in a message's header (`nlmsg_pid`): that of the socket which asked for the change,
/// zero if nobody did.
pub fn port_of(message: &[u8]) -> u32 {
    let field = message.get(12..16).and_then(|bytes| bytes.first_chunk());
    field.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

/// What a message about a table, chain or rule is about. Looked at as bytes: others change tens of thousands of
/// rules at once.
struct Subject {
    table: String,
    /// None: the table as a whole.
    chain: Option<String>,
    is_removal: bool,
}

impl Subject {
    fn of(bytes: &[u8]) -> Option<Self> {
        /// `struct nlmsghdr` and `struct nfgenmsg`.
        const HEADERS: usize = 16 + 4;
        /// In each kind of message (`NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE`).
        const TABLE: u16 = 1;
        const NFTA_CHAIN_NAME: u16 = 3;
        const NFTA_RULE_CHAIN: u16 = 2;
        let kind = nf_tables_kind(bytes)?;
        // `enum nf_tables_msg_types`: new and deleted tables, chains and rules.
        let of_chain = match kind {
            0 | 2 => None,
            3 | 5 => Some(NFTA_CHAIN_NAME),
            6 | 8 => Some(NFTA_RULE_CHAIN),
            _ => return None,
        };
        let (mut table, mut chain) = (None, None);
        for attribute in NlasIterator::new(bytes.get(HEADERS..)?) {
            let attribute = attribute.ok()?;
            let name = match attribute.kind() {
                TABLE => &mut table,
                kind if Some(kind) == of_chain => &mut chain,
                _ => continue,
            };
            let text = attribute.value().strip_suffix(&[0]);
            *name = Some(String::from_utf8_lossy(text?).into_owned());
        }
        Some(Self {
            table: table?,
            chain,
            is_removal: matches!(kind, 2 | 5 | 8),
        })
    }
}

/// Runs `look` on each netlink message of a datagram until it finds something.
fn each_message<T>(datagram: &[u8], look: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
    let mut rest = datagram;
    while let Some(length) = rest.first_chunk::<4>() {
        let length = usize::try_from(u32::from_ne_bytes(*length)).ok()?;
        let message = rest.get(..length).filter(|message| message.len() >= 16)?;
        if let Some(found) = look(message) {
            return Some(found);
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}
