// SPDX-License-Identifier: Apache-2.0

//! The connections that the proxy has now, and who takes care of each: what a backend has to know
//! when it takes over from another one, or from rules that somebody removed.

use std::io;
use std::net::SocketAddr;

use crate::kernel::sockets;
use crate::netfilter::conntrack::{self, Status};
use crate::netfilter::{self, Socket};

/// A connection as the proxy sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Connection {
    /// The client's end.
    pub client: SocketAddr,
    /// The proxy's end: a VIP with its port.
    pub vip: SocketAddr,
}

/// The proxy's connections, sorted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// Those that conntrack does not know: they are untracked, and should stay so.
    pub untracked: Vec<Connection>,
    /// Those that came by somebody's DNAT: conntrack must go on seeing them.
    pub translated: Vec<Connection>,
}

/// Why the connections could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The list of sockets.
    #[error("cannot read the list of TCP connections")]
    Sockets(#[source] io::Error),
    /// conntrack.
    #[error(transparent)]
    Conntrack(#[from] netfilter::Error),
}

impl Live {
    /// Reads the connections of these endpoints in the current network namespace.
    ///
    /// Each is looked up on its own, which is cheap while conntrack's table is large.
    ///
    /// # Errors
    ///
    /// If the kernel does not answer.
    pub fn read(vips: &[SocketAddr]) -> Result<Self, Error> {
        let mut live = Self::default();
        let connections = sockets::connections().map_err(Error::Sockets)?;
        let mut socket = Socket::open()?;
        for (vip, client) in connections {
            if !vips.contains(&vip) {
                continue;
            }
            let connection = Connection { client, vip };
            match conntrack::answered_by(&mut socket, vip, client)? {
                None => live.untracked.push(connection),
                Some(entry) if entry.status.contains(Status::DstNat) => {
                    live.translated.push(connection);
                }
                Some(_) => {}
            }
        }
        live.untracked.sort();
        live.translated.sort();
        Ok(live)
    }
}
