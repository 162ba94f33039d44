// SPDX-License-Identifier: Apache-2.0

//! Several VIPs and several ports: connections to each pair of them are untracked, and no others.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology, uplink_address};
use tests::{Family, client, conntrack};

const TIMEOUT: Duration = Duration::from_secs(5);
const VIPS: [&str; 4] = ["10.96.0.2", "172.20.0.7", "fd00:96::2", "fd00:97::7"];
const PORTS: [u16; 3] = [443, 6443, 8443];
/// A port that no flag of the agent contains.
const OTHER_PORT: u16 = 9443;

/// Connects from the first pod and from the node, and checks the number of conntrack entries that this leaves.
fn ensure_entries(node: &Node, to: SocketAddr, wanted: usize) -> Result<()> {
    let listener = node
        .netns
        .run(|| TcpListener::bind(to))
        .with_context(|| format!("listening on {to}"))?;
    let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
    for netns in [&node.pods[0].netns, &node.netns] {
        let stream = client::connect(netns, to, TIMEOUT).with_context(|| format!("to {to}"))?;
        let (_, client) = listener.accept()?;
        let entries = conntrack::list_all(&node.netns, family)?;
        let found = conntrack::of_client(&entries, client);
        ensure!(
            found.len() == wanted,
            "{client} to {to}: {wanted} entries expected, found {found:#?}"
        );
        drop(stream);
    }
    Ok(())
}

fn check(backend: &str) {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        let vips = format!("--ip-address={}", VIPS.join(","));
        let ports = format!("--port={}", PORTS.map(|port| port.to_string()).join(","));
        let _agent = node.start_agent(&[backend, &vips, &ports])?;
        for vip in VIPS {
            let vip: IpAddr = vip.parse()?;
            for port in PORTS {
                ensure_entries(node, SocketAddr::new(vip, port), 0)?;
            }
            ensure_entries(node, SocketAddr::new(vip, OTHER_PORT), 1)?;
        }
        for family in Family::ALL {
            ensure_entries(node, SocketAddr::new(uplink_address(family), PORTS[0]), 1)?;
        }
        Ok(())
    });
}

#[test]
fn ebpf() {
    check("--backend=ebpf");
}

#[test]
fn nftables() {
    check("--backend=nftables");
}

#[test]
fn iptables() {
    check("--backend=iptables");
}
