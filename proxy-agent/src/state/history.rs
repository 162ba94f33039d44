// SPDX-License-Identifier: Apache-2.0

//! Results of an agent's passes: the last pass, repairs, and counters.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime};

use proxy_netlink::actor::Actor;
use serde::{Deserialize, Serialize};

use crate::reconcile::report::Change;
use crate::reconcile::trigger::Cause;
use crate::reconcile::{Failure, Report};

/// Number of repairs kept.
const REPAIRS: usize = 32;

/// Results of all passes since the agent started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The last pass had no failures.
    pub ready: bool,
    /// Failures of the last pass.
    pub failures: Vec<Problem>,
    /// The last pass that changed something, failed, or was a resync. None before the first.
    pub last_pass: Option<Pass>,
    /// Number of passes, including those that changed nothing.
    pub passes: u64,
    /// Number of passes with failures.
    pub failed_passes: u64,
    /// Number of failures, by part.
    #[serde(default)]
    pub errors: BTreeMap<String, u64>,
    /// Number of repairs, by part.
    pub repaired: BTreeMap<String, u64>,
    /// The last repairs, oldest first.
    pub repairs: VecDeque<Repair>,
    /// A pass without failures has ended: later changes are repairs.
    pub settled: bool,
}

/// A failed observation or operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The part of the node.
    pub part: String,
    /// The action that failed.
    pub what: String,
    /// The error, down to the kernel's error code.
    pub cause: String,
}

/// One pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pass {
    /// When it began.
    pub at: SystemTime,
    /// Why it was due.
    pub cause: Cause,
    /// Its duration.
    pub took: Duration,
    /// Number of its changes.
    pub changes: usize,
}

/// A change back to the desired state after something else had changed the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repair {
    /// Begin of the pass.
    pub at: SystemTime,
    /// The part of the node.
    pub part: String,
    /// The operation.
    pub what: String,
    /// The event that triggered it. None: found without an event.
    #[serde(rename = "told")]
    pub trigger: Option<TriggerEvent>,
}

/// A kernel event that triggered a repair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriggerEvent {
    /// When the agent received it.
    pub at: SystemTime,
    /// The event, as text.
    pub event: String,
    /// The process that caused it, if known.
    pub by: Option<Actor>,
}

impl History {
    /// Adds a pass; returns true if the change is worth publishing.
    pub fn record(
        &mut self,
        report: &Report,
        cause: Cause,
        at: SystemTime,
        took: Duration,
    ) -> bool {
        let works = report.failures.is_empty();
        self.passes += 1;
        self.failed_passes += u64::from(!works);
        for failure in &report.failures {
            *self.errors.entry(failure.part.to_string()).or_default() += 1;
        }
        if self.settled {
            for change in report.changes.iter().filter(|change| !change.routine) {
                self.repaired(change, report, at);
            }
        }
        self.settled |= works;
        let failures = report.failures.iter().map(Problem::from).collect();
        let is_news =
            cause == Cause::Resync || !report.changes.is_empty() || self.failures != failures;
        self.ready = works;
        self.failures = failures;
        if is_news {
            self.last_pass = Some(Pass {
                at,
                cause,
                took,
                changes: report.changes.len(),
            });
        }
        is_news
    }

    fn repaired(&mut self, change: &Change, report: &Report, at: SystemTime) {
        *self.repaired.entry(change.part.to_string()).or_default() += 1;
        if self.repairs.len() == REPAIRS {
            self.repairs.pop_front();
        }
        self.repairs.push_back(Repair {
            at,
            part: change.part.to_string(),
            what: change.op.clone(),
            trigger: report
                .events
                .for_part(change.part)
                .map(|occasion| TriggerEvent {
                    at: occasion.at,
                    event: occasion.event.to_string(),
                    by: occasion.by.clone(),
                }),
        });
    }
}

impl From<&Failure> for Problem {
    fn from(failure: &Failure) -> Self {
        Self {
            part: failure.part.to_string(),
            what: failure.what.clone(),
            cause: failure.cause.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use proxy_netlink::events;

    use crate::monitor::{Event, Notice};
    use crate::reconcile::Part;

    const AT: SystemTime = SystemTime::UNIX_EPOCH;
    const TOOK: Duration = Duration::from_millis(3);

    fn report(changes: &[&str]) -> Report {
        let mut report = Report::default();
        for change in changes {
            report.changed(Part::Ebpf, change);
        }
        report
    }

    fn failing() -> Report {
        let mut report = Report::default();
        let error = io::Error::other("no");
        report
            .failures
            .push(Failure::new(Part::Link, "look", &error));
        report
    }

    #[test]
    fn repairs_are_what_changes_after_the_first_pass_that_works() {
        let mut history = History::default();
        let mut pass = |report: &Report, cause| history.record(report, cause, AT, TOOK);
        assert!(pass(&failing(), Cause::Resync));
        assert!(!pass(&failing(), Cause::Event), "nothing new");
        assert!(pass(&report(&["install"]), Cause::Resync));
        assert!(!pass(&report(&[]), Cause::Event));
        let mut repair = report(&["install", "attach"]);
        repair.events.add(Notice {
            event: Event::Netlink(events::Event::Table("proxy-agent".to_owned())),
            by: Some(Actor {
                pid: 7,
                name: Some("nft".to_owned()),
            }),
        });
        repair.mark_routine(Part::Ebpf, &["attach".to_owned()]);
        assert!(pass(&repair, Cause::Event));
        assert!(history.ready);
        assert_eq!((history.passes, history.failed_passes), (5, 2));
        assert_eq!(history.errors, BTreeMap::from([("link".to_owned(), 2)]));
        assert_eq!(history.repaired, BTreeMap::from([("ebpf".to_owned(), 1)]));
        let trigger = history.repairs[0].trigger.as_ref().unwrap();
        assert_eq!(trigger.event, "nf_tables table proxy-agent changed");
        assert_eq!(trigger.by.as_ref().unwrap().to_string(), "nft (pid 7)");
        assert_eq!(history.last_pass.unwrap().changes, 2);
    }

    #[test]
    fn only_the_last_repairs_are_remembered() {
        let mut history = History::default();
        history.record(&report(&[]), Cause::Resync, AT, TOOK);
        for number in 0..REPAIRS + 5 {
            history.record(&report(&[&number.to_string()]), Cause::Event, AT, TOOK);
        }
        assert_eq!(history.repairs.len(), REPAIRS);
        assert_eq!(history.repairs[0].what, "5");
        assert_eq!(history.repaired["ebpf"], 37);
    }
}
