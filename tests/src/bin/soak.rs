// SPDX-License-Identifier: Apache-2.0

//! The soak test: an agent that works for half an hour must not hold more resources at the end than at the beginning.
//! The load and the measurements are in `tests::soak`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tests::node::{Node, Topology};
use tests::{agent, signals, soak};

const MINUTES: u64 = 30;
/// The pause between two rounds of work.
const PAUSE: Duration = Duration::from_secs(2);
/// The number of seconds between two lines of progress.
const MINUTE: u64 = 60;

fn main() -> ExitCode {
    signals::run("\nThe soak failed", || {
        minutes(std::env::args().skip(1)).and_then(run)
    })
}

fn minutes(mut args: impl Iterator<Item = String>) -> Result<u64> {
    let minutes = match args.next().as_deref() {
        None => MINUTES,
        Some("--minutes") => {
            let number = args.next().context("--minutes needs a number")?;
            number
                .parse()
                .with_context(|| format!("--minutes {number}"))?
        }
        Some(other) => bail!("{other}: unknown; Usage: soak [--minutes N]"),
    };
    ensure!(minutes > 0, "--minutes 0: too short to show anything");
    Ok(minutes)
}

fn run(minutes: u64) -> Result<()> {
    // SAFETY: geteuid has no side effects.
    let user = unsafe { libc::geteuid() };
    ensure!(user == 0, "network namespaces need root: run it with sudo");
    println!(
        "The agent is {}; {minutes} minutes",
        agent::binary()?.display()
    );
    let topology = Topology::Veth;
    let mut node = Node::with_pods(topology, 2)?;
    let mut printed = 0;
    let time = Duration::from_secs(60 * minutes);
    let samples = soak::soak(&mut node, topology, (time, PAUSE), |sample| {
        let now = sample.at.as_secs() / MINUTE;
        if now > printed {
            printed = now;
            let (memory, files) = (sample.memory, sample.descriptors);
            println!("{now} min: {memory} KiB resident, {files} open files");
        }
    })
    .inspect_err(|_| eprintln!("{}", node.logs()))?;
    println!("\n{}", soak::table(&samples));
    soak::is_flat(&samples)?;
    println!("flat: nothing has grown");
    Ok(())
}
