// SPDX-License-Identifier: Apache-2.0

//! Rules of iptables that translate connections to a port of any address of the node (`--dst-type LOCAL`), as the
//! portmap plugin creates them for a hostPort, and Docker for a published port.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::xtables::{SavedTable, contains, words};

/// The chains in which the processing of connections to an address of the node starts, from pods and from processes of
/// the node.
const BASES: [&str; 2] = ["PREROUTING", "OUTPUT"];

/// Returns the chain whose rule translates new connections to an endpoint because it is an address of the node.
#[must_use]
pub fn translating_chain(table: &SavedTable, endpoint: SocketAddr) -> Option<&str> {
    let mut seen = BTreeSet::new();
    let mut left: Vec<(&str, bool)> = BASES.map(|base| (base, false)).to_vec();
    while let Some((chain, is_local)) = left.pop() {
        if !seen.insert((chain, is_local)) {
            continue;
        }
        for rule in table.rules.iter().filter(|rule| rule.chain == chain) {
            let Some(matched) = Matched::by(&rule.spec, endpoint) else {
                continue;
            };
            let is_local = is_local || matched.is_local;
            if ["DNAT", "REDIRECT"].contains(&matched.target.as_str()) {
                if is_local && matched.by_port {
                    return Some(&rule.chain);
                }
                continue;
            }
            let next = table.rules.iter().find(|rule| rule.chain == matched.target);
            left.extend(next.map(|rule| (rule.chain.as_str(), is_local)));
        }
    }
    None
}

/// The effect of a rule on connections to an endpoint that it may match.
struct Matched {
    /// True if the rule requires an address of the node.
    is_local: bool,
    /// True if the rule matches the port.
    by_port: bool,
    /// The target of the rule.
    target: String,
}

impl Matched {
    /// Returns `None` if the rule does not match connections to the endpoint, or if it has no target.
    fn by(spec: &str, endpoint: SocketAddr) -> Option<Self> {
        let words = words(spec)?;
        let mut matched = Self {
            is_local: false,
            by_port: false,
            target: String::new(),
        };
        for (at, word) in words.iter().enumerate() {
            let value = words.get(at + 1).map_or("", String::as_str);
            let is_inverted = at > 0 && words[at - 1] == "!";
            let holds = match word.as_str() {
                "-p" => ["tcp", "6", "all"].contains(&value),
                "-d" => holds(value, endpoint),
                "--dport" | "--dports" => {
                    matched.by_port |= !is_inverted;
                    has_port(value, endpoint.port())
                }
                "--dst-type" => {
                    let is_local = value == "LOCAL";
                    matched.is_local |= is_local && !is_inverted;
                    is_local
                }
                "-j" | "-g" => {
                    value.clone_into(&mut matched.target);
                    continue;
                }
                _ => continue,
            };
            if holds == is_inverted {
                return None;
            }
        }
        (!matched.target.is_empty()).then_some(matched)
    }
}

/// Returns true if a printed network contains an address, or if the network cannot be parsed.
fn holds(network: &str, endpoint: SocketAddr) -> bool {
    contains(network, endpoint.ip()).unwrap_or(true)
}

/// Returns true if a list of ports and ranges (`80,443,8000:8100`) contains a port.
fn has_port(ports: &str, port: u16) -> bool {
    ports.split(',').any(|range| {
        let (first, last) = range.split_once(':').unwrap_or((range, range));
        let number = |text: &str, default| match text {
            "" => Some(default),
            text => text.parse::<u16>().ok(),
        };
        let bounds = number(first, 0).zip(number(last, u16::MAX));
        bounds.is_some_and(|(first, last)| (first..=last).contains(&port))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::xtables;

    fn found(rules: &[&str]) -> Option<String> {
        let rules = rules.join("\n-A ");
        let text =
            format!("*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n-A {rules}\nCOMMIT\n");
        let table = xtables::parse(&text, "nat").unwrap();
        translating_chain(&table, "10.96.0.2:443".parse().unwrap()).map(str::to_owned)
    }

    const LOCAL: &str = "PREROUTING -m addrtype --dst-type LOCAL -j HOSTPORTS";

    #[test]
    fn host_ports_are_found_and_what_is_not_for_the_vip_is_not() {
        let dnat =
            |matches: &str| format!("HOSTPORTS {matches} -j DNAT --to-destination 10.244.0.5:8443");
        for (matches, is_found) in [
            ("-p tcp -m tcp --dport 443", true),
            ("-p tcp -m multiport --dports 80,400:500", true),
            ("-d 10.96.0.2/32 -p tcp -m tcp --dport 443", true),
            ("! -i docker0 -p tcp -m tcp --dport 443", true),
            ("-p tcp -m tcp --dport 8443", false),
            ("-p tcp -m tcp ! --dport 443", false),
            ("-p udp -m udp --dport 443", false),
            ("-d 192.168.100.10/32 -p tcp -m tcp --dport 443", false),
            ("! -d 10.96.0.0/12 -p tcp -m tcp --dport 443", false),
            ("-p tcp", false),
        ] {
            let chain = found(&[LOCAL, &dnat(matches)]);
            assert_eq!(chain.is_some(), is_found, "{matches}: {chain:?}");
        }
        let rule = &dnat("-p tcp -m tcp --dport 443");
        assert_eq!(found(&[rule]), None, "nothing leads there");
        let elsewhere = "PREROUTING -m addrtype ! --dst-type LOCAL -j HOSTPORTS";
        assert_eq!(found(&[elsewhere, rule]), None);
        let circle = "HOSTPORTS -j HOSTPORTS";
        assert_eq!(found(&[LOCAL, circle, rule]).as_deref(), Some("HOSTPORTS"));
    }

    /// kube-proxy also has rules for the same port: by the address of a Service, and by node ports.
    #[test]
    fn kube_proxy_is_no_host_port() {
        let rules = [
            "PREROUTING -j KUBE-SERVICES",
            "KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-SEP",
            "KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS",
            "KUBE-NODEPORTS -p tcp -m tcp --dport 30443 -j KUBE-SEP",
            "KUBE-SEP -p tcp -m tcp -j DNAT --to-destination 10.244.0.5:443",
        ];
        assert_eq!(found(&rules), None);
    }

    proptest! {
        #[test]
        fn any_rule_is_read(spec in "((-[pdjg]|--dports?|--dst-type|!|[0-9:,./]{0,9}|LOCAL|.) ?){0,20}") {
            let _ = Matched::by(&spec, "10.96.0.2:443".parse().unwrap());
        }
    }
}
