// SPDX-License-Identifier: Apache-2.0

//! Programs of the host change the node's network while connections are live: a network manager that removes addresses
//! and routes it does not know, an uplink that becomes the port of a bridge, a firewall that is reloaded, sysctls of a
//! hardening guide, and more events than the receive buffers of the agent's sockets can hold.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::agent::Agent;
use tests::kubeproxy::KubeProxy;
use tests::netns::Netns;
use tests::node::{Node, Topology, gateway_address, uplink_address};
use tests::path::Via;
use tests::proxy::Proxy;
use tests::streams::{all_end_intact, all_go_on, entries, open, open_on};
use tests::{Family, client, cmd, doctor};

use super::{SHORT, TIMEOUT, with_services, works};

/// The time for which a host has no addresses while its network manager restarts.
const AWAY: Duration = Duration::from_millis(300);

/// Checks that conntrack tracks no connection that the agent should keep untracked.
fn nothing_is_tracked(node: &Node) -> Result<()> {
    let entries = entries(node)?;
    ensure!(entries.is_empty(), "{entries:#?}");
    Ok(())
}

fn has_routes_with_source(node: &Node) -> Result<bool> {
    for (flag, family) in [("-4", Family::V4), ("-6", Family::V6)] {
        let shown = node
            .netns
            .exec(&format!("ip {flag} route show table local proto 112"))?;
        let source = format!("src {}", uplink_address(family));
        if !shown.contains(&family.cluster_ip().to_string()) || !shown.contains(&source) {
            return Ok(false);
        }
    }
    Ok(true)
}

pub(super) fn put_uplink_back(node: &Node, link: &str) -> Result<()> {
    let mut lines = String::new();
    for (length, nodad, family) in [(24, "", Family::V4), (64, " nodad", Family::V6)] {
        let (own, gateway) = (uplink_address(family), gateway_address(family));
        writeln!(lines, "address add {own}/{length} dev {link}{nodad}")?;
        writeln!(lines, "route add default via {gateway} dev {link}")?;
    }
    node.netns.ip(&lines)
}

/// A network manager that restarts removes the VIPs, the routes of the ClusterIPs and the node's own addresses, and
/// restores only the last. Live connections continue, and the routes name the node's address as the source again.
#[test]
fn a_network_manager_that_restarts() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install_without_masquerade(&node.netns)?;
        let _agent = node.start_agent(&with_services(&[]))?;
        let _proxy = Proxy::start(node)?;
        let streams = open(node)?;
        let mut away = String::new();
        for family in Family::ALL {
            let (vip, length) = (family.vip(), family.host_prefix());
            writeln!(away, "address del {vip}/{length} dev lo")?;
        }
        for flag in ["-4", "-6"] {
            let flush = format!("ip {flag} route flush table local proto 112");
            node.netns.exec(&flush)?;
        }
        node.netns.ip(&away)?;
        node.netns.exec("ip -4 address flush dev eth0")?;
        node.netns
            .exec("ip -6 address flush dev eth0 scope global")?;
        node.netns.exec("ip -6 route flush dev eth0 default")?;
        std::thread::sleep(AWAY);
        put_uplink_back(node, "eth0")?;
        cmd::wait_until(TIMEOUT, "the routes, with their source", || {
            Ok(has_routes_with_source(node)?.then_some(()))
        })?;
        all_go_on(&streams)?;
        all_end_intact(streams)?;
        for path in node.paths() {
            works(&path)?;
        }
        nothing_is_tracked(node)
    });
}

/// The uplink becomes a port of a bridge, to which its addresses and the default route move. Live connections continue,
/// and with `ebpf` a neighbour gets no reply through the port. `--guard=eth0` names the port, because this uplink is a
/// veth, and the agent treats a veth on a bridge as a pod's.
#[test]
fn an_uplink_that_becomes_the_port_of_a_bridge() {
    for args in [with_services(&["--guard=eth0"]), vec!["--backend=nftables"]] {
        Node::test(Topology::Veth, |node| {
            KubeProxy::IptablesNft.install_without_masquerade(&node.netns)?;
            let _agent = node.start_agent(&args)?;
            let proxy = Proxy::start(node)?;
            let streams = open(node)?;
            node.netns.exec("ip -6 route flush dev eth0 default")?;
            node.netns.ip("link add br-ex type bridge\n\
                 address flush dev eth0\n\
                 link set br-ex up\n\
                 link set eth0 master br-ex\n")?;
            put_uplink_back(node, "br-ex")?;
            all_go_on(&streams)?;
            all_end_intact(streams)?;
            for path in node.paths() {
                works(&path)?;
            }
            if args.len() == 1 {
                return Ok(());
            }
            nothing_is_tracked(node)?;
            let before = proxy.accepted();
            for family in Family::ALL {
                let (vip, length) = (family.vip(), family.host_prefix());
                let via = uplink_address(family);
                node.uplink
                    .ip(&format!("route add {vip}/{length} via {via}\n"))?;
                let to = family.vip_socket();
                cmd::wait_until(TIMEOUT, "silence for the neighbour", || {
                    Ok(client::connect(&node.uplink, to, SHORT)
                        .is_err()
                        .then_some(()))
                })?;
                ensure!(
                    client::connect(&node.uplink, to, SHORT).is_err(),
                    "{to} answers a neighbour"
                );
            }
            ensure!(
                proxy.accepted() == before,
                "a neighbour got through to the proxy"
            );
            Ok(())
        });
    }
}

/// A sysctl file disables forwarding. Packets that end on the node are not forwarded, so they are decided as before.
#[test]
fn forwarding_that_is_switched_off() {
    for args in [with_services(&[]), vec!["--backend=nftables"]] {
        Node::test(Topology::Veth, |node| {
            KubeProxy::IptablesNft.install_without_masquerade(&node.netns)?;
            let _agent = node.start_agent(&args)?;
            let _proxy = Proxy::start(node)?;
            let streams = open(node)?;
            for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
                node.netns.sysctl(key, "0")?;
            }
            // A host that does not forward accepts router advertisements, and drops routes that it learned from them,
            // but not these.
            all_go_on(&streams)?;
            all_end_intact(streams)?;
            for path in node.paths() {
                works(&path)?;
            }
            if args.len() > 1 {
                nothing_is_tracked(node)?;
            }
            Ok(())
        });
    }
}

/// Returns the tables of firewalld: packets of connections that conntrack knows are accepted, then zones by link apply;
/// packets of a link in no zone are rejected. The IPv6 reverse path filter of firewalld is included.
fn firewalld(trusted: &str) -> String {
    format!(
        r#"table inet firewalld {{
    chain mangle_PREROUTING {{
        type filter hook prerouting priority mangle + 10; policy accept;
        icmpv6 type {{ nd-router-advert, nd-neighbor-solicit }} accept
        meta nfproto ipv6 fib saddr . mark . iif oif missing drop
    }}
    chain filter_INPUT {{
        type filter hook input priority filter + 10; policy accept;
        ct state {{ established, related }} accept
        ct status dnat accept
        iifname "lo" accept
        ct state invalid drop
        jump filter_INPUT_ZONES
        reject with icmpx admin-prohibited
    }}
    chain filter_INPUT_ZONES {{
        {trusted}
        meta l4proto {{ icmp, ipv6-icmp }} accept
        tcp dport {{ 22, 10250 }} accept
    }}
    chain filter_OUTPUT {{
        type filter hook output priority filter + 10; policy accept;
        ct state {{ established, related }} accept
        oifname "lo" accept
    }}
}}
"#
    )
}

/// firewalld is started and reloaded, which flushes the rules of all programs. With the pods' links in its zone
/// `trusted`, live and new connections continue; otherwise `doctor` names the chain that rejects them.
#[test]
fn firewalld_that_is_reloaded() {
    const TRUSTED: &str = r#"iifname "pod*" accept"#;
    for args in [with_services(&[]), vec!["--backend=nftables"]] {
        Node::test(Topology::Veth, |node| {
            let load = |zones: &str| node.netns.feed("nft -f -", &firewalld(zones)).map(drop);
            KubeProxy::IptablesNft.install_without_masquerade(&node.netns)?;
            load(TRUSTED)?;
            let _agent = node.start_agent(&args)?;
            let _proxy = Proxy::start(node)?;
            let mut paths = node.paths();
            paths.retain(|path| args.len() > 1 || path.via == Via::Vip);
            let streams = open_on(paths.clone())?;
            all_go_on(&streams)?;
            node.netns.exec("nft flush ruleset")?;
            load(TRUSTED)?;
            KubeProxy::IptablesNft.install_without_masquerade(&node.netns)?;
            all_go_on(&streams).context("after the reload")?;
            for path in &paths {
                works(path).context("after the reload")?;
            }
            all_end_intact(streams)?;

            node.netns.exec("nft delete table inet firewalld")?;
            load("")?;
            let of_pod = paths.iter().find(|path| path.client == "pod0");
            let of_pod = of_pod.context("no pod")?;
            let refused = client::connect(of_pod.netns, of_pod.destination(), SHORT);
            ensure!(refused.is_err(), "{of_pod}: in no zone, and not rejected");
            let faults = doctor::found(node, "firewall", "warning")?;
            let named = "nf_tables table inet firewalld, chain filter_INPUT";
            let is_named =
                |fault: &serde_json::Value| doctor::text(fault, "finding").contains(named);
            ensure!(faults.iter().any(is_named), "{faults:#?}");
            Ok(())
        });
    }
}

/// Returns the number of events that the kernel could not deliver in a namespace: only the agent's sockets subscribe to
/// events there.
fn lost_events(netns: &Netns) -> Result<u64> {
    let text = netns.run(|| std::fs::read_to_string("/proc/thread-self/net/netlink"))?;
    let drops = text.lines().skip(1).filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        columns.get(8)?.parse::<u64>().ok()
    });
    Ok(drops.sum())
}

/// More events occur at once than the agent's sockets can hold, and the agent's objects are removed meanwhile. The
/// agent still repairs them at once, and not at the next interval, an hour later.
#[test]
fn more_events_than_there_is_room_for() {
    Node::test(Topology::Veth, |node| {
        let agent: Agent = node.start_agent(&with_services(&[]))?;
        let _proxy = Proxy::start(node)?;
        for path in node.paths() {
            works(&path)?;
        }
        agent.signal(libc::SIGSTOP)?;
        let mut storm = String::new();
        let mut sets = String::new();
        for number in 0..3_000 {
            writeln!(storm, "link set pod1 alias storm-{number}")?;
            writeln!(
                sets,
                "add table ip storm{number}\ndelete table ip storm{number}"
            )?;
        }
        node.netns.ip(&storm)?;
        node.netns.feed("nft -f -", &sets)?;
        let lost = lost_events(&node.netns)?;
        ensure!(lost > 0, "there was room for all: this shows nothing");
        println!("{lost} events were lost");
        node.netns.exec("nft flush ruleset")?;
        for family in Family::ALL {
            let (vip, length) = (family.vip(), family.host_prefix());
            node.netns
                .exec(&format!("ip address del {vip}/{length} dev lo"))?;
        }
        node.detach("pod0")?;
        agent.signal(libc::SIGCONT)?;
        cmd::wait_until(TIMEOUT, "everything to be repaired", || {
            let shown = node.netns.exec("ip -o address show dev lo")?;
            let has_vips = Family::ALL
                .iter()
                .all(|family| shown.contains(&format!(" {}/", family.vip())));
            let tables = node.netns.exec("nft list tables")?;
            let is_right = has_vips
                && tables.contains("ip proxy-agent_services")
                && tables.contains("ip6 proxy-agent")
                && node.is_attached("pod0")?;
            Ok(is_right.then_some(()))
        })?;
        for path in node.paths() {
            works(&path)?;
        }
        nothing_is_tracked(node)
    });
}
