// SPDX-License-Identifier: Apache-2.0

//! Addresses of links.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{DecodeError, NlasIterator};

use super::attribute::{ip, number, number_at, too_short};
use super::dump::{Error, dump};

// Message types, include/uapi/linux/rtnetlink.h.
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
    /// The prefix length. If the address has a peer, it is the peer's.
    pub prefix_len: u8,
    /// The other end, for an address that was added with a peer.
    pub peer: Option<IpAddr>,
    /// The scope, as in `RT_SCOPE_*`: 0 is global. For IPv6 the kernel derives it from the address.
    pub scope: u8,
    /// True if duplicate address detection has not ended or has failed, so that the address cannot be used.
    pub unusable: bool,
    /// True for an IPv6 address that the kernel selects as a source only if there is no other. Never set for IPv4.
    pub deprecated: bool,
    /// True if the address never expires.
    pub permanent: bool,
    /// True if the kernel deletes the address together with another IPv4 address of the same subnet. Never set for
    /// IPv6.
    pub secondary: bool,
}

/// An address with its prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// The address.
    pub ip: IpAddr,
    /// The prefix length in bits.
    pub len: u8,
}

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl AddressFamily {
    /// Both families, in the order in which they are read.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Returns true if an address belongs to the family.
    #[must_use]
    pub fn has(self, ip: IpAddr) -> bool {
        ip.is_ipv4() == (self == Self::V4)
    }

    /// Returns `AF_INET` or `AF_INET6`.
    pub(super) fn number(self) -> u8 {
        let number = match self {
            Self::V4 => libc::AF_INET,
            Self::V6 => libc::AF_INET6,
        };
        u8::try_from(number).expect("the two families are 2 and 10")
    }
}

/// Returns all addresses, first of IPv4 and then of IPv6, in the kernel's order.
///
/// # Errors
///
/// Returns an error if a list could not be read completely or kept changing while it was read.
pub async fn addresses() -> Result<Vec<Address>, Error> {
    let mut all = Vec::new();
    for family in AddressFamily::ALL {
        all.append(&mut of_family(family, Vec::push).await?);
    }
    Ok(all)
}

/// Passes each address of a family to `each`. A list that has to be read again begins with a new `S`.
///
/// # Errors
///
/// Returns an error if the list could not be read completely or kept changing while it was read.
pub async fn of_family<S: Default>(
    family: AddressFamily,
    each: impl Fn(&mut S, Address),
) -> Result<S, Error> {
    let number = family.number();
    // A struct ifaddrmsg in which only the family is set.
    let body = [number, 0, 0, 0, 0, 0, 0, 0];
    let what = match family {
        AddressFamily::V4 => "IPv4 addresses",
        AddressFamily::V6 => "IPv6 addresses",
    };
    dump(RTM_GETADDR, RTM_NEWADDR, &body, |found, message| {
        // A kernel without IPv6 responds to the request for IPv6 with IPv4 addresses.
        if message.first() == Some(&number) {
            each(found, parse_address(message)?);
        }
        Ok(())
    })
    .await
    .map_err(|source| Error { what, source })
}

/// Parses one `RTM_NEWADDR`: `struct ifaddrmsg`, followed by attributes.
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
    // IFA_LOCAL is the link's own address. IPv6 omits it if there is no peer.
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
        // For IPv6 the same bit marks a temporary address, which does not depend on another one.
        secondary: own.is_ipv4() && flags & IFA_F_SECONDARY != 0,
    })
}

impl Address {
    /// Returns the address with its prefix length.
    #[must_use]
    pub fn prefix(&self) -> Prefix {
        Prefix {
            ip: self.ip,
            len: self.prefix_len,
        }
    }
}

impl Prefix {
    /// Returns true if both have the same prefix length and the same network, which is the kernel's criterion for
    /// primary and secondary addresses.
    #[must_use]
    pub fn same_subnet(self, other: Self) -> bool {
        self.len == other.len && self.holds(other.ip)
    }

    /// Returns true if an IPv4 address lies in the network of this one, and false for IPv6.
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
