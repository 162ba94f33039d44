// SPDX-License-Identifier: Apache-2.0

//! `proxy-agent status`: what the agent of this node is doing, from its state file, its pinned maps
//! and the kernel. Changes nothing, and needs no agent to run.
//!
//! What is told is collected here, as a [`model::Status`]; `table` writes it for people, and its JSON
//! form is described in docs/status.md.

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
use serde::Serialize as _;

use self::model::{Agent, Connections, Drift, Status};
use crate::app;
use crate::backend::ebpf::{self, order};
use crate::config::Service;
use crate::kernel::sockets;
use crate::link::{self, LinkTable};
use crate::lock;
use crate::reconcile::Report;
use crate::reconcile::report::chain;
use crate::services::{self, Undecided};
use crate::state::State;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// In which form.
    pub output: Output,
    /// Links without traffic too.
    pub all: bool,
    /// Where the agent keeps its state.
    pub run_dir: PathBuf,
    /// Where maps are pinned, if that was said; otherwise where the agent has told.
    pub bpffs: Option<PathBuf>,
}

/// The form of what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people
    Table,
    /// One JSON object
    Json,
}

/// Prints the status. The exit code tells whether the agent runs and the node is as desired as far as
/// it knows.
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
    Ok(if is_well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Looks at everything that is told of the agent that has told `state`. Changes nothing.
pub async fn collect(state: &State, request: &Request) -> Status {
    let mut unreadable = Vec::new();
    let running = or_told(lock::is_held(&request.run_dir), &mut unreadable);
    let links = or_told(
        link::observe(&state.settings.vips, &service_ips(state)).await,
        &mut unreadable,
    );
    let bpffs = request.bpffs.as_ref().unwrap_or(&state.settings.bpffs);
    let rows = or_told(counters::read(state, bpffs), &mut unreadable);
    let fill = or_told(counters::connections(state), &mut unreadable).flatten();
    let drift = match app::drift(state, &request.run_dir).await {
        Ok(report) => Drift::from(report),
        Err(error) => {
            let mut report = Report::default();
            let failure = crate::reconcile::Failure::new("agent", "look at the node", &*error);
            report.failures.push(failure);
            Drift::from(report)
        }
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

/// The links on which programs of others come before those of an agent.
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
    let orders = or_told(orders, unreadable).unwrap_or_default();
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

/// The Services of an agent, each with why new connections to it go kube-proxy's way, if they do.
fn services(
    state: &State,
    links: &LinkTable,
    unreadable: &mut Vec<String>,
) -> Vec<model::OfService> {
    let settings = &state.settings;
    if settings.services.is_empty() {
        return Vec::new();
    }
    let listeners = or_told(sockets::listeners(), unreadable);
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

/// The JSON form.
///
/// # Errors
///
/// None that is known.
pub fn json(status: &Status) -> Result<String> {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"  ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    status.serialize(&mut serializer)?;
    text.push(b'\n');
    Ok(String::from_utf8(text)?)
}

/// The value, or none and the error among those that are told.
fn or_told<T, E: std::error::Error>(
    result: Result<T, E>,
    unreadable: &mut Vec<String>,
) -> Option<T> {
    result
        .inspect_err(|error| unreadable.push(chain(error)))
        .ok()
}
