// SPDX-License-Identifier: Apache-2.0

//! Liveness and readiness, computed from the published state: pure functions.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::net::SocketAddr;
use std::time::Duration;

use proxy_kernel::sockets::Listening;

use super::shared::{Phase, Snapshot};
use crate::reconcile::Part;
use crate::services;
use crate::state::State;
use crate::state::history::Problem;

/// Time without progress after which a pass counts as stuck. Longer than every time-out of the agent itself.
const STUCK: Duration = Duration::from_mins(2);
/// Tolerated delay of a pass on a machine under load.
const LATE: Duration = Duration::from_mins(1);

/// The listening sockets for each VIP and port, or the error of reading them.
pub type Listeners = Result<BTreeMap<SocketAddr, Listening>, String>;

/// One condition of a health check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Its name.
    pub name: &'static str,
    /// Whether it holds.
    pub holds: bool,
    /// The finding, as text.
    pub found: String,
}

/// The conditions of a health check; all of them must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health(pub Vec<Condition>);

impl Health {
    /// True if all conditions hold.
    pub fn is_good(&self) -> bool {
        self.0.iter().all(|condition| condition.holds)
    }
}

/// The format of Kubernetes' component health checks with `?verbose`.
impl Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Condition { name, holds, found } in &self.0 {
            let (sign, verdict) = if *holds { ('+', "ok") } else { ('-', "failed") };
            writeln!(f, "[{sign}]{name} {verdict}: {found}")?;
        }
        writeln!(f, "{}", if self.is_good() { "passed" } else { "failed" })
    }
}

/// Liveness: whether the daemon makes progress; `age` is the time since it last did.
pub fn liveness(snapshot: &Snapshot, age: Duration) -> Health {
    Health(vec![pass(snapshot, age)])
}

/// Readiness: whether the node is as desired. `listeners` is a condition only if `requires_listener`.
pub fn readiness(
    snapshot: &Snapshot,
    age: Duration,
    listeners: &Listeners,
    requires_listener: bool,
) -> Health {
    let mut conditions = vec![pass(snapshot, age)];
    if snapshot.phase == Phase::Stopping {
        conditions[0] = condition("pass", false, "shutting down");
    }
    match &snapshot.state {
        Some(state) => conditions.extend(of_pass(snapshot, state)),
        None => conditions[0] = condition("pass", false, "no pass has completed yet"),
    }
    if requires_listener {
        conditions.push(listener(listeners, snapshot.state.as_deref()));
    }
    Health(conditions)
}

/// True if `--backend=auto` found no usable backend: the VIP is kept up, connections stay tracked.
pub fn is_degraded(state: &State) -> bool {
    state.backend.asked == "auto" && state.backend.backend == "none"
}

fn condition(name: &'static str, holds: bool, found: impl Into<String>) -> Condition {
    Condition {
        name,
        holds,
        found: found.into(),
    }
}

fn pass(snapshot: &Snapshot, age: Duration) -> Condition {
    let seconds = age.as_secs();
    let (limit, found) = match snapshot.phase {
        Phase::Working => (STUCK, format!("the last operation was {seconds} s ago")),
        Phase::Idle => (
            snapshot.interval.saturating_mul(2).saturating_add(LATE),
            format!("the last pass ended {seconds} s ago"),
        ),
        Phase::Stopping => (Duration::MAX, "shutting down".to_owned()),
    };
    let found = if age > limit {
        format!("{found}, more than {} s", limit.as_secs())
    } else {
        found
    };
    condition("pass", age <= limit, found)
}

fn of_pass(snapshot: &Snapshot, state: &State) -> [Condition; 4] {
    let missing: Vec<_> = snapshot.vips.iter().filter(|vip| !vip.present).collect();
    let link = &state.settings.interface;
    let vip = if snapshot.vips.is_empty() {
        condition("vip", false, "the list of links could not be read")
    } else if missing.is_empty() {
        condition(
            "vip",
            true,
            format!("on {link}: {}", list(&state.settings.vips)),
        )
    } else {
        let missing = missing.iter().map(|vip| vip.ip);
        let found = format!(
            "not usable on {link}: {}",
            list(&missing.collect::<Vec<_>>())
        );
        condition("vip", false, found)
    };
    let is_up = !snapshot.vips.is_empty() && snapshot.vips.iter().all(|vip| vip.link_up);
    let up = format!("{link} is {}", if is_up { "up" } else { "not up" });
    let is_elsewhere = |problem: &&Problem| {
        [Part::Link, Part::Conntrack]
            .iter()
            .any(|part| part.name() == problem.part)
    };
    let failures = &state.history.failures;
    let (other, data_plane): (Vec<_>, Vec<_>) = failures.iter().partition(is_elsewhere);
    let backend = &state.backend;
    let data_plane = if !data_plane.is_empty() {
        condition("data_plane", false, list_problems(&data_plane))
    } else if !backend.is_as_asked() {
        let found = format!("--backend={} cannot be used", backend.asked);
        condition("data_plane", false, found)
    } else if is_degraded(state) {
        let found = "degraded: no backend is usable, connections are tracked";
        condition("data_plane", true, found)
    } else {
        condition("data_plane", true, format!("backend {backend}"))
    };
    let other = if other.is_empty() {
        condition("other", true, "no failures")
    } else {
        condition("other", false, list_problems(&other))
    };
    [vip, condition("link", is_up, up), data_plane, other]
}

fn listener(listeners: &Listeners, state: Option<&State>) -> Condition {
    let name = "listener";
    let listeners = match listeners {
        Ok(listeners) => listeners,
        Err(error) => return condition(name, false, error.clone()),
    };
    let silent = listeners
        .iter()
        .filter(|(_, listening)| **listening == Listening::Nowhere);
    let silent: Vec<_> = silent.map(|(endpoint, _)| endpoint).collect();
    if !silent.is_empty() {
        return condition(name, false, format!("no listener on {}", list(&silent)));
    }
    let refused = state.map_or_else(Vec::new, |state| refused(listeners, state));
    if !refused.is_empty() {
        return condition(name, false, refused.join("; "));
    }
    let all: Vec<_> = listeners.keys().collect();
    condition(name, true, format!("on {}", list(&all)))
}

/// Listeners that do not count as the proxy although Services should end on them, with the reasons.
fn refused(listeners: &BTreeMap<SocketAddr, Listening>, state: &State) -> Vec<String> {
    let settings = &state.settings;
    if state.backend.backend != "ebpf" {
        return Vec::new();
    }
    let ends_there = |vip: &SocketAddr| settings.services.iter().any(|one| one.vip == *vip);
    listeners
        .iter()
        .filter(|(vip, _)| ends_there(vip))
        .filter_map(|(vip, listening)| {
            let why = services::refused_listener(*vip, *listening, settings.proxy_listener)?;
            Some(why.to_string())
        })
        .collect()
}

fn list<T: Display>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(T::to_string).collect();
    items.join(", ")
}

fn list_problems(problems: &[&Problem]) -> String {
    let problem =
        |problem: &&Problem| format!("{}: {}: {}", problem.part, problem.what, problem.cause);
    problems.iter().map(problem).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
pub mod tests;
