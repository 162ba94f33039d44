// SPDX-License-Identifier: Apache-2.0

//! Firewalls that drop untracked packets of the VIP, of Services that end on the proxy, or of the proxy's own
//! connections. A rule like `ct state established accept` does not match them, so where the rest is dropped they need
//! a rule of their own.

use proxy_serve::doctor::Check;

use super::check;
use super::subject::Subject;
use crate::backend::iptables::survey::Flavour;
use crate::filters::{self, Fate, Found, Known, Packet, packets};

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
            "backend none leaves everything tracked",
        )];
    }
    let services = subject.ending_services().into_iter();
    let services: Vec<_> = services.map(|service| service.cluster_ip).collect();
    let upstream = subject.told().map(|state| state.upstream.untracked());
    let packets = [
        packets(&subject.endpoints(), Known::Vip),
        packets(&services, Known::Service),
        packets(&upstream.unwrap_or_default(), Known::Upstream),
    ]
    .concat();
    let mut checks = Vec::new();
    let mut found = Vec::new();
    match filters::find_in_nf_tables(&packets) {
        Ok(in_nf_tables) => found.extend(in_nf_tables),
        Err(error) => {
            let what = "read the chains and rules of nf_tables";
            checks.push(check::unknown(ID, what, &error, "run the doctor as root"));
        }
    }
    // Those of the other flavour are in nf_tables.
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
            "no chain drops untracked packets of the VIPs and Services",
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
        "let it pass there; the agent does it with --accept-rules=auto or always when it runs"
    } else {
        "let it pass there, in the configuration of the firewall too"
    };
    let check = match fate {
        Fate::Passes => return None,
        Fate::MayPass => Check::warning(
            ID,
            format!(
                "{place} drops {packet} unless a rule lets it pass that depends on more than that end"
            ),
            remedy,
        ),
        // Its connections work, tracked, once a SYN was repeated.
        Fate::Dropped if packet.known == Known::Upstream => {
            Check::warning(ID, format!("{place} drops {packet}"), remedy)
        }
        Fate::Dropped => Check::broken(ID, format!("{place} drops {packet}"), remedy),
    };
    Some(check.with_command(command))
}
