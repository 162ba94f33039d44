// SPDX-License-Identifier: Apache-2.0

//! `proxy-agent status`: consistent counters, repairs with their cause, and drift; it also works without an agent and
//! changes nothing.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::agent::TRANSLATE;
use tests::client::{self, Close, ONE_SYN};
use tests::kubeproxy::KubeProxy;
use tests::netns::Netns;
use tests::node::{Node, Topology};
use tests::proxy::Proxy;
use tests::status::{THIS_NODE, array, counters, number, read, read_with_code, run};
use tests::{Family, cmd, snapshot, transfer};

const TIMEOUT: Duration = Duration::from_secs(8);
/// The time until the events of the agent's own last changes have arrived.
const QUIET: Duration = Duration::from_millis(300);

/// Returns the number of decided connections, of translated ones, and of those that were not decided for a reason.
fn decisions(counters: &Value, reason: &str) -> [u64; 3] {
    [
        &counters["decided"],
        &counters["translated"],
        &counters["undecided"][reason],
    ]
    .map(|value| value.as_u64().unwrap_or_default())
}

fn use_connection(netns: &Netns, to: SocketAddr) -> Result<()> {
    let mut stream = client::connect(netns, to, TIMEOUT).context(to)?;
    transfer::exchange(&mut stream, 10_000, 1)?;
    transfer::hang_up(&mut stream)?;
    Ok(client::close(&stream, Close::Fin)?)
}

#[test]
fn connections_are_counted_where_they_come_from() {
    for tc_attach in ["--tc-attach=auto", "--tc-attach=clsact"] {
        Node::test(Topology::Veth, |node| {
            let args = [&["--backend=ebpf", tc_attach], &TRANSLATE[..]].concat();
            let _agent = node.start_agent(&args)?;
            let _proxy = Proxy::start(node)?;
            for family in Family::ALL {
                let (vip, service) = (family.vip_socket(), family.cluster_ip_socket());
                for (times, netns, to) in [
                    (3, &node.pods[0].netns, vip),
                    (2, &node.pods[1].netns, service),
                    (4, &node.netns, vip),
                    (2, &node.netns, service),
                ] {
                    for _ in 0..times {
                        use_connection(netns, to)?;
                    }
                }
            }
            let (code, status) = read_with_code(node)?;
            ensure!(code == 0, "exit code {code}");
            for family in Family::ALL {
                let vip = family.vip_socket();
                // For packets to the VIP itself, rules decide, which do not count by link.
                for (link, want) in [("pod1", [2, 2, 0]), (THIS_NODE, [9, 2, 0])] {
                    let counters = counters(&status, vip, link)?;
                    let found = decisions(&counters, "in_use");
                    ensure!(found == want, "{link}, {vip}: {found:?} in {counters:#}");
                }
                let requests = &counters(&status, vip, THIS_NODE)?["requests"];
                ensure!(number(&requests["bytes"])? > 10_000 * 11, "{requests}");
                ensure!(number(&requests["packets"])? > 4 * 11, "{requests}");
            }
            let connections = &status["connections"];
            // All connections have ended.
            let want = (0, 65_536);
            let found = (
                number(&connections["entries"])?,
                number(&connections["size"])?,
            );
            ensure!(found == want, "{connections}");
            let table = String::from_utf8(run(node, &[])?.stdout)?;
            ensure!(table.contains("\n  pod1 "), "{table}");
            ensure!(
                table.lines().all(|line| line.chars().count() <= 100),
                "{table}"
            );
            Ok(())
        });
    }
}

#[test]
fn in_use() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesNft.install_without_masquerade(&node.netns)?;
        let _agent = node.start_agent(&["--backend=ebpf"])?;
        let _proxy = Proxy::start(node)?;
        for family in Family::ALL {
            let from = SocketAddr::new(node.pods[0].address(family), 25_000);
            let connect =
                |to, limit| client::connect_from(&node.pods[0].netns, Some(from), to, limit);
            let _first = connect(family.cluster_ip_socket(), TIMEOUT)?;
            // Conntrack of Linux 6.1 and older does not distinguish the two, and neither gets a reply: the decision
            // about the SYN is the same. `one_port` covers what happens to the connection.
            let _second = connect(family.vip_socket(), ONE_SYN);
            let status = read(node)?;
            let counters = counters(&status, family.vip_socket(), THIS_NODE)?;
            let [decided, translated, in_use] = decisions(&counters, "in_use");
            ensure!([decided, translated] == [0, 0], "{counters:#}");
            ensure!(client::syns().contains(&in_use), "{counters:#}");
        }
        Ok(())
    });
}

#[test]
fn no_listener() {
    Node::test(Topology::Veth, |node| {
        let args = [&["--backend=ebpf"], &TRANSLATE[..]].concat();
        let _agent = node.start_agent(&args)?;
        for family in Family::ALL {
            for (netns, link) in [(&node.pods[0].netns, "pod0"), (&node.netns, THIS_NODE)] {
                // The link-layer address of the node must be known, or the SYN waits for its resolution.
                let refused = client::connect(netns, family.vip_socket(), TIMEOUT);
                ensure!(refused.is_err(), "the connection was accepted");
                // There is no kube-proxy either.
                let refused = client::connect(netns, family.cluster_ip_socket(), ONE_SYN);
                ensure!(refused.is_err(), "the connection was answered");
                let status = read(node)?;
                let counters = counters(&status, family.vip_socket(), link)?;
                let [_, translated, no_listener] = decisions(&counters, "no_listener");
                ensure!(translated == 0, "{link}: {counters:#}");
                ensure!(
                    client::syns().contains(&no_listener),
                    "{link}: {counters:#}"
                );
            }
        }
        Ok(())
    });
}

#[test]
fn counters_outlive_the_agent_and_go_with_their_link() {
    Node::test(Topology::Veth, |node| {
        let args = [&["--backend=ebpf", "--sync-interval=300ms"], &TRANSLATE[..]].concat();
        let mut agent = node.start_agent(&args)?;
        let _proxy = Proxy::start(node)?;
        let (vip, service) = (Family::V4.vip_socket(), Family::V4.cluster_ip_socket());
        for pod in &node.pods {
            use_connection(&pod.netns, service)?;
        }
        agent.stop(libc::SIGKILL)?;
        let (code, status) = read_with_code(node)?;
        ensure!(code == 1, "exit code {code} without an agent");
        ensure!(status["agent"]["running"] == false, "{}", status["agent"]);
        let before = counters(&status, vip, "pod1")?;
        ensure!(number(&before["decided"])? == 1, "{before}");

        let _agent = node.start_agent(&args)?;
        let (code, status) = read_with_code(node)?;
        ensure!(code == 0, "exit code {code} with an agent");
        let after = counters(&status, vip, "pod1")?;
        ensure!(number(&after["decided"])? == 1, "{after}");
        node.netns.ip("link del pod0\n")?;
        cmd::wait_until(TIMEOUT, "the counters of the link to go", || {
            let status = read(node)?;
            let of_vip = &array(&status["counters"])?[0];
            let is_there = |of_link: &Value| of_link["link"] != Value::Null;
            let links = array(&of_vip["links"])?
                .iter()
                .filter(|link| is_there(link));
            Ok((links.count() == 1).then_some(()))
        })
    });
}

/// Runs a command in the node until it exits, and returns its process ID.
fn as_process(node: &Node, line: &str) -> Result<u64> {
    let mut words = line.split_whitespace();
    let program = words.next().context("an empty line")?;
    let mut child = node.netns.command(program).args(words).spawn()?;
    let id = child.id();
    ensure!(child.wait()?.success(), "{line} failed");
    Ok(id.into())
}

/// Returns the last repair, once there are `wanted`.
fn repair(node: &Node, wanted: usize) -> Result<Value> {
    cmd::wait_until(TIMEOUT, "the repair to be in the status", || {
        let status = read(node)?;
        let repairs = array(&status["repairs"]["last"])?;
        Ok((repairs.len() == wanted).then(|| repairs[wanted - 1].clone()))
    })
}

#[test]
fn repairs_name_their_cause() {
    Node::test(Topology::Veth, |node| {
        let agent = node.start_agent(&["--backend=ebpf"])?;
        let status = read(node)?;
        ensure!(
            array(&status["repairs"]["last"])?.is_empty(),
            "{}",
            status["repairs"]
        );
        // Attaching to new links is no repair.
        node.add_pod(Topology::Veth)?;
        cmd::wait_until(TIMEOUT, "the new pod's program", || {
            Ok(node.is_attached("pod2")?.then_some(()))
        })?;

        thread::sleep(QUIET);
        let pid = as_process(node, "nft flush ruleset")?;
        let status = repair(node, 1)?;
        ensure!(status["part"] == "ebpf", "{status}");
        ensure!(status["by"]["name"] == "nft", "{status}");
        ensure!(status["by"]["pid"] == pid, "{status}, not {pid}");
        let (at, since) = (status["at"].as_str(), status["since"].as_str());
        ensure!(since.is_some() && since <= at, "{status}");
        let by = format!("by=\"nft (pid {pid})\"");
        ensure!(agent.log().contains(&by), "no {by} in the log");

        thread::sleep(QUIET);
        let pid = as_process(node, "ip address del 10.96.0.2/32 dev lo")?;
        let status = repair(node, 2)?;
        ensure!(status["part"] == "link", "{status}");
        ensure!(status["event"] == "address 10.96.0.2 changed", "{status}");
        ensure!(status["by"]["pid"] == pid, "{status}, not {pid}");
        Ok(())
    });
}

#[test]
fn drift_is_reported_while_the_agent_is_stopped() {
    Node::test(Topology::Veth, |node| {
        let args = [&["--backend=ebpf"], &TRANSLATE[..]].concat();
        let agent = node.start_agent(&args)?;
        let changes = || Ok::<_, anyhow::Error>(read(node)?["drift"].clone());
        let none = |drift: &Value| {
            Ok::<_, anyhow::Error>(
                array(&drift["changes"])?.is_empty() && array(&drift["failures"])?.is_empty(),
            )
        };
        let drift = changes()?;
        ensure!(none(&drift)?, "{drift}");
        let dry_run = node.run_agent(&[&args[..], &["--dry-run"]].concat())?;
        let status = String::from_utf8(dry_run.stdout)?;
        ensure!(status.contains("nothing to do"), "{status}");

        agent.signal(libc::SIGSTOP)?;
        node.netns.exec("nft delete table ip proxy-agent")?;
        node.netns.ip("address del fd00:96::2/128 dev lo\n")?;
        let before = snapshot::nf_tables(&node.netns)?;
        let drift = changes()?;
        let text = drift.to_string();
        ensure!(array(&drift["changes"])?.len() == 2, "{text}");
        for want in [
            "table ip proxy-agent (it is missing)",
            "add fd00:96::2/128 to lo",
        ] {
            ensure!(text.contains(want), "{want} in {text}");
        }
        let status = read(node)?;
        ensure!(status["vips"][1]["present"] == false, "{}", status["vips"]);
        ensure!(
            snapshot::nf_tables(&node.netns)? == before,
            "status changed something"
        );

        agent.signal(libc::SIGCONT)?;
        cmd::wait_until(TIMEOUT, "the end of the drift", || {
            Ok(none(&changes()?)?.then_some(()))
        })
    });
}

#[test]
fn where_no_agent_has_run() {
    Node::test(Topology::Veth, |node| {
        let no_status = |when: &str| {
            for args in [&[][..], &["--output=json"]] {
                let output = run(node, args)?;
                let text = String::from_utf8(output.stderr)?;
                ensure!(
                    text.contains("no agent has run with --run-dir="),
                    "{when}: {text}"
                );
                ensure!(output.stdout.is_empty(), "{when}: something on stdout");
                ensure!(
                    cmd::exit_code(output.status) == 1,
                    "{when}: {}",
                    output.status
                );
            }
            Ok::<_, anyhow::Error>(())
        };
        no_status("before")?;
        ensure!(!node.run_dir().exists(), "status made the run directory");
        let mut agent = node.start_agent(&["--backend=none", "--cleanup"])?;
        // Repeated runs of `status` do not prevent an agent from starting.
        thread::scope(|scope| {
            let asking = scope.spawn(|| (0..20).try_for_each(|_| read(node).map(drop)));
            let second = node.run_agent(&["--backend=none", "--daemon=false"])?;
            ensure!(!second.status.success(), "a second agent was let in");
            asking.join().expect("it does not panic")
        })?;
        let (code, status) = read_with_code(node)?;
        ensure!(code == 0, "exit code {code}: {status:#}");
        ensure!(
            array(&status["counters"])?.is_empty(),
            "{}",
            status["counters"]
        );
        agent.stop(libc::SIGTERM)?;
        no_status("after the clean-up")
    });
}
