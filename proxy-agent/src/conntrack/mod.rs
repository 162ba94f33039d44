// SPDX-License-Identifier: Apache-2.0

//! Deletes stale entries of connection tracking that keep clients from their ClusterIP.
//!
//! While kube-proxy's rules are missing, a SYN to a ClusterIP is tracked without DNAT. Whether to
//! translate is decided at the first packet only: each SYN that the client repeats, and each of a
//! later connection from the same port, goes the same way to nowhere until the entry is forgotten.
//! Before Linux 5.14 each of them keeps it alive. Without the entry the next SYN is translated.

mod plan;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;

use plan::{Desired, LIMIT, Op, plan};
use proxy_netlink::netfilter::conntrack::{self, Entry, Filter, TcpState};
use proxy_netlink::netfilter::{Error, Socket};
use tracing::{debug, info};

use crate::reconcile::{Mode, Part, Report, carry_out};

/// The name of this part in reports and logs.
pub const PART: Part = Part::Conntrack;

/// Keeps every ClusterIP free of stale entries.
#[derive(Debug)]
pub struct Repair {
    cluster_ips: Vec<SocketAddr>,
    deleted: usize,
}

impl Repair {
    /// For each ClusterIP of these, whether the agent translates it or not. Touches nothing.
    pub fn new(cluster_ips: Vec<SocketAddr>) -> Self {
        Self {
            cluster_ips,
            deleted: 0,
        }
    }

    /// Looks for stale entries and deletes them.
    ///
    /// An entry counts as stale some seconds after its last SYN: the next pass deletes those for which this
    /// one is too early.
    pub async fn reconcile(&mut self, mode: Mode, report: &mut Report) {
        if self.cluster_ips.is_empty() {
            return;
        }
        let syn_sent = match conntrack::tcp_timeout(TcpState::SynSent) {
            Ok(timeout) => timeout,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                debug!(part = PART.name(), "connections are not tracked here");
                return;
            }
            Err(error) => {
                let what = "read net.netfilter.nf_conntrack_tcp_timeout_syn_sent";
                return report.failed(PART, what, &error);
            }
        };
        let desired = Desired {
            cluster_ips: self.cluster_ips.clone(),
            syn_sent,
        };
        let looked = Socket::open().and_then(|mut socket| {
            let entries = observe(&mut socket, &desired)?;
            Ok((socket, entries))
        });
        let looked = report.attempt(PART, "look for stale entries", looked);
        let Some((mut socket, entries)) = looked else {
            return;
        };
        let mut deleted = 0;
        carry_out(PART, mode, plan(&desired, entries), report, async |op| {
            apply(op, &mut socket, &mut deleted)
        })
        .await;
        if deleted > 0 {
            self.deleted += deleted;
            let total = self.deleted;
            info!(
                part = PART.name(),
                "{deleted} stale entries deleted, {total} since the start"
            );
        }
    }
}

/// Stale entries, at most [`LIMIT`] of each ClusterIP; the others are left to later passes.
fn observe(socket: &mut Socket, desired: &Desired) -> Result<Vec<Entry>, Error> {
    let mut entries = Vec::new();
    for cluster_ip in &desired.cluster_ips {
        let filter = Filter::UnansweredTo(*cluster_ip);
        let stale = conntrack::each(socket, filter, |stale: &mut Vec<_>, entry| {
            if stale.len() < LIMIT && desired.is_stale(&entry) {
                stale.push(entry);
            }
        })?;
        entries.extend(stale);
    }
    Ok(entries)
}

fn apply(op: &Op, socket: &mut Socket, deleted: &mut usize) -> Result<(), Error> {
    let mut result = Ok(());
    for entry in op.entries() {
        match conntrack::delete(socket, entry) {
            Ok(true) => *deleted += 1,
            Ok(false) => {}
            Err(error) => result = result.and(Err(error)),
        }
    }
    result
}
