// SPDX-License-Identifier: Apache-2.0

//! The network namespace of this process.

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use tracing::debug;

use crate::bpf;

/// `SO_NETNS_COOKIE` of asm-generic/socket.h (Linux 5.14).
const SO_NETNS_COOKIE: libc::c_int = 71;
/// `SO_COOKIE` of asm-generic/socket.h (Linux 4.12): the cookie of the socket itself.
const SO_COOKIE: libc::c_int = 57;
/// The port of the discard service, to which no packet is sent.
const DISCARD: u16 = 9;

/// Moves the current thread into a new network namespace, which is removed when it is no longer used.
///
/// # Errors
///
/// Returns `EPERM` without `CAP_SYS_ADMIN`.
pub fn enter_new() -> io::Result<()> {
    // SAFETY: the call uses no pointers.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Returns the cookie by which eBPF programs identify this network namespace. Returns zero, which stands for the
/// initial namespace, if the kernel does not report the cookie.
///
/// Before Linux 5.14 only programs can read it: one of them is attached briefly to `cgroup`, the root of the cgroup2
/// hierarchy.
pub fn cookie(cgroup: Option<&Path>) -> u64 {
    match by_option() {
        Ok(cookie) => cookie,
        Err(refused) => cgroup
            .map_or(Err(refused), by_program)
            .inspect_err(|error| debug!(%error, "no cookie of this network namespace"))
            .unwrap_or(0),
    }
}

fn by_option() -> io::Result<u64> {
    option(&UnixDatagram::unbound()?, SO_NETNS_COOKIE)
}

fn by_program(cgroup: &Path) -> io::Result<u64> {
    let cgroup = File::open(cgroup)?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let connect = || {
        // This call sends nothing. A missing route does not matter, because the program runs before the look-up.
        let _ = socket.connect((Ipv4Addr::LOCALHOST, DISCARD));
    };
    let cookie = option(&socket, SO_COOKIE)?;
    bpf::netns_cookie(cgroup.as_fd(), cookie, connect)?
        .ok_or_else(|| io::Error::other("this process is not in the cgroup"))
}

/// Reads a socket option that is a cookie.
fn option(socket: &impl AsRawFd, name: libc::c_int) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?;
    // SAFETY: `cookie` has space for `length` bytes.
    let refused = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if refused == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}
