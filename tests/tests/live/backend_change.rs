// SPDX-License-Identifier: Apache-2.0

//! The backend changes while connections are live on every path: by a restart with another flag, and by the agent
//! itself, when the current backend fails permanently and when a better one works again.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::agent::{Agent, TRANSLATE};
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology};
use tests::path::Via;
use tests::proxy::Proxy;
use tests::stream::Live;
use tests::streams::{all_end_intact, all_go_on, open};
use tests::{Family, client, cmd, conntrack, transfer, usage};

const TIMEOUT: Duration = Duration::from_secs(20);
const BEFORE: Duration = Duration::from_millis(500);
const BYTES: u64 = 100_000;

const EBPF: &[&str] = &["--backend=ebpf"];
const TRANSLATING: &[&str] = &["--backend=ebpf", TRANSLATE[0], TRANSLATE[1]];
const NFTABLES: &[&str] = &["--backend=nftables"];
const IPTABLES: &[&str] = &["--backend=iptables"];
const NONE: &[&str] = &["--backend=none"];

/// Returns the number of connections to the VIP that conntrack knows.
fn tracked_to_the_vip(node: &Node) -> Result<usize> {
    let mut tracked = 0;
    for family in Family::ALL {
        let entries = conntrack::list(&node.netns, family)?;
        let to_vip = |entry: &&conntrack::Entry| entry.destination == family.vip_socket();
        tracked += entries.iter().filter(to_vip).count();
    }
    Ok(tracked)
}

/// Checks that new connections work on every path, and that those to the VIP are untracked.
fn new_connections(node: &Node, backend: &[&str]) -> Result<()> {
    for path in node.paths() {
        let mut stream = client::connect(path.netns, path.destination(), TIMEOUT)
            .with_context(|| format!("{path}: connecting anew"))?;
        transfer::exchange(&mut stream, BYTES, 1).with_context(|| path.to_string())?;
        let entries = conntrack::list(&node.netns, path.family)?;
        let found = conntrack::of_client(&entries, stream.local_addr()?);
        let wanted = usize::from(path.via == Via::ClusterIp && backend != TRANSLATING);
        ensure!(found.len() == wanted, "{path}: {found:#?}");
    }
    Ok(())
}

fn go_on(node: &Node, streams: &[Live], backend: &[&str]) -> Result<()> {
    all_go_on(streams).context("the streams")?;
    let tracked = tracked_to_the_vip(node)?;
    ensure!(tracked == 0, "{tracked} connections to the VIP are tracked");
    new_connections(node, backend)
}

/// Runs an agent with each of the backends in turn, while streams continue that were opened under the first one.
fn one_after_the_other(topology: Topology, kube_proxy: KubeProxy, backends: &[&[&str]]) {
    Node::test(topology, |node| {
        kube_proxy.install_without_masquerade(&node.netns)?;
        let mut agent = node.start_agent(backends[0])?;
        let _proxy = Proxy::start(node)?;
        let mut streams = open(node)?;
        std::thread::sleep(BEFORE);
        go_on(node, &streams, backends[0]).context("at first")?;
        for backend in &backends[1..] {
            ensure!(agent.stop(libc::SIGTERM)?.success(), "SIGTERM");
            agent = node.start_agent(backend)?;
            go_on(node, &streams, backend).with_context(|| format!("now with {backend:?}"))?;
            // The connections of each backend must survive the next change as well.
            streams.extend(open(node)?);
        }
        all_end_intact(streams)
    });
}

#[test]
fn through_veth() {
    one_after_the_other(
        Topology::Veth,
        KubeProxy::IptablesNft,
        &[EBPF, NFTABLES, IPTABLES, EBPF],
    );
}

#[test]
fn through_a_bridge() {
    one_after_the_other(
        Topology::BridgeNetfilter,
        KubeProxy::Nftables,
        &[EBPF, NFTABLES, IPTABLES, EBPF],
    );
}

#[test]
fn the_other_way_round() {
    one_after_the_other(
        Topology::Veth,
        KubeProxy::IptablesLegacy,
        &[EBPF, IPTABLES, NFTABLES, EBPF],
    );
}

/// kube-proxy then handles the connections that the agent has translated.
#[test]
fn with_translation() {
    one_after_the_other(
        Topology::Veth,
        KubeProxy::IptablesNft,
        &[TRANSLATING, NFTABLES, IPTABLES, TRANSLATING],
    );
    one_after_the_other(
        Topology::BridgeNetfilter,
        KubeProxy::Nftables,
        &[TRANSLATING, IPTABLES, NFTABLES, TRANSLATING],
    );
}

/// Every connection becomes tracked and continues.
#[test]
fn to_none() {
    for backend in [TRANSLATING, NFTABLES, IPTABLES] {
        Node::test(Topology::Veth, |node| {
            KubeProxy::IptablesNft.install_without_masquerade(&node.netns)?;
            let mut agent = node.start_agent(backend)?;
            let _proxy = Proxy::start(node)?;
            let streams = open(node)?;
            std::thread::sleep(BEFORE);
            all_go_on(&streams)?;
            agent.stop(libc::SIGTERM)?;
            let _agent = node.start_agent(NONE)?;
            all_go_on(&streams).with_context(|| format!("none after {backend:?}"))?;
            let tracked = tracked_to_the_vip(node)?;
            ensure!(tracked > 0, "{backend:?}: nothing is tracked");
            all_end_intact(streams)
        });
    }
}

/// Waits until the agent has logged for the `times`-th time that it uses a backend.
fn uses(agent: &Agent, backend: &str, times: usize) -> Result<()> {
    let what = format!("the agent to use backend {backend}");
    let words = format!(" backend {backend}");
    cmd::wait_until(TIMEOUT, &what, || {
        let log = agent.log();
        let lines = log.lines().filter(|line| {
            let Some((_, rest)) = line.split_once(&words) else {
                return false;
            };
            rest.is_empty() || rest.starts_with(',')
        });
        Ok((lines.count() >= times).then_some(()))
    })
}

/// Without bpffs nothing can be pinned: `auto` selects the next backend, and returns to `ebpf` later.
#[test]
fn by_itself() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install_without_masquerade(&node.netns)?;
        let agent = node.start_agent(&["--backend=auto", "--sync-interval=500ms"])?;
        uses(&agent, "ebpf", 1)?;
        let _proxy = Proxy::start(node)?;
        let mut streams = open(node)?;
        std::thread::sleep(BEFORE);
        go_on(node, &streams, EBPF).context("at first")?;

        let bpffs = node.bpffs();
        cmd::run(Command::new("umount").arg("--lazy").arg(&bpffs), "")?;
        uses(&agent, "nftables", 1)?;
        all_go_on(&streams).context("without bpffs")?;
        new_connections(node, NFTABLES)?;
        streams.extend(open(node)?);

        cmd::run(
            Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&bpffs),
            "",
        )?;
        uses(&agent, "ebpf", 2)?;
        all_go_on(&streams).context("with bpffs again")?;
        new_connections(node, EBPF)?;
        all_end_intact(streams)
    });
}

/// There are more connections than one message to the kernel can hold.
#[test]
fn with_thousands_of_connections() {
    const CONNECTIONS: usize = 5000;
    usage::allow_open_files(u32::try_from(3 * CONNECTIONS).expect("a small number"));
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        let mut agent = node.start_agent(EBPF)?;
        let vip = Family::V6.vip_socket();
        let listener = node.netns.run(|| TcpListener::bind(vip))?;
        let mut pairs = node.pods[0].netns.run(|| {
            (0..CONNECTIONS)
                .map(|_| {
                    let client = client::connect_here(None, vip, TIMEOUT)?;
                    Ok((client, listener.accept()?.0))
                })
                .collect::<Result<Vec<_>>>()
        })?;
        for backend in [NFTABLES, IPTABLES, EBPF, NFTABLES] {
            agent.stop(libc::SIGTERM)?;
            agent = node.start_agent(backend)?;
            for (client, server) in &mut pairs {
                let mut byte = [0];
                server
                    .write_all(b"s")
                    .and_then(|()| client.read_exact(&mut byte))?;
                client
                    .write_all(b"c")
                    .and_then(|()| server.read_exact(&mut byte))?;
            }
            let tracked = tracked_to_the_vip(node)?;
            ensure!(tracked == 0, "{backend:?}: {tracked} are tracked");
        }
        Ok(())
    });
}
