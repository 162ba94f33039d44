// SPDX-License-Identifier: Apache-2.0

//! What the package `fuzz` runs: one function for each target, which takes any bytes and panics if
//! they show a fault. Each stands beside the parser that it is about and says what must hold there;
//! here they are gathered, with what they have in common. Nothing else uses this.

pub use crate::backend::decisions::fuzzing::decision;
pub use crate::backend::iptables::fuzzing::{ipset_list, iptables_save};
pub use crate::cli::fuzzing::{command_line, values};
pub use crate::dnat::fuzzing::dnat;
pub use crate::filters::fuzzing::firewall;
pub use crate::kernel::monitor::fuzzing::events;
pub use crate::link::fuzzing::route;
pub use crate::netfilter::conntrack::fuzzing::conntrack;
pub use crate::netfilter::table::fuzzing::nf_tables;
pub use crate::state::fuzzing::state;
pub use proxy_serve::fuzzing::klog;

/// The first byte, by which a target chooses among several things to do, and what follows.
pub(crate) fn choice(data: &[u8]) -> (u8, &[u8]) {
    data.split_first()
        .map_or((0, data), |(first, rest)| (*first, rest))
}

/// Type, flags, sequence number and payload of a netlink message.
pub(crate) type Plain<'a> = (u16, u16, u32, &'a [u8]);

/// The messages of a netlink datagram in the plainest way; none if one of them is cut off.
pub(crate) fn messages(datagram: &[u8]) -> Option<Vec<Plain<'_>>> {
    const HEADER: usize = 16;
    let mut messages = Vec::new();
    let mut at = 0;
    while at < datagram.len() {
        let header = datagram.get(at..at + HEADER)?;
        let length = usize::try_from(u32::from_ne_bytes(header[..4].try_into().ok()?)).ok()?;
        let payload = datagram.get(at + HEADER..at.checked_add(length)?)?;
        messages.push((
            u16::from_ne_bytes(header[4..6].try_into().ok()?),
            u16::from_ne_bytes(header[6..8].try_into().ok()?),
            u32::from_ne_bytes(header[8..12].try_into().ok()?),
            payload,
        ));
        at += length.next_multiple_of(4);
    }
    Some(messages)
}
