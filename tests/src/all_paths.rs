// SPDX-License-Identifier: Apache-2.0

//! Connects on every path of a node at once, and checks the conntrack entries.

use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::node::Node;
use crate::path::{Path, Via};
use crate::{client, conntrack, transfer};

const TIMEOUT: Duration = Duration::from_secs(10);
const BYTES: u64 = 1_000_000;

/// Checks that every path works, that connections to the VIP are untracked, and that connections that kube-proxy
/// translates are tracked.
///
/// # Errors
/// Returns an error if this is not so; the error names the first path on which it fails.
pub fn everything_works(node: &Node) -> Result<()> {
    everything_works_leaving(node, 1)
}

/// Works like [`everything_works`], with the given number of entries for a connection to the ClusterIP: 0 if the agent
/// translates it.
///
/// # Errors
/// Returns the same errors as [`everything_works`].
pub fn everything_works_leaving(node: &Node, by_cluster_ip: usize) -> Result<()> {
    for path in node.paths() {
        let stream = exchange(&path, TIMEOUT, BYTES)?;
        let entries = conntrack::list(&node.netns, path.family)?;
        let found = conntrack::of_client(&entries, stream.local_addr()?);
        let wanted = match path.via {
            Via::Vip => 0,
            Via::ClusterIp => by_cluster_ip,
        };
        ensure!(found.len() == wanted, "{path}: {found:#?}");
    }
    Ok(())
}

/// Connects on a path and exchanges bytes.
///
/// # Errors
/// Returns an error if the exchange fails; the error names the path.
pub fn exchange(path: &Path, timeout: Duration, bytes: u64) -> Result<TcpStream> {
    let mut stream = client::connect(path.netns, path.destination(), timeout)
        .with_context(|| path.to_string())?;
    transfer::exchange(&mut stream, bytes, 1).with_context(|| path.to_string())?;
    Ok(stream)
}

/// Works like [`exchange`], and checks that the client's peer is the address that the client dialled.
///
/// # Errors
/// Returns an error if one of the two fails; the error names the path.
pub fn exchange_as_dialled(path: &Path, timeout: Duration, bytes: u64) -> Result<TcpStream> {
    let stream = exchange(path, timeout, bytes)?;
    let peer = stream.peer_addr()?;
    ensure!(
        peer == path.destination(),
        "{path}: getpeername shows {peer}"
    );
    Ok(stream)
}
