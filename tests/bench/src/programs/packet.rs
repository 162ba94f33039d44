// SPDX-License-Identifier: Apache-2.0

//! TCP segments with an Ethernet header, as the kernel's test run wants them. Checksums are left out:
//! nothing here looks at them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tests::Family;

const SYN: u8 = 0x02;
const PSH_ACK: u8 = 0x18;
/// Bytes behind the headers of a segment with data.
const DATA: u16 = 64;
const TCP_HEADER: u16 = 20;
const TCP: u8 = 6;

/// A segment.
#[derive(Debug, Clone)]
pub struct Packet {
    bytes: Vec<u8>,
    version: u8,
}

impl Packet {
    /// That opens a connection.
    pub fn syn(from: SocketAddr, to: SocketAddr) -> Self {
        Self::new(from, to, SYN, 0)
    }

    /// With data of one that is open.
    pub fn data(from: SocketAddr, to: SocketAddr) -> Self {
        Self::new(from, to, PSH_ACK, DATA)
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// 4 or 6.
    pub fn version(&self) -> u8 {
        self.version
    }

    fn new(from: SocketAddr, to: SocketAddr, flags: u8, data: u16) -> Self {
        let payload = TCP_HEADER + data;
        // Both hardware addresses.
        let mut bytes = vec![2; 12];
        let version = match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                bytes.extend([0x08, 0x00, 0x45, 0]);
                bytes.extend((20 + payload).to_be_bytes());
                // Identification, "do not fragment", hops, checksum
                bytes.extend([0, 0, 0x40, 0, 64, TCP, 0, 0]);
                bytes.extend(from.octets());
                bytes.extend(to.octets());
                4
            }
            (from, to) => {
                bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                bytes.extend(payload.to_be_bytes());
                bytes.extend([TCP, 64]);
                for address in [from, to] {
                    if let IpAddr::V6(address) = address {
                        bytes.extend(address.octets());
                    }
                }
                6
            }
        };
        bytes.extend(from.port().to_be_bytes());
        bytes.extend(to.port().to_be_bytes());
        // Sequence and acknowledgement numbers
        bytes.extend([0, 0, 1, 0, 0, 0, 2, 0]);
        // Length of the header in words, flags, window, checksum, urgent pointer
        bytes.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        bytes.resize(bytes.len() + usize::from(data), 0);
        Self { bytes, version }
    }
}

/// Port 443 of a host other than the proxy.
pub fn stranger(family: Family) -> SocketAddr {
    let address = match family {
        Family::V4 => Ipv4Addr::new(198, 51, 100, 1).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    };
    SocketAddr::new(address, tests::PORT)
}

/// One of many clients.
pub fn client(family: Family, n: u8) -> SocketAddr {
    let address = match family {
        Family::V4 => Ipv4Addr::new(198, 18, 0, n).into(),
        Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, n.into()).into(),
    };
    SocketAddr::new(address, 40_000)
}
