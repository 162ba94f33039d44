// SPDX-License-Identifier: Apache-2.0

//! Whether the proxy's own connections are kept from conntrack, where that was asked for: with a full
//! table a client reaches the proxy, and the proxy nobody, if they are not.

use super::check::Check;
use super::leftovers;
use super::subject::Subject;
use crate::backend::tables;
use crate::state::upstream::{Endpoint, Reason, Upstream};

const ID: &str = "proxy-upstream";

pub fn checks(subject: &Subject) -> Vec<Check> {
    let Some(state) = subject.told() else {
        return vec![Check::not_applicable(
            ID,
            "no agent has told what becomes of the proxy's own connections",
        )];
    };
    if state.upstream.endpoints.is_empty() {
        return vec![Check::not_applicable(
            ID,
            "the proxy's own connections are tracked (--proxy-upstream=off)",
        )];
    }
    let endpoints = state.upstream.endpoints.iter();
    endpoints
        .map(|endpoint| look(endpoint, &state.upstream, subject))
        .collect()
}

/// What the agent has told, as long as its table is there.
fn look(known: &Endpoint, upstream: &Upstream, subject: &Subject) -> Check {
    if known.tracked.is_none() {
        let name = tables::upstream_name(subject.instance);
        let family = tables::family_of(known.endpoint.ip());
        match leftovers::has_table(family, &name) {
            Ok(true) => {}
            Ok(false) => {
                return Check::warning(
                    ID,
                    format!(
                        "nf_tables table {name} for {} is missing: the proxy's connections to it are tracked",
                        known.endpoint
                    ),
                    "start the agent, which installs it, or look into its log",
                );
            }
            Err(error) => {
                let remedy = "run the doctor as root";
                return Check::unknown(ID, format!("look for table {name}"), &error, remedy);
            }
        }
    }
    judge(known, upstream)
}

fn judge(known: &Endpoint, upstream: &Upstream) -> Check {
    let endpoint = known.endpoint;
    let Some(tracked) = &known.tracked else {
        let places = upstream.places();
        return Check::ok(
            ID,
            format!(
                "the proxy's connections to {endpoint} are untracked: those of cgroup {places}"
            ),
        );
    };
    let remedy = match tracked.reason {
        Reason::Backend => "use backend ebpf or nftables, or leave --proxy-upstream out",
        Reason::Kernel => "load the module nft_socket, or use Linux 5.13 or newer",
        Reason::NoListener => "start the proxy",
        Reason::Wildcard => "have the proxy listen on the VIPs, not on the wildcard address",
        Reason::Cgroup => {
            "run the proxy in a cgroup of its own (cgroup v2), and mount /sys/fs/cgroup of the host where the \
             agent runs"
        }
        Reason::Nat => {
            "exempt the node's own packets to the API server from NAT, or give the address that they really \
             go to"
        }
        Reason::Repeated => {
            "look whether the API server answers, and let untracked packets from it pass the node's filters"
        }
    };
    let detail = &tracked.detail;
    Check::warning(
        ID,
        format!("the proxy's connections to {endpoint} are tracked: {detail}"),
        remedy,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Verdict;
    use crate::state::upstream::Tracked;

    #[test]
    fn what_stays_tracked_is_a_warning_with_its_reason() {
        let judged = |tracked: Option<Tracked>| {
            let known = Endpoint {
                endpoint: "192.0.2.1:443".parse().unwrap(),
                tracked,
            };
            judge(&known, &Upstream::default())
        };
        assert_eq!(judged(None).verdict, Verdict::Ok);
        let nat = judged(Some(Tracked::new(Reason::Nat, "NAT: so")));
        assert_eq!(nat.verdict, Verdict::Warning);
        assert!(
            nat.finding.ends_with("NAT: so") && nat.remedy.is_some(),
            "{nat:?}"
        );
    }
}
