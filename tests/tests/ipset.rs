// SPDX-License-Identifier: Apache-2.0

//! What only concerns the `iptables` backend with ipset: live connections while the rules and sets
//! change or are changed by others, full sets, and machines where sets do not work. Which ways work
//! at all is in `paths.rs`.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tests::agent::Agent;
use tests::client::{self, Close};
use tests::kubeproxy::KubeProxy;
use tests::lacking::Lacking;
use tests::node::{Node, Topology};
use tests::path::{Path, Via};
use tests::proxy::Proxy;
use tests::streams::{all_end_intact, all_go_on, entries, new_connections_work, open};
use tests::{Family, cmd, conntrack, ctnetlink, reuse, snapshot, transfer};

const TIMEOUT: Duration = Duration::from_secs(10);
/// For the connections that are known to get no answer.
const SHORT_TIMEOUT: Duration = Duration::from_millis(1500);
const BEFORE: Duration = Duration::from_millis(500);
const AFTER: Duration = Duration::from_secs(2);
const BYTES: u64 = 100_000;

const IPTABLES: &str = "--backend=iptables";

/// Whether the connections to the VIP are still untracked after something has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    Untracked,
    /// Some may have been seen by conntrack meanwhile.
    Either,
}

/// Those that conntrack knows must have come through the ClusterIP.
fn vip_is_untracked(node: &Node) -> Result<()> {
    let entries = entries(node)?;
    let vips = Family::ALL.map(Family::vip_socket);
    let wrong = |entry: &&conntrack::Entry| vips.contains(&entry.destination);
    if let Some(entry) = entries.iter().find(wrong) {
        bail!("a connection to the VIP is tracked: {entry:#?}");
    }
    Ok(())
}

fn sets(node: &Node) -> Result<String> {
    node.netns.exec("ipset list -name")
}

/// Has `event` happen to a node with an agent and live connections on every way; they must go on.
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

/// One test behind veth pairs and one behind a bridge.
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
    flushed_conntrack: KubeProxy::Nftables, [], After::Untracked, flush_conntrack;
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

/// The sets are replaced under the rules that use them.
fn other_limit(node: &Node, mut agent: Agent) -> Result<Option<Agent>> {
    agent.stop(libc::SIGTERM)?;
    let agent = node.start_agent(&[IPTABLES, "--max-connections=2048"])?;
    let saved = node.netns.exec("ipset save")?;
    ensure!(!saved.contains("65536"), "{saved}");
    Ok(Some(agent))
}

/// The address goes with the agent, and no connection lives without. Here another owner puts it back.
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
            // Beside the ACCEPT rules there are ten in raw and three in mangle.
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

fn flush_conntrack(node: &Node, agent: Agent) -> Result<Option<Agent>> {
    conntrack::flush(&node.netns)?;
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

fn to_the_vip(node: &Node) -> Vec<Path<'_>> {
    let mut paths = node.paths();
    paths.retain(|path| path.via == Via::Vip);
    paths
}

/// From stateless rules to learning ones and back: what was untracked stays so.
#[test]
fn stateless_rules_learn_and_forget() {
    for (topology, kube_proxy) in [
        (Topology::Veth, KubeProxy::IptablesNft),
        (Topology::BridgeNetfilter, KubeProxy::IptablesLegacy),
    ] {
        Node::test(topology, |node| {
            kube_proxy.install_without_masquerade(&node.netns)?;
            let mut agent = node.start_agent_lacking(Lacking::Ipset, &[IPTABLES])?;
            ensure!(agent.log().contains("ipset is not installed"), "no reason");
            let _proxy = Proxy::start(node)?;
            let mut streams = Vec::new();
            for path in to_the_vip(node) {
                let stream = client::connect(path.netns, path.destination(), TIMEOUT)?;
                let name = path.to_string();
                streams.push(tests::stream::Live::start(&name, &stream, 3)?);
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

            let _agent = node.start_agent_lacking(Lacking::Ipset, &[IPTABLES])?;
            std::thread::sleep(AFTER);
            all_go_on(&streams).context("without ipset again")?;
            vip_is_untracked(node).context("without ipset again")?;
            all_end_intact(streams)
        });
    }
}

/// ipset works, iptables' part of it does not: the rules are stateless, and the reason is told.
#[test]
fn rules_cannot_use_sets() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        let agent = node.start_agent_lacking(Lacking::Sets, &[IPTABLES])?;
        let log = agent.log();
        ensure!(log.contains("stateless from now on"), "no warning");
        ensure!(sets(node)?.is_empty(), "sets left behind");
        let _proxy = Proxy::start(node)?;
        for path in node.paths() {
            let timeout = match path.via {
                Via::Vip => TIMEOUT,
                Via::ClusterIp => SHORT_TIMEOUT,
            };
            let result = client::connect(path.netns, path.destination(), timeout);
            ensure!(
                result.is_ok() == (path.via == Via::Vip),
                "{path}: {result:?}"
            );
        }
        vip_is_untracked(node)
    });
}

/// Strangers fill a set until the kernel refuses.
fn fill(node: &Node, role: &str) -> Result<()> {
    for (family, number) in [(Family::V4, 4), (Family::V6, 6)] {
        let mut script = String::new();
        for port in 1..=1024 {
            let (stranger, vip) = (stranger(family), family.vip());
            let name = format!("proxy-agent-{role}{number}-443");
            writeln!(script, "add {name} {stranger},tcp:{port},{vip}")?;
        }
        // The last ones find no room.
        let _ = node.netns.feed("ipset restore", &script);
    }
    Ok(())
}

fn stranger(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([192, 0, 2, 1]),
        Family::V6 => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]),
    }
}

/// New connections to the VIP are tracked then, and work as without the agent.
#[test]
fn the_set_of_decided_clients_is_full() {
    Node::test(Topology::BridgeNetfilter, |node| {
        KubeProxy::IptablesNft.install_without_masquerade(&node.netns)?;
        let _agent = node.start_agent(&[IPTABLES, "--max-connections=1024"])?;
        let _proxy = Proxy::start(node)?;
        let streams = open(node)?;
        std::thread::sleep(BEFORE);
        fill(node, "d")?;
        new_connections_work(node)?;
        let tracked = entries(node)?;
        for family in Family::ALL {
            ensure!(
                tracked
                    .iter()
                    .any(|entry| entry.destination == family.vip_socket()),
                "{family:?}: the set was not full: {tracked:#?}"
            );
        }
        all_go_on(&streams)?;
        all_end_intact(streams)
    });
}

/// A port that had a decided connection is used through the ClusterIP while that cannot be
/// remembered.
#[test]
fn the_set_of_translated_clients_is_full() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install_without_masquerade(&node.netns)?;
        let _agent = node.start_agent(&[IPTABLES, "--max-connections=1024"])?;
        let _proxy = Proxy::start(node)?;
        fill(node, "n")?;
        let pod = &node.pods[0];
        for family in Family::ALL {
            for (end, port) in reuse::End::ALL.into_iter().zip(23_000..) {
                let from = SocketAddr::new(pod.address(family), port);
                for to in [family.vip_socket(), family.cluster_ip_socket()] {
                    reuse::connect_and_end(&pod.netns, from, to, end)
                        .with_context(|| format!("{from} to {to}, {end:?}"))?;
                    reuse::proxy_has_closed(&node.netns, from)?;
                }
            }
        }
        new_connections_work(node)
    });
}

/// While the rules are missing a port that was decided gets a connection through the ClusterIP. The
/// rules that come back must not take the old decision for one about this connection.
#[test]
fn old_decisions_do_not_outlive_missing_rules() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install_without_masquerade(&node.netns)?;
        let agent = node.start_agent(&[IPTABLES])?;
        let _proxy = Proxy::start(node)?;
        let pod = &node.pods[0];
        let froms =
            Family::ALL.map(|family| (family, SocketAddr::new(pod.address(family), 24_000)));
        for (family, from) in froms {
            let to = family.vip_socket();
            reuse::connect_and_end(&pod.netns, from, to, reuse::End::Reset)?;
            reuse::proxy_has_closed(&node.netns, from)?;
        }
        agent.signal(libc::SIGSTOP)?;
        for program in ["iptables-nft", "ip6tables-nft"] {
            node.netns.exec(&format!("{program} -w -t raw -F"))?;
            node.netns.exec(&format!("{program} -w -t mangle -F"))?;
        }
        let mut streams = Vec::new();
        for (family, from) in froms {
            let to = family.cluster_ip_socket();
            let mut stream = client::connect_from(&pod.netns, Some(from), to, TIMEOUT)?;
            transfer::exchange(&mut stream, BYTES, 1)?;
            streams.push(stream);
        }
        agent.signal(libc::SIGCONT)?;
        wait_for_rules(node, "nft")?;
        for (mut stream, (family, from)) in streams.into_iter().zip(froms) {
            transfer::exchange(&mut stream, BYTES, 2).context("after the repair")?;
            let entries = conntrack::list(&node.netns, family)?;
            let found = conntrack::of_client(&entries, from);
            ensure!(found.len() == 1, "{found:#?}");
            client::close(&stream, Close::Rst)?;
        }
        Ok(())
    });
}

/// Connections to the VIP need no room in conntrack.
#[test]
fn conntrack_is_full() {
    Node::test(Topology::Bridge, |node| {
        KubeProxy::Nftables.install(&node.netns)?;
        let _agent = node.start_agent(&[IPTABLES])?;
        let _proxy = Proxy::start(node)?;
        ctnetlink::fill(&node.netns)?;
        for path in to_the_vip(node) {
            let mut stream = client::connect(path.netns, path.destination(), TIMEOUT)
                .with_context(|| path.to_string())?;
            transfer::exchange(&mut stream, BYTES, 1).with_context(|| path.to_string())?;
        }
        vip_is_untracked(node)
    });
}

/// A backend that follows takes everything away, also from ports that are not configured any more.
#[test]
fn sets_of_an_earlier_agent() {
    for backend in ["--backend=none", "--backend=ebpf", IPTABLES] {
        Node::test(Topology::Veth, |node| {
            KubeProxy::IptablesNft.install(&node.netns)?;
            let mut agent = node.start_agent(&[IPTABLES, "--port=443,8443"])?;
            ensure!(sets(node)?.lines().count() == 8, "{}", sets(node)?);
            agent.stop(libc::SIGKILL)?;
            // Of an agent that was killed while it replaced a set.
            let unfinished = "proxy-agent-d4-443-new hash:ip,port,ip timeout 3600";
            node.netns.exec(&format!("ipset create {unfinished}"))?;
            let mut agent = node.start_agent(&[backend, "--cleanup"])?;
            let left = sets(node)?.lines().count();
            let wanted = if backend == IPTABLES { 4 } else { 0 };
            ensure!(left == wanted, "{backend}: {}", sets(node)?);
            ensure!(agent.stop(libc::SIGTERM)?.success(), "the clean-up failed");
            ensure!(sets(node)?.is_empty(), "{backend}: {}", sets(node)?);
            Ok(())
        });
    }
}

#[test]
fn a_dry_run_makes_no_sets() {
    Node::test(Topology::Veth, |node| {
        let output = node.run_agent(&[IPTABLES, "--dry-run"])?;
        let plan = String::from_utf8_lossy(&output.stdout);
        ensure!(plan.contains("create set proxy-agent-d6-443"), "{plan}");
        ensure!(
            plan.contains("ip6tables-nft mangle: insert INPUT"),
            "{plan}"
        );
        ensure!(sets(node)?.is_empty(), "{}", sets(node)?);
        Ok(())
    });
}
