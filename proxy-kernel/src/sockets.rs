// SPDX-License-Identifier: Apache-2.0

//! The TCP connections and listeners of this network namespace, from /proc/net/tcp and tcp6
//! (`Documentation/networking/proc_net_tcp.rst`).

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The states without a connection: `TCP_TIME_WAIT`, `TCP_CLOSE` and `TCP_LISTEN` of `net/tcp_states.h`.
const NO_CONNECTION: [u8; 3] = [6, 7, LISTEN];
/// `TCP_LISTEN`.
const LISTEN: u8 = 10;
/// The lists of IPv4 and IPv6. A kernel without IPv6 lacks the second one.
const FILES: [&str; 2] = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];

/// A listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    /// The address, which is unspecified for all addresses.
    pub address: SocketAddr,
    /// The inode, with which the processes that hold the socket can be found.
    pub inode: u64,
}

impl Listener {
    /// Returns true if the socket accepts connections to `endpoint`, unless another socket has a more specific address.
    #[must_use]
    pub fn takes(&self, endpoint: SocketAddr) -> bool {
        let Self { address, .. } = self;
        if address.port() != endpoint.port() {
            return false;
        }
        // An IPv6 socket also accepts IPv4 connections, unless `IPV6_V6ONLY` is set.
        let takes_family = address.is_ipv6() || endpoint.is_ipv4();
        address.ip() == endpoint.ip() || (address.ip().is_unspecified() && takes_family)
    }
}

/// The kind of socket that accepts connections to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listening {
    /// A socket that is bound to the endpoint's address.
    Bound,
    /// A socket that is bound to this wildcard address.
    Wildcard(SocketAddr),
    /// No socket, so connections are refused.
    Nowhere,
}

impl Listening {
    /// Determines the result from a list of all listeners.
    #[must_use]
    pub fn at(endpoint: SocketAddr, listeners: &[Listener]) -> Self {
        if listeners.iter().any(|found| found.address == endpoint) {
            return Self::Bound;
        }
        let wildcard = listeners.iter().find(|found| found.takes(endpoint));
        wildcard.map_or(Self::Nowhere, |found| Self::Wildcard(found.address))
    }
}

/// The local and the remote address of a connection.
type Ends = (SocketAddr, SocketAddr);

/// Returns all connections as (local, remote). IPv4 connections of IPv6 sockets are converted to IPv4.
///
/// A single read can miss a live connection: the kernel continues from a position within a hash bucket, and a socket
/// that is closed before that position shifts the others (`tcp_seek_last_pos` of `net/ipv4/tcp_ipv4.c`), without a sign
/// of it in the output. The lists are therefore read twice, and a connection in either of them exists.
///
/// # Errors
///
/// Returns an error if /proc cannot be read, or if a line cannot be parsed.
pub fn connections() -> io::Result<HashSet<Ends>> {
    connections_by(|file| fs::read_to_string(file))
}

fn connections_by(read: impl Fn(&str) -> io::Result<String>) -> io::Result<HashSet<Ends>> {
    let mut found = HashSet::new();
    for file in FILES.into_iter().chain(FILES) {
        let table = match read(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            table => table?,
        };
        for line in rows(&table)? {
            found.extend(connection(line)?);
        }
    }
    Ok(found)
}

/// Returns the lines after the heading. Without the heading the list is invalid.
fn rows(table: &str) -> io::Result<impl Iterator<Item = &str>> {
    let mut lines = table.lines();
    match lines.next() {
        Some(heading) if heading.contains("local_address") && table.ends_with('\n') => Ok(lines),
        _ => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
    }
}

/// Returns all listening sockets, of IPv4 and IPv6.
///
/// # Errors
///
/// Returns an error if /proc cannot be read.
pub fn listeners() -> io::Result<Vec<Listener>> {
    let mut found = Vec::new();
    for file in FILES {
        let table = match File::open(file) {
            Ok(table) => BufReader::new(table),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for line in table.lines().skip(1) {
            // Listeners precede the connections in the lists, however many connections there are: `tcp_get_idx` in
            // <https://github.com/torvalds/linux/blob/v5.4/net/ipv4/tcp_ipv4.c>, since 2.6.12.
            let Some(listener) = listener(&line?)? else {
                break;
            };
            found.push(listener);
        }
    }
    Ok(found)
}

/// Parses the connection in a line `sl local_address rem_address st …`. Returns `None` for other states.
fn connection(line: &str) -> io::Result<Option<Ends>> {
    let read = || {
        let mut fields = line.split_whitespace().skip(1);
        let ends = (address(fields.next()?)?, address(fields.next()?)?);
        let state = u8::from_str_radix(fields.next()?, 16).ok()?;
        Some((!NO_CONNECTION.contains(&state)).then_some(ends))
    };
    read().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// Parses the listener in a line `sl local_address rem_address st queues timer retransmits uid timeout inode …`.
/// Returns `None` for other states.
fn listener(line: &str) -> io::Result<Option<Listener>> {
    let read = || {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if u8::from_str_radix(fields.get(3)?, 16).ok()? != LISTEN {
            return Some(None);
        }
        Some(Some(Listener {
            address: address(fields.get(1)?)?,
            inode: fields.get(9)?.parse().ok()?,
        }))
    };
    read().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// Parses an address such as `0200600A:01BB`: 32-bit words in the host's byte order, and the port as a number.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut octets = Vec::with_capacity(16);
    for start in (0..ip.len()).step_by(8) {
        let word = u32::from_str_radix(ip.get(start..start + 8)?, 16).ok()?;
        octets.extend_from_slice(&word.to_ne_bytes());
    }
    let ip = match octets.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?)),
        16 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(octets).ok()?)).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    const ESTABLISHED: &str = "   1: 0200600A:01BB 0A00F40A:9C40 01 00000000:00000000 00:0 0 0";
    const LISTENER: &str =
        "   0: 0200600A:01BB 00000000:0000 0A 00000000:00000000 00:00000000 0 0 0 4711 1 0 0";
    const MAPPED: &str = "   2: 0000000000000000FFFF00000200600A:01BB \
                          0000000000000000FFFF00000A00F40A:9C41 01 0:0 00:0 0 0";

    #[test]
    fn connections_are_read_and_listeners_are_not() {
        let parse = |text: &str| text.parse::<SocketAddr>().unwrap();
        let vip = parse("10.96.0.2:443");
        assert_eq!(
            connection(ESTABLISHED).unwrap(),
            Some((vip, parse("10.244.0.10:40000")))
        );
        assert_eq!(connection(LISTENER).unwrap(), None);
        assert_eq!(listener(ESTABLISHED).unwrap(), None);
        let expected = Listener {
            address: vip,
            inode: 4711,
        };
        assert_eq!(listener(LISTENER).unwrap(), Some(expected));
        assert_eq!(
            connection(MAPPED).unwrap(),
            Some((vip, parse("10.244.0.10:40001")))
        );
    }

    #[test]
    fn a_connection_that_one_read_misses_is_there() {
        const HEADING: &str = "  sl  local_address rem_address   st tx_queue rx_queue";
        let reads = Cell::new(0);
        let found = connections_by(|file| {
            if file.ends_with('6') {
                return Err(io::Error::from(io::ErrorKind::NotFound));
            }
            reads.set(reads.get() + 1);
            Ok(match reads.get() {
                1 => format!("{HEADING}\n"),
                _ => format!("{HEADING}\n{ESTABLISHED}\n"),
            })
        });
        assert_eq!(found.unwrap().len(), 1);
        // A list that is truncated, lacks its heading, or could not be read.
        for table in [
            "",
            HEADING,
            ESTABLISHED,
            &format!("{HEADING}\n{ESTABLISHED}"),
        ] {
            assert!(
                connections_by(|_| Ok(table.to_owned())).is_err(),
                "{table:?}"
            );
        }
        // A truncated line of a listener does not end the list.
        let (without_inode, _) = LISTENER.split_once(" 4711").unwrap();
        for line in ["", "   0: 0200600A:01BB 00000000:0000", without_inode] {
            assert!(listener(line).is_err(), "{line}");
        }
        let cut = &ESTABLISHED[..ESTABLISHED.len() / 2];
        assert!(connections_by(|_| Ok(format!("{HEADING}\n{cut}\n"))).is_err());
        assert!(connections_by(|_| Err(io::Error::from_raw_os_error(libc::ENOMEM))).is_err());
        let nothing = connections_by(|_| Ok(format!("{HEADING}\n")));
        assert!(nothing.unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn any_line_is_read(line in ".{0,120}") {
            let _ = (connection(&line), listener(&line));
        }
    }
}
