// SPDX-License-Identifier: Apache-2.0

//! The agent repairs changes by other programs on the kernel's notification: the resync interval is an hour. The tests
//! print the time that a repair takes and assert only that it happens.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::kubeproxy::KubeProxy;
use tests::netns::Netns;
use tests::node::{Node, Topology};
use tests::proxy::Proxy;
use tests::{Family, client, cmd, conntrack, skip, snapshot, transfer};

const TIMEOUT: Duration = Duration::from_secs(5);
const QUIET: Duration = Duration::from_millis(300);

/// Removes or changes an object, waits until `is_right` returns true again, and prints the time that the repair took.
fn repaired(
    what: &str,
    is_right: impl Fn() -> Result<bool>,
    interfere: impl FnOnce() -> Result<()>,
) -> Result<()> {
    ensure!(
        is_right()?,
        "{what}: not even right before the interference"
    );
    // The agent's own last changes cause notifications too: the measurement needs an idle node.
    std::thread::sleep(QUIET);
    interfere()?;
    let start = Instant::now();
    cmd::wait_until(TIMEOUT, what, || Ok(is_right()?.then_some(())))?;
    let elapsed = start.elapsed();
    println!(
        "{what}: repaired after {:.1} ms",
        elapsed.as_secs_f64() * 1000.0
    );
    Ok(())
}

/// Returns true if a socket can be bound to the VIP: it is on some link, and usable.
fn has_vip(netns: &Netns, family: Family) -> bool {
    netns.run(|| UdpSocket::bind((family.vip(), 0)).is_ok())
}

fn addresses(netns: &Netns, link: &str) -> Result<String> {
    netns.exec(&format!("ip -o address show dev {link}"))
}

/// Returns the number of conntrack entries that a connection from the first pod to the VIP leaves.
fn entries_left(node: &Node, family: Family) -> Result<usize> {
    let pod = &node.pods[0];
    let mut stream = client::connect(&pod.netns, family.vip_socket(), TIMEOUT)
        .context("connecting to the VIP")?;
    let from = stream.local_addr()?;
    transfer::exchange(&mut stream, 10_000, 1)?;
    let entries = conntrack::list(&node.netns, family)?;
    Ok(conntrack::of_client(&entries, from).len())
}

fn untracked(node: &Node) -> Result<bool> {
    for family in Family::ALL {
        if entries_left(node, family)? > 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

fn deleted_vip(backend: &str) {
    Node::test(Topology::Veth, |node| {
        let _agent = node.start_agent(&[backend])?;
        for family in Family::ALL {
            let (vip, len) = (family.vip(), family.host_prefix());
            repaired(
                &format!("the deleted VIP {vip}"),
                || Ok(has_vip(&node.netns, family)),
                || node.netns.ip(&format!("address del {vip}/{len} dev lo\n")),
            )?;
        }
        Ok(())
    });
}

#[test]
fn flushed_link() {
    Node::test(Topology::Veth, |node| {
        node.netns.ip("link add vips type ifb\n")?;
        let _agent = node.start_agent(&["--backend=none", "--interface=vips"])?;
        repaired(
            "the link without addresses",
            || {
                Ok(Family::ALL
                    .iter()
                    .all(|&family| has_vip(&node.netns, family)))
            },
            || node.netns.exec("ip address flush dev vips").map(drop),
        )
    });
}

fn downed_link(backend: &str) {
    Node::test(Topology::Veth, |node| {
        node.netns.ip("link add vips type ifb\n")?;
        let _agent = node.start_agent(&[backend, "--interface=vips"])?;
        repaired(
            "the link that was set down",
            || {
                // Setting the link down removes its IPv6 addresses.
                let is_up = !node.netns.exec("ip -o link show dev vips up")?.is_empty();
                Ok(is_up
                    && Family::ALL
                        .iter()
                        .all(|&family| has_vip(&node.netns, family)))
            },
            || node.netns.ip("link set vips down\n"),
        )
    });
}

#[test]
fn deleted_link_comes_back() {
    Node::test(Topology::Veth, |node| {
        node.netns.ip("link add vips type ifb\n")?;
        let _agent = node.start_agent(&["--backend=none", "--interface=vips"])?;
        node.netns.ip("link del vips\n")?;
        // If the kernel has dummy links, the agent creates one; otherwise the owner of the link does.
        if !node.has_dummy_links()? {
            node.netns.ip("link add vips type ifb\n")?;
        }
        cmd::wait_until(TIMEOUT, "the VIPs on the new link", || {
            Ok(Family::ALL
                .iter()
                .all(|&family| has_vip(&node.netns, family))
                .then_some(()))
        })
    });
}

fn vip_on_another_link(backend: &str) {
    Node::test(Topology::Veth, |node| {
        let _agent = node.start_agent(&[backend])?;
        for family in Family::ALL {
            let (vip, len) = (family.vip(), family.host_prefix());
            repaired(
                &format!("the VIP {vip} added to eth0 as well"),
                || {
                    let is_elsewhere =
                        addresses(&node.netns, "eth0")?.contains(&format!(" {vip}/"));
                    Ok(!is_elsewhere && has_vip(&node.netns, family))
                },
                || {
                    node.netns
                        .ip(&format!("address add {vip}/{len} dev eth0\n"))
                },
            )?;
        }
        Ok(())
    });
}

fn flushed_nftables(backend: &str) {
    Node::test(Topology::Veth, |node| {
        let _agent = node.start_agent(&[backend])?;
        let _proxy = Proxy::start(node)?;
        let ruleset = || snapshot::nf_tables(&node.netns);
        let before = ruleset()?;
        ensure!(before.contains("notrack"), "no verdict in\n{before}");
        repaired(
            "the flushed nf_tables",
            || Ok(ruleset()? == before),
            || node.netns.exec("nft flush ruleset").map(drop),
        )?;
        KubeProxy::IptablesNft.install(&node.netns)?;
        ensure!(untracked(node)?, "tracked after the repair");
        Ok(())
    });
}

fn deleted_nftables_chain(backend: &str) {
    Node::test(Topology::Veth, |node| {
        let _agent = node.start_agent(&[backend])?;
        let ruleset = || snapshot::nf_tables(&node.netns);
        let before = ruleset()?;
        let table = before
            .lines()
            .find_map(|line| line.strip_prefix("table ip "))
            .and_then(|rest| rest.split_whitespace().next())
            .context("a table of family ip")?;
        let chain = before
            .lines()
            .find_map(|line| line.trim().strip_prefix("chain "))
            .and_then(|rest| rest.split_whitespace().next())
            .context("a chain")?;
        repaired(
            "a chain of ours without its rules",
            || Ok(ruleset()? == before),
            || {
                let line = format!("nft flush chain ip {table} {chain}");
                node.netns.exec(&line).map(drop)
            },
        )
    });
}

/// Defines the same tests for the backends for whose every change the kernel sends a notification.
macro_rules! backends {
    ($($name:ident: $backend:expr, [$($test:ident)*];)*) => {$(
        mod $name {
            $(
                #[test]
                fn $test() {
                    super::$test($backend);
                }
            )*
        }
    )*};
}

backends! {
    ebpf: "--backend=ebpf",
        [deleted_vip downed_link vip_on_another_link flushed_nftables deleted_nftables_chain];
    nftables: "--backend=nftables",
        [deleted_vip downed_link vip_on_another_link flushed_nftables deleted_nftables_chain];
}

#[test]
fn deleted_clsact() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        let _agent = node.start_agent(&["--backend=ebpf", "--tc-attach=clsact"])?;
        let _proxy = Proxy::start(node)?;
        repaired(
            "the deleted clsact qdisc",
            || {
                let filters = node.netns.exec("tc filter show dev pod0 ingress");
                Ok(filters.is_ok_and(|filters| filters.contains("bpf")))
            },
            || node.netns.exec("tc qdisc del dev pod0 clsact").map(drop),
        )?;
        ensure!(untracked(node)?, "tracked after the repair");
        Ok(())
    });
}

/// The agent notices it by the removal of the pin, and at the next resync at the latest.
#[test]
fn detached_tcx_link() -> Result<()> {
    if skip::without_tcx("detached-tcx-link")? {
        return Ok(());
    }
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        let _agent =
            node.start_agent(&["--backend=ebpf", "--tc-attach=tcx", "--sync-interval=1s"])?;
        let _proxy = Proxy::start(node)?;
        ensure!(untracked(node)?, "tracked although nothing is wrong");
        let pin = node.link_pin("pod0")?;
        std::fs::remove_file(&pin).with_context(|| format!("removing {}", pin.display()))?;
        // The kernel frees the link with a short delay after its last reference is gone.
        ensure!(
            cmd::wait_until(TIMEOUT, "the link to be attached again", || {
                Ok(pin.exists().then_some(()))
            })
            .is_ok(),
            "{} was not made again",
            pin.display()
        );
        ensure!(untracked(node)?, "tracked after the resync");
        Ok(())
    });
    Ok(())
}

#[test]
fn deleted_iptables_rules() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        // The kernel sends no notification of changes of legacy tables, so this repair waits for a resync.
        let _agent = node.start_agent(&["--backend=iptables", "--sync-interval=500ms"])?;
        for program in ["iptables-nft", "ip6tables-nft"] {
            let rules = || node.netns.exec(&format!("{program} -t raw -S"));
            let before = rules()?;
            ensure!(before.contains("443"), "no rules in\n{before}");
            repaired(
                &format!("the rules flushed from {program}'s raw table"),
                || Ok(rules()? == before),
                || {
                    node.netns
                        .exec(&format!("{program} -w -t raw -F"))
                        .map(drop)
                },
            )?;
        }
        Ok(())
    });
}

/// A filter of iptables-nft that drops untracked packets gets the ACCEPT rules at once, whether a rule or the policy does
/// it. The kernel sends no notification of changes of legacy tables.
#[test]
fn filters_that_come_later() {
    const PROGRAMS: [&str; 2] = ["iptables-nft", "ip6tables-nft"];
    for drops in [
        "INPUT -m conntrack --ctstate INVALID,UNTRACKED -j DROP",
        "INPUT DROP",
    ] {
        Node::test(Topology::Veth, |node| {
            KubeProxy::Nftables.install_without_masquerade(&node.netns)?;
            let _agent = node.start_agent(&["--backend=ebpf"])?;
            let _proxy = Proxy::start(node)?;
            ensure!(untracked(node)?, "tracked before");
            let are_accepted = || -> Result<bool> {
                for program in PROGRAMS {
                    let rules = node.netns.exec(&format!("{program}-save -t filter"))?;
                    if !rules.contains("proxy-agent: accept") {
                        return Ok(false);
                    }
                }
                Ok(true)
            };
            ensure!(!are_accepted()?, "there are ACCEPT rules before a filter");
            std::thread::sleep(QUIET);
            let command = if drops.ends_with("-j DROP") {
                "-A"
            } else {
                "-P"
            };
            for program in PROGRAMS {
                node.netns.exec(&format!("{program} {command} {drops}"))?;
            }
            cmd::wait_until(
                TIMEOUT,
                "ACCEPT rules",
                || Ok(are_accepted()?.then_some(())),
            )
            .with_context(|| drops)?;
            ensure!(untracked(node)?, "tracked with {drops}");
            Ok(())
        });
    }
}
