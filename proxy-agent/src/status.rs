// SPDX-License-Identifier: Apache-2.0

//! `proxy-agent status`: the state of this node's agent, from its state file, its pinned maps and the kernel. Read only; the
//! agent need not run.
//!
//! This module collects a [`model::Status`]; `table` formats it for people, and docs/status.md describes its JSON form.

pub mod counters;
pub mod model;
mod table;

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use proxy_kernel::sockets;
use serde::Serialize as _;

use self::model::{Agent, Connections, Drift, Status};
use crate::backend::ebpf::{self, order};
use crate::config::Service;
use crate::link::{self, LinkTable};
use crate::lock;
use crate::node;
use crate::reconcile::exit_code;
use crate::reconcile::report::chain;
use crate::services::{self, Undecided};
use crate::state::State;
use crate::state::history::Problem;

/// The options of the subcommand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Output format.
    pub output: Output,
    /// Also show links without traffic.
    pub all: bool,
    /// Run directory of the agent.
    pub run_dir: PathBuf,
    /// Directory of the pins; `None`: the one in the state file.
    pub bpffs: Option<PathBuf>,
}

/// Output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// Aligned text
    Table,
    /// One JSON object
    Json,
}

/// Prints the status. The exit code is 0 if the agent runs and its last pass had no failures.
///
/// # Errors
///
/// If no agent has run here, or its state cannot be read.
pub async fn run(request: &Request) -> Result<ExitCode> {
    let state = State::load(&request.run_dir)?.with_context(|| {
        format!(
            "no agent has run with --run-dir={}",
            request.run_dir.display()
        )
    })?;
    let status = collect(&state, request).await;
    match request.output {
        Output::Table => print!("{}", table::Table(&status, request.all)),
        Output::Json => print!("{}", json(&status)?),
    }
    let is_well = status.agent.running && status.agent.ready;
    Ok(exit_code(is_well))
}

/// Collects the status of the agent that published `state`. Changes nothing.
pub async fn collect(state: &State, request: &Request) -> Status {
    let mut unreadable = Vec::new();
    let running = or_unreadable(lock::is_held(&request.run_dir), &mut unreadable);
    let links = or_unreadable(
        link::observe(&state.settings.vips, &service_ips(state)).await,
        &mut unreadable,
    );
    let bpffs = request.bpffs.as_ref().unwrap_or(&state.settings.bpffs);
    let rows = or_unreadable(counters::read(state, bpffs), &mut unreadable);
    let fill = or_unreadable(counters::connections(state), &mut unreadable).flatten();
    let drift = match node::drift(state, &request.run_dir).await {
        Ok(report) => Drift::from(report),
        Err(error) => Drift {
            changes: Vec::new(),
            failures: vec![Problem {
                part: "agent".to_owned(),
                what: "observe the node".to_owned(),
                cause: chain(&*error),
            }],
        },
    };
    let links = links.unwrap_or_default();
    Status {
        agent: Agent::new(state, running.unwrap_or(false), SystemTime::now()),
        vips: links.vips(&state.settings.vips, &state.settings.interface),
        services: services(state, &links, &mut unreadable),
        backend: state.backend.clone(),
        hidden: hidden(state, &links, &mut unreadable).await,
        guard: state.guard.clone(),
        upstream: model::Upstream::from(&state.upstream),
        counters: counters::sorted(rows.unwrap_or_default(), &links),
        connections: fill.map(|fill| Connections {
            entries: fill.entries,
            size: fill.size,
        }),
        passes: model::Passes::from(&state.history),
        repairs: model::Repairs::from(&state.history),
        drift,
        unreadable,
    }
}

/// The links on which programs of others run before the agent's.
async fn hidden(
    state: &State,
    links: &LinkTable,
    unreadable: &mut Vec<String>,
) -> Vec<model::Hidden> {
    if state.backend.backend != "ebpf" {
        return Vec::new();
    }
    let own = state.programs.get(ebpf::Hook::Ingress.program()).copied();
    let instance = state.settings.instance;
    let orders = order::read(&ebpf::attachable(links), instance, own).await;
    let orders = or_unreadable(orders, unreadable).unwrap_or_default();
    let orders = orders.into_iter();
    orders
        .filter(|order| order.own.is_some() && !order.before.is_empty())
        .map(|order| model::Hidden {
            by: order.before.iter().map(ToString::to_string).collect(),
            link: order.link,
        })
        .collect()
}

fn service_ips(state: &State) -> Vec<IpAddr> {
    let services = state.settings.services.iter();
    services.map(|service| service.cluster_ip.ip()).collect()
}

/// The Services of an agent, with the reason if new connections to one go through kube-proxy.
fn services(
    state: &State,
    links: &LinkTable,
    unreadable: &mut Vec<String>,
) -> Vec<model::OfService> {
    let settings = &state.settings;
    if settings.services.is_empty() {
        return Vec::new();
    }
    let listeners = or_unreadable(sockets::listeners(), unreadable);
    let undecided = |service: &Service| {
        let backend = &state.backend.backend;
        if let Some(index) = links.services.get(&service.cluster_ip.ip()) {
            return Some(Undecided::OwnAddress(links.name_of(*index)));
        }
        let listeners = listeners.as_ref()?;
        services::undecided(service, backend, listeners, settings.proxy_listener)
    };
    let of_service = |service: &Service| model::OfService {
        service: *service,
        undecided: undecided(service).map(|why| why.to_string()),
    };
    settings.services.iter().map(of_service).collect()
}

/// Formats the status as JSON.
///
/// # Errors
///
/// None known.
pub fn json(status: &Status) -> Result<String> {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"  ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    status.serialize(&mut serializer)?;
    text.push(b'\n');
    Ok(String::from_utf8(text)?)
}

/// The value; on failure none, with the error added to `unreadable`.
fn or_unreadable<T, E: std::error::Error>(
    result: Result<T, E>,
    unreadable: &mut Vec<String>,
) -> Option<T> {
    result
        .inspect_err(|error| unreadable.push(chain(error)))
        .ok()
}
