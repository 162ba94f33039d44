// SPDX-License-Identifier: Apache-2.0

//! The subsystems of netfilter and their messages.

use netlink_packet_netfilter::NetfilterMessageInner;
use netlink_packet_netfilter::conntrack::ConntrackMessage;
use netlink_packet_netfilter::nftables::NfTablesMessage;

/// The messages of one subsystem of netfilter.
pub trait Message: Into<NetfilterMessageInner> + Clone {
    /// The name of the subsystem in errors.
    const SUBSYSTEM: &'static str;

    /// Returns the message if it belongs to this subsystem.
    fn of(message: NetfilterMessageInner) -> Option<Self>;
}

impl Message for NfTablesMessage {
    const SUBSYSTEM: &'static str = "nf_tables";

    fn of(message: NetfilterMessageInner) -> Option<Self> {
        match message {
            NetfilterMessageInner::NfTables(message) => Some(message),
            _ => None,
        }
    }
}

impl Message for ConntrackMessage {
    const SUBSYSTEM: &'static str = "conntrack";

    fn of(message: NetfilterMessageInner) -> Option<Self> {
        match message {
            NetfilterMessageInner::Conntrack(message) => Some(message),
            _ => None,
        }
    }
}
