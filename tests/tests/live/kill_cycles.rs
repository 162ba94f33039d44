// SPDX-License-Identifier: Apache-2.0

//! The agent is killed at any moment and restarted, many times, while connections stream and pods are added and
//! removed: no connection is lost, none becomes tracked, and nothing is left behind.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::agent::TRANSLATE;
use tests::bpf_objects;
use tests::cycles::{Backend, Cycles};
use tests::idle_state::IdleState;
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology};
use tests::proxy::Proxy;
use tests::streams::{all_end_intact, all_go_on, entries, open};
use tests::{Family, client, slow_machine};

/// The maximum lifetime of an agent, on a usual machine: it covers the first pass and some time after it.
const LIFETIME: Duration = Duration::from_millis(400);

/// The factor for the number of cycles under full load: with `ebpf`, more than 500 cycles.
const FULL: u32 = 6;

/// Flags that differ from start to start.
type Variants = &'static [&'static [&'static str]];

fn killed(topology: Topology, backend: Backend, cycles: usize, variants: Variants) {
    let cycles = slow_machine::times(cycles * slow_machine::load(FULL) as usize);
    Node::test(topology, |node| {
        let begun = Instant::now();
        let mut state = Cycles::prepare(node, topology, backend, |_, mut agent| {
            agent.stop(libc::SIGKILL).map(drop)
        })?;
        for n in 0..cycles {
            cycle(&mut state, variants).with_context(|| format!("cycle {n} of {cycles}"))?;
        }
        println!("{cycles} cycles after {:?}", begun.elapsed());
        state.finish()
    });
}

fn cycle(state: &mut Cycles<'_>, variants: Variants) -> Result<()> {
    let more = state.choose(variants);
    let mut agent = state.spawn(&Cycles::current()?, more)?;
    let begun = Instant::now();
    let longest = slow_machine::of(LIFETIME);
    let end = state.time_below(longest);
    // Events during the downtime take longer than a cycle, so not every cycle includes them.
    for moment in [state.time_below(longest), state.time_below(longest)] {
        if moment < end {
            std::thread::sleep(moment.saturating_sub(begun.elapsed()));
            state.connect().context("while the agent starts")?;
        }
    }
    std::thread::sleep(end.saturating_sub(begun.elapsed()));
    agent.stop(libc::SIGKILL)?;
    state.connect().context("without the agent")?;
    state.visit().context("a pod")?;
    state.check()
}

#[test]
fn ebpf() {
    let backend = Backend::EBPF;
    killed(Topology::Veth, backend, 100, &[&[]]);
}

#[test]
fn ebpf_by_clsact() {
    let backend = Backend::EBPF_BY_CLSACT;
    killed(Topology::BridgeNetfilter, backend, 25, &[&[]]);
}

/// An agent is killed at any moment of a change of settings. Until the next one is ready, some programs use the map of
/// one size and some that of another, and connections that begin then may be tracked.
#[test]
fn ebpf_with_other_settings_each_time() {
    let backend = Backend {
        new_may_be_tracked: true,
        ..Backend::EBPF
    };
    let variants: Variants = &[
        &[],
        &["--max-connections=4096"],
        &["--max-connections=8192"],
        &["--tc-attach=clsact"],
    ];
    killed(Topology::Veth, backend, 50, variants);
}

/// The agent is killed between pinning a link and replacing an older one with it, a moment that is too short to be hit
/// by chance.
#[test]
fn while_pinning() {
    Node::test(Topology::Veth, |node| {
        let args = ["--backend=ebpf", TRANSLATE[0], TRANSLATE[1]];
        let mut agent = node.start_agent(&args)?;
        let mut rest = IdleState::remember(node)?;
        agent.stop(libc::SIGKILL)?;
        node.add_pod(Topology::Veth)?;
        let mut agent = node.start_agent(&args)?;
        agent.stop(libc::SIGKILL)?;
        for pin in bpf_objects::files_below(&node.agent_bpffs()) {
            let is_link = pin.parent().is_some_and(|dir| *dir != node.agent_bpffs());
            if is_link {
                fs::rename(&pin, format!("{}-new", pin.display()))?;
            }
        }
        node.remove_pod()?;
        let _agent = node.start_agent(&args)?;
        rest.is_as_at_first(node)
    });
}

/// The agent moves the entries of processes on the node to a map of another size, whenever in this change the previous
/// agent was killed: the processes still see the ClusterIP as their peer.
#[test]
fn while_the_map_of_peers_changes_its_size() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install_without_masquerade(&node.netns)?;
        let args = ["--backend=ebpf", TRANSLATE[0], TRANSLATE[1]];
        let mut agent = node.start_agent(&args)?;
        let _proxy = Proxy::start(node)?;
        let streams = open(node)?;
        let to = Family::V4.cluster_ip_socket();
        let of_process = client::connect(&node.netns, to, Duration::from_secs(5))?;
        agent.stop(libc::SIGKILL)?;
        // An agent that has moved no entry yet leaves the map in this state.
        let map = node.agent_bpffs().join("PEERS");
        fs::rename(&map, map.with_file_name("PEERS-old"))?;
        let sizes = [&args[..], &["--max-connections=8192"]].concat();
        let _agent = node.start_agent(&sizes)?;
        let peer = of_process.peer_addr()?;
        ensure!(peer == to, "getpeername shows {peer}");
        all_go_on(&streams)?;
        let tracked = entries(node)?;
        ensure!(tracked.is_empty(), "tracked: {tracked:#?}");
        all_end_intact(streams)
    });
}

/// The same, between adding the clsact qdisc and attaching to it: an agent that does not need the qdisc finds it.
#[test]
fn while_attaching_by_clsact() {
    Node::test(Topology::Veth, |node| {
        let mut agent = node.start_agent(&["--backend=ebpf"])?;
        let mut rest = IdleState::remember(node)?;
        agent.stop(libc::SIGKILL)?;
        let mut agent = node.start_agent(&["--backend=ebpf", "--tc-attach=clsact"])?;
        agent.stop(libc::SIGKILL)?;
        let hooks = ["ingress", "egress"];
        for hook in hooks {
            node.netns.exec(&format!("tc filter del dev pod0 {hook}"))?;
        }
        // The qdisc is recorded, but not added.
        node.netns.exec("tc qdisc del dev pod1 clsact")?;
        let _agent = node.start_agent(&["--backend=ebpf"])?;
        rest.is_as_at_first(node)
    });
}

#[test]
fn nftables() {
    let backend = Backend::NFTABLES;
    killed(Topology::Veth, backend, 25, &[&[]]);
}

#[test]
fn iptables() {
    let backend = Backend::IPTABLES;
    killed(Topology::BridgeNetfilter, backend, 25, &[&[]]);
}
