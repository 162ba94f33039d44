// SPDX-License-Identifier: Apache-2.0

//! Values of attributes and fields, as route netlink has them: in the byte order of this machine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::DecodeError;

/// A number of 32 bits, and nothing else.
pub fn number(value: &[u8]) -> Result<u32, DecodeError> {
    match value.try_into() {
        Ok(bytes) => Ok(u32::from_ne_bytes(bytes)),
        Err(_) => Err(DecodeError::invalid_number(4, value.len())),
    }
}

/// The number of 32 bits at an offset; none if the bytes end before.
pub fn number_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

/// A name. The kernel accepts bytes that are not UTF-8, so they are no error here.
pub fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

/// An address of either family, by its length.
pub fn ip(value: &[u8]) -> Result<IpAddr, DecodeError> {
    if let Ok(bytes) = <[u8; 4]>::try_from(value) {
        Ok(Ipv4Addr::from(bytes).into())
    } else if let Ok(bytes) = <[u8; 16]>::try_from(value) {
        Ok(Ipv6Addr::from(bytes).into())
    } else {
        Err(DecodeError::invalid_ip_address(value.len()))
    }
}

/// A message that ends before its fixed header does.
pub fn too_short(header: &str) -> DecodeError {
    DecodeError::from(format!("a message shorter than struct {header}"))
}

/// An attribute with the padding that aligns the next one.
#[cfg(any(test, feature = "fuzzing"))]
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).expect("values are short here");
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
