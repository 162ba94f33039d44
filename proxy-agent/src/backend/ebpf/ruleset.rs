// SPDX-License-Identifier: Apache-2.0

//! The nf_tables tables of this backend, as `nft list ruleset` shows them (a service is
//! translated here; counters and comments left out):
//!
//! ```text
//! table ip proxy-agent {
//!     chain prerouting {
//!         type filter hook prerouting priority raw; policy accept;
//!         ip daddr 10.96.0.2 tcp dport 443 iif != "lo" xt match bpf notrack
//!         ip daddr 10.96.0.1 tcp dport 443 iif != "lo" xt match bpf
//!             ip daddr set 10.96.0.2 tcp dport set 443 notrack
//!     }
//!     chain output {
//!         type filter hook output priority raw; policy accept;
//!         ip daddr 10.96.0.2 tcp dport 443 xt match bpf notrack
//!         ip saddr 10.96.0.2 tcp sport 443 xt match bpf
//!             ip saddr set 10.96.0.1 tcp sport set 443 notrack
//!         ip saddr 10.96.0.2 tcp sport 443 xt match bpf notrack
//!     }
//! }
//! ```

use std::net::SocketAddr;
use std::os::fd::RawFd;

use netlink_packet_netfilter::nftables::Expressions;

use super::Settings;
use super::load::{self, Ids, Translation, Verdicts};
use crate::backend::tables;
use crate::config::Service;
use crate::netfilter::expression::{self, End};
use crate::netfilter::{Base, Chain, Family, Hook, Rule, Table};

/// What stands for a program that is not loaded: a rule that runs it differs from any that is
/// installed.
const NO_PROGRAM: Verdict = Verdict { id: 0, fd: -1 };

/// One verdict: what a comment says of it, and the loaded program.
#[derive(Debug, Clone, Copy)]
pub struct Verdict {
    /// The id the kernel gave the program.
    pub id: u32,
    /// The descriptor that a rule is made with.
    pub fd: RawFd,
}

/// The verdicts as they are known by the ids of their programs, to compare tables and not to install
/// any. A program whose id is not known differs from any that is installed.
pub fn known(ids: &Ids) -> Verdicts {
    let verdict = |program| Verdict {
        id: ids.get(program).copied().unwrap_or(NO_PROGRAM.id),
        fd: NO_PROGRAM.fd,
    };
    Verdicts {
        prerouting: verdict(load::PREROUTING),
        request: verdict(load::REQUEST),
        reply: verdict(load::REPLY),
        translation: Some(Translation {
            service: verdict(load::SERVICE),
            reply: verdict(load::TRANSLATED_REPLY),
        }),
    }
}

/// The tables that should be there, or should not: those without a chain.
pub fn tables(settings: &Settings, verdicts: &Verdicts) -> Vec<Table> {
    [Family::IPv4, Family::IPv6]
        .into_iter()
        .map(|family| {
            let vips: Vec<_> = settings
                .endpoints()
                .filter(|vip| tables::family_of(vip.ip()) == family)
                .collect();
            table(settings, family, &vips, verdicts)
        })
        .collect()
}

fn table(settings: &Settings, family: Family, vips: &[SocketAddr], verdicts: &Verdicts) -> Table {
    let Settings {
        instance, services, ..
    } = settings;
    let mut prerouting = Vec::new();
    let mut output = Vec::new();
    for vip in vips {
        let service = services.iter().find(|service| service.vip == *vip);
        let translated = service.zip(verdicts.translation);
        prerouting.push(to_vip(*vip, verdicts.prerouting));
        if let Some((service, programs)) = translated {
            prerouting.push(to_service(service, programs.service));
        }
        output.push(request(*vip, verdicts.request));
        // Before the other rule for replies: what it has translated is no longer from the VIP.
        if let Some((service, programs)) = translated {
            output.push(translated_reply(service, programs.reply));
        }
        output.push(reply(*vip, verdicts.reply));
    }
    let chains = if vips.is_empty() {
        Vec::new()
    } else {
        vec![
            chain("prerouting", Hook::Prerouting, prerouting),
            chain("output", Hook::Output, output),
        ]
    };
    Table {
        family,
        name: tables::name(*instance),
        sets: Vec::new(),
        chains,
    }
}

fn chain(name: &'static str, hook: Hook, rules: Vec<Rule>) -> Chain {
    Chain {
        name,
        base: Some(Base {
            hook,
            priority: tables::PRIORITY_RAW,
        }),
        rules,
    }
}

/// Packets on `lo` were decided at output and come by prerouting with their decision.
fn from_elsewhere(to: SocketAddr) -> Vec<Expressions> {
    let mut matches = expression::endpoint(End::Destination, to.ip(), to.port());
    matches.extend(expression::not_from_loopback());
    matches
}

fn to_vip(vip: SocketAddr, verdict: Verdict) -> Rule {
    let purpose = format!("to {vip}: untrack if decided");
    rule(purpose, from_elsewhere(vip), verdict, Vec::new())
}

fn to_service(service: &Service, verdict: Verdict) -> Rule {
    let Service { cluster_ip, vip } = service;
    let change = expression::set_endpoint(End::Destination, vip.ip(), vip.port());
    let purpose = format!("to {cluster_ip}: translate if decided");
    rule(purpose, from_elsewhere(*cluster_ip), verdict, change)
}

fn request(vip: SocketAddr, verdict: Verdict) -> Rule {
    let matches = expression::endpoint(End::Destination, vip.ip(), vip.port());
    let purpose = format!("to {vip}: decide at the SYN, untrack if decided");
    rule(purpose, matches, verdict, Vec::new())
}

fn translated_reply(service: &Service, verdict: Verdict) -> Rule {
    let Service { cluster_ip, vip } = service;
    let matches = expression::endpoint(End::Source, vip.ip(), vip.port());
    let change = expression::set_endpoint(End::Source, cluster_ip.ip(), cluster_ip.port());
    let purpose = format!("from {vip}: verify at the SYN-ACK, translate if decided");
    rule(purpose, matches, verdict, change)
}

fn reply(vip: SocketAddr, verdict: Verdict) -> Rule {
    let matches = expression::endpoint(End::Source, vip.ip(), vip.port());
    let purpose = format!("from {vip}: verify at the SYN-ACK, untrack if decided");
    rule(purpose, matches, verdict, Vec::new())
}

/// What the native expressions match, the verdict, what is changed, and `notrack`.
fn rule(
    purpose: String,
    matches: Vec<Expressions>,
    verdict: Verdict,
    change: Vec<Expressions>,
) -> Rule {
    let mut expressions = matches;
    expressions.push(expression::bpf(verdict.fd));
    expressions.push(expression::counter());
    expressions.extend(change);
    expressions.push(expression::notrack());
    Rule {
        purpose,
        program: Some(verdict.id),
        expressions,
    }
}
