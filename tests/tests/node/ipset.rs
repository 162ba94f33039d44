// SPDX-License-Identifier: Apache-2.0

//! Cases of the `iptables` backend with ipset: full sets, outdated decisions, sets that other programs have left, and
//! machines on which sets do not work. `paths.rs` covers which paths work at all.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::client::{self, Close};
use tests::degraded_host::Missing;
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology};
use tests::path::{Path, Via};
use tests::proxy::Proxy;
use tests::streams::{
    all_end_intact, all_go_on, entries, new_connections_work, open, vip_is_untracked,
};
use tests::{Family, cmd, conntrack, ctnetlink, reuse, transfer};

const TIMEOUT: Duration = Duration::from_secs(10);
/// The time-out of the connections that are known to get no reply.
const SHORT_TIMEOUT: Duration = Duration::from_millis(1500);
const BEFORE: Duration = Duration::from_millis(500);
const BYTES: u64 = 100_000;

const IPTABLES: &str = "--backend=iptables";

fn sets(node: &Node) -> Result<String> {
    node.netns.exec("ipset list -name")
}

fn wait_for_rules(node: &Node) -> Result<()> {
    for program in ["iptables-nft-save", "ip6tables-nft-save"] {
        cmd::wait_until(TIMEOUT, "the rules", || {
            let saved = node.netns.exec(program)?;
            let owned = saved.matches("--comment \"proxy-agent: ").count();
            // Besides the ACCEPT rules there are ten rules in raw and three in mangle.
            Ok((owned >= 13).then_some(()))
        })?;
    }
    Ok(())
}

fn to_the_vip(node: &Node) -> Vec<Path<'_>> {
    let mut paths = node.paths();
    paths.retain(|path| path.via == Via::Vip);
    paths
}

/// ipset works, but iptables' support for it does not: the rules are stateless, and the agent logs the reason.
#[test]
fn rules_cannot_use_sets() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        let agent = node.start_agent_missing(Missing::Sets, &[IPTABLES])?;
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

/// Adds unrelated members to a set until the kernel refuses.
fn fill(node: &Node, role: &str) -> Result<()> {
    for (family, number) in [(Family::V4, 4), (Family::V6, 6)] {
        let mut script = String::new();
        for port in 1..=1024 {
            let (stranger, vip) = (stranger(family), family.vip());
            let name = format!("proxy-agent-{role}{number}-443");
            writeln!(script, "add {name} {stranger},tcp:{port},{vip}")?;
        }
        // There is no room for the last ones.
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

/// New connections to the VIP are then tracked, and work as without the agent.
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

/// A client port that had a decided connection is used through the ClusterIP while that cannot be stored.
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

/// While the rules are missing, a client port that had a decided connection is used for one through the ClusterIP. The
/// restored rules must not apply the old decision to this connection.
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
        wait_for_rules(node)?;
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

/// Connections to the VIP need no entry in conntrack.
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

/// Another backend that takes over removes everything, also for ports that are no longer configured.
#[test]
fn sets_of_an_earlier_agent() {
    for backend in ["--backend=none", "--backend=ebpf", IPTABLES] {
        Node::test(Topology::Veth, |node| {
            KubeProxy::IptablesNft.install(&node.netns)?;
            let mut agent = node.start_agent(&[IPTABLES, "--port=443,8443"])?;
            ensure!(sets(node)?.lines().count() == 8, "{}", sets(node)?);
            agent.stop(libc::SIGKILL)?;
            // This set was left by an agent that was killed while it replaced a set.
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
