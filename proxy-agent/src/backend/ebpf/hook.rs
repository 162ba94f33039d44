// SPDX-License-Identifier: Apache-2.0

//! The hooks of programs with their names, and links as arguments of operations.

use std::fmt::{self, Display};

use aya::programs::TcAttachType;
use proxy_kernel::bpf;

/// A direction of traffic control on a link.
///
/// The order is that of attachment: the egress program must be there before a connection is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// Packets that the node sends on the link.
    Egress,
    /// Packets that arrive on the link.
    Ingress,
}

/// A hook of sockets, in the network namespace or in the root cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SocketHook {
    /// The socket lookup of the network namespace (Linux 5.9).
    Steer,
    /// `getpeername(2)`, IPv4 (Linux 5.8).
    Getpeername4,
    /// `getpeername(2)`, IPv6 (Linux 5.8).
    Getpeername6,
    /// `connect(2)`, IPv4.
    Connect4,
    /// `connect(2)`, IPv6.
    Connect6,
}

/// The name of the XDP program on guarded links.
pub const XDP_PROGRAM: &str = "vip_guard";

/// A link as an argument of operations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its ifindex.
    pub index: u32,
    /// Its name.
    pub name: String,
}

impl Hook {
    /// Both, in the order of attachment.
    pub const ALL: [Self; 2] = [Self::Egress, Self::Ingress];

    /// The name of its program.
    pub fn program(self) -> &'static str {
        match self {
            Self::Egress => "vip_egress",
            Self::Ingress => "vip_ingress",
        }
    }

    /// The directory of its pinned links.
    pub fn pins(self) -> &'static str {
        match self {
            Self::Egress => "links_egress",
            Self::Ingress => "links",
        }
    }

    /// The attach type for tcx.
    pub fn tcx_type(self) -> u32 {
        match self {
            Self::Egress => bpf::TCX_EGRESS,
            Self::Ingress => bpf::TCX_INGRESS,
        }
    }

    /// The attach type for aya.
    pub fn attach_type(self) -> TcAttachType {
        match self {
            Self::Egress => TcAttachType::Egress,
            Self::Ingress => TcAttachType::Ingress,
        }
    }
}

impl SocketHook {
    /// All, in the order of attachment: a process that gets connected to the VIP must see the Service as its peer.
    pub const ALL: [Self; 5] = [
        Self::Steer,
        Self::Getpeername4,
        Self::Getpeername6,
        Self::Connect4,
        Self::Connect6,
    ];

    /// The name of its program and of its pin.
    pub fn program(self) -> &'static str {
        match self {
            Self::Steer => "vip_steer",
            Self::Getpeername4 => "vip_getpeername4",
            Self::Getpeername6 => "vip_getpeername6",
            Self::Connect4 => "vip_connect4",
            Self::Connect6 => "vip_connect6",
        }
    }

    /// True if it belongs to the root cgroup, false if to the network namespace.
    pub fn is_of_cgroup(self) -> bool {
        self != Self::Steer
    }

    /// True if connections work without it.
    pub fn is_optional(self) -> bool {
        matches!(self, Self::Getpeername4 | Self::Getpeername6)
    }
}

impl Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.program())
    }
}

impl Display for SocketHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.program())
    }
}

impl Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (ifindex {})", self.name, self.index)
    }
}
