// SPDX-License-Identifier: Apache-2.0

//! With `--service-address` every path to the proxy works without kube-proxy and without conntrack, through each kind
//! of link, and clients see the address to which they connected.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::agent::TRANSLATE;
use tests::degraded_host::Missing;
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology};
use tests::path::{Path, Via};
use tests::proxy::Proxy;
use tests::transfer::Server;
use tests::{Family, PORT, client, cmd, conntrack, skip, transfer};

/// The number of bytes that each path carries in each direction.
const BYTES: u64 = 10 * 1024 * 1024;
const TIMEOUT: Duration = Duration::from_secs(10);

fn check(tc_attach: &str, kube_proxy: KubeProxy, topology: Topology) {
    Node::test(topology, |node| check_on(node, tc_attach, kube_proxy));
}

fn check_on(node: &Node, tc_attach: &str, kube_proxy: KubeProxy) -> Result<()> {
    kube_proxy.install(&node.netns)?;
    let args = [&TRANSLATE[..], &["--backend=ebpf", tc_attach]].concat();
    let _agent = node.start_agent(&args)?;
    everything_is_translated(node)
}

fn everything_is_translated(node: &Node) -> Result<()> {
    let _proxy = Proxy::start(node)?;
    for (seed, path) in (1..).zip(node.paths()) {
        carries_data(&path, path.destination(), seed).with_context(|| path.to_string())?;
    }
    // The client uses one socket for both families, as Go and Java do.
    for path in node.paths() {
        let IpAddr::V4(address) = path.destination().ip() else {
            continue;
        };
        let mapped = SocketAddr::new(address.to_ipv6_mapped().into(), PORT);
        carries_data(&path, mapped, 99).with_context(|| format!("{path}, as {mapped}"))?;
    }
    for family in Family::ALL {
        let entries = conntrack::list(&node.netns, family)?;
        ensure!(entries.is_empty(), "conntrack knows {entries:#?}");
    }
    Ok(())
}

fn carries_data(path: &Path<'_>, to: SocketAddr, seed: u64) -> Result<()> {
    let mut stream = client::connect(path.netns, to, TIMEOUT).context("connecting")?;
    let peer = stream.peer_addr()?;
    ensure!(peer == to, "getpeername shows {peer}");
    transfer::exchange(&mut stream, BYTES, seed)?;
    let peer = stream.peer_addr()?;
    ensure!(peer == to, "getpeername shows {peer} later");
    Ok(())
}

/// Defines one test for each form of kube-proxy, topology and way of attaching.
macro_rules! matrix {
    ($($attach:ident: $flag:expr;)*) => {$(
        mod $attach {
            use super::*;

            matrix!(@topology $flag, veth, Topology::Veth);
            matrix!(@topology $flag, bridge, Topology::Bridge);
            matrix!(@topology $flag, bridge_netfilter, Topology::BridgeNetfilter);
        }
    )*};
    (@topology $flag:expr, $name:ident, $topology:expr) => {
        mod $name {
            use super::*;

            #[test]
            fn iptables_legacy() {
                check($flag, KubeProxy::IptablesLegacy, $topology);
            }

            #[test]
            fn iptables_nft() {
                check($flag, KubeProxy::IptablesNft, $topology);
            }

            #[test]
            fn nftables() {
                check($flag, KubeProxy::Nftables, $topology);
            }
        }
    };
}

matrix! {
    auto: "--tc-attach=auto";
    clsact: "--tc-attach=clsact";
}

/// Calls `configure` for both ends of each pod's veth pair and for `lo`.
fn on_every_link(
    node: &Node,
    configure: impl Fn(&tests::netns::Netns, &str) -> Result<()>,
) -> Result<()> {
    for pod in &node.pods {
        configure(&pod.netns, "eth0")?;
        configure(&node.netns, &pod.host_link)?;
    }
    configure(&node.netns, "lo")
}

fn with_features(topology: Topology, features: &str) {
    Node::test(topology, |node| {
        on_every_link(node, |netns, link| {
            netns
                .exec(&format!("ethtool -K {link} {features}"))
                .map(drop)
        })?;
        check_on(node, "--tc-attach=auto", KubeProxy::IptablesNft)
    });
}

/// Checksums are computed in full before the packet reaches a hook.
#[test]
fn without_checksum_offload() {
    // Checksum offload cannot be disabled on the loopback link.
    Node::test(Topology::Veth, |node| {
        for pod in &node.pods {
            for (netns, link) in [(&pod.netns, "eth0"), (&node.netns, &*pod.host_link)] {
                netns.exec(&format!("ethtool -K {link} tx off rx off"))?;
            }
        }
        check_on(node, "--tc-attach=auto", KubeProxy::IptablesNft)
    });
}

#[test]
fn without_segmentation_offload() {
    with_features(Topology::Veth, "tso off gso off gro off");
}

#[test]
fn without_segmentation_offload_through_a_bridge() {
    with_features(Topology::BridgeNetfilter, "tso off gso off gro off");
}

#[test]
fn with_receive_offload() {
    with_features(Topology::Veth, "gro on");
}

/// Segments are larger than 64 KiB: in IPv6 a hop-by-hop header then precedes the TCP header.
#[test]
fn with_big_tcp() -> Result<()> {
    if skip::before((5, 19), "BIG TCP", "translation-with-big-tcp")? {
        return Ok(());
    }
    Node::test(Topology::Veth, |node| {
        on_every_link(node, |netns, link| {
            netns.ip(&format!(
                "link set {link} gso_max_size 180000 gro_max_size 180000\n"
            ))
        })?;
        check_on(node, "--tc-attach=auto", KubeProxy::IptablesNft)
    });
    Ok(())
}

/// kube-proxy is not needed at all.
#[test]
fn without_kube_proxy() {
    Node::test(Topology::BridgeNetfilter, |node| {
        let _agent = node.start_agent(&[&TRANSLATE[..], &["--backend=ebpf"]].concat())?;
        let _proxy = Proxy::start(node)?;
        for (seed, path) in (1..).zip(node.paths()) {
            carries_data(&path, path.destination(), seed).with_context(|| path.to_string())?;
        }
        Ok(())
    });
}

/// An address of the node is no ClusterIP: the agent reports it and changes nothing.
#[test]
fn an_address_of_the_node_is_refused() {
    Node::test(Topology::Veth, |node| {
        node.netns.ip("link add elsewhere type bridge\n")?;
        for family in Family::ALL {
            let (address, len) = (family.cluster_ip(), family.host_prefix());
            let nodad = if family == Family::V6 { " nodad" } else { "" };
            node.netns.ip(&format!(
                "address add {address}/{len} dev elsewhere{nodad}\n"
            ))?;
        }
        let before = tests::snapshot::take(&node.netns)?;
        let output =
            node.run_agent(&[&TRANSLATE[..], &["--backend=ebpf", "--daemon=false"]].concat())?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(2), "{output:?}");
        ensure!(
            text.contains("is an address of this node already"),
            "{text}"
        );
        let difference = tests::snapshot::difference(&before, &tests::snapshot::take(&node.netns)?);
        ensure!(difference.is_none(), "{difference:?}");
        Ok(())
    });
}

/// Before Linux 5.14 the agent has to determine with a program which processes are on the node.
#[test]
fn without_the_cookie_of_the_network_namespace() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        let args = [&TRANSLATE[..], &["--backend=ebpf"]].concat();
        let _agent = node.start_agent_missing(Missing::NetnsCookie, &args)?;
        everything_is_translated(node)
    });
}

/// The ports differ: the Service's is the well-known one, the proxy's is not.
#[test]
fn to_another_port() {
    Node::test(Topology::BridgeNetfilter, |node| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        let args = [&TRANSLATE[..], &["--backend=ebpf", "--port=6443"]].concat();
        let _agent = node.start_agent(&args)?;
        let proxy = |family: Family| SocketAddr::new(family.vip(), 6443);
        let _servers = [
            Server::listen(&node.netns, proxy(Family::V4))?,
            Server::listen(&node.netns, proxy(Family::V6))?,
        ];
        for (seed, path) in (1..).zip(node.paths()) {
            let to = match path.via {
                Via::Vip => proxy(path.family),
                Via::ClusterIp => path.destination(),
            };
            carries_data(&path, to, seed).with_context(|| path.to_string())?;
        }
        for family in Family::ALL {
            let entries = conntrack::list_all(&node.netns, family)?;
            ensure!(entries.is_empty(), "conntrack knows {entries:#?}");
        }
        Ok(())
    });
}

/// The proxy sees the address to which a pod connected; processes on the node are connected to the VIP.
#[test]
fn the_proxy_sees_the_address_that_was_asked_for() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        let _agent = node.start_agent(&[&TRANSLATE[..], &["--backend=ebpf"]].concat())?;
        let listen = |family: Family| node.netns.run(|| TcpListener::bind(family.vip_socket()));
        let (v4, v6) = (listen(Family::V4)?, listen(Family::V6)?);
        tests::slow_machine::be_noticed()?;
        for path in node.paths() {
            let listener = if path.family == Family::V4 { &v4 } else { &v6 };
            let stream = client::connect(path.netns, path.destination(), TIMEOUT)?;
            let (accepted, peer) = listener.accept()?;
            ensure!(peer == stream.local_addr()?, "{path}: {peer} came");
            let expected = if path.client == "host" {
                path.family.vip_socket()
            } else {
                path.destination()
            };
            let own = accepted.local_addr()?;
            ensure!(own == expected, "{path}: getsockname shows {own}");
        }
        Ok(())
    });
}

/// The proxy listens on every address of the node, with one socket for both families, and a flag names it as the proxy.
#[test]
fn to_a_proxy_on_every_address() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        let args = ["--backend=ebpf", "--proxy-listener=any"];
        let _agent = node.start_agent(&[&TRANSLATE[..], &args].concat())?;
        // Rust's listener on [::] accepts IPv4 connections, too.
        let _server = Server::listen(&node.netns, "[::]:443".parse()?)?;
        for (seed, path) in (1..).zip(node.paths()) {
            carries_data(&path, path.destination(), seed).with_context(|| path.to_string())?;
        }
        for family in Family::ALL {
            let entries = conntrack::list(&node.netns, family)?;
            ensure!(entries.is_empty(), "conntrack knows {entries:#?}");
        }
        Ok(())
    });
}

/// The stacked links under test.
const STACKED: [(&str, KubeProxy); 4] = [
    ("--tc-attach=auto", KubeProxy::IptablesLegacy),
    ("--tc-attach=auto", KubeProxy::IptablesNft),
    ("--tc-attach=auto", KubeProxy::Nftables),
    ("--tc-attach=clsact", KubeProxy::IptablesNft),
];

/// Sets up a link on top of another one: the programs see each packet of the pod twice.
fn stack(node: &Node) -> Result<()> {
    let pod = &node.pods[0];
    let (link, v4, v6) = (&pod.host_link, pod.ipv4, pod.ipv6);
    node.netns.ip(&format!(
        "link add link {link} name stacked0 type macvlan mode passthru\n\
         link set stacked0 up\n\
         address del fe80::1/64 dev {link}\n\
         address add fe80::1/64 dev stacked0 nodad\n\
         route replace {v4}/32 dev stacked0\n\
         route replace {v6}/128 dev stacked0\n"
    ))?;
    node.netns.sysctl("net/ipv4/conf/stacked0/proxy_arp", "1")
}

#[test]
fn through_stacked_links() {
    for (tc_attach, kube_proxy) in STACKED {
        Node::test(Topology::Veth, |node| {
            stack(node)?;
            check_on(node, tc_attach, kube_proxy)
        });
    }
}

/// Puts the pod behind a VLAN of the veth pair, at both ends: the node's link sees each packet with a tag, which stays
/// undecided, and the VLAN's link sees it without.
fn put_into_vlan(node: &Node) -> Result<()> {
    let pod = &node.pods[0];
    let (link, v4, v6) = (&pod.host_link, pod.ipv4, pod.ipv6);
    node.netns.ip(&format!(
        "link add link {link} name vlan0 type vlan id 7\n\
         link set vlan0 up\n\
         address del fe80::1/64 dev {link}\n\
         address add fe80::1/64 dev vlan0 nodad\n\
         route replace {v4}/32 dev vlan0\n\
         route replace {v6}/128 dev vlan0\n"
    ))?;
    node.netns.sysctl("net/ipv4/conf/vlan0/proxy_arp", "1")?;
    node.netns.sysctl("net/ipv4/neigh/vlan0/proxy_delay", "0")?;
    pod.netns.ip(&format!(
        "link add link eth0 name vlan0 type vlan id 7\n\
         link set vlan0 up\n\
         address del {v4}/32 dev eth0\n\
         address del {v6}/128 dev eth0\n\
         address add {v4}/32 dev vlan0\n\
         address add {v6}/128 dev vlan0 nodad\n\
         route add 169.254.1.1 dev vlan0 scope link\n\
         route add default via 169.254.1.1 dev vlan0\n\
         route replace default via fe80::1 dev vlan0\n"
    ))
}

#[test]
fn through_a_vlan() -> Result<()> {
    let test = "translation-through-a-vlan";
    skip::clear(test)?;
    if !has_vlan_links()? {
        return skip::record(test, "this kernel has no VLAN links (8021q)");
    }
    for (tc_attach, kube_proxy) in STACKED {
        Node::test(Topology::Veth, |node| {
            put_into_vlan(node)?;
            check_on(node, tc_attach, kube_proxy)
        });
    }
    Ok(())
}

fn has_vlan_links() -> Result<bool> {
    let node = Node::new()?;
    let mut add = node.netns.command("ip");
    let line = "link add link eth0 name vlan0 type vlan id 7";
    let output = cmd::output(add.args(line.split(' ')), "")?;
    Ok(output.status.success())
}
