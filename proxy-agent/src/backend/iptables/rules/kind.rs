// SPDX-License-Identifier: Apache-2.0

//! What single rules of ours do, in which chain, and how that is written.
//!
//! Stateless rules untrack everything to and from the VIP. Learning rules keep two sets of clients
//! (`sets.rs`). *Decided* are those whose SYN was addressed to the VIP itself: they are untracked in
//! both directions. *Translated* are those that somebody's DNAT brought to the VIP: they stay
//! tracked, also if an earlier connection from the same client port was decided.

use std::net::IpAddr;

use super::super::sets::{self, Role};
use super::{Family, Table};
use crate::instance::Instance;

/// The segment that opens a connection: SYN alone.
const OPENING: &str = " --tcp-flags FIN,SYN,RST,ACK SYN";
/// Every other segment.
const FOLLOWING: &str = " ! --tcp-flags FIN,SYN,RST,ACK SYN";
/// What answers a SYN: SYN-ACK, or the RST of a closed port.
const ANSWER: &str = " ! --tcp-flags SYN,RST NONE";

/// How it is told what is untracked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By address and port alone
    Stateless,
    /// Each connection by itself, remembered in sets
    Learning,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    place: Place,
    act: Act,
}

/// Where packets are met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// From pods and the wire to the VIP, before conntrack
    Incoming,
    /// From processes on the node to the VIP, before conntrack
    Request,
    /// From the VIP, before conntrack
    Reply,
    /// To the VIP, behind conntrack and DNAT, before the proxy
    Translated,
    /// To the VIP, in the filter table
    FilterIncoming,
    /// From the VIP, in the filter table
    FilterReply,
}

/// What is done, in the order in which the rules stand in their chain: a connection is decided
/// before it is asked whether it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Act {
    /// Untracks everything
    Untrack,
    /// Decides a connection at its SYN
    Decide,
    /// Keeps the decision from expiring
    Refresh,
    /// Untracks the SYN of a decided connection. Not if the client is known as translated too: this
    /// SYN was not decided then, the decision is left from an earlier connection
    UntrackOpening,
    /// Untracks what follows in a decided connection
    UntrackFollowing,
    /// Takes an old decision back when the answer to a translated SYN leaves
    Verify,
    /// Untracks what is answered in a decided connection
    UntrackReply,
    /// Remembers a connection that DNAT has brought here
    Note,
    /// Takes the decision back for one that has already been answered through conntrack
    Release,
    /// Takes the decision back for one that could not be remembered, because the set is full
    ReleaseUnnoted,
    /// Accepts: untracked packets match no `ctstate ESTABLISHED` rule
    Accept,
}

const fn kind(place: Place, act: Act) -> Kind {
    Kind { place, act }
}

const STATELESS: [Kind; 3] = [
    kind(Place::Incoming, Act::Untrack),
    kind(Place::Request, Act::Untrack),
    kind(Place::Reply, Act::Untrack),
];

const LEARNING: [Kind; 13] = [
    kind(Place::Incoming, Act::Decide),
    kind(Place::Incoming, Act::Refresh),
    kind(Place::Incoming, Act::UntrackOpening),
    kind(Place::Incoming, Act::UntrackFollowing),
    kind(Place::Request, Act::Decide),
    kind(Place::Request, Act::Refresh),
    kind(Place::Request, Act::UntrackOpening),
    kind(Place::Request, Act::UntrackFollowing),
    kind(Place::Reply, Act::Verify),
    kind(Place::Reply, Act::UntrackReply),
    kind(Place::Translated, Act::Note),
    kind(Place::Translated, Act::Release),
    kind(Place::Translated, Act::ReleaseUnnoted),
];

const ACCEPTING: [Kind; 2] = [
    kind(Place::FilterIncoming, Act::Accept),
    kind(Place::FilterReply, Act::Accept),
];

impl Kind {
    /// Every kind there is.
    pub fn all() -> impl Iterator<Item = Self> {
        STATELESS.into_iter().chain(LEARNING).chain(ACCEPTING)
    }

    /// The kinds that one way needs, in the order in which they stand in their chains.
    pub fn of(way: Way) -> impl Iterator<Item = Self> {
        let untracking: &[Self] = match way {
            Way::Stateless => &STATELESS,
            Way::Learning => &LEARNING,
        };
        untracking.iter().copied().chain(ACCEPTING)
    }

    /// Where it meets packets.
    pub fn place(self) -> Place {
        self.place
    }

    /// The table it belongs into.
    pub fn table(self) -> Table {
        match self.place {
            Place::Incoming | Place::Request | Place::Reply => Table::Raw,
            Place::Translated => Table::Mangle,
            Place::FilterIncoming | Place::FilterReply => Table::Filter,
        }
    }

    /// The chain it belongs into.
    pub fn chain(self) -> &'static str {
        match self.place {
            Place::Incoming => "PREROUTING",
            Place::Translated | Place::FilterIncoming => "INPUT",
            Place::Request | Place::Reply | Place::FilterReply => "OUTPUT",
        }
    }

    /// True if it uses the sets.
    pub fn is_learning(self) -> bool {
        !matches!(self.act, Act::Untrack | Act::Accept)
    }

    fn is_reply(self) -> bool {
        matches!(self.place, Place::Reply | Place::FilterReply)
    }

    fn purpose(self) -> &'static str {
        match (self.act, self.is_reply()) {
            (Act::Untrack | Act::UntrackOpening | Act::UntrackFollowing, false) => {
                "untrack client to VIP"
            }
            (Act::Accept, false) => "accept client to VIP",
            (Act::Accept, true) => "accept VIP to client",
            (Act::Decide, _) => "decide at the SYN",
            (Act::Refresh, _) => "keep the decision",
            (Act::Note, _) => "remember what DNAT brought here",
            (Act::Verify | Act::Release | Act::ReleaseUnnoted, _) => {
                "take back what DNAT contradicts"
            }
            (Act::UntrackReply, _) | (_, true) => "untrack VIP to client",
        }
    }

    /// Everything behind the chain, as `iptables-save` prints it.
    pub fn spec(self, owner: Instance, vip: IpAddr, port: u16) -> String {
        let (address, port_option, client) = if self.is_reply() {
            ("-s", "--sport", "dst,dst,src")
        } else {
            ("-d", "--dport", "src,src,dst")
        };
        let family = Family::of(vip);
        let set = |role| format!("{} {client}", sets::name(owner, role, family, port));
        let (decided, translated) = (set(Role::Decided), set(Role::Translated));
        let known = format!(" -m set --match-set {decided}");
        let unknown = format!(" -m set ! --match-set {translated}");
        let dnat = " -m conntrack --ctstate DNAT";
        let add = format!("SET --add-set {decided} --exist");
        let delete = format!("SET --del-set {decided}");
        let (segments, conditions, target) = match self.act {
            Act::Untrack => ("", String::new(), "NOTRACK".to_owned()),
            Act::Accept => ("", String::new(), "ACCEPT".to_owned()),
            Act::Decide => (OPENING, unknown, add),
            Act::Refresh => (FOLLOWING, known, add),
            Act::UntrackOpening => (OPENING, known + &unknown, "NOTRACK".to_owned()),
            Act::UntrackFollowing => (FOLLOWING, known, "NOTRACK".to_owned()),
            Act::Verify => (ANSWER, format!(" -m set --match-set {translated}"), delete),
            Act::UntrackReply => ("", known, "NOTRACK".to_owned()),
            Act::Note => {
                let add = format!("SET --add-set {translated} --exist");
                ("", dnat.to_owned(), add)
            }
            Act::Release => ("", format!("{dnat} --ctstatus SEEN_REPLY{known}"), delete),
            Act::ReleaseUnnoted => ("", format!("{dnat}{unknown}"), delete),
        };
        // On `lo` packets arrive after DNAT: nothing can be decided there.
        let link = if self.place == Place::Incoming && self.is_learning() {
            " ! -i lo"
        } else {
            ""
        };
        format!(
            "{address} {vip}/{bits}{link} -p tcp -m tcp {port_option} {port}{segments} -m comment \
             --comment \"{mark}: {purpose}\"{conditions} -j {target}",
            bits = family.host_bits(),
            mark = owner.mark(),
            purpose = self.purpose(),
        )
    }
}
