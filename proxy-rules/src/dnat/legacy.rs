// SPDX-License-Identifier: Apache-2.0

//! The legacy iptables nat tables, if they exist, as `iptables-save` prints them.

use std::net::IpAddr;

use super::{Finding, Findings, Unread};
use crate::xtables::{self, Family, Flavour};

const TABLE: &str = "nat";
const OPTION: &str = "--to-destination";

/// Adds the rules of the legacy tables that send connections to the VIPs.
pub async fn find(vips: &[IpAddr], findings: &mut Findings) {
    for family in Family::ALL {
        if !vips.iter().any(|vip| Family::of(*vip) == family) {
            continue;
        }
        match xtables::table(Flavour::Legacy, family, TABLE).await {
            Ok(table) => {
                for rule in &table.rules {
                    let target = target(&rule.spec);
                    let reached = target.iter().flat_map(|target| target.reaches(vips));
                    findings.found.extend(reached.map(|(vip, port)| Finding {
                        place: format!(
                            "{}-legacy table {TABLE}, chain {}",
                            family.program(),
                            rule.chain
                        ),
                        vip,
                        port,
                    }));
                }
            }
            Err(error) => {
                let source = format!("{}-legacy table {TABLE}", family.program());
                findings.unread.push(Unread::new(source, error));
            }
        }
    }
}

/// The destination to which a rule sends connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target {
    first: IpAddr,
    last: IpAddr,
    port: Option<u16>,
}

impl Target {
    pub(super) fn reaches(self, vips: &[IpAddr]) -> impl Iterator<Item = (IpAddr, Option<u16>)> {
        vips.iter()
            .filter(move |vip| vip.is_ipv4() == self.first.is_ipv4())
            .filter(move |vip| (self.first..=self.last).contains(*vip))
            .map(move |vip| (*vip, self.port))
    }
}

/// Returns the target of a printed rule, or `None` if the rule does not change the destination address.
pub(super) fn target(spec: &str) -> Option<Target> {
    // Most rules belong to other programs, and splitting all of them into words would take too long.
    if !spec.contains(OPTION) {
        return None;
    }
    let words = xtables::words(spec)?;
    let pair = words.windows(2).find(|pair| pair[0] == OPTION)?;
    parse(&pair[1])
}

/// Parses `ADDR[-ADDR][:PORT[-PORT]]`; an IPv6 address with a port is in brackets.
fn parse(text: &str) -> Option<Target> {
    let (addresses, port) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None if text.contains('.') => {
            let end = text.find(':').unwrap_or(text.len());
            text.split_at(end)
        }
        None => (text, ""),
    };
    let (first, last) = addresses.split_once('-').unwrap_or((addresses, addresses));
    let digits = port.trim_start_matches(':');
    let digits = digits.split(|char: char| !char.is_ascii_digit()).next();
    Some(Target {
        first: first.parse().ok()?,
        last: last.parse().ok()?,
        port: digits.and_then(|digits| digits.parse().ok()),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(spec: &str) -> Vec<(String, Option<u16>)> {
        let vips = ["10.96.0.2", "fd00:96::2"].map(|vip| vip.parse().unwrap());
        let target = target(spec);
        let reached = target.iter().flat_map(|target| target.reaches(&vips));
        reached.map(|(vip, port)| (vip.to_string(), port)).collect()
    }

    #[test]
    fn targets_are_read_in_every_form() {
        let v4 = |port| vec![("10.96.0.2".to_owned(), port)];
        let v6 = |port| vec![("fd00:96::2".to_owned(), port)];
        for (spec, expected) in [
            (
                "-p tcp -j DNAT --to-destination 10.96.0.2:443",
                v4(Some(443)),
            ),
            ("-p tcp -j DNAT --to-destination 10.96.0.2", v4(None)),
            (
                "-j DNAT --to-destination 10.96.0.1-10.96.0.9:443-450 --random",
                v4(Some(443)),
            ),
            ("-j DNAT --to-destination [fd00:96::2]:443", v6(Some(443))),
            (
                "-j DNAT --to-destination [fd00:96::1-fd00:96::9]:8443",
                v6(Some(8443)),
            ),
            ("-j DNAT --to-destination fd00:96::2", v6(None)),
            ("-j DNAT --to-destination 10.96.0.3:443", vec![]),
            ("-j DNAT --to-destination :443", vec![]),
            (
                "-m comment --comment \"--to-destination 10.96.0.2\" -j RETURN",
                vec![],
            ),
            ("-s 10.96.0.2/32 -j KUBE-MARK-MASQ", vec![]),
            ("-j SNAT --to-source 10.96.0.2", vec![]),
        ] {
            assert_eq!(found(spec), expected, "{spec}");
        }
    }

    proptest! {
        #[test]
        fn any_rule_is_read(spec in "(--to-destination|[0-9a-f:.\\[\\] \"-]|.){0,40}") {
            let _ = found(&spec);
        }

        #[test]
        fn a_printed_target_is_found(vip: [u8; 4], port: u16) {
            let vip = IpAddr::from(vip);
            let target = parse(&format!("{vip}:{port}")).unwrap();
            prop_assert_eq!(target.reaches(&[vip]).collect::<Vec<_>>(), [(vip, Some(port))]);
        }
    }
}
