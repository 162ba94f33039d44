// SPDX-License-Identifier: Apache-2.0

//! `cargo xtask bench --part tunnel-scale`: the cost of a server with many tenants beside one with a single tenant, and
//! how thousands of agents reconnect to a server that was restarted.

mod agents;
mod crowd;
mod fleet;
mod helpers;
mod site;

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use benchmark::document;
use clap::{Parser, Subcommand};
use tests::{signals, usage};

use self::helpers::HELPERS;

/// The part of the document that is replaced.
const PART: &str = "tunnel-scale";

/// The limit of open files per process that the benchmark requests.
const FILES: u32 = 100_000;
/// The number of open files that belong neither to a tunnel nor to an agent, with a margin.
const OTHER_FILES: usize = 1_000;

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
    #[command(subcommand)]
    helper: Option<Helper>,
}

/// The part of a process beside the benchmark.
#[derive(Debug, Clone, Copy, Subcommand)]
enum Helper {
    /// Has agents and a target, for the benchmark that has started it
    #[command(hide = true)]
    Agents {
        /// How many tenants there are
        tenants: usize,
        /// The number of the first agent
        from: usize,
        /// The number behind that of the last one
        to: usize,
    },
}

/// The size and the duration of the measurements.
#[derive(Debug, Clone, Copy)]
struct Effort {
    rounds: usize,
    /// The number of tenants, and of the agents of each. The single tenant that they are compared with has all agents
    /// alone.
    crowd: (usize, usize),
    /// The number of tunnels for each of these agents: of clients with HTTP CONNECT, and of clients with gRPC.
    connect_tunnels: usize,
    grpc_tunnels: usize,
    /// The number of tenants, and of the agents of all of them.
    agents: (usize, usize),
    /// The duration of the round trips.
    trips: Duration,
}

impl Effort {
    const FULL: Self = Self {
        rounds: 3,
        crowd: (200, 5),
        connect_tunnels: 20,
        grpc_tunnels: 20,
        agents: (1_000, 10_000),
        trips: Duration::from_secs(15),
    };
    const SHORT: Self = Self {
        rounds: 1,
        crowd: (20, 5),
        connect_tunnels: 20,
        grpc_tunnels: 20,
        agents: (100, 1_000),
        trips: Duration::from_secs(3),
    };

    /// Returns this effort with as many tunnels for each agent as the limit of open files of one process permits. The
    /// server has a file for each agent, each tenant's socket and each client's connection: with HTTP CONNECT, for each
    /// tunnel. A helper has a file for each of its agents and for both ends of its connections to targets. One helper
    /// may have 1.5 times as many of these as the average, because agents are chosen at random.
    ///
    /// # Errors
    /// Returns an error if the limit does not permit all agents, or one tunnel for each.
    fn permitted(mut self, files: u64) -> Result<Self> {
        let (tenants, agents) = self.crowd;
        let free = usize::try_from(files)?.saturating_sub(OTHER_FILES);
        let agents = tenants * agents;
        let of_helper = agents.div_ceil(HELPERS);
        let in_helper = free.saturating_sub(of_helper) / (3 * of_helper);
        let at_server = free.saturating_sub(agents + tenants) / agents;
        self.grpc_tunnels = self.grpc_tunnels.min(in_helper);
        let wanted = self.connect_tunnels;
        self.connect_tunnels = wanted.min(in_helper).min(at_server);
        ensure!(
            self.grpc_tunnels.min(self.connect_tunnels) > 0 && free >= self.agents.1,
            "{files} open files are permitted: too few for {} agents, and for {agents} of them with tunnels; raise the \
             hard limit (ulimit -Hn)",
            self.agents.1,
        );
        if self.connect_tunnels < wanted {
            eprintln!(
                "{} tunnels of HTTP CONNECT for each agent in place of {wanted}: {files} open files are permitted \
                 (ulimit -Hn)",
                self.connect_tunnels
            );
        }
        Ok(self)
    }
}

#[cfg(test)]
mod effort_tests {
    use super::Effort;

    #[test]
    fn tunnels_are_as_many_as_open_files_permit() {
        let tunnels = |files| {
            let effort = Effort::FULL.permitted(files).ok()?;
            Some((effort.connect_tunnels, effort.grpc_tunnels))
        };
        assert_eq!(tunnels(100_000), Some((20, 20)));
        assert_eq!(tunnels(20_000), Some((17, 20)));
        assert_eq!(tunnels(12_000), Some((9, 14)));
        assert_eq!(tunnels(10_000), None);
    }
}

/// A measured quantity with its value.
#[derive(Debug)]
pub struct Row {
    /// The measured quantity.
    pub what: String,
    /// The value with its unit.
    pub value: String,
    /// The target, and whether it is reached.
    pub bar: Option<(String, bool)>,
}

impl Row {
    /// Returns a row without a target.
    fn new(what: impl Into<String>, value: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            value: value.into(),
            bar: None,
        }
    }

    /// Returns a row with a target.
    fn at_most(mut self, value: f64, bound: f64, unit: &str) -> Self {
        self.bar = Some((format!("≤ {bound} {unit}"), value <= bound));
        self
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // A helper runs before the benchmark starts threads, and has nothing to clean up.
    match cli.helper {
        Some(helper) => helper.run(),
        None => signals::run("\nThe benchmark failed", || run(&cli)),
    }
}

impl Helper {
    fn run(self) -> ExitCode {
        let Self::Agents { tenants, from, to } = self;
        match helpers::serve(tenants, from..to) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("a helper of the benchmark failed: {error:#}");
                ExitCode::FAILURE
            }
        }
    }
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
    effort = effort.permitted(usage::allow_open_files(FILES))?;
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

/// Returns the rows as a Markdown table.
fn table(rows: &[Row]) -> String {
    let mut text = String::from("| what | measured | bar | |\n|---|---|---|---|\n");
    for Row { what, value, bar } in rows {
        let (bar, verdict) = match bar {
            Some((bar, true)) => (bar.as_str(), "reached"),
            Some((bar, false)) => (bar.as_str(), "**missed**"),
            None => ("–", ""),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "| {what} | {value} | {bar} | {verdict} |");
    }
    text
}

#[expect(clippy::cast_precision_loss, reason = "far less than 2^52")]
const fn float(number: u64) -> f64 {
    number as f64
}

/// Converts bytes to MiB.
const fn mib(bytes: u64) -> f64 {
    float(bytes) / (1024.0 * 1024.0)
}

/// Returns the value that `percent` of the sorted values do not exceed.
fn quantile(sorted: &[Duration], percent: usize) -> Result<Duration> {
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().context("nothing was measured")
}
