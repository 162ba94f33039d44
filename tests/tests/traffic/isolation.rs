// SPDX-License-Identifier: Apache-2.0

//! connect(2) is translated in the node's own namespace only. In a pod, no connect(2) is translated: a service mesh or
//! a CNI plugin inside of it sees the same packets as without the agent.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::agent::TRANSLATE;
use tests::kubeproxy::KubeProxy;
use tests::netns::Netns;
use tests::node::{Node, Topology, uplink_address};
use tests::proxy::Proxy;
use tests::{Family, client, conntrack, transfer};

const TIMEOUT: Duration = Duration::from_secs(5);
/// The time-out of connections that get no reply.
const SHORT_TIMEOUT: Duration = Duration::from_millis(300);

/// The rules that count packets at a namespace's own hooks, before any program of the node handles them.
const COUNTERS: &str = r"
table inet seen {
    counter cluster-ip-out {}
    counter cluster-ip-in {}
    counter vip {}
    chain output {
        type filter hook output priority 0; policy accept;
        ip daddr 10.96.0.1 tcp dport 443 counter name cluster-ip-out
        ip6 daddr fd00:96::1 tcp dport 443 counter name cluster-ip-out
        ip daddr 10.96.0.2 counter name vip
        ip6 daddr fd00:96::2 counter name vip
    }
    chain input {
        type filter hook input priority 0; policy accept;
        ip saddr 10.96.0.1 tcp sport 443 counter name cluster-ip-in
        ip6 saddr fd00:96::1 tcp sport 443 counter name cluster-ip-in
        ip saddr 10.96.0.2 counter name vip
        ip6 saddr fd00:96::2 counter name vip
    }
}
";

fn packets(netns: &Netns, counter: &str) -> Result<u64> {
    let text = netns.exec(&format!("nft list counter inet seen {counter}"))?;
    let mut words = text
        .split_whitespace()
        .skip_while(|word| *word != "packets");
    let count = words
        .nth(1)
        .with_context(|| format!("no count in {text}"))?;
    Ok(count.parse()?)
}

fn connect_and_count(netns: &Netns) -> Result<[u64; 3]> {
    for family in Family::ALL {
        let to = family.cluster_ip_socket();
        let mut stream = client::connect(netns, to, TIMEOUT).with_context(|| format!("to {to}"))?;
        let peer = stream.peer_addr()?;
        ensure!(peer == to, "getpeername shows {peer}");
        transfer::exchange(&mut stream, 100_000, 1)?;
    }
    Ok([
        packets(netns, "cluster-ip-out")?,
        packets(netns, "cluster-ip-in")?,
        packets(netns, "vip")?,
    ])
}

#[test]
fn a_pod_sees_the_cluster_ip_only() {
    for topology in [Topology::Veth, Topology::BridgeNetfilter] {
        Node::test(topology, |node| {
            KubeProxy::IptablesNft.install(&node.netns)?;
            let args = [&TRANSLATE[..], &["--backend=ebpf"]].concat();
            let _agent = node.start_agent(&args)?;
            let _proxy = Proxy::start(node)?;
            let pod = &node.pods[0].netns;
            pod.feed("nft -f -", COUNTERS)?;
            let [out, back, vip] = connect_and_count(pod)?;
            ensure!(
                out > 0 && back > 0 && vip == 0,
                "packets to the ClusterIP: {out}, from it: {back}, of the VIP: {vip}"
            );
            for family in Family::ALL {
                let entries = conntrack::list(&node.netns, family)?;
                ensure!(entries.is_empty(), "{entries:#?}");
            }
            Ok(())
        });
    }
}

/// The agent handles neither UDP, nor other ports, nor other addresses.
#[test]
fn a_process_on_the_node_is_left_alone_otherwise() {
    Node::test(Topology::Veth, |node| {
        let args = [&TRANSLATE[..], &["--backend=ebpf"]].concat();
        let _agent = node.start_agent(&args)?;
        let _proxy = Proxy::start(node)?;
        node.uplink
            .ip("route add blackhole 10.96.0.0/16\nroute add blackhole fd00:96::/64\n")?;
        node.netns.feed("nft -f -", COUNTERS)?;
        for netns in [&node.netns, &node.pods[0].netns] {
            for family in Family::ALL {
                let is_node = netns.name() == node.netns.name();
                let own = if is_node {
                    uplink_address(family)
                } else {
                    node.pods[0].address(family)
                };
                let to = family.cluster_ip_socket();
                netns.run(|| -> Result<()> {
                    let socket = UdpSocket::bind((own, 0))?;
                    socket.connect(to)?;
                    ensure!(socket.peer_addr()? == to);
                    Ok(socket.send(b"anybody there?").map(drop)?)
                })?;
                for port in [80, 6443] {
                    let to = SocketAddr::new(family.cluster_ip(), port);
                    let result = client::connect(netns, to, SHORT_TIMEOUT);
                    let kind = result.map(drop).map_err(|error| error.kind());
                    ensure!(kind == Err(ErrorKind::TimedOut), "{to}: {kind:?}");
                }
            }
        }
        let vip = packets(&node.netns, "vip")?;
        ensure!(vip == 0, "{vip} packets of the VIP");
        Ok(())
    });
}

/// For comparison: a process on the node connects to the VIP from the beginning.
#[test]
fn a_process_on_the_node_connects_to_the_vip() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        let args = [&TRANSLATE[..], &["--backend=ebpf"]].concat();
        let _agent = node.start_agent(&args)?;
        let _proxy = Proxy::start(node)?;
        node.netns.feed("nft -f -", COUNTERS)?;
        let [out, back, vip] = connect_and_count(&node.netns)?;
        ensure!(
            out == 0 && back == 0 && vip > 0,
            "packets to the ClusterIP: {out}, from it: {back}, of the VIP: {vip}"
        );
        Ok(())
    });
}
