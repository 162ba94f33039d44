// SPDX-License-Identifier: Apache-2.0

//! Kinds of rules: what they do, in which chain, and how they are written.
//!
//! Stateless rules untrack everything to and from the VIP. Learning rules use two sets of clients (`sets.rs`). *Decided* clients
//! addressed their SYN to the VIP itself; they are untracked in both directions. *Translated* clients were DNATed to the VIP; they
//! stay tracked, even if an earlier connection from the same client port was decided.

use std::borrow::Cow;
use std::net::IpAddr;

use ipnet::IpNet;

use super::super::sets::{self, Role};
use super::{Detail, Family, Guard, Table};
use crate::backend::tables;
use crate::instance::Instance;

/// A segment that opens a connection: SYN alone.
const OPENING: &str = " --tcp-flags FIN,SYN,RST,ACK SYN";
/// Any other segment.
const FOLLOWING: &str = " ! --tcp-flags FIN,SYN,RST,ACK SYN";
/// Untracked packets.
const UNTRACKED: &str = " -m conntrack --ctstate UNTRACKED";
/// The answer to a SYN: SYN-ACK, or the RST of a closed port.
const ANSWER: &str = " ! --tcp-flags SYN,RST NONE";

/// How rules select what is untracked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleSet {
    /// By address and port only
    Stateless,
    /// By connection, with decisions stored in sets
    Learning,
}

/// A kind of rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    place: Place,
    act: Act,
}

/// Where packets match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// From pods and other nodes to the VIP, before conntrack
    Incoming,
    /// From processes on the node to the VIP, before conntrack
    Request,
    /// From the VIP, before conntrack
    Reply,
    /// To the VIP, after conntrack and DNAT, before the proxy
    Translated,
    /// From the VIP, but not from this node
    Spoofed,
    /// To the VIP, on a guarded link
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

/// The action, in the order of the rules in their chain: a connection is decided before its packets are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Act {
    /// Untracks everything
    Untrack,
    /// Decides a connection at its SYN
    Decide,
    /// Restarts the timeout of the decision
    Refresh,
    /// Untracks the SYN of a decided connection. Not if the client is in the set of translated ones: then this SYN was not decided,
    /// and the decision is that of an earlier connection
    UntrackOpening,
    /// Untracks later segments of a decided connection
    UntrackFollowing,
    /// Deletes an old decision when the answer to a translated SYN is sent
    Verify,
    /// Untracks replies of a decided connection
    UntrackReply,
    /// Adds a client that was DNATed to the VIP
    Note,
    /// Deletes the decision for a translated connection that conntrack has seen answered
    Release,
    /// Deletes the decision for a translated connection whose client could not be added because the set is full
    ReleaseUnnoted,
    /// Sends packets on a guarded link to the guard's chain
    Guard,
    /// Drops packets with the VIP as source that do not come from this node
    DropSpoofed,
    /// Drops packets with a loopback source address that do not come from this node
    DropLocal,
    /// Lets packets from an allowed network pass
    Allow,
    /// Drops other packets
    Drop,
    /// Accepts: untracked packets match no `ctstate ESTABLISHED` rule
    Accept,
    /// Accepts untracked packets only
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

/// The rules of the guard, which are before those that decide.
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

/// The rules for the proxy's own connections, with the API server's address.
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
    /// All kinds.
    pub fn all() -> impl Iterator<Item = Self> {
        let all = GUARDING.into_iter().chain(STATELESS).chain(LEARNING);
        all.chain(ACCEPTING).chain(ACCEPTING_UPSTREAM)
    }

    /// The kinds that accept packets of the proxy's own connections.
    pub fn of_upstream() -> [Self; 2] {
        ACCEPTING_UPSTREAM
    }

    /// The kinds for one way of selection, in the order of their chains.
    pub fn of(rule_set: RuleSet) -> impl Iterator<Item = Self> {
        let untracking: &[Self] = match rule_set {
            RuleSet::Stateless => &STATELESS,
            RuleSet::Learning => &LEARNING,
        };
        untracking.iter().copied().chain(ACCEPTING)
    }

    /// The kinds of the guard's rules for a VIP and port, in the order of their chains, with their parameters.
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

    /// Whether it takes a parameter of this kind.
    pub fn fits(self, detail: &Detail) -> bool {
        match self.act {
            Act::Guard => matches!(detail, Detail::Link(_)),
            Act::Allow => matches!(detail, Detail::Network(_)),
            _ => *detail == Detail::None,
        }
    }

    /// False if it applies to all ports of a VIP.
    pub fn has_port(self) -> bool {
        self.place != Place::Spoofed
    }

    /// True if it is in the agent's own chain.
    pub fn is_in_own_chain(self) -> bool {
        self.place == Place::Guarded
    }

    /// Where packets match.
    pub fn place(self) -> Place {
        self.place
    }

    /// Its table.
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

    /// Its chain; the guard's own has its owner's name.
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

    /// True if it uses sets.
    pub fn is_learning(self) -> bool {
        let is_stateless = matches!(self.act, Act::Untrack | Act::Accept | Act::AcceptUntracked);
        !is_stateless && !GUARDING.contains(&self)
    }

    /// True if the address in it is that of the sender.
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

    /// The rule after the chain's name, as `iptables-save` prints it.
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
        // On `lo` packets arrive after DNAT, too late for decisions.
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
