// SPDX-License-Identifier: Apache-2.0

//! Mistakes on the command line and machines that lack something: one clear message, the right exit
//! code, nothing changed.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};

use anyhow::{Context as _, Result, bail, ensure};
use tests::agent;
use tests::degraded_host::Missing;
use tests::node::{Node, Topology};
use tests::snapshot;

/// Arguments, and words that the message must contain.
const USAGE: [(&[&str], &[&str]); 21] = [
    (&["--ip-address="], &["--ip-address"]),
    (&["--ip-address=10.96.0"], &["--ip-address", "10.96.0"]),
    (&["--ip-address=localhost"], &["--ip-address", "localhost"]),
    (
        &["--ip-address=10.96.0.2,10.96.0.2"],
        &["--ip-address", "10.96.0.2"],
    ),
    (
        &["--ip-address=127.0.0.2"],
        &["--ip-address", "127.0.0.2", "loopback"],
    ),
    (&["--ip-address=::1"], &["--ip-address", "::1", "loopback"]),
    (
        &["--ip-address=224.0.0.1"],
        &["--ip-address", "224.0.0.1", "multicast"],
    ),
    (
        &["--ip-address=ff02::1"],
        &["--ip-address", "ff02::1", "multicast"],
    ),
    (
        &["--ip-address=0.0.0.0"],
        &["--ip-address", "0.0.0.0", "unspecified"],
    ),
    (&["--ip-address=::"], &["--ip-address", "::", "unspecified"]),
    (&["--port=0"], &["--port", "0"]),
    (&["--port=65536"], &["--port", "65536"]),
    (
        &["--interface=a-name-of-16-byt"],
        &["--interface", "a-name-of-16-byt", "15"],
    ),
    (&["--interface="], &["--interface"]),
    (&["--sync-interval=0"], &["--sync-interval", "0"]),
    (&["--sync-interval=-1s"], &["--sync-interval", "-1s"]),
    (&["--sync-interval=10"], &["--sync-interval", "10"]),
    (
        &["--backend=nothing"],
        &["--backend", "nothing", "ebpf", "iptables"],
    ),
    (&["--max-connections=0"], &["--max-connections", "0"]),
    (&["--daemon=maybe"], &["--daemon", "maybe"]),
    (&["--no-such-flag"], &["--no-such-flag"]),
];

/// One clear message on stderr, the exit code, and nothing changed.
fn refused(node: &Node, output: &Output, code: i32, words: &[&str], before: &str) -> Result<()> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(code),
        "exit code {code} expected, not {}\n{stderr}",
        output.status
    );
    for word in words {
        ensure!(
            stderr.contains(word),
            "no {word:?} in the message:\n{stderr}"
        );
    }
    ensure!(!stderr.contains("panicked"), "{stderr}");
    println!("{}", stderr.trim_end());
    if let Some(difference) = snapshot::difference(before, &snapshot::take(&node.netns)?) {
        bail!("changed:\n{difference}");
    }
    ensure!(!node.agent_bpffs().exists(), "something is left on bpffs");
    Ok(())
}

#[test]
fn usage() {
    Node::test(Topology::Veth, |node| {
        let before = snapshot::take(&node.netns)?;
        for (args, words) in USAGE {
            let output = node.run_agent(args)?;
            refused(node, &output, 2, words, &before).with_context(|| format!("{args:?}"))?;
        }
        let mut without = node.netns.command(agent::binary()?);
        let output = node.run({
            without.arg("--daemon=false");
            without
        })?;
        refused(node, &output, 2, &["--ip-address"], &before).context("no address")
    });
}

/// Runs the agent on a machine that lacks something, as a daemon and for one pass.
fn system(args: &[&str], lack: impl Fn(&Node, &mut Command) -> Result<()>, words: &[&str]) {
    Node::test(Topology::Veth, |node| {
        let before = snapshot::take(&node.netns)?;
        for daemon in ["--daemon=true", "--daemon=false"] {
            let mut command = node.agent_command(&[args, &[daemon]].concat())?;
            lack(node, &mut command)?;
            let output = node.run(command)?;
            refused(node, &output, 1, words, &before).context(daemon)?;
        }
        Ok(())
    });
}

#[test]
fn not_root() {
    Node::test(Topology::Veth, |node| {
        let before = snapshot::take(&node.netns)?;
        // Where another user can reach it.
        let copy = node.dir().join("proxy-agent");
        fs::copy(agent::binary()?, &copy).context("copying the agent")?;
        let mut command = node.netns.command(copy);
        command.arg("--ip-address=10.96.0.2").uid(65534).gid(65534);
        // uid() takes effect before the namespace is entered: let root enter it.
        let output = node.run(as_unprivileged_user(node, &command))?;
        refused(node, &output, 1, &["root"], &before)
    });
}

/// The same command line, started by setpriv(1) once the namespace is entered.
fn as_unprivileged_user(node: &Node, command: &Command) -> Command {
    let mut setpriv = node.netns.command("setpriv");
    setpriv
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(command.get_program())
        .args(command.get_args());
    setpriv
}

#[test]
fn root_without_capabilities() {
    system(
        &["--backend=none"],
        |_, command| {
            Missing::Capabilities.apply(command);
            Ok(())
        },
        &["NET_ADMIN", "root"],
    );
}
