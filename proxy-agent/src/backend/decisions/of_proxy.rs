// SPDX-License-Identifier: Apache-2.0

//! The place of the proxy's own connections in the tables: sets and chains, so that each packet meets one base chain of
//! the agent per hook. `backend::upstream` documents and writes the rules in these chains.

use std::net::SocketAddr;
use std::time::Duration;

use proxy_kernel::cgroup::Cgroup;
use proxy_netlink::netfilter::set::{Field, Set};
use proxy_netlink::netfilter::{Chain, Family, Hook, Table};

use super::packets::{base, chain, entry};
use super::{CLOSED, CONNECTION, FOR_GOOD, PASSING, Sets};
use crate::backend::tables;
use crate::config::{Config, ProxyUpstream};

/// The sets of decided connections.
pub const SETS: Sets = Sets {
    opening: "proxy_opening",
    decided: "proxy_decided",
    closing: "proxy_closing",
    closed: "proxy_closed",
};
/// The set of decided connections in the separate tables of version 0.2.0.
pub const SEPARATE: &str = "decided";
/// The set of connections whose SYN was repeated, once or more.
pub const LEFT: &str = "proxy_left";
/// The set of endpoints that have answered since the last repeated SYN.
pub const ANSWERED: &str = "proxy_answered";
/// The set of endpoints with repeated SYNs.
pub const REPEATED: &str = "proxy_repeated";
/// The set of the proxy's new connections to unknown endpoints.
pub const SEEN: &str = "proxy_seen";

/// The chain of sent packets.
pub const OUTPUT: &str = "proxy_output";
/// The chain of received packets.
pub const PREROUTING: &str = "proxy_prerouting";
/// The chain of packets to an endpoint.
pub const SENT: &str = "proxy_sent";
/// The chain of SYNs to an endpoint.
pub const OPEN: &str = "proxy_open";
/// The chain of packets from an endpoint.
pub const RECEIVED: &str = "proxy_received";
/// The chain of SYNs to others.
pub const OTHER: &str = "proxy_other";

/// How long an endpoint is left to conntrack after a repeated SYN.
const LEFT_FOR: Duration = Duration::from_mins(10);
/// How long an answer counts.
const ANSWER_COUNTS: Duration = Duration::from_hours(1);
/// How long a connection to an unknown endpoint is remembered: the agent checks them about once a second.
const SEEN_FOR: Duration = Duration::from_mins(1);
/// Capacity of the sets of endpoints, and of those connections.
const FEW: u32 = 1024;
const ENDPOINT: &[Field] = &[Field::Address, Field::Port];

/// What is known about the proxy's own connections when tables are installed.
#[derive(Debug, Default)]
pub struct Known {
    /// Tables with the rules in their chains.
    pub rules: Vec<Table>,
    /// The proxy's cgroups.
    pub cgroups: Vec<Cgroup>,
    /// The endpoints of the rules.
    pub endpoints: Vec<SocketAddr>,
}

/// The families with rules for the proxy's own connections, with these settings.
pub fn families(config: &Config) -> Vec<Family> {
    let is_wanted = |family: &Family| match &config.proxy_upstream {
        ProxyUpstream::Auto => !tables::of_family(*family, config.endpoints()).is_empty(),
        ProxyUpstream::Off => false,
        ProxyUpstream::Named(endpoints) => endpoints
            .iter()
            .map(SocketAddr::ip)
            .any(|ip| tables::family_of(ip) == *family),
    };
    [Family::IPv4, Family::IPv6]
        .into_iter()
        .filter(is_wanted)
        .collect()
}

/// The settings without rules for the proxy's own connections, to try the tables of the VIPs alone.
pub fn without(config: &Config) -> Config {
    Config {
        proxy_upstream: ProxyUpstream::Off,
        ..config.clone()
    }
}

/// The sets, without members.
pub fn sets(size: u32) -> Vec<Set> {
    let set = |name, (key, size), timeout, comment| Set {
        name,
        key,
        timeout,
        size,
        comment,
        members: Vec::new(),
    };
    let connections = (CONNECTION, size);
    let endpoints = (ENDPOINT, FEW);
    vec![
        set(
            SETS.decided,
            connections,
            FOR_GOOD,
            "untracked connections: proxy, API server",
        ),
        set(
            SETS.opening,
            connections,
            PASSING,
            "untracked connections that are not answered yet",
        ),
        set(
            SETS.closing,
            connections,
            PASSING,
            "untracked connections that one end has closed: which end, the other",
        ),
        set(
            SETS.closed,
            connections,
            CLOSED,
            "untracked connections that are over, for what is still on the way",
        ),
        set(
            LEFT,
            connections,
            PASSING,
            "connections whose SYN was repeated: tracked",
        ),
        set(
            ANSWERED,
            endpoints,
            ANSWER_COUNTS,
            "endpoints that answer untracked SYNs",
        ),
        set(
            REPEATED,
            endpoints,
            LEFT_FOR,
            "endpoints that did not answer until a SYN was repeated: tracked",
        ),
        set(
            SEEN,
            (CONNECTION, FEW),
            SEEN_FOR,
            "tracked connections of the proxy: proxy, server",
        ),
    ]
}

/// Adds the chains to those for the VIPs. Base chains go to them with packets that are not of a VIP.
pub fn add_to(chains: &mut Vec<Chain>) {
    for (base_name, hook, target) in [
        ("prerouting", Hook::Prerouting, PREROUTING),
        ("output", Hook::Output, OUTPUT),
    ] {
        let others = entry("of no VIP".to_owned(), Vec::new(), target);
        if let Some(chain) = chains.iter_mut().find(|chain| chain.name == base_name) {
            chain.rules.push(others);
        } else {
            chains.push(base(base_name, hook, tables::PRIORITY_RAW, vec![others]));
        }
    }
    chains.extend(
        [OUTPUT, PREROUTING, SENT, OPEN, RECEIVED, OTHER].map(|name| Chain {
            is_filled_later: true,
            ..chain(name, Vec::new())
        }),
    );
}
