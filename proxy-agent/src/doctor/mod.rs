// SPDX-License-Identifier: Apache-2.0

//! `proxy-agent doctor`: diagnoses the network namespace it runs in, and suggests remedies.
//!
//! Each check reads one fact, which a pure function judges. Nothing on the node is changed: kernel features are tried in a
//! temporary network namespace. docs/doctor.md explains each check by its id.

mod agent;
mod arp;
mod check;
mod conntrack;
mod dnat;
mod features;
pub mod firewall;
mod first_address;
mod iptables;
mod leftovers;
mod listener;
mod local_dnat;
mod mounts;
mod notrack;
mod programs;
mod rights;
mod service_range;
mod source;
mod subject;
mod upstream;
mod vip;
mod xdp;

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use proxy_serve::doctor::{self, Check};
use subject::Subject;

use crate::instance::Instance;
use crate::status::Output;

/// The options of the subcommand.
#[derive(Debug, Clone)]
pub struct Options {
    /// The name of the agent.
    pub instance: Instance,
    /// Output format.
    pub format: Output,
    /// Directory of the pins; none: the one in the agent's state file.
    pub bpffs: Option<PathBuf>,
    /// The agent's run directory.
    pub run_dir: PathBuf,
    /// The VIPs; empty: those in the agent's state file.
    pub vips: Vec<IpAddr>,
    /// The proxy's ports; empty: those in the agent's state file.
    pub ports: Vec<u16>,
}

/// Makes all checks and prints the findings. The exit code is that of the worst verdict.
///
/// # Errors
///
/// If the findings cannot be printed.
pub async fn run(options: &Options) -> Result<ExitCode> {
    let subject = Subject::observe(options).await;
    let checks = checks(&subject).await;
    doctor::print(&checks, options.format == Output::Json)?;
    Ok(doctor::exit_code(&checks))
}

async fn checks(subject: &Subject) -> Vec<Check> {
    let mut checks = agent::checks(subject);
    checks.extend(vip::checks(subject));
    checks.extend(source::checks(subject).await);
    checks.extend(first_address::checks(subject).await);
    checks.extend(listener::checks(subject));
    checks.extend(rights::checks(subject));
    checks.extend(mounts::checks(subject));
    checks.extend(features::checks(subject));
    checks.extend(programs::checks(subject).await);
    checks.extend(iptables::checks(subject));
    checks.extend(firewall::checks(subject));
    checks.extend(service_range::checks(subject));
    checks.extend(dnat::checks(subject));
    checks.extend(local_dnat::checks(subject));
    checks.extend(notrack::checks(subject));
    checks.extend(upstream::checks(subject));
    checks.extend(conntrack::checks(subject));
    checks.extend(arp::checks(subject).await);
    checks.extend(xdp::checks(subject));
    checks.extend(leftovers::checks(subject));
    checks
}
