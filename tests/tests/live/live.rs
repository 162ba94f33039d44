// SPDX-License-Identifier: Apache-2.0

//! Live connections on every path stream checked bytes in both directions all the time, and survive every event that
//! affects the agent and the objects it has set up.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::agent::{Agent, TRANSLATE};
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology};
use tests::path::{Path, Via};
use tests::proxy::Proxy;
use tests::streams::{all_end_intact, all_go_on, entries, new_connections_work, open, open_on};
use tests::{Family, cmd, conntrack, skip, slow_machine, status};

const TIMEOUT: Duration = Duration::from_secs(10);
/// The time for which streams run before and after each event.
const BEFORE: Duration = Duration::from_millis(500);
const AFTER: Duration = Duration::from_secs(2);

/// The flags of the agent at each start.
type Args = &'static [&'static str];

/// Every connection is untracked.
const TRANSLATING: Args = &["--backend=ebpf", TRANSLATE[0], TRANSLATE[1]];
const EBPF: Args = &["--backend=ebpf"];
/// Connections to the VIP are untracked; kube-proxy translates the others.
const NFTABLES: Args = &["--backend=nftables"];
const IPTABLES: Args = &["--backend=iptables"];

/// Checks that conntrack tracks no connection that the backend should keep untracked.
fn untracked(node: &Node, backend: Args) -> Result<()> {
    let mut tracked = entries(node)?;
    if backend != TRANSLATING {
        tracked.retain(|entry| {
            Family::ALL
                .iter()
                .any(|family| entry.destination == family.vip_socket())
        });
    }
    ensure!(tracked.is_empty(), "tracked: {tracked:#?}");
    Ok(())
}

/// Runs `event` on a node with an agent and live, untracked connections, which must continue.
fn survive(
    topology: Topology,
    kube_proxy: KubeProxy,
    (backend, args): (Args, Args),
    event: impl FnOnce(&Node, Agent, Args) -> Result<Option<Agent>>,
) {
    let by_tcx = args.contains(&"--tc-attach=tcx");
    if by_tcx && skip::without_tcx("live-tcx_detach").expect("what was skipped can be noted") {
        return;
    }
    Node::test(topology, |node| {
        kube_proxy.install_without_masquerade(&node.netns)?;
        let agent = node.start_agent(&[backend, args].concat())?;
        let _proxy = Proxy::start(node)?;
        let streams = open(node)?;
        std::thread::sleep(BEFORE);
        all_go_on(&streams).context("before")?;
        untracked(node, backend).context("at first")?;

        let agent = event(node, agent, backend).context("what was to happen")?;
        all_go_on(&streams).context("after it happened")?;
        std::thread::sleep(AFTER);
        all_go_on(&streams).context("a while after it happened")?;
        all_end_intact(streams)?;
        if let Some(agent) = agent {
            agent.signal(libc::SIGCONT)?;
        }
        new_connections_work(node)
    });
}

/// Defines one test with veth pairs and one with a bridge.
macro_rules! survives {
    ($($name:ident: $kube_proxy:expr, $backend:expr, $args:expr, $event:expr;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn through_veth() {
                survive(Topology::Veth, $kube_proxy, ($backend, &$args), $event);
            }

            #[test]
            fn through_a_bridge() {
                survive(Topology::BridgeNetfilter, $kube_proxy, ($backend, &$args), $event);
            }
        }
    )*};
}

survives! {
    restart: KubeProxy::IptablesNft, TRANSLATING, [], restart;
    kill: KubeProxy::Nftables, TRANSLATING, [], kill;
    no_longer_translated: KubeProxy::IptablesNft, TRANSLATING, [], no_longer_translated;
    ruleset_flush: KubeProxy::IptablesLegacy, TRANSLATING, [], flush_ruleset;
    table_deletion: KubeProxy::Nftables, TRANSLATING, [], delete_tables;
    table_deletion_without_repair: KubeProxy::IptablesNft, TRANSLATING, [], stopped_and_delete_tables;
    tcx_detach: KubeProxy::IptablesNft, TRANSLATING, ["--tc-attach=tcx", "--sync-interval=1s"], detach_tcx;
    tcx_detach_without_repair: KubeProxy::Nftables, TRANSLATING, ["--tc-attach=tcx"], stopped_and_detach_tcx;
    clsact_detach: KubeProxy::IptablesLegacy, TRANSLATING, ["--tc-attach=clsact"], detach_clsact;
    clsact_detach_without_repair: KubeProxy::IptablesNft, TRANSLATING, ["--tc-attach=clsact"], stopped_and_detach_clsact;
    conntrack_flush: KubeProxy::IptablesNft, TRANSLATING, [], flush_conntrack;
    routes_and_pins: KubeProxy::IptablesNft, TRANSLATING, [], remove_routes_and_pins;
    nftables_restart: KubeProxy::Nftables, NFTABLES, [], restart;
    nftables_kill: KubeProxy::IptablesNft, NFTABLES, [], kill;
    nftables_cleanup: KubeProxy::Nftables, NFTABLES, ["--cleanup"], clean_up;
    nftables_ruleset_flush: KubeProxy::IptablesLegacy, NFTABLES, [], flush_ruleset;
    nftables_table_deletion: KubeProxy::Nftables, NFTABLES, [], delete_tables;
    nftables_table_deletion_without_repair: KubeProxy::IptablesNft, NFTABLES, [], stopped_and_delete_tables;
}

fn start_again(node: &Node, backend: Args) -> Result<Option<Agent>> {
    let agent = node.start_agent(backend)?;
    untracked(node, backend).context("after the start")?;
    Ok(Some(agent))
}

fn restart(node: &Node, mut agent: Agent, backend: Args) -> Result<Option<Agent>> {
    let status = agent.stop(libc::SIGTERM)?;
    ensure!(status.success(), "SIGTERM: {status}");
    start_again(node, backend)
}

fn kill(node: &Node, mut agent: Agent, backend: Args) -> Result<Option<Agent>> {
    agent.stop(libc::SIGKILL)?;
    std::thread::sleep(AFTER);
    start_again(node, backend)
}

/// The agent's exit removes the address, without which no connection continues. Here another owner adds it again.
fn clean_up(node: &Node, mut agent: Agent, _: Args) -> Result<Option<Agent>> {
    let status = agent.stop(libc::SIGTERM)?;
    node.add_vips("lo")?;
    ensure!(status.success(), "SIGTERM: {status}");
    let ruleset = node.netns.exec("nft list tables")?;
    ensure!(!ruleset.contains("proxy-agent"), "left behind: {ruleset}");
    // Each connection is tracked from now on.
    cmd::wait_until(TIMEOUT, "conntrack to know every connection", || {
        let entries = entries(node)?;
        Ok((entries.len() >= node.paths().len()).then_some(()))
    })?;
    Ok(None)
}

/// An agent cleans up with live connections on every path: kube-proxy handles new ones at once, live ones continue for
/// the time that the flag sets, those to the VIP continue afterwards, and those of pods to the ClusterIP are reset.
fn drained(topology: Topology, kube_proxy: KubeProxy, more: &[&str], loose: bool) {
    const DRAIN: Duration = Duration::from_secs(4);
    Node::test(topology, |node| {
        kube_proxy.install_without_masquerade(&node.netns)?;
        if !loose {
            node.netns
                .sysctl("net/netfilter/nf_conntrack_tcp_loose", "0")?;
        }
        let args = [TRANSLATING, &["--cleanup", "--drain-timeout=4s"], more].concat();
        let mut agent = node.start_agent(&args)?;
        let _proxy = Proxy::start(node)?;
        let ends_here = |path: &Path<'_>| path.via == Via::ClusterIp && path.client != "host";
        let (to_service, others): (Vec<_>, Vec<_>) = node.paths().into_iter().partition(ends_here);
        let (to_service, others) = (open_on(to_service)?, open_on(others)?);
        std::thread::sleep(BEFORE);
        untracked(node, TRANSLATING)?;

        let begun = Instant::now();
        agent.signal(libc::SIGTERM)?;
        std::thread::sleep(DRAIN / 4);
        all_go_on(&to_service).context("while it drains")?;
        all_go_on(&others).context("while it drains")?;
        new_connections_work(node).context("while it drains")?;
        ensure!(
            begun.elapsed() < DRAIN || slow_machine::of(DRAIN) > DRAIN,
            "the machine is too slow for this test"
        );
        // This sends no signal, and only waits for the exit.
        let status = agent.stop(0)?;
        ensure!(status.success(), "SIGTERM: {status}");
        ensure!(begun.elapsed() >= DRAIN, "it has not waited");
        node.add_vips("lo")?;
        for stream in to_service {
            let name = stream.name().to_owned();
            let end = stream
                .finish()
                .err()
                .with_context(|| format!("{name} was not reset"))?;
            let text = format!("{end:#}");
            ensure!(
                text.contains("reset") || text.contains("Broken pipe"),
                "{name}: {text}"
            );
        }
        all_go_on(&others).context("after it")?;
        let tables = node.netns.exec("nft list tables")?;
        ensure!(!tables.contains("proxy-agent"), "left behind: {tables}");
        all_end_intact(others)?;
        new_connections_work(node)
    });
}

#[test]
fn drained_through_veth() {
    drained(Topology::Veth, KubeProxy::IptablesNft, &[], true);
}

#[test]
fn drained_through_a_bridge() {
    drained(
        Topology::BridgeNetfilter,
        KubeProxy::Nftables,
        &["--tc-attach=clsact"],
        true,
    );
}

/// Conntrack does not start to track established connections here.
#[test]
fn drained_where_conntrack_is_strict() {
    drained(Topology::Veth, KubeProxy::IptablesLegacy, &[], false);
}

/// The next agent runs without `--service-address`.
fn no_longer_translated(node: &Node, mut agent: Agent, _: Args) -> Result<Option<Agent>> {
    agent.stop(libc::SIGTERM)?;
    node.start_agent(EBPF).map(Some)
}

/// The whole ruleset of nf_tables is flushed; kube-proxy's legacy rules are not part of it.
fn flush_ruleset(node: &Node, agent: Agent, _: Args) -> Result<Option<Agent>> {
    node.netns.exec("nft flush ruleset")?;
    Ok(Some(agent))
}

fn delete_tables(node: &Node, agent: Agent, _: Args) -> Result<Option<Agent>> {
    node.netns.feed(
        "nft -f -",
        "delete table ip proxy-agent\ndelete table ip6 proxy-agent\n",
    )?;
    Ok(Some(agent))
}

/// The local routes of the ClusterIPs and every pin are removed: of maps, of links and of programs of sockets. The
/// agent restores them.
fn remove_routes_and_pins(node: &Node, agent: Agent, _: Args) -> Result<Option<Agent>> {
    for family in ["-4", "-6"] {
        let flush = format!("ip {family} route flush table local proto 112");
        node.netns.exec(&flush)?;
    }
    let mut removed = BTreeSet::new();
    let mut left = vec![node.agent_bpffs()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.is_dir() {
                left.push(path);
            } else {
                fs::remove_file(&path)?;
                removed.insert(path);
            }
        }
    }
    ensure!(removed.len() > 10, "{removed:?} are all pins");
    cmd::wait_until(TIMEOUT, "routes and pins to be back", || {
        let routes = |family| format!("ip {family} route show table local proto 112");
        let v4 = node.netns.exec(&routes("-4"))?;
        let v6 = node.netns.exec(&routes("-6"))?;
        let is_back = !v4.is_empty() && !v6.is_empty() && removed.iter().all(|pin| pin.exists());
        Ok(is_back.then_some(()))
    })?;
    Ok(Some(agent))
}

/// The rules of Services are repeatedly missing for 50 ms, and no agent repairs that: conntrack starts to track
/// established connections, and kube-proxy's DNAT translates them. The program at TC egress drops the replies with a
/// wrong address, so the clients do not notice.
fn without_rules_for_moments(kube_proxy: KubeProxy) {
    const MOMENTS: usize = 10;
    const MOMENT: Duration = Duration::from_millis(50);
    const TABLES: [&str; 2] = ["ip proxy-agent_services", "ip6 proxy-agent_services"];
    Node::test(Topology::Veth, |node| {
        kube_proxy.install_without_masquerade(&node.netns)?;
        let agent = node.start_agent(TRANSLATING)?;
        let _proxy = Proxy::start(node)?;
        let mut paths = node.paths();
        paths.retain(|path| path.via == Via::ClusterIp && path.client != "host");
        let streams = open_on(paths)?;
        std::thread::sleep(BEFORE);
        agent.signal(libc::SIGSTOP)?;
        let mut rules = String::new();
        for table in TABLES {
            rules += &node.netns.exec(&format!("nft list table {table}"))?;
        }
        let deletion = TABLES.map(|table| format!("delete table {table}\n"));
        let deletion = deletion.concat();
        let caught = || status::dropped(node, "stray_reply");
        let mut moments = 0;
        while moments < slow_machine::times(MOMENTS) || caught()? == 0 {
            moments += 1;
            ensure!(
                moments < 10 * MOMENTS,
                "nothing was bent: this shows nothing"
            );
            node.netns.feed("nft -f -", &deletion)?;
            std::thread::sleep(MOMENT);
            node.netns.feed("nft -f -", &rules)?;
            // An entry that was created by a reply is not subject to DNAT, and would make the later moments
            // ineffective.
            node.netns.exec("conntrack -F")?;
            all_go_on(&streams).with_context(|| format!("after moment {moments}"))?;
        }
        agent.signal(libc::SIGCONT)?;
        all_end_intact(streams)?;
        let caught = caught()?;
        println!("{kube_proxy:?}: {caught} packets were caught in {moments} moments");
        new_connections_work(node)
    });
}

#[test]
fn without_rules_for_moments_beside_legacy_rules() {
    without_rules_for_moments(KubeProxy::IptablesLegacy);
}

#[test]
fn without_rules_for_moments_beside_rules_of_iptables_nft() {
    without_rules_for_moments(KubeProxy::IptablesNft);
}

#[test]
fn without_rules_for_moments_beside_native_rules() {
    without_rules_for_moments(KubeProxy::Nftables);
}

fn detach_tcx(node: &Node, agent: Agent, _: Args) -> Result<Option<Agent>> {
    let pins = node.link_pins();
    let mut removed = 0;
    for pin in fs::read_dir(&pins).with_context(|| format!("reading {}", pins.display()))? {
        fs::remove_file(pin?.path())?;
        removed += 1;
    }
    ensure!(removed > 0, "nothing was attached");
    Ok(Some(agent))
}

fn detach_clsact(node: &Node, agent: Agent, _: Args) -> Result<Option<Agent>> {
    for pod in &node.pods {
        node.netns
            .exec(&format!("tc qdisc del dev {} clsact", pod.host_link))?;
    }
    Ok(Some(agent))
}

fn flush_conntrack(node: &Node, agent: Agent, _: Args) -> Result<Option<Agent>> {
    conntrack::flush(&node.netns)?;
    Ok(Some(agent))
}

/// The agent is stopped, so that nothing is repaired.
fn stopped_and_delete_tables(node: &Node, agent: Agent, backend: Args) -> Result<Option<Agent>> {
    agent.signal(libc::SIGSTOP)?;
    delete_tables(node, agent, backend)
}

fn stopped_and_detach_tcx(node: &Node, agent: Agent, backend: Args) -> Result<Option<Agent>> {
    agent.signal(libc::SIGSTOP)?;
    detach_tcx(node, agent, backend)
}

fn stopped_and_detach_clsact(node: &Node, agent: Agent, backend: Args) -> Result<Option<Agent>> {
    agent.signal(libc::SIGSTOP)?;
    detach_clsact(node, agent, backend)
}

/// Before the agent starts, kube-proxy's DNAT has redirected the connections to the VIP.
#[test]
fn an_agent_starts() {
    Node::test(Topology::Bridge, |node| {
        KubeProxy::IptablesNft.install_without_masquerade(&node.netns)?;
        node.add_vips("lo")?;
        let _proxy = Proxy::start(node)?;
        let streams = open(node)?;
        std::thread::sleep(BEFORE);
        let _agent = node.start_agent(TRANSLATING)?;
        new_connections_work(node)?;
        all_go_on(&streams)?;
        std::thread::sleep(AFTER);
        all_go_on(&streams)?;
        all_end_intact(streams)
    });
}

/// An agent that translates takes over from one that did not.
#[test]
fn an_agent_starts_to_translate() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::Nftables.install_without_masquerade(&node.netns)?;
        let mut agent = node.start_agent(EBPF)?;
        let _proxy = Proxy::start(node)?;
        let streams = open(node)?;
        std::thread::sleep(BEFORE);
        agent.stop(libc::SIGTERM)?;
        let _agent = node.start_agent(TRANSLATING)?;
        new_connections_work(node)?;
        all_go_on(&streams)?;
        std::thread::sleep(AFTER);
        all_go_on(&streams)?;
        all_end_intact(streams)
    });
}

/// Connections to the VIP itself continue; those that kube-proxy has translated break, with and without an agent.
fn conntrack_is_flushed(topology: Topology, kube_proxy: KubeProxy, backend: Args) {
    Node::test(topology, |node| {
        kube_proxy.install_without_masquerade(&node.netns)?;
        let _agent = node.start_agent(backend)?;
        let _proxy = Proxy::start(node)?;
        let mut paths = node.paths();
        paths.retain(|path| path.via == Via::Vip);
        let streams = open_on(paths)?;
        std::thread::sleep(BEFORE);
        all_go_on(&streams).context("before")?;
        conntrack::flush(&node.netns)?;
        all_go_on(&streams).context("after the flush")?;
        std::thread::sleep(AFTER);
        all_go_on(&streams).context("a while after the flush")?;
        untracked(node, backend)?;
        all_end_intact(streams)?;
        new_connections_work(node)
    });
}

#[test]
fn nftables_conntrack_flush() {
    conntrack_is_flushed(Topology::Veth, KubeProxy::IptablesNft, NFTABLES);
    conntrack_is_flushed(Topology::BridgeNetfilter, KubeProxy::Nftables, NFTABLES);
}

#[test]
fn iptables_conntrack_flush() {
    conntrack_is_flushed(Topology::Veth, KubeProxy::Nftables, IPTABLES);
    conntrack_is_flushed(Topology::BridgeNetfilter, KubeProxy::Nftables, IPTABLES);
}
