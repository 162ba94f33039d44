// SPDX-License-Identifier: Apache-2.0

//! What single rules of ours do, in which chain, and how that is written.
//!
//! Stateless rules untrack everything to and from the VIP. Learning rules keep two sets of clients
//! (`sets.rs`). *Decided* are those whose SYN was addressed to the VIP itself: they are untracked in
//! both directions. *Translated* are those that somebody's DNAT brought to the VIP: they stay
//! tracked, also if an earlier connection from the same client port was decided.

use std::borrow::Cow;
use std::net::IpAddr;

use ipnet::IpNet;

use super::super::sets::{self, Role};
use super::{Detail, Family, Guard, Table};
use crate::backend::tables;
use crate::instance::Instance;

/// The segment that opens a connection: SYN alone.
const OPENING: &str = " --tcp-flags FIN,SYN,RST,ACK SYN";
/// Every other segment.
const FOLLOWING: &str = " ! --tcp-flags FIN,SYN,RST,ACK SYN";
/// What conntrack was kept from.
const UNTRACKED: &str = " -m conntrack --ctstate UNTRACKED";
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
    /// From the VIP, from anywhere but this node
    Spoofed,
    /// To the VIP, by a guarded link
    Guarded,
    /// To the VIP, in the filter table
    FilterIncoming,
    /// From the VIP, in the filter table
    FilterReply,
    /// From an API server to the proxy, in the filter table
    FilterAnswer,
    /// From the proxy to an API server, in the filter table
    FilterOnward,
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
    /// Has the guard look at what came by a guarded link
    Guard,
    /// Drops what has the VIP as its source and did not come from this node
    DropSpoofed,
    /// Drops what comes from a loopback address and not from this node
    DropLocal,
    /// Lets a network pass the guard
    Allow,
    /// Drops what it does not let pass
    Drop,
    /// Accepts: untracked packets match no `ctstate ESTABLISHED` rule
    Accept,
    /// Accepts what is untracked, and nothing else
    AcceptUntracked,
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

/// Those of the guard. They stand in front of what decides.
const GUARDING: [Kind; 5] = [
    kind(Place::Spoofed, Act::DropSpoofed),
    kind(Place::Incoming, Act::DropLocal),
    kind(Place::Incoming, Act::Guard),
    kind(Place::Guarded, Act::Allow),
    kind(Place::Guarded, Act::Drop),
];

const ACCEPTING: [Kind; 2] = [
    kind(Place::FilterIncoming, Act::Accept),
    kind(Place::FilterReply, Act::Accept),
];

/// Those for the proxy's own connections: the address is the API server's.
const ACCEPTING_UPSTREAM: [Kind; 2] = [
    kind(Place::FilterAnswer, Act::AcceptUntracked),
    kind(Place::FilterOnward, Act::AcceptUntracked),
];

/// The loopback addresses of the family of an address.
fn loopback(of: IpAddr) -> IpNet {
    let text = match of {
        IpAddr::V4(_) => "127.0.0.0/8",
        IpAddr::V6(_) => "::1/128",
    };
    text.parse().expect("a network")
}

impl Kind {
    /// Every kind there is.
    pub fn all() -> impl Iterator<Item = Self> {
        let all = GUARDING.into_iter().chain(STATELESS).chain(LEARNING);
        all.chain(ACCEPTING).chain(ACCEPTING_UPSTREAM)
    }

    /// The kinds that let the proxy's own connections pass.
    pub fn of_upstream() -> [Self; 2] {
        ACCEPTING_UPSTREAM
    }

    /// The kinds that one way needs, in the order in which they stand in their chains.
    pub fn of(way: Way) -> impl Iterator<Item = Self> {
        let untracking: &[Self] = match way {
            Way::Stateless => &STATELESS,
            Way::Learning => &LEARNING,
        };
        untracking.iter().copied().chain(ACCEPTING)
    }

    /// The rules of the guard for a VIP and port, in the order in which they stand in their chains, each with
    /// what it depends on.
    pub fn guarding(guard: &Guard, vip: IpAddr) -> Vec<(Self, Detail)> {
        let [spoofed, local, entry, allow, refuse] = GUARDING;
        let mut rules = Vec::new();
        if !guard.inner {
            rules.push((spoofed, Detail::None));
        }
        rules.push((local, Detail::None));
        if guard.links.is_empty() {
            return rules;
        }
        rules.extend(guard.links.iter().map(|link| (entry, Detail::Link(*link))));
        let family = Family::of(vip);
        let networks = guard.allow_from.iter();
        let networks = networks.filter(|network| Family::of(network.addr()) == family);
        rules.extend(networks.map(|network| (allow, Detail::Network(*network))));
        rules.push((refuse, Detail::None));
        rules
    }

    /// Whether it depends on a detail of this kind.
    pub fn fits(self, detail: &Detail) -> bool {
        match self.act {
            Act::Guard => matches!(detail, Detail::Link(_)),
            Act::Allow => matches!(detail, Detail::Network(_)),
            _ => *detail == Detail::None,
        }
    }

    /// False if it is about all ports of a VIP.
    pub fn has_port(self) -> bool {
        self.place != Place::Spoofed
    }

    /// True if it stands in the chain of our own.
    pub fn is_in_own_chain(self) -> bool {
        self.place == Place::Guarded
    }

    /// Where it meets packets.
    pub fn place(self) -> Place {
        self.place
    }

    /// The table it belongs into.
    pub fn table(self) -> Table {
        match self.place {
            Place::Incoming | Place::Request | Place::Reply | Place::Spoofed | Place::Guarded => {
                Table::Raw
            }
            Place::Translated => Table::Mangle,
            Place::FilterIncoming
            | Place::FilterReply
            | Place::FilterAnswer
            | Place::FilterOnward => Table::Filter,
        }
    }

    /// The chain it belongs into; the guard's own has its owner's name.
    pub fn chain(self, owner: Instance) -> Cow<'static, str> {
        match self.place {
            Place::Incoming | Place::Spoofed => "PREROUTING".into(),
            Place::Translated | Place::FilterIncoming | Place::FilterAnswer => "INPUT".into(),
            Place::Request | Place::Reply | Place::FilterReply | Place::FilterOnward => {
                "OUTPUT".into()
            }
            Place::Guarded => tables::guard_name(owner).into(),
        }
    }

    /// True if it uses the sets.
    pub fn is_learning(self) -> bool {
        let is_stateless = matches!(self.act, Act::Untrack | Act::Accept | Act::AcceptUntracked);
        !is_stateless && !GUARDING.contains(&self)
    }

    /// True if the address in it is that end which sends.
    fn is_reply(self) -> bool {
        matches!(
            self.place,
            Place::Reply | Place::FilterReply | Place::FilterAnswer | Place::Spoofed
        )
    }

    fn purpose(self) -> &'static str {
        match (self.act, self.is_reply()) {
            (Act::Untrack | Act::UntrackOpening | Act::UntrackFollowing, false) => {
                "untrack client to VIP"
            }
            (Act::Guard | Act::DropSpoofed | Act::DropLocal | Act::Allow | Act::Drop, _) => {
                "guard the VIP"
            }
            (Act::Accept, false) => "accept client to VIP",
            (Act::Accept, true) => "accept VIP to client",
            (Act::AcceptUntracked, false) => "accept proxy to API server",
            (Act::AcceptUntracked, true) => "accept API server to proxy",
            (Act::Decide, _) => "decide at the SYN",
            (Act::Refresh, _) => "keep the decision",
            (Act::Note, _) => "remember what DNAT brought here",
            (Act::Verify | Act::Release | Act::ReleaseUnnoted, _) => {
                "take back what DNAT contradicts"
            }
            (Act::UntrackReply, _) | (_, true) => "untrack VIP to client",
        }
    }

    fn guarding_spec(self, owner: Instance, vip: IpAddr, port: u16, detail: &Detail) -> String {
        let bits = Family::of(vip).host_bits();
        let not_here = " ! -i lo".to_owned();
        let (source, link, target) = match (self.act, detail) {
            (Act::DropSpoofed, _) => (None, not_here, "DROP".to_owned()),
            (Act::DropLocal, _) => (Some(loopback(vip)), not_here, "DROP".to_owned()),
            (Act::Guard, Detail::Link(link)) => {
                let chain = tables::guard_name(owner);
                (None, format!(" -i {link}"), chain)
            }
            (Act::Allow, Detail::Network(network)) => {
                (Some(*network), String::new(), "RETURN".to_owned())
            }
            _ => (None, String::new(), "DROP".to_owned()),
        };
        let comment = format!(
            "-m comment --comment \"{}: {}\" -j {target}",
            owner.mark(),
            self.purpose()
        );
        if self.act == Act::DropSpoofed {
            return format!("-s {vip}/{bits}{link} {comment}");
        }
        let source = source
            .map(|source| format!("-s {source} "))
            .unwrap_or_default();
        format!("{source}-d {vip}/{bits}{link} -p tcp -m tcp --dport {port} {comment}")
    }

    /// Everything behind the chain, as `iptables-save` prints it.
    pub fn spec(self, owner: Instance, vip: IpAddr, port: u16, detail: &Detail) -> String {
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
            Act::AcceptUntracked => ("", UNTRACKED.to_owned(), "ACCEPT".to_owned()),
            Act::Guard | Act::DropSpoofed | Act::DropLocal | Act::Allow | Act::Drop => {
                return self.guarding_spec(owner, vip, port, detail);
            }
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
