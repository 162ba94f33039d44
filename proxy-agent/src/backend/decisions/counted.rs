// SPDX-License-Identifier: Apache-2.0

//! The rules with counters for one VIP. Their comments identify them, so they must not change between versions.

use std::net::SocketAddr;

/// What a rule counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// Packets to the VIP from pods and other nodes.
    FromElsewhere,
    /// Packets to the VIP from processes of the node.
    FromHere,
    /// Packets from the VIP.
    Replies,
    /// SYNs with a decision.
    Decided,
    /// SYNs without a decision, because their client port is in use by a tracked connection.
    InUse,
    /// SYNs without a decision, because a set is full.
    NoRoom,
}

impl Counted {
    /// All counters.
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
