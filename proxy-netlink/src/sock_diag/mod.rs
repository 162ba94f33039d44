// SPDX-License-Identifier: Apache-2.0

//! TCP sockets of this network namespace (`linux/sock_diag.h`): terminates their connections from outside of their
//! process (`SOCK_DESTROY`, Linux 4.5 with `CONFIG_INET_DIAG_DESTROY`), so that the peer receives an RST and the
//! process an error. `list.rs` reads lists.

pub mod list;

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{DecodeError, NLM_F_ACK, NLM_F_REQUEST};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as KernelAddress};

use crate::answer::Answer;
use crate::wire::{self, Message};

/// A value from `linux/sock_diag.h`.
const SOCK_DESTROY: u16 = 21;
/// The length of `struct inet_diag_req_v2`.
const REQUEST: usize = 56;
/// The offsets of its fields: family, protocol, states, then `struct inet_diag_sockid`.
const STATES: usize = 4;
const PORTS: usize = 8;
const LOCAL: usize = 12;
const REMOTE: usize = 28;
const COOKIE: usize = 48;
/// Every TCP state.
const ALL_STATES: u32 = u32::MAX;
/// The size of the buffer for one read: the kernel sends at most 32 KiB at a time.
const READ_SIZE: usize = 64 * 1024;
/// The sequence number of the only request on each socket.
const SEQUENCE: u32 = 1;

/// Terminates the connection between two endpoints. A connection that has already ended is not an error.
///
/// # Errors
///
/// Returns the kernel's error.
pub fn destroy(local: SocketAddr, remote: SocketAddr) -> io::Result<()> {
    let is_absent = |result: &io::Result<()>| matches!(result, Err(error) if error.raw_os_error() == Some(libc::ENOENT));
    let mut result = destroy_in_family(local, remote, false);
    if is_absent(&result) && local.is_ipv4() {
        // An IPv6 socket may carry IPv4, and the kernel finds it only under its own family.
        result = destroy_in_family(local, remote, true);
    }
    if is_absent(&result) { Ok(()) } else { result }
}

fn destroy_in_family(local: SocketAddr, remote: SocketAddr, mapped: bool) -> io::Result<()> {
    let body = body(local, remote, mapped);
    let message = wire::request(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, SEQUENCE, &body);
    read(&message, Answer::to(SEQUENCE), |_| Ok(()))
}

/// Sends a request on a new socket and reads the response until its end.
fn read(
    request: &[u8],
    answer: Answer,
    each: impl FnMut(Message<'_>) -> Result<(), DecodeError>,
) -> io::Result<()> {
    let socket = send(request)?;
    read_all(|datagram| socket.recv(datagram, 0).map(drop), answer, each)
}

fn send(request: &[u8]) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    // Only the kernel can send to a connected netlink socket.
    socket.connect(&KernelAddress::new(0, 0))?;
    socket.send(request, 0)?;
    Ok(socket)
}

/// Reads datagrams until the response ends.
fn read_all(
    mut receive: impl FnMut(&mut Vec<u8>) -> io::Result<()>,
    mut answer: Answer,
    mut each: impl FnMut(Message<'_>) -> Result<(), DecodeError>,
) -> io::Result<()> {
    let mut datagram = Vec::with_capacity(READ_SIZE);
    while !answer.has_ended() {
        datagram.clear();
        receive(&mut datagram)?;
        if datagram.is_empty() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        answer.read(&datagram, &mut each).map_err(malformed)?;
    }
    Ok(answer.end()?)
}

fn malformed(error: DecodeError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Returns `struct inet_diag_req_v2` for the socket with these ends, with the family IPv6 if they are `mapped`.
fn body(local: SocketAddr, remote: SocketAddr, mapped: bool) -> [u8; REQUEST] {
    let is_ipv6 = local.is_ipv6() || mapped;
    let family = if is_ipv6 {
        libc::AF_INET6
    } else {
        libc::AF_INET
    };
    let mut body = header(family, ALL_STATES, local.port());
    body[PORTS + 2..PORTS + 4].copy_from_slice(&remote.port().to_be_bytes());
    for (at, end) in [(LOCAL, local), (REMOTE, remote)] {
        let octets = match (end.ip(), mapped) {
            (IpAddr::V4(ip), false) => ip.octets().to_vec(),
            (IpAddr::V4(ip), true) => ip.to_ipv6_mapped().octets().to_vec(),
            (IpAddr::V6(ip), _) => ip.octets().to_vec(),
        };
        body[at..at + octets.len()].copy_from_slice(&octets);
    }
    // `INET_DIAG_NOCOOKIE`: the ends alone identify the socket.
    body[COOKIE..COOKIE + 8].fill(0xff);
    body
}

/// Returns `struct inet_diag_req_v2` for the sockets in these states with this local port; 0 means any port.
fn header(family: libc::c_int, states: u32, port: u16) -> [u8; REQUEST] {
    let mut body = [0; REQUEST];
    body[0] = u8::try_from(family).expect("the two families are 2 and 10");
    body[1] = u8::try_from(libc::IPPROTO_TCP).expect("it is 6");
    body[STATES..STATES + 4].copy_from_slice(&states.to_ne_bytes());
    body[PORTS..PORTS + 2].copy_from_slice(&port.to_be_bytes());
    body
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Needs `CAP_NET_ADMIN`, which the tests have.
    #[test]
    fn a_connection_is_reset_and_one_that_is_gone_is_no_error() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let (local, remote) = (server.local_addr().unwrap(), server.peer_addr().unwrap());
        destroy(local, remote).unwrap();
        let error = client.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        destroy(local, remote).unwrap();
    }
}
