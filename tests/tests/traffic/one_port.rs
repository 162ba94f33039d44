// SPDX-License-Identifier: Apache-2.0

//! One client port is used for the VIP and for the ClusterIP at the same time. If kube-proxy translates the ClusterIP
//! by DNAT, both connections have the same addresses and ports at the proxy.

use std::cell::Cell;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::agent::TRANSLATE;
use tests::client::{self, Close};
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology};
use tests::proxy::Proxy;
use tests::{Family, conntrack, transfer};

const TIMEOUT: Duration = Duration::from_secs(8);
/// The time-out of the connection that is known to get no reply.
const SHORT_TIMEOUT: Duration = Duration::from_millis(1500);
const BYTES: u64 = 100_000;

const EBPF: [&str; 1] = ["--backend=ebpf"];
const IPTABLES: [&str; 1] = ["--backend=iptables"];

fn on_a_node(args: &[&str], body: impl Fn(&Node, Family, SocketAddr) -> Result<()>) {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install_without_masquerade(&node.netns)?;
        let _agent = node.start_agent(args)?;
        let _proxy = Proxy::start(node)?;
        for family in Family::ALL {
            let client = SocketAddr::new(node.pods[0].address(family), 25_000);
            body(node, family, client).with_context(|| format!("{family:?}"))?;
        }
        Ok(())
    });
}

fn connect(
    node: &Node,
    from: SocketAddr,
    to: SocketAddr,
    timeout: Duration,
) -> io::Result<TcpStream> {
    client::connect_from(&node.pods[0].netns, Some(from), to, timeout)
}

/// Returns true if conntrack of this kernel distinguishes the two, without the data plane of an agent.
fn conntrack_distinguishes_them() -> bool {
    let apart = Cell::new(true);
    on_a_node(&["--backend=none"], |node, family, client| {
        let mut first = connect(node, client, family.cluster_ip_socket(), TIMEOUT)?;
        transfer::exchange(&mut first, BYTES, 1)?;
        let second = connect(node, client, family.vip_socket(), SHORT_TIMEOUT);
        apart.set(apart.get() && second.is_ok());
        Ok(())
    });
    apart.get()
}

/// The agent sees that the proxy has a tracked connection with these addresses and ports, and leaves the new one to
/// conntrack, which distinguishes them on newer kernels (not on 6.1).
fn the_cluster_ip_first(args: &[&str]) {
    let apart = conntrack_distinguishes_them();
    on_a_node(args, |node, family, client| {
        let mut first = connect(node, client, family.cluster_ip_socket(), TIMEOUT)?;
        transfer::exchange(&mut first, BYTES, 1)?;
        if !apart {
            println!("conntrack of this kernel does not distinguish them");
            let second = connect(node, client, family.vip_socket(), SHORT_TIMEOUT);
            ensure!(second.is_err(), "other than with conntrack alone");
            return transfer::exchange(&mut first, BYTES, 2).context("through the ClusterIP");
        }
        let mut second =
            connect(node, client, family.vip_socket(), TIMEOUT).context("connecting to the VIP")?;
        for seed in 2..5 {
            transfer::exchange(&mut second, BYTES, seed).context("through the VIP")?;
            transfer::exchange(&mut first, BYTES, seed).context("through the ClusterIP")?;
        }
        let entries = conntrack::list(&node.netns, family)?;
        let found = conntrack::of_client(&entries, client);
        ensure!(found.len() == 2, "both are tracked: {found:#?}");
        Ok(())
    });
}

/// This is a known limit (docs/packet-path.md): conntrack does not know the untracked connection, so the other one
/// reaches the proxy with the same addresses and ports. It gets no reply until the first one ends; the first one is not
/// disturbed.
fn the_vip_first(args: &[&str]) {
    on_a_node(args, |node, family, client| {
        let mut first = connect(node, client, family.vip_socket(), TIMEOUT)?;
        transfer::exchange(&mut first, BYTES, 1)?;
        let second = connect(node, client, family.cluster_ip_socket(), SHORT_TIMEOUT);
        let kind = second.map(drop).map_err(|error| error.kind());
        ensure!(
            kind == Err(io::ErrorKind::TimedOut),
            "the known limit is gone: {kind:?}"
        );
        transfer::exchange(&mut first, BYTES, 2).context("through the VIP")?;
        client::close(&first, Close::Rst)?;
        let mut third = connect(node, client, family.cluster_ip_socket(), TIMEOUT)
            .context("after the first one has ended")?;
        transfer::exchange(&mut third, BYTES, 3)
    });
}

/// Defines one test for each backend that decides per connection.
macro_rules! backends {
    ($($name:ident: $args:expr;)*) => {$(
        mod $name {
            #[test]
            fn the_cluster_ip_first() {
                super::the_cluster_ip_first(&$args);
            }

            #[test]
            fn the_vip_first() {
                super::the_vip_first(&$args);
            }
        }
    )*};
}

backends! {
    ebpf: super::EBPF;
    nftables: ["--backend=nftables"];
    iptables: super::IPTABLES;
}

/// They are two connections for the proxy, too, because its own address is the ClusterIP in one of them: both work at
/// once, untracked.
fn both_at_once(first: fn(Family) -> SocketAddr, second: fn(Family) -> SocketAddr) {
    on_a_node(&[&EBPF[..], &TRANSLATE].concat(), |node, family, client| {
        let mut older = connect(node, client, first(family), TIMEOUT)?;
        transfer::exchange(&mut older, BYTES, 1)?;
        let mut younger = connect(node, client, second(family), TIMEOUT).context("the second")?;
        for seed in 2..5 {
            transfer::exchange(&mut younger, BYTES, seed).context("the second one")?;
            transfer::exchange(&mut older, BYTES, seed).context("the first one")?;
        }
        let entries = conntrack::list(&node.netns, family)?;
        ensure!(entries.is_empty(), "{entries:#?}");
        client::close(&older, Close::Rst)?;
        transfer::exchange(&mut younger, BYTES, 5).context("the second one alone")?;
        Ok(client::close(&younger, Close::Rst)?)
    });
}

#[test]
fn a_cluster_ip_that_ends_on_the_proxy_first() {
    both_at_once(Family::cluster_ip_socket, Family::vip_socket);
}

#[test]
fn the_vip_before_a_cluster_ip_that_ends_on_the_proxy() {
    both_at_once(Family::vip_socket, Family::cluster_ip_socket);
}
