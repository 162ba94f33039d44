// SPDX-License-Identifier: Apache-2.0

//! Entries of connection tracking over ctnetlink: listed, deleted, and created for connections that
//! were translated without it. Only TCP is considered. The messages are in `message.rs`; which entries
//! are wrong is not decided here.

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

/// Attempts at an entry that other programs keep changing, before that is an error.
const ATTEMPTS: usize = 8;
/// How long an established connection is tracked without a packet if the setting cannot be read: the
/// value that kube-proxy sets.
const ESTABLISHED_TIMEOUT: Duration = Duration::from_hours(24);

/// The two ends of a TCP connection as packets of one direction show them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// The sender.
    pub source: SocketAddr,
    /// The receiver.
    pub destination: SocketAddr,
}

/// A tracked TCP connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The direction of its first packet, before any translation.
    pub original: Tuple,
    /// The direction of replies as they arrive, before they are translated back.
    pub reply: Tuple,
    /// Its status bits.
    pub status: Status,
    /// The state of the connection, if the kernel reports it.
    pub tcp_state: Option<TcpState>,
    /// Whether packets with sequence numbers outside of its window pass, in both directions.
    pub liberal: bool,
    /// The time until it expires without a packet, in whole seconds, rounded down.
    pub remaining: Option<Duration>,
    /// Distinguishes it from earlier and later entries of the same tuples.
    pub id: u32,
    /// The zone of its original direction.
    pub zone: u16,
}

/// States of a tracked TCP connection (`enum tcp_conntrack`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpState {
    /// A SYN was seen.
    SynSent,
    /// The handshake is complete.
    Established,
    /// Both sides have closed it, or one has reset it.
    Over(Ending),
    /// Another state, by its number.
    Other(u8),
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// By FIN from both sides.
    TimeWait,
    /// By RST.
    Close,
}

/// Which entries are listed.
///
/// Kernels that know how (from 5.8 for addresses, from 5.15 for the status) send no others, which
/// makes a look at a table of 262,144 entries cheap; what older ones send is left out while it is
/// read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Connections to this address without a reply and without DNAT.
    UnansweredTo(SocketAddr),
}

impl Tuple {
    /// From one end to the other.
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

    /// The same connection in the other direction, without any translation.
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

    /// The flags it compares and the values they must have.
    fn status(self) -> (Status, Status) {
        let Self::UnansweredTo(_) = self;
        (Status::SeenReply | Status::DstNat, Status::empty())
    }

    /// Whether an entry is one of those asked for.
    fn accepts(self, entry: &Entry) -> bool {
        let (mask, value) = self.status();
        let Self::UnansweredTo(address) = self;
        entry.original.destination == address && entry.status & mask == value
    }
}

/// Lists entries and gives each of them to `keep` as it is read, so that a large table needs no
/// more memory than what `keep` collects. `keep` gets a new `T` when the list is read again.
///
/// # Errors
///
/// If the kernel does not answer completely.
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

/// Deletes an entry, but no later one of the same tuples. Returns false if it no longer existed.
///
/// # Errors
///
/// The kernel's answer.
pub fn delete(socket: &mut Socket, entry: &Entry) -> Result<bool, Error> {
    let what = format!("delete the entry of {}", entry.original);
    let family = entry.original.family();
    match socket.change(&what, family, 0, message::delete(entry)) {
        Ok(()) => Ok(true),
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Creates the entry that kube-proxy's DNAT would have made for a live connection from `client` to
/// `service` whose other end is `vip`, so that conntrack takes its translation over.
///
/// The caller knows that the proxy's socket of `vip` and `client` belongs to this connection. There
/// is only one such socket, so whichever other entry expects answers from `vip` to `client` is out
/// of date: it would make conntrack give the client another port, and is deleted. So is an entry of
/// `client` and `service` that leads elsewhere or would drop segments because it has an earlier
/// connection's windows.
///
/// # Errors
///
/// The kernel's answer, or that other programs keep tracking the connection in another way.
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
            // The next look-up shows whether the kernel translated it as requested.
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

/// The entry of the connection in which `server` answers `client`, if it is tracked.
///
/// # Errors
///
/// The kernel's answer.
pub fn answered_by(
    socket: &mut Socket,
    server: SocketAddr,
    client: SocketAddr,
) -> Result<Option<Entry>, Error> {
    find(socket, &Tuple::new(server, client))
}

/// The entry of a connection that `client` has opened to `server`, as `client` names its ends.
///
/// # Errors
///
/// The kernel's answer.
pub fn opened_by(
    socket: &mut Socket,
    client: SocketAddr,
    server: SocketAddr,
) -> Result<Option<Entry>, Error> {
    find(socket, &Tuple::new(client, server))
}

/// How long conntrack remembers a TCP connection in this state after its last packet, in the
/// current network namespace.
///
/// # Errors
///
/// If the setting cannot be read; `NotFound` where the kernel does not track connections at all.
///
/// # Panics
///
/// For states other than SYN sent and established.
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

/// The entry one of whose directions is `tuple`, in the default zone.
fn find(socket: &mut Socket, tuple: &Tuple) -> Result<Option<Entry>, Error> {
    let what = format!("look up {tuple}");
    let found: Option<ConntrackMessage> =
        socket.get(&what, tuple.family(), message::find(tuple))?;
    Ok(found.and_then(message::entry))
}

/// Whether the connection goes on when its packets meet this entry.
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
