// SPDX-License-Identifier: Apache-2.0

//! Whether the proxy's own connections bypass conntrack as configured: otherwise, with a full conntrack table, clients reach the
//! proxy, but the proxy reaches no API server.

use proxy_serve::doctor::Check;

use super::check;
use super::leftovers;
use super::subject::Subject;
use crate::backend::tables;
use crate::state::upstream::{Endpoint, Reason, Upstream};

const ID: &str = "proxy-upstream";

pub fn checks(subject: &Subject) -> Vec<Check> {
    let Some(state) = subject.published() else {
        return vec![Check::not_applicable(
            ID,
            "no state file of an agent shows the proxy's own connections",
        )];
    };
    let upstream = &state.upstream;
    let endpoints = upstream.endpoints.iter();
    let mut checks: Vec<_> = endpoints
        .map(|endpoint| look(endpoint, upstream, subject))
        .collect();
    checks.extend(learning(upstream));
    checks
}

/// The state of learning. Not being able to learn is no warning, because no endpoint was requested.
fn learning(upstream: &Upstream) -> Option<Check> {
    let finding = match &upstream.learns_not {
        Some(why) => format!(
            "no endpoint of the proxy's own connections is learned ({}): {}",
            why.reason.name(),
            why.detail
        ),
        None if !upstream.endpoints.is_empty() => return None,
        None if upstream.learns => {
            "no endpoint of the proxy's own connections is known yet: they are tracked until one \
             without NAT is observed"
                .to_owned()
        }
        None => "the proxy's own connections are tracked (--proxy-upstream=off)".to_owned(),
    };
    Some(Check::not_applicable(ID, finding))
}

/// Judges the published state of an endpoint, and checks that the agent's table exists.
fn look(known: &Endpoint, upstream: &Upstream, subject: &Subject) -> Check {
    if known.tracked.is_none() {
        let name = tables::name(subject.instance);
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
                    "start the agent, which installs it, or check its log",
                );
            }
            Err(error) => {
                let remedy = "run the doctor as root";
                return check::unknown(ID, format!("search for table {name}"), &error, remedy);
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
                "the proxy's connections to {endpoint} are untracked: those of cgroup {places}. A saved ruleset with these \
                 rules cannot be restored (`nft -f`) once that cgroup is gone"
            ),
        );
    };
    let remedy = match tracked.reason {
        Reason::Backend => "use backend ebpf or nftables, or unset --proxy-upstream",
        Reason::Kernel => "load the module nft_socket, or use Linux 5.13 or newer",
        Reason::NoListener => "start the proxy",
        Reason::Wildcard => "let the proxy listen on the VIPs instead of the wildcard address",
        Reason::Cgroup => {
            "run the proxy in a cgroup of its own (cgroup v2), and mount /sys/fs/cgroup of the host in the agent's \
             container"
        }
        Reason::Nat => {
            "exempt the node's own packets to the API server from NAT, or give the address after translation"
        }
        Reason::Filter => {
            "accept untracked packets of the API server in the node's filters (see check firewall), in the configuration \
             of the firewall too"
        }
        Reason::Company => {
            "run the proxy in a cgroup of its own, or name the API servers in --proxy-upstream"
        }
        Reason::Limit => "name the API servers in --proxy-upstream",
        Reason::Repeated => {
            "check that the API server answers, and accept untracked packets from it in the node's filters"
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
    use crate::state::upstream::Tracked;
    use proxy_serve::doctor::Verdict;

    #[test]
    fn learning_is_reported_without_a_warning() {
        let mut upstream = Upstream::default();
        let off = learning(&upstream).unwrap();
        assert!(off.finding.ends_with("=off)"), "{off:?}");
        upstream.learns = true;
        let waits = learning(&upstream).unwrap();
        assert!(waits.finding.contains("yet"), "{waits:?}");
        upstream.learns_not = Some(Tracked::new(Reason::Cgroup, "so"));
        let blocked = learning(&upstream).unwrap();
        assert!(blocked.finding.ends_with("(cgroup): so"), "{blocked:?}");
        assert_eq!(blocked.verdict, off.verdict);
        upstream.learns_not = None;
        upstream.endpoints.push(Endpoint {
            endpoint: "192.0.2.1:443".parse().unwrap(),
            tracked: None,
        });
        assert!(learning(&upstream).is_none());
    }

    #[test]
    fn a_tracked_endpoint_is_a_warning_with_its_reason() {
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
