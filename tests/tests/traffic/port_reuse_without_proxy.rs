// SPDX-License-Identifier: Apache-2.0

//! One client port is used for connections to the VIP, to the ClusterIP while that is translated, and to the ClusterIP
//! while the proxy is down and kube-proxy redirects the connection to another backend: in every order.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use tests::Family;
use tests::agent::TRANSLATE;
use tests::kubeproxy::KubeProxy;
use tests::netns::Netns;
use tests::node::{Node, Topology, gateway_address, uplink_address};
use tests::reuse::{self, End};
use tests::transfer::Server;

/// The outcome of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// To the VIP
    Vip,
    /// To the ClusterIP, while the proxy runs: translated to the VIP
    Translated,
    /// To the ClusterIP, while the proxy is down: kube-proxy's DNAT to an API server
    KubeProxy,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Vip, Self::Translated, Self::KubeProxy];

    fn destination(self, family: Family) -> SocketAddr {
        match self {
            Self::Vip => family.vip_socket(),
            Self::Translated | Self::KubeProxy => family.cluster_ip_socket(),
        }
    }
}

/// The place where a client runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Client {
    Pod,
    Host,
}

#[derive(Debug)]
struct Case {
    client: Client,
    family: Family,
    end: End,
    order: Vec<Kind>,
    from: SocketAddr,
}

fn orders(end: End, client: Client) -> Vec<Vec<Kind>> {
    let mut orders = Vec::new();
    for first in Kind::ALL {
        for second in Kind::ALL {
            if end == End::Client {
                // Because of the client's own TIME_WAIT, a port cannot be used twice for the same destination, and the
                // destination of a translated connection of a process on the node is the VIP.
                let seen = |kind| match client {
                    Client::Pod => kind == Kind::Vip,
                    Client::Host => kind != Kind::KubeProxy,
                };
                if seen(first) != seen(second) {
                    orders.push(vec![first, second]);
                }
            } else {
                orders.extend(Kind::ALL.map(|third| vec![first, second, third]));
            }
        }
    }
    orders
}

/// Returns every case, each with its own port.
fn cases(address: impl Fn(Family) -> IpAddr, client: Client, mut port: u16) -> Vec<Case> {
    let mut cases = Vec::new();
    for family in Family::ALL {
        for end in End::ALL {
            for order in orders(end, client) {
                port += 1;
                cases.push(Case {
                    client,
                    family,
                    end,
                    order,
                    from: SocketAddr::new(address(family), port),
                });
            }
        }
    }
    cases
}

fn api_server(family: Family) -> SocketAddr {
    SocketAddr::new(gateway_address(family), 6443)
}

/// Opens connection number `step` of all cases in which this connection needs the proxy to run or, if `with_proxy` is
/// false, to be down.
fn connect_all(node: &Node, cases: &[Case], step: usize, with_proxy: bool) -> Result<()> {
    let host = &node.netns;
    let connect = |case: &Case, kind: Kind| {
        let netns: &Netns = match case.client {
            Client::Pod => &node.pods[0].netns,
            Client::Host => host,
        };
        let to = kind.destination(case.family);
        reuse::connect_and_end(netns, case.from, to, case.end)?;
        reuse::proxy_has_closed(host, case.from)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = cases
            .iter()
            .filter_map(|case| Some((case, *case.order.get(step)?)))
            .filter(|(_, kind)| (*kind != Kind::KubeProxy) == with_proxy)
            .map(|(case, kind)| {
                scope.spawn(move || {
                    connect(case, kind).with_context(|| format!("{case:?}, step {step}"))
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("it does not panic"))
    })
}

fn check(topology: Topology, kube_proxy: KubeProxy, tc_attach: &str) {
    Node::test(topology, |node| {
        // kube-proxy sets this on request (`conntrack.tcpBeLiberal`): on a slow machine conntrack of Linux 5.10 treats
        // delayed segments as invalid, and its NAT then resets connections, with or without an agent.
        node.netns
            .exec("sysctl -w net.netfilter.nf_conntrack_tcp_be_liberal=1")?;
        kube_proxy.install_to(&node.netns, api_server)?;
        let _servers = [
            Server::listen(&node.uplink, api_server(Family::V4))?,
            Server::listen(&node.uplink, api_server(Family::V6))?,
        ];
        let args = [&TRANSLATE[..], &["--backend=ebpf", tc_attach]].concat();
        let _agent = node.start_agent(&args)?;
        let pod = &node.pods[0];
        let mut cases_of_all = cases(|family| pod.address(family), Client::Pod, 20_000);
        cases_of_all.extend(cases(uplink_address, Client::Host, 21_000));
        for step in 0..3 {
            let proxy = [
                Server::listen(&node.netns, Family::V4.vip_socket())?,
                Server::listen(&node.netns, Family::V6.vip_socket())?,
            ];
            connect_all(node, &cases_of_all, step, true)?;
            drop(proxy);
            connect_all(node, &cases_of_all, step, false)?;
        }
        Ok(())
    });
}

#[test]
fn through_veth() {
    check(Topology::Veth, KubeProxy::IptablesNft, "--tc-attach=auto");
}

#[test]
fn through_a_bridge() {
    check(
        Topology::BridgeNetfilter,
        KubeProxy::IptablesLegacy,
        "--tc-attach=auto",
    );
}

#[test]
fn by_clsact() {
    check(Topology::Veth, KubeProxy::Nftables, "--tc-attach=clsact");
}
