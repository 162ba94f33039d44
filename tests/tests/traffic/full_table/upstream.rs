// SPDX-License-Identifier: Apache-2.0

//! Connections through the proxy to API servers behind the uplink: the proxy's own connections (`--proxy-upstream`).

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::agent::{Agent, TRANSLATE, binary};
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology, UPSTREAM, api_server};
use tests::path::{Path, Via};
use tests::proxy::Proxy;
use tests::transfer::Server;
use tests::{Family, client, cmd, conntrack, doctor, skip, status, transfer};

use super::{BYTES, SHORT_TIMEOUT, TIMEOUT, connect_everywhere, fill, works_on};

/// Returns true if this kernel lacks a feature that the rules need; this is recorded once for all tests of the proxy's
/// own connections.
pub(super) fn is_too_old() -> bool {
    let what = "`socket cgroupv2` in rules of nf_tables";
    skip::before((5, 13), what, "full_table-proxy-upstream")
        .expect("reading the kernel's version, recording")
}

/// Starts API servers at the other end of the uplink.
pub(super) fn api_servers(node: &Node) -> Result<[Server; 2]> {
    let [four, six] = Family::ALL.map(|family| Server::listen(&node.uplink, api_server(family)));
    Ok([four?, six?])
}

/// Runs a test on a node with kube-proxy and API servers at the other end of the uplink, unless the kernel is too old.
pub(super) fn with_api_servers(test: impl FnOnce(&mut Node) -> Result<()>) {
    if is_too_old() {
        return;
    }
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        let _servers = api_servers(node)?;
        test(node)
    });
}

/// Returns the entries of the API server in the node's table.
pub(super) fn entries(node: &Node, family: Family) -> Result<Vec<conntrack::Entry>> {
    let mut entries = conntrack::list_all(&node.netns, family)?;
    entries.retain(|entry| {
        let server = api_server(family);
        entry.destination == server || entry.source == server || entry.reply_source == server
    });
    Ok(entries)
}

/// Returns the sources of these entries, in these families.
pub(super) fn sources(node: &Node, families: &[Family]) -> Result<Vec<SocketAddr>> {
    let mut sources = Vec::new();
    for family in families {
        sources.extend(entries(node, *family)?.iter().map(|entry| entry.source));
    }
    Ok(sources)
}

/// Checks that no connection is tracked except those from these addresses: conntrack creates entries for the last
/// packets of connections whose entries were flushed.
pub(super) fn none_is_tracked(node: &Node, but: &[SocketAddr]) -> Result<()> {
    for family in Family::ALL {
        let mut entries = entries(node, family)?;
        entries.retain(|entry| !but.contains(&entry.source) && !but.contains(&entry.destination));
        ensure!(entries.is_empty(), "conntrack knows {entries:#?}");
    }
    Ok(())
}

/// Makes the agent run a resync.
pub(super) fn resync(node: &Node, agent: &Agent) -> Result<()> {
    let passes = || -> Result<Value> { Ok(status::read(node)?["passes"]["last"]["at"].clone()) };
    let before = passes()?;
    agent.signal(libc::SIGHUP)?;
    cmd::wait_until(TIMEOUT, "a resync", || {
        Ok((passes()? != before).then_some(()))
    })
}

pub(super) fn connect(path: &Path<'_>) -> Result<()> {
    let connected = client::connect(path.netns, path.destination(), TIMEOUT);
    let mut stream = connected.with_context(|| format!("{path}: connecting"))?;
    transfer::exchange(&mut stream, BYTES, 7).with_context(|| path.to_string())
}

pub(super) fn host_to_vip(node: &Node) -> Path<'_> {
    let mut paths = node.paths();
    paths.retain(|path| (&*path.client, path.via, path.family) == ("host", Via::Vip, Family::V4));
    paths.remove(0)
}

/// Checks that other connections to the same endpoints are tracked: from a pod, and from a process outside of the
/// proxy's cgroup. Returns their source addresses.
pub(super) fn others_are_tracked(node: &Node) -> Result<Vec<SocketAddr>> {
    let mut others = Vec::new();
    for family in Family::ALL {
        for (client, netns) in [("pod", &node.pods[0].netns), ("process", &node.netns)] {
            let mut stream = client::connect(netns, api_server(family), TIMEOUT)
                .with_context(|| format!("{client} to the API server"))?;
            transfer::exchange(&mut stream, BYTES, 3)?;
            let own = stream.local_addr()?;
            others.push(own);
            let entries = entries(node, family)?;
            let tracked = entries.iter().any(|entry| entry.source == own);
            ensure!(tracked, "no entry of {client} {own} among {entries:#?}");
        }
    }
    Ok(others)
}

fn the_way_on_works(args: &[&str], has_service: bool) {
    with_api_servers(|node| {
        let cgroups = [node.cgroup("one")?, node.cgroup("two")?];
        let agent = node.start_agent(&[args, &[UPSTREAM]].concat())?;
        let proxy = Proxy::start_to(node, &cgroups[0], api_server)?;
        status::wait_until_upstream(node, "", &cgroups[0])?;
        let mut paths = node.paths();
        paths.retain(|path| has_service || path.via == Via::Vip);
        let mut streams = works_on(node, &paths)?;
        none_is_tracked(node, &[])?;
        let others = others_are_tracked(node)?;
        let drift = status::read(node)?["drift"].clone();
        let is_clean =
            drift["changes"] == Value::Array(vec![]) && drift["failures"] == drift["changes"];
        ensure!(is_clean, "{drift}");
        fill(node)?;
        streams.extend(works_on(node, &paths)?);
        none_is_tracked(node, &others)?;
        for stream in &mut streams {
            transfer::exchange(stream, BYTES, 99).context("an older connection")?;
        }
        // The proxy restarts in another cgroup, and the old one is removed.
        let [first, second] = cgroups;
        drop((streams, proxy, first));
        cmd::wait_until(TIMEOUT, "the rules of a cgroup that is gone to go", || {
            let (reason, cgroups) = status::upstream(node)?;
            Ok((reason == "no_listener" && cgroups.is_empty()).then_some(()))
        })?;
        let _proxy = Proxy::start_to(node, &second, api_server)?;
        status::wait_until_upstream(node, "", &second)?;
        works_on(node, &paths)?;
        none_is_tracked(node, &others)?;
        drop(agent);
        Ok(())
    });
}

#[test]
fn the_way_on_works_with_ebpf() {
    let args = [&TRANSLATE[..], &["--backend=ebpf"]].concat();
    the_way_on_works(&args, true);
}

#[test]
fn the_way_on_works_with_nftables() {
    the_way_on_works(&["--backend=nftables"], false);
}

#[test]
fn nothing_gets_to_the_api_server_without_it() {
    Node::test(Topology::Veth, |node| {
        // Without a rule that needs conntrack, no connection is tracked at all.
        KubeProxy::IptablesNft.install(&node.netns)?;
        let _servers = api_servers(node)?;
        let cgroup = node.cgroup("one")?;
        let _agent = node.start_agent(&["--backend=nftables", "--proxy-upstream=off"])?;
        let _proxy = Proxy::start_to(node, &cgroup, api_server)?;
        fill(node)?;
        let mut paths = node.paths();
        paths.retain(|path| path.via == Via::Vip);
        for (path, result) in connect_everywhere(&paths, SHORT_TIMEOUT) {
            let mut stream = result.with_context(|| path.to_string())?;
            stream.set_read_timeout(Some(SHORT_TIMEOUT))?;
            let answer = transfer::exchange(&mut stream, 1, 5);
            ensure!(answer.is_err(), "{path} works: the table is not full");
        }
        Ok(())
    });
}

/// Source NAT changes the address of the node's packets to the API server to another one of the node, and the server
/// replies only to that one.
const NAT: &str = "\
    table ip upstream_nat {\n\
      chain postrouting {\n\
        type nat hook postrouting priority srcnat; policy accept;\n\
        ip daddr 192.168.100.1 tcp dport 6443 snat to 192.168.100.11\n\
      }\n\
    }\n";
const ONLY_TRANSLATED: &str = "\
    table ip upstream_filter {\n\
      chain input {\n\
        type filter hook input priority filter; policy accept;\n\
        ip saddr 192.168.100.10 tcp dport 6443 drop\n\
      }\n\
    }\n";

/// With source NAT on the path, an untracked SYN gets no reply; the retransmitted one is tracked and works, and so does
/// every later connection at once. Without the NAT, connections to the endpoint are untracked again.
#[test]
fn a_translated_way_stays_tracked_and_works() {
    with_api_servers(|node| {
        let cgroup = node.cgroup("one")?;
        node.netns
            .exec("ip address add 192.168.100.11/24 dev eth0")?;
        node.netns.feed("nft -f -", NAT)?;
        node.uplink.feed("nft -f -", ONLY_TRANSLATED)?;
        let agent = node.start_agent(&["--backend=nftables", UPSTREAM])?;
        let _proxy = Proxy::start_to(node, &cgroup, api_server)?;
        status::wait_until_upstream(node, "", &cgroup)?;
        let path = host_to_vip(node);
        connect(&path)?;
        let of_first = entries(node, Family::V4)?;
        let translated: IpAddr = "192.168.100.11".parse()?;
        ensure!(of_first.len() == 1, "{of_first:#?}");
        ensure!(
            of_first[0].line.contains("dst=192.168.100.11"),
            "{of_first:#?}"
        );
        connect(&path)?;
        ensure!(
            entries(node, Family::V4)?.len() == 2,
            "the second one is tracked"
        );
        let mut stream = client::connect(path.netns, path.destination(), TIMEOUT)?;
        transfer::exchange(&mut stream, BYTES, 1)?;
        resync(node, &agent)?;
        status::wait_until_upstream(node, "nat", &cgroup)?;
        let found = doctor::doctor(node)?;
        let faults = found.faults("proxy-upstream");
        ensure!(
            faults.len() == 1
                && doctor::text(faults[0], "finding").contains(&translated.to_string()),
            "{faults:#?}"
        );
        node.uplink.exec("nft delete table ip upstream_filter")?;
        node.netns.exec("nft delete table ip upstream_nat")?;
        // The agent detects NAT by a new connection, after the old one is closed.
        drop(stream);
        conntrack::flush(&node.netns)?;
        let mut stream = client::connect(path.netns, path.destination(), TIMEOUT)?;
        transfer::exchange(&mut stream, BYTES, 1)?;
        resync(node, &agent)?;
        status::wait_until_upstream(node, "", &cgroup)?;
        let old = sources(node, &[Family::V4])?;
        ensure!(!old.is_empty(), "the endpoint was tracked until now");
        drop(stream);
        connect(&path)?;
        none_is_tracked(node, &old)
    });
}

/// Drops packets that conntrack does not know, of the proxy and of the API server.
const INVALID: &str = "nft add table ip invalid { chain output { type filter hook output priority 0; ct state invalid drop; }; \
     chain input { type filter hook input priority 0; ct state invalid drop; }; }";

/// Does something while another thread repeats its work.
fn beside<T>(
    mut work: impl FnMut() -> Result<()> + Send,
    does: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let others = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                work()?;
            }
            anyhow::Ok(())
        });
        let done = does();
        is_over.store(true, Ordering::Relaxed);
        others.join().expect("it does not panic")?;
        done
    })
}

/// Lists the rules for the proxy's own connections.
const RULES: &str = "nft list chain ip proxy-agent proxy_output";

/// A stream through the proxy continues, whatever happens to the agent and its tables.
#[test]
fn a_stream_goes_on_through_kill_flush_restart_and_removal() {
    with_api_servers(|node| {
        let cgroup = node.cgroup("one")?;
        let args = ["--backend=nftables", UPSTREAM];
        let agent = node.start_agent(&args)?;
        let _proxy = Proxy::start_to(node, &cgroup, api_server)?;
        status::wait_until_upstream(node, "", &cgroup)?;
        let path = host_to_vip(node);
        let mut stream = client::connect(path.netns, path.destination(), TIMEOUT)?;
        let mut works =
            |what: &str| transfer::exchange(&mut stream, BYTES, 8).with_context(|| what.to_owned());
        works("before")?;
        drop(agent);
        works("without an agent")?;
        let agent = node.start_agent(&args)?;
        works("with another agent")?;
        none_is_tracked(node, &[])?;
        // Sets of another size: the tables are installed again, beneath a stream that does not pause.
        let mut busy = client::connect(path.netns, path.destination(), TIMEOUT)?;
        let streams = || transfer::exchange(&mut busy, BYTES, 8);
        let agent = beside(streams, || {
            drop(agent);
            node.start_agent(&[&args[..], &["--max-connections=4096"]].concat())
        })?;
        none_is_tracked(node, &[]).context("with another size")?;
        node.netns.exec("nft delete table ip proxy-agent")?;
        works("without the table")?;
        cmd::wait_until(TIMEOUT, "the table to be repaired", || {
            let there = node.netns.exec(RULES).unwrap_or_default();
            Ok(there.contains("goto proxy_sent").then_some(()))
        })?;
        works("with a new table")?;
        connect(&path)?;
        let mut fresh = client::connect(path.netns, path.destination(), TIMEOUT)?;
        transfer::exchange(&mut fresh, BYTES, 8)?;
        let loose = "net/netfilter/nf_conntrack_tcp_loose";
        node.netns.sysctl(loose, "0")?;
        let upstream = sources(node, &[Family::V4])?;
        node.netns.exec(INVALID)?;
        beside(
            || connect(&path),
            || {
                node.netns.exec("nft delete table ip proxy-agent")?;
                transfer::exchange(&mut fresh, BYTES, 8).context("where conntrack does not pick up")
            },
        )?;
        none_is_tracked(node, &upstream)?;
        node.netns.exec("nft delete table ip invalid")?;
        node.netns.sysctl(loose, "1")?;
        drop(agent);
        let agent = node.start_agent(&["--backend=nftables", "--proxy-upstream=off"])?;
        let left = node.netns.exec("nft list table ip proxy-agent")?;
        ensure!(!left.contains("proxy_output"), "{left}");
        works("with the flag off")?;
        drop(agent);
        let agent = node.start_agent(&args)?;
        connect(&path)?;
        drop(agent);
        let agent = node.start_agent(&["--backend=none", UPSTREAM])?;
        ensure!(
            status::upstream(node)?.0 == "backend",
            "{:?}",
            status::upstream(node)?
        );
        works("with another backend")?;
        drop(agent);
        let agent = node.start_agent(&args)?;
        connect(&path)?;
        drop(agent);
        let mut cleanup = node.netns.command(binary()?);
        cleanup
            .args(["cleanup", "--drain-timeout=0s"])
            .arg(format!("--bpffs={}", node.agent_bpffs().display()))
            .arg(format!("--run-dir={}", node.run_dir().display()));
        let output = node.run(cleanup)?;
        ensure!(output.status.success(), "{output:?}");
        let left = node.netns.exec("nft list tables")?;
        ensure!(!left.contains("proxy-agent"), "{left}");
        Ok(())
    });
}

/// Version 0.2.0 had tables of their own for the proxy's connections. An upgrade keeps these untracked, and removes the tables.
#[test]
fn connections_of_separate_tables_stay_untracked() {
    upgraded(&["--backend=nftables", UPSTREAM], |node| {
        none_is_tracked(node, &[])
    });
}

/// With `nf_conntrack_tcp_loose` 0 they would hang without an entry.
#[test]
fn connections_of_separate_tables_become_tracked_without_the_rules() {
    upgraded(&["--backend=nftables", "--proxy-upstream=off"], |node| {
        let entries = entries(node, Family::V4)?;
        ensure!(entries.len() == 1, "{entries:?}");
        Ok(())
    });
}

/// Opens a connection, and replaces the tables by those of version 0.2.0 and the agent by one with these arguments.
fn upgraded(after: &[&str], check: impl Fn(&Node) -> Result<()>) {
    with_api_servers(|node| {
        let cgroup = node.cgroup("one")?;
        let agent = node.start_agent(&["--backend=nftables", UPSTREAM])?;
        let _proxy = Proxy::start_to(node, &cgroup, api_server)?;
        status::wait_until_upstream(node, "", &cgroup)?;
        let path = host_to_vip(node);
        let mut stream = client::connect(path.netns, path.destination(), TIMEOUT)?;
        transfer::exchange(&mut stream, BYTES, 8)?;
        drop(agent);
        let decided = node
            .netns
            .exec("nft list set ip proxy-agent proxy_decided")?;
        let member = decided.split_once("elements = {");
        let member = member.and_then(|(_, rest)| rest.split_once(" expires"));
        let (member, _) = member.with_context(|| format!("one connection: {decided}"))?;
        node.netns.feed(
            "nft -f -",
            &format!(
                "delete table ip proxy-agent
                table ip proxy-agent_upstream {{
                    set decided {{
                        type ipv4_addr . inet_service . ipv4_addr . inet_service; size 1024
                        flags dynamic,timeout; timeout 365d; elements = {{ {member} }}
                    }}
                    chain output {{
                        type filter hook output priority raw
                        ip saddr . tcp sport . ip daddr . tcp dport @decided notrack accept
                    }}
                    chain prerouting {{
                        type filter hook prerouting priority raw
                        ip daddr . tcp dport . ip saddr . tcp sport @decided notrack accept
                    }}
                }}"
            ),
        )?;
        node.netns
            .sysctl("net/netfilter/nf_conntrack_tcp_loose", "0")?;
        node.netns.exec(INVALID)?;
        let _agent = node.start_agent(after)?;
        let left = node.netns.exec("nft list tables")?;
        ensure!(!left.contains("_upstream"), "{left}");
        transfer::exchange(&mut stream, BYTES, 8)?;
        check(node)
    });
}

#[test]
fn bad_endpoints_are_refused_and_nothing_is_changed() {
    Node::test(Topology::Veth, |node| {
        let vip = Family::V4.vip().to_string();
        for bad in [
            vip.as_str(),
            "10.96.0.1:6443",
            "127.0.0.1",
            "224.0.0.1",
            "0.0.0.0",
        ] {
            let upstream = format!("--proxy-upstream={bad}");
            let output = node.run_agent(&[&TRANSLATE[..], &[&upstream]].concat())?;
            let errors = String::from_utf8_lossy(&output.stderr);
            ensure!(cmd::exit_code(output.status) == 2, "{bad}: {errors}");
            ensure!(
                errors.contains(&format!("'{bad}' for '--proxy-upstream")),
                "{errors}"
            );
        }
        ensure!(!fs::exists(node.run_dir())?, "something was written");
        Ok(())
    });
}
