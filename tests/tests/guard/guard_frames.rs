// SPDX-License-Identifier: Apache-2.0

//! Frames of every shape on a guarded link: the TC and the XDP program return the same, intended verdict; dropped
//! frames are counted; and no frame that should be dropped reaches a process, with any backend.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::bpf::{self, Program};
use tests::frames::{self, Frame, Sender};
use tests::node::{Node, Topology};
use tests::status::dropped;
use tests::wire::{self, Wire};
use tests::{Family, cmd};

const COUNT: usize = 10_000;
const SEED: u64 = 20_261_124;
const TIMEOUT: Duration = Duration::from_secs(20);
const LOOPBACK: u32 = 1;
/// The value of a guarded link in the map of links.
const GUARDED: u32 = 1;

/// `TC_ACT_UNSPEC` and `TC_ACT_SHOT`.
const TC: [u32; 2] = [u32::MAX, 2];
/// `XDP_PASS` and `XDP_DROP`.
const XDP: [u32; 2] = [2, 1];

fn sender(node: &Node, family: Family) -> Result<Sender> {
    let (outside, allowed) = match family {
        Family::V4 => ("192.0.2.9", "198.51.100.7"),
        Family::V6 => ("2001:db8::9", "2001:db8:1::7"),
    };
    Ok(Sender {
        outside: outside.parse()?,
        allowed: allowed.parse()?,
        link: [
            wire::link_address(&node.netns, "eth0")?,
            wire::link_address(&node.uplink, "node")?,
        ],
    })
}

const ALLOW: &str = "--allow-from=198.51.100.0/24,2001:db8:1::/48";

/// Returns the agent's programs as its state file lists them. The programs and their map of links stay loaded without
/// the agent.
fn without_agent(node: &Node) -> Result<Value> {
    let mut agent = node.start_agent(&["--backend=ebpf", "--guard-mode=xdp", ALLOW])?;
    let path = node.run_dir().join("state.json");
    let text = cmd::wait_until(TIMEOUT, "the agent's state", || Ok(fs::read(&path).ok()))?;
    agent.stop(libc::SIGKILL)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Removes the frames with which the kernel refuses test runs of programs, because they are too short for the header
/// that their type announces. They are sent over a wire like the others.
fn runnable(corpus: Vec<Frame>) -> Vec<Frame> {
    let is_whole = |frame: &Frame| {
        let least = match frame.bytes[12..14] {
            [0x08, 0x00] => 14 + 20,
            [0x86, 0xdd] => 14 + 40,
            _ => 14 + 1,
        };
        frame.bytes.len() >= least
    };
    corpus.into_iter().filter(is_whole).collect()
}

fn expected(corpus: &[Frame], cause: &str) -> u64 {
    let frames = corpus.iter().filter(|frame| frame.dropped == Some(cause));
    u64::try_from(frames.count()).expect("a small number")
}

const CAUSES: [&str; 3] = ["outside", "spoofed_source", "neighbour"];

#[test]
fn tc_and_xdp_give_the_intended_verdict() {
    Node::test(Topology::Veth, |node| {
        let state = without_agent(node)?;
        let program = |name: &str| {
            let id = state["programs"][name].as_u64().context("its id")?;
            Program::open(u32::try_from(id)?)
        };
        let (tc, xdp) = (program("vip_ingress")?, program("vip_guard")?);
        let run =
            |frame: &[u8]| -> Result<[u32; 2]> { Ok([tc.run(frame, 1)?.0, xdp.run(frame, 1)?.0]) };
        // The frames of test runs arrive on `lo`.
        let links = node.agent_bpffs().join("GUARD_LINKS");
        let mut corpus = Vec::new();
        for family in Family::ALL {
            corpus.extend(frames::corpus(family, sender(node, family)?, SEED, COUNT));
        }
        let corpus = runnable(corpus);
        node.netns.run(|| -> Result<()> {
            for frame in &corpus {
                let [by_tc, by_xdp] = run(&frame.bytes)?;
                // For packets of pods and of the node itself, only spoofed sources are dropped.
                let is_dropped = usize::from(frame.dropped == Some("spoofed_source"));
                ensure!(
                    [by_tc, by_xdp] == [TC[is_dropped], XDP[is_dropped]],
                    "unguarded: {by_tc} {by_xdp}: {frame:?}"
                );
            }
            bpf::update_map(&links, LOOPBACK, GUARDED)?;
            for frame in &corpus {
                let [by_tc, by_xdp] = run(&frame.bytes)?;
                let is_dropped = usize::from(frame.dropped.is_some());
                ensure!(
                    [by_tc, by_xdp] == [TC[is_dropped], XDP[is_dropped]],
                    "guarded: {by_tc} {by_xdp}: {frame:?}"
                );
            }
            let cost = |what: &str, frame: &Frame| -> Result<()> {
                let (tc, xdp) = (
                    tc.run(&frame.bytes, 100_000)?.1,
                    xdp.run(&frame.bytes, 100_000)?.1,
                );
                println!("{what}: {tc} ns in TC, {xdp} ns in XDP");
                Ok(())
            };
            for shape in ["to the proxy", "to another address", "UDP"] {
                let frame = corpus.iter().find(|frame| frame.shape == shape);
                cost(shape, frame.context("one of each")?)?;
            }
            Ok(())
        })?;
        Ok(())
    });
}

#[test]
fn what_is_dropped_is_counted() {
    Node::test(Topology::Veth, |node| {
        let state = without_agent(node)?;
        let links = node.agent_bpffs().join("GUARD_LINKS");
        bpf::update_map(&links, LOOPBACK, GUARDED)?;
        let mut corpus = Vec::new();
        for family in Family::ALL {
            corpus.extend(frames::corpus(
                family,
                sender(node, family)?,
                SEED + 1,
                COUNT,
            ));
        }
        let corpus = runnable(corpus);
        let before = CAUSES.map(|cause| dropped(node, cause));
        for name in ["vip_ingress", "vip_guard"] {
            let id = state["programs"][name].as_u64().context("its id")?;
            let program = Program::open(u32::try_from(id)?)?;
            node.netns.run(|| {
                let mut frames = corpus.iter();
                frames.try_for_each(|frame| program.run(&frame.bytes, 1).map(drop))
            })?;
        }
        for (cause, before) in CAUSES.into_iter().zip(before) {
            let counted = dropped(node, cause)? - before?;
            let wanted = 2 * expected(&corpus, cause);
            ensure!(wanted > 100, "the corpus has too few of {cause}");
            ensure!(
                counted == wanted,
                "{cause}: {counted} counted, {wanted} dropped"
            );
        }
        Ok(())
    });
}

/// The rules that count the frames that reach processes of the node.
const COUNTERS: &str = r"
table inet seen {
    counter vip {}
    counter spoofed {}
    chain input {
        type filter hook input priority 0; policy accept;
        ip saddr 198.51.100.0/24 accept
        ip6 saddr 2001:db8:1::/48 accept
        ip daddr 10.96.0.2 tcp dport 443 counter name vip
        ip6 daddr fd00:96::2 tcp dport 443 counter name vip
        ip saddr 10.96.0.2 counter name spoofed
        ip6 saddr fd00:96::2 counter name spoofed
    }
}
";

fn nothing_gets_in(args: &[&str], counts: bool) {
    Node::test(Topology::Veth, |node| {
        let _agent = node.start_agent(&[args, &[ALLOW]].concat())?;
        node.netns.feed("nft -f -", COUNTERS)?;
        let wire = Wire::open(&node.uplink, "node")?;
        for family in Family::ALL {
            for frame in frames::corpus(family, sender(node, family)?, SEED + 2, COUNT) {
                wire.send(&frame.bytes)?;
            }
        }
        if counts {
            cmd::wait_until(TIMEOUT, "drops to be counted", || {
                let count = dropped(node, "outside")?;
                Ok((count > 100).then_some(()))
            })?;
        }
        for counter in ["vip", "spoofed"] {
            let text = node
                .netns
                .exec(&format!("nft list counter inet seen {counter}"))?;
            ensure!(text.contains("packets 0 "), "{counter}: {text}");
        }
        Ok(())
    });
}

#[test]
fn nothing_gets_in_with_tc() {
    nothing_gets_in(&["--backend=ebpf"], true);
}

#[test]
fn nothing_gets_in_with_clsact() {
    nothing_gets_in(&["--backend=ebpf", "--tc-attach=clsact"], true);
}

#[test]
fn nothing_gets_in_with_xdp() {
    nothing_gets_in(&["--backend=ebpf", "--guard-mode=xdp"], true);
}

#[test]
fn nothing_gets_in_with_nftables() {
    nothing_gets_in(&["--backend=nftables"], true);
}

#[test]
fn nothing_gets_in_with_iptables() {
    nothing_gets_in(&["--backend=iptables"], false);
}
