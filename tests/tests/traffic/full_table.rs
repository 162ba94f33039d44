// SPDX-License-Identifier: Apache-2.0

//! A full conntrack table: no connection that has to be tracked can be opened then.

mod filters;
mod learned;
mod names;
mod translated;
mod upstream;

use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::agent::TRANSLATE;
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology};
use tests::path::{Path, Via};
use tests::proxy::Proxy;
use tests::{Family, client, conntrack, ctnetlink, transfer};

const TIMEOUT: Duration = Duration::from_secs(10);
/// The time-out of the connections that are known to get no reply.
const SHORT_TIMEOUT: Duration = Duration::from_millis(1500);
const BYTES: u64 = 1_000_000;

fn fill(node: &Node) -> Result<()> {
    let start = Instant::now();
    let count = ctnetlink::fill(&node.netns)?;
    println!("{count} entries in {} ms", start.elapsed().as_millis());
    Ok(())
}

/// Connects on every path at once.
fn connect_everywhere<'a>(
    paths: &[Path<'a>],
    timeout: Duration,
) -> Vec<(Path<'a>, std::io::Result<TcpStream>)> {
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = paths
            .iter()
            .map(|path| {
                scope.spawn(move || client::connect(path.netns, path.destination(), timeout))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("it does not panic"))
            .collect()
    });
    paths.iter().cloned().zip(results).collect()
}

fn works_on(node: &Node, paths: &[Path<'_>]) -> Result<Vec<TcpStream>> {
    let mut streams = Vec::new();
    for (seed, (path, result)) in (1..).zip(connect_everywhere(paths, TIMEOUT)) {
        let mut stream = result.with_context(|| format!("{path}: connecting"))?;
        transfer::exchange(&mut stream, BYTES, seed).with_context(|| path.to_string())?;
        streams.push(stream);
    }
    for family in Family::ALL {
        let entries = conntrack::list(&node.netns, family)?;
        ensure!(entries.is_empty(), "conntrack knows {entries:#?}");
    }
    Ok(streams)
}

#[test]
fn nothing_works_without_the_agent() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        node.add_vips("lo")?;
        let _proxy = Proxy::start(node)?;
        fill(node)?;
        for (path, result) in connect_everywhere(&node.paths(), SHORT_TIMEOUT) {
            ensure!(result.is_err(), "{path} works: the table is not full");
        }
        Ok(())
    });
}

fn everything_works(topology: Topology, kube_proxy: KubeProxy) {
    Node::test(topology, |node| {
        kube_proxy.install(&node.netns)?;
        let args = [&TRANSLATE[..], &["--backend=ebpf"]].concat();
        let _agent = node.start_agent(&args)?;
        let _proxy = Proxy::start(node)?;
        let mut streams = works_on(node, &node.paths())?;
        fill(node)?;
        streams.extend(works_on(node, &node.paths())?);
        for stream in &mut streams {
            transfer::exchange(stream, BYTES, 99).context("an older connection")?;
        }
        Ok(())
    });
}

#[test]
fn everything_works_with_the_agent_through_veth() {
    everything_works(Topology::Veth, KubeProxy::IptablesNft);
}

#[test]
fn everything_works_with_the_agent_through_a_bridge() {
    everything_works(Topology::BridgeNetfilter, KubeProxy::Nftables);
}

/// Checks the paths to the VIP itself only; kube-proxy handles the ClusterIP.
fn the_vip_works(topology: Topology, kube_proxy: KubeProxy) {
    Node::test(topology, |node| {
        kube_proxy.install(&node.netns)?;
        let _agent = node.start_agent(&["--backend=nftables"])?;
        let _proxy = Proxy::start(node)?;
        let mut paths = node.paths();
        paths.retain(|path| path.via == Via::Vip);
        let mut streams = works_on(node, &paths)?;
        fill(node)?;
        streams.extend(works_on(node, &paths)?);
        for stream in &mut streams {
            transfer::exchange(stream, BYTES, 99).context("an older connection")?;
        }
        Ok(())
    });
}

#[test]
fn the_vip_works_with_nftables_through_veth() {
    the_vip_works(Topology::Veth, KubeProxy::IptablesNft);
}

#[test]
fn the_vip_works_with_nftables_through_a_bridge() {
    the_vip_works(Topology::BridgeNetfilter, KubeProxy::Nftables);
}

/// An agent starts on a node whose table is already full.
#[test]
fn the_agent_starts() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        fill(node)?;
        let start = Instant::now();
        let args = [&TRANSLATE[..], &["--backend=ebpf"]].concat();
        let _agent = node.start_agent(&args)?;
        println!("ready after {} ms", start.elapsed().as_millis());
        let _proxy = Proxy::start(node)?;
        works_on(node, &node.paths()).map(drop)
    });
}
