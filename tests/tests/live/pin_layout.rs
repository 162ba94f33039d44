// SPDX-License-Identifier: Apache-2.0

//! An agent that finds the pins of another layout takes over from them: connections continue, and no object of the
//! other layout is left.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tests::agent::TRANSLATE;
use tests::bpf::{self, Hook};
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology};
use tests::proxy::Proxy;
use tests::streams::{all_end_intact, all_go_on, new_connections_work, open, vip_is_untracked};
use tests::{cmd, skip};

const BEFORE: Duration = Duration::from_millis(500);

/// Untracked connections stay untracked.
fn taken_over(args: &[&str], other: &str) {
    Node::test(Topology::Veth, |node| {
        KubeProxy::Nftables.install_without_masquerade(&node.netns)?;
        let mut agent = node.start_agent(args)?;
        let _proxy = Proxy::start(node)?;
        let streams = open(node)?;
        std::thread::sleep(BEFORE);
        agent.stop(libc::SIGKILL)?;

        let old = node.agent_bpffs().with_file_name(other);
        fs::rename(node.agent_bpffs(), &old).context("renaming the directory of pins")?;
        let mut agent = node.start_agent(args)?;
        all_go_on(&streams).with_context(|| format!("after the take-over, {args:?}"))?;
        ensure!(!old.exists(), "{} is left", old.display());
        for pod in &node.pods {
            if !skip::has_tcx()? {
                // The kernel has no tcx.
                break;
            }
            let wanted = usize::from(!args.contains(&"--tc-attach=clsact"));
            // After the last pin of a link is removed, the kernel detaches its program with a short delay.
            cmd::wait_until(Duration::from_secs(5), "one of our programs", || {
                let programs = bpf::tcx_programs(&node.netns, &pod.host_link, Hook::Ingress)?;
                Ok((programs.len() == wanted).then_some(()))
            })
            .with_context(|| format!("on {}, {wanted} wanted", pod.host_link))?;
        }
        vip_is_untracked(node)?;
        new_connections_work(node)?;
        // A restart with the same layout finds nothing to take over.
        agent.stop(libc::SIGKILL)?;
        let _agent = node.start_agent(args)?;
        all_go_on(&streams).context("after a restart")?;
        all_end_intact(streams)
    });
}

#[test]
fn an_older_one() {
    taken_over(&["--backend=ebpf", "--tc-attach=auto"], "v0");
    taken_over(&["--backend=ebpf", "--tc-attach=clsact"], "v0");
}

#[test]
fn a_newer_one() {
    taken_over(&["--backend=ebpf", "--tc-attach=auto"], "v3");
}

#[test]
fn one_with_services() {
    for attach in ["--tc-attach=auto", "--tc-attach=clsact"] {
        let args = ["--backend=ebpf", attach, TRANSLATE[0], TRANSLATE[1]];
        taken_over(&args, "v0");
    }
}

/// An agent with another backend takes over from the other layout as well.
#[test]
fn by_another_backend() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::Nftables.install_without_masquerade(&node.netns)?;
        let mut agent = node.start_agent(&["--backend=ebpf", TRANSLATE[0], TRANSLATE[1]])?;
        let _proxy = Proxy::start(node)?;
        let streams = open(node)?;
        std::thread::sleep(BEFORE);
        agent.stop(libc::SIGKILL)?;
        let old = node.agent_bpffs().with_file_name("v0");
        fs::rename(node.agent_bpffs(), &old)?;
        let _agent = node.start_agent(&["--backend=nftables"])?;
        all_go_on(&streams)?;
        new_connections_work(node)?;
        all_end_intact(streams)?;
        // The agent removes the objects that the connections needed together with the connections.
        cmd::wait_until(Duration::from_secs(10), "the other layout to go", || {
            Ok((!old.exists()).then_some(()))
        })
    });
}
