// SPDX-License-Identifier: Apache-2.0

//! iptables rules that translate connections to a port of any address of the node (`--dst-type LOCAL`), as the portmap plugin
//! adds them for a hostPort and Docker for a published port. The VIP is an address of the node, so they translate its tracked
//! connections too. Untracked connections are not subject to NAT.

use std::net::SocketAddr;

use proxy_rules::dnat::local::translating_chain;
use proxy_serve::doctor::Check;

use super::check;
use super::subject::Subject;

const ID: &str = "local-dnat";

pub fn checks(subject: &Subject) -> Vec<Check> {
    if let Some(check) = subject.without_vips(ID) {
        return vec![check];
    }
    let all_tracked = subject
        .choice()
        .is_none_or(|choice| choice.backend == "none");
    let mut checks = Vec::new();
    for tables in &subject.iptables {
        let program = tables.program();
        let unread = tables.unread("nat");
        checks.extend(unread.map(|error| check::unread_table(ID, &program, "nat", error)));
        let Some(table) = tables.table("nat") else {
            continue;
        };
        for endpoint in subject.endpoints() {
            let is_v6 = program.starts_with("ip6");
            if endpoint.is_ipv6() != is_v6 {
                continue;
            }
            let chain = translating_chain(table, endpoint);
            checks.extend(chain.map(|chain| judge(endpoint, &program, chain, all_tracked)));
        }
    }
    if checks.is_empty() {
        let finding = "no iptables rule translates the VIPs' ports on all addresses of the node";
        checks.push(Check::ok(ID, finding));
    }
    checks
}

fn judge(endpoint: SocketAddr, program: &str, chain: &str, all_tracked: bool) -> Check {
    let finding = format!(
        "{program} table nat, chain {chain}, translates connections to port {} of any address of the node (a \
         hostPort?), including tracked ones to {endpoint}",
        endpoint.port()
    );
    let remedy = "use another hostPort, or set a hostIP for the pod's port; with backends other than none, untracked \
                  connections are not affected";
    if all_tracked {
        let finding = format!("{finding}: with the backend in use all of them are tracked");
        Check::broken(ID, finding, remedy)
    } else {
        Check::warning(ID, finding, remedy)
    }
}

#[cfg(test)]
mod tests {
    use proxy_serve::doctor::Verdict;

    use super::*;

    #[test]
    fn it_is_worse_if_all_connections_are_tracked() {
        let judged = |all_tracked| {
            let endpoint = "10.96.0.2:443".parse().unwrap();
            judge(endpoint, "iptables-nft", "CNI-DN-x", all_tracked).verdict
        };
        assert_eq!(judged(false), Verdict::Warning);
        assert_eq!(judged(true), Verdict::Broken);
    }
}
