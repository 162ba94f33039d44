// SPDX-License-Identifier: Apache-2.0

//! Which rules of this node send connections to an address: destination NAT in nf_tables (kube-proxy's
//! native mode and iptables-nft alike), in the legacy iptables tables, and in IPVS.
//!
//! What a DNAT to a VIP means depends on the backend and is decided by the caller. Cilium and others that
//! translate in BPF programs of their own are not found.

#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod ipvs;
mod legacy;
pub mod local;
mod nftables;

use std::error::Error as StdError;
use std::fmt::{self, Display};
use std::net::{IpAddr, SocketAddr};

use crate::Marks;

/// A rule, or a service of IPVS, that sends connections to a VIP.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Its place, down to the chain, for example `nf_tables table ip nat, chain KUBE-SEP-X`.
    pub place: String,
    /// The VIP.
    pub vip: IpAddr,
    /// The port there, if the rule names one.
    pub port: Option<u16>,
}

/// Something that could not be read: it may send connections to a VIP.
#[derive(Debug)]
pub struct Unread {
    /// What it is.
    pub source: String,
    /// Why.
    pub error: Box<dyn StdError + Send + Sync>,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Findings {
    /// Sorted, each once.
    pub found: Vec<Finding>,
    /// What is missing from `found`.
    pub unread: Vec<Unread>,
}

impl Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => {
                let target = SocketAddr::new(self.vip, port);
                write!(f, "{}, to {target}", self.place)
            }
            None => write!(f, "{}, to {}", self.place, self.vip),
        }
    }
}

impl Unread {
    fn new(source: impl Into<String>, error: impl StdError + Send + Sync + 'static) -> Self {
        Self {
            source: source.into(),
            error: Box::new(error),
        }
    }
}

/// Finds everything in the current network namespace that sends connections to one of `vips`.
///
/// It reads each rule once and keeps none, so that a node with tens of thousands of them costs a
/// fraction of a second.
pub async fn find(vips: &[IpAddr], marks: Marks) -> Findings {
    let mut findings = Findings::default();
    nftables::find(vips, marks, &mut findings);
    legacy::find(vips, &mut findings).await;
    ipvs::find(vips, &mut findings);
    findings.found.sort();
    findings.found.dedup();
    findings
}

/// Whether IPVS has any service in this network namespace: every ClusterIP is an address of the node then.
#[must_use]
pub fn uses_ipvs() -> bool {
    ipvs::is_used()
}
