// SPDX-License-Identifier: Apache-2.0

//! Attributes of netfilter's expressions that netlink-packet-netfilter does not decode.

use netlink_packet_core::{DefaultNla, Nla as _};

/// Returns the value of an attribute, or `None` if there is no such attribute.
pub fn value(attributes: &[DefaultNla], kind: u16) -> Option<Vec<u8>> {
    let found = attributes
        .iter()
        .find(|attribute| attribute.kind() == kind)?;
    let mut value = vec![0; found.value_len()];
    found.emit_value(&mut value);
    Some(value)
}

/// Returns a name without its trailing zeros, or an empty name if there is no such attribute.
pub fn text(attributes: &[DefaultNla], kind: u16) -> Vec<u8> {
    until_zero(&value(attributes, kind).unwrap_or_default()).to_vec()
}

/// Returns a number that is in network byte order.
pub fn number(attributes: &[DefaultNla], kind: u16) -> Option<u32> {
    Some(u32::from_be_bytes(*value(attributes, kind)?.first_chunk()?))
}

/// Returns a name without its trailing zeros.
pub fn until_zero(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}
