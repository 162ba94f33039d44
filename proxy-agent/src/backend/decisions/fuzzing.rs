// SPDX-License-Identifier: Apache-2.0

//! Decisions about connections, over any history of two client ports: an interpreter runs the rules in the order in which packets
//! meet them, and a model knows to which connection each packet really belongs.
//!
//! Packets are not lost between hooks, and a client is on the node. The limits that `docs/packet-path.md` documents for one client
//! port with two concurrent uses apply here too: see [`Promise::None`].

mod hooks;
pub mod interpreter;

use std::time::Duration;

use proxy_netlink::netfilter::expression::flag::{ACK, FIN, RST, SYN};
use proxy_netlink::netfilter::{Family, Hook};

use self::hooks::table;
use self::interpreter::{Kernel, Packet};
use super::{CLOSED, FOR_GOOD, OF_VIPS, PASSING, TRACKED};
use crate::backend::live::Live;

/// Maximum number of events: more reveal nothing new.
const STEPS: usize = 64;
/// Maximum number of concurrent connections.
const CONNECTIONS: usize = 4;
/// The first two are client ports; conntrack may assign any of them to a connection.
const PORTS: [u16; 4] = [40_000, 40_001, 50_000, 50_001];
const PORT: u16 = 443;

/// How a connection reaches the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Addressed to the VIP.
    Direct,
    /// Addressed to a Service, and DNATed to the VIP by others.
    Translated,
}

/// The guarantee of the rules for every packet of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Promise {
    Untracked,
    Tracked,
    /// A documented limit applies: the decision expired, or was lost together with the rules.
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// The client has sent a SYN.
    Opening,
    /// The proxy has answered it.
    Answered,
    /// The client has answered that.
    Established,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sender {
    Client,
    Proxy,
}

#[derive(Debug, Clone)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "facts that do not depend on each other"
)]
struct Connection {
    way: Way,
    /// The client's port: an index of `PORTS`.
    port: usize,
    /// The port that the proxy sees.
    seen: usize,
    stage: Stage,
    /// The SYN met no socket of another connection, so the proxy answers it.
    is_heard: bool,
    /// The client, the proxy.
    closed: [bool; 2],
    /// The client has forgotten it; the proxy may not have.
    is_abandoned: bool,
    /// It is in the set `tracked`.
    is_marked: bool,
    promise: Promise,
    /// A set was full when it should have been added.
    lacked_room: bool,
    /// Time of the last packet from the client, and from the proxy.
    last: [Duration; 2],
}

/// The node.
struct Node {
    kernel: Kernel,
    has_rules: bool,
    family: Family,
    /// The client is a process of the node, not a pod.
    is_client_here: bool,
    size: usize,
    now: Duration,
    connections: Vec<Connection>,
}

/// The node, followed by the events: two bytes each, kind and parameter.
pub fn decision(data: &[u8]) {
    let Some((head, steps)) = data.split_first() else {
        return;
    };
    let mut node = Node {
        kernel: Kernel::default(),
        has_rules: false,
        family: [Family::IPv4, Family::IPv6][usize::from(head & 1)],
        is_client_here: head & 2 != 0,
        size: [64, 2, 1, 64][usize::from(head >> 2 & 3)],
        now: Duration::ZERO,
        connections: Vec::new(),
    };
    node.install(false);
    for step in steps.chunks_exact(2).take(STEPS) {
        node.step(step[0], step[1]);
    }
}

fn minutes(minutes: u64) -> Duration {
    Duration::from_mins(minutes)
}

impl Connection {
    /// The proxy has a socket for it.
    fn has_socket(&self) -> bool {
        self.stage > Stage::Opening || self.is_heard
    }
}

impl Node {
    fn step(&mut self, kind: u8, number: u8) {
        let (low, high) = (usize::from(number & 0xf), usize::from(number >> 4));
        let from = [Sender::Client, Sender::Proxy][high & 1];
        match kind % 13 {
            0 | 1 => self.open(Way::Direct, low & 1, 0),
            2 => self.open(Way::Translated, low & 1, high),
            9 => self.pass(
                [
                    Duration::from_secs(1),
                    CLOSED,
                    minutes(1),
                    PASSING,
                    minutes(11),
                    minutes(60),
                    minutes(60 * 23),
                    minutes(60 * 24 * 30),
                ][low & 7],
            ),
            10 => match low & 3 {
                0 => self.flush(),
                1 => self.install(false),
                _ => self.install(true),
            },
            11 => self.stray(number, usize::from(kind) / 13 % PORTS.len(), from),
            kind if !self.connections.is_empty() => {
                let at = low % self.connections.len();
                match kind {
                    3 => self.open_again(at),
                    4 => self.answer(at, high == 0xf),
                    5 => self.client_answers(at),
                    6 => self.plain(at, from),
                    7 => self.close(at, from),
                    8 => self.reset(at, from),
                    _ => self.connections[at].is_abandoned = true,
                }
            }
            _ => {}
        }
    }

    fn open(&mut self, way: Way, port: usize, choice: usize) {
        // The client reuses the port only after it has given up the older connection.
        for older in &mut self.connections {
            older.is_abandoned |= (older.way, older.port) == (way, port);
        }
        self.connections
            .retain(|one| !one.is_abandoned || one.has_socket());
        if self.connections.len() == CONNECTIONS {
            return;
        }
        self.connections.push(Connection {
            way,
            port,
            seen: port,
            stage: Stage::Opening,
            is_heard: false,
            closed: [false; 2],
            is_abandoned: false,
            is_marked: false,
            promise: Promise::None,
            lacked_room: false,
            last: [self.now; 2],
        });
        self.syn(self.connections.len() - 1, choice);
    }

    /// A retransmitted SYN: the first one, or its answer, was lost.
    fn open_again(&mut self, at: usize) {
        let connection = &self.connections[at];
        if connection.is_abandoned || connection.stage == Stage::Established {
            return;
        }
        let before = connection.seen;
        let answered = connection.stage == Stage::Answered;
        let at = self.syn(at, 0);
        if answered {
            // Conntrack may have assigned another port, so the proxy sees another connection.
            if self.connections[at].seen == before {
                self.reply(at, SYN | ACK);
            } else {
                self.connections[at].stage = Stage::Opening;
            }
        }
    }

    /// Index of the connection afterwards, because another one may have been removed.
    fn syn(&mut self, at: usize, choice: usize) -> usize {
        let port = self.connections[at].port;
        let is_in_use = self.connections.iter().enumerate().any(|(other, older)| {
            let is_remembered = older.is_marked && self.now < older.last[1] + TRACKED;
            other != at && older.seen == port && is_remembered && older.has_socket()
        });
        let untracked = self.request(at, SYN, choice);
        let connection = &self.connections[at];
        let (way, seen) = (connection.way, connection.seen);
        let is_marked = self.kernel.has("tracked", &self.key(seen));
        let connection = &mut self.connections[at];
        connection.is_marked = is_marked && !untracked;
        connection.lacked_room = self.kernel.lacked_room;
        connection.promise = if untracked {
            assert_eq!(way, Way::Direct, "a SYN to a Service is not ours");
            assert!(!is_in_use, "a tracked connection has this port");
            Promise::Untracked
        } else {
            Promise::Tracked
        };
        if !untracked && !is_marked {
            // All decisions about connections that look the same to the proxy are deleted.
            let others = self.connections.iter_mut().enumerate();
            for (_, other) in others.filter(|(other, one)| *other != at && one.seen == seen) {
                other.promise = Promise::None;
            }
        }
        self.meet_socket(at)
    }

    /// A SYN for which the proxy has a socket is not answered. Returns the connection's index afterwards.
    fn meet_socket(&mut self, at: usize) -> usize {
        let seen = self.connections[at].seen;
        let holder = self
            .connections
            .iter()
            .enumerate()
            .position(|(other, one)| other != at && one.seen == seen && one.has_socket());
        self.connections[at].is_heard = holder.is_none();
        let Some(holder) = holder else {
            return at;
        };
        if self.connections[at].promise == Promise::Untracked {
            // No set contains the other one, else this one would be left undecided.
            self.connections[holder].promise = Promise::None;
            self.connections[holder].is_marked = false;
        }
        if self.connections[holder].stage < Stage::Established {
            // Both open concurrently.
            self.connections[holder].promise = Promise::None;
            self.connections[at].promise = Promise::None;
        }
        self.reply(holder, ACK);
        if !self.connections[holder].is_abandoned {
            return at;
        }
        self.request(holder, RST, 0);
        self.connections.remove(holder);
        at - usize::from(holder < at)
    }

    /// The proxy answers: with a SYN-ACK, or with a RST without a listener.
    fn answer(&mut self, at: usize, refuses: bool) {
        let connection = &self.connections[at];
        if connection.stage != Stage::Opening || !connection.is_heard {
            return;
        }
        if refuses {
            self.reply(at, RST | ACK);
            self.end(at);
        } else {
            self.reply(at, SYN | ACK);
            self.connections[at].stage = Stage::Answered;
        }
    }

    fn client_answers(&mut self, at: usize) {
        let connection = &self.connections[at];
        if connection.stage == Stage::Answered && !connection.is_abandoned {
            self.request(at, ACK, 0);
            self.connections[at].stage = Stage::Established;
        }
    }

    fn plain(&mut self, at: usize, from: Sender) {
        if self.connections[at].stage == Stage::Established {
            self.packet(at, from, ACK);
        }
    }

    fn close(&mut self, at: usize, from: Sender) {
        let connection = &self.connections[at];
        // The client's answer may be its FIN.
        let can_close = match from {
            Sender::Client => connection.stage >= Stage::Answered && !connection.is_abandoned,
            Sender::Proxy => connection.stage == Stage::Established,
        };
        if !can_close {
            return;
        }
        if !self.packet(at, from, FIN | ACK) {
            return;
        }
        self.connections[at].stage = Stage::Established;
        self.connections[at].closed[from as usize] = true;
        if self.connections[at].closed == [true; 2] {
            let other = [Sender::Proxy, Sender::Client][from as usize];
            if self.packet(at, other, ACK) {
                self.end(at);
            }
        }
    }

    fn reset(&mut self, at: usize, from: Sender) {
        let connection = &self.connections[at];
        let can_reset = match from {
            Sender::Client => connection.stage >= Stage::Answered && !connection.is_abandoned,
            Sender::Proxy => connection.stage == Stage::Established,
        };
        let is_waited_for = self
            .connections
            .iter()
            .any(|one| one.seen == connection.seen && !one.has_socket());
        // The client of a waiting connection may have given it up.
        let is_waited_for = is_waited_for || self.kernel.has("tracked", &self.key(connection.seen));
        if is_waited_for && from == Sender::Proxy {
            // It counts as the answer to the SYN of the waiting connection.
            self.connections[at].promise = Promise::None;
        }
        if can_reset && self.packet(at, from, RST | ACK) {
            self.end(at);
        }
    }

    /// A packet of an open connection. Returns false if that ended it, because a client that has forgotten it sends a RST.
    fn packet(&mut self, at: usize, from: Sender, flags: u8) -> bool {
        let is_abandoned = self.connections[at].is_abandoned;
        match from {
            Sender::Client if is_abandoned => return true,
            Sender::Client => {
                self.request(at, flags, 0);
            }
            Sender::Proxy => self.reply(at, flags),
        }
        if is_abandoned && flags & RST == 0 {
            self.request(at, RST, 0);
            self.connections.remove(at);
            return false;
        }
        true
    }

    /// The connection has ended.
    fn end(&mut self, at: usize) {
        let over = self.connections.remove(at);
        let lives = self.connections.iter().any(|one| one.seen == over.seen);
        if over.way == Way::Direct && !over.lacked_room && !lives {
            let decided = self.kernel.has(OF_VIPS.decided, &self.key(over.seen));
            assert!(!decided, "{over:?} has left a decision");
        }
    }

    fn pass(&mut self, time: Duration) {
        // Decisions expire by the set's timeout.
        if self.now + time >= FOR_GOOD {
            return;
        }
        self.now += time;
        self.kernel.pass(time);
        // Neither end retries for longer than that.
        let now = self.now;
        self.connections.retain(|one| {
            one.stage == Stage::Established || now < one.last[0].max(one.last[1]) + PASSING
        });
    }

    fn flush(&mut self) {
        self.kernel.flush();
        self.has_rules = false;
        for connection in &mut self.connections {
            connection.is_marked = false;
            if connection.promise == Promise::Untracked {
                connection.promise = Promise::None;
            }
        }
    }

    /// Installs the rules with the open connections that the agent knows; untracked ones of another backend are kept when it takes
    /// over.
    fn install(&mut self, takes_over: bool) {
        let takes_over = takes_over && self.has_rules;
        // Conntrack has an entry that the client opened to the VIP from this port.
        let is_opened = |seen: usize| {
            let mut connections = self.connections.iter();
            connections.any(|one| {
                (one.way, one.promise, one.port) == (Way::Direct, Promise::Tracked, seen)
            })
        };
        let with_socket = |way: Way, promise: Promise| {
            let connections = self.connections.iter();
            let wanted = connections.filter(|one| {
                (one.way, one.promise) == (way, promise)
                    && one.stage > Stage::Opening
                    && (promise == Promise::Tracked || !is_opened(one.seen))
            });
            wanted
                .map(|one| super::Connection {
                    client: (self.client(), PORTS[one.seen]).into(),
                    vip: (self.vip(), PORT).into(),
                })
                .collect::<Vec<_>>()
        };
        let live = Live {
            untracked: if takes_over {
                with_socket(Way::Direct, Promise::Untracked)
            } else {
                Vec::new()
            },
            translated: with_socket(Way::Translated, Promise::Tracked),
        };
        let table = table(self.family, &live);
        self.kernel.install(&table, self.size);
        self.has_rules = true;
        for at in 0..self.connections.len() {
            let key = self.key(self.connections[at].seen);
            let (kept, marked) = (
                self.kernel.has(OF_VIPS.decided, &key),
                self.kernel.has("tracked", &key),
            );
            let connection = &mut self.connections[at];
            connection.is_marked = marked && connection.promise == Promise::Tracked;
            connection.last[1] = self.now;
            if connection.promise == Promise::Untracked && !kept {
                connection.promise = Promise::None;
            }
        }
    }

    /// A packet from a client without a connection, or the proxy's answer to it.
    fn stray(&mut self, flags: u8, port: usize, from: Sender) {
        let is_used = |one: &Connection| one.seen == port || one.port == port;
        if flags & (SYN | ACK | RST | FIN) == SYN || self.connections.iter().any(is_used) {
            return;
        }
        let before = self.known();
        let client = (self.client(), PORTS[port]);
        let vip = (self.vip(), PORT);
        match from {
            Sender::Client => {
                let mut packet = self.header(client, vip, flags);
                self.raw(&mut packet);
                self.input(packet);
            }
            Sender::Proxy => {
                let mut packet = self.header(vip, client, flags);
                self.kernel.hook(Hook::Output, &mut packet);
            }
        }
        self.assert_nothing_new(before);
    }

    /// Sends a packet of the client through all hooks. Returns true if it is untracked.
    fn request(&mut self, at: usize, flags: u8, choice: usize) -> bool {
        self.forget(at);
        let before = self.known();
        let Connection { way, port, .. } = self.connections[at];
        let destination = match way {
            Way::Direct => self.vip(),
            Way::Translated => self.service(),
        };
        self.kernel.lacked_room = false;
        let mut packet = self.header((self.client(), PORTS[port]), (destination, PORT), flags);
        self.raw(&mut packet);
        let untracked = packet.untracked;
        if flags == SYN {
            self.connections[at].seen = if untracked {
                port
            } else {
                self.conntracks_port(at, choice)
            };
        }
        let seen = self.connections[at].seen;
        let seen = if untracked { port } else { seen };
        let as_seen = self.header((self.client(), PORTS[seen]), (self.vip(), PORT), flags);
        self.input(Packet {
            priority: packet.priority,
            untracked,
            ..as_seen
        });
        self.connections[at].last[0] = self.now;
        if flags & (FIN | RST) != 0 {
            self.end_of_another(at, seen);
        }
        if flags != SYN {
            self.assert_nothing_new(before);
            self.verify(at, untracked, Sender::Client, flags);
        }
        untracked
    }

    /// The end of a connection counts for a tracked one with the port that the proxy sees, as after the rules were missing while
    /// conntrack assigned it another port.
    fn end_of_another(&mut self, at: usize, seen: usize) {
        for (other, one) in self.connections.iter_mut().enumerate() {
            one.is_marked &= other == at || one.seen != seen;
        }
    }

    fn reply(&mut self, at: usize, flags: u8) {
        self.forget(at);
        let before = self.known();
        self.kernel.lacked_room = false;
        let client = (self.client(), PORTS[self.connections[at].seen]);
        let mut packet = self.header((self.vip(), PORT), client, flags);
        self.kernel.hook(Hook::Output, &mut packet);
        self.connections[at].last[1] = self.now;
        self.assert_nothing_new(before);
        self.verify(at, packet.untracked, Sender::Proxy, flags);
    }

    fn verify(&mut self, at: usize, untracked: bool, from: Sender, flags: u8) {
        let connection = &mut self.connections[at];
        connection.lacked_room |= self.kernel.lacked_room;
        let is_kept = match connection.promise {
            _ if connection.is_abandoned => true,
            Promise::Untracked => untracked,
            Promise::Tracked => !untracked,
            Promise::None => true,
        };
        assert!(
            is_kept,
            "a packet with flags {flags:#x} from the {from:?}: {connection:?}"
        );
    }

    /// What expires for an idle connection: its decision, unless it is open and in its set; and the claim on its port.
    fn forget(&mut self, at: usize) {
        let connection = &mut self.connections[at];
        let [client, proxy] = connection.last;
        connection.is_marked &= self.now < proxy + TRACKED;
        let quiet_since = if connection.closed == [false; 2] {
            client
        } else {
            client.max(proxy)
        };
        let passes = connection.stage < Stage::Established
            || connection.closed != [false; 2]
            || connection.lacked_room;
        if connection.promise == Promise::Untracked && passes && self.now >= quiet_since + PASSING {
            connection.promise = Promise::None;
        }
    }

    fn assert_nothing_new(&self, before: [bool; PORTS.len()]) {
        for (before, after) in before.into_iter().zip(self.known()) {
            assert!(before || !after, "only a SYN is decided");
        }
    }

    /// The ports with decisions.
    fn known(&self) -> [bool; PORTS.len()] {
        [0, 1, 2, 3].map(|port| {
            let key = self.key(port);
            let half = key.len() / 2;
            let from_proxy = [&key[half..], &key[..half]].concat();
            let sets = [
                OF_VIPS.opening,
                OF_VIPS.decided,
                OF_VIPS.closing,
                OF_VIPS.closed,
            ];
            sets.iter().any(|set| self.kernel.has(set, &key))
                || self.kernel.has("closing", &from_proxy)
        })
    }
}
