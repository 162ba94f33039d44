// SPDX-License-Identifier: Apache-2.0

//! The agent learns the API servers from the proxy's own connections, without any flag (`--proxy-upstream=auto`).

use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::agent::TRANSLATE;
use tests::cgroup::Cgroup;
use tests::cmd::Process;
use tests::kubeproxy::KubeProxy;
use tests::node::{API_PORT, Node, Topology, api_server};
use tests::path::Via;
use tests::proxy::Proxy;
use tests::transfer::Server;
use tests::{Family, client, cmd, doctor, status, transfer};

use super::upstream::{
    api_servers, connect, host_to_vip, none_is_tracked, others_are_tracked, sources,
    with_api_servers,
};
use super::{BYTES, TIMEOUT, fill, works_on};

/// Makes the proxy connect once in each family, and waits until connections to both endpoints are untracked. Returns
/// the sources of the tracked connections.
fn learn(node: &Node) -> Result<Vec<SocketAddr>> {
    status::wait_until_learning(node)?;
    for family in Family::ALL {
        let mut paths = node.paths();
        paths.retain(|path| (&*path.client, path.via, path.family) == ("host", Via::Vip, family));
        connect(&paths[0])?;
        let start = Instant::now();
        status::wait_until_known(node, api_server(family), "")?;
        println!(
            "{family:?} learned after {} ms",
            start.elapsed().as_millis()
        );
    }
    sources(node, &Family::ALL)
}

fn everything_is_learned(args: &[&str], has_service: bool) {
    with_api_servers(|node| {
        let cgroup = node.cgroup("one")?;
        let _agent = node.start_agent(args)?;
        ensure!(status::learns_not(node)? == "no_listener");
        let _proxy = Proxy::start_to(node, &cgroup, api_server)?;
        let mut known = learn(node)?;
        ensure!(
            known.len() == 2,
            "the first of each family is tracked: {known:?}"
        );
        ensure!(status::learns_not(node)?.is_empty());
        let mut paths = node.paths();
        paths.retain(|path| has_service || path.via == Via::Vip);
        let mut streams = works_on(node, &paths)?;
        none_is_tracked(node, &known)?;
        known.extend(others_are_tracked(node)?);
        fill(node)?;
        streams.extend(works_on(node, &paths)?);
        none_is_tracked(node, &known)?;
        for stream in &mut streams {
            transfer::exchange(stream, BYTES, 99).context("an older connection")?;
        }
        Ok(())
    });
}

#[test]
fn api_servers_are_learned_with_ebpf() {
    let args = [&TRANSLATE[..], &["--backend=ebpf"]].concat();
    everything_is_learned(&args, true);
}

#[test]
fn api_servers_are_learned_with_nftables() {
    everything_is_learned(&["--backend=nftables"], false);
}

/// The proxy's connections are older than the agent, and it opens no new one before the table is full.
#[test]
fn connections_that_are_older_than_the_agent_count() {
    with_api_servers(|node| {
        let cgroup = node.cgroup("one")?;
        node.add_vips("lo")?;
        let _proxy = Proxy::start_to(node, &cgroup, api_server)?;
        let path = host_to_vip(node);
        let mut older = client::connect(path.netns, path.destination(), TIMEOUT)?;
        transfer::exchange(&mut older, BYTES, 1)?;
        let _agent = node.start_agent(&["--backend=nftables"])?;
        let known = status::endpoints(node)?;
        ensure!(
            known.into_iter().collect::<Vec<_>>() == [(api_server(Family::V4), String::new())],
            "what is connected is known with the first pass"
        );
        let tracked = sources(node, &Family::ALL)?;
        fill(node)?;
        connect(&path)?;
        none_is_tracked(node, &tracked)?;
        transfer::exchange(&mut older, BYTES, 2).context("the older one")
    });
}

/// Returns the address of another API server.
fn other_server(family: Family) -> SocketAddr {
    let text = match family {
        Family::V4 => "192.168.100.2",
        Family::V6 => "fd00:100::2",
    };
    SocketAddr::new(text.parse::<IpAddr>().expect("an address"), API_PORT)
}

#[test]
fn another_upstream_cgroup_or_agent_is_followed() {
    with_api_servers(|node| {
        node.uplink.ip("address add 192.168.100.2/24 dev node\n\
             address add fd00:100::2/64 dev node nodad\n")?;
        let [four, six] =
            Family::ALL.map(|family| Server::listen(&node.uplink, other_server(family)));
        let _others = (four?, six?);
        let cgroups = [node.cgroup("one")?, node.cgroup("two")?];
        let mut agent = node.start_agent(&["--backend=nftables"])?;
        let proxy = Proxy::start_to(node, &cgroups[0], api_server)?;
        let tracked = learn(node)?;
        let path = host_to_vip(node);
        // Learned endpoints survive the agent, even if it is killed.
        agent.stop(libc::SIGKILL)?;
        connect(&path)?;
        let _agent = node.start_agent(&["--backend=nftables"])?;
        ensure!(status::endpoints(node)?.len() == 2);
        connect(&path)?;
        none_is_tracked(node, &tracked)?;
        // The proxy moves to another cgroup.
        drop(proxy);
        let proxy = Proxy::start_to(node, &cgroups[1], api_server)?;
        status::wait_until_upstream(node, "", &cgroups[1])?;
        connect(&path)?;
        none_is_tracked(node, &tracked)?;
        // The proxy connects to another API server.
        drop(proxy);
        let _proxy = Proxy::start_to(node, &cgroups[1], other_server)?;
        status::wait_until_learning(node)?;
        connect(&path)?;
        status::wait_until_known(node, other_server(Family::V4), "")?;
        fill(node)?;
        connect(&path)?;
        none_is_tracked(node, &tracked)
    });
}

/// Starts a process in the proxy's cgroup that is not the proxy.
fn company(cgroup: &Cgroup) -> Result<Process> {
    let mut command = Command::new("sleep");
    command.arg("600").stdin(Stdio::null());
    cgroup.enter(&mut command)?;
    cmd::guard_child(&mut command);
    Ok(Process::new(command.spawn().context("starting sleep")?))
}

#[test]
fn nothing_is_learned_from_a_cgroup_with_more_than_the_proxy() {
    with_api_servers(|node| {
        let cgroup = node.cgroup("one")?;
        let _agent = node.start_agent(&["--backend=nftables", "--sync-interval=1s"])?;
        let company = company(&cgroup)?;
        let _proxy = Proxy::start_to(node, &cgroup, api_server)?;
        cmd::wait_until(TIMEOUT, "the company to be noticed", || {
            Ok((status::learns_not(node)? == "company").then_some(()))
        })?;
        let path = host_to_vip(node);
        let mut stream = client::connect(path.netns, path.destination(), TIMEOUT)?;
        transfer::exchange(&mut stream, BYTES, 1)?;
        let found = doctor::doctor(node)?;
        let is_named = |check: &Value| {
            let text = doctor::text(check, "finding");
            text.contains("haproxy, sleep") && text.contains("(company)")
        };
        ensure!(found.checks.iter().any(is_named), "{:#?}", found.checks);
        thread::sleep(Duration::from_secs(2));
        ensure!(status::endpoints(node)?.is_empty());
        ensure!(!sources(node, &Family::ALL)?.is_empty(), "it is tracked");
        drop(company);
        status::wait_until_known(node, api_server(Family::V4), "")
    });
}

#[test]
fn off_is_off() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        let _servers = api_servers(node)?;
        let cgroup = node.cgroup("one")?;
        let _agent = node.start_agent(&["--backend=nftables", "--proxy-upstream=off"])?;
        let _proxy = Proxy::start_to(node, &cgroup, api_server)?;
        for _ in 0..2 {
            connect(&host_to_vip(node))?;
            thread::sleep(Duration::from_secs(1));
        }
        ensure!(sources(node, &Family::ALL)?.len() == 2);
        let tables = node.netns.exec("nft list tables")?;
        ensure!(!tables.contains("_upstream"), "{tables}");
        Ok(())
    });
}
