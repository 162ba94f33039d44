// SPDX-License-Identifier: Apache-2.0

//! Sends SYNs from client ports without sockets, as a scanner or an attacker does: the sender's own kernel has no such
//! connection.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};

use crate::netns::Netns;

const SYN: u8 = 0x02;
const TCP_HEADER: usize = 20;
/// The first of these ports: they are below those that the kernel assigns to clients.
const FIRST_PORT: usize = 1024;
const PORTS: usize = 30_000;

/// Sends `count` SYNs from `source` to `to`, each from the next of 30,000 ports.
///
/// # Errors
/// Returns an error if the kernel refuses the socket or a packet.
pub fn syns(netns: &Netns, source: IpAddr, to: SocketAddr, count: usize) -> Result<()> {
    netns.run(|| {
        let socket = raw_socket(to).context("opening a raw socket")?;
        for n in 0..count {
            let port = u16::try_from(FIRST_PORT + n % PORTS)?;
            let sequence = u32::try_from(n)?.wrapping_mul(2_654_435_761);
            let segment = syn(source, port, to, sequence);
            send(&socket, to, &segment).with_context(|| format!("sending SYN {n}"))?;
        }
        Ok(())
    })
}

/// Opens a raw socket for which the kernel writes the IP header.
fn raw_socket(to: SocketAddr) -> io::Result<OwnedFd> {
    let family = if to.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    // SAFETY: no pointer is passed.
    let fd = unsafe {
        libc::socket(
            family,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::IPPROTO_TCP,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn send(socket: &OwnedFd, to: SocketAddr, segment: &[u8]) -> io::Result<()> {
    // SAFETY: the structures consist of integers, for which zeros are valid.
    let (mut v4, mut v6): (libc::sockaddr_in, libc::sockaddr_in6) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    let (address, length) = match to.ip() {
        IpAddr::V4(ip) => {
            v4.sin_family = libc::sa_family_t::try_from(libc::AF_INET).expect("it is 2");
            v4.sin_addr.s_addr = u32::from_ne_bytes(ip.octets());
            ((&raw const v4).cast::<libc::sockaddr>(), size_of_val(&v4))
        }
        IpAddr::V6(ip) => {
            v6.sin6_family = libc::sa_family_t::try_from(libc::AF_INET6).expect("it is 10");
            v6.sin6_addr.s6_addr = ip.octets();
            ((&raw const v6).cast::<libc::sockaddr>(), size_of_val(&v6))
        }
    };
    let length = libc::socklen_t::try_from(length).expect("a few bytes");
    loop {
        // SAFETY: both pointers are to as many initialised bytes as the lengths say.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                segment.as_ptr().cast(),
                segment.len(),
                0,
                address,
                length,
            )
        };
        if sent >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ENOBUFS) {
            return Err(error);
        }
    }
}

fn syn(source: IpAddr, port: u16, to: SocketAddr, sequence: u32) -> Vec<u8> {
    let mut segment = Vec::with_capacity(TCP_HEADER);
    segment.extend(port.to_be_bytes());
    segment.extend(to.port().to_be_bytes());
    segment.extend(sequence.to_be_bytes());
    segment.extend([0; 4]);
    // Length of the header in words, flags, window, checksum, urgent pointer.
    segment.extend([0x50, SYN, 0xff, 0xff, 0, 0, 0, 0]);
    let sum = checksum(source, to.ip(), &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// Returns the checksum of RFC 9293 §3.1, with the pseudo header of either family.
fn checksum(source: IpAddr, to: IpAddr, segment: &[u8]) -> u16 {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let length = u16::try_from(segment.len()).expect("a header");
    let pseudo = [
        octets(source),
        octets(to),
        vec![0, 6],
        length.to_be_bytes().to_vec(),
    ]
    .concat();
    let words = pseudo.chunks(2).chain(segment.chunks(2));
    let sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !u16::try_from(folded).expect("folded twice")
}
