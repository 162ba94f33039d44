// SPDX-License-Identifier: Apache-2.0

//! `cargo xtask bench --part tunnel`: the cost of the tunnel, with `--peer` beside upstream's programs in one run.

mod measure;
mod report;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use benchmark::document;
use clap::Parser;
use tests::{signals, usage};
use tunnel_tests::program::Make;

/// The part of the document that is replaced.
const PART: &str = "tunnel";

/// The path of the picture, relative to the document's directory.
const PICTURE: &str = "benchmarks/tunnel.svg";

/// Measures konnectivity-server and konnectivity-agent: new tunnels per second, throughput, processor time, memory,
/// and round trips while other tunnels stand still.
///
/// Everything happens in network namespaces of its own. A run in full length with --peer also renews the document.
#[derive(Parser)]
#[command(name = "cargo xtask bench --part tunnel", max_term_width = 100)]
struct Cli {
    /// In less than a minute: fewer rounds, transports and tunnels, and no document
    #[arg(long)]
    short: bool,
    /// Measure upstream's server and agent as well, in turn with ours; `cargo xtask peers` builds them
    #[arg(long)]
    peer: bool,
    /// How many rounds
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// The document that is renewed
    #[arg(long, value_name = "FILE", default_value = "docs/benchmarks.md")]
    document: PathBuf,
}

/// The duration and the size of the measurements.
#[derive(Debug, Clone, Copy)]
struct Effort {
    rounds: usize,
    /// The duration for which tunnels are opened in each round.
    slot: Duration,
    /// The number of bytes that one tunnel carries in each round.
    bulk: u64,
    /// The number of idle tunnels.
    resting: usize,
    /// The duration of the round trips.
    trips: Duration,
    short: bool,
}

impl Effort {
    const FULL: Self = Self {
        rounds: 7,
        slot: Duration::from_secs(2),
        bulk: 256 << 20,
        resting: 10_000,
        trips: Duration::from_secs(15),
        short: false,
    };
    const SHORT: Self = Self {
        rounds: 2,
        slot: Duration::from_millis(500),
        bulk: 64 << 20,
        resting: 1_000,
        trips: Duration::from_secs(3),
        short: true,
    };
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
    // Both ends of each tunnel are in this program: the client's and the target's.
    let files = usage::allow_open_files(32_768);
    let tunnels = usize::try_from(files).unwrap_or(usize::MAX) / 2;
    effort.resting = effort.resting.min(tunnels.saturating_sub(200));
    let makes: &[Make] = if cli.peer { &Make::ALL } else { &[Make::Ours] };
    let start = Instant::now();
    let progress = |text: &str| eprintln!("[{:>4} s] {text}", start.elapsed().as_secs());
    let rows = measure::everything(makes, effort, progress)?;
    let table = report::table(&rows);
    println!("\n{table}");
    if cli.peer && !cli.short {
        let content = format!("![what is to be reached]({PICTURE})\n\n{table}");
        let text = document::renewed(&cli.document, [(PART, content)])?;
        let picture = cli.document.with_file_name(PICTURE);
        for (path, text) in [(&picture, report::picture(&rows)), (&cli.document, text)] {
            fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
            println!("renewed: {}", path.display());
        }
    }
    Ok(())
}
