// SPDX-License-Identifier: Apache-2.0

//! What the kernel told before a pass: when something happened, what, and by whom. It goes into logs
//! and into the state; what is done is decided by looking at the node.

use std::mem;
use std::time::SystemTime;

use crate::kernel::author::By;
use crate::kernel::monitor::{Event, Notice};
use crate::link;

/// An event that made it time for a pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Occasion {
    /// When it came.
    pub at: SystemTime,
    /// What it told.
    pub event: Event,
    /// Who did it, if that is known.
    pub by: Option<By>,
}

impl Occasion {
    fn is_of_process(&self) -> bool {
        self.by.as_ref().is_some_and(By::is_process)
    }
}

/// The first event of each kind before a pass, without those of our own changes; one that a process
/// has brought about rather than one of the kernel's own or of nobody known.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Told(Vec<Occasion>);

impl Told {
    /// Takes in an event that has just come.
    pub fn add(&mut self, notice: Notice) {
        let Notice { event, by } = notice;
        let kind = mem::discriminant(&event);
        let mut all = self.0.iter_mut();
        let known = all.find(|known| mem::discriminant(&known.event) == kind);
        if known.as_ref().is_some_and(|known| known.is_of_process()) {
            return;
        }
        // Now, while the process may still be there.
        let by = by.map(By::named);
        if by.as_ref().is_some_and(By::is_self) {
            return;
        }
        let occasion = Occasion {
            at: SystemTime::now(),
            event,
            by,
        };
        match known {
            None => self.0.push(occasion),
            Some(known) if occasion.is_of_process() => *known = occasion,
            Some(_) => {}
        }
    }

    /// The event that a repair of this part goes back to: one that is about it if there is any.
    pub fn of(&self, part: &str) -> Option<&Occasion> {
        let mut about = self.0.iter().filter(|known| concerns(&known.event, part));
        about.next().or_else(|| self.0.first())
    }
}

/// Whether an event is about a part of the node; the parts are those of reports.
fn concerns(event: &Event, part: &str) -> bool {
    match event {
        Event::Link | Event::Address(_) => part == link::PART,
        Event::TrafficControl | Event::Table(_) | Event::Pins => part != link::PART,
        // The kernel removes routes by itself where somebody has removed an address.
        Event::LocalRoute(_) => part == "ebpf",
        Event::Route | Event::Overrun => false,
    }
}

#[cfg(test)]
mod tests {
    use std::process;

    use super::*;

    fn notice(event: Event, pid: u32) -> Notice {
        Notice {
            event,
            by: Some(By {
                pid,
                name: Some("somebody".to_owned()),
            }),
        }
    }

    fn pid_of(told: &Told, part: &str) -> Option<u32> {
        Some(told.of(part)?.by.as_ref()?.pid)
    }

    #[test]
    fn a_repair_goes_back_to_the_first_event_about_its_part() {
        let mut told = Told::default();
        assert_eq!(told.of("link"), None);
        told.add(notice(Event::Link, 1));
        assert_eq!(pid_of(&told, "ebpf"), Some(1));
        told.add(notice(Event::Table("proxy-agent".to_owned()), 2));
        told.add(notice(Event::Table("raw".to_owned()), 3));
        assert_eq!(pid_of(&told, "ebpf"), Some(2));
        assert_eq!(pid_of(&told, "link"), Some(1));
    }

    #[test]
    fn a_process_rather_than_the_kernel() {
        let mut told = Told::default();
        told.add(notice(Event::Link, 0));
        told.add(Notice {
            event: Event::Link,
            by: None,
        });
        assert_eq!(pid_of(&told, "link"), Some(0));
        told.add(notice(Event::Link, 1));
        told.add(notice(Event::Link, 2));
        told.add(notice(Event::Link, 0));
        assert_eq!(pid_of(&told, "link"), Some(1));
    }

    #[test]
    fn our_own_changes_are_nobodys() {
        let mut told = Told::default();
        told.add(notice(Event::Link, process::id()));
        assert_eq!(told, Told::default());
    }
}
