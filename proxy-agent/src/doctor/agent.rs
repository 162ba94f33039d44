// SPDX-License-Identifier: Apache-2.0

//! The agent itself: whether it runs, which backend it uses and why, and whether another agent manages the same VIP.

use std::net::IpAddr;
use std::process;

use proxy_kernel::processes::{self, Process};
use proxy_serve::doctor::Check;

use super::check;
use super::subject::Subject;
use crate::reconcile::report::chain;
use crate::services::Undecided;

const AGENT: &str = "agent";
const BACKEND: &str = "backend";
const OTHERS: &str = "other-agents";

/// The agent that proxy-agent replaces.
const SIDECAR: &str = "apiserver-proxy-sidecar";
/// The name of the agent's program.
const OURS: &str = "proxy-agent";
/// Subcommands that keep nothing on the node.
const SHORT_LIVED: [&str; 4] = ["doctor", "status", "completions", "cleanup"];

pub fn checks(subject: &Subject) -> Vec<Check> {
    vec![
        agent(subject),
        backend(subject),
        match processes::in_this_netns() {
            Ok(found) => others(&found, subject.pid(), &subject.vips),
            Err(error) => {
                let what = "search for other processes that manage the VIPs";
                check::unknown(OTHERS, what, &error, "mount /proc")
            }
        },
    ]
}

fn agent(subject: &Subject) -> Check {
    let directory = subject.run_dir.display();
    let running = match &subject.running {
        Ok(running) => *running,
        Err(error) => {
            return check::unknown(
                AGENT,
                format!("read the lock in --run-dir={directory}"),
                error,
                "run the doctor as root, with the agent's run directory mounted",
            );
        }
    };
    let state = match &subject.state {
        Ok(state) => state.as_ref(),
        Err(error) => {
            return Check::warning(
                AGENT,
                format!("cannot read the agent's state file: {}", chain(error)),
                "restart the agent, which rewrites it; use a doctor of the agent's version",
            );
        }
    };
    match (running, state) {
        (true, Some(state)) => Check::ok(
            AGENT,
            format!("version {} is running (pid {})", state.version, state.pid),
        ),
        (true, None) => Check::warning(
            AGENT,
            format!("an agent is running with --run-dir={directory} but has not completed a pass"),
            "check its log",
        ),
        (false, Some(state)) => Check::warning(
            AGENT,
            format!(
                "no agent is running; version {} (pid {}) was the last one, and its objects are not repaired",
                state.version, state.pid
            ),
            "start it again; check the log of the last one for the reason why it ended",
        ),
        (false, None) => Check::warning(
            AGENT,
            format!("no agent is running with --run-dir={directory}, and none has before"),
            "start one, or set its run directory with --run-dir",
        ),
    }
}

fn backend(subject: &Subject) -> Check {
    let Some(choice) = subject.choice() else {
        return Check::not_applicable(BACKEND, "no state file of an agent shows the backend");
    };
    let rejected: Vec<_> = choice
        .rejected
        .iter()
        .map(|rejected| format!("{}: {}", rejected.backend, rejected.reason))
        .collect();
    let why = if rejected.is_empty() {
        format!("{choice}, as requested (--backend={})", choice.asked)
    } else {
        format!(
            "{choice}, because preferred backends cannot be used: {}",
            rejected.join("; ")
        )
    };
    if !choice.is_as_asked() {
        return Check::warning(
            BACKEND,
            format!(
                "--backend={} cannot be used: {}; all connections are tracked",
                choice.asked,
                rejected.join("; ")
            ),
            "provide what the backend needs (see docs/agent.md), or use --backend=auto",
        );
    }
    let remedy = "provide what the preferred backend needs (see docs/agent.md)";
    if choice.backend == "none" && choice.asked == "auto" {
        return Check::warning(
            BACKEND,
            format!("{why}; all connections are tracked"),
            remedy,
        );
    }
    if choice.backend != "ebpf" && !subject.services().is_empty() {
        let finding = format!("{why}; --service-address is set but no Service ends on the proxy");
        return Check::warning(BACKEND, finding, remedy);
    }
    let left: Vec<_> = subject
        .left_services()
        .into_iter()
        .map(|(service, link)| format!("{}: {}", service.cluster_ip, Undecided::OwnAddress(link)))
        .collect();
    if !left.is_empty() {
        return Check::warning(
            BACKEND,
            format!(
                "{why}; Services do not end on the proxy: {}",
                left.join("; ")
            ),
            "with kube-proxy in IPVS mode, unset --service-address or change its mode; otherwise set it to the \
             ClusterIP of a Service",
        );
    }
    Check::ok(BACKEND, why)
}

/// Another agent conflicts only if it manages the same VIP.
fn others(processes: &[Process], own: Option<u32>, vips: &[IpAddr]) -> Check {
    let foreign = processes
        .iter()
        .filter(|found| Some(found.pid) != own && found.pid != process::id())
        .filter(|found| is_agent(found));
    for found in foreign {
        let (program, pid) = (found.program(), found.pid);
        let has = |vip: &&IpAddr| {
            let vip = vip.to_string();
            let mut texts = found.words.iter().chain(&found.environment);
            texts.any(|text| mentions(text, &vip))
        };
        if let Some(vip) = vips.iter().find(has) {
            return Check::broken(
                OTHERS,
                format!(
                    "{program} (pid {pid}) manages {vip} too: both agents undo each other's changes"
                ),
                format!("stop one of them; in Kubernetes remove the DaemonSet of {program}"),
            )
            .with_command(format!("kill {pid}"));
        }
    }
    Check::ok(OTHERS, "no other process manages the VIPs")
}

fn is_agent(process: &Process) -> bool {
    let short_lived = |word: &String| SHORT_LIVED.contains(&word.as_str());
    match process.program() {
        SIDECAR => true,
        OURS => !process.words.iter().skip(1).any(short_lived),
        _ => false,
    }
}

/// Whether an address is among the values of a flag or variable.
fn mentions(text: &str, vip: &str) -> bool {
    let value = text.split_once('=').map_or(text, |(_, value)| value);
    value.split(',').any(|word| word == vip)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proxy_serve::doctor::Verdict;

    fn process(pid: u32, line: &str, environment: &str) -> Process {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        Process {
            pid,
            words: words(line),
            environment: words(environment),
        }
    }

    #[test]
    fn only_an_agent_of_the_same_vip_conflicts() {
        let vips = [IpAddr::from([10, 96, 0, 2])];
        let judged = |line, environment| {
            others(&[process(4_000_000, line, environment)], Some(1), &vips).verdict
        };
        let sidecar = "/bin/apiserver-proxy-sidecar --ip-address=10.96.0.2";
        assert_eq!(judged(sidecar, ""), Verdict::Broken);
        assert_eq!(
            judged("proxy-agent --ip-address fd00::2,10.96.0.2", ""),
            Verdict::Broken
        );
        assert_eq!(
            judged("proxy-agent", "A=B PROXY_AGENT_IP_ADDRESS=10.96.0.2"),
            Verdict::Broken
        );
        assert_eq!(
            judged("proxy-agent --ip-address=10.96.0.20", ""),
            Verdict::Ok
        );
        assert_eq!(
            judged("proxy-agent doctor --ip-address=10.96.0.2", ""),
            Verdict::Ok
        );
        assert_eq!(judged("curl 10.96.0.2", ""), Verdict::Ok);
        let own = process(7, sidecar, "");
        assert_eq!(others(&[own], Some(7), &vips).verdict, Verdict::Ok);
    }
}
