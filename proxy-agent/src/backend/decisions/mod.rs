// SPDX-License-Identifier: Apache-2.0

//! The rules and sets of `nf_tables` that decide connections to the VIPs one by one, natively: nothing but
//! nf_tables is needed, and `nft -f` can load again what `nft list ruleset` shows. The backends
//! `ebpf` and `nftables` use them as they are. One of both families, counters and comments left out;
//! `client` stands for `ip saddr . tcp sport . ip daddr . tcp dport` or, in `reply`, the other way
//! round; `plain` for `tcp flags ! fin,syn,rst`:
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
//!     }
//!     chain input {
//!         type filter hook input priority 101; policy accept;
//!         ip daddr 10.96.0.2 tcp dport 443 tcp flags fin,syn,rst goto arrived
//!     }
//!     chain output {
//!         type filter hook output priority raw; policy accept;
//!         ip daddr 10.96.0.2 tcp dport 443 goto request
//!         ip saddr 10.96.0.2 tcp sport 443 goto reply
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
//! A connection is decided at its SYN, before any NAT, and noted among those that open. The client's
//! next packet makes it a decided one: those stay until they end, however much traffic there is beside
//! them and however long they are quiet. A first FIN moves it to those that close, the second one or a RST to
//! those that are over, which are forgotten seconds later. A client that opens a connection anew has given up
//! the one before: what was decided about that is void.
//!
//! A SYN that was decided carries a priority from the raw hook to the input hook. One without has come by
//! somebody's DNAT or was left undecided: until both ends have closed the connection no other one of that
//! client port is decided, and when the proxy answers it, an older decision is void. `docs/packet-path.md`
//! has the whole story.

pub mod collect;
mod counted;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod packets;
mod rules;
pub mod statistics;

use std::net::SocketAddr;
use std::time::Duration;

use tracing::warn;

use self::collect::Which;
pub use self::counted::Counted;

use crate::backend::live::{Connection, Live};
use crate::backend::tables;
use crate::instance::Instance;
use crate::kernel::conntrack;
use crate::netfilter::set::{Field, Set, Value};
use crate::netfilter::{self, Family, Socket, Table};

/// The set of decided connections.
pub const DECIDED: &str = "decided";

/// When a connection is forgotten that opens or closes and has no packets: longer than the kernel repeats
/// a SYN-ACK (`net.ipv4.tcp_synack_retries`), and as long as conntrack waits after a FIN.
pub const PASSING: Duration = Duration::from_mins(2);
/// The same of one that both ends have closed: for a last FIN that is repeated.
pub const CLOSED: Duration = Duration::from_secs(5);
/// Decided connections are never forgotten while they live. The set has a timeout all the same: without
/// one the kernel does not give the memory of deleted members back.
pub const FOR_GOOD: Duration = Duration::from_hours(24 * 365);
/// When it is forgotten that a client port is in use by a tracked connection to which the proxy sends nothing.
const TRACKED: Duration = Duration::from_hours(24);
/// The same once one end has closed it.
const HALF_CLOSED: Duration = Duration::from_mins(10);

/// What members of the sets of connections are: client, server.
pub const CONNECTION: &[Field] = &[Field::Address, Field::Port, Field::Address, Field::Port];

/// What the tables are made from.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Whose tables they are.
    pub instance: Instance,
    /// The VIPs with each of the ports.
    pub endpoints: Vec<SocketAddr>,
    /// How many connections each set has room for.
    pub max_connections: u32,
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
            ..set(DECIDED, FOR_GOOD, "untracked connections: client, VIP")
        },
        set(
            "opening",
            PASSING,
            "decided connections whose client has not answered yet",
        ),
        set(
            "closing",
            PASSING,
            "untracked connections that one end has closed: which end, the other",
        ),
        set(
            "closed",
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
    /// The connection as a member of the sets.
    pub fn member(&self) -> Vec<Value> {
        [self.client, self.vip]
            .iter()
            .flat_map(|end| [Value::Address(end.ip()), Value::Port(end.port())])
            .collect()
    }
}

/// Puts tables in place, those of decisions with the connections that are open already. Which of those
/// another backend has kept from conntrack can be known only while `takes_over`: later on, when
/// somebody has removed the tables, a connection without an entry may be one whose entry was deleted,
/// and it becomes tracked. Where conntrack picks up no connection half-way it would hang; there it is
/// taken for an untracked one.
///
/// # Errors
///
/// The kernel's answer.
pub fn install(
    settings: &Settings,
    takes_over: bool,
    wanted: &[Table],
) -> Result<(), netfilter::Error> {
    let of_decisions = |table: &Table| table.name == tables::name(settings.instance);
    // The sockets are asked for only if they are to be remembered.
    if !wanted.iter().any(of_decisions) {
        return tables::install(wanted);
    }
    let mut live = Live::read(&settings.endpoints).unwrap_or_else(|error| {
        warn!("connections that are untracked now become tracked: {error}");
        Live::default()
    });
    if !takes_over && conntrack::picks_up() {
        live.untracked.clear();
    }
    let filled = tables(settings, &live);
    let complete: Vec<_> = wanted
        .iter()
        .map(|table| {
            let title = table.title();
            let filled = filled.iter().find(|filled| filled.title() == title);
            filled.unwrap_or(table).clone()
        })
        .collect();
    tables::install(&complete)
}

/// Gives live decided connections over to conntrack before the tables go, where it would not pick them up by
/// itself: they would hang otherwise.
///
/// # Errors
///
/// The first connection that could not be handed over; the others are.
pub fn hand_over(which: Which, instance: Instance) -> Result<(), collect::Error> {
    if conntrack::picks_up() {
        return Ok(());
    }
    let mut socket = Socket::open()?;
    let mut outcome = Ok(());
    for Connection { client, vip } in collect::live(which, instance, &mut socket)? {
        let created = netfilter::conntrack::create_established(&mut socket, client, vip, vip);
        outcome = outcome.and(created);
    }
    Ok(outcome?)
}

#[cfg(test)]
mod tests;
