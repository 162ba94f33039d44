// SPDX-License-Identifier: Apache-2.0

//! Firewalls that drop untracked packets of the VIP, of Services that end on the proxy, or of the proxy's own connections. A
//! rule like `ct state established accept` does not match them; a firewall that drops the rest needs a rule for them.

use proxy_rules::filters::{self, Fate, Found, Known, Packet, packets};
use proxy_rules::xtables::Flavour;
use proxy_serve::doctor::Check;

use super::check;
use super::subject::Subject;
use crate::ownership::MARKS;

const ID: &str = "firewall";

pub fn checks(subject: &Subject) -> Vec<Check> {
    if let Some(check) = subject.without_vips(ID) {
        return vec![check];
    }
    if subject
        .choice()
        .is_some_and(|choice| choice.backend == "none")
    {
        return vec![Check::not_applicable(
            ID,
            "with backend none all connections are tracked",
        )];
    }
    let services = subject.ending_services().into_iter();
    let services: Vec<_> = services.map(|service| service.cluster_ip).collect();
    let upstream = subject.published().map(|state| state.upstream.untracked());
    let packets = [
        packets(&subject.endpoints(), Known::Vip),
        packets(&services, Known::Service),
        packets(&upstream.unwrap_or_default(), Known::Upstream),
    ]
    .concat();
    let mut checks = Vec::new();
    let mut found = Vec::new();
    match filters::find_in_nf_tables(&packets, MARKS) {
        Ok(in_nf_tables) => found.extend(in_nf_tables),
        Err(error) => {
            let what = "read the chains and rules of nf_tables";
            checks.push(check::unknown(ID, what, &error, "run the doctor as root"));
        }
    }
    // The tables of the other flavour are part of nf_tables.
    let legacy = subject
        .iptables
        .iter()
        .filter(|found| found.flavour == Flavour::Legacy);
    for tables in legacy {
        let of_family = |packet: &&Packet| packet.is_of(tables.family);
        let packets: Vec<_> = packets.iter().filter(of_family).copied().collect();
        let unread = tables.unread("filter");
        checks.extend(
            unread.map(|error| check::unread_table(ID, &tables.program(), "filter", error)),
        );
        if let Some(table) = tables.table("filter") {
            found.extend(filters::find_in_iptables(
                table,
                &tables.program(),
                &packets,
            ));
        }
    }
    checks.extend(found.into_iter().filter_map(judge));
    if checks.is_empty() {
        checks.push(Check::ok(
            ID,
            "no rule evaluated drops untracked packets of the VIPs and Services; not evaluated are drops by marks and \
             other such conditions, and chains only for some links or clients",
        ));
    }
    checks
}

fn judge(found: Found) -> Option<Check> {
    let Found {
        place,
        packet,
        fate,
        of_iptables,
        command,
    } = found;
    let remedy = if of_iptables {
        "accept it there; a running agent does so with --accept-rules=auto or always"
    } else {
        "accept it there, in the configuration of the firewall too"
    };
    let check = match fate {
        Fate::Passes => return None,
        Fate::MayDrop => Check::warning(
            ID,
            format!(
                "{packet} may be dropped by {place}, by a rule for a link or for addresses of clients"
            ),
            remedy,
        ),
        Fate::MayPass => Check::warning(
            ID,
            format!(
                "{place} drops {packet} unless a rule accepts it that depends on more than this endpoint"
            ),
            remedy,
        ),
        // The proxy's connections work after a retransmitted SYN, tracked.
        Fate::Dropped if packet.known == Known::Upstream => {
            Check::warning(ID, format!("{place} drops {packet}"), remedy)
        }
        Fate::Dropped => Check::broken(ID, format!("{place} drops {packet}"), remedy),
    };
    Some(check.with_command(command))
}
