// SPDX-License-Identifier: Apache-2.0

//! This kernel supports exactly the features that `kernels.toml` lists for it. `cargo xtask test` and `cargo xtask vm`
//! pass that list, also for kernels from which features were removed.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::agent::TRANSLATE;
use tests::all_paths::{everything_works, everything_works_leaving};
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology};
use tests::path::Via;
use tests::proxy::Proxy;
use tests::status::{self, guarded};
use tests::{client, cmd, skip};

const TIMEOUT: Duration = Duration::from_secs(10);

/// The variable with the features that the kernel must support, as JSON: a row of `kernels.toml`.
const VARIABLE: &str = "PROXY_AGENT_KERNEL";

/// Runs a test with the features that the kernel must support.
fn check(name: &str, body: impl FnOnce(&mut Node, &Value) -> Result<()>) -> Result<()> {
    skip::clear(name)?;
    let Ok(support) = std::env::var(VARIABLE) else {
        return skip::record(
            name,
            &format!("{VARIABLE} is not set: `cargo xtask test` sets it on Linux 5.10 and newer"),
        );
    };
    let support: Value = serde_json::from_str(&support).context(VARIABLE)?;
    println!("this kernel must support {support}");
    Node::test(Topology::Veth, |node| body(node, &support));
    Ok(())
}

/// Returns the form of kube-proxy that works on this kernel: without `nf_tables`, legacy iptables; if `nf_tables` lacks
/// the extensions of iptables (`nft_compat`), rules of nftables.
fn kube_proxy(node: &Node) -> KubeProxy {
    if node.netns.exec("nft list tables").is_err() {
        return KubeProxy::IptablesLegacy;
    }
    // The command runs in a pod, because it leaves a table behind.
    let extension = "iptables-nft -t mangle -A OUTPUT -j MARK --set-xmark 0x0/0x0";
    if node.pods[0].netns.exec(extension).is_ok() {
        KubeProxy::IptablesNft
    } else {
        KubeProxy::Nftables
    }
}

#[test]
fn auto_takes_the_backend_that_is_expected() -> Result<()> {
    check(
        "auto-takes-the-backend-that-is-expected",
        |node, support| {
            kube_proxy(node).install(&node.netns)?;
            let _agent = node.start_agent(&["--backend=auto"])?;
            let status = status::read(node)?;
            let backend = &status["backend"];
            ensure!(
                backend["backend"] == support["backend"],
                "{} is expected: {backend:#}",
                support["backend"]
            );
            let detail = backend["detail"].as_str().unwrap_or_default();
            if let Some(tc) = support["tc"].as_str() {
                ensure!(
                    detail == format!("attached by {tc}"),
                    "attached by {tc} is expected: {backend:#}"
                );
            }
            // The agent logs why it does not use the backends with a higher rank.
            let order = ["ebpf", "nftables", "iptables", "none"];
            let passed_over = order
                .iter()
                .position(|name| support["backend"] == *name)
                .context("a backend")?;
            let rejected: Vec<&str> = backend["rejected"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|rejected| rejected["backend"].as_str())
                .collect();
            ensure!(rejected == order[..passed_over], "{backend:#}");
            println!("{backend:#}");
            let _proxy = Proxy::start(node)?;
            everything_works(node)
        },
    )
}

#[test]
fn translation_works_where_it_is_expected() -> Result<()> {
    check("translation-works-where-it-is-expected", |node, support| {
        let expected = support["translation"] == true;
        kube_proxy(node).install(&node.netns)?;
        let args = [&["--backend=auto"], &TRANSLATE[..]].concat();
        let agent = node.start_agent(&args)?;
        let _proxy = Proxy::start(node)?;
        everything_works_leaving(node, usize::from(!expected))?;
        for path in node.paths() {
            if path.via != Via::ClusterIp || path.client != "host" {
                continue;
            }
            let stream = client::connect(path.netns, path.destination(), TIMEOUT)?;
            let peer = stream.peer_addr()?;
            let keeps = !expected || support["getpeername"] == true;
            ensure!(
                (peer == path.destination()) == keeps,
                "{path}: getpeername shows {peer}\n{}",
                agent.log()
            );
        }
        Ok(())
    })
}

#[test]
fn an_uplink_is_guarded_as_expected() -> Result<()> {
    check("an-uplink-is-guarded-as-expected", |node, support| {
        kube_proxy(node).install(&node.netns)?;
        for (place, mode) in ["tc", "xdp"].iter().enumerate() {
            let mut agent = node.start_agent(&[&format!("--guard-mode={mode}")])?;
            let (links, notes) = guarded(node)?;
            let expected = support["guards"][place].as_str().unwrap_or_default();
            ensure!(
                links == [format!("eth0: {expected}")],
                "--guard-mode={mode}: {expected} is expected: {links:?} {notes:?}"
            );
            agent.stop(libc::SIGTERM)?;
        }
        Ok(())
    })
}

/// A backend that was requested by name and does not work does not affect the VIP.
#[test]
fn each_backend_works_or_says_why() -> Result<()> {
    check("each-backend-works-or-says-why", |node, support| {
        kube_proxy(node).install(&node.netns)?;
        let order = ["ebpf", "nftables", "iptables"];
        let first = order.iter().position(|name| support["backend"] == *name);
        for (place, backend) in order.iter().enumerate() {
            let works = first.is_some_and(|first| place >= first);
            let once = [&format!("--backend={backend}"), "--daemon=false"];
            let output = node.run_agent(&once)?;
            let stderr = String::from_utf8_lossy(&output.stderr);
            ensure!(
                output.status.success() == works,
                "{backend}: {}\n{stderr}",
                output.status
            );
            if !works {
                // The agent refuses before it tries, or reports the kernel's error.
                let refusal = format!("--backend={backend} cannot be used here");
                ensure!(
                    stderr.contains(&refusal) || stderr.contains(" ERROR "),
                    "{backend}: no reason in\n{stderr}"
                );
            }
            cmd::wait_until(TIMEOUT, "the VIPs", || {
                let shown = node.netns.exec("ip -o address show dev lo")?;
                Ok(shown.contains(" 10.96.0.2/32 ").then_some(()))
            })?;
            node.run_agent(&["--backend=none", "--daemon=false"])?;
        }
        Ok(())
    })
}
