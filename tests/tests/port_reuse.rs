// SPDX-License-Identifier: Apache-2.0

//! A client port that was used for a decided connection is used again for one that goes through
//! kube-proxy, and the other way round: an old decision must never be obeyed for a new connection.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::client::{self, Close};
use tests::kubeproxy::KubeProxy;
use tests::netns::Netns;
use tests::node::{Node, Topology, uplink_address};
use tests::path::Via;
use tests::proxy::Proxy;
use tests::{Family, PORT, cmd, conntrack, transfer};

/// Long enough for a SYN that is sent again, which the proxy's `TIME_WAIT` may make necessary with and
/// without an agent.
const TIMEOUT: Duration = Duration::from_secs(8);

/// Who ends a connection, and how.
#[derive(Debug, Clone, Copy)]
enum End {
    /// The client closes first: `TIME_WAIT` at the client.
    Client,
    /// The proxy closes first: `TIME_WAIT` at the proxy.
    Proxy,
    /// The client resets it.
    Reset,
}

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
        for end in [End::Client, End::Proxy, End::Reset] {
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

fn connect_and_end(netns: &Netns, case: &Case, via: Via) -> Result<()> {
    let to = match via {
        Via::Vip => case.family.vip_socket(),
        Via::ClusterIp => case.family.cluster_ip_socket(),
    };
    let mut stream = client::connect_from(netns, Some(case.from), to, TIMEOUT)
        .with_context(|| format!("connecting to {to}"))?;
    transfer::exchange(&mut stream, 100_000, case.from.port().into())?;
    match case.end {
        End::Client => client::close(&stream, Close::Fin)?,
        End::Proxy => {
            transfer::hang_up(&mut stream)?;
            client::close(&stream, Close::Fin)?;
        }
        End::Reset => client::close(&stream, Close::Rst)?,
    }
    Ok(())
}

/// Waits until the proxy has nothing left of the client's connection but a `TIME_WAIT`.
fn proxy_has_closed(host: &Netns, client: SocketAddr) -> Result<()> {
    let (local, remote) = (format!(":{PORT:04X}"), format!(":{:04X}", client.port()));
    let file = match client {
        SocketAddr::V4(_) => "tcp",
        SocketAddr::V6(_) => "tcp6",
    };
    let is_open = |line: &str| {
        // sl local_address rem_address st …; 06 is TIME_WAIT
        let words: Vec<&str> = line.split_whitespace().collect();
        words.len() > 3
            && words[1].ends_with(&local)
            && words[2].ends_with(&remote)
            && words[3] != "06"
    };
    cmd::wait_until(TIMEOUT, "the proxy to close the connection", || {
        let table = host.run(|| fs::read_to_string(format!("/proc/thread-self/net/{file}")))?;
        Ok((!table.lines().any(is_open)).then_some(()))
    })
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

/// Uses one port for both connections; twice in turn where the client's own `TIME_WAIT` allows it.
fn reuse(host: &Netns, netns: &Netns, case: &Case, pace: Pace) -> Result<()> {
    let rounds = match case.end {
        End::Client => 1,
        End::Proxy | End::Reset => 2,
    };
    for round in 0..rounds {
        for via in case.order {
            let now = || format!("{case:?}, round {round}, via {via:?}");
            connect_and_end(netns, case, via).with_context(now)?;
            if pace == Pace::AtOnce {
                continue;
            }
            proxy_has_closed(host, case.from).with_context(now)?;
            let entries = conntrack::list(host, case.family)?;
            let found = conntrack::of_client(&entries, case.from);
            let first = round == 0 && via == case.order[0];
            // Through the ClusterIP: tracked. Through the VIP: nothing but the entry that the
            // connection through the ClusterIP before it has left.
            let wanted = usize::from(!(first && via == Via::Vip));
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

fn check(topology: Topology, kube_proxy: KubeProxy, tc_attach: &str, pace: Pace) {
    Node::test(topology, |node| {
        kube_proxy.install_without_masquerade(&node.netns)?;
        let _agent = node.start_agent(&["--backend=ebpf", tc_attach])?;
        let _proxy = Proxy::start(node)?;
        let pod = &node.pods[0];
        let host = &node.netns;
        let results: Vec<Result<()>> = std::thread::scope(|scope| {
            let threads: Vec<_> = cases(|family| pod.address(family), 20_000)
                .into_iter()
                .map(|case| (case, &pod.netns))
                .chain(
                    cases(uplink_address, 21_000)
                        .into_iter()
                        .map(|case| (case, host)),
                )
                .map(|(case, netns)| scope.spawn(move || reuse(host, netns, &case, pace)))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("it does not panic"))
                .collect()
        });
        results.into_iter().collect()
    });
}

#[test]
fn through_veth() {
    let kube_proxy = KubeProxy::IptablesNft;
    check(
        Topology::Veth,
        kube_proxy,
        "--tc-attach=auto",
        Pace::Settled,
    );
}

#[test]
fn through_a_bridge() {
    let kube_proxy = KubeProxy::Nftables;
    check(
        Topology::BridgeNetfilter,
        kube_proxy,
        "--tc-attach=auto",
        Pace::Settled,
    );
}

#[test]
fn by_clsact() {
    let kube_proxy = KubeProxy::IptablesLegacy;
    check(
        Topology::Veth,
        kube_proxy,
        "--tc-attach=clsact",
        Pace::Settled,
    );
}

#[test]
fn at_once() {
    let kube_proxy = KubeProxy::IptablesLegacy;
    check(Topology::Veth, kube_proxy, "--tc-attach=auto", Pace::AtOnce);
}
