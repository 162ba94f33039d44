// SPDX-License-Identifier: Apache-2.0

//! TCP clients for which the test chooses the source port and the way to close the connection.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::{Range, RangeInclusive};
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use crate::netns::Netns;
use crate::slow_machine;

/// The way in which a connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// In order, with FIN.
    Fin,
    /// With RST, as a killed process with unread data does.
    Rst,
}

/// Client ports that no recent connection of this process has used: they are below those that the kernel and individual
/// tests choose.
const PORTS: Range<u16> = 10_000..20_000;

/// The maximum time to wait for the other end's data.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// A time-out that is shorter than the retransmission time of a SYN.
pub const ONE_SYN: Duration = Duration::from_millis(400);

/// Returns the possible numbers of SYNs within [`ONE_SYN`]: on a slow machine that time is longer.
#[must_use]
pub fn syns() -> RangeInclusive<u64> {
    1..=u64::from(slow_machine::factor())
}

/// Connects from a namespace, from a port that is used for this connection only.
///
/// The kernel occasionally uses one port for two destinations, whose connections are then hard to distinguish;
/// `one_port.rs` and `port_reuse.rs` do that on purpose.
///
/// # Errors
/// Returns the errors of connect(2), and `TimedOut` after `timeout`.
pub fn connect(netns: &Netns, to: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let any: IpAddr = if to.is_ipv6() {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    };
    for _ in PORTS {
        let port = PORTS.start + NEXT.fetch_add(1, Ordering::Relaxed) % (PORTS.end - PORTS.start);
        match connect_from(netns, Some(SocketAddr::new(any, port)), to, timeout) {
            // The counter has wrapped around to a port that still has a connection to `to`.
            Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {}
            result => return result,
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

/// Works like [`connect_from`], from the namespace of the calling thread, see [`Netns::run`].
///
/// # Errors
/// Returns the same errors as [`connect_from`].
pub fn connect_here(
    from: Option<SocketAddr>,
    to: SocketAddr,
    timeout: Duration,
) -> io::Result<TcpStream> {
    finish_connect(socket(to.is_ipv6())?, from, to, timeout)
}

/// Connects from a namespace and from a given address and port, even if that is in `TIME_WAIT` with another peer.
///
/// # Errors
/// Returns the errors of connect(2), and `TimedOut` after `timeout`.
pub fn connect_from(
    netns: &Netns,
    from: Option<SocketAddr>,
    to: SocketAddr,
    timeout: Duration,
) -> io::Result<TcpStream> {
    let socket = netns.run(|| socket(to.is_ipv6()))?;
    finish_connect(socket, from, to, timeout)
}

/// Connects from a namespace with a socket that is bound to a link (`SO_BINDTODEVICE`).
///
/// # Errors
/// Returns the errors of setsockopt(2) and connect(2), and `TimedOut` after `timeout`.
pub fn connect_by(
    netns: &Netns,
    link: &str,
    to: SocketAddr,
    timeout: Duration,
) -> io::Result<TcpStream> {
    let socket = netns.run(|| -> io::Result<OwnedFd> {
        let socket = socket(to.is_ipv6())?;
        let length = libc::socklen_t::try_from(link.len()).map_err(io::Error::other)?;
        // SAFETY: the name is valid for the length that is passed with it.
        check(unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_BINDTODEVICE,
                link.as_ptr().cast(),
                length,
            )
        })?;
        Ok(socket)
    })?;
    finish_connect(socket, None, to, timeout)
}

/// Connects from a namespace with an MPTCP socket.
///
/// # Errors
/// Returns the errors of socket(2), if the kernel has no MPTCP, and of connect(2), and `TimedOut` after `timeout`.
pub fn connect_mptcp(netns: &Netns, to: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let socket = netns.run(|| socket_of(to.is_ipv6(), libc::IPPROTO_MPTCP))?;
    finish_connect(socket, None, to, timeout)
}

/// Connects from a namespace with TCP Fast Open: the first bytes that are written are sent with the SYN if the kernel
/// has a cookie of the server; otherwise it requests one. Both ends need TCP Fast Open in `net.ipv4.tcp_fastopen`.
///
/// # Errors
/// Returns the errors of setsockopt(2) and connect(2), and `TimedOut` after `timeout`.
pub fn connect_fast(netns: &Netns, to: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let socket = netns.run(|| socket(to.is_ipv6()))?;
    set_option(&socket, libc::SOL_TCP, libc::TCP_FASTOPEN_CONNECT, &1_i32)?;
    finish_connect(socket, None, to, timeout)
}

/// Makes a listener accept data in the SYN.
///
/// # Errors
/// Returns the errors of setsockopt(2).
pub fn take_fast(listener: &TcpListener) -> io::Result<()> {
    set_option(listener, libc::SOL_TCP, libc::TCP_FASTOPEN, &16_i32)
}

fn finish_connect(
    socket: OwnedFd,
    from: Option<SocketAddr>,
    to: SocketAddr,
    timeout: Duration,
) -> io::Result<TcpStream> {
    if let Some(from) = from {
        set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, &1_i32)?;
        with_sockaddr(from, |address, len| {
            // SAFETY: the address is valid for the length that is passed with it.
            check(unsafe { libc::bind(socket.as_raw_fd(), address, len) })
        })?;
    }
    let connecting = with_sockaddr(to, |address, len| {
        // SAFETY: as above.
        check(unsafe { libc::connect(socket.as_raw_fd(), address, len) })
    });
    if let Err(error) = connecting
        && error.raw_os_error() != Some(libc::EINPROGRESS)
    {
        return Err(error);
    }
    wait_for_end(&socket, slow_machine::of(timeout))?;
    let stream = TcpStream::from(socket);
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    stream.set_nonblocking(false)?;
    let answer = Some(slow_machine::of(ANSWER_TIMEOUT));
    stream.set_read_timeout(answer)?;
    stream.set_write_timeout(answer)?;
    Ok(stream)
}

/// Closes a connection, at once even if a process that is being started still has a copy of the descriptor.
///
/// # Errors
/// Returns the errors of shutdown(2) and connect(2).
pub fn close(stream: &TcpStream, how: Close) -> io::Result<()> {
    match how {
        Close::Fin => stream.shutdown(Shutdown::Both),
        Close::Rst => {
            // SAFETY: the structure consists of integers, for which zero is a valid value.
            let mut unspecified: libc::sockaddr = unsafe { std::mem::zeroed() };
            unspecified.sa_family = family(libc::AF_UNSPEC);
            let len = socklen::<libc::sockaddr>();
            // SAFETY: the address is valid for its length.
            check(unsafe { libc::connect(stream.as_raw_fd(), &raw const unspecified, len) })
        }
    }
}

fn socket(v6: bool) -> io::Result<OwnedFd> {
    socket_of(v6, 0)
}

fn socket_of(v6: bool, protocol: i32) -> io::Result<OwnedFd> {
    let domain = if v6 { libc::AF_INET6 } else { libc::AF_INET };
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket has no memory effects.
    let fd = unsafe { libc::socket(domain, libc::SOCK_STREAM | flags, protocol) };
    check(fd)?;
    // SAFETY: the descriptor is new and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Waits until the connection is established or has failed.
fn wait_for_end(socket: &OwnedFd, timeout: Duration) -> io::Result<()> {
    let end = Instant::now() + timeout;
    loop {
        let left = end.saturating_duration_since(Instant::now()).as_millis();
        let mut waiting = libc::pollfd {
            fd: socket.as_raw_fd(),
            events: libc::POLLOUT,
            revents: 0,
        };
        let left = i32::try_from(left).unwrap_or(i32::MAX);
        // SAFETY: one structure is passed, and it is valid for the call.
        match check(unsafe { libc::poll(&raw mut waiting, 1, left) }) {
            Ok(()) if waiting.revents != 0 => return Ok(()),
            Ok(()) if Instant::now() >= end => return Err(io::ErrorKind::TimedOut.into()),
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
    }
}

fn set_option<T>(socket: &impl AsRawFd, level: i32, option: i32, value: &T) -> io::Result<()> {
    let len = socklen::<T>();
    // SAFETY: the value is valid for its own size.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            len,
        )
    })
}

fn with_sockaddr<T>(
    address: SocketAddr,
    call: impl FnOnce(*const libc::sockaddr, libc::socklen_t) -> T,
) -> T {
    match address {
        SocketAddr::V4(v4) => {
            let raw = libc::sockaddr_in {
                sin_family: family(libc::AF_INET),
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from(*v4.ip()).to_be(),
                },
                sin_zero: [0; 8],
            };
            call((&raw const raw).cast(), socklen::<libc::sockaddr_in>())
        }
        SocketAddr::V6(v6) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: family(libc::AF_INET6),
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr {
                    s6_addr: v6.ip().octets(),
                },
                sin6_scope_id: v6.scope_id(),
            };
            call((&raw const raw).cast(), socklen::<libc::sockaddr_in6>())
        }
    }
}

fn family(number: i32) -> libc::sa_family_t {
    libc::sa_family_t::try_from(number).expect("address families are small")
}

fn socklen<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).expect("socket structures are small")
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
