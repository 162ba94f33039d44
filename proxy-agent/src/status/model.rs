// SPDX-License-Identifier: Apache-2.0

//! The result of `status`, in the shape of its JSON form. docs/status.md documents the field names, which are stable.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use proxy_netlink::actor::Actor;
use serde::{Serialize, Serializer};

use crate::config::Service;
use crate::link::Vip;
use crate::reconcile::Report;
use crate::reconcile::trigger::Cause;
use crate::state::history::{self, History, Problem};
use crate::state::{Choice, Guarded, State, upstream};
use crate::time::rfc3339;

/// The whole result.
#[derive(Debug, Serialize)]
pub struct Status {
    /// The agent as a process.
    pub agent: Agent,
    /// The current state of the VIPs.
    pub vips: Vec<Vip>,
    /// The Services that should end on the proxy.
    pub services: Vec<OfService>,
    /// The backend in use, with the reasons against others.
    pub backend: Choice,
    /// Links on which programs of others run before the agent's.
    pub hidden: Vec<Hidden>,
    /// On which links packets for the VIPs are dropped.
    pub guard: Guarded,
    /// The proxy's own connections.
    pub upstream: Upstream,
    /// Counters by VIP and port; empty if the backend has none.
    pub counters: Vec<OfVip>,
    /// Fill level of the table of decisions, if there is one.
    pub connections: Option<Connections>,
    /// Results of the passes.
    pub passes: Passes,
    /// Repairs.
    pub repairs: Repairs,
    /// Changes that a pass would make now.
    pub drift: Drift,
    /// Sources that could not be read, with the kernel's errors.
    pub unreadable: Vec<String>,
}

/// The agent as a process.
#[derive(Debug, Serialize)]
pub struct Agent {
    /// Its version.
    pub version: String,
    /// Its process id, in its own PID namespace.
    pub pid: u32,
    /// It runs: its lock is held.
    pub running: bool,
    /// When it started.
    #[serde(serialize_with = "time")]
    pub started: SystemTime,
    /// Time since it started; none if it does not run.
    pub uptime_seconds: Option<u64>,
    /// Its last pass had no failures.
    pub ready: bool,
    /// Failures of its last pass.
    pub failures: Vec<Problem>,
}

/// A link on which programs of others run before the agent's: they may drop or redirect packets first.
#[derive(Debug, Serialize)]
pub struct Hidden {
    /// The name of the link.
    pub link: String,
    /// Those programs, in execution order.
    pub by: Vec<String>,
}

/// A Service that should end on the proxy.
#[derive(Debug, Serialize)]
pub struct OfService {
    /// The Service.
    #[serde(flatten)]
    pub service: Service,
    /// Why new connections to it go through kube-proxy; none if they end on the proxy.
    pub undecided: Option<String>,
}

/// The proxy's own connections, as of the agent's last pass.
#[derive(Debug, Serialize)]
pub struct Upstream {
    /// The cgroups in which the proxy listens, or did last, as paths below the root of the cgroup hierarchy.
    pub cgroups: Vec<String>,
    /// Named or learned endpoints.
    pub endpoints: Vec<UpstreamEndpoint>,
    /// Whether endpoints are learned.
    pub learns: bool,
    /// Why no further endpoint is learned at the moment, as an identifier; none if learning is active or off.
    pub reason: Option<&'static str>,
    /// The same reason as text.
    pub detail: Option<String>,
}

/// New connections of the proxy to an endpoint.
#[derive(Debug, Serialize)]
pub struct UpstreamEndpoint {
    /// Its address and port.
    pub endpoint: SocketAddr,
    /// They bypass conntrack.
    pub untracked: bool,
    /// Why not, as an identifier.
    pub reason: Option<&'static str>,
    /// Why not, as text.
    pub detail: Option<String>,
}

/// The counters of a VIP with one port.
#[derive(Debug, Serialize)]
pub struct OfVip {
    /// The VIP with its port.
    pub vip: SocketAddr,
    /// Sum over all links.
    pub total: Counts,
    /// Counters by link.
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

/// Counter values. They grow until the agent cleans up or the link is deleted.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Counts {
    /// Untracked packets to the VIP.
    pub requests: Direction,
    /// Untracked packets from the VIP.
    pub replies: Direction,
    /// SYNs with a decision.
    pub decided: u64,
    /// SYNs and calls of connect(2) to a ClusterIP that ended on the proxy.
    pub translated: u64,
    /// SYNs without a decision, by reason.
    pub undecided: BTreeMap<&'static str, u64>,
    /// Dropped packets, by cause.
    pub dropped: BTreeMap<&'static str, u64>,
}

/// Packets of one direction.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Direction {
    /// Number of packets.
    pub packets: u64,
    /// Number of bytes, from the IP header on.
    pub bytes: u64,
}

/// Fill level of the table of decisions.
#[derive(Debug, Serialize)]
pub struct Connections {
    /// Stored decisions, including those of ended connections.
    pub entries: usize,
    /// Capacity.
    pub size: usize,
}

/// Results of the passes.
#[derive(Debug, Serialize)]
pub struct Passes {
    /// Number of passes since the agent started.
    pub total: u64,
    /// Number of passes with failures.
    pub failed: u64,
    /// The last pass that changed something, failed, or was a resync.
    pub last: Option<Pass>,
}

/// A pass.
#[derive(Debug, Serialize)]
pub struct Pass {
    /// When it began.
    #[serde(serialize_with = "time")]
    pub at: SystemTime,
    /// Why it was due.
    pub cause: Cause,
    /// Its duration.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub took: Duration,
    /// Number of its changes.
    pub changes: usize,
}

/// Repairs.
#[derive(Debug, Serialize)]
pub struct Repairs {
    /// Numbers by part of the node, since the agent started.
    pub total: BTreeMap<String, u64>,
    /// The latest repairs, oldest first.
    pub last: Vec<Repair>,
}

/// One repair.
#[derive(Debug, Serialize)]
pub struct Repair {
    /// Begin of the pass.
    #[serde(serialize_with = "time")]
    pub at: SystemTime,
    /// The part of the node.
    pub part: String,
    /// The operation.
    pub what: String,
    /// When the event that triggered it was received; none if it was found without an event.
    #[serde(serialize_with = "maybe_time")]
    pub since: Option<SystemTime>,
    /// That event.
    pub event: Option<String>,
    /// The process that caused it.
    pub by: Option<Actor>,
}

/// Changes that a pass would make now.
#[derive(Debug, Default, Serialize)]
pub struct Drift {
    /// The changes.
    pub changes: Vec<Change>,
    /// Failed observations.
    pub failures: Vec<Problem>,
}

/// A change that a pass would make.
#[derive(Debug, Serialize)]
pub struct Change {
    /// The part of the node.
    pub part: String,
    /// The operation.
    pub what: String,
}

impl Agent {
    /// The agent that published `state`, at time `now`.
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
    /// True if a counter is not zero.
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
        let trigger = repair.trigger.as_ref();
        Self {
            at: repair.at,
            part: repair.part.clone(),
            what: repair.what.clone(),
            since: trigger.map(|trigger| trigger.at),
            event: trigger.map(|trigger| trigger.event.clone()),
            by: trigger.and_then(|trigger| trigger.by.clone()),
        }
    }
}

impl From<Report> for Drift {
    fn from(report: Report) -> Self {
        let changes = report.changes.into_iter().map(|change| Change {
            part: change.part.to_string(),
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
