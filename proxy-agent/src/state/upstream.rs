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
    /// The endpoints are learned (`--proxy-upstream=auto`).
    #[serde(default)]
    pub learns: bool,
    /// Why no further endpoint is learned now, where they are learned at all. None: the next one is.
    #[serde(default)]
    pub learns_not: Option<Tracked>,
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
    /// A filter of this node drops untracked packets of the endpoint, or may.
    Filter,
    /// SYNs were not answered until they were repeated.
    Repeated,
    /// The listener's cgroup holds more than the proxy: nothing is learned.
    Company,
    /// No more endpoints are learned.
    Limit,
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
            Self::Filter => "filter",
            Self::Repeated => "repeated",
            Self::Company => "company",
            Self::Limit => "limit",
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
    /// The endpoints to which connections are untracked as far as the agent is concerned: those, too, whose packets a
    /// filter drops, and those that do not answer, since that may be the fault of others.
    pub fn untracked(&self) -> Vec<SocketAddr> {
        let is = |known: &&Endpoint| {
            let tracked = known.tracked.as_ref();
            let of_others = [Reason::Filter, Reason::Repeated];
            tracked.is_none_or(|tracked| of_others.contains(&tracked.reason))
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
