// SPDX-License-Identifier: Apache-2.0

//! The last act: the node's conntrack table takes no more entries, and requests go all the way: through
//! HAProxy, in a cgroup of its own, to an API server behind the uplink.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Result;
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology, UPSTREAM, api_server};
use tests::path::Path;
use tests::proxy::{ApiServers, Proxy};
use tests::{Family, conntrack, ctnetlink, status};

use crate::requests;
use crate::{Column, start_agent};

/// What became of one request on each way, and what that left in the table.
pub struct Outcome {
    requests: Vec<(Family, String, Result<Duration, String>)>,
    entries: usize,
}

impl Outcome {
    /// True if any request was answered.
    pub fn works_at_all(&self) -> bool {
        self.requests.iter().any(|(_, _, result)| result.is_ok())
    }

    /// The requests that were not answered.
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

/// Makes a node, fills its table, and makes a request on every way.
pub fn measure(column: &Column) -> Result<Outcome> {
    let node = Node::with_pods(Topology::Veth, 1)?;
    KubeProxy::IptablesNft.install(&node.netns)?;
    let agent = start_agent(&node, column)?;
    let servers = ApiServers::start(&node, api_server)?;
    let cgroup = node.cgroup("proxy")?;
    let proxy = Proxy::start_to(&node, &cgroup, api_server)?;
    if column.args.is_some_and(|args| args.contains(&UPSTREAM)) {
        status::wait_until_upstream(&node, "", &cgroup)?;
    }
    let start = Instant::now();
    let count = ctnetlink::fill(&node.netns)?;
    println!(
        "      {}: {count} entries of strangers, in {} ms",
        column.title,
        start.elapsed().as_millis()
    );
    let paths: Vec<Path<'_>> = node.paths();
    let results = requests::one_on_every_path(&paths, servers.ca())?;
    let entries = entries(&node)?;
    drop((agent, proxy));
    let of_paths = paths
        .iter()
        .zip(results)
        .map(|(path, result)| (path.family, path.to_string(), result));
    Ok(Outcome {
        requests: of_paths.collect(),
        entries,
    })
}

/// Entries of the proxy and of the API servers.
fn entries(node: &Node) -> Result<usize> {
    let mut count = 0;
    for family in Family::ALL {
        let is_theirs = |entry: &&conntrack::Entry| {
            let ends = [entry.source, entry.destination, entry.reply_source];
            entry.is_proxy(family) || ends.contains(&api_server(family))
        };
        let all = conntrack::list_all(&node.netns, family)?;
        count += all.iter().filter(is_theirs).count();
    }
    Ok(count)
}
