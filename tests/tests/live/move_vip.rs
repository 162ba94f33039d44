// SPDX-License-Identifier: Apache-2.0

//! The VIPs move to another link and back, by restarts with another `--interface`, while connections are live on every
//! path. At every moment each VIP is on some link.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::agent::TRANSLATE;
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology};
use tests::proxy::Proxy;
use tests::streams::{all_end_intact, all_go_on, new_connections_work, open};
use tests::{Family, cmd};

const OTHER: &str = "vips";
const BEFORE: Duration = Duration::from_millis(500);
/// The maximum time until the agent has removed the former address after the new link carries the VIP.
const MOVED: Duration = Duration::from_secs(5);

/// Binds sockets to both VIPs continuously until it is stopped. Returns the failures.
fn watch(node: &Node, stop: &AtomicBool, tries: &AtomicU64) -> Vec<String> {
    node.netns.run(|| {
        let mut failures = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            for family in Family::ALL {
                if let Err(error) = UdpSocket::bind((family.vip(), 0)) {
                    failures.push(format!("{}: {error}", family.vip()));
                }
            }
            tries.fetch_add(1, Ordering::Relaxed);
        }
        failures
    })
}

/// Returns the links that carry a VIP.
fn carriers(node: &Node, family: Family) -> Result<Vec<String>> {
    let shown = node
        .netns
        .exec(&format!("ip -o address show to {}", family.vip()))?;
    // `4: vips    inet 10.96.0.2/32 …`
    let names = shown
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1));
    Ok(names.map(str::to_owned).collect())
}

fn is_only_on(node: &Node, link: &str) -> Result<()> {
    for family in Family::ALL {
        let mut found = Vec::new();
        cmd::wait_until(MOVED, "the VIP to be on one link", || {
            found = carriers(node, family)?;
            Ok((found == [link]).then_some(()))
        })
        .with_context(|| format!("{}: on {found:?}, not only on {link}", family.vip()))?;
    }
    Ok(())
}

fn there_and_back(topology: Topology, kube_proxy: KubeProxy, args: &[&str]) {
    Node::test(topology, |node| {
        kube_proxy.install_without_masquerade(&node.netns)?;
        node.netns.ip(&format!("link add {OTHER} type ifb\n"))?;
        let mut agent = node.start_agent(&[args, &["--interface=lo"]].concat())?;
        let _proxy = Proxy::start(node)?;
        let streams = open(node)?;
        std::thread::sleep(BEFORE);
        all_go_on(&streams).context("before")?;

        let (stop, tries) = (AtomicBool::new(false), AtomicU64::new(0));
        let node = &*node;
        let failures = std::thread::scope(|scope| {
            let watch = scope.spawn(|| watch(node, &stop, &tries));
            let mut there_and_back = || {
                for link in [OTHER, "lo", OTHER, "lo"] {
                    agent.stop(libc::SIGTERM)?;
                    let interface = format!("--interface={link}");
                    agent = node.start_agent(&[args, &[&interface]].concat())?;
                    is_only_on(node, link)?;
                    all_go_on(&streams).with_context(|| format!("moved to {link}"))?;
                    new_connections_work(node).with_context(|| format!("moved to {link}"))?;
                }
                Ok(())
            };
            let moved: Result<()> = there_and_back();
            stop.store(true, Ordering::Relaxed);
            let failures = watch.join().expect("it does not panic");
            moved.map(|()| failures)
        })?;
        let tries = tries.into_inner();
        println!("{} of {tries} looks found no VIP", failures.len());
        ensure!(failures.is_empty(), "without a VIP: {failures:?}");
        all_end_intact(streams)
    });
}

#[test]
fn ebpf() {
    there_and_back(
        Topology::Veth,
        KubeProxy::IptablesNft,
        &["--backend=ebpf", TRANSLATE[0], TRANSLATE[1]],
    );
}

#[test]
fn nftables() {
    there_and_back(
        Topology::BridgeNetfilter,
        KubeProxy::Nftables,
        &["--backend=nftables"],
    );
}

#[test]
fn iptables() {
    there_and_back(
        Topology::Veth,
        KubeProxy::IptablesLegacy,
        &["--backend=iptables"],
    );
}
