// SPDX-License-Identifier: Apache-2.0

//! `proxy-agent doctor`: what may be wrong on this node, and what to do about it.
//!
//! Each check looks at one thing and judges it by a pure function. Nothing on the node is changed;
//! what a kernel can do is tried in a network namespace that is thrown away. It judges the network
//! namespace it runs in. docs/doctor.md explains each check by its id.

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
mod processes;
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

/// What the doctor was told.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which of the agents of this node.
    pub instance: Instance,
    /// How the findings are printed.
    pub format: Output,
    /// Where the agent pins; none: where it says.
    pub bpffs: Option<PathBuf>,
    /// The agent's run directory.
    pub run_dir: PathBuf,
    /// The VIPs; none: those the agent says.
    pub vips: Vec<IpAddr>,
    /// The proxy's ports; none: those the agent says.
    pub ports: Vec<u16>,
}

/// Makes every check and prints what was found. The exit code is that of the worst verdict.
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
