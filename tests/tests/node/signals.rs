// SPDX-License-Identifier: Apache-2.0

//! Signals and systemd: the agent exits soon, reconciles on SIGHUP, and notifies systemd of its state.

use std::fmt::Write as _;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology};
use tests::{cmd, skip, slow_machine};

const TIMEOUT: Duration = Duration::from_mins(1);
/// The maximum time until the agent has exited.
const SOON: Duration = Duration::from_secs(2);
const PAIRS: usize = 200;

fn pinned(node: &Node) -> usize {
    let pins = std::fs::read_dir(node.link_pins());
    pins.map_or(0, Iterator::count)
}

fn add_links(node: &Node) -> Result<()> {
    let mut script = String::new();
    for n in 0..PAIRS {
        writeln!(script, "link add many{n} type veth peer name peer{n}")?;
    }
    node.netns.ip(&script)
}

fn until(what: &str, probe: impl Fn() -> bool) -> Result<()> {
    cmd::wait_until(TIMEOUT, what, || Ok(probe().then_some(())))
}

/// Attaching to each link takes milliseconds; the agent abandons the pass after the current link.
#[test]
fn in_the_middle_of_a_long_pass() -> Result<()> {
    if skip::without_tcx("signals-in_the_middle_of_a_long_pass")? {
        return Ok(());
    }
    for signal in [libc::SIGTERM, libc::SIGINT] {
        Node::test(Topology::Veth, |node| {
            add_links(node)?;
            let mut agent = node.spawn_agent(&["--backend=ebpf", "--tc-attach=tcx"])?;
            until("some links to be attached", || pinned(node) > 20)?;
            let start = Instant::now();
            let status = agent.stop(signal)?;
            let (took, done) = (start.elapsed(), pinned(node));
            println!("ended after {} ms, {done} links done", took.as_millis());
            ensure!(
                status.success() && took < slow_machine::of(SOON),
                "{status} after {took:?}"
            );
            ensure!(done < PAIRS, "{done} links: the pass went on to its end");
            // The next agent does the rest.
            let agent = node.start_agent(&["--backend=ebpf", "--tc-attach=tcx"])?;
            ensure!(pinned(node) > 2 * PAIRS, "{} links", pinned(node));
            drop(agent);
            Ok(())
        });
    }
    Ok(())
}

#[test]
fn a_long_clean_up() -> Result<()> {
    if skip::without_tcx("signals-a_long_clean_up")? {
        return Ok(());
    }
    Node::test(Topology::Veth, |node| {
        add_links(node)?;
        let args = ["--backend=ebpf", "--tc-attach=tcx", "--cleanup"];
        let mut agent = node.start_agent(&args)?;
        agent.signal(libc::SIGTERM)?;
        until("some links to be detached", || {
            pinned(node) < 2 * PAIRS - 20
        })?;
        let start = Instant::now();
        let status = agent.stop(libc::SIGTERM)?;
        let (took, left) = (start.elapsed(), pinned(node));
        println!("ended after {} ms, {left} links left", took.as_millis());
        ensure!(
            !status.success() && took < slow_machine::of(SOON),
            "{status} after {took:?}"
        );

        let mut agent = node.start_agent(&args)?;
        agent.signal(libc::SIGTERM)?;
        let start = Instant::now();
        until("the pins to go", || !node.agent_bpffs().exists())?;
        println!("cleaned up after {} ms", start.elapsed().as_millis());
        let status = agent.stop(0)?;
        ensure!(status.success(), "{status}");
        ensure!(!node.run_dir().exists(), "the run directory is left");
        Ok(())
    });
    Ok(())
}

#[test]
fn sighup_has_everything_looked_at_again() {
    Node::test(Topology::Veth, |node| {
        KubeProxy::IptablesLegacy.install(&node.netns)?;
        let agent = node.start_agent(&["--backend=iptables"])?;
        let has_rules = || {
            let rules = node.netns.exec("iptables-legacy -w -t raw -S");
            let is_ours = |rule: &str| rule.starts_with("-A") && rule.contains("proxy-agent");
            rules.is_ok_and(|rules| rules.lines().any(is_ours))
        };
        ensure!(has_rules(), "no rules at first");
        // The kernel sends no notification of changes of legacy tables. Another event may wake the agent, such as its
        // own changes or a delayed one of the kernel; the test then tries again.
        let unnoticed = (0..10).any(|_| {
            let flushed = node.netns.exec("iptables-legacy -w -t raw -F").is_ok();
            std::thread::sleep(Duration::from_millis(500));
            flushed && !has_rules()
        });
        ensure!(unnoticed, "the rules are back without a signal");
        agent.signal(libc::SIGHUP)?;
        until("the signal to be heard", || agent.log().contains("SIGHUP"))?;
        until("the rules to be back", has_rules)
    });
}

/// systemd's end of the notification socket, with the messages received so far, in order.
struct Manager {
    socket: UnixDatagram,
    received: Vec<String>,
}

impl Manager {
    fn wait_for(&mut self, wanted: &str) -> Result<()> {
        let end = Instant::now() + TIMEOUT;
        let mut buffer = [0; 1024];
        while Instant::now() < end {
            let Ok(length) = self.socket.recv(&mut buffer) else {
                continue;
            };
            let received = String::from_utf8_lossy(&buffer[..length]).into_owned();
            self.received.push(received.clone());
            if received.starts_with(wanted) {
                return Ok(());
            }
        }
        bail!("{wanted} was not received: {:?}", self.received)
    }
}

#[test]
fn systemd_is_notified() {
    Node::test(Topology::Veth, |node| {
        let path = node.dir().join("notify");
        let socket = UnixDatagram::bind(&path).context("binding the socket")?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let mut manager = Manager {
            socket,
            received: Vec::new(),
        };
        let mut command = node.agent_command(&["--backend=nftables"])?;
        command
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "400000");
        let mut agent = node.spawn(command)?;
        manager.wait_for("READY=1")?;
        manager.wait_for("STATUS=backend nftables; the node is as desired")?;
        let start = Instant::now();
        for _ in 0..5 {
            manager.wait_for("WATCHDOG=1")?;
        }
        let took = start.elapsed();
        ensure!(took > Duration::from_millis(600), "5 in {took:?}");
        ensure!(
            took < slow_machine::of(Duration::from_millis(1900)),
            "5 in {took:?}"
        );
        agent.signal(libc::SIGHUP)?;
        manager.wait_for("RELOADING=1\nMONOTONIC_USEC=")?;
        manager.wait_for("READY=1")?;
        let status = agent.stop(libc::SIGTERM)?;
        ensure!(status.success(), "{status}");
        manager.wait_for("STOPPING=1")
    });
}
