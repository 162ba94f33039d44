// SPDX-License-Identifier: Apache-2.0

//! Lists, deletes and creates entries of connection tracking over ctnetlink. Entries are created for connections that
//! were translated without conntrack. Only TCP is supported. `message.rs` contains the messages. The callers decide
//! which entries are wrong.

#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod message;
#[cfg(test)]
mod tests;

use std::fmt::{self, Display};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_netfilter::conntrack::ConntrackMessage;
pub use netlink_packet_netfilter::conntrack::Status;

use super::{Error, Family, Socket};

/// The maximum number of attempts to create an entry that other programs keep changing.
const ATTEMPTS: usize = 8;
/// The time for which an established connection is tracked without a packet, if the setting cannot be read. It is the
/// value that kube-proxy sets.
const ESTABLISHED_TIMEOUT: Duration = Duration::from_hours(24);

/// The two ends of a TCP connection, as they appear in packets of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// The sender's address.
    pub source: SocketAddr,
    /// The receiver's address.
    pub destination: SocketAddr,
}

/// A tracked TCP connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The tuple of the original direction, before any translation.
    pub original: Tuple,
    /// The tuple of the reply direction as the packets arrive, before they are translated back.
    pub reply: Tuple,
    /// The status bits.
    pub status: Status,
    /// The state of the connection, if the kernel reports it.
    pub tcp_state: Option<TcpState>,
    /// True if packets with sequence numbers outside of the window pass, in both directions.
    pub liberal: bool,
    /// The time after which the entry expires unless a packet arrives, in whole seconds, rounded down.
    pub remaining: Option<Duration>,
    /// The id that distinguishes the entry from earlier and later entries with the same tuples.
    pub id: u32,
    /// The zone of the original direction.
    pub zone: u16,
}

/// States of a tracked TCP connection (`enum tcp_conntrack`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpState {
    /// A SYN was seen.
    SynSent,
    /// The handshake is complete.
    Established,
    /// Both sides have closed the connection, or one side has reset it.
    Over(Ending),
    /// Another state, by its number.
    Other(u8),
}

/// The way in which a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Both sides sent a FIN.
    TimeWait,
    /// One side sent an RST.
    Close,
}

/// The selection of entries that are listed.
///
/// Kernels that support the filter (from 5.8 for addresses, from 5.15 for the status) send only matching entries, which
/// makes reading a table of 262,144 entries cheap. With older kernels, other entries are skipped while they are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Connections to this address without a reply and without DNAT.
    UnansweredTo(SocketAddr),
}

impl Tuple {
    /// Creates the tuple of packets from `source` to `destination`.
    #[must_use]
    pub fn new(source: SocketAddr, destination: SocketAddr) -> Self {
        Self {
            source,
            destination,
        }
    }

    fn family(&self) -> Family {
        family_of(self.destination)
    }

    /// Returns the tuple of the other direction if there is no translation.
    #[must_use]
    pub fn mirrored(&self) -> Self {
        Self::new(self.destination, self.source)
    }
}

impl Display for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.source, self.destination)
    }
}

impl Filter {
    fn family(self) -> Family {
        let Self::UnansweredTo(address) = self;
        family_of(address)
    }

    /// Returns the status bits that the filter compares, and the values that they must have.
    fn status(self) -> (Status, Status) {
        let Self::UnansweredTo(_) = self;
        (Status::SeenReply | Status::DstNat, Status::empty())
    }

    /// Returns true if an entry matches the filter.
    fn accepts(self, entry: &Entry) -> bool {
        let (mask, value) = self.status();
        let Self::UnansweredTo(address) = self;
        entry.original.destination == address && entry.status & mask == value
    }
}

/// Lists entries and passes each of them to `keep` as it is read, so that a large table needs no more memory than the
/// entries that `keep` collects. When the list is read again, `keep` receives a new `T`.
///
/// # Errors
///
/// Returns an error if the kernel's response is incomplete.
pub fn each<T: Default>(
    socket: &mut Socket,
    filter: Filter,
    mut keep: impl FnMut(&mut T, Entry),
) -> Result<T, Error> {
    let what = "list tracked connections";
    let request = message::list(filter);
    socket.fold(what, filter.family(), &request, |result, message| {
        if let Some(entry) = message::entry(message)
            && filter.accepts(&entry)
        {
            keep(result, entry);
        }
    })
}

/// Deletes an entry, but no later one with the same tuples. Returns false if the entry no longer existed.
///
/// # Errors
///
/// Returns the kernel's error.
pub fn delete(socket: &mut Socket, entry: &Entry) -> Result<bool, Error> {
    let what = format!("delete the entry of {}", entry.original);
    let family = entry.original.family();
    match socket.change(&what, family, 0, message::delete(entry)) {
        Ok(()) => Ok(true),
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Creates the entry that kube-proxy's DNAT would have created for a live connection from `client` to `service` whose
/// other end is `vip`, so that conntrack takes over its translation.
///
/// The caller knows that the proxy's socket between `vip` and `client` belongs to this connection. There is only one
/// such socket, so any other entry that expects replies from `vip` to `client` is out of date: it would make conntrack
/// translate the client's port, and is deleted. An entry between `client` and `service` is also deleted if it leads to
/// another destination or would drop segments because it contains the windows of an earlier connection.
///
/// # Errors
///
/// Returns the kernel's error, or an error if other programs keep tracking the connection differently.
pub fn create_established(
    socket: &mut Socket,
    client: SocketAddr,
    service: SocketAddr,
    vip: SocketAddr,
) -> Result<(), Error> {
    let original = Tuple::new(client, service);
    let reply = Tuple::new(vip, client);
    let what = format!("create the entry of {original}, translated to {vip}");
    let timeout = tcp_timeout(TcpState::Established).unwrap_or(ESTABLISHED_TIMEOUT);
    let creation = message::create(&original, vip, timeout);
    for _ in 0..ATTEMPTS {
        if let Some(holder) = find(socket, &reply)? {
            if takes_over(&holder, &original, &reply) {
                return Ok(());
            }
            delete(socket, &holder)?;
        }
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        match socket.change(&what, original.family(), flags, creation.clone()) {
            // The look-up in the next iteration verifies that the kernel applied the requested translation.
            Ok(()) => {}
            Err(error) if error.errno() == Some(libc::EEXIST) => {
                if let Some(present) = find(socket, &original)?
                    && !takes_over(&present, &original, &reply)
                {
                    delete(socket, &present)?;
                }
            }
            Err(error) => return Err(error),
        }
    }
    Err(Error::Interrupted {
        subsystem: "conntrack",
        what,
        attempts: ATTEMPTS,
    })
}

/// Returns the entry of the connection in which `server` replies to `client`, if it is tracked.
///
/// # Errors
///
/// Returns the kernel's error.
pub fn answered_by(
    socket: &mut Socket,
    server: SocketAddr,
    client: SocketAddr,
) -> Result<Option<Entry>, Error> {
    find(socket, &Tuple::new(server, client))
}

/// Returns the entry of a connection that `client` opened to `server`, by the addresses that `client` uses.
///
/// # Errors
///
/// Returns the kernel's error.
pub fn opened_by(
    socket: &mut Socket,
    client: SocketAddr,
    server: SocketAddr,
) -> Result<Option<Entry>, Error> {
    find(socket, &Tuple::new(client, server))
}

/// Returns the time for which conntrack keeps a TCP connection in this state after its last packet, in the current
/// network namespace.
///
/// # Errors
///
/// Returns an error if the setting cannot be read; its kind is `NotFound` if the kernel does not track connections at
/// all.
///
/// # Panics
///
/// Panics for states other than SYN sent and established.
pub fn tcp_timeout(state: TcpState) -> io::Result<Duration> {
    let name = match state {
        TcpState::SynSent => "syn_sent",
        TcpState::Established => "established",
        TcpState::Over(_) | TcpState::Other(_) => unreachable!("callers ask for these two only"),
    };
    let path = format!("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_{name}");
    let seconds = fs::read_to_string(path)?;
    let seconds = seconds.trim().parse().map_err(io::Error::other)?;
    Ok(Duration::from_secs(seconds))
}

/// Returns the entry that has `tuple` in one of its directions, in the default zone.
fn find(socket: &mut Socket, tuple: &Tuple) -> Result<Option<Entry>, Error> {
    let what = format!("look up {tuple}");
    let found: Option<ConntrackMessage> =
        socket.get(&what, tuple.family(), message::find(tuple))?;
    Ok(found.and_then(message::entry))
}

/// Returns true if the connection continues when its packets match this entry.
fn takes_over(entry: &Entry, original: &Tuple, reply: &Tuple) -> bool {
    entry.original == *original
        && entry.reply == *reply
        && entry.tcp_state == Some(TcpState::Established)
        && entry.liberal
}

fn family_of(address: SocketAddr) -> Family {
    match address {
        SocketAddr::V4(_) => Family::IPv4,
        SocketAddr::V6(_) => Family::IPv6,
    }
}
