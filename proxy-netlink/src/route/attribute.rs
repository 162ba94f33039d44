// SPDX-License-Identifier: Apache-2.0

//! Values of attributes and fields in route netlink, which are in the host's byte order.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::DecodeError;

/// Parses a 32-bit number that is the whole value.
pub fn number(value: &[u8]) -> Result<u32, DecodeError> {
    match value.try_into() {
        Ok(bytes) => Ok(u32::from_ne_bytes(bytes)),
        Err(_) => Err(DecodeError::invalid_number(4, value.len())),
    }
}

/// Returns the 32-bit number at an offset, or `None` if the bytes end before it does.
pub fn number_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

/// Parses a name. The kernel accepts bytes that are not UTF-8, so they are not an error here.
pub fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

/// Parses an address, whose length determines the family.
pub fn ip(value: &[u8]) -> Result<IpAddr, DecodeError> {
    if let Ok(bytes) = <[u8; 4]>::try_from(value) {
        Ok(Ipv4Addr::from(bytes).into())
    } else if let Ok(bytes) = <[u8; 16]>::try_from(value) {
        Ok(Ipv6Addr::from(bytes).into())
    } else {
        Err(DecodeError::invalid_ip_address(value.len()))
    }
}

/// Returns the error for a message that is shorter than its fixed header.
pub fn too_short(header: &str) -> DecodeError {
    DecodeError::from(format!("a message shorter than struct {header}"))
}

/// Returns an attribute with the padding that aligns the next one.
#[cfg(any(test, feature = "fuzzing"))]
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).expect("values are short here");
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
