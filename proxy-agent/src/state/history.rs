// SPDX-License-Identifier: Apache-2.0

//! What the passes of an agent have come to: the last one, the repairs, and how many there were.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::kernel::author::By;
use crate::reconcile::report::Change;
use crate::reconcile::trigger::Cause;
use crate::reconcile::{Failure, Report};

/// Repairs that are remembered.
const REPAIRS: usize = 32;

/// What became of the passes since the agent started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The last pass left nothing to be desired.
    pub ready: bool,
    /// What the last pass could not do.
    pub failures: Vec<Problem>,
    /// The last pass that changed something, failed, or was a resync. None before the first.
    pub last_pass: Option<Pass>,
    /// Passes, those that found nothing to do included.
    pub passes: u64,
    /// Those of them that failed.
    pub failed_passes: u64,
    /// What passes could not do, by part.
    #[serde(default)]
    pub errors: BTreeMap<String, u64>,
    /// Repairs by part.
    pub repaired: BTreeMap<String, u64>,
    /// The last repairs, oldest first.
    pub repairs: VecDeque<Repair>,
    /// There was a pass without failures: what is changed from then on is a repair.
    pub settled: bool,
}

/// Something that could not be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The part of the node.
    pub part: String,
    /// What was being done.
    pub what: String,
    /// Why it failed, down to the kernel's answer.
    pub cause: String,
}

/// One pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pass {
    /// When it began.
    pub at: SystemTime,
    /// Why it was due.
    pub cause: Cause,
    /// How long it took.
    pub took: Duration,
    /// What it changed.
    pub changes: usize,
}

/// Something that was as desired once, was not any more, and was made so again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repair {
    /// When the pass began that did it.
    pub at: SystemTime,
    /// The part of the node.
    pub part: String,
    /// What was done, and what had been wrong where that is not the same.
    pub what: String,
    /// The event that it goes back to. None: found by looking.
    pub told: Option<Told>,
}

/// An event before a repair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// When it came.
    pub at: SystemTime,
    /// What it told.
    pub event: String,
    /// Who did it, if the kernel told.
    pub by: Option<By>,
}

impl History {
    /// Takes in a pass, and tells whether anything is new that others should know.
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
            *self.errors.entry(failure.part.to_owned()).or_default() += 1;
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
        *self.repaired.entry(change.part.to_owned()).or_default() += 1;
        if self.repairs.len() == REPAIRS {
            self.repairs.pop_front();
        }
        self.repairs.push_back(Repair {
            at,
            part: change.part.to_owned(),
            what: change.op.clone(),
            told: report.told.of(change.part).map(|occasion| Told {
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
            part: failure.part.to_owned(),
            what: failure.what.clone(),
            cause: failure.cause.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::kernel::monitor::{Event, Notice};

    const AT: SystemTime = SystemTime::UNIX_EPOCH;
    const TOOK: Duration = Duration::from_millis(3);

    fn report(changes: &[&str]) -> Report {
        let mut report = Report::default();
        for change in changes {
            report.changed("ebpf", change);
        }
        report
    }

    fn failing() -> Report {
        let mut report = Report::default();
        let error = io::Error::other("no");
        report.failures.push(Failure::new("link", "look", &error));
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
        repair.told.add(Notice {
            event: Event::Table("proxy-agent".to_owned()),
            by: Some(By {
                pid: 7,
                name: Some("nft".to_owned()),
            }),
        });
        repair.mark_routine("ebpf", &["attach".to_owned()]);
        assert!(pass(&repair, Cause::Event));
        assert!(history.ready);
        assert_eq!((history.passes, history.failed_passes), (5, 2));
        assert_eq!(history.errors, BTreeMap::from([("link".to_owned(), 2)]));
        assert_eq!(history.repaired, BTreeMap::from([("ebpf".to_owned(), 1)]));
        let told = history.repairs[0].told.as_ref().unwrap();
        assert_eq!(told.event, "nf_tables table proxy-agent changed");
        assert_eq!(told.by.as_ref().unwrap().to_string(), "nft (pid 7)");
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
