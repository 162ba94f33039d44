// SPDX-License-Identifier: Apache-2.0

//! Uses one client port for several connections, one after the other.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::client::{self, Close};
use crate::netns::Netns;
use crate::{PORT, cmd, transfer};

/// Long enough for a retransmitted SYN, which the proxy's `TIME_WAIT` may make necessary with and without an agent.
pub const TIMEOUT: Duration = Duration::from_secs(8);

/// The end that closes a connection, and the way in which it does so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The client closes first: `TIME_WAIT` at the client.
    Client,
    /// The proxy closes first: `TIME_WAIT` at the proxy.
    Proxy,
    /// The client resets the connection.
    Reset,
}

impl End {
    /// All ways.
    pub const ALL: [Self; 3] = [Self::Client, Self::Proxy, Self::Reset];
}

/// Connects from a given port, exchanges some data and closes the connection.
///
/// # Errors
/// Returns an error if one of these steps fails.
pub fn connect_and_end(netns: &Netns, from: SocketAddr, to: SocketAddr, end: End) -> Result<()> {
    let mut stream = client::connect_from(netns, Some(from), to, TIMEOUT)
        .with_context(|| format!("connecting to {to}"))?;
    transfer::exchange(&mut stream, 100_000, from.port().into())?;
    match end {
        End::Client => client::close(&stream, Close::Fin)?,
        End::Proxy => {
            transfer::hang_up(&mut stream)?;
            client::close(&stream, Close::Fin)?;
        }
        End::Reset => client::close(&stream, Close::Rst)?,
    }
    Ok(())
}

/// Waits until the proxy's side of the client's connection is gone or in `TIME_WAIT`.
///
/// # Errors
/// Returns an error if the proxy keeps the connection open.
pub fn proxy_has_closed(host: &Netns, client: SocketAddr) -> Result<()> {
    let (local, remote) = (format!(":{PORT:04X}"), format!(":{:04X}", client.port()));
    let file = match client {
        SocketAddr::V4(_) => "tcp",
        SocketAddr::V6(_) => "tcp6",
    };
    let is_open = |line: &str| {
        // sl local_address rem_address st …; 06 is TIME_WAIT
        let words: Vec<&str> = line.split_whitespace().collect();
        words.len() > 3
            && words[1].ends_with(&local)
            && words[2].ends_with(&remote)
            && words[3] != "06"
    };
    cmd::wait_until(TIMEOUT, "the proxy to close the connection", || {
        let table = host.run(|| fs::read_to_string(format!("/proc/thread-self/net/{file}")))?;
        Ok((!table.lines().any(is_open)).then_some(()))
    })
}
