// SPDX-License-Identifier: Apache-2.0

//! What makes it time for a pass: notifications over netlink, and pins that are removed. What is done about
//! an event is decided by a full look at the node.

use std::fmt::{self, Display};
use std::io;
use std::mem;
use std::path::PathBuf;

use proxy_kernel::pins::Pins;
use proxy_netlink::actor::Actor;
use proxy_netlink::events::{self, Events, Interest};

/// Something that may concern the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Reported over netlink.
    Netlink(events::Event),
    /// Pins were removed, or the BPF file system was unmounted or mounted.
    Pins,
}

/// An event, and the process that caused it if the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// What happened.
    pub event: Event,
    /// The process that caused it, possibly without a name.
    pub by: Option<Actor>,
}

/// The sources of events.
pub struct Monitor {
    netlink: Events,
    /// None: pins are not watched, and the next resync finds those that are gone.
    pins: Option<Pins>,
}

impl Event {
    /// Whether both report the same kind of change, of whichever object.
    pub fn is_same_kind(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Netlink(one), Self::Netlink(other)) => {
                mem::discriminant(one) == mem::discriminant(other)
            }
            _ => mem::discriminant(self) == mem::discriminant(other),
        }
    }
}

impl Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Netlink(event) => event.fmt(f),
            Self::Pins => f.write_str("pins were removed"),
        }
    }
}

impl Monitor {
    /// Subscribes in the current network namespace, and watches a directory of pins.
    ///
    /// # Errors
    ///
    /// If the kernel refuses the rtnetlink subscription.
    pub fn open(interest: Interest, pins: Option<PathBuf>) -> io::Result<Self> {
        Ok(Self {
            netlink: Events::open(interest)?,
            pins: pins.and_then(|root| Pins::watch(root).ok()),
        })
    }

    /// Waits for the next event that may concern the agent. May be dropped while it waits.
    pub async fn next(&mut self) -> Notice {
        tokio::select! {
            biased;
            notice = self.netlink.next() => Notice {
                event: Event::Netlink(notice.event),
                by: notice.by,
            },
            () = removed(self.pins.as_mut()) => Notice {
                event: Event::Pins,
                by: None,
            },
        }
    }
}

/// Waits until pins are removed; for ever without a watch.
async fn removed(pins: Option<&mut Pins>) {
    match pins {
        Some(pins) => pins.removed().await,
        None => std::future::pending().await,
    }
}
