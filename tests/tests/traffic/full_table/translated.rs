// SPDX-License-Identifier: Apache-2.0

//! API servers behind NAT of the node: the proxy's connections to them stay tracked and work, and are untracked once
//! the NAT is removed.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::ensure;
use tests::node::{Node, Topology, api_server};
use tests::proxy::Proxy;
use tests::{Family, client, conntrack, status, transfer};

use super::upstream::{
    api_servers, connect, entries, host_to_vip, is_too_old, none_is_tracked, resync, sources,
    with_api_servers,
};
use super::{BYTES, TIMEOUT};

/// A Service in front of the API server, and a port of the node.
const CLUSTER_IP: &str = "10.96.0.77:443";
const NODE_PORT: &str = "192.168.100.10:30443";

fn parsed(family: Family, four: &str) -> SocketAddr {
    match family {
        Family::V4 => four.parse().expect("an address"),
        // IPv6 is not part of the test.
        Family::V6 => api_server(family),
    }
}

fn cluster_ip(family: Family) -> SocketAddr {
    parsed(family, CLUSTER_IP)
}

fn node_port(family: Family) -> SocketAddr {
    parsed(family, NODE_PORT)
}

/// With `rules` in a nat table the proxy connects to `server`, tracked. Each connection works at once, and none waits
/// for a retransmitted SYN. Without them it connects to the API server directly, and such connections are untracked.
fn stays_tracked(rules: &str, server: fn(Family) -> SocketAddr) {
    with_api_servers(|node| {
        let cgroup = node.cgroup("one")?;
        node.netns.feed(
            "nft -f -",
            &format!("table ip upstream_nat {{\n{rules}\n}}\n"),
        )?;
        let agent = node.start_agent(&["--backend=nftables"])?;
        let proxy = Proxy::start_to(node, &cgroup, server)?;
        status::wait_until_learning(node)?;
        let path = host_to_vip(node);
        connect(&path)?;
        status::wait_until_known(node, server(Family::V4), "nat")?;
        for _ in 0..2 {
            let start = Instant::now();
            connect(&path)?;
            println!("connected after {} ms", start.elapsed().as_millis());
        }
        let all = entries(node, Family::V4)?;
        ensure!(all.len() == 3, "each is tracked: {all:#?}");
        node.netns.exec("nft delete table ip upstream_nat")?;
        conntrack::flush(&node.netns)?;
        if server(Family::V4) == api_server(Family::V4) {
            // This is the first connection without translation, and it is open while the agent reads the connections.
            let mut stream = client::connect(path.netns, path.destination(), TIMEOUT)?;
            transfer::exchange(&mut stream, BYTES, 1)?;
            resync(node, &agent)?;
            drop(stream);
        } else {
            drop(proxy);
            let proxy = Proxy::start_to(node, &cgroup, api_server)?;
            status::wait_until_learning(node)?;
            connect(&path)?;
            status::wait_until_known(node, api_server(Family::V4), "")?;
            let tracked = sources(node, &[Family::V4])?;
            connect(&path)?;
            drop(proxy);
            return none_is_tracked(node, &tracked);
        }
        status::wait_until_known(node, api_server(Family::V4), "")?;
        let tracked = sources(node, &[Family::V4])?;
        connect(&path)?;
        none_is_tracked(node, &tracked)
    });
}

#[test]
fn a_cluster_ip() {
    let rules = format!(
        "chain output {{ type nat hook output priority -100; policy accept;\n\
         ip daddr {} tcp dport 443 dnat to {}\n }}",
        cluster_ip(Family::V4).ip(),
        api_server(Family::V4)
    );
    stays_tracked(&rules, cluster_ip);
}

#[test]
fn a_node_port() {
    let rules = format!(
        "chain output {{ type nat hook output priority -100; policy accept;\n\
         fib daddr type local tcp dport 30443 dnat to {}\n }}",
        api_server(Family::V4)
    );
    stays_tracked(&rules, node_port);
}

#[test]
fn another_source_address() {
    // The API server's replies to this address arrive as well, because it is an address of the node.
    let rules = "chain postrouting { type nat hook postrouting priority 100; policy accept;\n\
                 ip daddr 192.168.100.1 tcp dport 6443 snat to 192.168.100.10:20000-29999 random\n }";
    stays_tracked(rules, api_server);
}

#[test]
fn masquerade_of_the_nodes_own_traffic() {
    let rules = "chain postrouting { type nat hook postrouting priority 100; policy accept;\n\
                 oifname \"eth0\" meta l4proto tcp masquerade to :20000-29999 random\n }";
    stays_tracked(rules, api_server);
}

/// kube-proxy and many other programs have such a rule: a packet whose source is already the node's address is not
/// changed.
#[test]
fn a_masquerade_that_changes_nothing_is_none() {
    if is_too_old() {
        return;
    }
    Node::test(Topology::Veth, |node| {
        let _servers = api_servers(node)?;
        let cgroup = node.cgroup("one")?;
        node.netns.feed(
            "nft -f -",
            "table ip upstream_nat {\n\
             chain postrouting { type nat hook postrouting priority 100; policy accept;\n\
             oifname \"eth0\" masquerade\n }\n}\n",
        )?;
        let _agent = node.start_agent(&["--backend=nftables"])?;
        let _proxy = Proxy::start_to(node, &cgroup, api_server)?;
        status::wait_until_learning(node)?;
        let path = host_to_vip(node);
        connect(&path)?;
        status::wait_until_known(node, api_server(Family::V4), "")?;
        let tracked = sources(node, &[Family::V4])?;
        connect(&path)?;
        none_is_tracked(node, &tracked)
    });
}
