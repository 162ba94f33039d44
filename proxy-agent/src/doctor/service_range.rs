// SPDX-License-Identifier: Apache-2.0

//! VIPs out of the Service range: kube-proxy in nftables mode drops new tracked connections to addresses of
//! that range which no Service has (`cluster-ips-check`), those of the node's own processes to the VIP too.
//! Untracked ones pass.

use std::net::SocketAddr;

use proxy_serve::doctor::Check;

use super::check;
use super::subject::Subject;
use crate::filters;

const ID: &str = "service-range";

/// What of the node's connections to a VIP is tracked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tracked {
    /// All of them.
    All,
    /// Those to a ClusterIP that is DNATed to it.
    ByClusterIp,
    /// Only those that find no room, or come while the agent's rules are missing.
    Few,
}

pub fn checks(subject: &Subject) -> Vec<Check> {
    if let Some(check) = subject.without_vips(ID) {
        return vec![check];
    }
    let dropped = match filters::unallocated(&subject.endpoints()) {
        Ok(dropped) => dropped,
        Err(error) => {
            let what = "read the chains and rules of nf_tables";
            return vec![check::unknown(ID, what, &error, "run the doctor as root")];
        }
    };
    if dropped.is_empty() {
        return vec![Check::ok(
            ID,
            "kube-proxy does not take the VIPs for unallocated addresses of Services",
        )];
    }
    let judged = dropped.iter();
    judged
        .map(|(vip, place)| judge(*vip, place, tracked(*vip, subject)))
        .collect()
}

fn tracked(vip: SocketAddr, subject: &Subject) -> Tracked {
    let backend = subject.choice().map(|choice| choice.backend.as_str());
    if backend.is_none_or(|backend| backend == "none") {
        return Tracked::All;
    }
    let mut ending = subject.ending_services().into_iter();
    let mut dnat = subject.dnat.found.iter();
    if !ending.any(|service| service.vip == vip) && dnat.any(|found| found.vip == vip.ip()) {
        Tracked::ByClusterIp
    } else {
        Tracked::Few
    }
}

fn judge(vip: SocketAddr, place: &str, tracked: Tracked) -> Check {
    let remedy = "choose a VIP outside of the Service range (the API server's --service-cluster-ip-range), for \
                  example a link-local one such as 169.254.20.2; docs/operations.md says which";
    let rule = format!(
        "{vip} is an address of the Service range that no Service has: {place} drops what is tracked to it"
    );
    match tracked {
        Tracked::All => Check::broken(
            ID,
            format!("{rule}, so that no process of this node reaches it"),
            remedy,
        ),
        Tracked::ByClusterIp => Check::broken(
            ID,
            format!(
                "{rule}: processes of this node do not reach it through the ClusterIP that is DNATed to it"
            ),
            remedy,
        ),
        Tracked::Few => Check::warning(
            ID,
            format!(
                "{rule}: connections of processes of this node fail where they are not untracked, as while the \
                 agent's tables are full or missing"
            ),
            remedy,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proxy_serve::doctor::Verdict;

    #[test]
    fn what_is_tracked_decides_how_bad_it_is() {
        let vip = "10.96.0.2:443".parse().unwrap();
        for (tracked, verdict) in [
            (Tracked::All, Verdict::Broken),
            (Tracked::ByClusterIp, Verdict::Broken),
            (Tracked::Few, Verdict::Warning),
        ] {
            let check = judge(
                vip,
                "nf_tables table ip kube-proxy, chain cluster-ips-check",
                tracked,
            );
            assert_eq!(check.verdict, verdict);
            assert!(check.finding.contains("cluster-ips-check"), "{check:?}");
        }
    }
}
