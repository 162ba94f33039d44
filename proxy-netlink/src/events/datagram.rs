// SPDX-License-Identifier: Apache-2.0

//! Finds events in the kernel's datagrams.

use std::net::IpAddr;

use netlink_packet_core::{NetlinkPayload, NlasIterator};
use netlink_packet_netfilter::nftables::{GenAttribute, NfTablesMessage};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};

use super::{Event, Interest};
use crate::actor::Actor;
use crate::netfilter::object;
use crate::wire::{Message, messages};

/// Returns the first relevant event in rtnetlink messages, and the port ID that the message contains.
pub fn in_route_events(datagram: &[u8], interest: &Interest) -> Option<(Event, u32)> {
    first_in(datagram, |message| {
        Some((route_event(message, interest)?, message.port))
    })
}

fn route_event(message: Message<'_>, interest: &Interest) -> Option<Event> {
    if let Some(is_default) = default_route(message) {
        if is_default {
            return interest.routes.then_some(Event::Route);
        }
        return removed_route(message, &interest.local_routes).map(Event::LocalRoute);
    }
    let Ok(message) = message.decode::<RouteNetlinkMessage>() else {
        // The message is from a newer kernel. The reconciliation that follows the event finds out what changed.
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

// Message types for routes and next hops, linux/rtnetlink.h.
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;

/// Returns whether a message about a route concerns a default route, or `None` for other messages. The message is not
/// decoded, because some nodes have a million routes.
fn default_route(message: Message<'_>) -> Option<bool> {
    /// The offset of the destination's prefix length, which follows the family.
    const LENGTH: usize = 1;
    match message.kind {
        RTM_NEWROUTE | RTM_DELROUTE => Some(message.payload.get(LENGTH) == Some(&0)),
        RTM_NEWNEXTHOP | RTM_DELNEXTHOP => Some(true),
        _ => None,
    }
}

/// Returns the address, among these, whose route a message reports as removed.
fn removed_route(message: Message<'_>, addresses: &[IpAddr]) -> Option<IpAddr> {
    const RTA_DST: u16 = 1;
    /// The length of `struct rtmsg`.
    const HEADER: usize = 12;
    if addresses.is_empty() || message.kind != RTM_DELROUTE {
        return None;
    }
    for attribute in NlasIterator::new(message.payload.get(HEADER..)?) {
        let attribute = attribute.ok()?;
        if attribute.kind() == RTA_DST {
            let ip = match attribute.value().len() {
                4 => IpAddr::from(*attribute.value().first_chunk::<4>()?),
                _ => IpAddr::from(*attribute.value().first_chunk::<16>()?),
            };
            return addresses.contains(&ip).then_some(ip);
        }
    }
    None
}

/// Returns the host's own address: `IFA_LOCAL` if it is present.
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

/// Returns the first relevant event in nf_tables messages, and the port ID that the message contains.
pub fn in_netfilter_events(datagram: &[u8], interest: &Interest) -> Option<(Event, u32)> {
    first_in(datagram, |message| {
        let Subject {
            table,
            chain,
            is_removal,
        } = Subject::of(message)?;
        let ours = interest.tables.contains(&table);
        let is_of = |watched: &[(&str, &str)], whole_table| {
            watched.iter().any(|(of_table, name)| {
                *of_table == table && chain.as_deref().map_or(whole_table, |chain| chain == *name)
            })
        };
        let watched = if is_removal {
            is_of(&interest.chains, true)
        } else {
            is_of(&interest.filters, false)
        };
        (ours || watched).then_some((Event::Table(table), message.port))
    })
}

/// Returns the process that made the changes before this message (`NFT_MSG_NEWGEN`, which contains the process since
/// Linux 4.14).
pub fn actor(datagram: &[u8]) -> Option<Actor> {
    /// `NFT_MSG_NEWGEN`
    const NEW_GENERATION: u8 = 15;
    first_in(datagram, |message| {
        // Other messages are skipped without decoding them, which takes longer: a change by this program has hundreds
        // of them.
        if nf_tables_kind(message)? != NEW_GENERATION {
            return None;
        }
        let port = message.port;
        let NfTablesMessage::NewGen(message) = object(message).ok()?? else {
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
            Some(pid) => Some(Actor { pid, name }),
            None => Actor::of_port(port),
        }
    })
}

/// Returns the type of an nf_tables message (`enum nf_tables_msg_types`), or `None` for a message of another subsystem.
fn nf_tables_kind(message: Message<'_>) -> Option<u8> {
    /// `NFNL_SUBSYS_NFTABLES`.
    const SUBSYSTEM: u8 = 10;
    let [kind, subsystem] = message.kind.to_le_bytes();
    (subsystem == SUBSYSTEM).then_some(kind)
}

/// The object that a message about a table, chain or rule concerns. The message is not fully decoded, because other
/// programs change tens of thousands of rules at once.
struct Subject {
    table: String,
    /// The chain, or `None` if the message concerns the table as a whole.
    chain: Option<String>,
    is_removal: bool,
}

impl Subject {
    fn of(message: Message<'_>) -> Option<Self> {
        /// The length of `struct nfgenmsg`.
        const HEADER: usize = 4;
        /// The attribute with the table's name has the same number in each type of message (`NFTA_TABLE_NAME`,
        /// `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE`).
        const TABLE: u16 = 1;
        const NFTA_CHAIN_NAME: u16 = 3;
        const NFTA_RULE_CHAIN: u16 = 2;
        let kind = nf_tables_kind(message)?;
        // `enum nf_tables_msg_types`: creation and deletion of tables, chains and rules.
        let of_chain = match kind {
            0 | 2 => None,
            3 | 5 => Some(NFTA_CHAIN_NAME),
            6 | 8 => Some(NFTA_RULE_CHAIN),
            _ => return None,
        };
        let (mut table, mut chain) = (None, None);
        for attribute in NlasIterator::new(message.payload.get(HEADER..)?) {
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

/// Calls `look` with each netlink message of a datagram until it returns a result. The search ends at a message with a
/// wrong length.
fn first_in<T>(datagram: &[u8], look: impl Fn(Message<'_>) -> Option<T>) -> Option<T> {
    messages(datagram).map_while(Result::ok).find_map(look)
}
