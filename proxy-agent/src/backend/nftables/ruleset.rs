// SPDX-License-Identifier: Apache-2.0

//! The tables of this backend, as `nft list ruleset` shows them (one of both families; counters and
//! comments left out, `client` for `ip saddr . tcp sport . ip daddr . tcp dport` or, in `reply`,
//! the other way round):
//!
//! ```text
//! table ip proxy-agent {
//!     set decided    { … flags dynamic,timeout; timeout 1h; }
//!     set closing    { … flags dynamic,timeout; timeout 2m; }
//!     set translated { … flags dynamic,timeout; timeout 10m; }
//!     set half_closed { … flags dynamic,timeout; timeout 10m; }
//!     set opening    { typeof ip saddr . tcp sport . tcp sequence; flags dynamic,timeout; timeout 10s; }
//!
//!     chain prerouting {
//!         type filter hook prerouting priority raw; policy accept;
//!         ip daddr 10.96.0.2 tcp dport 443 iif != "lo" goto request
//!     }
//!     chain input {
//!         type filter hook input priority 101; policy accept;
//!         ip daddr 10.96.0.2 tcp dport 443 goto arrived
//!     }
//!     chain output {
//!         type filter hook output priority raw; policy accept;
//!         ip daddr 10.96.0.2 tcp dport 443 goto request
//!         ip saddr 10.96.0.2 tcp sport 443 goto reply
//!     }
//!     chain request {
//!         tcp flags syn / fin,syn,rst,ack goto open
//!         tcp flags fin,rst client @decided update @closing { client } delete @decided { client } notrack accept
//!         client @decided update @decided { client } notrack accept
//!         client @closing update @closing { client } notrack accept
//!     }
//!     chain open {
//!         ip daddr 10.96.0.2 tcp dport 443 client @translated accept
//!         ip daddr 10.96.0.2 tcp dport 443 update @opening { … } update @decided { client } delete @closing { client } notrack accept
//!     }
//!     chain arrived {
//!         tcp flags syn / fin,syn,rst,ack … != @opening update @translated { client } delete … accept
//!         tcp flags syn / fin,syn,rst,ack … != @opening delete @decided { client } delete @closing { client } accept
//!         client @translated client != @decided goto translated
//!     }
//!     chain translated {
//!         tcp flags rst delete @translated { client } accept
//!         tcp flags fin proxy @half_closed delete @translated { client } accept
//!         tcp flags fin update @half_closed { client }
//!         update @translated { client } accept
//!     }
//!     chain reply {
//!         tcp flags syn,rst client @translated delete @decided { client } delete @closing { client } accept
//!         tcp flags fin client @translated client != @decided goto translated_reply
//!         tcp flags fin,rst client @decided update @closing { client } delete @decided { client } notrack accept
//!         client @decided notrack accept
//!         client @closing notrack accept
//!     }
//!     chain translated_reply {
//!         client @half_closed delete @translated { client } accept
//!         update @half_closed { proxy } accept
//!     }
//! }
//! ```
//!
//! A connection is decided at its SYN, before any NAT. A SYN that reaches the proxy and was not
//! seen there came by somebody's DNAT: its client port is remembered as `translated` until both ends
//! have closed the connection, and the answer makes an older decision of the same client port void. `docs/packet-path.md` has the whole
//! story.

mod counted;
mod rules;

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;

pub use self::counted::Counted;

use crate::backend::live::{Connection, Live};
use crate::backend::tables;
use crate::instance::Instance;
use crate::netfilter::set::{Field, Set, Value};
use crate::netfilter::{Family, Table};

/// When a decision is forgotten about a connection without any packet; it is tracked from then on.
/// API clients send something at least every few minutes.
const DECIDED: Duration = Duration::from_hours(1);
/// The same after a FIN or RST: what is still on the way, or a stream in the other direction.
const CLOSING: Duration = Duration::from_mins(2);
/// When it is forgotten that a client port is in use by a translated connection without packets.
const TRANSLATED: Duration = Duration::from_mins(10);
/// From the raw hook to the input hook; a SYN that is sent again begins anew.
const OPENING: Duration = Duration::from_secs(10);

const CONNECTION: &[Field] = &[Field::Address, Field::Port, Field::Address, Field::Port];

/// What the tables are made from.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Whose tables they are.
    pub instance: Instance,
    /// The VIPs with each of the ports.
    pub endpoints: Vec<SocketAddr>,
    /// How many connections each set has room for.
    pub max_connections: u32,
    /// Anything is guarded.
    pub guard: bool,
    /// Networks that may come from outside.
    pub allow_from: Vec<IpNet>,
}

/// The tables that should be there, or should not: those without a chain. `live` fills them.
pub fn tables(settings: &Settings, live: &Live) -> Vec<Table> {
    [Family::IPv4, Family::IPv6]
        .into_iter()
        .map(|family| {
            let vips = settings.endpoints.iter();
            let vips: Vec<_> = vips
                .copied()
                .filter(|vip| tables::family_of(vip.ip()) == family)
                .collect();
            table(settings, family, &vips, live)
        })
        .collect()
}

fn table(settings: &Settings, family: Family, vips: &[SocketAddr], live: &Live) -> Table {
    let (sets, chains) = if vips.is_empty() {
        (Vec::new(), Vec::new())
    } else {
        (
            sets(family, settings.max_connections, live),
            rules::chains(family, vips),
        )
    };
    Table {
        family,
        name: tables::name(settings.instance),
        sets,
        chains,
    }
}

fn sets(family: Family, size: u32, live: &Live) -> Vec<Set> {
    let set = |name, key, timeout, comment| Set {
        name,
        key,
        timeout,
        size,
        comment,
        members: Vec::new(),
    };
    vec![
        Set {
            members: members(family, &live.untracked),
            ..set(
                "decided",
                CONNECTION,
                DECIDED,
                "untracked connections: client, VIP",
            )
        },
        set(
            "closing",
            CONNECTION,
            CLOSING,
            "untracked connections that one end has closed",
        ),
        Set {
            members: members(family, &live.translated),
            ..set(
                "translated",
                CONNECTION,
                TRANSLATED,
                "tracked connections that came by DNAT",
            )
        },
        set(
            "half_closed",
            CONNECTION,
            TRANSLATED,
            "translated connections that one end has closed: which end, the other",
        ),
        set(
            "opening",
            &[Field::Address, Field::Port, Field::Sequence],
            OPENING,
            "SYNs that were addressed to a VIP",
        ),
    ]
}

fn members(family: Family, connections: &[Connection]) -> Vec<Vec<Value>> {
    connections
        .iter()
        .filter(|connection| tables::family_of(connection.vip.ip()) == family)
        .map(|Connection { client, vip }| {
            [client, vip]
                .iter()
                .flat_map(|end| [Value::Address(end.ip()), Value::Port(end.port())])
                .collect()
        })
        .collect()
}
