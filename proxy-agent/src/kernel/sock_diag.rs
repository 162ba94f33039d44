// SPDX-License-Identifier: Apache-2.0

//! Ends TCP connections of this network namespace from outside of their process (`SOCK_DESTROY`, Linux 4.5
//! with `CONFIG_INET_DIAG_DESTROY`): the peer gets a RST, the process an error. Lists them in `list.rs`.

pub mod list;

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr as NetlinkAddress};

/// Of `linux/sock_diag.h` and `linux/netlink.h`.
const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
/// Length of `struct nlmsghdr` and of `struct inet_diag_req_v2`.
const HEADER: usize = 16;
const REQUEST: usize = 56;
/// Where its parts stand: family, protocol, states, then `struct inet_diag_sockid`.
const STATES: usize = 4;
const PORTS: usize = 8;
const LOCAL: usize = 12;
const REMOTE: usize = 28;
const COOKIE: usize = 48;
/// Every TCP state.
const ALL_STATES: u32 = u32::MAX;

/// Ends the connection between two endpoints. One that has ended already is no error.
///
/// # Errors
///
/// The kernel's answer.
pub fn destroy(local: SocketAddr, remote: SocketAddr) -> io::Result<()> {
    // A socket of IPv6 may carry IPv4, and is found under its own family only.
    match ask(local, remote, false) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) && local.is_ipv4() => {
            match ask(local, remote, true) {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
                answer => answer,
            }
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        answer => answer,
    }
}

fn ask(local: SocketAddr, remote: SocketAddr, mapped: bool) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    let kind = (SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK);
    let message = request(kind, local, remote, mapped);
    socket.send_to(&message, &NetlinkAddress::new(0, 0), 0)?;
    let mut answer = Vec::with_capacity(4096);
    socket.recv(&mut answer, 0)?;
    code(&answer)
}

/// A request of a kind and with flags about the socket with these ends.
fn request(
    (kind, flags): (u16, u16),
    local: SocketAddr,
    remote: SocketAddr,
    mapped: bool,
) -> Vec<u8> {
    let mut message = vec![0; HEADER + REQUEST];
    let length = u32::try_from(message.len()).expect("a request is 72 bytes long");
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
    message[6..8].copy_from_slice(&flags.to_ne_bytes());
    message[8..12].copy_from_slice(&1_u32.to_ne_bytes());
    let request = &mut message[HEADER..];
    let is_ipv6 = local.is_ipv6() || mapped;
    let family = if is_ipv6 {
        libc::AF_INET6
    } else {
        libc::AF_INET
    };
    request[0] = u8::try_from(family).expect("the two families are 2 and 10");
    request[1] = u8::try_from(libc::IPPROTO_TCP).expect("it is 6");
    request[STATES..STATES + 4].copy_from_slice(&ALL_STATES.to_ne_bytes());
    request[PORTS..PORTS + 2].copy_from_slice(&local.port().to_be_bytes());
    request[PORTS + 2..PORTS + 4].copy_from_slice(&remote.port().to_be_bytes());
    for (at, end) in [(LOCAL, local), (REMOTE, remote)] {
        let octets = match (end.ip(), mapped) {
            (IpAddr::V4(ip), false) => ip.octets().to_vec(),
            (IpAddr::V4(ip), true) => ip.to_ipv6_mapped().octets().to_vec(),
            (IpAddr::V6(ip), _) => ip.octets().to_vec(),
        };
        request[at..at + octets.len()].copy_from_slice(&octets);
    }
    // `INET_DIAG_NOCOOKIE`: whichever socket has these ends.
    request[COOKIE..COOKIE + 8].fill(0xff);
    message
}

/// The error code of an acknowledgement.
fn code(answer: &[u8]) -> io::Result<()> {
    let kind = answer.get(4..6).and_then(<[u8]>::first_chunk::<2>);
    let code = answer.get(HEADER..).and_then(<[u8]>::first_chunk::<4>);
    let (Some(kind), Some(code)) = (kind, code) else {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
    };
    if u16::from_ne_bytes(*kind) != NLMSG_ERROR {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    match i32::from_ne_bytes(*code) {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn code_of(bytes: &[u8]) -> Option<i32> {
        let error = code(bytes).err()?;
        Some(error.raw_os_error().unwrap_or(0))
    }

    #[test]
    fn acknowledgements_are_read() {
        let answer = |kind: u16, number: i32| {
            let mut bytes = vec![0; HEADER];
            bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
            bytes.extend(number.to_ne_bytes());
            code_of(&bytes)
        };
        assert_eq!(answer(NLMSG_ERROR, 0), None);
        assert_eq!(answer(NLMSG_ERROR, -libc::ENOENT), Some(libc::ENOENT));
        assert_eq!(answer(3, 0), Some(0));
        assert_eq!(code_of(&[0; 18]), Some(0));
    }

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
