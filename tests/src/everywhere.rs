// SPDX-License-Identifier: Apache-2.0

//! Traffic on every way of a node at once, and what of it conntrack has seen.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::node::Node;
use crate::path::Via;
use crate::{client, conntrack, transfer};

const TIMEOUT: Duration = Duration::from_secs(10);
const BYTES: u64 = 1_000_000;

/// Every way works; what goes to the VIP is untracked, and what kube-proxy translates is not.
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
        let mut stream = client::connect(path.netns, path.destination(), TIMEOUT)
            .with_context(|| path.to_string())?;
        transfer::exchange(&mut stream, BYTES, 1).with_context(|| path.to_string())?;
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
