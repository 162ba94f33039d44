// SPDX-License-Identifier: Apache-2.0

//! `proxy-agent status` with the backends that need no eBPF: the backend in use and the reason, the counts of its
//! rules, the clients whose connections stateless rules break, and drift.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;
use tests::client::{self, ONE_SYN};
use tests::degraded_host::Missing;
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology};
use tests::proxy::Proxy;
use tests::{Family, status, transfer};

const TIMEOUT: Duration = Duration::from_secs(8);

fn without_bpf(node: &Node, args: &[&str]) -> Result<Command> {
    let mut command = node.agent_command(args)?;
    Missing::Bpf.apply(&mut command);
    Ok(command)
}

#[test]
fn nftables_counts_and_says_why_it_is_used() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install_without_masquerade(&node.netns)?;
        let agent = node.spawn(without_bpf(node, &["--backend=auto"])?)?;
        agent.wait_until_ready()?;
        let _proxy = Proxy::start(node)?;
        for family in Family::ALL {
            for netns in [&node.pods[0].netns, &node.pods[1].netns, &node.netns] {
                let mut stream = client::connect(netns, family.vip_socket(), TIMEOUT)?;
                transfer::exchange(&mut stream, 10_000, 1)?;
            }
            // The second connection is left to conntrack, because the first one has its client port. It gets no reply
            // on Linux 6.1 and older, see `one_port`.
            let from = (node.pods[0].address(family), 26_000).into();
            let connect =
                |to, limit| client::connect_from(&node.pods[0].netns, Some(from), to, limit);
            let _first = connect(family.cluster_ip_socket(), TIMEOUT)?;
            let _second = connect(family.vip_socket(), ONE_SYN);
        }
        let status = status::read(node)?;
        let backend = &status["backend"];
        ensure!(backend["backend"] == "nftables", "{backend}");
        let rejected = &backend["rejected"][0];
        ensure!(rejected["backend"] == "ebpf", "{backend}");
        let reason = rejected["reason"].as_str().unwrap_or_default();
        ensure!(reason.contains("Function not implemented"), "{backend}");

        for (family, of_vip) in Family::ALL.iter().zip(0..) {
            let counters = &status["counters"][of_vip];
            let vip = family.vip_socket().to_string();
            ensure!(counters["vip"] == vip.as_str(), "{counters}");
            let total = &counters["total"];
            let number = |value: &Value| value.as_u64().unwrap_or_default();
            ensure!(number(&total["decided"]) == 3, "{vip}: {total}");
            let in_use = number(&total["undecided"]["in_use"]);
            ensure!(client::syns().contains(&in_use), "{vip}: {total}");
            for direction in ["requests", "replies"] {
                let bytes = number(&total[direction]["bytes"]);
                ensure!(bytes > 3 * 10_000, "{vip}, {direction}: {total}");
            }
        }
        ensure!(status["agent"]["ready"] == true, "{status}");
        let no_drift = serde_json::json!([]);
        ensure!(
            status["drift"]["changes"] == no_drift,
            "{}",
            status["drift"]
        );

        agent.signal(libc::SIGSTOP)?;
        node.netns.exec("nft delete table ip6 proxy-agent")?;
        let drift = status::read(node)?["drift"]["changes"].to_string();
        ensure!(drift.contains("ip6 proxy-agent"), "{drift}");
        agent.signal(libc::SIGCONT)
    });
}

/// The agent finds clients with broken connections at the start, and logs them at each resync that finds another one.
#[test]
fn stateless_rules_say_whom_they_break() {
    for kube_proxy in [
        KubeProxy::IptablesNft,
        KubeProxy::IptablesLegacy,
        KubeProxy::Nftables,
    ] {
        Node::test(Topology::Veth, |node| {
            kube_proxy.install(&node.netns)?;
            let mut command = node.agent_command(&["--backend=iptables"])?;
            Missing::Ipset.apply(&mut command);
            let agent = node.spawn(command)?;
            agent.wait_until_ready()?;
            let log = agent.log();
            ensure!(
                log.contains("connections sent to the VIP by"),
                "{kube_proxy:?}: no warning"
            );
            let status = status::read(node)?;
            let breaks = status["backend"]["breaks"].to_string();
            for family in Family::ALL {
                let vip = family.vip_socket().to_string();
                ensure!(
                    breaks.contains(&vip),
                    "{kube_proxy:?}: no {vip} in {breaks}"
                );
            }
            let detail = status["backend"]["detail"].as_str().unwrap_or_default();
            ensure!(detail.starts_with("stateless: "), "{detail}");
            Ok(())
        });
    }
}

#[test]
fn learning_rules_break_no_connection() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        let agent = node.start_agent(&["--backend=iptables"])?;
        let backend = &status::read(node)?["backend"];
        ensure!(backend["detail"] == "learning with ipset", "{backend}");
        ensure!(backend["breaks"] == serde_json::json!([]), "{backend}");
        ensure!(!agent.log().contains("time out"), "a warning");
        Ok(())
    });
}
