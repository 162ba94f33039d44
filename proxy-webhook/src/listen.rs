// SPDX-License-Identifier: Apache-2.0

//! Listening sockets.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener, ToSocketAddrs as _};

use anyhow::{Context as _, Result, anyhow};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use crate::cli::Bind;

/// Connections that the kernel holds until they are accepted.
const BACKLOG: i32 = 1024;

/// What `--host` and `--port` say.
///
/// # Errors
/// The host is no address, and no name that can be resolved.
pub fn bind_of(host: &str, port: u16) -> Result<Bind> {
    if host.is_empty() {
        return Ok(Bind::Every(port));
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(Bind::One(SocketAddr::new(address, port)));
    }
    (host, port)
        .to_socket_addrs()
        .with_context(|| {
            format!(
                "--host={host} is no address and cannot be resolved; give one of this machine's"
            )
        })?
        .next()
        .map(Bind::One)
        .ok_or_else(|| anyhow!("--host={host} has no address; give one of this machine's"))
}

/// Listens, from within a runtime.
///
/// # Errors
/// The kernel refuses it.
pub fn listen(bind: Bind, flag: &str) -> Result<TcpListener> {
    let candidates = bind.candidates();
    let (last, others) = candidates.split_last().context("no address to listen on")?;
    for address in others {
        match try_listen(*address) {
            // A kernel without IPv6.
            Err(error) if lacks_family(&error) => {}
            other => return other.with_context(|| refusal(*address, flag)),
        }
    }
    try_listen(*last).with_context(|| refusal(*last, flag))
}

fn refusal(address: SocketAddr, flag: &str) -> String {
    format!("cannot listen on {address}; {flag} chooses another address or port")
}

fn lacks_family(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
}

fn try_listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_nonblocking(true)?;
    // Connections of a predecessor in TIME_WAIT are not in the way.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // `[::]` means IPv4 as well, whatever the machine's default is.
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(StdListener::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        assert_eq!(bind_of("", 1).unwrap(), Bind::Every(1));
        let one = |text: &str| Bind::One(text.parse().unwrap());
        assert_eq!(bind_of("127.0.0.1", 1).unwrap(), one("127.0.0.1:1"));
        assert_eq!(bind_of("::1", 2).unwrap(), one("[::1]:2"));
        let error = format!("{:#}", bind_of("no host", 1).unwrap_err());
        assert!(error.contains("--host=no host"), "{error}");
    }
}
