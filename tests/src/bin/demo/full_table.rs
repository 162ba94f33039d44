// SPDX-License-Identifier: Apache-2.0

//! The last part of the demo: the node's conntrack table is full, and requests pass through HAProxy, in a cgroup of its
//! own, to an API server behind the uplink.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path as FilePath;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology, api_server};
use tests::path::{Path, Via};
use tests::proxy::{ApiServers, Proxy};
use tests::{Family, conntrack, ctnetlink, status};

use crate::requests;
use crate::{Column, start_agent};

/// The result of one request on each path, and the conntrack entries that the requests left.
pub struct Outcome {
    requests: Vec<(Family, String, Result<Duration, String>)>,
    entries: usize,
}

impl Outcome {
    /// Returns true if any request was answered.
    pub fn works_at_all(&self) -> bool {
        self.requests.iter().any(|(_, _, result)| result.is_ok())
    }

    /// Returns the requests that were not answered.
    pub fn failures(&self) -> Vec<String> {
        let failed = |(_, path, result): &(_, String, Result<_, String>)| {
            let reason = result.as_ref().err()?;
            Some(format!("with a full table, {path}: {reason}"))
        };
        let left = (self.entries > 0)
            .then(|| format!("with a full table, requests left {} entries", self.entries));
        self.requests
            .iter()
            .filter_map(failed)
            .chain(left)
            .collect()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (family, name) in Family::ALL.into_iter().zip(["IPv4: ", ", IPv6: "]) {
            let of_family = || self.requests.iter().filter(|(of, ..)| *of == family);
            let works = of_family().filter(|(_, _, result)| result.is_ok()).count();
            write!(f, "{name}{works} of {} ways work", of_family().count())?;
        }
        write!(f, ", entries left: {}", self.entries)
    }
}

/// Creates a node, fills its conntrack table, and sends a request on every path.
pub fn measure(column: &Column) -> Result<Outcome> {
    let node = Node::with_pods(Topology::Veth, 1)?;
    KubeProxy::IptablesNft.install(&node.netns)?;
    let agent = start_agent(&node, column)?;
    let servers = ApiServers::start(&node, api_server)?;
    let cgroup = node.cgroup("proxy")?;
    let proxy = Proxy::start_to(&node, &cgroup, api_server)?;
    let older = if column.translates {
        be_learned(&node, servers.ca())?
    } else {
        Vec::new()
    };
    let start = Instant::now();
    let count = ctnetlink::fill(&node.netns)?;
    println!(
        "      {}: {count} entries of strangers, in {} ms",
        column.title,
        start.elapsed().as_millis()
    );
    let paths: Vec<Path<'_>> = node.paths();
    let results = requests::one_on_every_path(&paths, servers.ca())?;
    let mut sources = sources(&node)?;
    sources.retain(|source| !older.contains(source));
    drop((agent, proxy));
    let of_paths = paths
        .iter()
        .zip(results)
        .map(|(path, result)| (path.family, path.to_string(), result));
    Ok(Outcome {
        requests: of_paths.collect(),
        entries: sources.len(),
    })
}

/// Makes the agent learn the API servers, by one request in each family while the table has room. Returns the sources
/// of the entries that these requests left: the first connection to an API server is tracked.
fn be_learned(node: &Node, ca: &FilePath) -> Result<Vec<SocketAddr>> {
    status::wait_until_learning(node)?;
    for family in Family::ALL {
        let mut paths = node.paths();
        paths.retain(|path| (&*path.client, path.via, path.family) == ("host", Via::Vip, family));
        let results = requests::one_on_every_path(&paths, ca)?;
        for (path, result) in paths.iter().zip(results) {
            let took = result.map_err(|reason| anyhow!("{path}: {reason}"))?;
            println!("      {path}: answered in {} ms", took.as_millis());
        }
        status::wait_until_known(node, api_server(family), "")?;
    }
    sources(node)
}

/// Returns the sources of the entries of the proxy and of the API servers.
fn sources(node: &Node) -> Result<Vec<SocketAddr>> {
    let mut sources = Vec::new();
    for family in Family::ALL {
        let is_theirs = |entry: &&conntrack::Entry| {
            let ends = [entry.source, entry.destination, entry.reply_source];
            entry.is_proxy(family) || ends.contains(&api_server(family))
        };
        let all = conntrack::list_all(&node.netns, family)?;
        sources.extend(all.iter().filter(is_theirs).map(|entry| entry.source));
    }
    Ok(sources)
}
