// SPDX-License-Identifier: Apache-2.0

//! The VIPs and the link that carries them.

use std::io::{Read as _, Write as _};
use std::net::UdpSocket;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::cmd::{self, Process};
use tests::netns::Netns;
use tests::node::{Node, Topology};
use tests::{Family, skip, snapshot};

const TIMEOUT: Duration = Duration::from_secs(5);
const ONCE: &[&str] = &["--backend=none", "--daemon=false"];

/// Runs one pass, which must succeed.
fn pass(node: &Node, args: &[&str]) -> Result<String> {
    let args = [ONCE, args].concat();
    let output = node.run_agent(&args)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{args:?}: {}\n{stderr}",
        output.status
    );
    Ok(String::from_utf8(output.stdout)?)
}

fn addresses(netns: &Netns, link: &str) -> Result<String> {
    netns.exec(&format!("ip -o address show dev {link}"))
}

/// Checks that every VIP is on the link, alone in its prefix, usable at once and without an expiry time.
fn ensure_vips(netns: &Netns, link: &str, vips: &[&str]) -> Result<()> {
    let shown = addresses(netns, link)?;
    for vip in vips {
        let len = if vip.contains(':') { 128 } else { 32 };
        let address = shown
            .lines()
            .find(|address| address.contains(&format!(" {vip}/{len} ")))
            .with_context(|| format!("{vip}/{len} is not on {link}:\n{shown}"))?;
        // With these properties the kernel does not use it as the source of other traffic.
        let kept = if vip.contains(':') {
            "deprecated"
        } else {
            "scope link"
        };
        ensure!(address.contains(kept), "{address}");
        ensure!(address.contains("valid_lft forever"), "{address}");
        ensure!(!address.contains("tentative"), "{address}");
    }
    Ok(())
}

#[test]
fn vips_on_lo() {
    Node::test(Topology::Veth, |node| {
        pass(node, &[])?;
        ensure_vips(&node.netns, "lo", &["10.96.0.2", "fd00:96::2"])
    });
}

/// Returns the source address that the kernel selects for a destination.
fn source(netns: &Netns, to: &str) -> Result<String> {
    let route = netns.exec(&format!("ip -o route get {to}"))?;
    let mut words = route.split_whitespace().skip_while(|word| *word != "src");
    let source = words
        .nth(1)
        .with_context(|| format!("no source: {route}"))?;
    Ok(source.to_owned())
}

/// No VIP is the source of packets of a socket that is not bound to it: towards a pod whose link has no address on the
/// node's side, on nodes whose only addresses are on `lo`, with IPv6 uplinks that have link-local addresses only, and
/// also if the agent runs before the node's addresses are added.
#[test]
fn vips_are_never_a_source_address() {
    let pods = ["10.0.0.5", "fd00:97::5"];
    let gateways = ["192.0.2.99", "2001:db8::99"];
    for link in ["lo", "vips"] {
        Node::test(Topology::Veth, |node| {
            node.netns.ip("link add vips type ifb\n")?;
            node.netns
                .ip("route flush default\naddress flush dev eth0 scope global\n")?;
            node.netns.exec("ip -6 route flush default")?;
            let interface = format!("--interface={link}");
            pass(node, &[&interface, "--address-scope=global"])?;
            // The node's links have only link-local addresses; its own addresses are added after the VIPs.
            node.netns.ip("address add 172.31.0.1/32 dev lo\n\
                 address add fd00:200::1/128 dev lo nodad\n\
                 route add 10.0.0.5 dev pod0 scope link\n\
                 route add fd00:97::5 dev pod0\n\
                 route add default dev eth0\n\
                 route add default via fe80::99 dev eth0\n")?;
            let expect = |to: [&str; 2], sources: [&str; 2]| {
                for (to, wanted) in to.into_iter().zip(sources) {
                    let found = source(&node.netns, to)?;
                    ensure!(found == wanted, "{link}: to {to} from {found}");
                }
                Ok(())
            };
            let (own, vips) = (["172.31.0.1", "fd00:200::1"], ["10.96.0.2", "fd00:96::2"]);
            // With earlier versions the kernel selected the first of the addresses on `lo`, and the one most similar to
            // the pod's.
            expect(
                pods,
                [[own[0], vips[0]][usize::from(link == "lo")], vips[1]],
            )?;

            pass(node, &[&interface])?;
            expect(pods, own)?;
            expect(gateways, own)?;
            // Connections to the VIPs still have them as their source.
            expect(vips, vips)
        });
    }
}

/// An agent of an earlier version added the VIPs with other scopes: they change without a moment in which a VIP is
/// missing.
#[test]
fn the_scope_changes_in_place() {
    Node::test(Topology::Veth, |node| {
        pass(node, &["--address-scope=global"])?;
        let shown = addresses(&node.netns, "lo")?;
        ensure!(shown.contains("10.96.0.2/32 scope global"), "{shown}");
        ensure!(!shown.contains("deprecated"), "{shown}");
        // These are the leftovers of an agent that was killed half-way.
        node.netns
            .ip("address add 10.96.0.2 peer 127.96.0.2/32 dev lo scope link\n")?;
        let vips = Family::ALL.map(Family::vip);
        let (stop, before) = (AtomicBool::new(false), addresses(&node.netns, "lo")?);
        let gaps = std::thread::scope(|scope| {
            let watch = scope.spawn(|| {
                node.netns.run(|| {
                    let (mut looks, mut gaps) = (0_u64, Vec::new());
                    while !stop.load(Ordering::Relaxed) {
                        let refused = vips.map(|vip| UdpSocket::bind((vip, 0)).err());
                        gaps.extend(refused.into_iter().flatten());
                        looks += 1;
                    }
                    (looks, gaps)
                })
            });
            let changed = || {
                for (scope, shows) in [("auto", "link"), ("global", "global"), ("link", "link")] {
                    pass(node, &[&format!("--address-scope={scope}")])?;
                    let shown = addresses(&node.netns, "lo")?;
                    let wanted = format!("10.96.0.2/32 scope {shows}");
                    ensure!(shown.contains(&wanted), "{scope}: {shown}");
                    ensure!(!shown.contains("peer"), "{scope}: {shown}");
                    ensure!(shown.contains("deprecated") == (shows == "link"), "{shown}");
                }
                Ok(())
            };
            let changed = changed();
            stop.store(true, Ordering::Relaxed);
            changed.map(|()| watch.join().expect("it does not panic"))
        })?;
        let (looks, gaps) = gaps;
        ensure!(
            looks > 0 && gaps.is_empty(),
            "{looks} looks: {gaps:?}, before {before}"
        );
        ensure_vips(&node.netns, "lo", &["10.96.0.2", "fd00:96::2"])?;

        // Cilium accepts no other scope for the node's own addresses.
        node.netns.ip("link add cilium_host type ifb\n")?;
        pass(node, &[])?;
        let shown = addresses(&node.netns, "lo")?;
        ensure!(shown.contains("10.96.0.2/32 scope global"), "{shown}");
        Ok(())
    });
}

#[test]
fn several_vips_in_both_families() {
    Node::test(Topology::Veth, |node| {
        let vips = [
            "10.96.0.2",
            "10.96.0.3",
            "172.20.0.1",
            "fd00:96::2",
            "fd00:97::1",
        ];
        let first = format!("--ip-address={}", vips[..2].join(","));
        let second = format!("--ip-address={}", vips[2..].join(","));
        pass(node, &[&first, &second])?;
        ensure_vips(&node.netns, "lo", &vips)
    });
}

#[test]
fn a_second_pass_changes_nothing() {
    Node::test(Topology::Veth, |node| {
        pass(node, &[])?;
        let before = snapshot::take(&node.netns)?;
        let plan = pass(node, &["--dry-run"])?;
        ensure!(!plan.contains("10.96.0.2"), "a plan for nothing: {plan}");
        pass(node, &[])?;
        unchanged(&before, node)
    });
}

const SETTLED_WITHIN: Duration = Duration::from_secs(2);

/// Checks that the node is unchanged. The kernel sets up IPv6 on new links in deferred work, which may end only after
/// the first check.
fn unchanged(before: &str, node: &Node) -> Result<()> {
    let mut difference = None;
    let settled = cmd::wait_until(SETTLED_WITHIN, "the node to be as it was", || {
        let after = snapshot::take(&node.netns)?;
        difference = snapshot::difference(before, &after);
        Ok(difference.is_none().then_some(()))
    });
    settled.with_context(|| format!("changed:\n{}", difference.unwrap_or_default()))
}

#[test]
fn a_downed_link_is_brought_up() {
    Node::test(Topology::Veth, |node| {
        node.netns.ip("link add vips type ifb\n")?;
        pass(node, &["--interface=vips"])?;
        ensure!(!node.netns.exec("ip -o link show dev vips up")?.is_empty());
        ensure_vips(&node.netns, "vips", &["10.96.0.2", "fd00:96::2"])
    });
}

/// Objects that existed before are not deleted either: neither by a pass nor by a clean-up.
#[test]
fn an_adopted_link_survives_a_clean_up() {
    Node::test(Topology::Veth, |node| {
        node.netns
            .ip("link add vips type ifb\nlink set vips up\n")?;
        for link in ["vips", "lo"] {
            let before = snapshot::take(&node.netns)?;
            let interface = format!("--interface={link}");
            let mut agent = node.start_agent(&["--backend=none", "--cleanup", &interface])?;
            ensure_vips(&node.netns, link, &["10.96.0.2", "fd00:96::2"])?;
            ensure!(agent.stop(libc::SIGTERM)?.success());
            unchanged(&before, node)?;
        }
        Ok(())
    });
}

#[test]
fn a_missing_link_is_created() {
    Node::test(Topology::Veth, |node| {
        let link = "apiserver-proxy";
        let args = ["--backend=none", "--cleanup", "--interface=apiserver-proxy"];
        let before = snapshot::take(&node.netns)?;
        let name = "links-a_missing_link_is_created";
        skip::clear(name)?;
        if !node.has_dummy_links()? {
            skip::record(
                name,
                "this kernel has no links of the kind dummy: only the error was tested",
            )?;
            let output = node.run_agent(&["--daemon=false", args[0], args[2]])?;
            let stderr = String::from_utf8_lossy(&output.stderr);
            ensure!(
                output.status.code() == Some(1),
                "{}\n{stderr}",
                output.status
            );
            ensure!(
                stderr.contains(link) && stderr.contains("dummy"),
                "{stderr}"
            );
            return unchanged(&before, node);
        }
        let mut agent = node.start_agent(&args)?;
        ensure_vips(&node.netns, link, &["10.96.0.2", "fd00:96::2"])?;
        let shown = node
            .netns
            .exec(&format!("ip -d -o link show dev {link} up"))?;
        ensure!(shown.contains("dummy"), "{shown}");
        // This also holds if an earlier run created the link.
        agent.stop(libc::SIGKILL)?;
        let mut agent = node.start_agent(&args)?;
        ensure!(agent.stop(libc::SIGINT)?.success());
        unchanged(&before, node)
    });
}

/// The new link has the VIP before the old one loses it, in the order of the kernel's notifications. In IPv6 the kernel
/// sends the notification of an address, and adds its local route, a moment after it has accepted the request.
#[test]
fn a_vip_on_the_wrong_link_moves_without_a_gap() {
    Node::test(Topology::Veth, |node| {
        node.add_vips("eth0")?;
        let mut monitor = node.netns.command("ip");
        monitor
            .args(["-o", "monitor", "address"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        cmd::guard_child(&mut monitor);
        let mut monitor = Process::new(monitor.spawn().context("starting ip monitor")?);
        // `ip monitor` listens once it has printed a change; this one does not concern a VIP.
        let mut seen = String::new();
        let mut output = monitor.child().stdout.take().context("stdout is a pipe")?;
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| output.read_to_string(&mut seen));
            std::thread::sleep(Duration::from_millis(200));
            pass(node, &[])?;
            std::thread::sleep(Duration::from_millis(100));
            monitor.signal(libc::SIGTERM)?;
            reader.join().expect("it does not panic")?;
            anyhow::Ok(())
        })?;
        for family in Family::ALL {
            let vip = format!(" {}/", family.vip());
            let lines: Vec<&str> = seen.lines().filter(|line| line.contains(&vip)).collect();
            let added = lines
                .iter()
                .position(|line| !line.starts_with("Deleted") && line.contains(": lo"));
            let deleted = lines
                .iter()
                .position(|line| line.starts_with("Deleted") && line.contains(": eth0"));
            ensure!(
                matches!((added, deleted), (Some(added), Some(deleted)) if added < deleted),
                "not added to lo and then deleted from eth0:\n{seen}"
            );
        }
        ensure_vips(&node.netns, "lo", &["10.96.0.2", "fd00:96::2"])?;
        let rest = addresses(&node.netns, "eth0")?;
        ensure!(
            !rest.contains("10.96.0.2") && !rest.contains("fd00:96::2"),
            "{rest}"
        );
        ensure!(rest.contains("192.168.100.10/24"), "{rest}");
        Ok(())
    });
}

#[test]
fn a_wrong_prefix_is_corrected() {
    Node::test(Topology::Veth, |node| {
        node.netns.ip("address add 10.96.0.2/24 dev lo\n\
             address add fd00:96::2/64 dev lo nodad\n")?;
        pass(node, &[])?;
        ensure_vips(&node.netns, "lo", &["10.96.0.2", "fd00:96::2"])?;
        let shown = addresses(&node.netns, "lo")?;
        ensure!(
            !shown.contains("10.96.0.2/24") && !shown.contains("fd00:96::2/64"),
            "{shown}"
        );
        Ok(())
    });
}

#[test]
fn a_dry_run_prints_the_plan_and_changes_nothing() {
    Node::test(Topology::Veth, |node| {
        let before = snapshot::take(&node.netns)?;
        for backend in ["none", "ebpf", "nftables", "iptables"] {
            let backend = format!("--backend={backend}");
            let output = node.run_agent(&["--dry-run", &backend])?;
            let plan = String::from_utf8_lossy(&output.stdout);
            let stderr = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.success(), "{}\n{stderr}", output.status);
            for family in Family::ALL {
                let vip = family.vip().to_string();
                ensure!(
                    plan.contains(&vip),
                    "{backend}: no word of {vip} in\n{plan}\n{stderr}"
                );
            }
            unchanged(&before, node).context(backend.clone())?;
            let pinned = node.agent_bpffs().exists();
            ensure!(
                !pinned,
                "{backend}: a dry run made {}",
                node.agent_bpffs().display()
            );
        }
        Ok(())
    });
}

/// A pass that cannot be completed reports that in its exit code, and does the possible part.
#[test]
fn a_pass_that_fails_exits_with_1() -> Result<()> {
    if skip::before(
        (5, 12),
        "tables with an owner",
        "a-pass-that-fails-exits-with-1",
    )? {
        return Ok(());
    }
    Node::test(Topology::Veth, |node| {
        // The agent cannot change a table with its name that another process owns.
        let mut owner = node.netns.command("nft");
        owner
            .arg("--interactive")
            .stdin(Stdio::piped())
            .stdout(Stdio::null());
        cmd::guard_child(&mut owner);
        let mut owner = Process::new(owner.spawn().context("starting nft")?);
        let mut stdin = owner.child().stdin.take().context("stdin is a pipe")?;
        stdin.write_all(b"add table ip proxy-agent { flags owner; }\n")?;
        cmd::wait_until(TIMEOUT, "the foreign table", || {
            let tables = node.netns.exec("nft list tables")?;
            Ok(tables.contains("proxy-agent").then_some(()))
        })?;
        let output = node.run_agent(&["--backend=ebpf", "--daemon=false"])?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(1),
            "{}\n{stderr}",
            output.status
        );
        ensure!(stderr.contains("table ip proxy-agent"), "{stderr}");
        ensure_vips(&node.netns, "lo", &["10.96.0.2", "fd00:96::2"])?;
        let ipv6 = node.netns.exec("nft list table ip6 proxy-agent")?;
        ensure!(
            ipv6.contains("notrack"),
            "the other family is left out: {ipv6}"
        );
        drop(stdin);
        Ok(())
    });
    Ok(())
}

/// An error in one part does not keep the other parts from being reconciled.
#[test]
fn the_vip_comes_up_although_the_backend_fails() {
    Node::test(Topology::Veth, |node| {
        let mut command = node.agent_command(&["--backend=auto"])?;
        tests::degraded_host::Missing::Bpf.apply(&mut command);
        let _agent = node.spawn(command)?;
        cmd::wait_until(TIMEOUT, "the VIPs", || {
            Ok(ensure_vips(&node.netns, "lo", &["10.96.0.2", "fd00:96::2"]).ok())
        })
    });
}
