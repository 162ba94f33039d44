// SPDX-License-Identifier: Apache-2.0

//! The subsystems of netfilter and their messages.

use netlink_packet_netfilter::NetfilterMessageInner;
use netlink_packet_netfilter::conntrack::ConntrackMessage;
use netlink_packet_netfilter::nftables::NfTablesMessage;

/// The messages of one part of netfilter.
pub trait Message: Into<NetfilterMessageInner> + Clone {
    /// What it is called in errors.
    const SUBSYSTEM: &'static str;

    /// The message, if it is one of this part.
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
