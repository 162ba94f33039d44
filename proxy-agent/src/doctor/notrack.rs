// SPDX-License-Identifier: Apache-2.0

//! Stateless NOTRACK rules of others for the VIPs, as apiserver-proxy-sidecar adds them: they untrack replies of connections
//! that kube-proxy DNATed, which then time out.

use std::net::IpAddr;

use proxy_serve::doctor::Check;

use super::check;
use super::subject::Subject;
use crate::ownership::Owned as _;

const ID: &str = "notrack-rules";

pub fn checks(subject: &Subject) -> Vec<Check> {
    if let Some(check) = subject.without_vips(ID) {
        return vec![check];
    }
    let mut checks = Vec::new();
    for found in &subject.iptables {
        let unread = found.unread("raw");
        checks.extend(unread.map(|error| check::unread_table(ID, &found.program(), "raw", error)));
        let rules = found
            .table("raw")
            .into_iter()
            .flat_map(|table| &table.rules);
        for rule in rules.filter(|rule| rule.owner().is_none()) {
            if let Some(vip) = rule.untracks(&subject.vips) {
                let command = format!("{} -t raw -D {} {}", found.program(), rule.chain, rule.spec);
                let dnat = subject.dnat.found.iter().any(|found| found.vip == vip);
                checks.push(judge(vip, &found.program(), &rule.chain, dnat).with_command(command));
            }
        }
    }
    if checks.is_empty() {
        checks.push(Check::ok(ID, "no foreign NOTRACK rules for the VIPs"));
    }
    checks
}

fn judge(vip: IpAddr, program: &str, chain: &str, dnat: bool) -> Check {
    let rule = format!("a foreign rule in {program} table raw, chain {chain}, untracks {vip}");
    let remedy = "stop the program that adds it (apiserver-proxy-sidecar with --setup-iptables?) and remove it";
    if dnat {
        let finding = format!("{rule}: connections that are DNATed to {vip} time out");
        Check::broken(ID, finding, remedy)
    } else {
        Check::warning(ID, rule, remedy)
    }
}
