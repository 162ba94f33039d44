// SPDX-License-Identifier: Apache-2.0

//! The rules of the guard.

use proxy_rules::xtables::Family;

use super::{planned, raw, vips};
use crate::backend::iptables::rules::{self, Guard, LinkName, Rule, Table};
use crate::instance::Instance;
use crate::ownership::MARKS;

fn guard(links: &[&str], allow_from: &[&str]) -> Guard {
    Guard {
        links: links
            .iter()
            .filter_map(|name| LinkName::new(name))
            .collect(),
        inner: false,
        allow_from: allow_from
            .iter()
            .map(|text| text.parse().unwrap())
            .collect(),
    }
}

fn guarding(guard: &Guard) -> Vec<Rule> {
    rules::guarding(
        Instance::default(),
        Family::V4,
        guard,
        &vips(),
        &[443, 8443],
    )
}

#[test]
fn the_guard_has_a_chain_of_its_own_that_comes_and_goes_with_it() {
    let wanted = guarding(&guard(&["eth0"], &["192.0.2.0/24", "2001:db8::/32"]));
    let op = planned(Table::Raw, Family::V4, &wanted, &raw("")).unwrap();
    let comment = r#"-m comment --comment "proxy-agent: guard the VIP""#;
    let to = |port| format!("-d 10.96.0.2/32 -p tcp -m tcp --dport {port} {comment}");
    let local = |port| {
        format!(
            "-s 127.0.0.0/8 -d 10.96.0.2/32 ! -i lo -p tcp -m tcp --dport {port} {comment} -j DROP"
        )
    };
    let entry = |port| {
        format!(
            "-d 10.96.0.2/32 -i eth0 -p tcp -m tcp --dport {port} {comment} -j proxy-agent_guard"
        )
    };
    let chain = |port| {
        [
            format!("-I proxy-agent_guard 1 {} -j DROP", to(port)),
            format!(
                "-I proxy-agent_guard 1 -s 192.0.2.0/24 {} -j RETURN",
                to(port)
            ),
            format!("-I PREROUTING 1 {}", entry(port)),
            format!("-I PREROUTING 1 {}", local(port)),
        ]
        .join("\n")
    };
    assert_eq!(
        op.restore_input(),
        format!(
            "*raw\n:proxy-agent_guard - [0:0]\n{}\n{}\n-I PREROUTING 1 -s 10.96.0.2/32 ! -i lo {comment} -j \
             DROP\nCOMMIT\n",
            chain(8443),
            chain(443)
        )
    );
    // The rules are recognised in the output of iptables-save, and nothing is left to do.
    let printed = wanted.iter().map(ToString::to_string).collect::<Vec<_>>();
    let text = format!(":proxy-agent_guard - [0:0]\n{}", printed.join("\n"));
    let there = raw(&text);
    assert_eq!(planned(Table::Raw, Family::V4, &wanted, &there), None);
    assert!(
        !there.has_foreign_content(MARKS),
        "our chain is not foreign"
    );
    let fewer = guarding(&guard(&[], &[]));
    let op = planned(Table::Raw, Family::V4, &fewer, &there).unwrap();
    assert!(
        op.restore_input()
            .ends_with("-X proxy-agent_guard\nCOMMIT\n")
    );
    let op = planned(Table::Raw, Family::V4, &[], &there).unwrap();
    assert_eq!(op.deletions.len(), wanted.len());
    assert_eq!(op.old_chains, ["proxy-agent_guard"]);
    // Rules of others are not touched.
    assert_eq!(
        planned(
            Table::Raw,
            Family::V4,
            &[],
            &raw(":proxy-agent-b_guard - [0:0]")
        ),
        None
    );
}
