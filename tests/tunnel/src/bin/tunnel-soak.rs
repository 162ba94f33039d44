// SPDX-License-Identifier: Apache-2.0

//! `cargo xtask soak --tunnel`: the tunnel's server and agent must not hold more resources at the end than at the
//! beginning. Their load is defined in `tunnel_tests::soak`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Parser;
use tests::soak::{is_flat, table};
use tests::{signals, usage};
use tunnel_tests::soak::{Case, soak};

/// Puts load on server and agent for half an hour and compares the resources that they hold.
#[derive(Parser)]
#[command(name = "cargo xtask soak --tunnel", max_term_width = 100)]
struct Cli {
    /// How long, in all
    #[arg(long, value_name = "N", default_value_t = 30)]
    minutes: u32,
}

fn main() -> ExitCode {
    signals::run("\nThe soak failed", || run(&Cli::parse()))
}

fn run(cli: &Cli) -> Result<()> {
    ensure!(cli.minutes > 0, "--minutes 0: too short to show anything");
    usage::allow_open_files(16_384);
    let cases = Case::ALL;
    let time = Duration::from_secs(60 * u64::from(cli.minutes)) / u32::try_from(cases.len())?;
    let mut grown = Vec::new();
    for case in cases {
        for series in soak(case, time)? {
            println!("{}\n{}", series.name, table(&series.samples));
            if let Err(why) = is_flat(&series.samples) {
                grown.push(format!("{}: {why}", series.name));
            }
        }
    }
    ensure!(grown.is_empty(), "{}", grown.join("\n"));
    println!("flat: nothing has grown");
    Ok(())
}
