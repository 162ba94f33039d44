// SPDX-License-Identifier: Apache-2.0

//! The agent on nodes that lack a feature, or in a container with fewer permissions: `auto` selects the backend that
//! works there and logs the reason, and a backend that was requested by name and does not work does not affect the VIP.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::agent::{Agent, TRANSLATE};
use tests::all_paths::everything_works;
use tests::degraded_host::Missing;
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology};
use tests::proxy::Proxy;
use tests::streams::{all_end_intact, all_go_on, new_connections_work, open, vip_is_untracked};
use tests::{Family, client, cmd, conntrack, transfer};

const TIMEOUT: Duration = Duration::from_secs(10);
const BYTES: u64 = 1_000_000;

/// Returns a command that runs the agent in the container of the sidecar's unchanged manifest: with `NET_ADMIN` only, a
/// seccomp filter that refuses bpf(2), and no bpffs.
fn unprivileged(node: &Node, args: &[&str]) -> Result<Command> {
    let bpffs = format!("--bpffs={}", node.dir().join("none/v1").display());
    let mut command = node.agent_command(&[args, &[&bpffs]].concat())?;
    Missing::BpfPermission.apply(&mut command);
    Missing::CapabilitiesButNetAdmin.apply(&mut command);
    Ok(command)
}

fn net_admin_is_enough(topology: Topology, kube_proxy: KubeProxy) {
    Node::test(topology, |node| {
        kube_proxy.install(&node.netns)?;
        let agent = node.spawn(unprivileged(node, &["--backend=auto"])?)?;
        agent.wait_until_ready()?;
        let log = agent.log();
        ensure!(
            log.lines().any(|line| line.ends_with("backend nftables")),
            "another backend"
        );
        ensure!(
            log.lines()
                .any(|line| line.contains("backend ebpf cannot be used here: ")),
            "no reason why it is not ebpf"
        );
        let _proxy = Proxy::start(node)?;
        everything_works(node)?;
        // Repair needs no more permissions than the start.
        node.netns.exec("nft delete table ip proxy-agent")?;
        cmd::wait_until(TIMEOUT, "the table", || {
            let tables = node.netns.exec("nft list tables")?;
            let is_back = tables.lines().any(|line| line == "table ip proxy-agent");
            Ok(is_back.then_some(()))
        })?;
        everything_works(node)
    });
}

#[test]
fn net_admin_is_enough_through_veth() {
    net_admin_is_enough(Topology::Veth, KubeProxy::IptablesNft);
}

#[test]
fn net_admin_is_enough_through_a_bridge() {
    net_admin_is_enough(Topology::BridgeNetfilter, KubeProxy::Nftables);
}

/// Reading legacy tables needs `NET_RAW`: the agent cannot maintain the ACCEPT rules, and logs it.
#[test]
fn net_admin_is_enough_beside_legacy_rules() {
    net_admin_is_enough(Topology::Veth, KubeProxy::IptablesLegacy);
}

/// The node has no eBPF, no nf_tables and therefore no ipset: the agent does not set rules that cannot decide per
/// connection if they would break one. kube-proxy's rules are removed and restored while the agent runs.
#[test]
fn auto_does_not_break_connections_that_kube_proxy_translates() {
    Node::test(Topology::Veth, |node| {
        let mut command = node.agent_command(&["--backend=auto", "--sync-interval=300ms"])?;
        Missing::Bpf.apply(&mut command);
        Missing::Nfnetlink.apply(&mut command);
        let agent = node.spawn(command)?;
        agent.wait_until_ready()?;
        let uses = |backend: &str, times: usize| {
            cmd::wait_until(TIMEOUT, &format!("backend {backend}"), || {
                let log = agent.log();
                let words = format!(" backend {backend}");
                let lines = log.lines().filter(|line| {
                    line.split_once(&words)
                        .is_some_and(|(_, rest)| rest.is_empty() || rest.starts_with(", stateless"))
                });
                Ok((lines.count() >= times).then_some(()))
            })
        };
        uses("iptables", 1).context("no connection is broken")?;
        let _proxy = Proxy::start(node)?;
        let untracked = || -> Result<bool> {
            let stream = client::connect(&node.netns, Family::V4.vip_socket(), TIMEOUT)?;
            let entries = conntrack::list_all(&node.netns, Family::V4)?;
            Ok(conntrack::of_client(&entries, stream.local_addr()?).is_empty())
        };
        ensure!(untracked()?, "tracked by stateless rules");

        KubeProxy::IptablesLegacy.install(&node.netns)?;
        uses("none", 1).context("kube-proxy has come")?;
        ensure!(agent.log().contains("KUBE-"), "it is not named");
        for path in node.paths() {
            let mut stream = client::connect(path.netns, path.destination(), TIMEOUT)
                .with_context(|| path.to_string())?;
            transfer::exchange(&mut stream, BYTES, 1).with_context(|| path.to_string())?;
        }
        ensure!(!untracked()?, "the rules are still there");

        for program in ["iptables-legacy", "ip6tables-legacy"] {
            node.netns.exec(&format!("{program} -w -t nat -F"))?;
        }
        uses("iptables", 2).context("kube-proxy has gone")?;
        cmd::wait_until(TIMEOUT, "the stateless rules", || {
            Ok(untracked()?.then_some(()))
        })
    });
}

fn has_vips(node: &Node) -> Result<bool> {
    let addresses = node.netns.exec("ip -o address show dev lo")?;
    let is_there = |family: &Family| addresses.contains(&format!(" {}/", family.vip()));
    Ok(Family::ALL.iter().all(is_there))
}

/// A backend was requested by name and is unavailable: the VIP remains, the daemon keeps running and reports the error,
/// and a single pass exits with code 1.
fn unavailable(backend: &str, lack: impl Fn(&mut Command), words: &[&str]) {
    Node::test(Topology::Veth, |node| {
        let mut once = node.agent_command(&[backend, "--daemon=false"])?;
        lack(&mut once);
        let output = node.run(once)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(1),
            "{}\n{stderr}",
            output.status
        );
        for word in words {
            ensure!(stderr.contains(word), "no {word} in\n{stderr}");
        }
        ensure!(has_vips(node)?, "one pass: no VIPs");

        node.netns.exec("ip address flush dev lo")?;
        let mut daemon = node.agent_command(&[backend])?;
        lack(&mut daemon);
        let mut agent = node.spawn(daemon)?;
        cmd::wait_until(TIMEOUT, "the VIPs", || Ok(has_vips(node)?.then_some(())))?;
        cmd::wait_until(TIMEOUT, "the log", || {
            let log = agent.log();
            let is_told = words.iter().all(|word| log.contains(word)) && log.contains("not ready");
            Ok(is_told.then_some(()))
        })?;
        ensure!(agent.stop(libc::SIGTERM)?.success(), "SIGTERM");
        Ok(())
    });
}

#[test]
fn ebpf_without_bpf() {
    unavailable(
        "--backend=ebpf",
        |command| {
            Missing::Bpf.apply(command);
        },
        &["--backend=ebpf cannot be used here", "CONFIG_BPF_SYSCALL"],
    );
}

#[test]
fn ebpf_without_nf_tables() {
    unavailable(
        "--backend=ebpf",
        |command| {
            Missing::Nfnetlink.apply(command);
        },
        &["--backend=ebpf cannot be used here", "nf_tables"],
    );
}

#[test]
fn ebpf_by_tcx_without_tcx() {
    unavailable(
        "--backend=ebpf",
        |command| {
            command.arg("--tc-attach=tcx");
            Missing::Tcx.apply(command);
        },
        &[
            "--backend=ebpf cannot be used here",
            "6.6",
            "--tc-attach=auto",
        ],
    );
}

/// A kernel without tcx has clsact.
#[test]
fn ebpf_without_tcx() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        let agent = node.start_agent_missing(Missing::Tcx, &["--backend=ebpf"])?;
        ensure!(
            agent.log().contains("backend ebpf, attached by clsact"),
            "attached by another way"
        );
        let _proxy = Proxy::start(node)?;
        everything_works(node)
    });
}

#[test]
fn nftables_without_nf_tables() {
    unavailable(
        "--backend=nftables",
        |command| {
            Missing::Nfnetlink.apply(command);
        },
        &["--backend=nftables cannot be used here", "CONFIG_NF_TABLES"],
    );
}

#[test]
fn iptables_without_iptables() {
    unavailable(
        "--backend=iptables",
        |command| {
            Missing::Iptables.apply(command);
        },
        &["--backend=iptables cannot be used here", "Install"],
    );
}

/// The agent becomes ready by itself once bpffs is mounted.
#[test]
fn ebpf_without_bpffs_until_it_is_mounted() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        let dir = node.dir().join("late-bpffs");
        fs::create_dir(&dir)?;
        let bpffs = format!("--bpffs={}", dir.join("v1").display());
        let agent = node.spawn_agent(&["--backend=ebpf", "--sync-interval=1s", &bpffs])?;
        cmd::wait_until(TIMEOUT, "the log", || {
            let log = agent.log();
            let is_told = ["--bpffs", &dir.display().to_string(), "mount", "not ready"]
                .iter()
                .all(|word| log.contains(word));
            Ok(is_told.then_some(()))
        })?;
        ensure!(has_vips(node)?, "no VIPs");
        cmd::run(
            Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&dir),
            "",
        )?;
        let result = agent.wait_until_ready().and_then(|()| {
            let _proxy = Proxy::start(node)?;
            everything_works(node)
        });
        drop(agent);
        cmd::run(Command::new("umount").arg(&dir), "")?;
        result
    });
}

/// A privileged agent has pinned maps and programs and is killed; the next one has `NET_ADMIN` only, may not call
/// bpf(2), and may not see the pins. It selects another backend and cannot make the programs of the former one stop
/// deciding: these continue, every path works, live connections too, and the agent is not ready and reports the remedy,
/// which helps.
fn rights_that_are_lost(sees_pins: bool) {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install_without_masquerade(&node.netns)?;
        let args = [&["--drain-timeout=0s"], &TRANSLATE[..]].concat();
        let mut agent = node.start_agent(&args)?;
        let _proxy = Proxy::start(node)?;
        let streams = open(node)?;
        agent.stop(libc::SIGKILL)?;

        let start = || -> Result<Agent> {
            if !sees_pins {
                return node.spawn(unprivileged(node, &args)?);
            }
            let mut command = node.agent_command(&args)?;
            Missing::BpfPermission.apply(&mut command);
            Missing::CapabilitiesButNetAdmin.apply(&mut command);
            node.spawn(command)
        };
        let mut agent = start()?;
        cmd::wait_until(TIMEOUT, "the agent to log the remedy", || {
            let log = agent.log();
            let says_it = log.lines().any(|line| {
                line.contains("Services by the programs of an agent with more privileges")
                    && line.contains("`proxy-agent cleanup`")
            });
            Ok((says_it && log.contains("not ready")).then_some(()))
        })?;
        all_go_on(&streams)?;
        new_connections_work(node)?;
        vip_is_untracked(node)?;
        all_end_intact(streams)?;
        agent.stop(libc::SIGTERM)?;

        let mut cleanup = node.netns.command(tests::agent::binary()?);
        cleanup.args(["cleanup", "--drain-timeout=0s"]);
        cleanup.arg(format!("--bpffs={}", node.agent_bpffs().display()));
        cleanup.arg(format!("--run-dir={}", node.run_dir().display()));
        let output = node.run(cleanup)?;
        ensure!(output.status.success(), "{output:?}");
        let agent = start()?;
        agent.wait_until_ready()?;
        Ok(())
    });
}

#[test]
fn rights_that_are_lost_with_pins_in_sight() {
    rights_that_are_lost(true);
}

#[test]
fn rights_that_are_lost_together_with_the_bpf_file_system() {
    rights_that_are_lost(false);
}
