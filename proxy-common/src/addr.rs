// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Addresses and ports as in packets and maps: in network byte order, with one format for both
//! families.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The third word of an IPv4-mapped IPv6 address, `::ffff:0:0/96`.
const MAPPED: u32 = 0xffff_u32.to_be();

/// An IPv6 address, or an IPv4 address mapped into IPv6, in network byte order.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address([u32; 4]);

/// An address and a TCP port.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    address: Address,
    /// The port in network byte order.
    port: u16,
    /// Always zero: a map key has no padding.
    reserved: u16,
}

impl Address {
    /// Converts an IPv4 address as it is in a packet.
    #[inline(always)]
    #[must_use]
    pub const fn from_ipv4(word: u32) -> Self {
        Self([0, 0, MAPPED, word])
    }

    /// Converts an IPv6 address as it is in a packet.
    #[inline(always)]
    #[must_use]
    pub const fn from_ipv6(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// Returns the IPv4 address in network byte order, or `None` for an IPv6 address.
    #[inline(always)]
    #[must_use]
    pub const fn as_ipv4(&self) -> Option<u32> {
        match self.0 {
            [0, 0, MAPPED, word] => Some(word),
            _ => None,
        }
    }

    /// Returns whether the address is in 127.0.0.0/8, or is `::1`.
    #[inline(always)]
    #[must_use]
    pub const fn is_loopback(&self) -> bool {
        match self.0 {
            [0, 0, MAPPED, word] => word.to_ne_bytes()[0] == 127,
            [0, 0, 0, word] => word == 1_u32.to_be(),
            _ => false,
        }
    }

    /// Returns the four words of the IPv6 form in network byte order.
    #[inline(always)]
    #[must_use]
    pub const fn words(&self) -> [u32; 4] {
        self.0
    }

    /// Returns the sixteen bytes as they are in an IPv6 packet.
    #[inline(always)]
    #[must_use]
    pub fn octets(&self) -> [u8; 16] {
        let mut octets = [0; 16];
        for (chunk, word) in octets.chunks_exact_mut(4).zip(self.0) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        octets
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::from_ipv4(u32::from_ne_bytes(v4.octets())),
            IpAddr::V6(v6) => {
                let octets = v6.octets();
                let mut words = [0; 4];
                for (word, chunk) in words.iter_mut().zip(octets.chunks_exact(4)) {
                    *word = u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
                }
                Self(words)
            }
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        match address.as_ipv4() {
            Some(word) => Self::V4(Ipv4Addr::from(word.to_ne_bytes())),
            None => Self::V6(Ipv6Addr::from(address.octets())),
        }
    }
}

impl Endpoint {
    /// The value for no endpoint: the unspecified address and port zero.
    pub const NONE: Self = Self {
        address: Address([0; 4]),
        port: 0,
        reserved: 0,
    };

    /// Creates an endpoint. `port` is in network byte order.
    #[inline(always)]
    #[must_use]
    pub const fn new(address: Address, port: u16) -> Self {
        Self {
            address,
            port,
            reserved: 0,
        }
    }

    /// Returns the address.
    #[inline(always)]
    #[must_use]
    pub const fn address(&self) -> Address {
        self.address
    }

    /// Returns the port in network byte order.
    #[inline(always)]
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(socket: SocketAddr) -> Self {
        Self::new(socket.ip().into(), socket.port().to_be())
    }
}

impl From<Endpoint> for SocketAddr {
    fn from(endpoint: Endpoint) -> Self {
        Self::new(endpoint.address.into(), u16::from_be(endpoint.port))
    }
}

// SAFETY: `repr(C)`, integers only, no padding (see the layout test), any bit pattern is valid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Address {}

// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Endpoint {}

#[cfg(test)]
mod tests {
    use core::mem::{align_of, size_of};
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn endpoint_has_no_padding() {
        assert_eq!(size_of::<Address>(), 16);
        assert_eq!(size_of::<Endpoint>(), 20);
        assert_eq!(align_of::<Endpoint>(), 4);
    }

    #[test]
    fn an_ipv4_address_is_mapped() {
        let address = Address::from("10.96.0.2".parse::<IpAddr>().unwrap());
        assert_eq!(
            address.octets(),
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 96, 0, 2]
        );
    }

    proptest! {
        #[test]
        fn addresses_survive_the_round_trip(v4: [u8; 4], v6: [u8; 16]) {
            let v4 = IpAddr::from(v4);
            prop_assert_eq!(IpAddr::from(Address::from(v4)), v4);
            let v6 = IpAddr::from(v6).to_canonical();
            prop_assert_eq!(IpAddr::from(Address::from(v6)), v6);
        }
    }
}
