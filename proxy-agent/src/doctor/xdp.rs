// SPDX-License-Identifier: Apache-2.0

//! Guarded links with an XDP program in driver mode: effects on the link's MTU.

use proxy_netlink::route::Link;
use proxy_serve::doctor::Check;

use super::subject::Subject;
use crate::link::LinkTable;

const ID: &str = "xdp-mtu";

pub fn checks(subject: &Subject) -> Vec<Check> {
    let guarded = subject.published().map(|state| &state.guard.links);
    let names: Vec<_> = guarded
        .into_iter()
        .flatten()
        .map(|guarded| guarded.link.as_str())
        .collect();
    let links = subject.links(ID);
    vec![links.map_or_else(|check| check, |table| judge(&names, table))]
}

fn judge(guarded: &[&str], table: &LinkTable) -> Check {
    let is_native = |link: &&Link| link.xdp.is_some_and(|xdp| xdp.native);
    let links = table.links.iter().filter(is_native);
    let links: Vec<_> = links
        .map(|link| link.name.as_str())
        .filter(|name| guarded.contains(name))
        .collect();
    if links.is_empty() {
        return Check::not_applicable(ID, "no guarded link has an XDP program in driver mode");
    }
    // For information only: a driver's limit is known only from its refusal of an MTU.
    Check::ok(
        ID,
        format!(
            "{} has an XDP program in driver mode: the driver may refuse a larger MTU while it is attached, and may \
             take the link down briefly when it is attached; --guard-mode=tc does neither",
            links.join(", ")
        ),
    )
}

#[cfg(test)]
mod tests {
    use proxy_netlink::route::{LinkKind, Xdp};

    use super::*;
    use proxy_serve::doctor::Verdict;

    #[test]
    fn only_programs_in_the_driver_of_a_guarded_link_are_named() {
        let judged = |native: bool, guarded: &[&str]| {
            let mut link = Link::new(2, "eth0", LinkKind::Veth);
            link.xdp = Some(Xdp { program: 7, native });
            let table = LinkTable {
                links: vec![link],
                ..LinkTable::default()
            };
            let check = judge(guarded, &table);
            (check.verdict, check.finding.starts_with("eth0 "))
        };
        assert_eq!(judged(true, &["eth0"]), (Verdict::Ok, true));
        for (native, guarded) in [(false, &["eth0"][..]), (true, &["eth1"]), (true, &[])] {
            assert_eq!(judged(native, guarded).0, Verdict::NotApplicable);
        }
    }
}
