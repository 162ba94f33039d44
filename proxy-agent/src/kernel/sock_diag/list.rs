// SPDX-License-Identifier: Apache-2.0

//! TCP sockets of this network namespace with the cgroup of the process that made them
//! (`INET_DIAG_CGROUP_ID`, Linux 5.9): neither a process id nor the host's /proc is needed for it.

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{NLM_F_DUMP_INTR, NlasIterator};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as NetlinkAddress};

use super::{ALL_STATES, HEADER, NLM_F_REQUEST, NLMSG_ERROR, PORTS, REQUEST, STATES, request};

/// Of `linux/sock_diag.h` and `linux/netlink.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;
/// Length of `struct inet_diag_msg`, and where its parts stand.
const MESSAGE: usize = 72;
const LOCAL_PORT: usize = 4;
const REMOTE_PORT: usize = 6;
const LOCAL: usize = 8;
const REMOTE: usize = 24;
const COOKIE: usize = 44;
/// `INET_DIAG_CGROUP_ID`.
const CGROUP_ID: u16 = 21;
/// `INET_DIAG_REQ_BYTECODE`, and the condition `INET_DIAG_BC_CGROUP_COND` (Linux 5.9, as [`CGROUP_ID`]) with its length
/// (`struct inet_diag_bc_op` and the id) and the jump that refuses a socket: four bytes behind the end.
const BYTECODE: u16 = 1;
const CGROUP_CONDITION: u8 = 13;
const CONDITION: u8 = 12;
const REFUSE: u16 = 16;
/// States by their number, as bits: `TCP_LISTEN`, and those that are no connection (`TIME_WAIT`, `CLOSE`,
/// `LISTEN`, and `NEW_SYN_RECV`).
const LISTEN: u32 = 1 << 10;
const NO_CONNECTION: u32 = 1 << 6 | 1 << 7 | LISTEN | 1 << 12;
/// Room for one read: the kernel fills at most 32 KiB at a time.
const READ_SIZE: usize = 64 * 1024;
/// How often a list that changed while it was read is begun anew.
const ATTEMPTS: usize = 5;

/// A TCP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sock {
    /// Its own end; IPv4 in an IPv6 socket as IPv4.
    pub local: SocketAddr,
    /// The other end; unspecified of a listener.
    pub remote: SocketAddr,
    /// The id of the cgroup of the process that made it, as of then. None: the kernel does not tell.
    pub cgroup: Option<u64>,
    /// The number of this socket, which no other one ever has (`SO_COOKIE`).
    pub cookie: u64,
}

/// Lists the sockets that listen on a port, on whichever address.
///
/// # Errors
///
/// If the kernel does not answer completely.
pub fn listeners(port: u16) -> io::Result<Vec<Sock>> {
    list(|family| dump(family, LISTEN, port))
}

/// Lists the sockets that are connected, or connect, and were made in a cgroup, not below it: those that processes
/// have accepted there as well. The kernel selects them, so that others cost nothing but the walk.
///
/// # Errors
///
/// If the kernel does not answer completely, or cannot select by cgroup (before Linux 5.9).
pub fn connected_in(cgroup: u64) -> io::Result<Vec<Sock>> {
    let states = ALL_STATES & !NO_CONNECTION;
    list(|family| in_cgroup(dump(family, states, 0), cgroup))
}

/// The socket that takes new connections to an address: bound to it, or to the wildcard. Cheap: nothing is
/// listed.
///
/// # Errors
///
/// The kernel's answer, but that there is none.
pub fn listener(address: SocketAddr) -> io::Result<Option<Sock>> {
    let unspecified = match address {
        SocketAddr::V4(_) => IpAddr::from([0; 4]),
        SocketAddr::V6(_) => IpAddr::from([0; 16]),
    };
    let remote = SocketAddr::new(unspecified, 0);
    let message = request((SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST), address, remote, false);
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.send_to(&message, &NetlinkAddress::new(0, 0), 0)?;
    let mut answer = Vec::with_capacity(READ_SIZE);
    socket.recv(&mut answer, 0)?;
    one(&answer)
}

/// The socket in the answer to a look-up. Only the kernel's ENOENT says that there is none.
fn one(answer: &[u8]) -> io::Result<Option<Sock>> {
    let mut found = Vec::new();
    match read(answer, &mut found) {
        Ok(_) if found.is_empty() => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
        Ok(_) => Ok(found.pop()),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Of both families.
fn list(request: impl Fn(i32) -> Vec<u8>) -> io::Result<Vec<Sock>> {
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        found.extend(answers(&request(family))?);
    }
    Ok(found)
}

fn answers(request: &[u8]) -> io::Result<Vec<Sock>> {
    for _ in 0..ATTEMPTS {
        if let Some(found) = attempt(request)? {
            return Ok(found);
        }
    }
    Err(io::Error::other(
        "the list of sockets changed while it was read, again and again",
    ))
}

/// None: it was interrupted.
fn attempt(request: &[u8]) -> io::Result<Option<Vec<Sock>>> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.send_to(request, &NetlinkAddress::new(0, 0), 0)?;
    all(|datagram| socket.recv(datagram, 0).map(drop))
}

/// Reads datagrams to the end of the list. None: it was interrupted.
fn all(mut receive: impl FnMut(&mut Vec<u8>) -> io::Result<()>) -> io::Result<Option<Vec<Sock>>> {
    let mut found = Vec::new();
    let mut datagram = Vec::with_capacity(READ_SIZE);
    let mut is_complete = true;
    loop {
        datagram.clear();
        receive(&mut datagram)?;
        if datagram.is_empty() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        let progress = read(&datagram, &mut found)?;
        is_complete &= !progress.interrupted;
        if progress.done {
            return Ok(is_complete.then_some(found));
        }
    }
}

/// The request for a list of the sockets in these states with this port of their own, 0: with any.
fn dump(family: i32, states: u32, port: u16) -> Vec<u8> {
    let mut message = vec![0; HEADER + REQUEST];
    set_length(&mut message);
    message[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    message[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    message[8..12].copy_from_slice(&1_u32.to_ne_bytes());
    let request = &mut message[HEADER..];
    request[0] = u8::try_from(family).expect("the two families are 2 and 10");
    request[1] = u8::try_from(libc::IPPROTO_TCP).expect("it is 6");
    request[STATES..STATES + 4].copy_from_slice(&states.to_ne_bytes());
    request[PORTS..PORTS + 2].copy_from_slice(&port.to_be_bytes());
    message
}

/// The same request for those of a cgroup only.
fn in_cgroup(mut message: Vec<u8>, cgroup: u64) -> Vec<u8> {
    let attribute = 4 + u16::from(CONDITION);
    message.extend(attribute.to_ne_bytes());
    message.extend(BYTECODE.to_ne_bytes());
    message.extend([CGROUP_CONDITION, CONDITION]);
    message.extend(REFUSE.to_ne_bytes());
    message.extend(cgroup.to_ne_bytes());
    set_length(&mut message);
    message
}

fn set_length(message: &mut [u8]) {
    let length = u32::try_from(message.len()).expect("a request is 88 bytes long at most");
    message[..4].copy_from_slice(&length.to_ne_bytes());
}

/// What one read told about the list as a whole.
#[derive(Debug, Default, PartialEq, Eq)]
struct Progress {
    done: bool,
    interrupted: bool,
}

/// Takes the messages of a datagram apart.
fn read(datagram: &[u8], found: &mut Vec<Sock>) -> io::Result<Progress> {
    let mut progress = Progress::default();
    let mut rest = datagram;
    while !rest.is_empty() {
        let malformed = || io::Error::from(io::ErrorKind::InvalidData);
        let length = rest.first_chunk().ok_or_else(malformed)?;
        let length = usize::try_from(u32::from_ne_bytes(*length)).map_err(io::Error::other)?;
        let message = rest.get(..length).filter(|message| message.len() >= HEADER);
        let message = message.ok_or_else(malformed)?;
        let field = |at: usize| u16::from_ne_bytes([message[at], message[at + 1]]);
        progress.interrupted |= field(6) & NLM_F_DUMP_INTR != 0;
        match field(4) {
            NLMSG_OVERRUN => return Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
            SOCK_DIAG_BY_FAMILY => found.push(sock(&message[HEADER..]).ok_or_else(malformed)?),
            kind @ (NLMSG_DONE | NLMSG_ERROR) => {
                let code = message[HEADER..].first_chunk();
                let code = code.map_or(0, |code| i32::from_ne_bytes(*code));
                if code != 0 {
                    return Err(io::Error::from_raw_os_error(code.saturating_abs()));
                }
                progress.done |= kind == NLMSG_DONE;
            }
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(progress)
}

/// The socket of a message, without its header.
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
        cgroup,
        cookie: u64::from_ne_bytes(*body[COOKIE..].first_chunk()?),
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use proptest::prelude::*;

    use super::*;

    /// On this kernel, with the cgroup of this process.
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

    #[test]
    fn an_error_at_the_end_is_an_error() {
        let last = |kind: u16, code: i32| {
            let mut message = vec![20, 0, 0, 0];
            message.extend(kind.to_ne_bytes());
            message.extend([0; 10]);
            message.extend(code.to_ne_bytes());
            read(&message, &mut Vec::new())
        };
        assert!(last(NLMSG_DONE, 0).unwrap().done);
        for kind in [NLMSG_DONE, NLMSG_ERROR] {
            let error = last(kind, -libc::ENOMEM).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOMEM));
        }
    }

    /// The list that these datagrams make; behind them the socket fails.
    fn listed(datagrams: &[Vec<u8>]) -> io::Result<Option<Vec<Sock>>> {
        let mut rest = datagrams.iter();
        all(|datagram| match rest.next() {
            Some(next) => {
                datagram.extend(next);
                Ok(())
            }
            None => Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
        })
    }

    fn message(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER + payload.len()).unwrap();
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.resize(HEADER, 0);
        message.extend(payload);
        message
    }

    #[test]
    fn only_a_list_that_is_read_to_its_end_is_a_list() {
        let socket = |flags| message(SOCK_DIAG_BY_FAMILY, flags, &[0; MESSAGE]);
        let done = |flags| message(NLMSG_DONE, flags, &[0; 4]);
        let count = |list: io::Result<Option<Vec<Sock>>>| list.unwrap().map(|list| list.len());
        assert_eq!(count(listed(&[socket(2), socket(2), done(2)])), Some(2));
        let interrupted = 2 | NLM_F_DUMP_INTR;
        for datagrams in [
            [socket(interrupted), done(2)],
            [socket(2), done(interrupted)],
        ] {
            assert_eq!(count(listed(&datagrams)), None);
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
            let _ = read(&bytes, &mut Vec::new());
            let mut bytes = [vec![0; 16], bytes].concat();
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            bytes[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
            let _ = read(&bytes, &mut Vec::new());
        }
    }
}
