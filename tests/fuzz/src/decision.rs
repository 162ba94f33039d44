// SPDX-License-Identifier: Apache-2.0

//! The decision about connections, over any history of one client port.
//!
//! The hooks of `proxy-ebpf` are played here in the order in which packets meet them, with the rules of
//! `proxy-common` and a map as theirs; which connection a packet really belongs to is known beside it.

use std::collections::HashMap;
use std::net::SocketAddr;

use proxy_common::{Connection, ConnectionKey, Endpoint, Ipv4Tcp, Segment};

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// How much happens at most: more tells nothing new.
const STEPS: usize = 64;

/// How a connection comes to the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Addressed to the VIP.
    Direct,
    /// Addressed to a Service that the agent translates.
    Translated,
    /// Addressed to a Service, and sent to the VIP by somebody's DNAT.
    Natted,
}

/// The connection that lives at the moment.
#[derive(Debug, Clone, Copy)]
struct Live {
    way: Way,
    isn: u32,
    payload: u32,
    /// The proxy has answered.
    answered: bool,
    /// Its decision has been forgotten meanwhile, so it is tracked from then on.
    evicted: bool,
}

/// The node.
#[derive(Debug, Default)]
struct Node {
    map: HashMap<ConnectionKey, Connection>,
    live: Option<Live>,
}

/// What happens, four bytes at a time: what, and a number for it.
pub fn decision(data: &[u8]) {
    let mut node = Node::default();
    let mut isn = u32::MAX - 100_000;
    for step in data.chunks_exact(4).take(STEPS) {
        let number = u32::from(u16::from_be_bytes([step[2], step[3]]));
        match step[0] % 8 {
            0..=2 => {
                // A client takes another number for each connection, and none that could be one which
                // acknowledges data of the SYN before (RFC 6528, RFC 7413).
                isn = isn
                    .wrapping_add(70_000)
                    .wrapping_add(number << (step[1] % 4));
                let way = [Way::Direct, Way::Translated, Way::Natted][usize::from(step[0] % 8)];
                let payload = if step[1] & 0x80 == 0 {
                    0
                } else {
                    u32::from(step[1] & 0x7f)
                };
                node.open(way, isn, payload);
            }
            3 => node.open_again(),
            4 => node.answer(number),
            5 => node.go_on(step[1], number),
            6 => node.evict(),
            _ => node.never_inserts(step[1], number),
        }
    }
}

fn client() -> Endpoint {
    SocketAddr::from(([10, 0, 0, 7], 40_000)).into()
}

fn vip() -> Endpoint {
    SocketAddr::from(([10, 96, 0, 2], 443)).into()
}

fn service() -> Endpoint {
    SocketAddr::from(([10, 96, 0, 1], 443)).into()
}

fn key() -> ConnectionKey {
    ConnectionKey::new(client(), vip())
}

/// A segment as the programs read it.
fn segment(from: Endpoint, to: Endpoint, flags: u8, seq: u32, ack: u32, payload: u32) -> Segment {
    let ip = |end: Endpoint| end.address().octets()[12..].to_vec();
    let mut bytes = [0_u8; 40];
    bytes[0] = 0x45;
    let length = u16::try_from(40 + payload).expect("it is short");
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
    bytes[9] = 6;
    bytes[12..16].copy_from_slice(&ip(from));
    bytes[16..20].copy_from_slice(&ip(to));
    bytes[20..22].copy_from_slice(&from.port().to_ne_bytes());
    bytes[22..24].copy_from_slice(&to.port().to_ne_bytes());
    bytes[24..28].copy_from_slice(&seq.to_be_bytes());
    bytes[28..32].copy_from_slice(&ack.to_be_bytes());
    bytes[32] = 0x50;
    bytes[33] = flags;
    // SAFETY: integers only, no padding, same size.
    let headers: Ipv4Tcp = unsafe { std::mem::transmute(bytes) };
    headers.segment().expect("it is plain TCP")
}

impl Node {
    /// A SYN. Before it the client has given up the connection of the same port.
    fn open(&mut self, way: Way, isn: u32, payload: u32) {
        self.live = Some(Live {
            way,
            isn,
            payload,
            answered: false,
            evicted: false,
        });
        self.syn();
    }

    /// The SYN once more: the first one, or its answer, was lost.
    fn open_again(&mut self) {
        if let Some(live) = &mut self.live
            && !live.answered
        {
            // It is decided anew.
            live.evicted = false;
            self.syn();
        }
    }

    fn syn(&mut self) {
        let live = self.live.expect("there is one");
        match live.way {
            Way::Direct => {
                let syn = segment(client(), vip(), SYN, live.isn, 0, live.payload);
                self.decide(&syn, Endpoint::NONE);
                assert!(self.untracks_request(&syn), "its own SYN");
            }
            Way::Translated => {
                let syn = segment(client(), service(), SYN, live.isn, 0, live.payload);
                self.decide(&syn, service());
                // PREROUTING sees what TC has translated.
                let translated = segment(client(), vip(), SYN, live.isn, 0, live.payload);
                assert!(self.untracks_request(&translated), "its own SYN");
            }
            // Neither hook before NAT sees the VIP. The one behind it would see this, and must not
            // take it for the connection that was decided before.
            Way::Natted => {
                let syn = segment(client(), vip(), SYN, live.isn, 0, live.payload);
                assert!(!self.untracks_request(&syn), "a SYN that nobody decided");
            }
        }
    }

    /// The only place that inserts.
    fn decide(&mut self, syn: &Segment, original: Endpoint) {
        assert!(syn.opens());
        let decision = Connection::opened_by(syn, original);
        assert_eq!(decision.is_translated(), original != Endpoint::NONE);
        self.map.insert(key(), decision);
    }

    /// The proxy answers: SYN-ACK, or RST where nobody listens.
    fn answer(&mut self, number: u32) {
        let Some(live) = &mut self.live else {
            return;
        };
        live.answered = true;
        let live = *live;
        let taken = number % (live.payload + 1);
        let ack = live.isn.wrapping_add(1).wrapping_add(taken);
        let refused = number & 0x100 != 0;
        let answer = if refused {
            segment(vip(), client(), RST | ACK, 0, ack, 0)
        } else {
            segment(vip(), client(), SYN | ACK, number, ack, 0)
        };
        assert!(answer.answers_opening());
        assert_eq!(self.verify(&answer), self.is_decided(), "{live:?}");
        if live.way == Way::Natted {
            assert_eq!(self.map.get(&key()), None, "an older decision is gone");
        }
        if refused {
            self.live = None;
        }
    }

    /// What follows the handshake, in both directions: all of it as the handshake was.
    fn go_on(&mut self, kind: u8, number: u32) {
        let Some(live) = self.live.filter(|live| live.answered) else {
            return;
        };
        let flags = [ACK, ACK | FIN, ACK | 0x08, RST | ACK, RST][usize::from(kind % 5)];
        // Behind the handshake no sequence number of a reset is zero but one time in 2^32.
        let seq = number.wrapping_add(1);
        let reply = segment(vip(), client(), flags, seq, live.isn, number % 1400);
        assert_eq!(self.verify(&reply), self.is_decided(), "{live:?}");
        if live.way != Way::Natted {
            let request = segment(client(), vip(), flags, seq, number, number % 1400);
            assert_eq!(
                self.untracks_request(&request),
                self.is_decided(),
                "{live:?}"
            );
        }
    }

    /// The map is full: the oldest goes.
    fn evict(&mut self) {
        self.map.remove(&key());
        if let Some(live) = &mut self.live {
            live.evicted = true;
        }
    }

    /// Whatever a segment is, unless it is a SYN to the proxy it adds nothing.
    fn never_inserts(&mut self, flags: u8, number: u32) {
        let request = segment(client(), vip(), flags, number, !number, 0);
        let before = self.map.get(&key()).copied();
        let covered = self.untracks_request(&request);
        assert_eq!(self.map.get(&key()).copied(), before);
        assert!(!covered || before.is_some());
        if request.opens() {
            assert_eq!(
                covered,
                before.is_some_and(|entry| entry.is_opened_by(&request))
            );
        }
    }

    /// Whether raw PREROUTING, or raw OUTPUT for a client on the node, untracks it.
    fn untracks_request(&self, request: &Segment) -> bool {
        let entry = self.map.get(&ConnectionKey::of_request(request));
        entry.is_some_and(|entry| entry.covers_request(request))
    }

    /// Whether raw OUTPUT untracks what the proxy sends; what contradicts the decision takes it back.
    fn verify(&mut self, reply: &Segment) -> bool {
        let key = ConnectionKey::of_reply(reply);
        let Some(entry) = self.map.get(&key) else {
            return false;
        };
        let covered = entry.covers_reply(reply);
        if !covered {
            self.map.remove(&key);
        }
        covered
    }

    /// What the packets of the living connection should be.
    fn is_decided(&self) -> bool {
        self.live
            .is_some_and(|live| live.way != Way::Natted && !live.evicted)
    }
}
