// SPDX-License-Identifier: Apache-2.0

//! The proxy's own connections to the API servers: which are untracked, and why others are not.

use std::net::SocketAddr;

use proxy_kernel::cgroup::Cgroup;
use serde::{Deserialize, Serialize};

/// State of the proxy's own connections, as of the last pass.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    /// Cgroups of the processes whose connections count: those in which the proxy listens, or did last.
    pub cgroups: Vec<Cgroup>,
    /// The destinations; none with `--proxy-upstream=off`.
    pub endpoints: Vec<Endpoint>,
    /// The endpoints are learned (`--proxy-upstream=auto`).
    #[serde(default)]
    pub learns: bool,
    /// Why no further endpoint is learned at the moment. None: learning is active, or `learns` is false.
    #[serde(default)]
    pub learns_not: Option<Tracked>,
    /// Why the kernel does not support the rules. None: it does.
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

/// Kinds of reasons, in snake case in JSON and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The backend has no rules for the proxy's own connections.
    Backend,
    /// The kernel does not support the rules.
    Kernel,
    /// No process listens on a VIP.
    NoListener,
    /// The listener is bound to the wildcard address, so it may be another process than the proxy.
    Wildcard,
    /// The listener's cgroup is the root, or cannot be determined.
    Cgroup,
    /// The endpoint or the proxy's address is subject to NAT on the path.
    Nat,
    /// A filter of this node drops, or may drop, untracked packets of the endpoint.
    Filter,
    /// SYNs were answered only after retransmission.
    Repeated,
    /// The listener's cgroup holds other processes than the proxy: nothing is learned.
    Company,
    /// The maximum number of learned endpoints is reached.
    Limit,
}

impl Reason {
    /// The name in JSON and metrics.
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
    /// A reason of this kind with its text.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self { reason, detail }
    }
}

impl Upstream {
    /// The endpoints to which the agent's rules leave connections untracked. They include those with [`Reason::Filter`]
    /// and [`Reason::Repeated`], whose causes may lie outside of this node.
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

    /// The paths of the cgroups, for display.
    pub fn places(&self) -> String {
        let paths: Vec<_> = self.cgroups.iter().map(|one| one.path.as_str()).collect();
        paths.join(" and ")
    }
}
