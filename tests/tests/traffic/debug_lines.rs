// SPDX-License-Identifier: Apache-2.0

//! The eBPF programs log their decisions, but only with `--v=6` or `--vmodule=ebpf=4`.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::agent::{Agent, TRANSLATE};
use tests::node::{Node, Topology};
use tests::proxy::Proxy;
use tests::{Family, client, cmd, transfer};

const TIMEOUT: Duration = Duration::from_secs(5);
const AT_INGRESS: &str = "decided a connection to a service";
const AT_CONNECT: &str = "connected a process on the host to the VIP";

fn start(node: &Node, flag: &str) -> Result<Agent> {
    node.start_agent(&[TRANSLATE[0], TRANSLATE[1], "--backend=ebpf", flag])
}

fn connect_from_everywhere(node: &Node) -> Result<()> {
    for netns in [&node.pods[0].netns, &node.netns] {
        for family in Family::ALL {
            let mut stream = client::connect(netns, family.cluster_ip_socket(), TIMEOUT)?;
            transfer::exchange(&mut stream, 1000, 1)?;
        }
    }
    Ok(())
}

#[test]
fn asked_for() {
    for flag in ["--v=6", "--vmodule=ebpf=4"] {
        Node::test(Topology::Veth, |node| {
            let agent = start(node, flag)?;
            let _proxy = Proxy::start(node)?;
            connect_from_everywhere(node)?;
            cmd::wait_until(TIMEOUT, "the programs' lines in the log", || {
                let log = agent.log();
                let count = |text: &str| log.matches(text).count();
                // There are lines for both families, and a SYN may have been sent twice.
                Ok((count(AT_INGRESS) >= 2 && count(AT_CONNECT) >= 2).then_some(()))
            })
        });
    }
}

#[test]
fn not_asked_for() {
    Node::test(Topology::Veth, |node| {
        // At this level the agent logs all its own lines, and none of the programs.
        let agent = start(node, "--v=5")?;
        let _proxy = Proxy::start(node)?;
        connect_from_everywhere(node)?;
        let log = agent.log();
        ensure!(
            !log.contains(AT_INGRESS) && !log.contains(AT_CONNECT),
            "lines that were not asked for: {log}"
        );
        Ok(())
    });
}
