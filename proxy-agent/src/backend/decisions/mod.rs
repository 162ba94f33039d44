// SPDX-License-Identifier: Apache-2.0

//! Rules and sets of `nf_tables` that decide connections to the VIPs one by one, with native expressions only, so that `nft -f`
//! can restore what `nft list ruleset` prints. The backends `ebpf` and `nftables` share them. The table of one family, without
//! counters and comments; `client` stands for `ip saddr . tcp sport . ip daddr . tcp dport`, in `reply` with both ends swapped;
//! `plain` for `tcp flags ! fin,syn,rst`:
//!
//! ```text
//! table ip proxy-agent {
//!     set opening     { … flags dynamic,timeout; timeout 2m; }
//!     set decided     { … flags dynamic,timeout; timeout 365d; }
//!     set closing     { … flags dynamic,timeout; timeout 2m; }
//!     set closed      { … flags dynamic,timeout; timeout 5s; }
//!     set tracked     { … flags dynamic,timeout; timeout 1d; }
//!     set half_closed { … flags dynamic,timeout; timeout 10m; }
//!
//!     chain prerouting {
//!         type filter hook prerouting priority raw; policy accept;
//!         ip daddr 10.96.0.2 tcp dport 443 iif != "lo" goto request
//!         goto proxy_prerouting
//!     }
//!     chain input {
//!         type filter hook input priority 101; policy accept;
//!         ip daddr 10.96.0.2 tcp dport 443 tcp flags fin,syn,rst goto arrived
//!     }
//!     chain output {
//!         type filter hook output priority raw; policy accept;
//!         ip daddr 10.96.0.2 tcp dport 443 goto request
//!         ip saddr 10.96.0.2 tcp sport 443 goto reply
//!         goto proxy_output
//!     }
//!     chain request {
//!         plain client @decided notrack accept
//!         tcp flags syn / fin,syn,rst,ack goto open
//!         plain client @opening update @decided { client } delete @opening { client } notrack accept
//!         tcp flags fin client @opening update @closing { sender } delete @opening { client } notrack accept
//!         client @opening update @opening { client } notrack accept
//!         … as in reply from "tcp flags rst client @decided" on
//!     }
//!     chain open {
//!         delete @decided { client } delete @closing … delete @closed …
//!         ip daddr 10.96.0.2 tcp dport 443 client @tracked delete @opening { client } accept
//!         ip daddr 10.96.0.2 tcp dport 443 update @opening { client } meta priority set 7078:1 notrack accept
//!     }
//!     chain reply {
//!         plain client @decided notrack accept
//!         tcp flags syn client @tracked delete @opening … delete @decided … accept
//!         tcp flags rst client @tracked delete … delete @tracked { client } accept
//!         client @opening notrack accept
//!         tcp flags rst client @decided update @closed { client } delete @decided { client } notrack accept
//!         tcp flags fin client @decided update @closing { sender } delete @decided { client } notrack accept
//!         client @decided notrack accept
//!         tcp flags fin,rst other @closing update @closed { client } delete @closing { other } notrack accept
//!         tcp flags rst sender @closing update @closed { client } delete @closing { sender } notrack accept
//!         sender @closing update @closing { sender } notrack accept
//!         other @closing update @closing { other } notrack accept
//!         client @closed update @closed { client } notrack accept
//!         tcp flags fin client @tracked goto tracked_reply
//!         client @tracked update @tracked { client } accept
//!     }
//!     chain arrived {
//!         tcp flags syn / fin,syn,rst,ack meta priority 7078:1 accept
//!         tcp flags syn / fin,syn,rst,ack update @tracked { client } delete @half_closed … accept
//!         tcp flags syn / fin,syn,rst,ack delete @opening … delete @decided … accept
//!         client @tracked goto tracked
//!     }
//!     chain tracked {
//!         tcp flags rst delete @tracked { client } accept
//!         other @half_closed delete @tracked { client } accept
//!         update @half_closed { client } accept
//!     }
//!     chain tracked_reply {
//!         client @half_closed delete @tracked { client } accept
//!         update @tracked { client } update @half_closed { sender } accept
//!     }
//! }
//! ```
//!
//! A connection is decided at its SYN, before any NAT, and added to `opening`. The client's next packet moves it to `decided`,
//! where it stays until it ends, regardless of idle time and other traffic. The first FIN moves it to `closing`, the second one
//! or a RST to `closed`, which expires after seconds. A client that opens a connection again has given up the previous one: its
//! decisions are deleted.
//!
//! The sets and chains with the prefix `proxy_` are those for the proxy's own connections: `of_proxy`.
//!
//! A decided SYN carries a priority from the raw hook to the input hook. A SYN without it was DNATed or left undecided: until
//! both ends have closed that connection, no other one from the same client port is decided, and the proxy's answer to it deletes
//! older decisions. See `docs/packet-path.md`.

mod apply;
pub mod collect;
mod counted;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod of_proxy;
pub mod packets;
mod rules;
pub mod statistics;

use std::net::SocketAddr;
use std::time::Duration;

use proxy_netlink::netfilter::set::{Field, Set, Value};
use proxy_netlink::netfilter::{Family, Table};

pub use self::apply::{Error, apply, release, release_separate, release_those};
pub use self::counted::Counted;
use crate::backend::live::{Connection, Live};
use crate::backend::tables;
use crate::config::Config;

/// The names of the sets through which each decided connection passes.
#[derive(Debug, Clone, Copy)]
pub struct Sets {
    /// Connections that open.
    pub opening: &'static str,
    /// Open connections.
    pub decided: &'static str,
    /// Connections that one end has closed.
    pub closing: &'static str,
    /// Connections that both ends have closed.
    pub closed: &'static str,
}

/// The sets of connections to the VIPs.
const OF_VIPS: Sets = Sets {
    opening: "opening",
    decided: "decided",
    closing: "closing",
    closed: "closed",
};

/// Timeout of connections that open or close, without packets: longer than the kernel retransmits a SYN-ACK
/// (`net.ipv4.tcp_synack_retries`), and as long as conntrack waits after a FIN.
pub const PASSING: Duration = Duration::from_mins(2);
/// Timeout of connections that both ends have closed: time for retransmissions of the last FIN.
pub const CLOSED: Duration = Duration::from_secs(5);
/// Timeout of open decided connections, which must not expire. The set has one nevertheless, because without it the kernel does
/// not free the memory of deleted members.
pub const FOR_GOOD: Duration = Duration::from_hours(24 * 365);
/// Timeout of a tracked connection's claim on its client port, since the proxy's last packet.
const TRACKED: Duration = Duration::from_hours(24);
/// The same after one end has closed the connection.
const HALF_CLOSED: Duration = Duration::from_mins(10);

/// Key of the sets of connections: client, server.
pub const CONNECTION: &[Field] = &[Field::Address, Field::Port, Field::Address, Field::Port];

/// The desired tables, filled with `live`; one without chains should not exist.
pub fn tables(config: &Config, live: &Live) -> Vec<Table> {
    [Family::IPv4, Family::IPv6]
        .into_iter()
        .map(|family| {
            let vips = tables::of_family(family, config.endpoints());
            table(config, family, &vips, live)
        })
        .collect()
}

fn table(config: &Config, family: Family, vips: &[SocketAddr], live: &Live) -> Table {
    let has_proxy = of_proxy::families(config).contains(&family);
    let mut sets = if vips.is_empty() {
        Vec::new()
    } else {
        sets(family, config.max_connections, live)
    };
    if has_proxy {
        sets.extend(of_proxy::sets(config.max_connections));
    }
    Table {
        family,
        name: tables::name(config.instance),
        sets,
        chains: rules::chains(family, vips, has_proxy),
    }
}

fn sets(family: Family, size: u32, live: &Live) -> Vec<Set> {
    let set = |name, timeout, comment| Set {
        name,
        key: CONNECTION,
        timeout,
        size,
        comment,
        members: Vec::new(),
    };
    vec![
        Set {
            members: members(family, &live.untracked),
            ..set(
                OF_VIPS.decided,
                FOR_GOOD,
                "untracked connections: client, VIP",
            )
        },
        set(
            OF_VIPS.opening,
            PASSING,
            "decided connections whose client has not answered yet",
        ),
        set(
            OF_VIPS.closing,
            PASSING,
            "untracked connections that one end has closed: which end, the other",
        ),
        set(
            OF_VIPS.closed,
            CLOSED,
            "untracked connections that are over, for what is still on the way",
        ),
        Set {
            members: members(family, &live.translated),
            ..set(
                "tracked",
                TRACKED,
                "tracked connections: came by DNAT, or were left undecided",
            )
        },
        set(
            "half_closed",
            HALF_CLOSED,
            "tracked connections that one end has closed: which end, the other",
        ),
    ]
}

fn members(family: Family, connections: &[Connection]) -> Vec<Vec<Value>> {
    connections
        .iter()
        .filter(|connection| tables::family_of(connection.vip.ip()) == family)
        .map(Connection::member)
        .collect()
}

impl Connection {
    /// The connection as a member of a set.
    pub fn member(&self) -> Vec<Value> {
        [self.client, self.vip]
            .iter()
            .flat_map(|end| [Value::Address(end.ip()), Value::Port(end.port())])
            .collect()
    }
}

#[cfg(test)]
mod tests;
