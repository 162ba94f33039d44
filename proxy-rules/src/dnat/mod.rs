// SPDX-License-Identifier: Apache-2.0

//! Finds the rules of this node that send connections to an address: destination NAT in nf_tables (of kube-proxy's
//! native mode and of iptables-nft), in the legacy iptables tables, and in IPVS.
//!
//! The meaning of a DNAT to a VIP depends on the backend, and the caller decides about it. Cilium and other programs
//! that translate with their own BPF programs are not found.

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
    /// The place, including the chain, for example `nf_tables table ip nat, chain KUBE-SEP-X`.
    pub place: String,
    /// The VIP.
    pub vip: IpAddr,
    /// The target port, if the rule specifies one.
    pub port: Option<u16>,
}

/// A source that could not be read and may send connections to a VIP.
#[derive(Debug)]
pub struct Unread {
    /// The name of the source.
    pub source: String,
    /// The cause.
    pub error: Box<dyn StdError + Send + Sync>,
}

/// The result of a search.
#[derive(Debug, Default)]
pub struct Findings {
    /// The findings, sorted and without duplicates.
    pub found: Vec<Finding>,
    /// The sources that are missing from `found`.
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

/// Finds all rules and services in the current network namespace that send connections to one of `vips`.
///
/// Each rule is read once and not stored, so that a node with tens of thousands of rules takes a fraction of a second.
pub async fn find(vips: &[IpAddr], marks: Marks) -> Findings {
    let mut findings = Findings::default();
    nftables::find(vips, marks, &mut findings);
    legacy::find(vips, &mut findings).await;
    ipvs::find(vips, &mut findings);
    findings.found.sort();
    findings.found.dedup();
    findings
}

/// Returns true if IPVS has at least one service in this network namespace. In that case every ClusterIP is an address
/// of the node.
#[must_use]
pub fn uses_ipvs() -> bool {
    ipvs::is_used()
}
