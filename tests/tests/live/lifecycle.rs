// SPDX-License-Identifier: Apache-2.0

//! The agent is killed, restarted and cleaned up: the data plane works on without the agent, a new agent adopts it, and
//! a clean-up removes everything that is ours and breaks no connection.

use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology};
use tests::path::Via;
use tests::proxy::Proxy;
use tests::{Family, client, conntrack, snapshot, transfer};

const TIMEOUT: Duration = Duration::from_secs(5);
const BYTES: u64 = 100_000;

/// Connects on every path, and asserts that only connections through the ClusterIP are tracked.
fn connect_everywhere(node: &Node) -> Result<Vec<TcpStream>> {
    let mut streams = Vec::new();
    for path in node.paths() {
        let mut stream = client::connect(path.netns, path.destination(), TIMEOUT)
            .with_context(|| path.to_string())?;
        transfer::exchange(&mut stream, BYTES, 7).with_context(|| path.to_string())?;
        let entries = conntrack::list(&node.netns, path.family)?;
        let found = conntrack::of_client(&entries, stream.local_addr()?);
        let wanted = usize::from(path.via == Via::ClusterIp);
        ensure!(found.len() == wanted, "{path}: {found:#?}");
        streams.push(stream);
    }
    Ok(streams)
}

fn still_work(streams: &mut [TcpStream]) -> Result<()> {
    streams.iter_mut().try_for_each(|stream| {
        transfer::exchange(stream, BYTES, 8).with_context(|| format!("{stream:?}"))
    })
}

/// Checks that no connection that was untracked has a conntrack entry now.
fn still_untracked(node: &Node, streams: &[TcpStream]) -> Result<()> {
    for family in Family::ALL {
        let entries = conntrack::list(&node.netns, family)?;
        for stream in streams {
            if stream.peer_addr()? == family.vip_socket() {
                let found = conntrack::of_client(&entries, stream.local_addr()?);
                ensure!(found.is_empty(), "tracked now: {found:#?}");
            }
        }
    }
    Ok(())
}

fn files_below(dir: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            files.extend(files_below(&entry.path()));
        } else {
            files.push(entry.path().display().to_string());
        }
    }
    files.sort_unstable();
    files
}

/// Connections that are older than the agent stay as they are: tracked, and working.
fn connections_older_than_the_agent(args: &[&str]) {
    Node::test(Topology::Bridge, |node| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        node.add_vips("lo")?;
        let _proxy = Proxy::start(node)?;
        let mut old = Vec::new();
        for path in node.paths() {
            old.push(client::connect(path.netns, path.destination(), TIMEOUT)?);
        }
        let _agent = node.start_agent(args)?;
        still_work(&mut old)?;
        connect_everywhere(node)?;
        still_work(&mut old)?;
        for (path, stream) in node.paths().iter().zip(&old) {
            let entries = conntrack::list(&node.netns, path.family)?;
            let found = conntrack::of_client(&entries, stream.local_addr()?);
            ensure!(found.len() == 1, "{path}: {found:#?}");
        }
        Ok(())
    });
}

fn killed_and_restarted(args: &[&str]) {
    Node::test(Topology::Bridge, |node| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        let mut agent = node.start_agent(args)?;
        let _proxy = Proxy::start(node)?;
        let mut streams = connect_everywhere(node)?;
        let pins = files_below(&node.agent_bpffs());
        agent.stop(libc::SIGKILL)?;
        still_work(&mut streams)?;
        streams.extend(connect_everywhere(node)?);
        let ruleset = snapshot::nf_tables(&node.netns)?;

        let mut agent = node.start_agent(args)?;
        still_work(&mut streams)?;
        streams.extend(connect_everywhere(node)?);
        still_untracked(node, &streams)?;
        ensure!(
            files_below(&node.agent_bpffs()) == pins,
            "other pins than before"
        );
        ensure!(
            snapshot::nf_tables(&node.netns)? == ruleset,
            "other rules than before the restart"
        );

        // Without --cleanup, all objects remain.
        let status = agent.stop(libc::SIGTERM)?;
        ensure!(status.success(), "SIGTERM: {status}");
        still_work(&mut streams)?;
        streams.extend(connect_everywhere(node)?);
        still_untracked(node, &streams)
    });
}

/// Defines one test for each backend that decides per connection.
macro_rules! backends {
    ($($name:ident: $args:expr;)*) => {$(
        mod $name {
            #[test]
            fn connections_older_than_the_agent() {
                super::connections_older_than_the_agent(&$args);
            }

            #[test]
            fn killed_and_restarted() {
                super::killed_and_restarted(&$args);
            }
        }
    )*};
}

backends! {
    ebpf: ["--backend=ebpf"];
    nftables: ["--backend=nftables"];
    iptables: ["--backend=iptables"];
}

#[test]
fn cleaned_up_with_live_connections() {
    for (signal, args) in [
        (libc::SIGTERM, ["--backend=ebpf", "--tc-attach=auto"]),
        (libc::SIGINT, ["--backend=ebpf", "--tc-attach=clsact"]),
        (libc::SIGTERM, ["--backend=nftables", "--tc-attach=auto"]),
        (libc::SIGTERM, ["--backend=iptables", "--tc-attach=auto"]),
    ] {
        Node::test(Topology::Veth, |node| {
            // The kernel deletes the entries of masqueraded connections when their translated address is removed.
            KubeProxy::Nftables.install_without_masquerade(&node.netns)?;
            // Tables that iptables creates remain.
            let tables = "*raw\n:PREROUTING -\n:OUTPUT -\nCOMMIT\n*mangle\n:INPUT -\nCOMMIT\n";
            for program in ["iptables", "ip6tables"] {
                let line = format!("{program}-nft-restore --noflush");
                node.netns.feed(&line, tables)?;
            }
            let before = snapshot::take(&node.netns)?;
            let args = [&args[..], &["--cleanup", "--accept-rules=never"]].concat();
            let mut agent = node.start_agent(&args)?;
            let _proxy = Proxy::start(node)?;
            let mut streams = connect_everywhere(node)?;
            ensure!(agent.stop(signal)?.success(), "signal {signal}");
            let pins = files_below(&node.agent_bpffs());
            ensure!(pins.is_empty(), "left on bpffs: {pins:?}");
            let after = snapshot::take(&node.netns)?;
            if let Some(difference) = snapshot::difference(&before, &after) {
                anyhow::bail!("not as it was before:\n{difference}");
            }
            // The connections survive: once the address exists again, they continue and are tracked from now on.
            node.add_vips("lo")?;
            still_work(&mut streams)
        });
    }
}

#[test]
fn a_second_agent_refuses() {
    Node::test(Topology::Veth, |node| {
        let agent = node.start_agent(&["--backend=none"])?;
        let output = node.run_agent(&["--backend=none", "--daemon=false"])?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(1),
            "two agents at once: {}\n{stderr}",
            output.status
        );
        ensure!(
            stderr.contains("run-dir") || stderr.contains("/run"),
            "{stderr}"
        );
        drop(agent);
        Ok(())
    });
}
