// SPDX-License-Identifier: Apache-2.0

//! Stale conntrack entries: while kube-proxy's rules were missing, a client's SYN to the ClusterIP was tracked without
//! being translated. As long as the client retries from the same port, the kernel evaluates no NAT rule again, and the
//! connection cannot be established.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::agent::{Agent, TRANSLATE};
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology};
use tests::proxy::Proxy;
use tests::{Family, client, cmd, conntrack, transfer};

/// The time-out, with a margin for a loaded machine.
const TIMEOUT: Duration = Duration::from_secs(15);
const REPAIR: [&str; 2] = [
    "--repair-conntrack=10.96.0.1:443",
    "--repair-conntrack=[fd00:96::1]:443",
];

/// An entry as conntrack(8) creates it; its age follows from its remaining time.
struct Made<'a> {
    what: &'a str,
    family: Family,
    source: SocketAddr,
    words: String,
}

fn client(family: Family, port: u16) -> SocketAddr {
    let address = match family {
        Family::V4 => "10.244.9.9".parse(),
        Family::V6 => "fd00:244:0:9::9".parse(),
    };
    SocketAddr::new(address.expect("an address"), port)
}

fn make(node: &Node, made: &Made<'_>) -> Result<()> {
    let (address, port) = (made.source.ip(), made.source.port());
    node.netns
        .exec(&format!(
            "conntrack -I -p tcp -s {address} --sport {port} {}",
            made.words
        ))
        .with_context(|| made.what.to_owned())
        .map(drop)
}

/// Returns the entry of a SYN that was sent a minute ago and was neither translated nor answered.
fn stale(family: Family, to: SocketAddr, port: u16) -> Made<'static> {
    Made {
        what: "stale",
        family,
        source: client(family, port),
        words: format!(
            "-d {} --dport {} --state SYN_SENT -t 60",
            to.ip(),
            to.port()
        ),
    }
}

/// Returns entries that look similar but are not stale.
fn lookalikes(family: Family) -> Vec<Made<'static>> {
    let (vip, service) = (family.vip(), family.cluster_ip());
    let other = match family {
        Family::V4 => "10.96.0.30",
        Family::V6 => "fd00:96::30",
    };
    [
        ("DNATed, not answered yet", format!("-d {service} --dport 443 --state SYN_SENT -t 60 --dst-nat {vip}")),
        ("answered, not DNATed", format!("-d {service} --dport 443 --state ESTABLISHED -t 60 -u SEEN_REPLY,ASSURED")),
        ("DNATed and answered", format!("-d {service} --dport 443 --state ESTABLISHED -t 60 -u SEEN_REPLY,ASSURED --dst-nat {vip}")),
        ("to another ClusterIP", format!("-d {other} --dport 443 --state SYN_SENT -t 60")),
        ("to another port", format!("-d {service} --dport 80 --state SYN_SENT -t 60")),
        ("to the VIP", format!("-d {vip} --dport 443 --state SYN_SENT -t 60")),
    ]
    .into_iter()
    .zip(7000..)
    .map(|((what, words), port)| Made {
        what,
        family,
        source: client(family, port),
        words,
    })
    .collect()
}

fn is_there(node: &Node, made: &Made<'_>) -> Result<bool> {
    let entries = conntrack::list_all(&node.netns, made.family)?;
    Ok(entries.iter().any(|entry| entry.source == made.source))
}

fn wait_until_gone(node: &Node, made: &Made<'_>) -> Result<()> {
    cmd::wait_until(TIMEOUT, "a stale entry to go", || {
        Ok((!is_there(node, made)?).then_some(()))
    })
    .with_context(|| made.source.to_string())
}

fn is_logged(agent: &Agent, made: &Made<'_>) -> Result<()> {
    let source = made.source.to_string();
    cmd::wait_until(TIMEOUT, "a line in the log", || {
        Ok(agent.log().contains(&source).then_some(()))
    })
    .with_context(|| source.clone())
}

/// The agent deletes entries at the start and at a resync, and only stale ones.
fn check(backend: &str, args: &[&str]) {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        let mut kept = Vec::new();
        let mut early = Vec::new();
        for family in Family::ALL {
            kept.extend(lookalikes(family));
            early.push(stale(family, family.cluster_ip_socket(), 8001));
        }
        for made in kept.iter().chain(&early) {
            make(node, made)?;
        }
        let args = [args, &[backend, "--sync-interval=500ms"]].concat();
        let agent = node.start_agent(&args)?;
        for made in &early {
            wait_until_gone(node, made).context("at the start")?;
            is_logged(&agent, made)?;
        }
        for family in Family::ALL {
            let late = stale(family, family.cluster_ip_socket(), 8002);
            make(node, &late)?;
            wait_until_gone(node, &late).context("at a resync")?;
            is_logged(&agent, &late)?;
        }
        // Some more resyncs run meanwhile.
        std::thread::sleep(Duration::from_millis(1500));
        for made in &kept {
            ensure!(
                is_there(node, made)?,
                "{:?}, {}: the entry is gone",
                made.family,
                made.what
            );
        }
        Ok(())
    });
}

#[test]
fn of_a_translated_cluster_ip() {
    check("--backend=ebpf", &TRANSLATE);
}

#[test]
fn of_another_cluster_ip() {
    check("--backend=ebpf", &REPAIR);
}

#[test]
fn of_another_cluster_ip_with_nftables() {
    check("--backend=nftables", &REPAIR);
}

/// Without the flag, the agent deletes nothing.
#[test]
fn without_the_flag() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        let made = Family::ALL.map(|family| stale(family, family.cluster_ip_socket(), 8001));
        for made in &made {
            make(node, made)?;
        }
        let _agent = node.start_agent(&["--backend=ebpf", "--sync-interval=500ms"])?;
        std::thread::sleep(Duration::from_secs(2));
        for made in &made {
            ensure!(
                is_there(node, made)?,
                "{:?}: the entry is gone",
                made.family
            );
        }
        Ok(())
    });
}

/// The real case: clients try to connect while kube-proxy's rules are missing; then the rules are restored. Returns the
/// results of the clients' first attempts.
fn connect_too_early(node: &mut Node, agent: &[&str]) -> Result<Vec<io::Result<TcpStream>>> {
    // Conntrack works already, and no host beyond the uplink replies, not even with an error.
    node.uplink
        .ip("route add blackhole 10.96.0.0/16\nroute add blackhole fd00:96::/64\n")?;
    node.netns.feed(
        "nft -f -",
        "table inet conntrack { chain forward {\n\
         type filter hook forward priority 0; policy accept; ct state invalid counter\n}\n}\n",
    )?;
    let (node, pods) = (&*node, &node.pods);
    std::thread::scope(|scope| {
        let clients: Vec<_> = pods
            .iter()
            .zip(Family::ALL)
            .map(|(pod, family)| {
                let connect =
                    move || client::connect(&pod.netns, family.cluster_ip_socket(), TIMEOUT);
                scope.spawn(connect)
            })
            .collect();
        for family in Family::ALL {
            cmd::wait_until(TIMEOUT, "the SYN to be tracked", || {
                Ok((!conntrack::list(&node.netns, family)?.is_empty()).then_some(()))
            })?;
        }
        // The proxy starts before kube-proxy's rules redirect clients to it: a client would not retry after a refused
        // connection.
        node.add_vips("lo")?;
        let _proxy = Proxy::start(node)?;
        KubeProxy::IptablesNft.install(&node.netns)?;
        let args = [&["--backend=ebpf", "--sync-interval=500ms"], agent].concat();
        let _agent = node.start_agent(&args)?;
        let results: Vec<_> = clients
            .into_iter()
            .map(|client| client.join().expect("it does not panic"))
            .map(|result| {
                result.and_then(|mut stream| {
                    transfer::exchange(&mut stream, 10_000, 1).map_err(io::Error::other)?;
                    Ok(stream)
                })
            })
            .collect();
        Ok(results)
    })
}

#[test]
fn a_client_that_tried_too_early_is_stuck_without_repair() {
    Node::test(Topology::Veth, |node| {
        for result in connect_too_early(node, &[])? {
            let kind = result.map(drop).map_err(|error| error.kind());
            ensure!(kind == Err(io::ErrorKind::TimedOut), "{kind:?}");
        }
        Ok(())
    });
}

fn a_client_that_tried_too_early_connects(args: &[&str]) {
    Node::test(Topology::Veth, |node| {
        for result in connect_too_early(node, args)? {
            result?;
        }
        Ok(())
    });
}

#[test]
fn a_client_that_tried_too_early_connects_with_repair() {
    a_client_that_tried_too_early_connects(&REPAIR);
}

#[test]
fn a_client_that_tried_too_early_connects_with_translation() {
    a_client_that_tried_too_early_connects(&TRANSLATE);
}
