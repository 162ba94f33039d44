// SPDX-License-Identifier: Apache-2.0

//! The proxy's open connections, and whether each is tracked: the state that a backend needs when it replaces another one, or
//! tables that were removed.

use std::io;
use std::net::SocketAddr;

use proxy_kernel::cgroup::Cgroup;
use proxy_kernel::sockets;
use proxy_netlink::netfilter::conntrack::{self, Status};
use proxy_netlink::netfilter::{self, Socket};
use proxy_netlink::sock_diag::list;

/// A connection of the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Connection {
    /// The client's end.
    pub client: SocketAddr,
    /// The proxy's end: a VIP with its port.
    pub vip: SocketAddr,
}

/// The proxy's open connections, sorted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// Connections without a conntrack entry: they are untracked and should stay so.
    pub untracked: Vec<Connection>,
    /// Connections that were DNATed to a VIP: conntrack must continue to see their packets.
    pub translated: Vec<Connection>,
}

/// Failure to read the connections.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The list of sockets could not be read.
    #[error("cannot read the list of TCP connections")]
    Sockets(#[source] io::Error),
    /// conntrack could not be queried.
    #[error(transparent)]
    Conntrack(#[from] netfilter::Error),
}

impl Live {
    /// Reads the connections of these endpoints in the current network namespace.
    ///
    /// Each one is looked up individually, which is cheap even if the conntrack table is large.
    ///
    /// # Errors
    ///
    /// If a query fails.
    pub fn read(vips: &[SocketAddr]) -> Result<Self, Error> {
        let mut live = Self::default();
        let connections = sockets::connections().map_err(Error::Sockets)?;
        let mut socket = Socket::open()?;
        for (vip, client) in connections {
            if !vips.contains(&vip) {
                continue;
            }
            let connection = Connection { client, vip };
            match conntrack::answered_by(&mut socket, vip, client)? {
                // The client has opened another connection from this port, which is tracked, and whose port conntrack has
                // changed. It has given this one up.
                None if conntrack::opened_by(&mut socket, client, vip)?.is_some() => {}
                None => live.untracked.push(connection),
                Some(entry) if entry.status.contains(Status::DstNat) => {
                    live.translated.push(connection);
                }
                Some(_) => {}
            }
        }
        live.untracked.sort();
        live.translated.sort();
        Ok(live)
    }
}

/// The connections of sockets that were created in these cgroups: those that the proxy has opened, and those that it has
/// accepted, with both ends swapped.
///
/// # Errors
///
/// If the query fails.
pub fn of_cgroups(cgroups: &[Cgroup]) -> Result<Vec<Connection>, Error> {
    Ok(sockets_of(cgroups)?.into_iter().map(connection).collect())
}

/// Those of the connections that these cgroups have opened to the endpoints which conntrack does not know. A connection
/// without an answer to its SYN is left out: its SYN may be repeated through a NAT.
///
/// # Errors
///
/// If a query fails.
pub fn untracked_of(
    cgroups: &[Cgroup],
    endpoints: &[SocketAddr],
) -> Result<Vec<Connection>, Error> {
    let mut socket = Socket::open()?;
    let mut untracked = Vec::new();
    for sock in sockets_of(cgroups)? {
        let one = connection(sock);
        if endpoints.contains(&one.vip)
            && !sock.is_connecting
            && conntrack::opened_by(&mut socket, one.client, one.vip)?.is_none()
        {
            untracked.push(one);
        }
    }
    Ok(untracked)
}

fn sockets_of(cgroups: &[Cgroup]) -> Result<Vec<list::Sock>, Error> {
    let mut found = Vec::new();
    for cgroup in cgroups {
        found.extend(list::connected_in(cgroup.id).map_err(Error::Sockets)?);
    }
    Ok(found)
}

fn connection(sock: list::Sock) -> Connection {
    Connection {
        client: sock.local,
        vip: sock.remote,
    }
}
