// SPDX-License-Identifier: Apache-2.0

//! Any one call to the kernel fails once: at the start, during the repair after other programs have removed objects, or
//! during the clean-up. Live connections continue, the agent neither crashes nor hangs, and it or the next run
//! establishes exactly the desired state.
//!
//! strace(1) makes the n-th call fail of those that carry netlink and bpf(2), of the agent itself and not of programs
//! that it runs. A normal run uses a sample of all n, spread evenly; `PROXY_AGENT_TEST_FAULTS=all` uses each.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tests::agent::{Agent, TRANSLATE};
use tests::interference::{Interference, VIP_LINK};
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology};
use tests::proxy::Proxy;
use tests::stream::Live;
use tests::streams::{self, all_end_intact, all_go_on, new_connections_work, open};
use tests::{artifacts, cmd, slow_machine, snapshot};

/// The system calls that carry requests to the kernel, and its replies.
const CALLS: &str = "bpf,sendto,sendmsg,recvfrom,recvmsg";
/// The number of calls that fail in a normal run.
const SAMPLE: usize = 20;
/// The maximum time until the node is as desired. The agent's own retries begin a second after a failure.
const CONVERGED: Duration = Duration::from_secs(30);
/// The maximum time until a pass ends after everything is as desired.
const REST: Duration = Duration::from_millis(50);

/// A system call of a process: its name, and its position among the calls with that name, starting at 1.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Call {
    name: String,
    ordinal: usize,
}

struct Faults {
    args: &'static [&'static str],
    interferences: &'static [Interference],
}

/// The way in which the agent's system calls are traced.
enum Tracing<'a> {
    /// The calls are written to a file.
    Count(&'a Path),
    /// One of the calls fails.
    Fail(&'a Call),
}

impl Faults {
    fn strike(&self) {
        Node::test(Topology::Veth, |node| {
            KubeProxy::IptablesLegacy.install_without_masquerade(&node.netns)?;
            node.netns.ip(&format!(
                "link add {VIP_LINK} type ifb\nlink set {VIP_LINK} up\n"
            ))?;
            node.add_vips(VIP_LINK)?;
            let _proxy = Proxy::start(node)?;
            let streams = open(node)?;

            let agent = self.start(node, None)?;
            agent.wait_until_ready()?;
            let desired = artifacts::everything(node)?;
            self.clean_up(node, agent).context("without a fault")?;

            let trace = node.dir().join("calls");
            let agent = self.start(node, Some(&Tracing::Count(&trace)))?;
            self.cycle(node, agent, &desired)
                .context("counting the calls")?;
            let text = fs::read_to_string(&trace)?;
            let calls = calls(&text);
            ensure!(
                calls.len() > SAMPLE,
                "{} calls: is strace at work?",
                calls.len()
            );

            let chosen = chosen(calls.len())?;
            println!(
                "{:?}: {} of {} calls fail, one at a time",
                self.args,
                chosen.len(),
                calls.len()
            );
            let mut failures = Vec::new();
            for n in chosen {
                let call = &calls[n];
                let agent = self.start(node, Some(&Tracing::Fail(call)))?;
                if let Err(error) = self.cycle(node, agent, &desired) {
                    failures.push(format!("call {n} failed, {call:?}: {error:#}"));
                    eprintln!("{}", failures[failures.len() - 1]);
                    // The other cases must begin with the node in its initial state.
                    let agent = self.start(node, None)?;
                    agent.wait_until_ready()?;
                    self.clean_up(node, agent)
                        .with_context(|| failures.join("\n"))?;
                }
                go_on(node, &streams).with_context(|| format!("call {n} failed: {call:?}"))?;
            }
            ensure!(failures.is_empty(), "{}", failures.join("\n"));
            let agent = self.start(node, None)?;
            agent.wait_until_ready()?;
            new_connections_work(node)?;
            all_end_intact(streams)
        });
    }

    fn start(&self, node: &Node, tracing: Option<&Tracing>) -> Result<Agent> {
        let interface = format!("--interface={VIP_LINK}");
        let agent = node.agent_command(&[self.args, &["--cleanup", &interface]].concat())?;
        let Some(tracing) = tracing else {
            return node.spawn(agent);
        };
        // As a separate process, strace does not interfere with signals and exit codes.
        let mut strace = node.netns.command("strace");
        strace.args(["-D", "-qq", "-e", "signal=none"]);
        match tracing {
            Tracing::Count(path) => strace
                .arg(format!("--trace={CALLS}"))
                .arg(format!("--output={}", path.display())),
            Tracing::Fail(Call { name, ordinal }) => strace
                .arg("--output=/dev/null")
                .arg(format!("--inject={name}:error=ENOMEM:when={ordinal}")),
        };
        strace.arg(agent.get_program()).args(agent.get_args());
        node.spawn(strace)
    }

    /// Runs the agent from the start to the clean-up, with a repair in between.
    fn cycle(&self, node: &Node, mut agent: Agent, desired: &str) -> Result<()> {
        if !is_up(&agent)? {
            // The agent must have logged the reason; its supervisor restarts it.
            ensure!(
                agent.log().to_lowercase().contains("error"),
                "it ended without a reason"
            );
            agent = self.start(node, None)?;
        }
        wait_until_kept(node, desired).context("after the start")?;
        for interference in self.interferences {
            interference.happen(node, KubeProxy::IptablesLegacy)?;
        }
        wait_until_kept(node, desired).context("after the interference")?;
        std::thread::sleep(REST);
        self.clean_up(node, agent)
    }

    /// Stops an agent that cleans up; if that fails, another one does it.
    fn clean_up(&self, node: &Node, mut agent: Agent) -> Result<()> {
        let status = agent.stop(libc::SIGTERM).with_context(|| {
            let stack = fs::read_to_string(format!("/proc/{}/stack", agent.id()));
            format!("stopping; {stack:?}\n{}", agent.log())
        })?;
        // The connections need an address, which its next owner adds.
        let left = artifacts::vips(node)?;
        if left.is_empty() {
            node.add_vips(VIP_LINK)?;
        }
        if status.success() {
            ensure!(left.is_empty(), "left behind: {left}");
        } else {
            ensure!(
                status.code().is_some() && agent.log().contains("ERROR"),
                "{status}: {}",
                agent.log()
            );
            println!(
                "cleaned up again, as the first time: {}",
                last_error(&agent)
            );
            let mut second = self.start(node, None)?;
            second.wait_until_ready()?;
            let status = second.stop(libc::SIGTERM)?;
            ensure!(status.success(), "the second clean-up: {status}");
            node.add_vips(VIP_LINK)?;
        }
        let left = artifacts::data_plane(node)?;
        ensure!(left.is_empty(), "left behind ({status}): {left}");
        Ok(())
    }
}

/// Returns the calls in the output of strace, `bpf(BPF_MAP_CREATE, …) = 3`, in their order.
fn calls(trace: &str) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    let names = trace.lines().filter_map(|line| line.split_once('('));
    for (name, _) in names.filter(|(name, _)| CALLS.split(',').any(|call| call == *name)) {
        let earlier = calls.iter().filter(|call| call.name == name).count();
        calls.push(Call {
            name: name.to_owned(),
            ordinal: earlier + 1,
        });
    }
    calls
}

fn last_error(agent: &Agent) -> String {
    let log = agent.log();
    let line = log.lines().rfind(|line| line.contains("ERROR"));
    line.unwrap_or_default().to_owned()
}

/// Returns true once the agent is ready, and false if it has exited by itself.
fn is_up(agent: &Agent) -> Result<bool> {
    if let Err(error) = agent.wait_until_ready() {
        if error.to_string().contains("ended") {
            return Ok(false);
        }
        bail!(error);
    }
    Ok(true)
}

/// The variable that selects the calls that fail: `all`, or numbers separated by commas; a sample if it is not set.
const FAULTS: &str = "PROXY_AGENT_TEST_FAULTS";

/// Returns the selected calls, or evenly spread ones, beginning with a different call in each run.
fn chosen(calls: usize) -> Result<Vec<usize>> {
    match std::env::var(FAULTS).as_deref() {
        Ok("all") => Ok((0..calls).collect()),
        Ok(asked) => {
            let numbers: Result<Vec<usize>, _> = asked.split(',').map(str::parse).collect();
            let mut numbers = numbers.with_context(|| format!("{FAULTS}={asked}"))?;
            numbers.retain(|n| *n < calls);
            Ok(numbers)
        }
        Err(_) => {
            let step = (calls / slow_machine::times(SAMPLE)).max(1);
            let first = usize::try_from(std::process::id()).unwrap_or_default() % step;
            Ok((first..calls).step_by(step).collect())
        }
    }
}

fn wait_until_kept(node: &Node, desired: &str) -> Result<()> {
    let mut difference = None;
    cmd::wait_until(CONVERGED, "the node to be as desired", || {
        difference = snapshot::difference(desired, &artifacts::everything(node)?);
        Ok(difference.is_none().then_some(()))
    })
    .with_context(|| format!("still: {}", difference.unwrap_or_default()))
}

/// Waits until the live connections have received more data; if one does not, the error contains the kernel's state of
/// them.
fn go_on(node: &Node, streams: &[Live]) -> Result<()> {
    all_go_on(streams).with_context(|| {
        let sockets = node
            .netns
            .exec("ss --tcp --info --options --numeric --oneline");
        let tracked = streams::entries(node);
        format!("the live connections; {sockets:?}; {tracked:?}")
    })
}

#[test]
fn ebpf() {
    Faults {
        args: &["--backend=ebpf", TRANSLATE[0], TRANSLATE[1]],
        interferences: &[
            Interference::DeleteTables,
            Interference::UnpinMaps,
            Interference::DetachSockets,
            Interference::DeleteRoutes,
            Interference::DeleteVips,
        ],
    }
    .strike();
}

#[test]
fn ebpf_by_clsact() {
    Faults {
        args: &["--backend=ebpf", "--tc-attach=clsact"],
        interferences: &[Interference::DeleteClsact, Interference::DeleteVips],
    }
    .strike();
}

#[test]
fn nftables() {
    Faults {
        args: &["--backend=nftables"],
        interferences: &[Interference::DeleteTables, Interference::DeleteVips],
    }
    .strike();
}

#[test]
fn iptables() {
    Faults {
        args: &["--backend=iptables", "--sync-interval=1s"],
        interferences: &[Interference::FlushSets, Interference::DeleteVips],
    }
    .strike();
}
