// SPDX-License-Identifier: Apache-2.0

//! The rules whose counters tell of one VIP, and how they are told apart.

use std::net::SocketAddr;

/// What the counters of a rule count, of one VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// Packets to it from pods and the wire.
    FromElsewhere,
    /// Packets to it from processes of the node.
    FromHere,
    /// Packets from it.
    Replies,
    /// SYNs that were decided.
    Decided,
    /// SYNs that were not, because their client port is in use by a tracked connection.
    InUse,
    /// SYNs that were not, because a set is full.
    NoRoom,
}

impl Counted {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::FromElsewhere,
        Self::FromHere,
        Self::Replies,
        Self::Decided,
        Self::InUse,
        Self::NoRoom,
    ];

    /// The chain of its rule.
    pub fn chain(self) -> &'static str {
        match self {
            Self::FromElsewhere => "prerouting",
            Self::FromHere | Self::Replies => "output",
            Self::Decided | Self::InUse | Self::NoRoom => "open",
        }
    }

    /// The comment of its rule.
    pub fn purpose(self, vip: SocketAddr) -> String {
        match self {
            Self::FromElsewhere => format!("to {vip}"),
            Self::FromHere => format!("to {vip} from this host"),
            Self::Replies => format!("from {vip}"),
            Self::Decided => format!("to {vip}: decide"),
            Self::InUse => {
                format!("to {vip}: undecided, a tracked connection has this client port")
            }
            Self::NoRoom => format!("to {vip}: undecided, a set is full"),
        }
    }
}
