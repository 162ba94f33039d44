// SPDX-License-Identifier: Apache-2.0

//! The nf_tables tables of this backend, as `nft list ruleset` shows them:
//!
//! ```text
//! table ip proxy-agent {
//!     chain prerouting {
//!         type filter hook prerouting priority raw; policy accept;
//!         ip daddr 10.96.0.2 tcp dport 443 iif != "lo" xt match bpf counter notrack comment "…"
//!     }
//!     chain output {
//!         type filter hook output priority raw; policy accept;
//!         ip daddr 10.96.0.2 tcp dport 443 xt match bpf counter notrack comment "…"
//!         ip saddr 10.96.0.2 tcp sport 443 xt match bpf counter notrack comment "…"
//!     }
//! }
//! ```

use std::net::IpAddr;
use std::os::fd::RawFd;

use netlink_packet_netfilter::nftables::Expressions;

use super::{Programs, Settings};
use crate::netfilter::expression::{self, End};
use crate::netfilter::{Chain, Family, Hook, Rule, Table};

/// The name of our tables.
pub const TABLE: &str = "proxy-agent";
/// `NF_IP_PRI_RAW`: before conntrack, which has -200.
const PRIORITY_RAW: i32 = -300;

/// One verdict: what a comment says of it, and the loaded program.
#[derive(Debug, Clone, Copy)]
pub struct Verdict {
    /// The id the kernel gave the program.
    pub id: u32,
    /// The descriptor that a rule is made with.
    pub fd: RawFd,
}

/// The three verdicts.
#[derive(Debug, Clone, Copy)]
pub struct Verdicts {
    /// PREROUTING, to the VIP.
    pub prerouting: Verdict,
    /// OUTPUT, to the VIP.
    pub request: Verdict,
    /// OUTPUT, from the VIP.
    pub reply: Verdict,
}

/// The tables that should be there, or should not: those without a chain.
///
/// Without programs, in a dry run, the rules name no program, so that they differ from any that
/// are installed.
pub fn tables(settings: &Settings, programs: Option<&Programs>) -> Vec<Table> {
    let verdicts = programs.map(Programs::verdicts);
    [Family::IPv4, Family::IPv6]
        .into_iter()
        .map(|family| {
            let vips: Vec<_> = settings
                .vips
                .iter()
                .copied()
                .filter(|vip| family_of(*vip) == family)
                .collect();
            table(family, &vips, &settings.ports, verdicts)
        })
        .collect()
}

/// Both tables without anything in them, for teardown.
pub fn empty_tables() -> [Table; 2] {
    [Family::IPv4, Family::IPv6].map(|family| table(family, &[], &[], None))
}

/// The family of tables that sees packets of an address.
fn family_of(ip: IpAddr) -> Family {
    match ip {
        IpAddr::V4(_) => Family::IPv4,
        IpAddr::V6(_) => Family::IPv6,
    }
}

fn table(family: Family, vips: &[IpAddr], ports: &[u16], verdicts: Option<Verdicts>) -> Table {
    let mut chains = Vec::new();
    if !vips.is_empty() {
        let nothing = Verdict { id: 0, fd: -1 };
        let verdicts = verdicts.unwrap_or(Verdicts {
            prerouting: nothing,
            request: nothing,
            reply: nothing,
        });
        let mut prerouting = Vec::new();
        let mut output = Vec::new();
        for (vip, port) in endpoints(vips, ports) {
            // Packets on `lo` were decided at output and come by here with their decision.
            let mut matches = expression::endpoint(End::Destination, vip, port);
            matches.extend(expression::not_from_loopback());
            prerouting.push(rule(
                &format!("to {vip} port {port}: untrack if decided"),
                matches,
                verdicts.prerouting,
            ));
            output.push(rule(
                &format!("to {vip} port {port}: decide at the SYN, untrack if decided"),
                expression::endpoint(End::Destination, vip, port),
                verdicts.request,
            ));
            output.push(rule(
                &format!("from {vip} port {port}: verify at the SYN-ACK, untrack if decided"),
                expression::endpoint(End::Source, vip, port),
                verdicts.reply,
            ));
        }
        chains.push(chain("prerouting", Hook::Prerouting, prerouting));
        chains.push(chain("output", Hook::Output, output));
    }
    Table {
        family,
        name: TABLE,
        chains,
    }
}

fn endpoints<'a>(vips: &'a [IpAddr], ports: &'a [u16]) -> impl Iterator<Item = (IpAddr, u16)> + 'a {
    vips.iter()
        .flat_map(|vip| ports.iter().map(|port| (*vip, *port)))
}

fn chain(name: &'static str, hook: Hook, rules: Vec<Rule>) -> Chain {
    Chain {
        name,
        hook,
        priority: PRIORITY_RAW,
        rules,
    }
}

fn rule(purpose: &str, mut expressions: Vec<Expressions>, verdict: Verdict) -> Rule {
    expressions.push(expression::bpf(verdict.fd));
    expressions.push(expression::counter());
    expressions.push(expression::notrack());
    Rule {
        purpose: purpose.to_owned(),
        program: verdict.id,
        expressions,
    }
}
