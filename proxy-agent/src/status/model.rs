// SPDX-License-Identifier: Apache-2.0

//! What `status` tells, in the form in which it is written as JSON. Field names are documented in
//! docs/status.md and stay as they are.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};

use crate::config::Service;
use crate::kernel::author::By;
use crate::link::Vip;
use crate::reconcile::Report;
use crate::reconcile::trigger::Cause;
use crate::state::history::{self, History, Problem};
use crate::state::{Choice, Guarded, State, upstream};
use crate::time::rfc3339;

/// Everything.
#[derive(Debug, Serialize)]
pub struct Status {
    /// The agent as a process.
    pub agent: Agent,
    /// The VIPs as they are now.
    pub vips: Vec<Vip>,
    /// The Services that should end on the proxy.
    pub services: Vec<OfService>,
    /// The backend and why.
    pub backend: Choice,
    /// Links on which programs of others come before ours.
    pub hidden: Vec<Hidden>,
    /// Where packets for the VIPs are dropped, and where not.
    pub guard: Guarded,
    /// The proxy's own connections.
    pub upstream: Upstream,
    /// By VIP and port; none if the backend does not count.
    pub counters: Vec<OfVip>,
    /// How full the map of decisions is, if there is one.
    pub connections: Option<Connections>,
    /// What the passes have come to.
    pub passes: Passes,
    /// What was repaired.
    pub repairs: Repairs,
    /// What a pass would change now.
    pub drift: Drift,
    /// What could not be read for this, with the kernel's answers.
    pub unreadable: Vec<String>,
}

/// The agent as a process.
#[derive(Debug, Serialize)]
pub struct Agent {
    /// Its version.
    pub version: String,
    /// Its process id, as it sees that itself.
    pub pid: u32,
    /// It holds its lock.
    pub running: bool,
    /// When it started.
    #[serde(serialize_with = "time")]
    pub started: SystemTime,
    /// How long it runs; none if it does not.
    pub uptime_seconds: Option<u64>,
    /// Its last pass left nothing to be desired.
    pub ready: bool,
    /// What its last pass could not do.
    pub failures: Vec<Problem>,
}

/// A link on which programs of others come before ours: they can hide packets from it.
#[derive(Debug, Serialize)]
pub struct Hidden {
    /// The name of the link.
    pub link: String,
    /// Those programs, in the order in which they run.
    pub by: Vec<String>,
}

/// A Service that should end on the proxy.
#[derive(Debug, Serialize)]
pub struct OfService {
    /// The Service.
    #[serde(flatten)]
    pub service: Service,
    /// Why new connections to it go kube-proxy's way; none if they end on the proxy.
    pub undecided: Option<String>,
}

/// The proxy's own connections, as of the agent's last pass.
#[derive(Debug, Serialize)]
pub struct Upstream {
    /// The cgroups in which the proxy listens, or did last, as paths below the root of the hierarchy.
    pub cgroups: Vec<String>,
    /// By endpoint of `--proxy-upstream`, or that was learned.
    pub endpoints: Vec<UpstreamEndpoint>,
    /// Endpoints are learned.
    pub learns: bool,
    /// Why no further one is learned now, as a word; none if they are, or none ever is.
    pub reason: Option<&'static str>,
    /// The same in words.
    pub detail: Option<String>,
}

/// New connections of the proxy to an endpoint.
#[derive(Debug, Serialize)]
pub struct UpstreamEndpoint {
    /// Its address and port.
    pub endpoint: SocketAddr,
    /// They are kept from conntrack.
    pub untracked: bool,
    /// Why not, as a word.
    pub reason: Option<&'static str>,
    /// Why not, in words.
    pub detail: Option<String>,
}

/// The counters of a VIP with one port.
#[derive(Debug, Serialize)]
pub struct OfVip {
    /// The VIP with its port.
    pub vip: SocketAddr,
    /// All links together.
    pub total: Counts,
    /// By link.
    pub links: Vec<OfLink>,
}

/// The counters of a VIP by one link.
#[derive(Debug, Serialize)]
pub struct OfLink {
    /// The name of the link; none for the node's own processes and for replies.
    pub link: Option<String>,
    /// Its ifindex.
    pub ifindex: Option<u32>,
    /// The counts.
    #[serde(flatten)]
    pub counts: Counts,
}

/// What was counted. It only grows, until the agent cleans up or the link goes.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Counts {
    /// Untracked, to the VIP.
    pub requests: Direction,
    /// Untracked, from the VIP.
    pub replies: Direction,
    /// SYNs that were decided.
    pub decided: u64,
    /// SYNs and calls of connect(2) that were translated.
    pub translated: u64,
    /// SYNs that were not decided, by reason.
    pub undecided: BTreeMap<&'static str, u64>,
    /// Packets that were dropped, by cause.
    pub dropped: BTreeMap<&'static str, u64>,
}

/// Packets of one direction.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Direction {
    /// Packets.
    pub packets: u64,
    /// Bytes from the IP header on.
    pub bytes: u64,
}

/// How full the map of decisions is.
#[derive(Debug, Serialize)]
pub struct Connections {
    /// Decisions that are remembered, those about ended connections included.
    pub entries: usize,
    /// The most it takes.
    pub size: usize,
}

/// What the passes have come to.
#[derive(Debug, Serialize)]
pub struct Passes {
    /// Since the agent started.
    pub total: u64,
    /// Those of them that failed.
    pub failed: u64,
    /// The last one that changed something, failed, or was a resync.
    pub last: Option<Pass>,
}

/// A pass.
#[derive(Debug, Serialize)]
pub struct Pass {
    /// When it began.
    #[serde(serialize_with = "time")]
    pub at: SystemTime,
    /// Why.
    pub cause: Cause,
    /// How long it took.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub took: Duration,
    /// What it changed.
    pub changes: usize,
}

/// What was repaired.
#[derive(Debug, Serialize)]
pub struct Repairs {
    /// By part of the node, since the agent started.
    pub total: BTreeMap<String, u64>,
    /// The last ones, oldest first.
    pub last: Vec<Repair>,
}

/// One repair.
#[derive(Debug, Serialize)]
pub struct Repair {
    /// When the pass began that did it.
    #[serde(serialize_with = "time")]
    pub at: SystemTime,
    /// The part of the node.
    pub part: String,
    /// What was done.
    pub what: String,
    /// When the event came that told of it; none if it was found by looking.
    #[serde(serialize_with = "maybe_time")]
    pub since: Option<SystemTime>,
    /// That event.
    pub event: Option<String>,
    /// Who brought it about.
    pub by: Option<By>,
}

/// What a pass would change now.
#[derive(Debug, Default, Serialize)]
pub struct Drift {
    /// The changes.
    pub changes: Vec<Change>,
    /// What could not be looked at, or not be repaired.
    pub failures: Vec<Problem>,
}

/// A change that a pass would make.
#[derive(Debug, Serialize)]
pub struct Change {
    /// The part of the node.
    pub part: String,
    /// What would be done.
    pub what: String,
}

impl Agent {
    /// The agent that told `state`, seen at `now`.
    pub fn new(state: &State, running: bool, now: SystemTime) -> Self {
        let uptime = now.duration_since(state.started).unwrap_or_default();
        Self {
            version: state.version.clone(),
            pid: state.pid,
            running,
            started: state.started,
            uptime_seconds: running.then_some(uptime.as_secs()),
            ready: state.history.ready,
            failures: state.history.failures.clone(),
        }
    }
}

impl From<&upstream::Upstream> for Upstream {
    fn from(known: &upstream::Upstream) -> Self {
        let endpoints = known.endpoints.iter().map(|known| UpstreamEndpoint {
            endpoint: known.endpoint,
            untracked: known.tracked.is_none(),
            reason: known.tracked.as_ref().map(|why| why.reason.name()),
            detail: known.tracked.as_ref().map(|why| why.detail.clone()),
        });
        Self {
            cgroups: known.cgroups.iter().map(|one| one.path.clone()).collect(),
            endpoints: endpoints.collect(),
            learns: known.learns,
            reason: known.learns_not.as_ref().map(|why| why.reason.name()),
            detail: known.learns_not.as_ref().map(|why| why.detail.clone()),
        }
    }
}

impl Counts {
    /// Whether anything was counted.
    pub fn any(&self) -> bool {
        let Self {
            requests,
            replies,
            decided,
            translated,
            undecided,
            dropped,
        } = self;
        requests.packets | replies.packets | decided | translated != 0
            || undecided
                .values()
                .chain(dropped.values())
                .any(|count| *count != 0)
    }
}

impl From<&History> for Passes {
    fn from(history: &History) -> Self {
        Self {
            total: history.passes,
            failed: history.failed_passes,
            last: history.last_pass.as_ref().map(|pass| Pass {
                at: pass.at,
                cause: pass.cause,
                took: pass.took,
                changes: pass.changes,
            }),
        }
    }
}

impl From<&History> for Repairs {
    fn from(history: &History) -> Self {
        Self {
            total: history.repaired.clone(),
            last: history.repairs.iter().map(Repair::from).collect(),
        }
    }
}

impl From<&history::Repair> for Repair {
    fn from(repair: &history::Repair) -> Self {
        let told = repair.told.as_ref();
        Self {
            at: repair.at,
            part: repair.part.clone(),
            what: repair.what.clone(),
            since: told.map(|told| told.at),
            event: told.map(|told| told.event.clone()),
            by: told.and_then(|told| told.by.clone()),
        }
    }
}

impl From<Report> for Drift {
    fn from(report: Report) -> Self {
        let changes = report.changes.into_iter().map(|change| Change {
            part: change.part.to_owned(),
            what: change.op,
        });
        Self {
            changes: changes.collect(),
            failures: report.failures.iter().map(Problem::from).collect(),
        }
    }
}

fn time<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339(*time))
}

#[expect(clippy::ref_option, reason = "serde calls it so")]
fn maybe_time<S: Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serializer.serialize_some(&rfc3339(*time)),
        None => serializer.serialize_none(),
    }
}

fn seconds<S: Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(span.as_secs_f64())
}
