// SPDX-License-Identifier: Apache-2.0

//! Finds the VIPs of an agent that does not run and whose state file is gone, by its rules and maps of any backend. Changes
//! nothing.

use std::collections::BTreeSet;
use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use proxy_netlink::netfilter::{self, Socket};

use super::{ebpf, iptables, tables};
use crate::instance::Instance;
use crate::reconcile::{Part, Report};

/// The chain of the agent's tables, with each backend, that packets from the VIPs enter.
const REPLIES: &str = "output";

/// The VIPs in the agent's pinned maps and rules.
pub async fn vips(instance: Instance, bpffs: &Path, report: &mut Report) -> Vec<IpAddr> {
    let mut vips = BTreeSet::new();
    let mut unread = |error: &dyn Error| {
        report.failed(Part::State, "search for VIPs of an earlier agent", error);
    };
    vips.extend(pinned(bpffs, &mut unread));
    match comments(instance) {
        Ok(comments) => vips.extend(comments.iter().filter_map(|comment| named(comment))),
        Err(error) => unread(&error),
    }
    vips.extend(iptables::owned_vips(instance).await);
    vips.into_iter().collect()
}

/// The VIPs in pinned maps of any layout.
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

/// The comments of the rules for replies; empty if there is no such table, or no nf_tables.
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

/// The VIP in a comment: each VIP has a rule for packets from it.
fn named(comment: &str) -> Option<IpAddr> {
    let vip = comment.strip_prefix("from ")?.split(' ').next()?;
    let vip: SocketAddr = vip.trim_end_matches(':').parse().ok()?;
    Some(vip.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that is no map simulates a map that cannot be opened.
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
