// SPDX-License-Identifier: Apache-2.0

//! Live connections on every path continue while the rules and sets of the `iptables` backend change, or are changed by
//! other programs.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::agent::Agent;
use tests::client;
use tests::degraded_host::Missing;
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology};
use tests::path::Via;
use tests::proxy::Proxy;
use tests::stream::Live;
use tests::streams::{all_end_intact, all_go_on, new_connections_work, open, vip_is_untracked};
use tests::{cmd, snapshot};

const TIMEOUT: Duration = Duration::from_secs(10);
const BEFORE: Duration = Duration::from_millis(500);
const AFTER: Duration = Duration::from_secs(2);

const IPTABLES: &str = "--backend=iptables";

/// The state of the connections to the VIP after an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    Untracked,
    /// Conntrack may have seen some of them meanwhile.
    Either,
}

fn sets(node: &Node) -> Result<String> {
    node.netns.exec("ipset list -name")
}

/// Runs `event` on a node with an agent and live connections on every path, which must continue.
fn survive(
    topology: Topology,
    kube_proxy: KubeProxy,
    args: &[&str],
    after: After,
    event: impl FnOnce(&Node, Agent) -> Result<Option<Agent>>,
) {
    Node::test(topology, |node| {
        kube_proxy.install_without_masquerade(&node.netns)?;
        let agent = node.start_agent(&[&[IPTABLES], args].concat())?;
        let _proxy = Proxy::start(node)?;
        let streams = open(node)?;
        std::thread::sleep(BEFORE);
        all_go_on(&streams).context("before")?;
        vip_is_untracked(node).context("at first")?;

        let agent = event(node, agent).context("what was to happen")?;
        all_go_on(&streams).context("after it happened")?;
        std::thread::sleep(AFTER);
        all_go_on(&streams).context("a while after it happened")?;
        if after == After::Untracked {
            vip_is_untracked(node).context("after it happened")?;
        }
        all_end_intact(streams)?;
        new_connections_work(node)?;
        drop(agent);
        Ok(())
    });
}

/// Defines one test with veth pairs and one with a bridge.
macro_rules! survives {
    ($($name:ident: $kube_proxy:expr, $args:expr, $after:expr, $event:expr;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn through_veth() {
                survive(Topology::Veth, $kube_proxy, &$args, $after, $event);
            }

            #[test]
            fn through_a_bridge() {
                survive(Topology::BridgeNetfilter, $kube_proxy, &$args, $after, $event);
            }
        }
    )*};
}

survives! {
    restart: KubeProxy::IptablesNft, [], After::Untracked, restart;
    kill: KubeProxy::Nftables, [], After::Untracked, kill;
    other_limit: KubeProxy::IptablesLegacy, [], After::Untracked, other_limit;
    cleanup: KubeProxy::IptablesNft, ["--cleanup"], After::Either, clean_up;
    flushed_sets: KubeProxy::IptablesLegacy, [], After::Either, flush_sets;
    flushed_rules: KubeProxy::IptablesNft, [], After::Either, flush_rules;
    flushed_legacy_rules: KubeProxy::IptablesLegacy, ["--sync-interval=500ms"], After::Either, flush_legacy_rules;
    other_flavour: KubeProxy::IptablesLegacy, ["--sync-interval=300ms"], After::Untracked, other_flavour;
}

fn restart(node: &Node, mut agent: Agent) -> Result<Option<Agent>> {
    let before = (snapshot::nf_tables(&node.netns)?, sets(node)?);
    agent.stop(libc::SIGTERM)?;
    let agent = node.start_agent(&[IPTABLES])?;
    let after = (snapshot::nf_tables(&node.netns)?, sets(node)?);
    ensure!(after == before, "before: {before:?}\nafter: {after:?}");
    Ok(Some(agent))
}

fn kill(node: &Node, mut agent: Agent) -> Result<Option<Agent>> {
    agent.stop(libc::SIGKILL)?;
    std::thread::sleep(AFTER);
    node.start_agent(&[IPTABLES]).map(Some)
}

/// The agent replaces the sets that the rules use.
fn other_limit(node: &Node, mut agent: Agent) -> Result<Option<Agent>> {
    agent.stop(libc::SIGTERM)?;
    let agent = node.start_agent(&[IPTABLES, "--max-connections=2048"])?;
    let saved = node.netns.exec("ipset save")?;
    ensure!(!saved.contains("65536"), "{saved}");
    Ok(Some(agent))
}

/// The agent's exit removes the address, without which no connection continues. Here another owner adds it again.
fn clean_up(node: &Node, mut agent: Agent) -> Result<Option<Agent>> {
    let status = agent.stop(libc::SIGTERM)?;
    node.add_vips("lo")?;
    ensure!(status.success(), "SIGTERM: {status}");
    ensure!(sets(node)?.is_empty(), "sets left behind");
    Ok(None)
}

fn flush_sets(node: &Node, agent: Agent) -> Result<Option<Agent>> {
    node.netns.exec("ipset flush")?;
    Ok(Some(agent))
}

fn flush_rules_of(node: &Node, flavour: &str) -> Result<()> {
    for program in ["iptables", "ip6tables"] {
        for table in ["raw", "mangle"] {
            let line = format!("{program}-{flavour} -w -t {table} -F");
            node.netns.exec(&line)?;
        }
    }
    wait_for_rules(node, flavour)
}

fn wait_for_rules(node: &Node, flavour: &str) -> Result<()> {
    for program in ["iptables", "ip6tables"] {
        let line = format!("{program}-{flavour}-save");
        cmd::wait_until(TIMEOUT, "the rules", || {
            let saved = node.netns.exec(&line)?;
            let owned = saved.matches("--comment \"proxy-agent: ").count();
            // Besides the ACCEPT rules there are ten rules in raw and three in mangle.
            Ok((owned >= 13).then_some(()))
        })?;
    }
    Ok(())
}

fn flush_rules(node: &Node, agent: Agent) -> Result<Option<Agent>> {
    flush_rules_of(node, "nft")?;
    Ok(Some(agent))
}

fn flush_legacy_rules(node: &Node, agent: Agent) -> Result<Option<Agent>> {
    flush_rules_of(node, "legacy")?;
    Ok(Some(agent))
}

/// kubelet begins to use iptables-nft.
fn other_flavour(node: &Node, agent: Agent) -> Result<Option<Agent>> {
    let legacy = "iptables-legacy-save";
    ensure!(node.netns.exec(legacy)?.contains("proxy-agent"));
    for program in ["iptables", "ip6tables"] {
        let line = format!("{program}-nft -t mangle -N KUBE-IPTABLES-HINT");
        node.netns.exec(&line)?;
    }
    wait_for_rules(node, "nft")?;
    cmd::wait_until(TIMEOUT, "the legacy rules to go", || {
        Ok((!node.netns.exec(legacy)?.contains("proxy-agent")).then_some(()))
    })?;
    Ok(Some(agent))
}

/// The agent changes from stateless rules to learning ones and back: untracked connections stay untracked.
#[test]
fn stateless_rules_learn_and_forget() {
    for (topology, kube_proxy) in [
        (Topology::Veth, KubeProxy::IptablesNft),
        (Topology::BridgeNetfilter, KubeProxy::IptablesLegacy),
    ] {
        Node::test(topology, |node| {
            kube_proxy.install_without_masquerade(&node.netns)?;
            let mut agent = node.start_agent_missing(Missing::Ipset, &[IPTABLES])?;
            ensure!(agent.log().contains("ipset is not installed"), "no reason");
            let _proxy = Proxy::start(node)?;
            let mut streams = Vec::new();
            for path in node.paths() {
                // Connections through the ClusterIP do not work yet.
                if path.via == Via::ClusterIp {
                    continue;
                }
                let stream = client::connect(path.netns, path.destination(), TIMEOUT)?;
                let name = path.to_string();
                streams.push(Live::start(&name, &stream, 3)?);
            }
            std::thread::sleep(BEFORE);
            all_go_on(&streams)?;
            agent.stop(libc::SIGTERM)?;

            let mut agent = node.start_agent(&[IPTABLES])?;
            new_connections_work(node).context("with ipset")?;
            std::thread::sleep(AFTER);
            all_go_on(&streams).context("with ipset")?;
            vip_is_untracked(node).context("with ipset")?;
            agent.stop(libc::SIGTERM)?;

            let _agent = node.start_agent_missing(Missing::Ipset, &[IPTABLES])?;
            std::thread::sleep(AFTER);
            all_go_on(&streams).context("without ipset again")?;
            vip_is_untracked(node).context("without ipset again")?;
            all_end_intact(streams)
        });
    }
}
