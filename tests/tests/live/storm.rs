// SPDX-License-Identifier: Apache-2.0

//! Other programs interfere in every way at once, in random order, while connections are live on every path. The agent
//! keeps up with them: shortly after the last interference everything is as after a first start, and no connection is
//! lost.
//!
//! Connections of the pod whose link is moved and renamed are left out. Translated connections survive as long as
//! either the rules or the programs on links exist: without both, no object restores the address that the client knows
//! in the replies, so a storm removes only the ones or the others. For the same reason kube-proxy's rules are legacy
//! ones if the whole ruleset of nf_tables is flushed: without a NAT chain the kernel stops translating connections that
//! conntrack has recorded, with the agent and without.
//!
//! `PROXY_AGENT_TEST_STORM=SECONDS` determines how long a storm lasts, `PROXY_AGENT_TEST_SEED=N` repeats one.

use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use tests::agent::{Agent, TRANSLATE};
use tests::interference::{self, Interference, VIP_LINK};
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology};
use tests::proxy::Proxy;
use tests::stream::Live;
use tests::streams::{all_end_intact, all_go_on, new_connections_work, open};
use tests::{artifacts, cmd, slow_machine, snapshot};

/// The agent's target is a second; a loaded machine is allowed more.
const CONVERGED: Duration = Duration::from_secs(3);
/// The range of the pause between two bursts of interferences, in milliseconds.
const PAUSES: std::ops::Range<u64> = 5..250;
/// The factor for the length of a storm under full load.
const FULL: u32 = 6;
/// The maximum number of lines in the agent's log for each interference.
const LINES_PER_INTERFERENCE: usize = 40;

struct Storm {
    kube_proxy: KubeProxy,
    args: &'static [&'static str],
    seconds: u64,
    without: &'static [Interference],
}

/// A `splitmix64` generator.
struct Dice(u64);

impl Dice {
    /// Returns a number below `end`.
    fn below(&mut self, end: usize) -> Result<usize> {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Ok(usize::try_from((z ^ (z >> 31)) % u64::try_from(end)?)?)
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let random = now.map_or(1, |now| u64::from(now.subsec_nanos()));
    number("PROXY_AGENT_TEST_SEED").unwrap_or(random)
}

impl Storm {
    fn rage(&self) {
        Node::test(Topology::Veth, |node| {
            let seed = seed();
            println!("seed {seed}");
            node.netns.ip(&format!("link add {VIP_LINK} type ifb\n"))?;
            self.kube_proxy.install_without_masquerade(&node.netns)?;
            let interface = format!("--interface={VIP_LINK}");
            let agent = node.start_agent(&[self.args, &[&interface]].concat())?;
            let _proxy = Proxy::start(node)?;
            let streams = open(node)?;
            // No connection of this pod has to survive.
            node.add_pod(Topology::Veth)?;
            self.wait_until_converged(node, None).context("at first")?;
            let first = artifacts::everything(node)?;
            all_go_on(&streams).context("before the storm")?;
            let lines = agent.log().lines().count();

            let (interferences, last) = self.blow(node, &mut Dice(seed))?;
            let converged = self.wait_until_converged(node, Some(&first));
            let took = last.elapsed();
            converged.with_context(|| format!("seed {seed}"))?;
            let lines = agent.log().lines().count() - lines;
            println!(
                "{interferences} interferences in {} s; converged after {:.0} ms (to be below 1000); {lines} lines of log",
                self.seconds(),
                took.as_secs_f64() * 1000.0
            );
            self.check(node, &agent, streams)
                .with_context(|| format!("seed {seed}"))?;
            ensure!(
                lines < interferences * LINES_PER_INTERFERENCE,
                "{lines} lines of log"
            );
            Ok(())
        });
    }

    fn seconds(&self) -> u64 {
        let usual = self.seconds * u64::from(slow_machine::load(FULL));
        number("PROXY_AGENT_TEST_STORM").unwrap_or(usual)
    }

    /// Interferes, and returns the number of interferences and the time of the last one.
    fn blow(&self, node: &Node, dice: &mut Dice) -> Result<(usize, Instant)> {
        let mut interferences = interference::ALL.to_vec();
        interferences.retain(|interference| !self.without.contains(interference));
        let end = Instant::now() + Duration::from_secs(self.seconds());
        let mut count = 0;
        while Instant::now() < end {
            let mut burst = Vec::new();
            for _ in 0..=dice.below(4)? {
                let interference = interferences[dice.below(interferences.len())?];
                if !burst.contains(&interference) {
                    burst.push(interference);
                }
            }
            count += burst.len();
            self.at_once(node, &burst)?;
            let pause = dice.below(usize::try_from(PAUSES.end - PAUSES.start)?)?;
            let pause = Duration::from_millis(PAUSES.start + u64::try_from(pause)?);
            std::thread::sleep(pause);
        }
        // The ACCEPT rules depend on kube-proxy's rules, and the kernel sends no notification of changes of legacy
        // tables.
        self.at_once(node, &[Interference::KubeProxyAgain])?;
        // The kernel sends no notification of this one; the agent notices it at the next notification.
        let last = [
            Interference::RunDirectory,
            Interference::FlushRuleset,
            Interference::DeleteVips,
            Interference::DetachTcx,
        ];
        let last: Vec<_> = last
            .into_iter()
            .filter(|interference| interferences.contains(interference))
            .collect();
        self.at_once(node, &last)?;
        Ok((count + last.len(), Instant::now()))
    }

    fn at_once(&self, node: &Node, burst: &[Interference]) -> Result<()> {
        std::thread::scope(|scope| {
            let interferences: Vec<_> = burst
                .iter()
                .map(|interference| scope.spawn(|| interference.happen(node, self.kube_proxy)))
                .collect();
            for interference in interferences {
                interference.join().expect("it does not panic")?;
            }
            anyhow::Ok(())
        })
        .with_context(|| format!("{burst:?}"))
    }

    /// Waits until a dry run finds nothing to do, and the agent's objects are as they were at
    /// first.
    fn wait_until_converged(&self, node: &Node, first: Option<&str>) -> Result<()> {
        let interface = format!("--interface={VIP_LINK}");
        let dry_run = [self.args, &[&interface, "--dry-run"]].concat();
        let mut difference = String::new();
        cmd::wait_until(CONVERGED, "the node to be as desired", || {
            let output = node.run_agent(&dry_run)?;
            difference = String::from_utf8_lossy(&output.stdout).into_owned();
            if !difference.contains("nothing to do") {
                return Ok(None);
            }
            let now = artifacts::everything(node)?;
            let changed = first.and_then(|first| snapshot::difference(first, &now));
            difference = changed.unwrap_or_default();
            Ok(difference.is_empty().then_some(()))
        })
        .with_context(|| format!("still: {difference}"))
    }

    fn check(&self, node: &mut Node, agent: &Agent, streams: Vec<Live>) -> Result<()> {
        ensure!(
            fs::exists(format!("/proc/{}", agent.id()))?,
            "the agent has ended"
        );
        self.kube_proxy.install_without_masquerade(&node.netns)?;
        all_go_on(&streams).context("after the storm")?;
        all_end_intact(streams)?;
        // Its routes were removed with its link.
        node.pods.pop();
        new_connections_work(node)
    }
}

/// A backend that polls gets no notification of changes in nf_tables or iptables.
const ASKING: &str = "--sync-interval=500ms";

#[test]
fn ebpf() {
    Storm {
        kube_proxy: KubeProxy::IptablesLegacy,
        args: &["--backend=ebpf"],
        seconds: 20,
        without: &[],
    }
    .rage();
}

#[test]
fn ebpf_by_clsact() {
    Storm {
        kube_proxy: KubeProxy::Nftables,
        args: &["--backend=ebpf", "--tc-attach=clsact"],
        seconds: 10,
        without: &[Interference::FlushRuleset],
    }
    .rage();
}

#[test]
fn translation_without_programs() {
    Storm {
        kube_proxy: KubeProxy::IptablesLegacy,
        args: &["--backend=ebpf", TRANSLATE[0], TRANSLATE[1]],
        seconds: 10,
        without: &[Interference::FlushRuleset, Interference::DeleteTables],
    }
    .rage();
}

#[test]
fn translation_without_rules() {
    Storm {
        kube_proxy: KubeProxy::IptablesLegacy,
        args: &["--backend=ebpf", TRANSLATE[0], TRANSLATE[1]],
        seconds: 10,
        without: &[
            Interference::DetachTcx,
            Interference::DeleteClsact,
            Interference::RemountBpffs,
        ],
    }
    .rage();
}

#[test]
fn nftables() {
    Storm {
        kube_proxy: KubeProxy::IptablesLegacy,
        args: &["--backend=nftables"],
        seconds: 10,
        without: &[],
    }
    .rage();
}

#[test]
fn iptables() {
    Storm {
        kube_proxy: KubeProxy::IptablesLegacy,
        args: &["--backend=iptables", ASKING],
        seconds: 10,
        without: &[],
    }
    .rage();
}
