// SPDX-License-Identifier: Apache-2.0

//! Whether the agent's objects match the backend in use: its nf_tables tables exist if it needs them, and there are no objects
//! of another backend.

use std::net::IpAddr;

use proxy_kernel::bpffs;
use proxy_netlink::netfilter::{self, Error, Family, Socket};
use proxy_serve::doctor::Check;

use super::check;
use super::subject::Subject;
use crate::backend::tables;
use crate::ownership::Owned as _;

const TABLES: &str = "tables";
const LEFTOVERS: &str = "leftovers";

/// Backends that keep tables of nf_tables.
const WITH_TABLES: [&str; 2] = ["ebpf", "nftables"];

pub fn checks(subject: &Subject) -> Vec<Check> {
    if subject.choice().is_some_and(|choice| !choice.is_as_asked()) {
        let why = "the requested backend cannot be used; objects of an earlier one remain";
        return [TABLES, LEFTOVERS]
            .map(|id| Check::not_applicable(id, why))
            .to_vec();
    }
    let backend = subject.choice().map(|choice| choice.backend.as_str());
    let name = tables::name(subject.instance);
    let mut checks = Vec::new();
    let mut leftovers = Vec::new();
    for (family, title) in [(Family::IPv4, "ip"), (Family::IPv6, "ip6")] {
        let used = |vip: &IpAddr| vip.is_ipv4() == (family == Family::IPv4);
        let wanted = backend.is_some_and(|backend| WITH_TABLES.contains(&backend))
            && subject.vips.iter().any(used);
        match has_table(family, &name) {
            Ok(there) => match (wanted, there) {
                (true, _) => checks.push(judge_table(title, &name, there)),
                (false, true) => leftovers.push(left_table(title, &name)),
                (false, false) => {}
            },
            Err(error) => {
                let what = format!("search for table {title} {name}");
                let remedy = "run the doctor as root";
                checks.push(check::unknown(TABLES, what, &error, remedy));
            }
        }
    }
    if checks.is_empty() {
        let why = "the backend in use has no nf_tables tables";
        checks.push(Check::not_applicable(TABLES, why));
    }
    if backend != Some("ebpf") && bpffs::names(&subject.bpffs).is_ok_and(|pins| !pins.is_empty()) {
        let path = subject.bpffs.display();
        leftovers.push(left(
            format!("programs and maps of backend ebpf are pinned in {path}"),
            format!("rm -r {path}"),
        ));
    }
    leftovers.extend(left_rules(subject, backend));
    if leftovers.is_empty() {
        leftovers.push(Check::ok(
            LEFTOVERS,
            "no objects of another backend are left",
        ));
    }
    checks.extend(leftovers);
    checks
}

fn judge_table(title: &str, name: &str, there: bool) -> Check {
    if there {
        return Check::ok(TABLES, format!("table {title} {name} exists"));
    }
    Check::warning(
        TABLES,
        format!("table {title} {name} is missing: all connections to the VIPs are tracked"),
        "start the agent, which installs it, or check its log",
    )
}

fn left_table(title: &str, name: &str) -> Check {
    left(
        format!("table {title} {name} exists, but the backend in use does not need it"),
        format!("nft delete table {title} {name}"),
    )
}

/// NOTRACK rules of the agent that its current backend does not need.
fn left_rules(subject: &Subject, backend: Option<&str>) -> Vec<Check> {
    if backend == Some("iptables") {
        return Vec::new();
    }
    let mut checks = Vec::new();
    for found in &subject.iptables {
        let rules = found
            .table("raw")
            .into_iter()
            .flat_map(|table| &table.rules);
        for rule in rules.filter(|rule| rule.owner() == Some(subject.instance)) {
            let program = found.program();
            checks.push(left(
                format!(
                    "a rule of backend iptables is in {program} table raw, chain {}",
                    rule.chain
                ),
                format!("{program} -t raw -D {} {}", rule.chain, rule.spec),
            ));
        }
    }
    checks
}

fn left(finding: String, command: String) -> Check {
    let remedy = "a running agent removes it; or remove it by hand";
    Check::warning(LEFTOVERS, finding, remedy).with_command(command)
}

pub fn has_table(family: Family, name: &str) -> Result<bool, Error> {
    match netfilter::has_table(family, name, &mut Socket::open()?) {
        Ok(there) => Ok(there),
        // The kernel has no nf_tables: `nfnetlink_rcv_msg` of net/netfilter/nfnetlink.c.
        Err(error) if error.errno() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}
