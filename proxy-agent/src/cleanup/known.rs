// SPDX-License-Identifier: Apache-2.0

//! What is known of an agent that does not run: from the flags, from what it told, and from what it
//! left in the kernel. Changes nothing.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use super::{Request, Scope};
use crate::backend::{ebpf, iptables, tables};
use crate::instance::{Instance, paths};
use crate::netfilter::Socket;
use crate::state;
use crate::state::owned::Owned;

/// The chain of our tables, with each backend, in which what comes from the VIPs is met.
const REPLIES: &str = "output";

/// What is to be removed. What was said goes before what an agent told, and that before what it
/// left.
pub async fn scope(request: &Request) -> Scope {
    let told = state::remembered(&request.run_dir);
    let bpffs = request.bpffs.clone().or(told.bpffs);
    let bpffs = bpffs.unwrap_or_else(|| paths::bpffs(request.instance));
    let vips = match (&request.vips[..], &told.vips[..]) {
        ([], []) => left_vips(request.instance, &bpffs).await,
        ([], told) => told.to_vec(),
        (said, _) => said.to_vec(),
    };
    let owned = Owned::load(&request.run_dir).without_claimed(&vips).await;
    Scope {
        instance: request.instance,
        owned,
        vips,
        interface: request.interface.clone().or(told.interface),
        bpffs,
        run_dir: request.run_dir.clone(),
        drain_timeout: request.drain_timeout,
    }
}

/// The VIPs that pinned maps and rules of ours name.
pub async fn left_vips(instance: Instance, bpffs: &Path) -> Vec<IpAddr> {
    let mut vips = BTreeSet::new();
    let others = ebpf::other_layouts(bpffs).unwrap_or_default();
    for directory in [bpffs.to_owned()].iter().chain(&others) {
        // What cannot be read is of another layout, or nobody's.
        vips.extend(ebpf::pinned_vips(directory).unwrap_or_default());
    }
    if let Ok(mut socket) = Socket::open() {
        for table in tables::empty(instance) {
            // An error: there is no such table.
            let comments = table.comments(&mut socket, REPLIES).unwrap_or_default();
            vips.extend(comments.iter().filter_map(|comment| named(comment)));
        }
    }
    vips.extend(iptables::survey::owned_vips(instance).await);
    vips.into_iter().collect()
}

/// The VIP that a comment of ours names: each VIP has a rule for what comes from it.
fn named(comment: &str) -> Option<IpAddr> {
    let vip = comment.strip_prefix("from ")?.split(' ').next()?;
    let vip: SocketAddr = vip.trim_end_matches(':').parse().ok()?;
    Some(vip.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_of_replies_name_a_vip() {
        let vip = Some(IpAddr::from([10, 96, 0, 2]));
        let six = "fd00::2".parse().ok();
        for (comment, wanted) in [
            ("from 10.96.0.2:443: verify at the SYN-ACK", vip),
            ("from 10.96.0.2:443", vip),
            ("from [fd00::2]:443: verify", six),
            ("to 10.96.0.1:443: decide", None),
            ("from here", None),
        ] {
            assert_eq!(named(comment), wanted, "{comment}");
        }
    }
}
