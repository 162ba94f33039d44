// SPDX-License-Identifier: Apache-2.0

//! The agent's metrics: converts facts to samples. `reading.rs` reads the kernel's part of the facts; `catalogue.rs` has names
//! and help texts.

mod catalogue;
mod exposition;
mod reading;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::env::consts::ARCH;
use std::time::SystemTime;

use prometheus::{HistogramOpts, HistogramVec};
use proxy_kernel::sockets::Listening;

use self::catalogue as metric;
use self::exposition::Exposition;
pub use self::reading::{Reader, Reading, listeners};
use super::health::{self, Health, Listeners};
use super::shared::Snapshot;
use crate::reconcile::Part;
use crate::reconcile::trigger::Cause;
use crate::state::State;
use crate::status::model::{Counts, OfVip};

/// Upper bounds of the durations of passes, in seconds.
const BUCKETS: [f64; 13] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
/// Value of the label `link` for the node's own processes.
const THIS_NODE: &str = "(this node)";

/// The facts that samples are made of.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The state that the daemon published last.
    pub snapshot: &'a Snapshot,
    /// Durations of passes.
    pub durations: &'a HistogramVec,
    /// Readiness, with all conditions.
    pub readiness: &'a Health,
    /// The listening sockets.
    pub listeners: &'a Listeners,
    /// Values read from the kernel; none before the first pass.
    pub reading: Option<&'a Reading>,
    /// Adds the samples by link.
    pub links: bool,
}

/// A histogram of the durations of passes.
pub fn durations() -> HistogramVec {
    let metric = &metric::DURATION;
    let options = HistogramOpts::new(metric.name, metric.help).buckets(BUCKETS.to_vec());
    #[expect(
        clippy::expect_used,
        reason = "it depends on constants only, and every start shows it"
    )]
    let durations =
        HistogramVec::new(options, metric.labels).expect("a valid name and valid bounds");
    // Exposes both causes before the first observation.
    for cause in Cause::ALL {
        durations.with_label_values(&[cause.name()]);
    }
    durations
}

/// The samples in the Prometheus text format.
///
/// # Errors
///
/// None known.
pub fn text(facts: &Facts<'_>) -> prometheus::Result<String> {
    let mut out = Exposition::default();
    agent(facts, &mut out);
    if let Some(state) = &facts.snapshot.state {
        passes(facts.snapshot, state, &mut out);
        vips(facts, state, &mut out);
        backend(state, &mut out);
    }
    if let Some(reading) = facts.reading {
        for of_vip in reading.counters.iter().flatten() {
            connections(of_vip, &mut out);
            if facts.links {
                by_link(of_vip, &mut out);
            }
        }
        kernel(reading, &mut out);
    }
    out.text()
}

fn agent(facts: &Facts<'_>, out: &mut Exposition) {
    let snapshot = facts.snapshot;
    out.count(&metric::BUILD_INFO, &[env!("CARGO_PKG_VERSION"), ARCH], 1);
    out.set(&metric::START_TIME, &[], seconds(Some(snapshot.started)));
    out.flag(&metric::READY, &[], facts.readiness.is_good());
    for condition in &facts.readiness.0 {
        out.flag(&metric::READY_CONDITION, &[condition.name], condition.holds);
    }
    let degraded = snapshot.state.as_deref().is_some_and(health::is_degraded);
    out.flag(&metric::DEGRADED, &[], degraded);
    let unread = facts.reading.map(|reading| reading.unread.as_slice());
    for source in reading::SOURCES {
        let is_unread = unread.is_some_and(|unread| unread.contains(&source));
        out.flag(&metric::UNREADABLE, &[source], is_unread);
    }
    out.flag(
        &metric::UNREADABLE,
        &["listeners"],
        facts.listeners.is_err(),
    );
    out.observed(&metric::DURATION, facts.durations);
    out.set(&metric::LAST_PASS, &[], seconds(snapshot.ended));
    out.set(&metric::LAST_SUCCESS, &[], seconds(snapshot.succeeded));
    out.set(&metric::INTERVAL, &[], snapshot.interval.as_secs_f64());
}

fn passes(snapshot: &Snapshot, state: &State, out: &mut Exposition) {
    let history = &state.history;
    out.count(&metric::FAILED_PASSES, &[], history.failed_passes);
    let mut failing: BTreeMap<&str, u64> = BTreeMap::new();
    for failure in &history.failures {
        *failing.entry(&failure.part).or_default() += 1;
    }
    let seen = history.repaired.keys().chain(history.errors.keys());
    let parts: BTreeSet<&str> = Part::ALL
        .iter()
        .map(|part| part.name())
        .chain(seen.map(String::as_str))
        .collect();
    for part in parts {
        let repaired = history.repaired.get(part).copied();
        out.count(&metric::REPAIRS, &[part], repaired.unwrap_or_default());
        let errors = history.errors.get(part).copied();
        out.count(&metric::ERRORS, &[part], errors.unwrap_or_default());
        let failing = failing.get(part).copied();
        out.count(&metric::FAILING, &[part], failing.unwrap_or_default());
    }
    for vip in &snapshot.vips {
        out.flag(
            &metric::VIP_PRESENT,
            &[&vip.ip.to_string(), &vip.link],
            vip.present,
        );
    }
    if let Some(vip) = snapshot.vips.first() {
        out.flag(&metric::LINK_UP, &[&vip.link], vip.link_up);
    }
}

fn vips(facts: &Facts<'_>, state: &State, out: &mut Exposition) {
    for (endpoint, listening) in facts.listeners.iter().flatten() {
        let listens = *listening != Listening::Nowhere;
        out.flag(&metric::LISTENER_UP, &[&endpoint.to_string()], listens);
    }
    for service in &state.settings.services {
        let labels = [service.cluster_ip.to_string(), service.vip.to_string()];
        out.count(
            &metric::SERVICE_INFO,
            &labels.each_ref().map(String::as_str),
            1,
        );
    }
}

fn backend(state: &State, out: &mut Exposition) {
    for guarded in &state.guard.links {
        out.count(&metric::GUARD_LINK_INFO, &[&guarded.link, &guarded.how], 1);
    }
    for known in &state.upstream.endpoints {
        let reason = known.tracked.as_ref();
        let reason = reason.map_or("", |tracked| tracked.reason.name());
        let labels = [&*known.endpoint.to_string(), reason];
        out.flag(
            &metric::UPSTREAM_UNTRACKED,
            &labels,
            known.tracked.is_none(),
        );
    }
    if state.upstream.learns {
        let reason = state.upstream.learns_not.as_ref();
        let labels = [reason.map_or("", |why| why.reason.name())];
        out.flag(&metric::UPSTREAM_LEARNING, &labels, reason.is_none());
    }
    let backend = &state.backend;
    let labels = [&*backend.asked, &*backend.backend, &*backend.detail];
    out.count(&metric::BACKEND_INFO, &labels, 1);
    for rejected in &backend.rejected {
        out.count(&metric::BACKEND_REJECTED, &[&rejected.backend], 1);
    }
    for by in &backend.breaks {
        out.count(&metric::BACKEND_BREAKS, &[by], 1);
    }
}

fn connections(of_vip: &OfVip, out: &mut Exposition) {
    let vip = &*of_vip.vip.to_string();
    let counts = &of_vip.total;
    for (direction, traffic) in [("request", counts.requests), ("reply", counts.replies)] {
        out.count(&metric::PACKETS, &[vip, direction], traffic.packets);
        out.count(&metric::BYTES, &[vip, direction], traffic.bytes);
    }
    out.count(&metric::DECISIONS, &[vip], counts.decided);
    out.count(&metric::TRANSLATIONS, &[vip], counts.translated);
    for (reason, count) in &counts.undecided {
        out.count(&metric::UNDECIDED, &[vip, reason], *count);
    }
    for (cause, count) in &counts.dropped {
        out.count(&metric::GUARD_DROPS, &[vip, cause], *count);
    }
}

fn by_link(of_vip: &OfVip, out: &mut Exposition) {
    let vip = &*of_vip.vip.to_string();
    for of_link in &of_vip.links {
        let link = of_link.link.as_deref().unwrap_or(THIS_NODE);
        let Counts {
            decided,
            translated,
            undecided,
            ..
        } = &of_link.counts;
        out.count(&metric::LINK_DECISIONS, &[vip, link], *decided);
        out.count(&metric::LINK_TRANSLATIONS, &[vip, link], *translated);
        let undecided = undecided.values().copied().fold(0, u64::wrapping_add);
        out.count(&metric::LINK_UNDECIDED, &[vip, link], undecided);
    }
}

fn kernel(reading: &Reading, out: &mut Exposition) {
    for (map, fill) in &reading.maps {
        out.count(&metric::MAP_ENTRIES, &[map], fill.entries as u64);
        out.count(&metric::MAP_MAX, &[map], fill.size as u64);
    }
    if let Some(fill) = reading.conntrack {
        out.count(&metric::CONNTRACK_ENTRIES, &[], fill.count);
        out.count(&metric::CONNTRACK_MAX, &[], fill.max);
    }
    if let Some(statistics) = reading.conntrack_statistics {
        out.count(&metric::CONNTRACK_DROPS, &[], statistics.drop);
        out.count(&metric::CONNTRACK_EARLY_DROPS, &[], statistics.early_drop);
        out.count(
            &metric::CONNTRACK_INSERT_FAILURES,
            &[],
            statistics.insert_failed,
        );
    }
}

/// Seconds since 1970; 0 if there is no time.
fn seconds(time: Option<SystemTime>) -> f64 {
    let since = time.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    since.unwrap_or_default().as_secs_f64()
}
