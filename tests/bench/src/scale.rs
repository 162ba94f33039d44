// SPDX-License-Identifier: Apache-2.0

//! The same work on a node that has little and on one that has much: entries of conntrack, rules of
//! kube-proxy, links, decided connections.

use std::fmt::Write as _;
use std::net::TcpStream;

use anyhow::{Context as _, Result};

use super::Effort;
use super::host::{Host, Way, add_links};
use super::paths::empty;
use super::result::Cell;
use super::traffic::{self, Work};
use super::variant::Variant;
use tests::kubeproxy::KubeProxy;
use tests::netns::Netns;
use tests::{Family, conntrack, ctnetlink};

/// The names of the numerous objects, in results.
pub const ENTRIES: &str = "conntrack entries";
/// See [`ENTRIES`].
pub const RULES: &str = "kube-proxy rules";
/// See [`ENTRIES`].
pub const LINKS: &str = "links";
/// See [`ENTRIES`].
pub const ALIVE: &str = "connections alive";
/// See [`ENTRIES`].
pub const DECIDED: &str = "decided connections";

const MANY_ENTRIES: u32 = 100_000;
const MANY_RULES: u32 = 5_000;
const MANY_LINKS: u32 = 1_000;
const MANY_ALIVE: u32 = 1_000;
const MANY_DECIDED: u32 = 100_000;
/// Room for them in the map, on the node with few of them too.
const ROOM: &str = "--max-connections=262144";

/// A node of some size.
struct Fixture {
    of: &'static str,
    size: u32,
    host: Host,
    /// Kept open.
    _alive: Vec<TcpStream>,
}

/// The measurements on each node.
const PLAN: [(Work, Way); 4] = [
    (Work::Exchange, Way::Veth),
    (Work::Connect, Way::Veth),
    (Work::Exchange, Way::Unrelated),
    (Work::Connect, Way::Unrelated),
];

/// Measures.
///
/// # Errors
/// When a variant does not work.
pub fn run(effort: Effort, mut progress: impl FnMut(&str)) -> Result<Vec<Cell>> {
    let mut nodes = Vec::new();
    // In CI links alone would take longer than all the rest.
    if !effort.short {
        for variant in [
            Variant::Tracked,
            Variant::KubeProxy,
            Variant::Ebpf,
            Variant::Service,
        ] {
            progress(&format!(
                "{MANY_RULES} rules, {MANY_LINKS} links: {variant}"
            ));
            nodes.push(with_rules(variant, 1)?);
            nodes.push(with_rules(variant, MANY_RULES)?);
            nodes.push(with_links(variant, 1)?);
            nodes.push(with_links(variant, MANY_LINKS)?);
        }
    }
    for variant in [Variant::Ebpf, Variant::Service] {
        progress(&format!("{MANY_DECIDED} decided connections: {variant}"));
        if !effort.short {
            nodes.push(with_alive(variant, 1)?);
            nodes.push(with_alive(variant, MANY_ALIVE)?);
        }
        nodes.push(with_decided(variant, 1)?);
        nodes.push(with_decided(variant, MANY_DECIDED)?);
    }
    let mut cells: Vec<Cell> = Vec::new();
    for (work, way) in PLAN {
        for node in &nodes {
            cells.push(cell(node.host.variant, (node.of, node.size), way, work));
        }
    }
    for round in 0..=effort.rounds {
        for (n, (work, way)) in PLAN.into_iter().enumerate() {
            for turn in 0..nodes.len() {
                let turn = (turn + round + n) % nodes.len();
                let sample = nodes[turn].host.measure(way, Family::V4, work, effort)?;
                if round > 0 {
                    cells[n * nodes.len() + turn].push(sample);
                }
            }
        }
        progress(&format!("round {round} of {}", effort.rounds));
    }
    drop(nodes);
    cells.extend(with_entries(effort, progress)?);
    Ok(cells)
}

fn cell(variant: Variant, (of, size): (&str, u32), way: Way, work: Work) -> Cell {
    Cell {
        of: of.to_owned(),
        size,
        ..empty(variant, way, Family::V4, work)
    }
}

/// Conntrack's table is one for all namespaces, so that a node with few entries would find those of
/// the other one too: here each node has few and many in turn.
fn with_entries(effort: Effort, mut progress: impl FnMut(&str)) -> Result<Vec<Cell>> {
    let variants = [
        Variant::Tracked,
        Variant::Native,
        Variant::Ebpf,
        Variant::Service,
    ];
    let mut hosts = Vec::new();
    for variant in variants {
        progress(&format!("{MANY_ENTRIES} entries of conntrack: {variant}"));
        hosts.push(Host::new(variant, &[])?);
    }
    let mut cells = Vec::new();
    for host in &hosts {
        for size in [1, MANY_ENTRIES] {
            for (work, way) in PLAN {
                cells.push(cell(host.variant, (ENTRIES, size), way, work));
            }
        }
    }
    for round in 0..=effort.rounds {
        let mut cell = cells.iter_mut();
        for host in &hosts {
            for size in [1, MANY_ENTRIES] {
                if size > 1 {
                    ctnetlink::add(&host.node.netns, size)?;
                }
                for (work, way) in PLAN {
                    let sample = host.measure(way, Family::V4, work, effort)?;
                    let cell = cell.next().context("a cell for each sample")?;
                    if round > 0 {
                        cell.push(sample);
                    }
                }
            }
            conntrack::flush(&host.node.netns)?;
        }
        progress(&format!("round {round} of {}", effort.rounds));
    }
    Ok(cells)
}

fn with_rules(variant: Variant, size: u32) -> Result<Fixture> {
    let host = Host::prepared(variant, &[], |node| {
        KubeProxy::IptablesNft.install(&node.netns)?;
        add_rules(&node.netns, size)
    })?;
    Ok(Fixture {
        of: RULES,
        size,
        host,
        _alive: Vec::new(),
    })
}

/// Rules of other Services, before that of ours.
fn add_rules(node: &Netns, count: u32) -> Result<()> {
    let mut rules = String::from("*nat\n");
    for n in 1..count {
        let (high, low) = (n / 250, n % 250 + 1);
        writeln!(
            rules,
            "-I KUBE-SERVICES -d 10.97.{high}.{low}/32 -p tcp -m comment --comment \"default/s{n}\" \
             -m tcp --dport 80 -j KUBE-SVC-NPX46M4PTMTKRN6Y"
        )?;
    }
    rules.push_str("COMMIT\n");
    node.feed("iptables-nft-restore --noflush --wait=10", &rules)
        .map(drop)
}

fn with_links(variant: Variant, size: u32) -> Result<Fixture> {
    let host = Host::prepared(variant, &[], |node| {
        KubeProxy::Nftables.install(&node.netns)?;
        if size > 1 {
            add_links(&node.netns, usize::try_from(size)?)?;
        }
        Ok(())
    })?;
    Ok(Fixture {
        of: LINKS,
        size,
        host,
        _alive: Vec::new(),
    })
}

/// Real ones, half of them of the pod behind the bridge.
fn with_alive(variant: Variant, size: u32) -> Result<Fixture> {
    let host = Host::new(variant, &[])?;
    let mut alive = Vec::new();
    let half = usize::try_from(size)? / 2;
    for way in [Way::Veth, Way::Bridge] {
        let to = variant.target(Family::V4);
        alive.extend(traffic::keep_open(host.from(way), to, half)?);
    }
    Ok(Fixture {
        of: ALIVE,
        size,
        host,
        _alive: alive,
    })
}

/// Members of the set as strangers' connections would have made them.
fn with_decided(variant: Variant, size: u32) -> Result<Fixture> {
    let host = Host::new(variant, &[ROOM])?;
    let vip = Family::V4.vip_socket();
    let members: Vec<_> = (1..size)
        .map(|n| {
            let (low, port) = (n / 50_000, n % 50_000 + 1024);
            format!("198.18.0.{low} . {port} . {} . {}", vip.ip(), vip.port())
        })
        .collect();
    for members in members.chunks(1000) {
        let line = format!(
            "add element ip proxy-agent decided {{ {} }}\n",
            members.join(", ")
        );
        host.node.netns.feed("nft -f -", &line)?;
    }
    Ok(Fixture {
        of: DECIDED,
        size,
        host,
        _alive: Vec::new(),
    })
}
