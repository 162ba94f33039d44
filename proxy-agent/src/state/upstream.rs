// SPDX-License-Identifier: Apache-2.0

//! The proxy's own connections on to the API servers: which of them are untracked, and why others are not.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::kernel::cgroup::Cgroup;

/// As of the last pass.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    /// Whose connections: those of processes in these cgroups, in which the proxy listens or did last.
    pub cgroups: Vec<Cgroup>,
    /// Whereto; none with `--proxy-upstream=off`.
    pub endpoints: Vec<Endpoint>,
    /// Why the kernel does not take the rules, if it does not.
    pub unsupported: Option<String>,
}

/// An endpoint to which the proxy connects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its address and port.
    pub endpoint: SocketAddr,
    /// Why new connections to it are tracked. None: they are untracked.
    pub tracked: Option<Tracked>,
}

/// Why connections stay tracked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tracked {
    /// The kind of reason.
    pub reason: Reason,
    /// The reason in words.
    pub detail: String,
}

/// Kinds of reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The backend has no such rules.
    Backend,
    /// The kernel does not take them.
    Kernel,
    /// No process listens on a VIP.
    NoListener,
    /// The listener is bound to the wildcard address: it may be another process than the proxy.
    Wildcard,
    /// The listener's cgroup is the root, or cannot be determined.
    Cgroup,
    /// The endpoint is translated, or the proxy's address is on the way to it.
    Nat,
    /// SYNs were not answered until they were repeated.
    Repeated,
}

impl Reason {
    /// As programs read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Backend => "backend",
            Self::Kernel => "kernel",
            Self::NoListener => "no_listener",
            Self::Wildcard => "wildcard",
            Self::Cgroup => "cgroup",
            Self::Nat => "nat",
            Self::Repeated => "repeated",
        }
    }
}

impl Tracked {
    /// A reason in words.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self { reason, detail }
    }
}

impl Upstream {
    /// The endpoints to which connections are untracked as far as the agent is concerned: those, too, that do
    /// not answer, since that may be the fault of others.
    pub fn untracked(&self) -> Vec<SocketAddr> {
        let is = |known: &&Endpoint| {
            let tracked = known.tracked.as_ref();
            tracked.is_none_or(|tracked| tracked.reason == Reason::Repeated)
        };
        self.endpoints
            .iter()
            .filter(is)
            .map(|known| known.endpoint)
            .collect()
    }

    /// The paths of the cgroups, for people.
    pub fn places(&self) -> String {
        let paths: Vec<_> = self.cgroups.iter().map(|one| one.path.as_str()).collect();
        paths.join(" and ")
    }
}
