// SPDX-License-Identifier: Apache-2.0

//! Addresses of links.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{DecodeError, NlasIterator};

use super::attribute::{ip, number, number_at, too_short};
use super::dump::{Error, dump};

// Messages, include/uapi/linux/rtnetlink.h.
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;

// Attributes and flags of an address, include/uapi/linux/if_addr.h.
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_F_SECONDARY: u32 = 0x01;
const IFA_F_DADFAILED: u32 = 0x08;
const IFA_F_DEPRECATED: u32 = 0x20;
const IFA_F_TENTATIVE: u32 = 0x40;
const IFA_F_PERMANENT: u32 = 0x80;

/// An address of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "the kernel has a flag for each of them"
)]
pub struct Address {
    /// The ifindex of the link.
    pub index: u32,
    /// The address.
    pub ip: IpAddr,
    /// Length of the prefix; with a peer, of the peer's.
    pub prefix_len: u8,
    /// The other end, on an address that was added with a peer.
    pub peer: Option<IpAddr>,
    /// The scope, as in `RT_SCOPE_*`: 0 is global. For IPv6 the kernel derives it from the address.
    pub scope: u8,
    /// Duplicate address detection has not ended, or has failed: the address does not work.
    pub unusable: bool,
    /// An IPv6 address that the kernel takes as a source only if it has no other. Never set for IPv4.
    pub deprecated: bool,
    /// It never expires.
    pub permanent: bool,
    /// The kernel deletes it together with another IPv4 address of the same subnet. Never set for IPv6.
    pub secondary: bool,
}

/// An address with the length of its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// The address.
    pub ip: IpAddr,
    /// The length in bits.
    pub len: u8,
}

/// A family of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl AddressFamily {
    /// Both, in the order in which they are read.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Whether an address is one of it.
    #[must_use]
    pub fn has(self, ip: IpAddr) -> bool {
        ip.is_ipv4() == (self == Self::V4)
    }

    /// `AF_INET` or `AF_INET6`.
    pub(super) fn number(self) -> u8 {
        let number = match self {
            Self::V4 => libc::AF_INET,
            Self::V6 => libc::AF_INET6,
        };
        u8::try_from(number).expect("the two families are 2 and 10")
    }
}

/// All addresses, of IPv4 and then of IPv6, in the order in which the kernel lists them.
///
/// # Errors
///
/// If a list could not be read to its end, or kept changing while it was read.
pub async fn addresses() -> Result<Vec<Address>, Error> {
    let mut all = Vec::new();
    for family in AddressFamily::ALL {
        all.append(&mut of_family(family, Vec::push).await?);
    }
    Ok(all)
}

/// Gives each address of a family to `each`. A list that has to be read again begins with a new `S`.
///
/// # Errors
///
/// If the list could not be read to its end, or kept changing while it was read.
pub async fn of_family<S: Default>(
    family: AddressFamily,
    each: impl Fn(&mut S, Address),
) -> Result<S, Error> {
    let number = family.number();
    // struct ifaddrmsg with nothing but the family.
    let body = [number, 0, 0, 0, 0, 0, 0, 0];
    let what = match family {
        AddressFamily::V4 => "IPv4 addresses",
        AddressFamily::V6 => "IPv6 addresses",
    };
    dump(RTM_GETADDR, RTM_NEWADDR, &body, |found, message| {
        // Without IPv6 in the kernel, the request for it is answered with IPv4.
        if message.first() == Some(&number) {
            each(found, parse_address(message)?);
        }
        Ok(())
    })
    .await
    .map_err(|source| Error { what, source })
}

/// One `RTM_NEWADDR`, `struct ifaddrmsg`, then attributes.
pub(super) fn parse_address(message: &[u8]) -> Result<Address, DecodeError> {
    let (header, attributes) = message
        .split_first_chunk::<8>()
        .ok_or_else(|| too_short("ifaddrmsg"))?;
    let mut flags = u32::from(header[2]);
    let (mut local, mut address) = (None, None);
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        let value = attribute.value();
        match attribute.kind() {
            IFA_LOCAL => local = Some(ip(value)?),
            IFA_ADDRESS => address = Some(ip(value)?),
            IFA_FLAGS => flags = number(value)?,
            _ => {}
        }
    }
    // IFA_LOCAL is the link's own address. IPv6 leaves it out where there is no peer.
    let own = local
        .or(address)
        .ok_or_else(|| DecodeError::from("an address message without an address"))?;
    Ok(Address {
        index: number_at(header, 4).expect("the header has 8 bytes"),
        ip: own,
        prefix_len: header[1],
        peer: address.filter(|address| *address != own),
        scope: header[3],
        unusable: own.is_ipv6() && flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED) != 0,
        deprecated: own.is_ipv6() && flags & IFA_F_DEPRECATED != 0,
        permanent: flags & IFA_F_PERMANENT != 0,
        // For IPv6 the same bit means a temporary address, which depends on no other.
        secondary: own.is_ipv4() && flags & IFA_F_SECONDARY != 0,
    })
}

impl Address {
    /// The address with the length of its prefix.
    #[must_use]
    pub fn prefix(&self) -> Prefix {
        Prefix {
            ip: self.ip,
            len: self.prefix_len,
        }
    }
}

impl Prefix {
    /// The same length and the same network: what the kernel calls primary and secondary.
    #[must_use]
    pub fn same_subnet(self, other: Self) -> bool {
        self.len == other.len && self.holds(other.ip)
    }

    /// Whether an IPv4 address lies in the network of this one; false for IPv6.
    #[must_use]
    pub fn holds(self, ip: IpAddr) -> bool {
        match (self.ip, ip) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let host_bits = 32_u32.saturating_sub(u32::from(self.len));
                let network = |address: Ipv4Addr| address.to_bits().checked_shr(host_bits);
                network(a) == network(b)
            }
            _ => false,
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.len)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.peer {
            None => write!(f, "{}/{}", self.ip, self.prefix_len),
            Some(peer) => write!(f, "{} peer {peer}/{}", self.ip, self.prefix_len),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::super::attribute::attribute;
    use super::*;

    #[test]
    fn the_local_address_is_the_links_own() {
        let header = [2, 24, 0, 0, 7, 0, 0, 0];
        let peer = attribute(IFA_ADDRESS, &[192, 0, 2, 1]);
        let local = attribute(IFA_LOCAL, &[10, 96, 0, 2]);
        let flags = attribute(
            IFA_FLAGS,
            &(IFA_F_PERMANENT | IFA_F_SECONDARY).to_ne_bytes(),
        );
        let message = [&header[..], &peer, &local, &flags].concat();
        let address = parse_address(&message).expect("well formed");
        assert_eq!(address.to_string(), "10.96.0.2 peer 192.0.2.1/24");
        assert!(address.permanent && address.secondary && !address.unusable);

        let header = [10, 128, 0, 0, 7, 0, 0, 0];
        let own = attribute(IFA_ADDRESS, &Ipv6Addr::LOCALHOST.octets());
        let flags = attribute(IFA_FLAGS, &IFA_F_TENTATIVE.to_ne_bytes());
        let message = [&header[..], &own, &flags].concat();
        let address = parse_address(&message).expect("well formed");
        assert_eq!(address.to_string(), "::1/128");
        assert!(address.unusable && !address.permanent);
    }

    #[test]
    fn a_cut_message_never_panics() {
        let address = attribute(IFA_ADDRESS, &[192, 0, 2, 1]);
        let message = [&[2, 24, 0, 0, 7, 0, 0, 0][..], &address].concat();
        assert!(parse_address(&message).is_ok());
        for length in 0..message.len() {
            assert!(parse_address(&message[..length]).is_err(), "{length}");
        }
    }
}
