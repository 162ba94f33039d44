// SPDX-License-Identifier: Apache-2.0

//! The eBPF programs tell what they decide, but only when they are asked to.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::node::{Node, Topology};
use tests::proxy::Proxy;
use tests::{Family, client, cmd, transfer};

const TIMEOUT: Duration = Duration::from_secs(5);
const AT_INGRESS: &str = "decided at ingress of link ";
const AT_OUTPUT: &str = "decided at output";

fn connect_from_everywhere(node: &Node) -> Result<()> {
    for netns in [&node.pods[0].netns, &node.netns] {
        for family in Family::ALL {
            let mut stream = client::connect(netns, family.vip_socket(), TIMEOUT)?;
            transfer::exchange(&mut stream, 1000, 1)?;
        }
    }
    Ok(())
}

#[test]
fn asked_for() {
    for flag in ["--v=6", "--vmodule=ebpf=4"] {
        Node::test(Topology::Veth, |node| {
            let agent = node.start_agent(&["--backend=ebpf", flag])?;
            let _proxy = Proxy::start(node)?;
            connect_from_everywhere(node)?;
            cmd::wait_until(TIMEOUT, "the programs' lines in the log", || {
                let log = agent.log();
                let count = |text: &str| log.matches(text).count();
                // Two families each; a SYN may have been sent twice.
                Ok((count(AT_INGRESS) >= 2 && count(AT_OUTPUT) >= 2).then_some(()))
            })
        });
    }
}

#[test]
fn not_asked_for() {
    Node::test(Topology::Veth, |node| {
        // Everything of the agent's own, nothing of the programs.
        let agent = node.start_agent(&["--backend=ebpf", "--v=5"])?;
        let _proxy = Proxy::start(node)?;
        connect_from_everywhere(node)?;
        let log = agent.log();
        ensure!(
            !log.contains("decided at"),
            "lines that nobody asked for: {log}"
        );
        Ok(())
    });
}
