// SPDX-License-Identifier: Apache-2.0

//! The benchmark. What is measured and how lives in `benchmark`; this is its command line.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use benchmark::result::Results;
use benchmark::{Effort, compare, costs, document, paths, programs, scale, table, upstream};
use clap::{Parser, ValueEnum};
use tests::{agent, signals, usage};

/// Measures the ways to keep conntrack out of the API server's path side by side, and the agent.
///
/// Everything happens in network namespaces of its own. Results are printed as tables and written
/// to a file; a whole run in full length also renews docs/benchmarks.md with its plots.
#[derive(Parser)]
#[command(name = "cargo xtask bench", max_term_width = 100)]
struct Cli {
    /// In about a minute: fewer variants, ways and sizes, and no document
    #[arg(long)]
    short: bool,
    /// Only this part; repeatable. No document is written then. `--part tunnel` is a benchmark of its own: see
    /// `--part tunnel --help`
    #[arg(long, value_name = "PART")]
    part: Vec<Part>,
    /// How many rounds, after one to warm up
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Where the results are written
    #[arg(long, value_name = "FILE", default_value = "target/bench.json")]
    output: PathBuf,
    /// Report what has changed since an earlier run
    #[arg(long, value_name = "OLD.json")]
    compare: Option<PathBuf>,
    /// Measure nothing: take the results of an earlier run
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// The document that is renewed
    #[arg(long, value_name = "FILE", default_value = "docs/benchmarks.md")]
    document: PathBuf,
}

/// The parts that can be measured on their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Every variant on every way
    Paths,
    /// The same with much on the node
    Scale,
    /// Through HAProxy to a server behind the uplink, its connections tracked and not
    Upstream,
    /// Each eBPF program alone
    Programs,
    /// The agent: starts, memory, repairs, links
    Costs,
}

fn main() -> ExitCode {
    signals::run("\nThe benchmark failed", || run(&Cli::parse()))
}

fn run(cli: &Cli) -> Result<()> {
    let old = cli.compare.as_deref().map(Results::read).transpose()?;
    let results = match &cli.from {
        Some(path) => Results::read(path)?,
        None => measure(cli)?,
    };
    println!("\n{}", table::everything(&results));
    if let Some(old) = old {
        println!("{}", compare::table(&old, &results));
    }
    if !cli.short && cli.part.is_empty() {
        let directory = cli.document.with_extension("");
        document::write(&results, &cli.document, &directory)?;
        println!("renewed: {}", cli.document.display());
    }
    Ok(())
}

fn measure(cli: &Cli) -> Result<Results> {
    // SAFETY: geteuid has no effects.
    let user = unsafe { libc::geteuid() };
    ensure!(user == 0, "network namespaces need root: run it with sudo");
    let mut effort = if cli.short {
        Effort::SHORT
    } else {
        Effort::FULL
    };
    if let Some(rounds) = cli.rounds {
        ensure!(rounds > 0, "--rounds 0: nothing would be measured");
        effort.rounds = rounds;
    }
    println!("The agent is {}", agent::binary()?.display());
    usage::allow_open_files(20_000);
    let start = Instant::now();
    let progress = |text: &str| eprintln!("[{:>4} s] {text}", start.elapsed().as_secs());
    let wanted = |part| cli.part.is_empty() || cli.part.contains(&part);
    let mut results = Results::begin(effort)?;
    // The agent first, before the kernel has to free the objects of the other parts.
    if wanted(Part::Costs) {
        results.costs = costs::run(effort, progress).context("costs")?;
    }
    if wanted(Part::Programs) {
        results.programs = programs::run(effort, progress).context("programs")?;
    }
    if wanted(Part::Paths) {
        results.paths = paths::run(effort, progress).context("paths")?;
    }
    if wanted(Part::Scale) {
        results.scale = scale::run(effort, progress).context("scale")?;
    }
    if wanted(Part::Upstream) {
        results.upstream = upstream::run(effort, progress).context("upstream")?;
    }
    results.write(&cli.output)?;
    println!(
        "{} s; results: {}",
        start.elapsed().as_secs(),
        cli.output.display()
    );
    Ok(results)
}
