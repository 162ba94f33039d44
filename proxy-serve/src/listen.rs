// SPDX-License-Identifier: Apache-2.0

//! Listening TCP sockets. [`unix`] contains Unix sockets, [`accept`] the acceptance of connections.

pub mod accept;
pub mod unix;

use std::io;
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener, ToSocketAddrs as _,
};

use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use tokio::net::TcpListener;

/// The number of connections that the kernel queues until they are accepted.
const BACKLOG: i32 = 1024;

/// An address to listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bind {
    /// All addresses, IPv6 and IPv4.
    Every(u16),
    /// One address.
    One(SocketAddr),
}

/// The reason why a program cannot listen.
#[derive(Debug, Error)]
pub enum ListenError {
    /// The host is a name that cannot be resolved.
    #[error("{flag}={host} is no address and cannot be resolved; give one of this machine's")]
    Resolve {
        /// The flag that specifies the host.
        flag: &'static str,
        /// The host.
        host: String,
        /// The resolver's error.
        #[source]
        source: io::Error,
    },
    /// The host is a name without addresses.
    #[error("{flag}={host} has no address; give one of this machine's")]
    NoAddress {
        /// The flag that specifies the host.
        flag: &'static str,
        /// The host.
        host: String,
    },
    /// The kernel rejected the address.
    #[error("cannot listen on {address}; {flag} chooses another address or port")]
    Refused {
        /// The address.
        address: SocketAddr,
        /// The flag that specifies the address.
        flag: &'static str,
        /// The error that the kernel returned.
        #[source]
        source: io::Error,
    },
}

impl Bind {
    /// Parses a host, which may be a name, and a port. `flag` specifies the host, another flag the port. An empty host
    /// means all addresses. An IPv6 address is written without brackets.
    ///
    /// # Errors
    /// Returns an error if the host is neither an address nor a name that can be resolved.
    pub fn parse(flag: &'static str, host: &str, port: u16) -> Result<Self, ListenError> {
        if host.is_empty() {
            return Ok(Self::Every(port));
        }
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(Self::One(SocketAddr::new(address, port)));
        }
        let host = host.to_owned();
        match (host.as_str(), port).to_socket_addrs() {
            Ok(mut addresses) => addresses
                .next()
                .map(Self::One)
                .ok_or(ListenError::NoAddress { flag, host }),
            Err(source) => Err(ListenError::Resolve { flag, host, source }),
        }
    }

    /// Returns the same host with another port.
    #[must_use]
    pub const fn with_port(self, port: u16) -> Self {
        match self {
            Self::Every(_) => Self::Every(port),
            Self::One(address) => Self::One(SocketAddr::new(address.ip(), port)),
        }
    }

    /// Returns the port.
    #[must_use]
    pub const fn port(self) -> u16 {
        match self {
            Self::Every(port) => port,
            Self::One(address) => address.port(),
        }
    }

    /// Returns the socket addresses to try. The second one is for kernels without the address family of the first.
    #[must_use]
    pub fn candidates(self) -> Vec<SocketAddr> {
        match self {
            Self::Every(port) => [
                IpAddr::V6(Ipv6Addr::UNSPECIFIED),
                IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            ]
            .map(|address| SocketAddr::new(address, port))
            .to_vec(),
            Self::One(address) => vec![address],
        }
    }

    /// Opens a listening socket. Errors contain `flag`. The socket is non-blocking; [`tcp`] converts it to a listener
    /// of tokio.
    ///
    /// # Errors
    /// Returns an error if the kernel rejects the address.
    ///
    /// # Panics
    /// Never: there is always a candidate.
    pub fn listen(self, flag: &'static str) -> Result<StdListener, ListenError> {
        let candidates = self.candidates();
        let (last, others) = candidates.split_last().expect("there is a candidate");
        let refused = |address, source| ListenError::Refused {
            address,
            flag,
            source,
        };
        for address in others {
            match try_listen(*address) {
                // The kernel has no IPv6, so the next candidate is tried.
                Err(error) if lacks_family(&error) => {}
                other => return other.map_err(|source| refused(*address, source)),
            }
        }
        try_listen(*last).map_err(|source| refused(*last, source))
    }
}

/// Opens a listening socket of tokio. Must be called within a runtime.
///
/// # Errors
/// Returns an error if the kernel rejects the address.
pub fn tcp(bind: Bind, flag: &'static str) -> Result<TcpListener, ListenError> {
    let listener = bind.listen(flag)?;
    let address = listener.local_addr();
    TcpListener::from_std(listener).map_err(|source| ListenError::Refused {
        address: address.unwrap_or_else(|_| bind.candidates()[0]),
        flag,
        source,
    })
}

fn lacks_family(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
}

fn try_listen(address: SocketAddr) -> io::Result<StdListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_nonblocking(true)?;
    // Connections of a previous process in TIME_WAIT must not block the address.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // `[::]` includes IPv4, regardless of the system's default.
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn hosts() {
        let parse = |host, port| Bind::parse("--host", host, port);
        assert_eq!(parse("", 1).unwrap(), Bind::Every(1));
        let one = |text: &str| Bind::One(text.parse().unwrap());
        assert_eq!(parse("127.0.0.1", 1).unwrap(), one("127.0.0.1:1"));
        assert_eq!(parse("::1", 2).unwrap(), one("[::1]:2"));
        let error = parse("no host", 1).unwrap_err();
        assert!(error.to_string().contains("--host=no host"), "{error}");
    }

    #[test]
    fn a_taken_address_is_named_with_the_flag() {
        let any = Bind::One("127.0.0.1:0".parse().unwrap());
        let taken = any.listen("--port").unwrap();
        let address = taken.local_addr().unwrap();
        let error = Bind::One(address).listen("--port").unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&address.to_string()), "{text}");
        assert!(text.contains("--port"), "{text}");
        let source = error.source().unwrap().to_string();
        assert!(source.contains("in use"), "{source}");
    }
}
