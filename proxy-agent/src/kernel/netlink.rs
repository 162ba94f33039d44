// SPDX-License-Identifier: Apache-2.0

//! Takes netlink messages apart.

use std::panic;

use netlink_packet_core::{DecodeError, NetlinkDeserializable, NetlinkMessage};

/// The first message of a datagram.
///
/// netlink-packet-netfilter 0.4 panics on some messages whose nested attributes are cut off or too short
/// (found by fuzzing; the kernel sends none). One that it cannot take is an error like any other.
///
/// # Errors
///
/// If it is malformed.
pub fn decode<P>(datagram: &[u8]) -> Result<NetlinkMessage<P>, DecodeError>
where
    P: NetlinkDeserializable<Error = DecodeError>,
{
    panic::catch_unwind(|| NetlinkMessage::<P>::deserialize(datagram))
        .unwrap_or_else(|_| Err("a nested attribute has a wrong length".into()))
}
