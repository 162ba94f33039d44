// SPDX-License-Identifier: Apache-2.0

//! The demo: runs the same node three times, without an agent, with stateless NOTRACK rules and with our agent; sends
//! real TLS requests on every path to the proxy; and prints a table of the results. In the last part the conntrack
//! table is full.

mod full_table;
mod neighbour;
mod requests;
mod table;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use neighbour::Neighbour;
use requests::Row;
use tests::agent::{self, Agent, TRANSLATE};
use tests::degraded_host::Missing;
use tests::kubeproxy::KubeProxy;
use tests::node::{Node, Topology};
use tests::proxy::Proxy;
use tests::{Family, conntrack, signals};

/// The number of requests on each path; the latency shown is their median.
const REQUESTS: usize = 5;

/// One third of the table: one of the three nodes.
#[derive(Debug, Clone, Copy)]
struct Column {
    title: &'static str,
    /// The agent's flags, if there is an agent.
    args: Option<&'static [&'static str]>,
    /// The kernel feature or tool that is hidden from the agent.
    missing: Option<Missing>,
    /// True if the agent translates the ClusterIP.
    translates: bool,
}

const COLUMNS: [Column; 3] = [
    Column {
        title: "no agent",
        args: None,
        missing: None,
        translates: false,
    },
    Column {
        title: "stateless NOTRACK rules",
        args: Some(&["--backend=iptables", "--guard=off", "--cleanup"]),
        // With ipset, the rules would decide per connection.
        missing: Some(Missing::Ipset),
        translates: false,
    },
    Column {
        title: "proxy-agent",
        args: Some(&["--backend=ebpf", "--cleanup"]),
        missing: None,
        translates: true,
    },
];

fn main() -> ExitCode {
    if let Some(arg) = std::env::args().nth(1) {
        println!(
            "Usage: demo\n\nMakes a node with two pods in network namespaces, connects to a proxy on its \
             VIP\nwithout an agent, with stateless rules and with proxy-agent, and compares; then fills the \
             node's\nconntrack table and tries again. Needs root; \
             touches nothing outside of its namespaces and leaves nothing behind."
        );
        return ExitCode::from(if ["-h", "--help"].contains(&arg.as_str()) {
            0
        } else {
            2
        });
    }
    signals::run_to_verdict("\nThe demo failed", demo)
}

/// Runs the demo and returns true if our agent's column is as expected.
fn demo() -> Result<bool> {
    let start = Instant::now();
    // SAFETY: geteuid has no side effects.
    let user = unsafe { libc::geteuid() };
    ensure!(user == 0, "network namespaces need root: run it with sudo");
    println!("The agent is {}", agent::binary()?.display());
    let mut rows = Vec::new();
    let mut excerpts = Vec::new();
    let mut neighbours = Vec::new();
    for (n, column) in COLUMNS.iter().enumerate() {
        println!("\n[{}/{}] {}", n + 1, COLUMNS.len() + 1, column.title);
        let (column_rows, excerpt, neighbour) = measure(column).with_context(|| column.title)?;
        rows.push(column_rows);
        excerpts.push((column.title, excerpt));
        neighbours.push((column.title, neighbour));
    }
    let acts = COLUMNS.len() + 1;
    println!(
        "\n[{acts}/{acts}] the conntrack table is full: HAProxy on the VIP, an API server behind the uplink"
    );
    let [without, with] = [&COLUMNS[0], &COLUMNS[COLUMNS.len() - 1]]
        .map(|column| full_table::measure(column).with_context(|| column.title));
    let (without, with) = (without?, with?);
    println!();
    print!(
        "{}",
        table::render(&COLUMNS.map(|column| column.title), &rows)
    );
    println!("\nThe first pod's connections in the node's conntrack table, IPv4:");
    for (title, excerpt) in &excerpts {
        println!("  {title}:");
        for line in excerpt {
            println!("    {line}");
        }
        if excerpt.is_empty() {
            println!("    (none)");
        }
    }
    println!("\nA neighbour on the uplink that routes the VIP to the node:");
    for (title, neighbour) in &neighbours {
        println!("  {title}: {neighbour}");
    }
    println!("\nWith the conntrack table full:");
    println!("  {:12} {without}", COLUMNS[0].title);
    println!("  {:12} {with}", COLUMNS[COLUMNS.len() - 1].title);
    let mut wrong: Vec<String> = rows
        .last()
        .into_iter()
        .flatten()
        .filter_map(mistake)
        .collect();
    if without.works_at_all() {
        wrong.push("with a full table something works without an agent: it is not full".to_owned());
    }
    wrong.extend(with.failures());
    wrong.extend(
        neighbours
            .last()
            .and_then(|(_, of_agent)| of_agent.mistake()),
    );
    println!("\nDone in {:.1} s.", start.elapsed().as_secs_f32());
    if wrong.is_empty() {
        println!(
            "As it should be: with proxy-agent every way works and leaves nothing in conntrack, and a \
             full\nconntrack table keeps no client from the API server."
        );
    } else {
        println!("Not as it should be:\n  {}", wrong.join("\n  "));
    }
    Ok(wrong.is_empty())
}

/// Creates a node, sends requests on every path, and returns their results and the entries that conntrack lists.
fn measure(column: &Column) -> Result<(Vec<Row>, Vec<String>, Neighbour)> {
    let step = |text: &str| println!("      {text}");
    step("a node, a pod behind a veth pair, a pod behind a bridge");
    let mut node = Node::new()?;
    node.add_pod(Topology::Veth)?;
    node.add_pod(Topology::BridgeNetfilter)?;
    step("kube-proxy's DNAT of 10.96.0.1:443 to the VIP 10.96.0.2:443, and the same in IPv6");
    KubeProxy::IptablesNft.install(&node.netns)?;
    let agent = start_agent(&node, column)?;
    step("HAProxy on the VIP, a TLS server behind it");
    let proxy = Proxy::start_tls(&node)?;
    step("requests from both pods and from the node itself");
    let ca = proxy.ca().context("a TLS proxy has a certificate")?;
    let rows = requests::on_every_path(&node, ca, REQUESTS)?;
    let pod = node.pods[0].address(Family::V4);
    let entries = conntrack::list(&node.netns, Family::V4)?;
    let excerpt = [Family::V4.vip_socket(), Family::V4.cluster_ip_socket()]
        .iter()
        .filter_map(|destination| {
            let mut of_path = entries
                .iter()
                .filter(|entry| entry.source.ip() == pod && entry.destination == *destination);
            let words: Vec<&str> = of_path.next()?.line.split_whitespace().collect();
            Some(format!(
                "{} (and {} more)",
                words.join(" "),
                of_path.count()
            ))
        })
        .collect();
    step("a neighbour on the uplink that routes the VIP to the node");
    let neighbour = neighbour::measure(&node, column.translates)?;
    if let Some(mut agent) = agent {
        let status = agent.stop(libc::SIGTERM)?;
        ensure!(
            status.success(),
            "the agent ended with {status}:\n{}",
            agent.log()
        );
    }
    Ok((rows, excerpt, neighbour))
}

fn start_agent(node: &Node, column: &Column) -> Result<Option<Agent>> {
    let Some(args) = column.args else {
        node.add_vips("lo")?;
        return Ok(None);
    };
    let mut args = args.to_vec();
    if column.translates {
        args.extend(TRANSLATE);
    }
    println!("      proxy-agent {}", args.join(" "));
    let start = Instant::now();
    let started = match column.missing {
        Some(missing) => node.start_agent_missing(missing, &args),
        None => node.start_agent(&args),
    };
    let agent = started.map_err(|error| {
        // The agent's log has the reason, and it is removed together with the node.
        error.context(node.logs())
    })?;
    println!("      ready after {} ms", start.elapsed().as_millis());
    Ok(Some(agent))
}

/// Returns the error in a row of our agent's column, if there is one.
fn mistake(row: &Row) -> Option<String> {
    if row.latency.is_none() {
        Some(format!("{}: {}", row.path, row.result))
    } else if row.entries != 0 {
        Some(format!(
            "{}: {} conntrack entries, 0 expected",
            row.path, row.entries
        ))
    } else {
        None
    }
}
