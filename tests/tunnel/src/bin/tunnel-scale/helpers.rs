// SPDX-License-Identifier: Apache-2.0

//! Processes beside this one, each with a part of the agents and a target. Both ends of all tunnels are more files than
//! one process may have open on many machines.

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

/// How many there are.
pub const HELPERS: usize = 4;

/// The helpers, and the targets in them. They end when this is dropped.
pub struct Helpers {
    _processes: Vec<Process>,
    /// Each sends back what it receives.
    pub targets: Vec<SocketAddr>,
}

impl Helpers {
    /// Starts them, and waits until all of their agents are connected.
    ///
    /// # Errors
    /// One does not start, or its agents are not connected after a while.
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

/// The numbers of the agents of each.
fn parts(agents: usize) -> impl Iterator<Item = Range<usize>> {
    (0..HELPERS).map(move |part| agents * part / HELPERS..agents * (part + 1) / HELPERS)
}

/// The work of a helper: agents of these numbers, in the site's directory and namespace. It writes its target's address
/// when all of them are connected, and ends when its input does.
///
/// # Errors
/// A certificate is missing, or agents are not connected after a while.
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
