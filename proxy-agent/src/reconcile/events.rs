// SPDX-License-Identifier: Apache-2.0

//! Kernel events that precede a pass: time, event and author. They appear in logs and in the state file; the plan depends
//! on observation alone.

use std::time::SystemTime;

use proxy_netlink::actor::Actor;
use proxy_netlink::events;

use super::part::Part;
use crate::monitor::{Event, Notice};

/// A kernel event that triggered a pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingEvent {
    /// When the agent received it.
    pub at: SystemTime,
    /// The event.
    pub event: Event,
    /// The process that caused it, if known.
    pub by: Option<Actor>,
}

impl PendingEvent {
    fn is_of_process(&self) -> bool {
        self.by.as_ref().is_some_and(Actor::is_process)
    }
}

/// The first event of each kind before a pass, without those that the agent's own changes caused. An event with a known
/// process replaces one without.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PendingEvents(Vec<PendingEvent>);

impl PendingEvents {
    /// Adds an event that was just received.
    pub fn add(&mut self, notice: Notice) {
        let Notice { event, by } = notice;
        let mut all = self.0.iter_mut();
        let known = all.find(|known| known.event.is_same_kind(&event));
        if known.as_ref().is_some_and(|known| known.is_of_process()) {
            return;
        }
        // At once: the process may end soon, and its name with it.
        let by = by.map(Actor::named);
        if by
            .as_ref()
            .is_some_and(|actor| actor.is_self(env!("CARGO_PKG_NAME")))
        {
            return;
        }
        let occasion = PendingEvent {
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

    /// The event that triggered a repair of `part`: one about this part if there is any, else the first one.
    pub fn for_part(&self, part: Part) -> Option<&PendingEvent> {
        let mut about = self.0.iter().filter(|known| concerns(&known.event, part));
        about.next().or_else(|| self.0.first())
    }
}

/// Whether an event concerns a part of the node.
fn concerns(event: &Event, part: Part) -> bool {
    let Event::Netlink(event) = event else {
        return part != Part::Link;
    };
    match event {
        events::Event::Link | events::Event::Address(_) => part == Part::Link,
        events::Event::TrafficControl | events::Event::Table(_) => part != Part::Link,
        // The kernel removes local routes itself when an address is removed.
        events::Event::LocalRoute(_) => part == Part::Ebpf,
        events::Event::Route | events::Event::Overrun => false,
    }
}

#[cfg(test)]
mod tests {
    use std::process;

    use super::*;

    fn notice(event: events::Event, pid: u32) -> Notice {
        Notice {
            event: Event::Netlink(event),
            by: Some(Actor {
                pid,
                name: Some("somebody".to_owned()),
            }),
        }
    }

    fn pid_of(events: &PendingEvents, part: Part) -> Option<u32> {
        Some(events.for_part(part)?.by.as_ref()?.pid)
    }

    #[test]
    fn a_repair_goes_back_to_the_first_event_about_its_part() {
        let mut events = PendingEvents::default();
        assert_eq!(events.for_part(Part::Link), None);
        events.add(notice(events::Event::Link, 1));
        assert_eq!(pid_of(&events, Part::Ebpf), Some(1));
        events.add(notice(events::Event::Table("proxy-agent".to_owned()), 2));
        events.add(notice(events::Event::Table("raw".to_owned()), 3));
        assert_eq!(pid_of(&events, Part::Ebpf), Some(2));
        assert_eq!(pid_of(&events, Part::Link), Some(1));
    }

    #[test]
    fn a_process_rather_than_the_kernel() {
        let mut events = PendingEvents::default();
        events.add(notice(events::Event::Link, 0));
        events.add(Notice {
            event: Event::Netlink(events::Event::Link),
            by: None,
        });
        assert_eq!(pid_of(&events, Part::Link), Some(0));
        events.add(notice(events::Event::Link, 1));
        events.add(notice(events::Event::Link, 2));
        events.add(notice(events::Event::Link, 0));
        assert_eq!(pid_of(&events, Part::Link), Some(1));
    }

    #[test]
    fn our_own_changes_are_nobodys() {
        let mut events = PendingEvents::default();
        events.add(notice(events::Event::Link, process::id()));
        assert_eq!(events, PendingEvents::default());
    }
}
