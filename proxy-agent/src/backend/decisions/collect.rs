// SPDX-License-Identifier: Apache-2.0

//! Garbage collection of decided connections that ended without a packet that says so: the proxy has no socket for them any
//! more. They would stay in the sets otherwise and take room from new ones.

use std::collections::{BTreeSet, HashSet};
use std::net::SocketAddr;

use proxy_kernel::sockets;
use proxy_netlink::netfilter::{self, Family, Socket, Table};

use super::{OF_VIPS, of_proxy};
use crate::backend::live::Connection;
use crate::backend::tables;
use crate::instance::Instance;

/// Failure to read or remove decided connections.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A set could not be read or changed.
    #[error(transparent)]
    Netfilter(#[from] netfilter::Error),
    /// The list of sockets could not be read.
    #[error("cannot read the list of TCP connections")]
    Sockets(#[source] std::io::Error),
}

/// A kind of decided connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Connections to the VIPs: this node has the server's socket.
    ToVips,
    /// The proxy's own connections: this node has the client's socket.
    OfProxy,
}

impl Which {
    /// The set of these connections.
    fn set(self) -> &'static str {
        match self {
            Self::ToVips => OF_VIPS.decided,
            Self::OfProxy => of_proxy::SETS.decided,
        }
    }

    /// The endpoints of a connection's socket on this node: local, remote.
    fn ends(self, connection: &Connection) -> (SocketAddr, SocketAddr) {
        match self {
            Self::ToVips => (connection.vip, connection.client),
            Self::OfProxy => (connection.client, connection.vip),
        }
    }

    fn is_over(self, connection: &Connection, alive: &HashSet<(SocketAddr, SocketAddr)>) -> bool {
        !alive.contains(&self.ends(connection))
    }
}

/// Removes ended connections, and returns their number.
///
/// The set is read before the sockets, so a connection that is decided in between has its socket by then. A connection that
/// ends and is opened again in between may be removed too, and is tracked from then on.
///
/// # Errors
///
/// If the kernel's answer is incomplete; nothing is removed then.
pub fn collect(which: Which, instance: Instance) -> Result<usize, Error> {
    let mut socket = Socket::open()?;
    let decided = decided(which, instance, &mut socket)?;
    if decided.is_empty() {
        return Ok(0);
    }
    let alive = sockets::connections().map_err(Error::Sockets)?;
    let mut over = 0;
    for table in tables::empty(instance) {
        let is_over = |member: &&Member| {
            member.family == table.family && which.is_over(&member.connection, &alive)
        };
        let over_here = decided.iter().filter(is_over);
        let keys: Vec<_> = over_here.map(|member| member.key.clone()).collect();
        over += keys.len();
        table.delete_members(which.set(), &keys, &mut socket)?;
    }
    Ok(over)
}

/// The number of decided connections.
///
/// # Errors
///
/// If the kernel's answer is incomplete.
pub fn count(which: Which, instance: Instance) -> Result<usize, netfilter::Error> {
    Ok(decided(which, instance, &mut Socket::open()?)?.len())
}

/// The decided connections that are open; of the proxy's own also those in the separate tables of version 0.2.0.
///
/// # Errors
///
/// If the kernel's answer is incomplete.
pub fn live(
    which: Which,
    instance: Instance,
    socket: &mut Socket,
) -> Result<Vec<Connection>, Error> {
    let decided = decided(which, instance, socket)?.into_iter();
    let mut connections: BTreeSet<_> = decided.map(|member| member.connection).collect();
    if which == Which::OfProxy {
        for table in tables::empty_separate_upstream(instance) {
            connections.extend(members(&table, of_proxy::SEPARATE, socket)?);
        }
    }
    if connections.is_empty() {
        return Ok(Vec::new());
    }
    let alive = sockets::connections().map_err(Error::Sockets)?;
    connections.retain(|one| !which.is_over(one, &alive));
    Ok(connections.into_iter().collect())
}

/// The connections in a set of a table, open or not.
///
/// # Errors
///
/// If the kernel's answer is incomplete.
pub fn members(
    table: &Table,
    set: &str,
    socket: &mut Socket,
) -> Result<Vec<Connection>, netfilter::Error> {
    let keys = table.members(set, socket)?;
    let read = |key: &Vec<u8>| connection(table.family, key);
    Ok(keys.iter().filter_map(read).collect())
}

/// A member of the set of decided connections.
struct Member {
    family: Family,
    key: Vec<u8>,
    connection: Connection,
}

fn decided(
    which: Which,
    instance: Instance,
    socket: &mut Socket,
) -> Result<Vec<Member>, netfilter::Error> {
    let mut decided = Vec::new();
    for table in tables::empty(instance) {
        let keys = table.members(which.set(), socket)?.into_iter();
        decided.extend(keys.filter_map(|key| {
            Some(Member {
                family: table.family,
                connection: connection(table.family, &key)?,
                key,
            })
        }));
    }
    Ok(decided)
}

/// The endpoint in a member's key: address and port, each aligned to four bytes.
pub fn endpoint(family: Family, key: &[u8]) -> Option<SocketAddr> {
    end(key, address_length(family))
}

fn address_length(family: Family) -> usize {
    match family {
        Family::IPv6 => 16,
        _ => 4,
    }
}

/// The connection in a member's key: client address and port, VIP and port, each field aligned to four bytes.
fn connection(family: Family, key: &[u8]) -> Option<Connection> {
    let address = address_length(family);
    let (client, vip) = key.split_at_checked(address + 4)?;
    Some(Connection {
        client: end(client, address)?,
        vip: end(vip, address)?,
    })
}

fn end(bytes: &[u8], address: usize) -> Option<SocketAddr> {
    let (ip, port) = bytes.split_at_checked(address)?;
    let port = u16::from_be_bytes(port.first_chunk::<2>().copied()?);
    Some(match ip.len() {
        4 => SocketAddr::from((<[u8; 4]>::try_from(ip).ok()?, port)),
        _ => SocketAddr::from((<[u8; 16]>::try_from(ip).ok()?, port)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_read_as_the_kernel_shows_them() {
        let key = [10, 244, 0, 7, 0x9c, 0x40, 0, 0, 10, 96, 0, 2, 1, 187, 0, 0];
        let expected = Connection {
            client: "10.244.0.7:40000".parse().unwrap(),
            vip: "10.96.0.2:443".parse().unwrap(),
        };
        assert_eq!(connection(Family::IPv4, &key), Some(expected));
        for length in 0..key.len() - 2 {
            assert_eq!(connection(Family::IPv4, &key[..length]), None, "{length}");
        }
        let mut six = vec![0; 40];
        six[0] = 0xfd;
        six[20] = 0xfd;
        six[37] = 5;
        let read = connection(Family::IPv6, &six).unwrap();
        assert_eq!(read.vip, "[fd00::]:5".parse().unwrap());
    }

    #[test]
    fn only_connections_without_a_socket_are_over() {
        let vip = "10.96.0.2:443".parse().unwrap();
        let client = "10.244.0.7:40000".parse().unwrap();
        let connection = Connection { client, vip };
        for (which, alive, other) in [
            (Which::ToVips, (vip, client), (client, vip)),
            (Which::OfProxy, (client, vip), (vip, client)),
        ] {
            assert!(!which.is_over(&connection, &HashSet::from([alive])));
            assert!(which.is_over(&connection, &HashSet::from([other])));
        }
    }
}
