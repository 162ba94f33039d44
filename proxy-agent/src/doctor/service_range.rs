// SPDX-License-Identifier: Apache-2.0

//! VIPs in the Service range: kube-proxy in nftables mode drops new tracked connections to addresses of that range without a
//! Service (`cluster-ips-check`), including those of the node's own processes to the VIP. Untracked ones pass.

use std::net::SocketAddr;

use proxy_rules::filters;
use proxy_serve::doctor::Check;

use super::check;
use super::subject::Subject;
use crate::ownership::MARKS;

const ID: &str = "service-range";

/// Which of the node's connections to a VIP are tracked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tracked {
    /// All.
    All,
    /// Those to a ClusterIP that is DNATed to the VIP.
    ByClusterIp,
    /// Only those for which the agent's tables are full or missing.
    Few,
}

pub fn checks(subject: &Subject) -> Vec<Check> {
    if let Some(check) = subject.without_vips(ID) {
        return vec![check];
    }
    let dropped = match filters::unallocated(&subject.endpoints(), MARKS) {
        Ok(dropped) => dropped,
        Err(error) => {
            let what = "read the chains and rules of nf_tables";
            return vec![check::unknown(ID, what, &error, "run the doctor as root")];
        }
    };
    if dropped.is_empty() {
        return vec![Check::ok(
            ID,
            "kube-proxy does not drop connections to the VIPs as unallocated addresses of Services",
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
                  example a link-local one such as 169.254.20.2; see docs/operations.md";
    let rule = format!(
        "{vip} is in the Service range but is no Service's address: {place} drops tracked connections to it"
    );
    match tracked {
        Tracked::All => Check::broken(
            ID,
            format!("{rule}, so processes of this node cannot reach it"),
            remedy,
        ),
        Tracked::ByClusterIp => Check::broken(
            ID,
            format!(
                "{rule}: processes of this node cannot reach it through the ClusterIP that is DNATed to it"
            ),
            remedy,
        ),
        Tracked::Few => Check::warning(
            ID,
            format!(
                "{rule}: connections of this node's processes fail if they are tracked, for example while the \
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
    fn the_verdict_depends_on_what_is_tracked() {
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
