// SPDX-License-Identifier: Apache-2.0

//! Builds IP headers.

use std::net::IpAddr;

/// Returns another address with the same last byte.
pub fn other_address(vip: IpAddr) -> IpAddr {
    let mut octets = octets(vip);
    let at = octets.len() - 2;
    octets[at] ^= 0x55;
    match <[u8; 4]>::try_from(octets.as_slice()) {
        Ok(four) => four.into(),
        Err(_) => <[u8; 16]>::try_from(octets).expect("16 bytes").into(),
    }
}

/// Returns the bytes of an address.
pub fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// Returns an IP header and the bytes after it.
pub fn ip(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    options: &[u8],
    fragment: u16,
    payload: &[u8],
) -> Vec<u8> {
    let ends = [octets(source), octets(destination)].concat();
    let length = |header: usize| u16::try_from(header + payload.len()).expect("a short packet");
    let mut bytes = if source.is_ipv4() {
        let header = 20 + options.len();
        let words = u8::try_from(header / 4).expect("at most 15");
        let mut bytes = vec![0x40 | words, 0];
        bytes.extend(length(header).to_be_bytes());
        bytes.extend([0, 1]);
        bytes.extend(fragment.to_be_bytes());
        bytes.extend([64, protocol, 0, 0]);
        bytes.extend(ends);
        bytes.extend(options);
        let sum = checksum(&bytes);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes
    } else {
        let mut bytes = vec![0x60, 0, 0, 0];
        bytes.extend(length(0).to_be_bytes());
        bytes.extend([protocol, 64]);
        bytes.extend(ends);
        bytes
    };
    bytes.extend(payload);
    bytes
}

fn checksum(header: &[u8]) -> u16 {
    let words = header.chunks(2);
    let sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !u16::try_from(sum).expect("folded")
}
