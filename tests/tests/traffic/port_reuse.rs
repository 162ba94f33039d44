// SPDX-License-Identifier: Apache-2.0

//! A client port that was used for a decided connection is reused for one that kube-proxy or the agent translates, and
//! the other way round: an old decision must never apply to a new connection.

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

/// Returns every case, each with its own port from `port` on.
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

/// The time at which the port is reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    /// The port is reused once the proxy has closed its end, too.
    Settled,
    /// The port is reused at once: the proxy may still have its end open, and then the agent may leave the new
    /// connection tracked. It must work nevertheless.
    AtOnce,
}

/// The expected outcome of connections through the ClusterIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ClusterIp {
    /// kube-proxy's DNAT, tracked
    KubeProxy,
    /// The agent's translation, untracked
    Translated,
}

/// The time for which a connection through the ClusterIP is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    /// Nothing is stored: each connection is decided anew.
    None,
    /// It is stored for a while: connections from the same port to the VIP are tracked until then.
    Timeout,
}

/// Uses one port for both connections, twice in turn if the client's own `TIME_WAIT` permits it.
fn reuse(
    host: &Netns,
    netns: &Netns,
    case: &Case,
    pace: Pace,
    cluster_ip: ClusterIp,
    memory: Memory,
) -> Result<()> {
    let rounds = match case.end {
        End::Client => 1,
        End::Proxy | End::Reset => 2,
    };
    // A connection through the ClusterIP is tracked, unless it is translated. A connection to the VIP has only the
    // entry that the previous connection through the ClusterIP has left, unless that one is stored.
    let (mut through_cluster_ip, mut tracked_to_vip) = (false, false);
    for round in 0..rounds {
        for via in case.order {
            match via {
                Via::ClusterIp => through_cluster_ip = true,
                Via::Vip => tracked_to_vip |= through_cluster_ip && memory == Memory::Timeout,
            }
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
            let mut wanted = Vec::new();
            if cluster_ip == ClusterIp::KubeProxy && through_cluster_ip {
                wanted.push(case.family.cluster_ip_socket());
            }
            if tracked_to_vip {
                wanted.push(case.family.vip_socket());
            }
            let mut destinations: Vec<_> = found.iter().map(|entry| entry.destination).collect();
            destinations.sort_unstable();
            ensure!(
                destinations == wanted,
                "{}: entries to {wanted:?} expected, found {found:#?}",
                now()
            );
        }
    }
    Ok(())
}

fn check(
    topology: Topology,
    kube_proxy: KubeProxy,
    args: &[&str],
    pace: Pace,
    cluster_ip: ClusterIp,
    memory: Memory,
) {
    Node::test(topology, |node| {
        kube_proxy.install_without_masquerade(&node.netns)?;
        let mut args = args.to_vec();
        if cluster_ip == ClusterIp::Translated {
            args.extend(TRANSLATE);
        }
        let _agent = node.start_agent(&args)?;
        let _proxy = Proxy::start(node)?;
        let pod = &node.pods[0];
        let host = &node.netns;
        // On the node a translated connection is a connection to the VIP from the beginning: while the client's own
        // TIME_WAIT lasts, the kernel does not let a process use the same port for it again.
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
                    scope.spawn(move || reuse(host, netns, &case, pace, cluster_ip, memory))
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

/// Defines one test for each pace and each path of the connections through the ClusterIP.
macro_rules! cases {
    ($($name:ident: $topology:expr, $kube_proxy:expr, $args:expr;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn settled() {
                check($topology, $kube_proxy, &$args, Pace::Settled, ClusterIp::KubeProxy, Memory::None);
            }

            #[test]
            fn at_once() {
                check($topology, $kube_proxy, &$args, Pace::AtOnce, ClusterIp::KubeProxy, Memory::None);
            }

            #[test]
            fn translated() {
                check($topology, $kube_proxy, &$args, Pace::Settled, ClusterIp::Translated, Memory::None);
            }

            #[test]
            fn translated_at_once() {
                check($topology, $kube_proxy, &$args, Pace::AtOnce, ClusterIp::Translated, Memory::None);
            }
        }
    )*};
}

cases! {
    through_veth: Topology::Veth, KubeProxy::IptablesNft, ["--backend=ebpf", "--tc-attach=auto"];
    through_a_bridge: Topology::BridgeNetfilter, KubeProxy::Nftables, ["--backend=ebpf", "--tc-attach=auto"];
    by_clsact: Topology::Veth, KubeProxy::IptablesLegacy, ["--backend=ebpf", "--tc-attach=clsact"];
}

/// Defines one test for each pace, without translation.
macro_rules! untranslated {
    ($($name:ident: $topology:expr, $kube_proxy:expr, $args:expr, $memory:expr;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn settled() {
                check($topology, $kube_proxy, &$args, Pace::Settled, ClusterIp::KubeProxy, $memory);
            }

            #[test]
            fn at_once() {
                check($topology, $kube_proxy, &$args, Pace::AtOnce, ClusterIp::KubeProxy, $memory);
            }
        }
    )*};
}

untranslated! {
    nftables_through_veth: Topology::Veth, KubeProxy::IptablesNft, ["--backend=nftables"], Memory::None;
    nftables_through_a_bridge: Topology::BridgeNetfilter, KubeProxy::Nftables, ["--backend=nftables"], Memory::None;
    nftables_beside_legacy: Topology::Veth, KubeProxy::IptablesLegacy, ["--backend=nftables"], Memory::None;
    iptables_through_veth: Topology::Veth, KubeProxy::IptablesNft, ["--backend=iptables"], Memory::Timeout;
    iptables_through_a_bridge: Topology::BridgeNetfilter, KubeProxy::Nftables, ["--backend=iptables"], Memory::Timeout;
    iptables_legacy: Topology::Bridge, KubeProxy::IptablesLegacy, ["--backend=iptables"], Memory::Timeout;
}
