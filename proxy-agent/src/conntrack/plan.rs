// SPDX-License-Identifier: Apache-2.0

//! Which entries are stale. Pure: nothing here talks to the kernel.

use std::fmt::{self, Display};
use std::net::SocketAddr;
use std::time::Duration;

use proxy_netlink::netfilter::conntrack::{Entry, Status, TcpState};

/// How many stale entries of one ClusterIP a pass deletes at most: what bounds its memory.
pub const LIMIT: usize = 10_000;
/// How many of them get a line of their own in the log.
const LINES: usize = 20;
/// From which age on, in whole seconds, an entry is stale. A SYN that is on its way right now is
/// answered long before, so its entry must be left alone. The kernel rounds the remaining time
/// down, which makes an entry look up to one second older than it is: this is more than two.
const AGE: Duration = Duration::from_secs(3);

/// What the planner works from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Addresses that clients reach by DNAT only.
    pub cluster_ips: Vec<SocketAddr>,
    /// How long conntrack remembers a SYN.
    pub syn_sent: Duration,
}

/// One step towards a table without stale entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Delete this entry.
    Delete {
        /// The entry.
        entry: Entry,
        /// Its age, up to one second too high.
        age: Duration,
    },
    /// Delete all the others.
    DeleteFurther(Vec<Entry>),
}

impl Desired {
    /// Whether an entry keeps a client from a ClusterIP: sent to it, never answered, never
    /// translated, and not of this moment.
    pub fn is_stale(&self, entry: &Entry) -> bool {
        self.cluster_ips.contains(&entry.original.destination)
            && entry.tcp_state == Some(TcpState::SynSent)
            && !entry.status.intersects(Status::SeenReply | Status::DstNat)
            && entry.reply.source == entry.original.destination
            && self.age(entry).is_some_and(|age| age >= AGE)
    }

    /// Time since the entry was made, before Linux 5.14 since its last SYN: that is when the
    /// remaining time was the whole timeout.
    ///
    /// None: the kernel does not report it, or the timeout was longer when the entry was made.
    fn age(&self, entry: &Entry) -> Option<Duration> {
        self.syn_sent.checked_sub(entry.remaining?)
    }
}

/// What must be done so that no stale entry is left.
pub fn plan(desired: &Desired, entries: Vec<Entry>) -> Vec<Op> {
    let mut stale: Vec<_> = entries
        .into_iter()
        .filter(|entry| desired.is_stale(entry))
        .collect();
    // The kernel lists in the order of its hashes.
    stale.sort_by_key(|entry| (entry.original, entry.zone, entry.id));
    stale.dedup_by_key(|entry| (entry.original, entry.zone, entry.id));
    let further = stale.split_off(stale.len().min(LINES));
    let mut ops: Vec<_> = stale
        .into_iter()
        .map(|entry| Op::Delete {
            age: desired.age(&entry).unwrap_or_default(),
            entry,
        })
        .collect();
    if !further.is_empty() {
        ops.push(Op::DeleteFurther(further));
    }
    ops
}

impl Op {
    /// The entries to delete.
    pub fn entries(&self) -> &[Entry] {
        match self {
            Self::Delete { entry, .. } => std::slice::from_ref(entry),
            Self::DeleteFurther(entries) => entries,
        }
    }
}

impl Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Delete { entry, age } => write!(
                f,
                "delete the stale conntrack entry of {} (SYN_SENT, not DNATed, unanswered for {} s)",
                entry.original,
                age.as_secs()
            ),
            Self::DeleteFurther(entries) => {
                write!(
                    f,
                    "delete {} further stale conntrack entries",
                    entries.len()
                )
            }
        }
    }
}
