// SPDX-License-Identifier: Apache-2.0

//! Invalid command lines, and machines without a required feature: the agent prints one clear message, exits with the
//! right code, and changes nothing.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};

use anyhow::{Context as _, Result, bail, ensure};
use tests::agent;
use tests::degraded_host::Missing;
use tests::node::{Node, Topology};
use tests::snapshot;

/// The arguments, and words that the message must contain.
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

/// Checks that there is one clear message on stderr, that the exit code is right, and that nothing has changed.
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

/// Runs the agent on a machine without some feature, as a daemon and for one pass.
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
        // Another user can reach this path.
        let copy = node.dir().join("proxy-agent");
        fs::copy(agent::binary()?, &copy).context("copying the agent")?;
        let mut command = node.netns.command(copy);
        command.arg("--ip-address=10.96.0.2").uid(65534).gid(65534);
        // uid() takes effect before the namespace is entered, which needs root.
        let output = node.run(as_unprivileged_user(node, &command))?;
        refused(node, &output, 1, &["root"], &before)
    });
}

/// Returns the same command line, started by setpriv(1) after the namespace is entered.
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
