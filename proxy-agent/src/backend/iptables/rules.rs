// SPDX-License-Identifier: Apache-2.0

//! The rules that are ours: what they are, how they are written and how they are recognised.
//!
//! Ownership lives here and nowhere else: a rule is ours if its comment says so, whatever else it
//! looks like. Which rules are in the kernel is `observe.rs`'s business.

use std::fmt::{self, Display};
use std::net::IpAddr;

/// The comment of an owned rule is this word, or begins with it and a colon.
const OWNER: &str = "proxy-agent";

/// An address family, each with iptables programs of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4: iptables
    V4,
    /// IPv6: ip6tables
    V6,
}

/// A table we write to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Before conntrack: NOTRACK
    Raw,
    /// ACCEPT
    Filter,
}

/// What a rule does. The variants are in the order in which the rules are set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Untracks what comes from pods and the wire for the VIP
    UntrackIncoming,
    /// Untracks what host processes send to the VIP
    UntrackRequest,
    /// Untracks what the proxy answers
    UntrackReply,
    /// Accepts what comes for the VIP: untracked, it matches no `ctstate ESTABLISHED` rule
    AcceptIncoming,
    /// Accepts what the proxy answers
    AcceptReply,
}

/// One rule of ours. Two rules are the same whatever words their comments have behind the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// What it does.
    pub kind: Kind,
    /// The VIP it is for.
    pub vip: IpAddr,
    /// The proxy's port it is for.
    pub port: u16,
}

/// The rules for every VIP of `family` and every port that belong into `table`, in the order in
/// which they stand in their chains.
pub fn desired(table: Table, family: Family, vips: &[IpAddr], ports: &[u16]) -> Vec<Rule> {
    let mut rules = Vec::new();
    for &vip in vips.iter().filter(|vip| Family::of(**vip) == family) {
        for &port in ports {
            let of_table = Kind::ALL.iter().filter(|kind| kind.table() == table);
            rules.extend(of_table.map(|&kind| Rule { kind, vip, port }));
        }
    }
    rules
}

/// True if a rule with this comment is ours.
pub fn is_owned(comment: &str) -> bool {
    comment
        .strip_prefix(OWNER)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
}

/// False if a printed rule cannot be ours: a cheap look before [`is_owned`] is asked.
pub fn may_be_owned(spec: &str) -> bool {
    spec.contains(OWNER)
}

impl Family {
    /// Both families, in the order in which they are handled.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The name of its program, without flavour and function.
    pub fn program(self) -> &'static str {
        match self {
            Self::V4 => "iptables",
            Self::V6 => "ip6tables",
        }
    }

    fn host_bits(self) -> &'static str {
        match self {
            Self::V4 => "32",
            Self::V6 => "128",
        }
    }
}

impl Table {
    /// Both tables. Filter comes first: an untracked packet may already need its ACCEPT rule.
    pub const ALL: [Self; 2] = [Self::Filter, Self::Raw];

    /// Its name as iptables knows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Filter => "filter",
        }
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Kind {
    const ALL: [Self; 5] = [
        Self::UntrackIncoming,
        Self::UntrackRequest,
        Self::UntrackReply,
        Self::AcceptIncoming,
        Self::AcceptReply,
    ];

    /// The table it belongs into.
    pub fn table(self) -> Table {
        match self {
            Self::UntrackIncoming | Self::UntrackRequest | Self::UntrackReply => Table::Raw,
            Self::AcceptIncoming | Self::AcceptReply => Table::Filter,
        }
    }

    /// The chain it belongs into.
    pub fn chain(self) -> &'static str {
        match self {
            Self::UntrackIncoming => "PREROUTING",
            Self::AcceptIncoming => "INPUT",
            Self::UntrackRequest | Self::UntrackReply | Self::AcceptReply => "OUTPUT",
        }
    }

    fn is_reply(self) -> bool {
        matches!(self, Self::UntrackReply | Self::AcceptReply)
    }

    fn purpose(self) -> &'static str {
        match self {
            Self::UntrackIncoming | Self::UntrackRequest => "untrack client to VIP",
            Self::UntrackReply => "untrack VIP to client",
            Self::AcceptIncoming => "accept client to VIP",
            Self::AcceptReply => "accept VIP to client",
        }
    }

    fn target(self) -> &'static str {
        match self.table() {
            Table::Raw => "NOTRACK",
            Table::Filter => "ACCEPT",
        }
    }
}

impl Rule {
    /// Everything behind the chain, as `iptables-save` prints it.
    pub fn spec(&self) -> String {
        let (address, port) = if self.kind.is_reply() {
            ("-s", "--sport")
        } else {
            ("-d", "--dport")
        };
        format!(
            "{address} {}/{} -p tcp -m tcp {port} {} -m comment --comment \"{OWNER}: {}\" -j {}",
            self.vip,
            Family::of(self.vip).host_bits(),
            self.port,
            self.kind.purpose(),
            self.kind.target(),
        )
    }

    /// The rule of ours that a line of `iptables-save` stands for; none if it does anything that
    /// ours do not. The words are those behind the chain, unquoted. Ownership is not looked at.
    pub fn recognise(table: Table, chain: &str, words: &[String]) -> Option<Self> {
        let mut seen = Seen::default();
        let mut words = words.iter().map(String::as_str);
        while let Some(word) = words.next() {
            match word {
                "-s" => seen.source = Some(host_address(words.next()?)?),
                "-d" => seen.destination = Some(host_address(words.next()?)?),
                "--sport" => seen.source_port = Some(words.next()?.parse().ok()?),
                "--dport" => seen.destination_port = Some(words.next()?.parse().ok()?),
                "-p" => seen.tcp = matches!(words.next()?, "tcp" | "6"),
                "-m" => {
                    matches!(words.next()?, "tcp" | "comment").then_some(())?;
                }
                "--comment" => {
                    words.next()?;
                }
                "-j" => seen.target = Some(words.next()?),
                "--notrack" => seen.notrack = true,
                _ => return None,
            }
        }
        seen.rule(table, chain)
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "-A {} {}", self.kind.chain(), self.spec())
    }
}

/// What a printed rule was found to match and do.
#[derive(Default)]
struct Seen<'a> {
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    source_port: Option<u16>,
    destination_port: Option<u16>,
    tcp: bool,
    target: Option<&'a str>,
    notrack: bool,
}

impl Seen<'_> {
    fn rule(self, table: Table, chain: &str) -> Option<Rule> {
        let target = match (self.target?, self.notrack) {
            // The same target: which name is printed depends on flavour and version.
            ("CT", true) | ("NOTRACK", false) => "NOTRACK",
            ("ACCEPT", false) => "ACCEPT",
            _ => return None,
        };
        let (is_reply, vip, port) = match (
            self.source,
            self.source_port,
            self.destination,
            self.destination_port,
        ) {
            (Some(vip), Some(port), None, None) => (true, vip, port),
            (None, None, Some(vip), Some(port)) => (false, vip, port),
            _ => return None,
        };
        let kind = Kind::ALL.into_iter().find(|kind| {
            kind.table() == table
                && kind.chain() == chain
                && kind.is_reply() == is_reply
                && kind.target() == target
        })?;
        self.tcp.then_some(Rule { kind, vip, port })
    }
}

/// The address of a single host; none for a network.
fn host_address(text: &str) -> Option<IpAddr> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    bits.is_none_or(|bits| bits == Family::of(address).host_bits())
        .then_some(address)
}
