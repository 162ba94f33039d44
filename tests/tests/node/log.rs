// SPDX-License-Identifier: Apache-2.0

//! The log contains a line for each change, with object and reason, and no line while nothing happens.

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use tests::agent::Agent;
use tests::client::{self, Close};
use tests::node::{Node, Topology};
use tests::proxy::Proxy;
use tests::{Family, cmd, http, slow_machine, transfer};

const TIMEOUT: Duration = Duration::from_secs(10);
/// A time that covers several sync intervals.
const WHILE: Duration = Duration::from_secs(1);

/// Returns the lines after the first `lines`.
fn since(agent: &Agent, lines: usize) -> Vec<String> {
    agent.log().lines().skip(lines).map(str::to_owned).collect()
}

/// Causes traffic, scrapes and resyncs.
fn nothing_new(node: &Node) -> Result<()> {
    for family in Family::ALL {
        let mut stream = client::connect(&node.pods[0].netns, family.vip_socket(), TIMEOUT)?;
        transfer::exchange(&mut stream, 10_000, 3)?;
        client::close(&stream, Close::Fin)?;
    }
    for path in [
        "/metrics",
        "/metrics?links=true",
        "/healthz",
        "/readyz",
        "/status",
        "/x",
    ] {
        http::get(&node.netns, path)?;
    }
    thread::sleep(slow_machine::of(WHILE));
    Ok(())
}

fn quiet(backend: &str) {
    Node::test(Topology::Veth, |node| {
        let agent = node.start_agent(&[backend, "--sync-interval=100ms"])?;
        let _proxy = Proxy::start(node)?;
        http::wait_for(&node.netns, "/readyz", 200)?;
        // By then the links of the proxy and of the first pass have settled.
        thread::sleep(slow_machine::of(WHILE));
        let before = agent.log().lines().count();
        nothing_new(node)?;
        let lines = since(&agent, before);
        ensure!(lines.is_empty(), "lines while nothing happens: {lines:#?}");
        Ok(())
    });
}

#[test]
fn ebpf_is_silent_while_nothing_happens() {
    quiet("--backend=ebpf");
}

#[test]
fn nftables_is_silent_while_nothing_happens() {
    quiet("--backend=nftables");
}

#[test]
fn iptables_is_silent_while_nothing_happens() {
    quiet("--backend=iptables");
}

#[test]
fn a_change_is_one_line_with_object_and_reason() {
    Node::test(Topology::Veth, |node| {
        let agent = node.start_agent(&["--backend=nftables"])?;
        http::wait_for(&node.netns, "/readyz", 200)?;
        let before = agent.log().lines().count();
        // The commands run one after the other: if two run at once, the log does not name the program.
        for (command, lines) in [
            ("ip address del 10.96.0.2/32 dev lo", 1),
            ("nft delete table ip proxy-agent", 2),
        ] {
            node.netns.exec(command)?;
            cmd::wait_until(TIMEOUT, "the line", || {
                Ok((since(&agent, before).len() >= lines).then_some(()))
            })?;
            thread::sleep(slow_machine::of(WHILE));
        }
        let lines = since(&agent, before);
        ensure!(lines.len() == 2, "{lines:#?}");
        let logs = |words: &[&str]| {
            lines
                .iter()
                .any(|line| words.iter().all(|word| line.contains(word)))
        };
        let address = [
            "INFO",
            "part=\"link\"",
            "10.96.0.2",
            "lo",
            "since=",
            "by=\"",
        ];
        ensure!(logs(&address), "{lines:#?}");
        let table = [
            "INFO",
            "part=\"nftables\"",
            "table ip proxy-agent",
            "missing",
            "by=\"nft",
        ];
        ensure!(logs(&table), "{lines:#?}");
        Ok(())
    });
}

/// `I1124 20:12:34.567890    4711 file.rs:123] message`
fn has_klog_header(line: &str) -> bool {
    let Some((header, message)) = line.split_once("] ") else {
        return false;
    };
    let words: Vec<&str> = header.split_whitespace().collect();
    let [date, time, pid, source] = words[..] else {
        return false;
    };
    let digits = |text: &str| text.chars().all(|c| c.is_ascii_digit());
    let source = source.split_once(':');
    date.len() == 5
        && date.starts_with(['I', 'W', 'E'])
        && digits(&date[1..])
        && time.len() == 15
        && digits(pid)
        && source.is_some_and(|(file, line)| !file.contains('/') && digits(line))
        && !message.is_empty()
}

#[test]
fn klog_has_a_header_on_each_line() {
    Node::test(Topology::Veth, |node| {
        let agent = node.spawn_agent(&["--log-format=klog", "--v=4"])?;
        agent.wait_until_ready()?;
        let log = agent.log();
        let without = log.lines().find(|line| !has_klog_header(line));
        ensure!(without.is_none(), "no header: {without:?}");
        ensure!(log.contains(" part=\"link\""), "{log}");
        Ok(())
    });
}
