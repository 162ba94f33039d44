// SPDX-License-Identifier: Apache-2.0

//! `cargo xtask bench --part tunnel-scale`: what a server with many tenants costs beside one with a single tenant, and
//! how thousands of agents come back to a server that was restarted.

mod agents;
mod crowd;
mod fleet;
mod site;

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use tests::bench::document;
use tests::{signals, usage};

/// The part of the document that is renewed.
const PART: &str = "tunnel-scale";

/// Open files of this program at most: both ends of every tunnel, and the agents.
const FILES: u32 = 100_000;

/// Measures konnectivity-server with many tenants and many agents. The agents are those of konnectivity-agent, many of
/// them in this process, each with a TLS connection of its own and its tenant's certificate.
///
/// Everything happens in network namespaces of its own. A run in full length also renews the document.
#[derive(Parser)]
#[command(name = "cargo xtask bench --part tunnel-scale", max_term_width = 100)]
struct Cli {
    /// In about a minute: a tenth of the tenants, agents and tunnels, one round, and no document
    #[arg(long)]
    short: bool,
    /// How often many tenants and one are compared
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// The document that is renewed
    #[arg(long, value_name = "FILE", default_value = "docs/scale.md")]
    document: PathBuf,
}

/// How many, and how long.
#[derive(Debug, Clone, Copy)]
struct Effort {
    rounds: usize,
    /// Tenants, agents of each, tunnels of each agent: what many tenants have, and one has alone.
    crowd: (usize, usize, usize),
    /// Tenants, and agents of all of them.
    agents: (usize, usize),
    /// How long round trips are made.
    trips: Duration,
}

impl Effort {
    const FULL: Self = Self {
        rounds: 3,
        crowd: (200, 5, 20),
        agents: (1_000, 10_000),
        trips: Duration::from_secs(15),
    };
    const SHORT: Self = Self {
        rounds: 1,
        crowd: (20, 5, 20),
        agents: (100, 1_000),
        trips: Duration::from_secs(3),
    };
}

/// One thing that was measured.
#[derive(Debug)]
pub struct Row {
    /// What.
    pub what: String,
    /// With its unit.
    pub value: String,
    /// What is to be reached, and whether it is.
    pub bar: Option<(String, bool)>,
}

impl Row {
    /// Without a bar.
    fn new(what: impl Into<String>, value: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            value: value.into(),
            bar: None,
        }
    }

    /// With a bar.
    fn at_most(mut self, value: f64, bound: f64, unit: &str) -> Self {
        self.bar = Some((format!("≤ {bound} {unit}"), value <= bound));
        self
    }
}

fn main() -> ExitCode {
    signals::run("\nThe benchmark failed", || run(&Cli::parse()))
}

fn run(cli: &Cli) -> Result<()> {
    let mut effort = if cli.short {
        Effort::SHORT
    } else {
        Effort::FULL
    };
    if let Some(rounds) = cli.rounds {
        ensure!(rounds > 0, "--rounds 0: nothing would be measured");
        effort.rounds = rounds;
    }
    let (tenants, agents, tunnels) = effort.crowd;
    // Each tunnel has the client's end, the agent's and the target's in this process.
    let wanted = (3 * tenants * agents * tunnels).max(effort.agents.1) + 2_000;
    let files = usage::allow_open_files(FILES);
    ensure!(
        files >= wanted as u64,
        "this takes {wanted} open files, and {files} are permitted; raise the hard limit (ulimit -Hn)"
    );
    let start = Instant::now();
    let progress = |text: &str| eprintln!("[{:>4} s] {text}", start.elapsed().as_secs());
    let mut rows = crowd::compare(effort, progress)?;
    rows.extend(agents::come_and_come_back(effort, progress)?);
    let table = table(&rows);
    println!("\n{table}");
    if !cli.short {
        let text = document::renewed(&cli.document, [(PART, table)])?;
        fs::write(&cli.document, text)
            .with_context(|| format!("writing {}", cli.document.display()))?;
        println!("renewed: {}", cli.document.display());
    }
    Ok(())
}

/// A Markdown table.
fn table(rows: &[Row]) -> String {
    let mut text = String::from("| what | measured | bar | |\n|---|---|---|---|\n");
    for Row { what, value, bar } in rows {
        let (bar, verdict) = match bar {
            Some((bar, true)) => (bar.as_str(), "reached"),
            Some((bar, false)) => (bar.as_str(), "**missed**"),
            None => ("–", ""),
        };
        // A String takes everything.
        let _ = writeln!(text, "| {what} | {value} | {bar} | {verdict} |");
    }
    text
}

#[expect(clippy::cast_precision_loss, reason = "far less than 2^52")]
const fn float(number: u64) -> f64 {
    number as f64
}

/// Bytes as MiB.
const fn mib(bytes: u64) -> f64 {
    float(bytes) / (1024.0 * 1024.0)
}

/// A value that a part of sorted ones does not exceed.
fn quantile(sorted: &[Duration], percent: usize) -> Result<Duration> {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().context("nothing was measured")
}
