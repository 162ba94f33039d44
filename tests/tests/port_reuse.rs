// SPDX-License-Identifier: Apache-2.0

//! A client port that was used for a decided connection is used again for one that goes through
//! kube-proxy or is translated, and the other way round: an old decision must never be obeyed for a new connection.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use tests::agent::TRANSLATE;
use tests::kubeproxy::KubeProxy;
use tests::netns::Netns;
use tests::node::{Node, Topology, uplink_address};
use tests::path::Via;
use tests::proxy::Proxy;
use tests::reuse::{self, End};
use tests::{Family, conntrack};

#[derive(Debug, Clone, Copy)]
struct Case {
    family: Family,
    end: End,
    order: [Via; 2],
    from: SocketAddr,
}

/// Every case, each with a port of its own from `port` on.
fn cases(address: impl Fn(Family) -> IpAddr, mut port: u16) -> Vec<Case> {
    let mut cases = Vec::new();
    for family in Family::ALL {
        for end in End::ALL {
            for order in [[Via::Vip, Via::ClusterIp], [Via::ClusterIp, Via::Vip]] {
                port += 1;
                cases.push(Case {
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

/// When the port is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// Once the proxy has closed its end too.
    Settled,
    /// At once: the proxy may still hold its end, and then the agent may leave the new connection
    /// tracked. It must work all the same.
    AtOnce,
}

/// What becomes of connections through the ClusterIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ClusterIp {
    /// kube-proxy's DNAT, tracked
    KubeProxy,
    /// The agent's, untracked
    Translated,
}

/// Uses one port for both connections; twice in turn where the client's own `TIME_WAIT` allows it.
fn reuse(
    host: &Netns,
    netns: &Netns,
    case: &Case,
    pace: Pace,
    cluster_ip: ClusterIp,
) -> Result<()> {
    let rounds = match case.end {
        End::Client => 1,
        End::Proxy | End::Reset => 2,
    };
    for round in 0..rounds {
        for via in case.order {
            let now = || format!("{case:?}, round {round}, via {via:?}");
            let to = match via {
                Via::Vip => case.family.vip_socket(),
                Via::ClusterIp => case.family.cluster_ip_socket(),
            };
            reuse::connect_and_end(netns, case.from, to, case.end).with_context(now)?;
            if pace == Pace::AtOnce {
                continue;
            }
            reuse::proxy_has_closed(host, case.from).with_context(now)?;
            let entries = conntrack::list(host, case.family)?;
            let found = conntrack::of_client(&entries, case.from);
            let first = round == 0 && via == case.order[0];
            // Through the ClusterIP: tracked. Through the VIP: nothing but the entry that the
            // connection through the ClusterIP before it has left. Translated: nothing at all.
            let tracked = cluster_ip == ClusterIp::KubeProxy && !(first && via == Via::Vip);
            let wanted = usize::from(tracked);
            ensure!(
                found.len() == wanted
                    && found
                        .iter()
                        .all(|entry| entry.destination == case.family.cluster_ip_socket()),
                "{}: {wanted} entries expected, found {found:#?}",
                now()
            );
        }
    }
    Ok(())
}

fn check(
    topology: Topology,
    kube_proxy: KubeProxy,
    backend: &[&str],
    pace: Pace,
    cluster_ip: ClusterIp,
) {
    Node::test(topology, |node| {
        kube_proxy.install_without_masquerade(&node.netns)?;
        let mut args = backend.to_vec();
        if cluster_ip == ClusterIp::Translated {
            args.extend(TRANSLATE);
        }
        let _agent = node.start_agent(&args)?;
        let _proxy = Proxy::start(node)?;
        let pod = &node.pods[0];
        let host = &node.netns;
        // On the node a translated connection is one to the VIP from the first: while the client's
        // own TIME_WAIT lasts, the kernel does not let a process take the same port for it again.
        let is_possible =
            |case: &Case| cluster_ip == ClusterIp::KubeProxy || case.end != End::Client;
        let results: Vec<Result<()>> = std::thread::scope(|scope| {
            let of_pod = cases(|family| pod.address(family), 20_000);
            let of_host = cases(uplink_address, 21_000)
                .into_iter()
                .filter(is_possible);
            let threads: Vec<_> = of_pod
                .into_iter()
                .map(|case| (case, &pod.netns))
                .chain(of_host.map(|case| (case, host)))
                .map(|(case, netns)| {
                    scope.spawn(move || reuse(host, netns, &case, pace, cluster_ip))
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("it does not panic"))
                .collect()
        });
        results.into_iter().collect()
    });
}

/// One test for each pace and way of the connections through the ClusterIP.
macro_rules! cases {
    ($($name:ident: $topology:expr, $kube_proxy:expr, $backend:expr, [$($cluster_ip:ident)*];)*) => {$(
        mod $name {
            use super::*;

            $(cases!(@$cluster_ip $topology, $kube_proxy, $backend);)*
        }
    )*};
    (@kube_proxy $topology:expr, $kube_proxy:expr, $backend:expr) => {
        #[test]
        fn settled() {
            check($topology, $kube_proxy, $backend, Pace::Settled, ClusterIp::KubeProxy);
        }

        #[test]
        fn at_once() {
            check($topology, $kube_proxy, $backend, Pace::AtOnce, ClusterIp::KubeProxy);
        }
    };
    (@translated $topology:expr, $kube_proxy:expr, $backend:expr) => {
        #[test]
        fn translated() {
            check($topology, $kube_proxy, $backend, Pace::Settled, ClusterIp::Translated);
        }

        #[test]
        fn translated_at_once() {
            check($topology, $kube_proxy, $backend, Pace::AtOnce, ClusterIp::Translated);
        }
    };
}

const EBPF: &[&str] = &["--backend=ebpf"];
const EBPF_CLSACT: &[&str] = &["--backend=ebpf", "--tc-attach=clsact"];
const NFTABLES: &[&str] = &["--backend=nftables"];

cases! {
    through_veth: Topology::Veth, KubeProxy::IptablesNft, EBPF, [kube_proxy translated];
    through_a_bridge: Topology::BridgeNetfilter, KubeProxy::Nftables, EBPF, [kube_proxy translated];
    by_clsact: Topology::Veth, KubeProxy::IptablesLegacy, EBPF_CLSACT, [kube_proxy translated];
    nftables_through_veth: Topology::Veth, KubeProxy::IptablesNft, NFTABLES, [kube_proxy];
    nftables_through_a_bridge: Topology::BridgeNetfilter, KubeProxy::Nftables, NFTABLES, [kube_proxy];
    nftables_beside_legacy: Topology::Veth, KubeProxy::IptablesLegacy, NFTABLES, [kube_proxy];
}
