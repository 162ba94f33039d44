// SPDX-License-Identifier: Apache-2.0

//! The agent is upgraded from the previous release to this build and downgraded, many times, while connections stream:
//! none is lost, none becomes tracked, and no object of either is left behind.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tests::agent;
use tests::cycles::{Backend, Cycles};
use tests::node::{Node, Topology};
use tests::{skip, slow_machine};

const CYCLES: usize = 20;
/// The maximum time for which each runs once it is ready: sometimes it still has work to do at the end.
const AT_WORK: Duration = Duration::from_millis(100);

fn previous(test: &str) -> Result<Option<PathBuf>> {
    let found = agent::previous_binary()?;
    if found.is_some() {
        skip::clear(test)?;
    } else {
        skip::record(
            test,
            "no build of the previous release: PROXY_AGENT_PREVIOUS_BIN is not set",
        )?;
    }
    Ok(found)
}

fn upgraded(test: &str, topology: Topology, backend: Backend) {
    let Some(previous) = previous(test).expect("what was skipped can be noted") else {
        return;
    };
    let cycles = slow_machine::times(CYCLES);
    Node::test(topology, |node| {
        let mut state = Cycles::prepare(node, topology, backend, |_, mut agent| {
            agent.stop(libc::SIGTERM).map(drop)
        })?;
        for n in 0..cycles {
            for (name, binary) in [("previous", &previous), ("current", &Cycles::current()?)] {
                run_once(&mut state, binary, n)
                    .with_context(|| format!("cycle {n} of {cycles}, the {name} release"))?;
            }
        }
        run_once(&mut state, &previous, cycles).context("the previous release at last")?;
        state.finish()
    });
}

/// Runs the agent once. It is stopped in order and killed in turn, each release in both ways.
fn run_once(state: &mut Cycles<'_>, binary: &Path, n: usize) -> Result<()> {
    let mut agent = state.spawn(binary, &[])?;
    agent.wait_until_ready()?;
    state.connect()?;
    state.visit().context("a pod")?;
    std::thread::sleep(state.time_below(AT_WORK));
    let signal = if n.is_multiple_of(2) {
        libc::SIGTERM
    } else {
        libc::SIGKILL
    };
    agent.stop(signal)?;
    state.connect().context("without an agent")?;
    state.check()
}

/// The previous release requests the cookie of its network namespace from a socket. Without the cookie, it translates
/// processes of the initial namespace only, and those of a test's node are tracked.
fn upgraded_with_cookie(test: &str, topology: Topology, backend: Backend) -> Result<()> {
    if !skip::before((5, 14), "the previous release's netns cookie", test)? {
        upgraded(test, topology, backend);
    }
    Ok(())
}

#[test]
fn ebpf() -> Result<()> {
    upgraded_with_cookie("upgrade-ebpf", Topology::Veth, Backend::EBPF)
}

#[test]
fn ebpf_by_clsact() -> Result<()> {
    let backend = Backend::EBPF_BY_CLSACT;
    upgraded_with_cookie("upgrade-ebpf-clsact", Topology::BridgeNetfilter, backend)
}

#[test]
fn nftables() {
    let backend = Backend::NFTABLES;
    upgraded("upgrade-nftables", Topology::BridgeNetfilter, backend);
}

#[test]
fn iptables() {
    let backend = Backend::IPTABLES;
    upgraded("upgrade-iptables", Topology::Veth, backend);
}
