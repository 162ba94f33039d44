// SPDX-License-Identifier: Apache-2.0

//! A node with a thousand links.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::agent::TRANSLATE;
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Pod, Topology};
use tests::proxy::Proxy;
use tests::{Family, client, cmd, conntrack, skip, slow_machine, snapshot, status, transfer};

const PAIRS: usize = 500;
const TIMEOUT: Duration = Duration::from_secs(10);
const INTERVAL: Duration = Duration::from_millis(500);
const RESYNCS: u32 = 6;

/// Returns the ifindexes of all links except `lo`: there is no bridge here.
fn attachable(node: &Node) -> Result<BTreeSet<String>> {
    Ok(node
        .netns
        .exec("ip -o link show")?
        .lines()
        .filter(|line| !line.contains("LOOPBACK"))
        .filter_map(|line| line.split(':').next())
        .map(str::to_owned)
        .collect())
}

fn pinned(node: &Node) -> Result<BTreeSet<String>> {
    let dir = node.link_pins();
    std::fs::read_dir(&dir)
        .with_context(|| format!("reading {}", dir.display()))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// Checks that a pod's connection carries data, and that conntrack has the given number of entries of it.
fn exchange(
    node: &Node,
    pod: &Pod,
    (family, to): (Family, SocketAddr),
    wanted: usize,
) -> Result<()> {
    let mut stream = client::connect(&pod.netns, to, TIMEOUT)?;
    transfer::exchange(&mut stream, 10_000, 1)?;
    let entries = conntrack::list(&node.netns, family)?;
    let found = conntrack::of_client(&entries, stream.local_addr()?);
    ensure!(found.len() == wanted, "{to}: {found:#?}");
    Ok(())
}

#[test]
fn a_thousand_links() -> Result<()> {
    if skip::without_tcx("many_links-a_thousand_links")? {
        return Ok(());
    }
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        let mut script = String::new();
        for n in 0..PAIRS {
            writeln!(script, "link add many{n} type veth peer name peer{n}")?;
        }
        node.netns.ip(&script)?;

        let start = Instant::now();
        let agent =
            node.start_agent(&["--backend=ebpf", "--tc-attach=tcx", "--sync-interval=500ms"])?;
        let ready = start.elapsed();
        let links = attachable(node)?;
        ensure!(links.len() > 2 * PAIRS, "{} links", links.len());
        ensure!(pinned(node)? == links, "not every link is attached once");
        println!(
            "{} links: ready after {} ms",
            links.len(),
            ready.as_millis()
        );

        // The events of the start must settle first, because they may cause another pass.
        std::thread::sleep(INTERVAL);
        let (log, cpu) = (agent.log(), agent.cpu_time()?);
        let before = snapshot::take(&node.netns)?;
        std::thread::sleep(INTERVAL * RESYNCS);
        let spent = agent.cpu_time()?.saturating_sub(cpu) / RESYNCS;
        println!(
            "a resync with nothing to do: {:.1} ms of CPU",
            spent.as_secs_f64() * 1000.0
        );
        let new_lines = agent.log().split_off(log.len());
        ensure!(
            new_lines.is_empty(),
            "resyncs with nothing to do:\n{new_lines}"
        );
        let difference = snapshot::difference(&before, &snapshot::take(&node.netns)?);
        ensure!(difference.is_none(), "{}", difference.unwrap_or_default());

        let _proxy = Proxy::start(node)?;
        for family in Family::ALL {
            exchange(node, &node.pods[1], (family, family.vip_socket()), 0)?;
        }
        Ok(())
    });
    Ok(())
}

/// By default most links get a filter first, which costs the kernel no time, and their tcx programs later, a few at a
/// time. Meanwhile a connection that only the program of a link decides works as it does later, and nothing counts as
/// repaired.
#[test]
fn many_links_have_a_filter_until_it_is_their_turn() -> Result<()> {
    const FEW: usize = 40;
    if skip::without_tcx("many_links-until_it_is_their_turn")? {
        return Ok(());
    }
    Node::test(Topology::Veth, |node| {
        let mut script = String::new();
        for n in 0..FEW {
            writeln!(script, "link add many{n} type veth peer name peer{n}")?;
        }
        node.netns.ip(&script)?;
        // This link is the last one, so its program is attached last.
        node.add_pod(Topology::Veth)?;
        let pod = node.pods.last().context("a pod was just added")?;
        let args = [&TRANSLATE[..], &["--backend=ebpf"]].concat();
        let _agent = node.start_agent(&args)?;
        let _proxy = Proxy::start(node)?;
        let links = attachable(node)?;
        let has_filter = || -> Result<bool> {
            let filters = node
                .netns
                .exec(&format!("tc filter show dev {} ingress", pod.host_link))?;
            Ok(filters.contains("vip_ingress"))
        };
        ensure!(has_filter()?, "the last link has no filter");
        ensure!(
            pinned(node)?.len() < links.len(),
            "all links have their tcx program already"
        );
        let untracked = || -> Result<()> {
            let mut families = Family::ALL.into_iter();
            families
                .try_for_each(|family| exchange(node, pod, (family, family.cluster_ip_socket()), 0))
        };
        untracked()?;
        cmd::wait_until(
            slow_machine::of(10 * TIMEOUT),
            "all links to have their tcx program",
            || Ok((pinned(node)? == links).then_some(())),
        )?;
        cmd::wait_until(TIMEOUT, "the last filter to go", || {
            Ok((!has_filter()?).then_some(()))
        })?;
        // The qdisc is removed after the filter.
        cmd::wait_until(TIMEOUT, "the last qdisc to go", || {
            let qdiscs = node.netns.exec("tc qdisc show")?;
            Ok((!qdiscs.contains("clsact")).then_some(()))
        })?;
        untracked()?;
        let repairs = &status::read(node)?["repairs"]["last"];
        ensure!(status::array(repairs)?.is_empty(), "repairs: {repairs}");
        Ok(())
    });
    Ok(())
}

/// New links are attached, also as ports of a bridge, and deleted ones leave no object behind.
#[test]
fn links_come_and_go() -> Result<()> {
    if skip::without_tcx("many_links-links_come_and_go")? {
        return Ok(());
    }
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        let _agent = node.start_agent(&["--backend=ebpf", "--tc-attach=tcx"])?;
        let _proxy = Proxy::start(node)?;
        for topology in [Topology::Veth, Topology::BridgeNetfilter] {
            node.add_pod(topology)?;
            let pod = node.pods.last().context("a pod was just added")?;
            let pin = node.link_pin(&pod.host_link)?;
            let start = Instant::now();
            cmd::wait_until(TIMEOUT, "the new link to be attached", || {
                Ok(pin.exists().then_some(()))
            })?;
            println!(
                "{topology:?}: attached after {} ms",
                start.elapsed().as_millis()
            );
            for family in Family::ALL {
                for (to, wanted) in [(family.vip_socket(), 0), (family.cluster_ip_socket(), 1)] {
                    exchange(node, pod, (family, to), wanted)?;
                }
            }
        }
        let bridge = node.link_pin("cni0")?;
        ensure!(
            !bridge.exists(),
            "attached to the bridge itself: {}",
            bridge.display()
        );
        let pod = node.pods.pop().context("the pod on the bridge")?;
        let pin = node.link_pin(&pod.host_link)?;
        drop(pod);
        cmd::wait_until(TIMEOUT, "the pin of the gone link to go", || {
            Ok((!pin.exists()).then_some(()))
        })
    });
    Ok(())
}
