// SPDX-License-Identifier: Apache-2.0

//! The proxy is stopped and restarted. As long as no process listens on the VIP, kube-proxy handles connections to the
//! ClusterIP, as without the agent: here it redirects them to another backend beside the proxy, a real API server. The
//! agent takes no part in this: it is stopped all the time, if the kernel's programs can work without it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::agent::TRANSLATE;
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology, gateway_address};
use tests::path::{Path, Via};
use tests::proxy::Proxy;
use tests::transfer::Server;
use tests::{Family, all_paths, cmd, conntrack};

const TIMEOUT: Duration = Duration::from_secs(5);
const BYTES: u64 = 100_000;

/// Returns the API server's own address, on another machine.
fn api_server(family: Family) -> SocketAddr {
    SocketAddr::new(gateway_address(family), 6443)
}

fn through_the_cluster_ip(node: &Node) -> Vec<Path<'_>> {
    let mut paths = node.paths();
    paths.retain(|path| path.via == Via::ClusterIp);
    paths
}

/// Connects on every path, and returns the number of conntrack entries that this left.
fn connect_everywhere(node: &Node) -> Result<usize> {
    let mut tracked = 0;
    for path in through_the_cluster_ip(node) {
        let stream = all_paths::exchange_as_dialled(&path, TIMEOUT, BYTES)?;
        let entries = conntrack::list(&node.netns, path.family)?;
        tracked += conntrack::of_client(&entries, stream.local_addr()?).len();
    }
    Ok(tracked)
}

/// The mechanism by which the socket look-up learns the proxy's listeners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeper {
    Programs,
    /// As on Linux 7.3, which refuses traffic control programs that store listeners.
    Agent,
}

fn check(topology: Topology, kube_proxy: KubeProxy, tc_attach: &str) {
    let by_programs = tests::skip::programs_keep_listeners().expect("a version of the kernel");
    let keeper = if by_programs {
        Keeper::Programs
    } else {
        Keeper::Agent
    };
    check_with(topology, kube_proxy, tc_attach, keeper);
}

fn check_with(topology: Topology, kube_proxy: KubeProxy, tc_attach: &str, keeper: Keeper) {
    Node::test(topology, |node| {
        kube_proxy.install_to(&node.netns, api_server)?;
        let servers = [
            Server::listen(&node.uplink, api_server(Family::V4))?,
            Server::listen(&node.uplink, api_server(Family::V6))?,
        ];
        let at_the_api_server = || servers.iter().map(Server::accepted).sum::<u64>();
        let args = [&TRANSLATE[..], &["--backend=ebpf", tc_attach]].concat();
        let agent = match keeper {
            Keeper::Programs => node.start_agent(&args)?,
            Keeper::Agent => node.start_agent_refusing("vip_ingress", &args)?,
        };
        if keeper == Keeper::Programs {
            agent.signal(libc::SIGSTOP)?;
        }
        let paths = through_the_cluster_ip(node).len();
        let all = u64::try_from(paths)?;
        for round in 0..3 {
            let before = at_the_api_server();
            let tracked = connect_everywhere(node).context("without a proxy")?;
            let there = at_the_api_server() - before;
            ensure!(
                there == all,
                "{there} of {all} connections went kube-proxy's way"
            );
            ensure!(tracked == paths, "{tracked} of them tracked");

            let proxy = Proxy::start(node)?;
            if keeper == Keeper::Agent {
                let begin = Instant::now();
                cmd::wait_until(TIMEOUT, "the agent to find the proxy's listeners", || {
                    Ok((connect_everywhere(node)? == 0).then_some(()))
                })?;
                println!(
                    "round {round}: the listeners were kept after {:?}",
                    begin.elapsed()
                );
            }
            let (before, accepted) = (at_the_api_server() - all, proxy.accepted());
            let tracked = connect_everywhere(node).context("with a proxy")?;
            let here = proxy.accepted() - accepted;
            ensure!(
                here == all,
                "round {round}: {here} of {all} connections came to the proxy"
            );
            ensure!(tracked == 0, "round {round}: {tracked} of them tracked");
            ensure!(at_the_api_server() - before == all, "some went both ways");
        }
        agent.signal(libc::SIGCONT)
    });
}

#[test]
fn through_veth() {
    check(Topology::Veth, KubeProxy::IptablesNft, "--tc-attach=auto");
}

#[test]
fn through_a_bridge() {
    check(Topology::Bridge, KubeProxy::Nftables, "--tc-attach=auto");
}

#[test]
fn through_a_bridge_with_netfilter() {
    check(
        Topology::BridgeNetfilter,
        KubeProxy::IptablesLegacy,
        "--tc-attach=auto",
    );
}

#[test]
fn by_clsact() {
    check(Topology::Veth, KubeProxy::IptablesNft, "--tc-attach=clsact");
}

/// The agent takes part in this case: it runs, and finds the listeners of each proxy.
#[test]
fn where_the_kernel_lets_no_program_keep_listeners() {
    check_with(
        Topology::Veth,
        KubeProxy::IptablesNft,
        "--tc-attach=auto",
        Keeper::Agent,
    );
}

/// One socket accepts the connections of both VIPs, and the first pass stores it for both.
#[test]
fn one_listener_for_all_vips_where_the_kernel_lets_no_program_keep_it() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        let server = Server::listen(&node.netns, "[::]:443".parse()?)?;
        let args = ["--backend=ebpf", "--proxy-listener=any"];
        let args = [&TRANSLATE[..], &args].concat();
        let _agent = node.start_agent_refusing("vip_ingress", &args)?;
        let tracked = connect_everywhere(node)?;
        ensure!(tracked == 0, "{tracked} of them tracked");
        let all = u64::try_from(through_the_cluster_ip(node).len())?;
        ensure!(server.accepted() == all, "{} came to it", server.accepted());
        Ok(())
    });
}

/// While the proxy is down, another process that listens on every address of the node gets none of its clients, unless
/// a flag names it as the proxy.
#[test]
fn a_stranger_on_every_address() {
    for (which, expected) in [("vip", 0), ("any", 4)] {
        Node::test(Topology::Veth, |node| {
            KubeProxy::IptablesNft.install_to(&node.netns, api_server)?;
            let servers = [
                Server::listen(&node.uplink, api_server(Family::V4))?,
                Server::listen(&node.uplink, api_server(Family::V6))?,
            ];
            let which = format!("--proxy-listener={which}");
            let args = [&TRANSLATE[..], &["--backend=ebpf", &which]].concat();
            let _agent = node.start_agent(&args)?;
            // This listener accepts IPv4 connections, too.
            let stranger = Server::listen(&node.netns, "[::]:443".parse()?)?;
            let paths = through_the_cluster_ip(node);
            let of_pods: Vec<_> = paths.iter().filter(|path| path.client != "host").collect();
            for path in &of_pods {
                all_paths::exchange(path, TIMEOUT, BYTES)?;
            }
            let there = servers.iter().map(Server::accepted).sum::<u64>();
            let here = stranger.accepted();
            ensure!(here == expected, "{which}: {here} came to the stranger");
            ensure!(
                there + here == u64::try_from(of_pods.len())?,
                "{there} went on"
            );
            Ok(())
        });
    }
}
