// SPDX-License-Identifier: Apache-2.0

//! The wire format of links and addresses, as far as `observe` needs it. Everything else in a
//! message is skipped, so an attribute that is new or odd cannot make a link unreadable, and a dump
//! of thousands of links stays cheap.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{DecodeError, NlasIterator};

use super::observe::OWN_GROUP;
use super::table::{Link, LinkAddress, LinkKind, Xdp};

// Attributes of a link, include/uapi/linux/if_link.h.
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_GROUP: u16 = 27;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_XDP: u16 = 43;
const IFLA_PROP_LIST: u16 = 52;
const IFLA_ALT_IFNAME: u16 = 53;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_XDP_ATTACHED: u16 = 2;
const IFLA_XDP_PROG_ID: u16 = 4;
const XDP_ATTACHED_NONE: u8 = 0;
const XDP_ATTACHED_DRV: u8 = 1;
/// Of `linux/if_arp.h`.
const ARPHRD_ETHER: u16 = 1;

// Attributes and flags of an address, include/uapi/linux/if_addr.h.
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_F_SECONDARY: u32 = 0x01;
const IFA_F_DADFAILED: u32 = 0x08;
const IFA_F_DEPRECATED: u32 = 0x20;
const IFA_F_TENTATIVE: u32 = 0x40;
const IFA_F_PERMANENT: u32 = 0x80;

/// One `RTM_NEWLINK`: `struct ifinfomsg`, then attributes.
pub(super) fn parse_link(message: &[u8]) -> Result<Link, DecodeError> {
    let (header, attributes) = message
        .split_first_chunk::<16>()
        .ok_or_else(|| too_short("ifinfomsg"))?;
    let flags = u32_at(&header[8..]);
    let mut link = Link::new(u32_at(&header[4..]), "", LinkKind::Other);
    link.up = flags & libc::IFF_UP.cast_unsigned() != 0;
    link.ethernet = u16::from_ne_bytes([header[2], header[3]]) == ARPHRD_ETHER;
    let mut elsewhere = false;
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        let value = attribute.value();
        match attribute.kind() {
            IFLA_IFNAME => link.name = text(value),
            IFLA_LINK => link.lower = Some(number(value)?).filter(|index| *index != link.index),
            IFLA_LINK_NETNSID => elsewhere = true,
            IFLA_XDP => link.xdp = xdp(value)?,
            IFLA_MASTER => link.master = Some(number(value)?),
            IFLA_GROUP => link.owned = number(value)? == OWN_GROUP,
            IFLA_LINKINFO => {
                for info in NlasIterator::new(value) {
                    let info = info?;
                    if info.kind() == IFLA_INFO_KIND {
                        link.kind = LinkKind::from_name(info.value());
                    }
                }
            }
            IFLA_PROP_LIST => {
                for property in NlasIterator::new(value) {
                    let property = property?;
                    if property.kind() == IFLA_ALT_IFNAME {
                        link.altnames.push(text(property.value()));
                    }
                }
            }
            _ => {}
        }
    }
    if elsewhere {
        link.lower = None;
    }
    if flags & libc::IFF_LOOPBACK.cast_unsigned() != 0 {
        link.kind = LinkKind::Loopback;
    }
    Ok(link)
}

/// The XDP program of a link; several at once count as one of no number.
fn xdp(value: &[u8]) -> Result<Option<Xdp>, DecodeError> {
    let (mut attached, mut program) = (XDP_ATTACHED_NONE, 0);
    for attribute in NlasIterator::new(value) {
        let attribute = attribute?;
        match attribute.kind() {
            IFLA_XDP_ATTACHED => attached = *attribute.value().first().unwrap_or(&0),
            IFLA_XDP_PROG_ID => program = number(attribute.value())?,
            _ => {}
        }
    }
    Ok((attached != XDP_ATTACHED_NONE).then_some(Xdp {
        program,
        native: attached == XDP_ATTACHED_DRV,
    }))
}

impl LinkKind {
    /// From the kernel's name of the kind, with or without the final zero byte.
    fn from_name(name: &[u8]) -> Self {
        match name.strip_suffix(&[0]).unwrap_or(name) {
            b"dummy" => Self::Dummy,
            b"bridge" => Self::Bridge,
            b"veth" => Self::Veth,
            b"vrf" => Self::Vrf,
            b"vlan" => Self::Vlan,
            b"tun" => Self::Tun,
            _ => Self::Other,
        }
    }
}

/// One `RTM_NEWADDR`, `struct ifaddrmsg`, then attributes.
pub(super) fn parse_address(message: &[u8]) -> Result<LinkAddress, DecodeError> {
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
    Ok(LinkAddress {
        index: u32_at(&header[4..]),
        ip: own,
        prefix_len: header[1],
        peer: address.filter(|address| *address != own),
        scope: header[3],
        unusable: own.is_ipv6() && flags & (IFA_F_TENTATIVE | IFA_F_DADFAILED) != 0,
        deprecated: own.is_ipv6() && flags & IFA_F_DEPRECATED != 0,
        permanent: flags & IFA_F_PERMANENT != 0,
        // For IPv6 the same bit means a temporary address, which hangs on nothing.
        secondary: own.is_ipv4() && flags & IFA_F_SECONDARY != 0,
        takes_along: Vec::new(),
    })
}

fn too_short(what: &str) -> DecodeError {
    DecodeError::from(format!("a message shorter than struct {what}"))
}

/// The number at the start of a part of a header, whose length was checked.
fn u32_at(bytes: &[u8]) -> u32 {
    u32::from_ne_bytes(
        *bytes
            .first_chunk()
            .expect("the header's length was checked"),
    )
}

fn number(value: &[u8]) -> Result<u32, DecodeError> {
    match value.try_into() {
        Ok(bytes) => Ok(u32::from_ne_bytes(bytes)),
        Err(_) => Err(DecodeError::invalid_number(4, value.len())),
    }
}

/// A name of the kernel. It never refuses bytes that are not UTF-8, so neither does this.
fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

fn ip(value: &[u8]) -> Result<IpAddr, DecodeError> {
    if let Ok(bytes) = <[u8; 4]>::try_from(value) {
        Ok(Ipv4Addr::from(bytes).into())
    } else if let Ok(bytes) = <[u8; 16]>::try_from(value) {
        Ok(Ipv6Addr::from(bytes).into())
    } else {
        Err(DecodeError::invalid_ip_address(value.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + value.len()).expect("short");
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn link_message(flags: i32, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = vec![0; 4];
        bytes.extend(7_u32.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(attributes.concat());
        bytes
    }

    #[test]
    fn a_link_is_read_and_the_unknown_skipped() {
        let nested = 1 << 15;
        let message = link_message(
            libc::IFF_UP,
            &[
                attribute(IFLA_IFNAME, b"port0\0"),
                attribute(999, b"from the future"),
                attribute(IFLA_MASTER, &3_u32.to_ne_bytes()),
                attribute(IFLA_LINK, &3_u32.to_ne_bytes()),
                attribute(
                    IFLA_XDP | nested,
                    &[
                        attribute(IFLA_XDP_ATTACHED, &[XDP_ATTACHED_DRV]),
                        attribute(IFLA_XDP_PROG_ID, &77_u32.to_ne_bytes()),
                    ]
                    .concat(),
                ),
                attribute(IFLA_GROUP, &OWN_GROUP.to_ne_bytes()),
                attribute(IFLA_LINKINFO, &attribute(IFLA_INFO_KIND, b"veth\0")),
                attribute(
                    IFLA_PROP_LIST | nested,
                    &attribute(IFLA_ALT_IFNAME, b"long-name\0"),
                ),
            ],
        );
        let expected = Link {
            index: 7,
            name: "port0".to_owned(),
            altnames: vec!["long-name".to_owned()],
            up: true,
            kind: LinkKind::Veth,
            master: Some(3),
            owned: true,
            foreign_addresses: false,
            lower: Some(3),
            ethernet: false,
            xdp: Some(Xdp {
                program: 77,
                native: true,
            }),
        };
        assert_eq!(parse_link(&message).expect("well formed"), expected);
    }

    #[test]
    fn the_loopback_link_is_known_by_its_flag() {
        let message = link_message(libc::IFF_LOOPBACK, &[attribute(IFLA_IFNAME, b"lo\0")]);
        let link = parse_link(&message).expect("well formed");
        assert_eq!((link.kind, link.up), (LinkKind::Loopback, false));
    }

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
        let message = link_message(
            0,
            &[
                attribute(IFLA_IFNAME, b"eth0\0"),
                attribute(IFLA_GROUP, &[0; 4]),
                attribute(IFLA_LINKINFO, &attribute(IFLA_INFO_KIND, b"veth\0")),
            ],
        );
        for length in 0..message.len() {
            let cut = &message[..length];
            assert!(length >= 16 || parse_link(cut).is_err());
            let _ = parse_link(cut);
            let _ = parse_address(cut);
        }
    }
}
