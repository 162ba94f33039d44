// SPDX-License-Identifier: Apache-2.0

//! Lists TCP sockets of this network namespace with the cgroup of the process that created them (`INET_DIAG_CGROUP_ID`,
//! Linux 5.9), which requires neither a process ID nor the host's /proc.

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{DecodeError, NLM_F_DUMP, NLM_F_REQUEST, NlasIterator};

use super::{ALL_STATES, READ_SIZE, REQUEST, SEQUENCE, body, header, malformed, read_all, send};
use crate::answer::{Answer, Failure};
use crate::wire::{self, Message};

/// A value from `linux/sock_diag.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// The length of `struct inet_diag_msg`, and the offsets of its fields.
const MESSAGE: usize = 72;
const STATE: usize = 1;
const LOCAL_PORT: usize = 4;
const REMOTE_PORT: usize = 6;
const LOCAL: usize = 8;
const REMOTE: usize = 24;
const COOKIE: usize = 44;
/// `INET_DIAG_CGROUP_ID`.
const CGROUP_ID: u16 = 21;
/// `INET_DIAG_REQ_BYTECODE`, and the condition `INET_DIAG_BC_CGROUP_COND` (Linux 5.9, like [`CGROUP_ID`]) with its
/// length (`struct inet_diag_bc_op` and the id) and the jump that rejects a socket: four bytes beyond the end.
const BYTECODE: u16 = 1;
const CGROUP_CONDITION: u8 = 13;
const CONDITION: u8 = 12;
const REFUSE: u16 = 16;
/// TCP states as bits by their number: `TCP_LISTEN`, and the states that are not a connection (`TIME_WAIT`, `CLOSE`,
/// `LISTEN`, and `NEW_SYN_RECV`).
const LISTEN: u32 = 1 << 10;
const NO_CONNECTION: u32 = 1 << 6 | 1 << 7 | LISTEN | 1 << 12;
/// The number of the state `TCP_SYN_SENT`.
const SYN_SENT: u8 = 2;
/// The maximum number of attempts at a list that changes while it is read.
const ATTEMPTS: usize = 5;

/// A TCP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sock {
    /// The local address. An IPv4 address in an IPv6 socket is converted to IPv4.
    pub local: SocketAddr,
    /// The remote address, which is unspecified for a listener.
    pub remote: SocketAddr,
    /// True if the socket has sent a SYN that is not answered yet.
    pub is_connecting: bool,
    /// The id that the creating process's cgroup had at that time, or `None` if the kernel does not report it.
    pub cgroup: Option<u64>,
    /// The unique number of this socket, which is never reused (`SO_COOKIE`).
    pub cookie: u64,
}

/// Lists the sockets that listen on a port, on any address.
///
/// # Errors
///
/// Returns an error if the kernel's response is incomplete.
pub fn listeners(port: u16) -> io::Result<Vec<Sock>> {
    list(|family| header(family, LISTEN, port).to_vec())
}

/// Lists the sockets that are connected, or connecting, and were created in a cgroup, but not those of cgroups below
/// it. The list includes the connections that processes accepted there. The kernel selects the sockets, so that others
/// cost no more than the walk through the table.
///
/// # Errors
///
/// Returns an error if the kernel's response is incomplete, or if the kernel cannot select by cgroup (before Linux
/// 5.9).
pub fn connected_in(cgroup: u64) -> io::Result<Vec<Sock>> {
    let states = ALL_STATES & !NO_CONNECTION;
    list(|family| in_cgroup(header(family, states, 0), cgroup))
}

/// Returns the socket that accepts new connections to an address: it is bound to this address or to the wildcard
/// address. This is a cheap look-up without a list.
///
/// # Errors
///
/// Returns the kernel's error, unless it means that there is no such socket.
pub fn listener(address: SocketAddr) -> io::Result<Option<Sock>> {
    let unspecified = match address {
        SocketAddr::V4(_) => IpAddr::from([0; 4]),
        SocketAddr::V6(_) => IpAddr::from([0; 16]),
    };
    let remote = SocketAddr::new(unspecified, 0);
    let body = body(address, remote, false);
    let socket = send(&wire::request(
        SOCK_DIAG_BY_FAMILY,
        NLM_F_REQUEST,
        SEQUENCE,
        &body,
    ))?;
    let mut answer = Vec::with_capacity(READ_SIZE);
    socket.recv(&mut answer, 0)?;
    one(&answer)
}

/// Returns the socket in the response to a look-up. Only the kernel's ENOENT means that there is none.
fn one(datagram: &[u8]) -> io::Result<Option<Sock>> {
    let mut found = Vec::new();
    let mut answer = Answer::to(SEQUENCE);
    let read = answer.read(datagram, |message| take(&mut found, message));
    read.map_err(malformed)?;
    if !answer.has_ended()
        && let Some(sock) = found.pop()
    {
        return Ok(Some(sock));
    }
    match answer.end() {
        Err(Failure::Refused(error)) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(failure) => Err(failure.into()),
        Ok(()) => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
    }
}

/// Lists the sockets of both families.
fn list(body: impl Fn(libc::c_int) -> Vec<u8>) -> io::Result<Vec<Sock>> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        found.extend(of_family(&body(family))?);
    }
    Ok(found)
}

fn of_family(body: &[u8]) -> io::Result<Vec<Sock>> {
    let flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = wire::request(SOCK_DIAG_BY_FAMILY, flags, SEQUENCE, body);
    for _ in 0..ATTEMPTS {
        let socket = send(&request)?;
        match dump(|datagram| socket.recv(datagram, 0).map(drop)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
    Err(io::Error::other(format!(
        "the list of sockets changed during each of {ATTEMPTS} attempts to read it"
    )))
}

/// Reads datagrams until the list ends.
fn dump(receive: impl FnMut(&mut Vec<u8>) -> io::Result<()>) -> io::Result<Vec<Sock>> {
    let mut found = Vec::new();
    let answer = Answer::to_dump(SEQUENCE);
    read_all(receive, answer, |message| take(&mut found, message))?;
    Ok(found)
}

/// Restricts a request to the sockets of a cgroup.
fn in_cgroup(header: [u8; REQUEST], cgroup: u64) -> Vec<u8> {
    let mut body = header.to_vec();
    let attribute = 4 + u16::from(CONDITION);
    body.extend(attribute.to_ne_bytes());
    body.extend(BYTECODE.to_ne_bytes());
    body.extend([CGROUP_CONDITION, CONDITION]);
    body.extend(REFUSE.to_ne_bytes());
    body.extend(cgroup.to_ne_bytes());
    body
}

fn take(found: &mut Vec<Sock>, message: Message<'_>) -> Result<(), DecodeError> {
    if message.kind == SOCK_DIAG_BY_FAMILY {
        let sock = sock(message.payload);
        found.push(sock.ok_or_else(|| DecodeError::from("a message shorter than a socket's"))?);
    }
    Ok(())
}

/// Parses the socket in a message, without the message's header.
fn sock(body: &[u8]) -> Option<Sock> {
    let attributes = body.get(MESSAGE..)?;
    let is_ipv6 = i32::from(body[0]) == libc::AF_INET6;
    let end = |address: usize, port: usize| {
        let port = u16::from_be_bytes(*body[port..].first_chunk()?);
        let ip = if is_ipv6 {
            IpAddr::from(*body[address..].first_chunk::<16>()?)
        } else {
            IpAddr::from(*body[address..].first_chunk::<4>()?)
        };
        Some(SocketAddr::new(ip.to_canonical(), port))
    };
    let cgroup = NlasIterator::new(attributes).find_map(|attribute| {
        let attribute = attribute.ok()?;
        let value = attribute.value().first_chunk();
        let value = value.filter(|_| attribute.kind() == CGROUP_ID)?;
        Some(u64::from_ne_bytes(*value))
    });
    Some(Sock {
        local: end(LOCAL, LOCAL_PORT)?,
        remote: end(REMOTE, REMOTE_PORT)?,
        is_connecting: body[STATE] == SYN_SENT,
        cgroup,
        cookie: u64::from_ne_bytes(*body[COOKIE..].first_chunk()?),
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use netlink_packet_core::{NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, NLMSG_OVERRUN};
    use proptest::prelude::*;

    use super::*;

    /// Runs on the kernel of this host, with the cgroup of this process.
    #[test]
    fn sockets_are_listed_and_found() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let server = TcpListener::bind(address).unwrap();
            let listening = server.local_addr().unwrap();
            let client = TcpStream::connect(listening).unwrap();
            let of_server = listeners(listening.port()).unwrap();
            let exact: Vec<_> = of_server
                .iter()
                .filter(|sock| sock.local == listening)
                .collect();
            assert_eq!(exact.len(), 1, "{of_server:?}");
            assert!(exact[0].cgroup.is_some(), "{of_server:?}");
            assert_eq!(listener(listening).unwrap().as_ref(), Some(exact[0]));
            let connections = connected_in(exact[0].cgroup.unwrap()).unwrap();
            let own = client.local_addr().unwrap();
            let found = connections.iter().find(|sock| sock.local == own);
            let found = found.unwrap_or_else(|| panic!("{own} in {connections:?}"));
            assert_eq!((found.remote, found.cgroup), (listening, exact[0].cgroup));
            // No cgroup has this id.
            assert_eq!(connected_in(u64::MAX).unwrap(), []);
        }
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        assert_eq!(listener(address).unwrap(), None);
    }

    /// Returns the list in these datagrams, after which the socket fails.
    fn listed(datagrams: &[Vec<u8>]) -> io::Result<Vec<Sock>> {
        let mut rest = datagrams.iter();
        dump(|datagram| match rest.next() {
            Some(next) => {
                datagram.extend(next);
                Ok(())
            }
            None => Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
        })
    }

    fn message(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
        wire::request(kind, flags, SEQUENCE, payload)
    }

    #[test]
    fn an_error_at_the_end_is_an_error() {
        for kind in [NLMSG_DONE, NLMSG_ERROR] {
            let failed = message(kind, 2, &(-libc::ENOMEM).to_ne_bytes());
            let error = listed(&[failed]).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOMEM));
        }
    }

    #[test]
    fn only_a_list_that_is_read_to_its_end_is_a_list() {
        let socket = |flags| message(SOCK_DIAG_BY_FAMILY, flags, &[0; MESSAGE]);
        let done = |flags| message(NLMSG_DONE, flags, &[0; 4]);
        let list = listed(&[socket(2), socket(2), done(2)]);
        assert_eq!(list.unwrap().len(), 2);
        let interrupted = 2 | NLM_F_DUMP_INTR;
        for datagrams in [
            [socket(interrupted), done(2)],
            [socket(2), done(interrupted)],
        ] {
            let error = listed(&datagrams).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        }
        let overrun = message(NLMSG_OVERRUN, 2, &[0; 4]);
        for datagrams in [
            vec![],
            vec![socket(2)],
            vec![socket(2), overrun, done(2)],
            vec![socket(2), Vec::new()],
        ] {
            assert!(listed(&datagrams).is_err(), "{datagrams:?}");
        }
        let whole = [socket(2), done(2)].concat();
        for length in 1..whole.len() {
            assert!(
                listed(&[whole[..length].to_vec()]).is_err(),
                "{length} bytes"
            );
        }
    }

    #[test]
    fn a_look_up_without_an_answer_is_not_that_there_is_no_socket() {
        let refused = |code: i32| message(NLMSG_ERROR, 0, &code.to_ne_bytes());
        assert_eq!(one(&refused(-libc::ENOENT)).unwrap(), None);
        assert!(
            one(&message(SOCK_DIAG_BY_FAMILY, 0, &[0; MESSAGE]))
                .unwrap()
                .is_some()
        );
        for answer in [vec![], refused(0), refused(-libc::ENOMEM), vec![0; 5]] {
            assert!(one(&answer).is_err(), "{answer:?}");
        }
    }

    proptest! {
        #[test]
        fn any_datagram_is_read(bytes in prop::collection::vec(any::<u8>(), 0..300), length in 16_u32..200) {
            let _ = (one(&bytes), listed(std::slice::from_ref(&bytes)));
            let mut bytes = message(SOCK_DIAG_BY_FAMILY, 0, &bytes);
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            let _ = (one(&bytes), listed(&[bytes]));
        }
    }
}
