// SPDX-License-Identifier: Apache-2.0

//! Generates random Ethernet frames of every shape, each with the intended verdict of the guard on a guarded link. The
//! same seed generates the same frames.

mod headers;

use std::net::IpAddr;

use self::headers::{ip, octets, other_address};
use crate::transfer::Generator;
use crate::{Family, PORT};

/// A frame and the intended verdict.
#[derive(Debug, Clone)]
pub struct Frame {
    /// The bytes, from the Ethernet header on.
    pub bytes: Vec<u8>,
    /// The kind of frame.
    pub shape: &'static str,
    /// The name under which the frame is counted in `counters[].total.dropped`, or `None` if the frame must pass.
    pub dropped: Option<&'static str>,
}

/// The addresses of the sender.
#[derive(Debug, Clone, Copy)]
pub struct Sender {
    /// An address outside of the node.
    pub outside: IpAddr,
    /// An address that `--allow-from` contains.
    pub allowed: IpAddr,
    /// The link-layer addresses of the receiver and of the sender.
    pub link: [[u8; 6]; 2],
}

const OUTSIDE: Option<&str> = Some("outside");
const SPOOFED: Option<&str> = Some("spoofed_source");
const NEIGHBOUR: Option<&str> = Some("neighbour");

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
/// Extension headers that are parsed in the same way.
const EXTENSIONS: [u8; 4] = [0, 43, DESTINATION_OPTIONS, 135];

struct Maker {
    family: Family,
    sender: Sender,
    numbers: Generator,
}

/// Returns `count` frames of a family. The same seed gives the same frames.
#[must_use]
pub fn corpus(family: Family, sender: Sender, seed: u64, count: usize) -> Vec<Frame> {
    let mut maker = Maker {
        family,
        sender,
        numbers: Generator(seed),
    };
    (0..count).map(|_| maker.frame()).collect()
}

impl Maker {
    fn random(&mut self, below: u64) -> u64 {
        self.numbers.number() % below
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.random(256)).expect("below 256")
    }

    fn bytes(&mut self, most: u64) -> Vec<u8> {
        let count = self.random(most + 1);
        (0..count).map(|_| self.byte()).collect()
    }

    /// Returns a TCP header with random content except for the destination port.
    fn tcp(&mut self, port: u16) -> Vec<u8> {
        let mut tcp: Vec<u8> = (0..20).map(|_| self.byte()).collect();
        tcp[2..4].copy_from_slice(&port.to_be_bytes());
        tcp.extend(self.bytes(40));
        tcp
    }

    fn frame(&mut self) -> Frame {
        let vip = self.family.vip();
        let Sender {
            outside, allowed, ..
        } = self.sender;
        match self.random(20) {
            0 | 1 => {
                let tcp = self.tcp(PORT);
                self.plain("to the proxy", outside, vip, TCP, &tcp, OUTSIDE)
            }
            2 => {
                let tcp = self.tcp(PORT + 1);
                self.plain("to another port", outside, vip, TCP, &tcp, None)
            }
            3 => {
                let udp = self.tcp(PORT);
                self.plain("UDP", outside, vip, UDP, &udp, None)
            }
            4 => {
                let tcp = self.tcp(PORT);
                self.plain("from an allowed source", allowed, vip, TCP, &tcp, None)
            }
            5 => {
                let tcp = self.tcp(PORT);
                let other = other_address(vip);
                self.plain("to another address", outside, other, TCP, &tcp, None)
            }
            6 => {
                let port = u16::try_from(self.random(65536)).expect("16 bits");
                let (to, protocol) = match self.random(3) {
                    0 => (vip, TCP),
                    1 => (other_address(vip), UDP),
                    _ => (outside, self.byte()),
                };
                let tcp = self.tcp(port);
                self.plain("from the VIP", vip, to, protocol, &tcp, SPOOFED)
            }
            7 => {
                let local: IpAddr = match self.family {
                    Family::V4 => [127, self.byte(), self.byte(), self.byte()].into(),
                    Family::V6 => std::net::Ipv6Addr::LOCALHOST.into(),
                };
                let tcp = self.tcp(PORT);
                self.plain("from a loopback address", local, vip, TCP, &tcp, SPOOFED)
            }
            8 | 9 => self.with_options(),
            10 | 11 => self.fragment(),
            12 => {
                let tcp = self.tcp(PORT);
                let whole = self.plain("cut off", outside, vip, TCP, &tcp, None);
                let header = 14 + self.header();
                let cut = 14 + usize::try_from(self.random(80)).expect("small");
                let bytes = whole.bytes[..cut.min(whole.bytes.len())].to_vec();
                let dropped = if bytes.len() >= header { OUTSIDE } else { None };
                Frame {
                    bytes,
                    dropped,
                    ..whole
                }
            }
            13..=15 => self.tagged(),
            16 => self.question(),
            17 => {
                let mut frame = self.ethernet();
                frame.extend(self.bytes(200));
                while frame.len() < 14 {
                    frame.push(0);
                }
                Frame {
                    bytes: frame,
                    shape: "nonsense",
                    dropped: None,
                }
            }
            18 => {
                // The kernel drops packets with a wrong version or length, so the guard may drop them as well.
                let tcp = self.tcp(PORT);
                let mut frame = self.plain("malformed", outside, vip, TCP, &tcp, OUTSIDE);
                let [version, length] = match self.family {
                    Family::V4 => [14, 16],
                    Family::V6 => [14, 18],
                };
                if self.random(2) == 0 {
                    // The header length is not changed.
                    frame.bytes[version] = (self.byte() & 0xf0) | (frame.bytes[version] & 0x0f);
                }
                frame.bytes[length] = self.byte();
                frame.bytes[length + 1] = self.byte();
                frame
            }
            _ => {
                let payload = self.bytes(60);
                let protocol = self.byte();
                let protocol = if protocol == TCP { UDP } else { protocol };
                let protocol = if self.family == Family::V6 {
                    59
                } else {
                    protocol
                };
                self.plain("no TCP", outside, vip, protocol, &payload, None)
            }
        }
    }

    fn header(&self) -> usize {
        match self.family {
            Family::V4 => 20,
            Family::V6 => 40,
        }
    }

    /// Returns the Ethernet addresses, without the type.
    fn ethernet(&self) -> Vec<u8> {
        self.sender.link.concat()
    }

    fn kind(&self) -> [u8; 2] {
        match self.family {
            Family::V4 => [0x08, 0x00],
            Family::V6 => [0x86, 0xdd],
        }
    }

    fn plain(
        &mut self,
        shape: &'static str,
        source: IpAddr,
        destination: IpAddr,
        protocol: u8,
        payload: &[u8],
        dropped: Option<&'static str>,
    ) -> Frame {
        let mut bytes = self.ethernet();
        bytes.extend(self.kind());
        bytes.extend(ip(source, destination, protocol, &[], 0, payload));
        Frame {
            bytes,
            shape,
            dropped,
        }
    }

    /// Returns a frame with IPv4 options or IPv6 extension headers before TCP.
    fn with_options(&mut self) -> Frame {
        let (outside, vip) = (self.sender.outside, self.family.vip());
        let tcp = self.tcp(PORT);
        if self.family == Family::V4 {
            let words = usize::try_from(1 + self.random(10)).expect("small");
            let options: Vec<u8> = (0..4 * words).map(|_| self.byte()).collect();
            let mut bytes = self.ethernet();
            bytes.extend(self.kind());
            bytes.extend(ip(outside, vip, TCP, &options, 0, &tcp));
            return Frame {
                bytes,
                shape: "IPv4 options",
                dropped: OUTSIDE,
            };
        }
        let count = usize::try_from(1 + self.random(7)).expect("small");
        let kinds: Vec<_> = (0..count)
            .map(|_| EXTENSIONS[usize::try_from(self.random(4)).expect("small")])
            .collect();
        let mut payload = Vec::new();
        for next in kinds[1..].iter().chain(&[TCP]) {
            let length = u8::try_from(self.random(4)).expect("small");
            payload.extend([*next, length]);
            payload.extend((0..8 * u16::from(length) + 6).map(|_| self.byte()));
        }
        payload.extend(tcp);
        let first = kinds[0];
        self.plain("extension headers", outside, vip, first, &payload, OUTSIDE)
    }

    fn fragment(&mut self) -> Frame {
        let (outside, vip) = (self.sender.outside, self.family.vip());
        let later = self.random(2) == 0;
        let offset = if later { 1 + self.random(8000) } else { 0 };
        let offset = u16::try_from(offset).expect("13 bits");
        let port = if later || self.random(2) == 0 {
            PORT
        } else {
            80
        };
        let protocol = if self.random(4) == 0 { UDP } else { TCP };
        let payload = self.tcp(port);
        let dropped = if protocol == TCP && port == PORT {
            OUTSIDE
        } else {
            None
        };
        if self.family == Family::V4 {
            let mut bytes = self.ethernet();
            bytes.extend(self.kind());
            bytes.extend(ip(outside, vip, protocol, &[], 0x2000 | offset, &payload));
            return Frame {
                bytes,
                shape: "a fragment",
                dropped,
            };
        }
        let mut header = vec![protocol, self.byte()];
        header.extend((offset << 3 | 1).to_be_bytes());
        header.extend([0, 0, 0, 7]);
        header.extend(payload);
        self.plain("a fragment", outside, vip, FRAGMENT, &header, dropped)
    }

    fn tagged(&mut self) -> Frame {
        let (outside, vip) = (self.sender.outside, self.family.vip());
        let tcp = self.tcp(PORT);
        let inner = ip(outside, vip, TCP, &[], 0, &tcp);
        let tags = usize::try_from(1 + self.random(2)).expect("small");
        let mut bytes = self.ethernet();
        let mut is_numbered = false;
        for _ in 0..tags {
            let priority = u16::try_from(self.random(8)).expect("3 bits") << 13;
            let number = if self.random(2) == 0 {
                0
            } else {
                1 + self.random(4094)
            };
            is_numbered |= number != 0;
            let control = priority | u16::try_from(number).expect("12 bits");
            bytes.extend(if self.random(2) == 0 {
                [0x81, 0x00]
            } else {
                [0x88, 0xa8]
            });
            bytes.extend(control.to_be_bytes());
        }
        bytes.extend(self.kind());
        bytes.extend(inner);
        Frame {
            bytes,
            shape: "a VLAN tag",
            dropped: if is_numbered { None } else { OUTSIDE },
        }
    }

    /// Returns an ARP request or neighbour solicitation for the VIP or another address.
    fn question(&mut self) -> Frame {
        let ours = self.random(2) == 0;
        let vip = self.family.vip();
        let target = if ours { vip } else { other_address(vip) };
        let dropped = if ours { NEIGHBOUR } else { None };
        let outside = self.sender.outside;
        if self.family == Family::V6 {
            let mut payload = vec![135, 0, 0, 0, 0, 0, 0, 0];
            payload.extend(octets(target));
            let mut group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0];
            group[13..].copy_from_slice(&octets(target)[13..]);
            let group = IpAddr::from(group);
            return self.plain("a solicitation", outside, group, ICMPV6, &payload, dropped);
        }
        let mut bytes = self.ethernet();
        bytes.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
        bytes.extend(self.sender.link[1]);
        bytes.extend(octets(outside));
        bytes.extend([0; 6]);
        bytes.extend(octets(target));
        Frame {
            bytes,
            shape: "an ARP request",
            dropped,
        }
    }
}
