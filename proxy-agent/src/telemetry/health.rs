// SPDX-License-Identifier: Apache-2.0

//! Whether the agent is alive and ready, judged by what it has told: pure.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::net::SocketAddr;
use std::time::Duration;

use super::board::{Phase, Told};
use crate::kernel::sockets::Listening;
use crate::services;
use crate::state::State;
use crate::state::history::Problem;
use crate::{conntrack, link};

/// How long work may take to its next operation before it is taken for stuck. Above every time-out of
/// the agent's own.
const STUCK: Duration = Duration::from_mins(2);
/// How much later than due a pass may begin on a machine under load.
const LATE: Duration = Duration::from_mins(1);

/// What listens for each VIP with its port; or why that is not known.
pub type Listeners = Result<BTreeMap<SocketAddr, Listening>, String>;

/// One thing that must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// Its name.
    pub name: &'static str,
    /// It holds.
    pub holds: bool,
    /// What was found.
    pub found: String,
}

/// All of them must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health(pub Vec<Condition>);

impl Health {
    /// True if all hold.
    pub fn is_good(&self) -> bool {
        self.0.iter().all(|condition| condition.holds)
    }
}

/// The form of the health checks of Kubernetes' own components.
impl Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Condition { name, holds, found } in &self.0 {
            let (sign, verdict) = if *holds { ('+', "ok") } else { ('-', "failed") };
            writeln!(f, "[{sign}]{name} {verdict}: {found}")?;
        }
        writeln!(f, "{}", if self.is_good() { "passed" } else { "failed" })
    }
}

/// Whether the agent gets on; its last sign of life is so old.
pub fn liveness(told: &Told, age: Duration) -> Health {
    Health(vec![pass(told, age)])
}

/// Whether the agent does its work. `listeners` count if `requires_listener`.
pub fn readiness(
    told: &Told,
    age: Duration,
    listeners: &Listeners,
    requires_listener: bool,
) -> Health {
    let mut conditions = vec![pass(told, age)];
    if told.phase == Phase::Stopping {
        conditions[0] = condition("pass", false, "the agent ends");
    }
    match &told.state {
        Some(state) => conditions.extend(of_pass(told, state)),
        None => conditions[0] = condition("pass", false, "no pass has ended yet"),
    }
    if requires_listener {
        conditions.push(listener(listeners, told.state.as_deref()));
    }
    Health(conditions)
}

/// Whether the agent does what it was asked to, and no more than keep the VIP up.
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

fn pass(told: &Told, age: Duration) -> Condition {
    let seconds = age.as_secs();
    let (limit, found) = match told.phase {
        Phase::Working => (STUCK, format!("the last operation was {seconds} s ago")),
        Phase::Idle => (
            told.interval.saturating_mul(2).saturating_add(LATE),
            format!("the last pass ended {seconds} s ago"),
        ),
        Phase::Stopping => (Duration::MAX, "the agent ends".to_owned()),
    };
    let found = if age > limit {
        format!("{found}, more than {} s", limit.as_secs())
    } else {
        found
    };
    condition("pass", age <= limit, found)
}

fn of_pass(told: &Told, state: &State) -> [Condition; 4] {
    let missing: Vec<_> = told.vips.iter().filter(|vip| !vip.present).collect();
    let link = &state.settings.interface;
    let vip = if told.vips.is_empty() {
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
    let is_up = !told.vips.is_empty() && told.vips.iter().all(|vip| vip.link_up);
    let up = format!("{link} is {}", if is_up { "up" } else { "not up" });
    let is_elsewhere = |problem: &&Problem| [link::PART, conntrack::PART].contains(&&*problem.part);
    let failures = &state.history.failures;
    let (other, data_plane): (Vec<_>, Vec<_>) = failures.iter().partition(is_elsewhere);
    let backend = &state.backend;
    let data_plane = if !data_plane.is_empty() {
        condition("data_plane", false, list_problems(&data_plane))
    } else if !backend.is_as_asked() {
        let found = format!("--backend={} cannot be used", backend.asked);
        condition("data_plane", false, found)
    } else if is_degraded(state) {
        let found = "degraded: no backend works here, connections are tracked";
        condition("data_plane", true, found)
    } else {
        condition("data_plane", true, format!("backend {backend}"))
    };
    let other = if other.is_empty() {
        condition("other", true, "nothing failed")
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
        return condition(name, false, format!("nobody listens on {}", list(&silent)));
    }
    let refused = state.map_or_else(Vec::new, |state| refused(listeners, state));
    if !refused.is_empty() {
        return condition(name, false, refused.join("; "));
    }
    let all: Vec<_> = listeners.keys().collect();
    condition(name, true, format!("on {}", list(&all)))
}

/// The listeners that do not count as the proxy, although Services should end there.
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
