// SPDX-License-Identifier: Apache-2.0

//! Who on this node sends connections to the VIPs: destination NAT in nf_tables (kube-proxy's native
//! mode and iptables-nft alike), in the legacy iptables tables, and in IPVS.
//!
//! It only looks, and brings no table into being by looking. What a DNAT to the VIP means depends on
//! the backend, and is decided by whoever asks. Cilium and others that translate in BPF programs of
//! their own are not seen.

#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod ipvs;
mod legacy;
mod nftables;

use std::error::Error as StdError;
use std::fmt::{self, Display};
use std::net::{IpAddr, SocketAddr};

use crate::reconcile::report::chain;

/// A rule, or a service of IPVS, that sends connections to a VIP.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Where it stands, down to the chain, for example `nf_tables table ip nat, chain KUBE-SEP-X`.
    pub place: String,
    /// The VIP.
    pub vip: IpAddr,
    /// The port there, if it says one.
    pub port: Option<u16>,
}

/// Something that could not be read: whether it sends anything to a VIP is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    /// What it is.
    pub source: String,
    /// Why, down to the kernel's answer.
    pub why: String,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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
    fn new(source: impl Into<String>, error: &dyn StdError) -> Self {
        Self {
            source: source.into(),
            why: chain(error),
        }
    }
}

/// Looks for everything in the current network namespace that sends connections to one of `vips`.
///
/// It reads each rule once and keeps none, so that a node with tens of thousands of them costs a
/// fraction of a second.
pub async fn find(vips: &[IpAddr]) -> Findings {
    let mut findings = Findings::default();
    nftables::find(vips, &mut findings);
    legacy::find(vips, &mut findings).await;
    ipvs::find(vips, &mut findings);
    findings.found.sort();
    findings.found.dedup();
    findings
}

/// Whether IPVS has any service in this network namespace: every ClusterIP is an address of the node then.
pub fn uses_ipvs() -> bool {
    ipvs::is_used()
}
