// SPDX-License-Identifier: Apache-2.0

//! The chains and rules of nf_tables over netlink, including those of iptables-nft.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, ExpressionAttribute, Expressions, Hook, HookNumber,
    InetHookNumber, ListAttribute, NfTablesMessage, RuleAttribute, RuleMessage,
};
use proxy_netlink::netfilter::expression::End;
use proxy_netlink::netfilter::{Error, Family, Socket};

use super::Found;
use super::packet::{Direction, Known, Packet};
use super::walk::{self, Chains, Fate};
use crate::nla::{text, value};
use crate::{Marks, NFT_FAMILIES};
use sets::{Named, Sets, Wanted};

mod rule;
pub(super) mod sets;

/// The table of kube-proxy in nftables mode.
const KUBE_PROXY: &str = "kube-proxy";
/// `NF_DROP`, as a policy.
const DROP: u32 = 0;

/// A chain that a hook calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Base {
    table: String,
    pub(super) chain: String,
    direction: Direction,
    /// True if the chain is in the hook for packets that processes of the node send.
    is_output: bool,
    drops: bool,
}

impl Base {
    /// Returns true if a packet reaches the chain. For new connections of the node, only kube-proxy's chains are
    /// checked.
    fn meets(&self, packet: &Packet) -> bool {
        match packet.direction {
            Direction::Opening => self.is_output && self.table == KUBE_PROXY,
            direction => self.direction == direction,
        }
    }
}

/// Returns the chains that do not simply let the packets pass.
///
/// # Errors
///
/// Returns the kernel's error. A kernel without nf_tables has no chains, which is not an error.
pub fn find(packets: &[Packet], marks: Marks) -> Result<Vec<Found>, Error> {
    let mut found = Vec::new();
    for (family, title) in NFT_FAMILIES {
        match find_in(family, title, packets, marks) {
            Ok(more) => found.extend(more),
            // `nfnetlink_rcv_msg` of net/netfilter/nfnetlink.c.
            Err(error) if error.errno() == Some(libc::EINVAL) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn find_in(
    family: Family,
    title: &str,
    packets: &[Packet],
    marks: Marks,
) -> Result<Vec<Found>, Error> {
    let seen = |packet: &&Packet| match family {
        Family::IPv4 => packet.end.is_ipv4(),
        Family::IPv6 => packet.end.is_ipv6(),
        _ => true,
    };
    let packets: Vec<_> = packets.iter().filter(seen).copied().collect();
    if packets.is_empty() {
        return Ok(Vec::new());
    }
    let mut socket = Socket::open()?;
    let request = NfTablesMessage::GetChain(ChainMessage {
        attributes: Vec::new(),
    });
    let what = format!("list the chains of family {title}");
    let bases: Vec<Base> =
        socket.fold(&what, family, &request, |bases: &mut Vec<_>, message| {
            if let NfTablesMessage::NewChain(chain) = message {
                bases.extend(base(&chain));
            }
        })?;
    let tables: BTreeSet<_> = bases.iter().map(|base| base.table.as_str()).collect();
    let mut found = Vec::new();
    // kube-proxy only drops new tracked connections, and its table is the largest of the node.
    let is_of_interest = |table: &&str| {
        let is_filtered = |packet: &Packet| packet.known != Known::Upstream;
        !(marks.is_own_name)(table) && (*table != KUBE_PROXY || packets.iter().any(is_filtered))
    };
    for table in tables.into_iter().filter(is_of_interest) {
        let request = NfTablesMessage::GetRule(RuleMessage {
            attributes: vec![RuleAttribute::Table(table.to_owned())],
        });
        let what = format!("list the rules of table {title} {table}");
        let wanted = match table {
            KUBE_PROXY if packets.iter().any(Packet::is_tracked) => Some(Wanted::AllSets),
            KUBE_PROXY => None,
            _ => Some(Wanted::Anonymous),
        };
        let sets = if let Some(wanted) = wanted {
            let names = socket.fold(&what, family, &request, |names, message| {
                if let NfTablesMessage::NewRule(rule) = message {
                    let (of, _, expressions) = parts(&rule);
                    if of == table {
                        sets::named_in(&expressions, wanted, names);
                    }
                }
            })?;
            sets::read(family, table, names, &mut socket)?
        } else {
            Sets::new()
        };
        let read = |rules: &mut BTreeMap<usize, Chains>, message| {
            if let NfTablesMessage::NewRule(rule) = message {
                add(&rule, table, (&packets, &sets), marks, rules);
            }
        };
        let rules = socket.fold(&what, family, &request, read)?;
        let none = Chains::new();
        for base in bases.iter().filter(|base| base.table == table) {
            for (at, packet) in packets.iter().enumerate() {
                if !base.meets(packet) {
                    continue;
                }
                let chains = rules.get(&at).unwrap_or(&none);
                let (fate, chain) = walk::walk(chains, &base.chain, base.drops);
                if fate != Fate::Passes {
                    let names_chain = fate == Fate::MayDrop || packet.is_tracked();
                    let chain = chain.filter(|_| names_chain).unwrap_or(&base.chain);
                    found.push(Found {
                        place: format!("nf_tables table {title} {table}, chain {chain}"),
                        packet: *packet,
                        fate,
                        of_iptables: family != Family::Inet && table == "filter",
                        command: command(title, base, packet),
                    });
                }
            }
        }
    }
    Ok(found)
}

/// Returns the command that lets a packet pass at the start of a chain.
fn command(title: &str, base: &Base, packet: &Packet) -> String {
    let Base { table, chain, .. } = base;
    let (ip, port) = (packet.end.ip(), packet.end.port());
    let header = match ip {
        IpAddr::V4(_) => "ip",
        IpAddr::V6(_) => "ip6",
    };
    let (address, number) = match packet.place() {
        End::Destination => ("daddr", "dport"),
        End::Source => ("saddr", "sport"),
    };
    // From an API server, only the packets that this project's rules have untracked should pass.
    let state = match packet.known {
        Known::Vip | Known::Service => "",
        Known::Upstream => " ct state untracked",
    };
    format!(
        "nft insert rule {title} {table} {chain} {header} {address} {ip} tcp {number} {port}{state} accept"
    )
}

/// Returns the chain if it is one that filters packets on their way to or from the proxy.
pub(super) fn base(chain: &ChainMessage) -> Option<Base> {
    let (mut table, mut name, mut hook, mut policy, mut kind) = ("", "", None, None, "");
    for attribute in &chain.attributes {
        match attribute {
            ChainAttribute::Table(of) => table = of,
            ChainAttribute::Name(of) => name = of,
            ChainAttribute::Policy(of) => policy = Some(*of),
            ChainAttribute::Type(of) => kind = of,
            ChainAttribute::Hook(attributes) => {
                hook = attributes.iter().find_map(|attribute| match attribute {
                    Hook::Number(HookNumber::Inet(hook)) => Some(*hook),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let hook = hook?;
    let direction = match hook {
        InetHookNumber::PreRouting | InetHookNumber::LocalIn => Direction::Request,
        InetHookNumber::LocalOut | InetHookNumber::PostRouting => Direction::Reply,
        _ => return None,
    };
    (kind == "filter").then(|| Base {
        table: table.to_owned(),
        chain: name.to_owned(),
        direction,
        is_output: hook == InetHookNumber::LocalOut,
        drops: policy == Some(DROP),
    })
}

/// Adds a rule in the form in which each packet sees it. A dump of one table may contain rules of other tables (before
/// Linux 4.11).
pub(super) fn add(
    rule: &RuleMessage,
    table: &str,
    (packets, sets): (&[Packet], &Sets),
    marks: Marks,
    rules: &mut BTreeMap<usize, Chains>,
) {
    let (of, chain, expressions) = parts(rule);
    if of != table {
        return;
    }
    let is_own = comment(&expressions).is_some_and(|comment| (marks.is_own_comment)(&comment));
    for (at, packet) in packets.iter().enumerate() {
        let step = rule::step(&expressions, packet, sets);
        // Rules with which an agent accepts packets count; its rules that drop are not meant for these packets.
        if is_own && step.action != walk::Action::Accept {
            continue;
        }
        if step.matches != walk::Truth::No && step.action != walk::Action::Nothing {
            let chains = rules.entry(at).or_default();
            chains.entry(chain.to_owned()).or_default().push(step);
        }
    }
}

/// Returns the table, the chain and the expressions of a rule.
fn parts(rule: &RuleMessage) -> (&str, &str, Vec<Named<'_>>) {
    let (mut table, mut chain, mut expressions) = ("", "", &[][..]);
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::Table(name) => table = name,
            RuleAttribute::Chain(name) => chain = name,
            RuleAttribute::Expressions(list) => expressions = list,
            _ => {}
        }
    }
    (table, chain, expressions.iter().filter_map(named).collect())
}

/// Returns the comment of a rule of iptables-nft (`struct xt_comment_info` of `linux/netfilter/xt_comment.h`).
fn comment(expressions: &[Named<'_>]) -> Option<String> {
    const NAME: u16 = 1;
    const INFO: u16 = 3;
    expressions.iter().find_map(|expression| {
        let Some(Expressions::Other { attributes, .. }) = expression.data else {
            return None;
        };
        if expression.name != "match" || text(attributes, NAME) != b"comment" {
            return None;
        }
        value(attributes, INFO)?;
        Some(String::from_utf8_lossy(&text(attributes, INFO)).into_owned())
    })
}

/// Returns an expression with its name. Some expressions consist of the name only.
fn named(element: &ListAttribute<ExpressionAttribute>) -> Option<Named<'_>> {
    let ListAttribute::Element(attributes) = element else {
        return None;
    };
    let mut name = "";
    let mut data = None;
    for attribute in attributes {
        match attribute {
            ExpressionAttribute::Name(of) => name = of,
            ExpressionAttribute::Data(expression) => data = Some(expression),
            _ => {}
        }
    }
    Some(Named { name, data })
}
