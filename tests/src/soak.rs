// SPDX-License-Identifier: Apache-2.0

//! Runs an agent with much work for a long time, and samples the resources that it holds whenever it is idle: memory,
//! descriptors, threads and BPF objects. None of them may grow.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::agent::{self, Agent, TRANSLATE};
use crate::bpf_objects::{BpfObjects, Counts};
use crate::kubeproxy::KubeProxy;
use crate::node::{Node, Topology};
use crate::proxy::Proxy;
use crate::streams::{all_end_intact, all_go_on, new_connections_work, open_many};
use crate::{Family, cmd, usage};

/// The number of connections that stream all the time.
const STREAMS: usize = 24;
/// The number of pods that are added and removed in each round.
const VISITORS: usize = 2;
/// The maximum time of a repair, with a margin for a loaded machine.
const REPAIR: Duration = Duration::from_secs(10);
/// The agent is idle if it has used no processor time for this long.
const IDLE: Duration = Duration::from_millis(300);
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// The interval between the agent's own reconcile passes.
const RESYNC: &str = "--sync-interval=10s";
/// The permitted growth of the resident memory, in percent.
const GROWTH: u64 = 5;
/// The minimum number of samples in a quarter of the run for a verdict.
const FEWEST: usize = 3;
/// The minimum number of samples of a run, so that enough remain after the warm-up, also on a slow machine.
const AT_LEAST: usize = 16;
/// The number of counts of open files for one sample, and the time between two.
const COUNTS: usize = 5;
const BETWEEN_COUNTS: Duration = Duration::from_millis(10);
/// The maximum number of rows of the table.
const ROWS: usize = 24;

/// The resources that the idle agent holds.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The time since the beginning of the run.
    pub at: Duration,
    /// The resident memory, in KiB.
    pub memory: u64,
    /// The number of open file descriptors.
    pub descriptors: usize,
    /// The number of threads.
    pub threads: usize,
    /// The agent's BPF objects in the kernel.
    pub bpf: Counts,
}

impl Sample {
    /// Returns the resources that a process holds now.
    ///
    /// # Errors
    /// Returns an error if the process has exited.
    pub fn of(pid: u32, at: Duration, bpf: Counts) -> Result<Self> {
        Ok(Self {
            at,
            memory: usage::resident_memory(pid)? / 1024,
            descriptors: held_files(pid)?,
            threads: usage::threads(pid)?,
            bpf,
        })
    }
}

/// Returns the smallest of a few counts of open files: an idle agent opens a socket for a moment about once a second, to
/// look at the proxy's listener.
fn held_files(pid: u32) -> Result<usize> {
    let mut fewest = usage::open_files(pid)?;
    for _ in 1..COUNTS {
        std::thread::sleep(BETWEEN_COUNTS);
        fewest = fewest.min(usage::open_files(pid)?);
    }
    Ok(fewest)
}

/// Runs an agent with the `ebpf` backend for this long, with a pause between two rounds of work.
///
/// # Errors
/// Returns an error if a step fails, or if a connection is lost.
pub fn soak(
    node: &mut Node,
    topology: Topology,
    (time, pause): (Duration, Duration),
    mut report: impl FnMut(&Sample),
) -> Result<Vec<Sample>> {
    // These rules of kube-proxy are not in nf_tables, whose ruleset is flushed now and then.
    KubeProxy::IptablesLegacy.install_without_masquerade(&node.netns)?;
    let agent = node.start_agent(&["--backend=ebpf", RESYNC, TRANSLATE[0], TRANSLATE[1]])?;
    let _proxy = Proxy::start(node)?;
    let streams = open_many(node, STREAMS)?;
    let begun = Instant::now();
    let mut objects = BpfObjects::default();
    let mut samples = Vec::new();
    while begun.elapsed() < time || samples.len() < AT_LEAST {
        round(node, topology, samples.len()).with_context(|| format!("round {}", samples.len()))?;
        std::thread::sleep(pause);
        let bpf = at_rest(node, &agent, &mut objects)?;
        let sample = Sample::of(agent.id(), begun.elapsed(), bpf)?;
        report(&sample);
        samples.push(sample);
    }
    all_go_on(&streams)?;
    all_end_intact(streams)?;
    Ok(samples)
}

/// Adds pods, connects on every path, interferes, runs `status` and `doctor`, and removes the pods.
fn round(node: &mut Node, topology: Topology, n: usize) -> Result<()> {
    for _ in 0..VISITORS {
        node.add_pod(topology)?;
    }
    new_connections_work(node)?;
    interfere(node, n)?;
    ask(node)?;
    new_connections_work(node)?;
    for _ in 0..VISITORS {
        node.remove_pod()?;
    }
    Ok(())
}

/// Removes an object of the agent, a different one in each round, and waits until the agent has recreated it.
fn interfere(node: &Node, n: usize) -> Result<()> {
    let vip = Family::V4.vip();
    let (doing, looking, sign) = match n % 3 {
        0 => (
            "nft flush ruleset".to_owned(),
            "nft list ruleset",
            "untrack the proxy's connections".to_owned(),
        ),
        1 => (
            format!("ip address del {vip}/32 dev lo"),
            "ip -o address show dev lo",
            vip.to_string(),
        ),
        _ => (
            "nft delete table ip6 proxy-agent".to_owned(),
            "nft list tables",
            "table ip6 proxy-agent".to_owned(),
        ),
    };
    node.netns.exec(&doing)?;
    cmd::wait_until(REPAIR, "the repair", || {
        Ok(node.netns.exec(looking)?.contains(&sign).then_some(()))
    })
    .with_context(|| format!("after {doing}"))
}

/// Runs the commands that operators and probes run.
fn ask(node: &Node) -> Result<()> {
    for question in ["status", "doctor"] {
        let mut command = node.netns.command(agent::binary()?);
        command.arg(question);
        command.arg(format!("--run-dir={}", node.run_dir().display()));
        // The command may report an object that was just removed.
        let output = node.run(command)?;
        ensure!(!output.stdout.is_empty(), "{question}: {output:?}");
    }
    Ok(())
}

/// Waits until the agent is idle and the kernel has freed unused objects.
fn at_rest(node: &Node, agent: &Agent, objects: &mut BpfObjects) -> Result<Counts> {
    agent.wait_until_at_rest((IDLE, IDLE_TIMEOUT), || objects.take(node))
}

/// Returns the samples after the warm-up, which is the first fifth.
fn warm(samples: &[Sample]) -> &[Sample] {
    &samples[samples.len() / 5..]
}

fn median(samples: &[Sample]) -> u64 {
    let mut memory: Vec<u64> = samples.iter().map(|sample| sample.memory).collect();
    memory.sort_unstable();
    memory[memory.len() / 2]
}

/// Checks that nothing has grown: descriptors, threads and BPF objects are the same in all samples after the warm-up,
/// and the median of the memory in the last quarter is not higher than in the first.
///
/// # Errors
/// Returns an error if a resource has grown, or if there are too few samples.
pub fn is_flat(samples: &[Sample]) -> Result<()> {
    let samples = warm(samples);
    let quarter = samples.len() / 4;
    ensure!(quarter >= FEWEST, "too few samples: {}", samples.len());
    let first = &samples[0];
    for sample in samples {
        let at = sample.at;
        let (was, is) = (first.descriptors, sample.descriptors);
        ensure!(is == was, "{is} open files after {at:.1?}, {was} at first");
        let (was, is) = (first.threads, sample.threads);
        ensure!(is == was, "{is} threads after {at:.1?}, {was} at first");
        let (was, is) = (&first.bpf, &sample.bpf);
        ensure!(is == was, "after {at:.1?}:\n{is}\nat first:\n{was}");
    }
    let begin = median(&samples[..quarter]);
    let end = median(&samples[samples.len() - quarter..]);
    ensure!(
        end * 100 <= begin * (100 + GROWTH),
        "the resident memory has grown from {begin} to {end} KiB"
    );
    Ok(())
}

/// Returns the samples as a table, and the medians.
#[must_use]
pub fn table(samples: &[Sample]) -> String {
    let mut text =
        String::from("    time  resident KiB  files  threads  BPF programs  maps  links\n");
    let step = samples.len().div_ceil(ROWS).max(1);
    let last = samples.len().saturating_sub(1);
    for (_, sample) in samples
        .iter()
        .enumerate()
        .filter(|(n, _)| n % step == 0 || *n == last)
    {
        let total =
            |counts: &std::collections::BTreeMap<String, usize>| -> usize { counts.values().sum() };
        let _ = writeln!(
            text,
            "{:>6} s  {:>12}  {:>5}  {:>7}  {:>12}  {:>4}  {:>5}",
            sample.at.as_secs(),
            sample.memory,
            sample.descriptors,
            sample.threads,
            total(&sample.bpf.programs),
            total(&sample.bpf.maps),
            total(&sample.bpf.links),
        );
    }
    let warm = warm(samples);
    let quarter = warm.len() / 4;
    if quarter > 0 {
        let (first, last) = (&warm[..quarter], &warm[warm.len() - quarter..]);
        let _ = writeln!(
            text,
            "{} samples; median of the resident memory after the warm-up: first quarter {} KiB, \
             last quarter {} KiB",
            samples.len(),
            median(first),
            median(last)
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(grow: impl Fn(u64, &mut Sample)) -> Vec<Sample> {
        (0..40)
            .map(|n| {
                let mut sample = Sample {
                    at: Duration::from_secs(n),
                    memory: 10_000 + n % 3,
                    descriptors: 20,
                    threads: 1,
                    bpf: Counts::default(),
                };
                grow(n, &mut sample);
                sample
            })
            .collect()
    }

    #[test]
    fn what_stays_is_flat() {
        is_flat(&samples(|_, _| {})).expect("nothing grows");
        // The memory grows only during the warm-up.
        is_flat(&samples(|n, sample| sample.memory -= 5000 / (n + 1))).expect("it ends");
    }

    #[test]
    fn what_grows_is_found() {
        let growing: [fn(u64, &mut Sample); 4] = [
            |n, sample| sample.memory += 30 * n,
            |n, sample| sample.descriptors += usize::from(n == 39),
            |n, sample| sample.threads += usize::from(n == 20),
            |n, sample| {
                let programs = &mut sample.bpf.programs;
                programs.insert("vip_ingress".to_owned(), usize::from(n > 30));
            },
        ];
        for (n, grow) in growing.into_iter().enumerate() {
            assert!(is_flat(&samples(grow)).is_err(), "{n}");
        }
    }

    #[test]
    fn too_few_samples_are_an_error() {
        assert!(is_flat(&samples(|_, _| {})[..13]).is_err());
        assert!(is_flat(&[]).is_err());
    }

    #[test]
    fn the_table_ends_with_the_last_sample() {
        let text = table(&samples(|_, _| {}));
        assert!(text.contains("\n    39 s  "), "{text}");
        assert!(text.lines().count() <= ROWS + 3, "{text}");
    }
}
