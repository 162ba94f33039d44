// SPDX-License-Identifier: Apache-2.0

//! Helper processes of the benchmark, each with a share of the agents and a target. On many machines the limit of open
//! files of a single process is too small for both ends of all tunnels.

use std::env;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result};
use tests::cmd::{self, Process};

use crate::crowd::echo;
use crate::fleet::Fleet;
use crate::site::{self, CERTIFICATES, Site};

/// The number of helpers.
pub const HELPERS: usize = 4;

/// The helpers, and their targets. The helpers exit when this is dropped.
pub struct Helpers {
    _processes: Vec<Process>,
    /// The addresses of the targets, each of which sends back what it receives.
    pub targets: Vec<SocketAddr>,
}

impl Helpers {
    /// Starts the helpers, and waits until all of their agents are connected.
    ///
    /// # Errors
    /// Returns an error if a helper does not start, or if its agents do not connect in time.
    pub fn start(site: &Site, agents: usize) -> Result<Self> {
        let own = env::current_exe().context("no path of this program")?;
        let mut processes = Vec::new();
        let mut answers = Vec::new();
        for part in parts(agents) {
            let mut command = site.command(&own);
            let numbers = [site.tenants(), part.start, part.end].map(|number| number.to_string());
            command
                .arg("agents")
                .args(numbers)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped());
            let child = cmd::guard_child(&mut command).spawn();
            let mut process = Process::new(child.context("starting a helper")?);
            answers.push(process.child().stdout.take().context("no pipe")?);
            processes.push(process);
        }
        let targets = answers.into_iter().map(|answer| {
            let mut line = String::new();
            BufReader::new(answer).read_line(&mut line)?;
            line.trim().parse().context("a helper has failed")
        });
        Ok(Self {
            targets: targets.collect::<Result<_>>()?,
            _processes: processes,
        })
    }
}

/// Returns the numbers of the agents of each helper.
fn parts(agents: usize) -> impl Iterator<Item = Range<usize>> {
    (0..HELPERS).map(move |part| agents * part / HELPERS..agents * (part + 1) / HELPERS)
}

/// Runs a helper: agents with these numbers, in the site's directory and namespace. The helper writes its target's
/// address when all of them are connected, and exits at the end of its input.
///
/// # Errors
/// Returns an error if a certificate is missing, or if agents do not connect in time.
pub fn serve(tenants: usize, agents: Range<usize>) -> Result<()> {
    let runtime = site::runtime()?;
    let target = runtime.block_on(async { tokio::spawn(echo()).await })??;
    let count = agents.len();
    let fleet = Fleet::start(&runtime, Path::new(CERTIFICATES), tenants, agents)?;
    fleet.wait_for(count)?;
    writeln!(io::stdout(), "{target}")?;
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

#[cfg(test)]
mod parts_tests {
    use super::{HELPERS, parts};

    #[test]
    fn each_agent_is_in_one_part() {
        for agents in [0, 1, 7, 1000] {
            let all: Vec<_> = parts(agents).collect();
            assert_eq!(all.len(), HELPERS);
            assert!(all.into_iter().flatten().eq(0..agents));
        }
    }
}
