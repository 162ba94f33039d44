// SPDX-License-Identifier: Apache-2.0

//! Very many short connections from many pods at once, many more than the agent can store; and idle connections beside
//! such churn and beside a flood of SYNs.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::agent::TRANSLATE;
use tests::client::{self, Close};
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Pod, Topology};
use tests::path::Via;
use tests::proxy::Proxy;
use tests::transfer::{self, Server};
use tests::{Family, conntrack, flood, slow_machine, usage};

/// The number of connections; see [`slow_machine::times`].
const CONNECTIONS: usize = 20_000;
/// The number of connections for which the agent has room: more, or far fewer.
const ROOM: usize = 65_536;
const LITTLE_ROOM: usize = 1024;
const PODS: usize = 8;
const TIMEOUT: Duration = Duration::from_secs(15);

/// Opens a pod's share of the connections: through VIP and ClusterIP, in both families, in turn.
///
/// Each path has its own client ports. By default the kernel sometimes uses a port for the ClusterIP that it has just
/// used for the VIP. As long as the proxy has not closed that older connection, the new one is left to conntrack and
/// waits (docs/packet-path.md, "One client port, two ways"; `port_reuse.rs` checks that it works).
fn connect_again_and_again(pod: &Pod, vias: &[Via]) -> Result<()> {
    let ways = Family::ALL.map(|family| {
        let way = |via: &Via| match via {
            Via::Vip => (20_000, family.vip_socket()),
            Via::ClusterIp => (40_000, family.cluster_ip_socket()),
        };
        let ways = vias.iter().map(way);
        ways.map(|(port, to)| (SocketAddr::new(pod.address(family), port), to))
            .collect::<Vec<_>>()
    });
    let ways = ways.concat();
    // The thread enters the namespace once, not for each connection.
    pod.netns.run(|| {
        for n in 0..slow_machine::times(CONNECTIONS) / PODS {
            let (mut from, to) = ways[n % ways.len()];
            from.set_port(from.port() + u16::try_from(n)?);
            let what = || format!("connection {n} from {from} to {to}");
            let mut stream = client::connect_here(Some(from), to, TIMEOUT).with_context(what)?;
            transfer::exchange(&mut stream, 1000, n as u64).with_context(what)?;
        }
        Ok(())
    })
}

fn check(topology: Topology, kube_proxy: KubeProxy, (backend, max): Backend, vias: &[Via]) {
    Node::test(topology, |node| {
        kube_proxy.install(&node.netns)?;
        while node.pods.len() < PODS {
            node.add_pod(topology)?;
        }
        let limit = format!("--max-connections={max}");
        let _agent = node.start_agent(&[backend, &[&limit]].concat())?;
        let _proxy = Proxy::start(node)?;
        let start = Instant::now();
        let results: Vec<Result<()>> = std::thread::scope(|scope| {
            let threads: Vec<_> = node
                .pods
                .iter()
                .map(|pod| scope.spawn(|| connect_again_and_again(pod, vias)))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("it does not panic"))
                .collect()
        });
        let elapsed = start.elapsed();
        for (n, result) in results.into_iter().enumerate() {
            result.with_context(|| format!("pod{n}"))?;
        }
        let connections = slow_machine::times(CONNECTIONS);
        println!(
            "{connections} connections in {:.1} s",
            elapsed.as_secs_f32()
        );
        let mut tracked = Vec::new();
        for family in Family::ALL {
            tracked.extend(conntrack::list(&node.netns, family)?);
        }
        let lines: Vec<&str> = tracked.iter().map(|entry| &*entry.line).collect();
        println!("{} conntrack entries", lines.len());
        // If there is no room, a new connection to the VIP is tracked, and works.
        let may_be_tracked = max == LITTLE_ROOM;
        let unexpected = tracked.iter().filter(|entry| {
            let of_vip = Family::ALL
                .map(Family::vip_socket)
                .contains(&entry.destination);
            !may_be_tracked || (backend == EBPF && !of_vip)
        });
        let unexpected: Vec<&str> = unexpected.map(|entry| &*entry.line).take(10).collect();
        ensure!(unexpected.is_empty(), "tracked:\n{}", unexpected.join("\n"));
        Ok(())
    });
}

/// The agent's flags, and the number of connections for which it has room.
type Backend = (&'static [&'static str], usize);

const EBPF: &[&str] = &["--backend=ebpf", TRANSLATE[0], TRANSLATE[1]];
const NFTABLES: &[&str] = &["--backend=nftables"];
const BOTH: &[Via] = &[Via::Vip, Via::ClusterIp];

#[test]
fn through_veth() {
    check(
        Topology::Veth,
        KubeProxy::IptablesNft,
        (EBPF, LITTLE_ROOM),
        BOTH,
    );
}

#[test]
fn through_a_bridge() {
    check(
        Topology::BridgeNetfilter,
        KubeProxy::Nftables,
        (EBPF, LITTLE_ROOM),
        BOTH,
    );
}

#[test]
fn nftables() {
    check(
        Topology::Veth,
        KubeProxy::IptablesNft,
        (NFTABLES, ROOM),
        &[Via::Vip],
    );
}

/// Connections for which the sets have no room are tracked, and work.
#[test]
fn nftables_with_full_sets() {
    check(
        Topology::BridgeNetfilter,
        KubeProxy::IptablesLegacy,
        (NFTABLES, LITTLE_ROOM),
        BOTH,
    );
}

/// The size of the load.
struct Load {
    /// The number of idle connections on each of the four paths, half of them in each family.
    quiet: usize,
    /// The number of connections that are opened and reset meanwhile.
    short: usize,
    /// The number of SYNs from client ports without sockets.
    syns: usize,
}

/// The load of a usual run.
const SOME: Load = Load {
    quiet: 200,
    short: 8_000,
    syns: 20_000,
};
/// The load of a full run, see [`slow_machine::is_load_full`].
const FULL: Load = Load {
    quiet: 1000,
    short: 100_000,
    syns: 500_000,
};

impl Load {
    fn of_this_run() -> Self {
        if slow_machine::is_load_full() {
            return FULL;
        }
        Self {
            quiet: slow_machine::times(SOME.quiet),
            short: slow_machine::times(SOME.short),
            syns: slow_machine::times(SOME.syns),
        }
    }
}

/// Connections are idle on every path, while very many short ones are opened and a pod sends SYNs from client ports
/// without sockets. The agent has room for the idle ones, and for far fewer than the number of the others.
#[test]
fn quiet_connections_beside_churn_and_a_flood() {
    const BYTES: u64 = 10_000;
    let load = Load::of_this_run();
    // The limit covers both ends of an idle connection, and their readers and writers.
    let files = u32::try_from(4 * load.quiet * 4 + 4096).expect("a small number");
    usage::allow_open_files(files);
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install_without_masquerade(&node.netns)?;
        let room = (load.quiet * 5).max(LITTLE_ROOM);
        let room = format!("--max-connections={room}");
        let _agent = node.start_agent(&[EBPF, &[&room]].concat())?;
        let _servers = [
            Server::listen(&node.netns, Family::V4.vip_socket())?,
            Server::listen(&node.netns, Family::V6.vip_socket())?,
        ];
        let paths = node.paths();
        let flooding = "pod1";
        let mut quiet = Vec::new();
        for path in paths.iter().filter(|path| path.client != flooding) {
            for _ in 0..load.quiet / 2 {
                let mut stream = client::connect(path.netns, path.destination(), TIMEOUT)
                    .with_context(|| path.to_string())?;
                transfer::exchange(&mut stream, BYTES, 1).with_context(|| path.to_string())?;
                quiet.push((path, stream));
            }
        }
        let pod = &node.pods[1];
        for path in paths.iter().filter(|path| path.client == flooding) {
            let to = path.destination();
            let start = Instant::now();
            flood::syns(&pod.netns, pod.address(path.family), to, load.syns / 4)?;
            let flooded = start.elapsed().as_secs_f32();
            pod.netns.run(|| -> Result<()> {
                for n in 0..load.short / 4 {
                    let stream = client::connect_here(None, to, TIMEOUT)
                        .with_context(|| format!("short connection {n} to {to}"))?;
                    client::close(&stream, Close::Rst)?;
                }
                Ok(())
            })?;
            let elapsed = start.elapsed().as_secs_f32();
            println!("{path}: {flooded:.1} s of SYNs, {elapsed:.1} s with the connections");
        }
        let all = quiet.len();
        let lost: Vec<_> = quiet
            .iter_mut()
            .filter_map(|(path, stream)| {
                let exchanged = transfer::exchange(stream, BYTES, 2);
                exchanged.err().map(|error| format!("{path}: {error:#}"))
            })
            .collect();
        let count = lost.len();
        ensure!(
            lost.is_empty(),
            "{count} of {all} are lost: {:#?}",
            lost.first()
        );
        for family in Family::ALL {
            let entries = conntrack::list(&node.netns, family)?;
            let service = family.cluster_ip_socket();
            let tracked = entries.iter().find(|entry| entry.destination == service);
            ensure!(tracked.is_none(), "conntrack knows of {tracked:#?}");
        }
        Ok(())
    });
}
