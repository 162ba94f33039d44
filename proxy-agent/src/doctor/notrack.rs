// SPDX-License-Identifier: Apache-2.0

//! Stateless NOTRACK rules of others for the VIPs, as apiserver-proxy-sidecar sets them: they untrack
//! replies of connections that kube-proxy DNATed, which then time out.

use std::net::IpAddr;

use proxy_serve::doctor::Check;

use super::check;
use super::subject::Subject;
use crate::backend::iptables::survey::{self, SavedRule};

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
        for rule in rules.filter(|rule| rule.owner.is_none()) {
            if let Some(vip) = untracks(rule, &subject.vips) {
                let command = format!("{} -t raw -D {} {}", found.program(), rule.chain, rule.spec);
                let dnat = subject.dnat.found.iter().any(|found| found.vip == vip);
                checks.push(judge(vip, &found.program(), &rule.chain, dnat).with_command(command));
            }
        }
    }
    if checks.is_empty() {
        checks.push(Check::ok(ID, "nobody else has NOTRACK rules for the VIPs"));
    }
    checks
}

fn judge(vip: IpAddr, program: &str, chain: &str, dnat: bool) -> Check {
    let rule =
        format!("a rule in {program} table raw, chain {chain}, untracks {vip} and is not ours");
    let remedy =
        "stop whoever sets it (apiserver-proxy-sidecar with --setup-iptables?) and remove it";
    if dnat {
        let finding = format!("{rule}: connections that are DNATed to {vip} time out");
        Check::broken(ID, finding, remedy)
    } else {
        Check::warning(ID, rule, remedy)
    }
}

/// The VIP whose packets a rule untracks.
fn untracks(rule: &SavedRule, vips: &[IpAddr]) -> Option<IpAddr> {
    let words = survey::words(&rule.spec)?;
    let pair = |option: &str, value: &str| {
        let mut pairs = words.windows(2);
        pairs.any(|pair| pair[0] == option && pair[1] == value)
    };
    if !pair("-j", "NOTRACK") && !words.iter().any(|word| word == "--notrack") {
        return None;
    }
    vips.iter().copied().find(|vip| {
        let prefix = format!("{vip}/{}", if vip.is_ipv4() { 32 } else { 128 });
        pair("-d", &prefix) || pair("-s", &prefix)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_notrack_are_known() {
        let vips = [IpAddr::from([10, 96, 0, 2])];
        let found = |spec: &str| {
            let rule = SavedRule {
                chain: "OUTPUT".to_owned(),
                spec: spec.to_owned(),
                owner: None,
            };
            untracks(&rule, &vips).is_some()
        };
        assert!(found(
            "-d 10.96.0.2/32 -p tcp -m tcp --dport 443 -j NOTRACK"
        ));
        assert!(found(
            "-s 10.96.0.2/32 -p tcp -m tcp --sport 443 -j CT --notrack"
        ));
        assert!(!found("-d 10.96.0.3/32 -j NOTRACK"));
        assert!(!found("-d 10.96.0.2/32 -j DROP"));
    }
}
