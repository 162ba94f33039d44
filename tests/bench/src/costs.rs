// SPDX-License-Identifier: Apache-2.0

//! Time and memory that the agent itself uses: to start, to run, to repair, and with many links.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::Effort;
use super::events::{self, Event};
use super::host::add_links;
use super::result::Cost;
use tests::agent::{self, Agent, TRANSLATE};
use tests::cmd;
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology};

/// The names of costs that bars stand for.
pub const START: &str = "start to ready, ebpf";
/// See [`START`].
pub const MEMORY: &str = "resident memory, ebpf";
/// See [`START`].
pub const IDLE: &str = "processor time while idle";
/// See [`START`]: each kind of drift begins with this.
pub const REPAIR: &str = "repair: ";
/// Name of the cost that is reported for each number of links.
const RESYNC: &str = "processor time of a pass with nothing to do";

const MIB: f64 = 1024.0 * 1024.0;
/// A minute, with the pass that each has.
const IDLE_TIME: Duration = Duration::from_secs(65);
/// Without processor time for this long, the agent is at rest.
const REST: Duration = Duration::from_millis(150);
/// How long programs may take to be attached to five thousand links, one RCU grace period each.
const ATTACHED: Duration = Duration::from_mins(5);
const TIMEOUT: Duration = Duration::from_mins(3);
const LOOK: Duration = Duration::from_micros(200);

/// The agent's default: tcx, and filters until it is the turn of a link.
pub const AUTO: &str = "auto";

/// The name of the cost of starting with so many links.
#[must_use]
pub fn attach(links: usize, mode: &str) -> String {
    format!("start to ready with {links} links, {mode}")
}

/// The name of the cost of a pass with nothing to do.
#[must_use]
pub fn resync(links: usize) -> String {
    format!("{RESYNC}, {links} links")
}

/// Measures.
///
/// # Errors
/// When the agent does not do what it should.
pub fn run(mut effort: Effort, mut progress: impl FnMut(&str)) -> Result<Vec<Cost>> {
    if effort.short {
        // Most of the time is waiting for the agent to be at rest.
        effort.rounds = effort.rounds.div_ceil(2);
    }
    let mut costs = vec![Cost {
        what: "size of the program".to_owned(),
        unit: "MiB".to_owned(),
        samples: vec![megabytes(agent::binary()?.metadata()?.len())],
    }];
    // It idles in its own node while the others are measured.
    let idle_node = idle_node()?;
    let idle = idle_node.start_agent(&["--backend=ebpf", "--sync-interval=1m0s"])?;
    at_rest(&idle)?;
    let (since, used) = (Instant::now(), idle.cpu_time()?);

    progress("starts");
    starts(effort, &mut costs)?;
    progress("repairs");
    repairs(effort, &mut costs)?;
    let sizes: &[usize] = if effort.short {
        &[1, 100]
    } else {
        &[1, 100, 1_000, 5_000]
    };
    for links in sizes {
        progress(&format!("{links} links"));
        with_links(*links, &mut costs)?;
    }
    if !effort.short {
        progress("idle");
        std::thread::sleep(IDLE_TIME.saturating_sub(since.elapsed()));
        let used = idle.cpu_time()?.saturating_sub(used).as_secs_f64();
        push(
            &mut costs,
            IDLE,
            "%",
            vec![100.0 * used / since.elapsed().as_secs_f64()],
        );
    }
    Ok(costs)
}

fn push(costs: &mut Vec<Cost>, what: impl Into<String>, unit: &str, samples: Vec<f64>) {
    costs.push(Cost {
        what: what.into(),
        unit: unit.to_owned(),
        samples: samples
            .into_iter()
            .map(|sample| (sample * 1000.0).round() / 1000.0)
            .collect(),
    });
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[expect(clippy::cast_precision_loss, reason = "far less than 2^52 bytes")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / MIB
}

fn idle_node() -> Result<Node> {
    let node = Node::with_pods(Topology::Veth, 2)?;
    KubeProxy::Nftables.install(&node.netns)?;
    Ok(node)
}

/// Waits until the agent does nothing more.
fn at_rest(agent: &Agent) -> Result<()> {
    agent.wait_until_at_rest((REST, TIMEOUT), || Ok(()))
}

fn start(node: &Node, args: &[&str]) -> Result<(Agent, f64)> {
    let begun = Instant::now();
    let agent = node.spawn_agent(args)?;
    agent
        .wait_until_ready_within(ATTACHED)
        .with_context(|| format!("{args:?}\n{}", node.logs()))?;
    Ok((agent, milliseconds(begun.elapsed())))
}

/// Starts on a node that has nothing of the agent, starts on one where everything is in place, and what
/// is resident then.
fn starts(effort: Effort, costs: &mut Vec<Cost>) -> Result<()> {
    let node = idle_node()?;
    let plain: &[&str] = &["--backend=ebpf"];
    let services = &["--backend=ebpf", TRANSLATE[0], TRANSLATE[1]];
    let nftables = &["--backend=nftables"];
    for (name, args) in [
        ("ebpf", plain),
        ("ebpf with --service-address", services),
        ("nftables", nftables),
    ] {
        let (mut first, mut again) = (Vec::new(), Vec::new());
        let (mut memory, mut peak) = (Vec::new(), Vec::new());
        for _ in 0..effort.rounds {
            let (mut agent, took) = start(&node, args)?;
            first.push(took);
            agent.stop(libc::SIGTERM)?;
            let (agent, took) = start(&node, args)?;
            again.push(took);
            at_rest(&agent)?;
            memory.push(megabytes(agent.resident_memory()?));
            peak.push(megabytes(agent.peak_memory()?));
            drop(agent);
            clean_up(&node)?;
        }
        push(costs, format!("start to ready, {name}"), "ms", first);
        push(costs, format!("restart to ready, {name}"), "ms", again);
        push(costs, format!("resident memory, {name}"), "MiB", memory);
        push(
            costs,
            format!("most memory at any time, {name}"),
            "MiB",
            peak,
        );
    }
    Ok(())
}

/// Removes everything of the agent's.
fn clean_up(node: &Node) -> Result<()> {
    let mut command = node.netns.command(agent::binary()?);
    command.arg("cleanup");
    command.arg(format!("--run-dir={}", node.run_dir().display()));
    command.arg(format!("--bpffs={}", node.agent_bpffs().display()));
    cmd::run(&mut command, "").map(drop)
}

/// A kind of drift, with the events between which it is measured.
type Drift = (&'static str, (Event, Event), &'static str);

const ADDRESS: Drift = (
    "the VIP was removed",
    (Event::DeletedAddress, Event::NewAddress),
    "ip address del 10.96.0.2/32 dev vips",
);
const DOWN: Drift = (
    "the VIP's link was set down",
    (Event::LinkDown, Event::LinkUp),
    "ip link set vips down",
);
const TABLE: Drift = (
    "our table was deleted",
    (Event::DeletedTable, Event::NewTable),
    "nft delete table ip proxy-agent",
);

fn repairs(effort: Effort, costs: &mut Vec<Cost>) -> Result<()> {
    let node = idle_node()?;
    node.netns.ip("link add vips type ifb\n")?;
    let args = &[
        "--backend=ebpf",
        "--interface=vips",
        TRANSLATE[0],
        TRANSLATE[1],
    ];
    let agent = node.start_agent(args)?;
    for (what, events, command) in [ADDRESS, DOWN, TABLE] {
        let samples = repaired_changes(effort, &node, &agent, (what, events, command))?;
        push(costs, format!("{REPAIR}{what}"), "ms", samples);
    }
    let pins = node.agent_bpffs();
    for (what, pin) in [
        ("the program of a link was detached", node.link_pin("pod0")?),
        (
            "a program of the root cgroup was detached",
            pins.join("sockets/vip_connect4"),
        ),
        ("a pinned map was removed", pins.join("SERVICES")),
    ] {
        let samples = (0..effort.rounds).map(|_| {
            at_rest(&agent)?;
            repaired_pin(&pin)
        });
        let samples = samples.collect::<Result<_>>().context(what)?;
        push(costs, format!("{REPAIR}{what}"), "ms", samples);
    }
    drop(agent);
    clean_up(&node)?;
    rules(effort, costs)
}

/// Makes a change, again and again; for each how many milliseconds are between the kernel's notification of it and that of its
/// repair.
///
/// # Errors
/// One is not repaired in time.
fn repaired_changes(
    effort: Effort,
    node: &Node,
    agent: &Agent,
    (what, events, command): Drift,
) -> Result<Vec<f64>> {
    let samples = (0..effort.rounds).map(|_| {
        at_rest(agent)?;
        let interfere = || node.netns.exec(command).map(drop);
        let between = events::between(&node.netns, events, interfere)?;
        Ok(milliseconds(between))
    });
    samples.collect::<Result<_>>().context(what)
}

/// Removes a pin, which detaches the pinned link; returns when it is there again.
fn repaired_pin(pin: &Path) -> Result<f64> {
    let start = Instant::now();
    std::fs::remove_file(pin).with_context(|| format!("removing {}", pin.display()))?;
    loop {
        if pin.exists() {
            return Ok(milliseconds(start.elapsed()));
        }
        anyhow::ensure!(start.elapsed() < TIMEOUT, "{} stays away", pin.display());
        std::thread::sleep(LOOK);
    }
}

/// The other backends.
fn rules(effort: Effort, costs: &mut Vec<Cost>) -> Result<()> {
    let chain = "iptables-nft -t raw -F OUTPUT";
    for (backend, (what, events, command)) in [
        ("nftables", TABLE),
        (
            "iptables",
            (
                "rules were flushed",
                (Event::DeletedRule, Event::NewRule),
                chain,
            ),
        ),
    ] {
        let node = Node::with_pods(Topology::Veth, 1)?;
        KubeProxy::IptablesNft.install(&node.netns)?;
        let agent = node.start_agent(&[&format!("--backend={backend}")])?;
        let samples = repaired_changes(effort, &node, &agent, (what, events, command))?;
        push(costs, format!("{REPAIR}{what}, {backend}"), "ms", samples);
        drop(agent);
    }
    Ok(())
}

/// Attaches to many links, in each way, and looks at them again.
fn with_links(links: usize, costs: &mut Vec<Cost>) -> Result<()> {
    let node = Node::new()?;
    // The uplink is one.
    add_links(&node.netns, links - 1)?;
    for mode in [AUTO, "tcx", "clsact"] {
        let attach_mode = format!("--tc-attach={mode}");
        let args = &["--backend=ebpf", &attach_mode];
        let (mut agent, took) = start(&node, args)?;
        push(costs, attach(links, mode), "ms", vec![took]);
        if mode == "tcx" {
            let passes = (0..5).map(|_| pass(&agent)).collect::<Result<_>>()?;
            push(costs, resync(links), "ms", passes);
            push(
                costs,
                format!("resident memory, {links} links"),
                "MiB",
                vec![megabytes(agent.resident_memory()?)],
            );
            agent.stop(libc::SIGTERM)?;
            let (again, took) = start(&node, args)?;
            push(
                costs,
                format!("restart to ready with {links} links, {mode}"),
                "ms",
                vec![took],
            );
            agent = again;
        }
        agent.stop(libc::SIGTERM)?;
        clean_up(&node)?;
    }
    Ok(())
}

/// The processor time of a pass that finds nothing to do.
fn pass(agent: &Agent) -> Result<f64> {
    at_rest(agent)?;
    let before = agent.cpu_time()?;
    agent.signal(libc::SIGHUP)?;
    cmd::wait_until(TIMEOUT, "the agent to look", || {
        Ok((agent.cpu_time()? > before).then_some(()))
    })?;
    at_rest(agent)?;
    Ok(milliseconds(agent.cpu_time()?.saturating_sub(before)))
}
