// SPDX-License-Identifier: Apache-2.0

//! What is known of an agent that does not run: from the flags, from what it told, and from what it
//! left in the kernel. Changes nothing.

use std::collections::BTreeSet;
use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use super::{PART, Request, Scope};
use crate::backend::{ebpf, iptables, tables};
use crate::instance::{Instance, paths};
use crate::netfilter::{self, Socket};
use crate::reconcile::{Report, failed};
use crate::state;
use crate::state::owned::Owned;

/// The chain of our tables, with each backend, in which what comes from the VIPs is met.
const REPLIES: &str = "output";

/// What is to be removed. What was said goes before what an agent told, and that before what it
/// left. What could not be read of that is in the report: a VIP that it may name stays.
pub async fn scope(request: &Request, report: &mut Report) -> Scope {
    let told = state::remembered(&request.run_dir);
    let bpffs = request.bpffs.clone().or(told.bpffs);
    let bpffs = bpffs.unwrap_or_else(|| paths::bpffs(request.instance));
    let vips = match (&request.vips[..], &told.vips[..]) {
        ([], []) => left_vips(request.instance, &bpffs, report).await,
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
pub async fn left_vips(instance: Instance, bpffs: &Path, report: &mut Report) -> Vec<IpAddr> {
    let mut vips = BTreeSet::new();
    let mut unread = |error: &dyn Error| failed(PART, "look for VIPs that are left", error, report);
    vips.extend(pinned(bpffs, &mut unread));
    match comments(instance) {
        Ok(comments) => vips.extend(comments.iter().filter_map(|comment| named(comment))),
        Err(error) => unread(&error),
    }
    vips.extend(iptables::survey::owned_vips(instance).await);
    vips.into_iter().collect()
}

/// The VIPs that pinned maps name, of whichever layout.
fn pinned(bpffs: &Path, unread: &mut impl FnMut(&dyn Error)) -> BTreeSet<IpAddr> {
    let mut vips = BTreeSet::new();
    let others = ebpf::other_layouts(bpffs);
    let others = others.inspect_err(|error| unread(error));
    for directory in [bpffs.to_owned()].iter().chain(&others.unwrap_or_default()) {
        match ebpf::pinned_vips(directory) {
            Ok(found) => vips.extend(found),
            Err(error) => unread(&error),
        }
    }
    vips
}

/// The comments of the rules that meet replies; none where there is no such table, or no nf_tables.
fn comments(instance: Instance) -> Result<Vec<String>, netfilter::Error> {
    let mut comments = Vec::new();
    let mut read = || -> Result<(), netfilter::Error> {
        let mut socket = Socket::open()?;
        for table in tables::empty(instance) {
            match table.comments(&mut socket, REPLIES) {
                Err(error) if error.errno() == Some(libc::ENOENT) => {}
                found => comments.extend(found?),
            }
        }
        Ok(())
    };
    match read() {
        Err(error) if error.is_unsupported() => Ok(Vec::new()),
        read => read.map(|()| comments),
    }
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

    /// A file that is no map stands for one that cannot be opened.
    #[test]
    fn a_map_that_cannot_be_read_is_not_one_without_vips() {
        let name = format!("proxy-agent-known-{}", std::process::id());
        let directory = std::env::temp_dir().join(name).join("v2");
        std::fs::create_dir_all(&directory).unwrap();
        let mut errors = 0;
        assert!(pinned(&directory, &mut |_| errors += 1).is_empty());
        assert_eq!(errors, 0);
        std::fs::write(directory.join("SERVICES"), "").unwrap();
        let mut errors = 0;
        assert!(pinned(&directory, &mut |_| errors += 1).is_empty());
        assert_eq!(errors, 1);
        std::fs::remove_dir_all(directory.parent().unwrap()).unwrap();
    }

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
