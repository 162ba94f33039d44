// SPDX-License-Identifier: Apache-2.0

//! The last act: the node's conntrack table takes no more entries.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology};
use tests::path::Path;
use tests::proxy::Proxy;
use tests::{Family, ctnetlink};

use crate::requests;
use crate::{Column, start_agent};

/// What became of one request on each way.
pub struct Outcome(Vec<(Family, String, Result<Duration, String>)>);

impl Outcome {
    /// True if any request was answered.
    pub fn works_at_all(&self) -> bool {
        self.0.iter().any(|(_, _, result)| result.is_ok())
    }

    /// The requests that were not answered.
    pub fn failures(&self) -> Vec<String> {
        let failed = |(_, path, result): &(_, String, Result<_, String>)| {
            let reason = result.as_ref().err()?;
            Some(format!("with a full table, {path}: {reason}"))
        };
        self.0.iter().filter_map(failed).collect()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (family, name) in Family::ALL.into_iter().zip(["IPv4: ", ", IPv6: "]) {
            let of_family = || self.0.iter().filter(|(of, ..)| *of == family);
            let works = of_family().filter(|(_, _, result)| result.is_ok()).count();
            write!(f, "{name}{works} of {} ways work", of_family().count())?;
        }
        Ok(())
    }
}

/// Makes a node, fills its table, and makes a request on every way.
pub fn measure(column: &Column) -> Result<Outcome> {
    let node = Node::with_pods(Topology::Veth, 1)?;
    KubeProxy::IptablesNft.install(&node.netns)?;
    let agent = start_agent(&node, column)?;
    let proxy = Proxy::start_tls(&node)?;
    let ca = proxy.ca().context("a TLS proxy has a certificate")?;
    let start = Instant::now();
    let count = ctnetlink::fill(&node.netns)?;
    println!(
        "      {}: {count} entries of strangers, in {} ms",
        column.title,
        start.elapsed().as_millis()
    );
    let paths: Vec<Path<'_>> = node.paths();
    let results = requests::one_on_every_path(&paths, ca)?;
    drop(agent);
    Ok(Outcome(
        paths
            .iter()
            .zip(results)
            .map(|(path, result)| (path.family, path.to_string(), result))
            .collect(),
    ))
}
