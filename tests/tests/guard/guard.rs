// SPDX-License-Identifier: Apache-2.0

//! The VIP is reachable from this node only: a neighbour that routes it to the node gets no reply, with every backend;
//! pods and the node itself are not affected; and the set of guarded links follows the node's routes.

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::agent::TRANSLATE;
use tests::bpf::ForeignProgram;
use tests::degraded_host::Missing;
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology, gateway_address, uplink_address};
use tests::proxy::Proxy;
use tests::status::{dropped, guarded};
use tests::{Family, PORT, client, cmd, doctor, slow_machine, transfer};

const TIMEOUT: Duration = Duration::from_secs(10);
/// The time-out of connections that get no reply; at most two SYNs are sent in it.
const SHORT: Duration = Duration::from_millis(400);
const ALLOW: &str = "--allow-from=192.168.100.0/24,fd00:100::/64,198.51.100.7";

/// Makes the neighbour route the VIPs to the node.
fn route_vips(node: &Node) -> Result<()> {
    let mut lines = String::new();
    for family in Family::ALL {
        let to = uplink_address(family);
        let (vip, length) = (family.vip(), family.host_prefix());
        writeln!(lines, "route replace {vip}/{length} via {to}")?;
    }
    node.uplink.ip(&lines)
}

fn answers(node: &Node, family: Family) -> Result<bool> {
    match client::connect(&node.uplink, family.vip_socket(), SHORT) {
        Ok(mut stream) => {
            // From here on, missing data counts as an answer, too.
            stream.set_read_timeout(Some(slow_machine::of(SHORT)))?;
            transfer::exchange(&mut stream, 10_000, 1)?;
            Ok(true)
        }
        Err(error) if error.kind() == ErrorKind::TimedOut => Ok(false),
        Err(error) => Err(error).context("neither an answer nor silence"),
    }
}

fn ensure_answers(node: &Node, wanted: bool) -> Result<()> {
    for family in Family::ALL {
        let answers = answers(node, family)?;
        ensure!(answers == wanted, "{family:?}: an answer: {answers}");
    }
    Ok(())
}

/// Waits until the node replies to the neighbour or, if `wanted` is false, until it does not.
fn wait_for_answers(node: &Node, wanted: bool) -> Result<()> {
    cmd::wait_until(
        TIMEOUT,
        &format!("answers to the neighbour: {wanted}"),
        || {
            for family in Family::ALL {
                // A connection fails if the guard is activated in the middle of it.
                if answers(node, family).ok() != Some(wanted) {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        },
    )
}

fn pods_and_host_work(node: &Node) -> Result<()> {
    for path in node.paths() {
        let mut stream = client::connect(path.netns, path.destination(), TIMEOUT)
            .with_context(|| path.to_string())?;
        transfer::exchange(&mut stream, 100_000, 2).with_context(|| path.to_string())?;
    }
    Ok(())
}

/// One backend: its flags, the missing feature if there is one, the state of eth0 in `status`, and whether it counts
/// packets.
struct Backend {
    args: &'static [&'static str],
    missing: Option<Missing>,
    how: &'static str,
    counts: bool,
}

fn check(backend: &Backend, topology: Topology) {
    Node::test(topology, |node| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        route_vips(node)?;
        let start = |more: &[&str]| {
            let args = [backend.args, more].concat();
            match backend.missing {
                Some(missing) => node.start_agent_missing(missing, &args),
                None => node.start_agent(&args),
            }
        };
        let mut agent = start(&[])?;
        let _proxy = Proxy::start(node)?;
        ensure_answers(node, false)?;
        pods_and_host_work(node)?;
        let (links, notes) = guarded(node)?;
        ensure!(links == [format!("eth0: {}", backend.how)], "{links:?}");
        ensure!(notes.is_empty(), "{notes:?}");
        if backend.counts {
            let count = dropped(node, "outside")?;
            ensure!(count >= 2, "{count} packets were counted");
        }
        // Other ports than VIP:443 are not guarded: no process listens there, and the node replies with a reset.
        for family in Family::ALL {
            let other = SocketAddr::new(family.vip(), PORT + 1);
            let refused = client::connect(&node.uplink, other, TIMEOUT);
            let kind = refused.map(drop).map_err(|error| error.kind());
            ensure!(
                kind == Err(ErrorKind::ConnectionRefused),
                "{other}: {kind:?}"
            );
        }
        agent.stop(libc::SIGTERM)?;
        ensure_answers(node, false).context("without an agent")?;

        let mut agent = start(&[ALLOW])?;
        ensure_answers(node, true).context("--allow-from")?;
        pods_and_host_work(node)?;
        agent.stop(libc::SIGTERM)?;

        let mut agent = start(&["--guard=off"])?;
        ensure_answers(node, true).context("--guard=off")?;
        agent.stop(libc::SIGTERM)?;

        let mut agent = start(&["--guard=eth0", "--cleanup"])?;
        ensure_answers(node, false).context("--guard=eth0")?;
        let status = agent.stop(libc::SIGTERM)?;
        ensure!(status.success(), "clean-up: {status}");
        let left = tests::artifacts::data_plane(node)?;
        ensure!(left.is_empty(), "left: {left}");
        Ok(())
    });
}

#[test]
fn ebpf() {
    let backend = Backend {
        args: &["--backend=ebpf"],
        missing: None,
        how: "tc",
        counts: true,
    };
    check(&backend, Topology::Veth);
}

#[test]
fn ebpf_by_clsact() {
    let backend = Backend {
        args: &["--backend=ebpf", "--tc-attach=clsact"],
        missing: None,
        how: "tc",
        counts: true,
    };
    check(&backend, Topology::BridgeNetfilter);
}

#[test]
fn ebpf_with_xdp() {
    let backend = Backend {
        args: &["--backend=ebpf", "--guard-mode=xdp"],
        missing: None,
        how: "xdp, native, and tc",
        counts: true,
    };
    check(&backend, Topology::Bridge);
}

#[test]
fn nftables() {
    let backend = Backend {
        args: &["--backend=nftables"],
        missing: None,
        how: "rules of nftables",
        counts: true,
    };
    check(&backend, Topology::Veth);
}

#[test]
fn iptables() {
    let backend = Backend {
        args: &["--backend=iptables"],
        missing: None,
        how: "rules of iptables",
        counts: false,
    };
    check(&backend, Topology::Veth);
}

/// No way to guard the VIP works, and the agent logs it.
#[test]
fn none_guards_nothing_and_says_so() {
    Node::test(Topology::Veth, |node| {
        route_vips(node)?;
        let _agent = node.start_agent(&["--backend=none"])?;
        let _proxy = Proxy::start(node)?;
        ensure_answers(node, true)?;
        let (links, notes) = guarded(node)?;
        ensure!(links.is_empty() && notes.len() == 1, "{links:?} {notes:?}");
        Ok(())
    });
}

/// The agent follows routes by the kernel's events: in any table, through several hops, and through next hop objects.
#[test]
fn the_guard_follows_routes() {
    for backend in ["--backend=ebpf", "--backend=nftables"] {
        Node::test(Topology::Veth, |node| {
            route_vips(node)?;
            let _agent = node.start_agent(&[backend])?;
            let _proxy = Proxy::start(node)?;
            ensure_answers(node, false)?;
            let v4 = gateway_address(Family::V4);
            let v6 = gateway_address(Family::V6);
            node.netns.exec("ip route del default")?;
            node.netns.exec("ip -6 route del default")?;
            wait_for_answers(node, true).context("no default route")?;
            node.netns
                .ip(&format!("route add default via {v4} dev eth0 table 77\n"))?;
            wait_for_answers(node, false).context("another table")?;
            node.netns.ip("route flush table 77\n")?;
            wait_for_answers(node, true)?;
            node.netns
                .ip(&format!("nexthop add id 7 via {v6} dev eth0\n"))?;
            node.netns.exec("ip -6 route add default nhid 7")?;
            wait_for_answers(node, false).context("a next hop object")?;
            node.netns.exec("ip -6 route del default")?;
            wait_for_answers(node, true)?;
            node.netns.ip(&format!(
                "link add other type ifb\nlink set other up\naddress add 198.51.100.1/24 dev other\n\
                 route add default nexthop via {v4} dev eth0 nexthop via 198.51.100.9 dev other\n"
            ))?;
            wait_for_answers(node, false).context("several hops")?;
            let (links, _) = guarded(node)?;
            ensure!(links.len() == 2, "{links:?}");
            Ok(())
        });
    }
}

/// A bridge has the uplink and pods as ports.
#[test]
fn a_bridge_is_guarded_at_ports_that_are_not_of_pods() {
    Node::test(Topology::Bridge, |node| {
        // The uplink carries a tunnel, because the agent would treat a veth as a pod's.
        node.netns.ip(
            "link add outer type vxlan id 7 remote 192.168.100.1 dstport 4789 dev eth0\n\
             link set outer master cni0 up\n\
             address add 192.168.107.10/24 dev cni0\naddress add fd00:107::10/64 dev cni0 nodad\n\
             route replace default via 192.168.107.1 dev cni0\n\
             route replace default via fd00:107::1 dev cni0\n",
        )?;
        node.uplink.ip(
            "link add inner type vxlan id 7 remote 192.168.100.10 dstport 4789 dev node\n\
             link set inner up\n\
             address add 192.168.107.1/24 dev inner\naddress add fd00:107::1/64 dev inner nodad\n\
             route add 10.96.0.2 via 192.168.107.10\nroute add fd00:96::2 via fd00:107::10\n",
        )?;
        let _agent = node.start_agent(&["--backend=ebpf"])?;
        let _proxy = Proxy::start(node)?;
        let (links, _) = guarded(node)?;
        ensure!(links == ["outer: tc"], "{links:?}");
        ensure_answers(node, false)?;
        pods_work_through_vip(node)
    });
}

fn pods_work_through_vip(node: &Node) -> Result<()> {
    for pod in &node.pods {
        for family in Family::ALL {
            let mut stream = client::connect(&pod.netns, family.vip_socket(), TIMEOUT)?;
            transfer::exchange(&mut stream, 10_000, 3)?;
        }
    }
    Ok(())
}

/// Every port of a bridge may be a pod's: nothing is dropped, and the agent logs it.
#[test]
fn links_that_may_be_pods_are_not_guarded() {
    Node::test(Topology::Bridge, |node| {
        node.netns
            .ip("route replace default via 10.244.1.10 dev cni0\n")?;
        node.netns.exec("ip -6 route del default")?;
        let agent = node.start_agent(&["--backend=ebpf"])?;
        let _proxy = Proxy::start(node)?;
        pods_work_through_vip(node)?;
        let (links, notes) = guarded(node)?;
        ensure!(links.is_empty() && notes.len() == 1, "{links:?} {notes:?}");
        ensure!(notes[0].contains("cni0"), "{notes:?}");
        ensure!(agent.log().contains("not guarded: cni0"), "not in the log");
        Ok(())
    });
}

/// kube-proxy handles packets from outside for a ClusterIP.
#[test]
fn services_are_not_translated_for_the_outside() {
    Node::test(Topology::Veth, |node| {
        let mut routes = String::new();
        for family in Family::ALL {
            let to = uplink_address(family);
            let (service, length) = (family.cluster_ip(), family.host_prefix());
            writeln!(routes, "route add {service}/{length} via {to}")?;
        }
        node.uplink.ip(&routes)?;
        let args = [&TRANSLATE[..], &["--backend=ebpf"]].concat();
        let _agent = node.start_agent(&args)?;
        let _proxy = Proxy::start(node)?;
        for family in Family::ALL {
            let to = family.cluster_ip_socket();
            let mut stream = client::connect(&node.pods[0].netns, to, TIMEOUT)?;
            transfer::exchange(&mut stream, 10_000, 1)?;
            let outside = client::connect(&node.uplink, to, SHORT);
            ensure!(outside.is_err(), "{family:?}: translated");
        }
        Ok(())
    });
}

/// While an XDP program is in the driver of a veth, it limits the MTU that can be set on the other end, as drivers of
/// NICs do for their own link. If the MTU is already larger, the program is attached to the stack. `doctor` reports
/// this.
#[test]
fn xdp_in_the_driver_limits_the_mtu() {
    Node::test(Topology::Veth, |node| {
        let raise = |mtu: u32| node.uplink.exec(&format!("ip link set node mtu {mtu}"));
        for (mode, is_native) in [("xdp", true), ("tc", false)] {
            let mut agent =
                node.start_agent(&["--backend=ebpf", &format!("--guard-mode={mode}")])?;
            let refused = raise(9000).is_err();
            ensure!(refused == is_native, "{mode}: refused: {refused}");
            let said = doctor::doctor(node)?;
            let said = said.checks.iter().find(|check| check["id"] == "xdp-mtu");
            let said = said.context("no check xdp-mtu")?;
            let verdict = if is_native { "ok" } else { "not-applicable" };
            ensure!(said["verdict"] == verdict, "{mode}: {said}");
            ensure!(!is_native || doctor::text(said, "finding").starts_with("eth0 "));
            agent.stop(libc::SIGTERM)?;
        }
        // The MTU is 9000 now.
        let _agent = node.start_agent(&["--backend=ebpf", "--guard-mode=xdp"])?;
        let (links, _) = guarded(node)?;
        ensure!(links == ["eth0: xdp, generic, and tc"], "{links:?}");
        Ok(())
    });
}

/// A foreign XDP program stays attached, and the TC program guards the link.
#[test]
fn another_xdp_program_stays() {
    Node::test(Topology::Veth, |node| {
        route_vips(node)?;
        let foreign = ForeignProgram::attach_as_xdp(&node.netns, "eth0")?;
        let agent = node.start_agent(&["--backend=ebpf", "--guard-mode=xdp"])?;
        let _proxy = Proxy::start(node)?;
        ensure_answers(node, false)?;
        let (links, _) = guarded(node)?;
        ensure!(
            links == ["eth0: tc (another XDP program is attached)"],
            "{links:?}"
        );
        ensure!(agent.log().contains("link eth0 is guarded by TC alone"));
        drop(foreign);
        Ok(())
    });
}
