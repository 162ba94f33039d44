// SPDX-License-Identifier: Apache-2.0

//! Traffic on every path of a node at once, and its conntrack entries.

use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::node::Node;
use crate::path::{Path, Via};
use crate::{client, conntrack, transfer};

const TIMEOUT: Duration = Duration::from_secs(10);
const BYTES: u64 = 1_000_000;

/// Every path works; connections to the VIP are untracked, and those that kube-proxy translates are
/// tracked.
///
/// # Errors
/// When that is not so: names the first way on which it is not.
pub fn everything_works(node: &Node) -> Result<()> {
    everything_works_leaving(node, 1)
}

/// As [`everything_works`], where a connection to the ClusterIP leaves as many entries as this: none if the
/// agent translates it.
///
/// # Errors
/// As [`everything_works`].
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
/// When that fails: names the path.
pub fn exchange(path: &Path, timeout: Duration, bytes: u64) -> Result<TcpStream> {
    let mut stream = client::connect(path.netns, path.destination(), timeout)
        .with_context(|| path.to_string())?;
    transfer::exchange(&mut stream, bytes, 1).with_context(|| path.to_string())?;
    Ok(stream)
}

/// As [`exchange`]; the client's peer is the address that it has dialled.
///
/// # Errors
/// When one of these is not so: names the path.
pub fn exchange_as_dialled(path: &Path, timeout: Duration, bytes: u64) -> Result<TcpStream> {
    let stream = exchange(path, timeout, bytes)?;
    let peer = stream.peer_addr()?;
    ensure!(
        peer == path.destination(),
        "{path}: getpeername shows {peer}"
    );
    Ok(stream)
}
