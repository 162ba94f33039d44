// SPDX-License-Identifier: Apache-2.0

//! Links. Only the attributes that the agent needs are decoded, so that a new or unusual one cannot make a link
//! unreadable, and a dump of thousands of links stays cheap.

use netlink_packet_core::{DecodeError, NlasIterator};

use super::attribute::{number, number_at, text, too_short};
use super::dump::{Error, dump};

// Message types, include/uapi/linux/rtnetlink.h, and the attribute of the request.
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const IFLA_EXT_MASK: u16 = 29;
/// Omits counters from the response (4.8), which are most of its size.
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;

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
/// A value from `linux/if_arp.h`.
const ARPHRD_ETHER: u16 = 1;

/// The kinds of links that the agent distinguishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    /// `lo`.
    Loopback,
    /// A dummy link, which discards its packets.
    Dummy,
    /// A bridge master.
    Bridge,
    /// One end of a veth pair.
    Veth,
    /// A VRF master, which has its own routing domain.
    Vrf,
    /// A VLAN on top of another link.
    Vlan,
    /// A tun or tap link, whose packets originate from a process.
    Tun,
    /// Any other link, including hardware.
    Other,
}

/// One link of this network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The ifindex.
    pub index: u32,
    /// The name.
    pub name: String,
    /// Alternative names, by which the kernel finds the link as well.
    pub altnames: Vec<String>,
    /// True if the link was set up (`IFF_UP`), with or without a carrier.
    pub up: bool,
    /// The kind of the link.
    pub kind: LinkKind,
    /// The ifindex of the bridge, bond, VRF or other link of which this one is a port.
    pub master: Option<u32>,
    /// The link group (`ip link set … group`), with which a program can mark its links; 0 by default.
    pub group: u32,
    /// The ifindex of the underlying link in this network namespace, or of the other end of the pair.
    pub lower: Option<u32>,
    /// True if the link's packets have Ethernet headers.
    pub ethernet: bool,
    /// The XDP program on the link.
    pub xdp: Option<Xdp>,
}

/// An XDP program on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Xdp {
    /// The id of the program, or zero if there are several programs.
    pub program: u32,
    /// True if the driver runs the program, false if the network stack does.
    pub native: bool,
}

impl Link {
    /// Creates an Ethernet link that is up, without a master or an XDP program.
    #[must_use]
    pub fn new(index: u32, name: &str, kind: LinkKind) -> Self {
        Self {
            index,
            name: name.to_owned(),
            altnames: Vec::new(),
            up: true,
            kind,
            master: None,
            group: 0,
            lower: None,
            ethernet: true,
            xdp: None,
        }
    }
}

/// Returns all links, sorted by ifindex.
///
/// # Errors
///
/// Returns an error if the list could not be read completely or kept changing while it was read.
pub async fn links() -> Result<Vec<Link>, Error> {
    // An empty struct ifinfomsg and one attribute.
    let mut body = vec![0; 16];
    body.extend(8_u16.to_ne_bytes());
    body.extend(IFLA_EXT_MASK.to_ne_bytes());
    body.extend(RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
    let mut links = dump(
        RTM_GETLINK,
        RTM_NEWLINK,
        &body,
        |links: &mut Vec<_>, message| {
            links.push(parse_link(message)?);
            Ok(())
        },
    )
    .await
    .map_err(|source| Error {
        what: "links",
        source,
    })?;
    links.sort_by_key(|link: &Link| link.index);
    Ok(links)
}

/// Parses one `RTM_NEWLINK`: `struct ifinfomsg`, followed by attributes.
pub(super) fn parse_link(message: &[u8]) -> Result<Link, DecodeError> {
    let (header, attributes) = message
        .split_first_chunk::<16>()
        .ok_or_else(|| too_short("ifinfomsg"))?;
    let field = |at| number_at(header, at).expect("the header has 16 bytes");
    let flags = field(8);
    let mut link = Link::new(field(4), "", LinkKind::Other);
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
            IFLA_GROUP => link.group = number(value)?,
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

/// Parses the XDP program of a link. Several programs count as one with id 0.
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
    /// Converts the kernel's name of the kind, with or without the terminating zero byte.
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

#[cfg(test)]
mod tests {
    use super::super::attribute::attribute;
    use super::*;

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
                attribute(IFLA_GROUP, &9_u32.to_ne_bytes()),
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
            group: 9,
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
        }
    }
}
