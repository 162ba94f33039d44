// SPDX-License-Identifier: Apache-2.0

//! BPF programs on links and for connect(2): whether those of the agent are attached, and which programs of others (Cilium,
//! Calico, service meshes) run before them and may drop or redirect packets and connections first.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsRawFd as _;

use proxy_kernel::{bpf, cgroup};
use proxy_serve::doctor::Check;

use super::check;
use super::subject::Subject;
use crate::backend::ebpf::names::Names;
use crate::backend::ebpf::order::{self, Order, Other, Place};
use crate::backend::ebpf::{self, Hook, SocketHook};

const TC: &str = "tc-programs";
const CONNECT: &str = "connect-programs";

/// `BPF_CGROUP_INET4_CONNECT` and `BPF_CGROUP_INET6_CONNECT` of linux/bpf.h.
const CONNECT_TYPES: [(SocketHook, u32); 2] =
    [(SocketHook::Connect4, 10), (SocketHook::Connect6, 11)];
/// Maximum number of links named in a finding.
const NAMED: usize = 5;

pub async fn checks(subject: &Subject) -> Vec<Check> {
    if !subject.uses("ebpf") {
        let why = "only backend ebpf attaches programs";
        return [TC, CONNECT]
            .map(|id| Check::not_applicable(id, why))
            .to_vec();
    }
    let mut checks = match subject.links(TC) {
        Ok(table) => {
            let links = ebpf::attachable(table);
            match order::read(&links, subject.instance, None).await {
                Ok(orders) => tc(&orders, subject),
                Err(error) => {
                    let what = "determine the order of programs on links";
                    let remedy = "run the doctor as root, or retry";
                    vec![check::unknown(TC, what, &error, remedy)]
                }
            }
        }
        Err(check) => vec![check],
    };
    checks.extend(connect_checks(subject));
    checks
}

fn tc(links: &[Order], subject: &Subject) -> Vec<Check> {
    let own = Hook::Ingress.program();
    let mut checks = Vec::new();
    let mut missing = Vec::new();
    let mut behind = BTreeSet::new();
    for order in links {
        let Some(place) = order.own else {
            missing.push(order.link.as_str());
            continue;
        };
        behind.extend(order.behind.iter().map(|other| other.name.as_str()));
        if !order.before.is_empty() {
            checks.push(hidden(order, place, subject));
        }
    }
    if !missing.is_empty() {
        let count = missing.len();
        missing.truncate(NAMED);
        checks.push(Check::warning(
            TC,
            format!(
                "{own} is missing on {count} links ({}): connections from there are tracked",
                missing.join(", ")
            ),
            "start the agent, which attaches it, or check its log",
        ));
    }
    if checks.is_empty() {
        let others = if behind.is_empty() {
            String::new()
        } else {
            let names: Vec<_> = behind.into_iter().collect();
            format!("; after it: {}", names.join(", "))
        };
        let count = links.len();
        checks.push(Check::ok(
            TC,
            format!("{own} runs first on all {count} links{others}"),
        ));
    }
    checks
}

/// A finding about programs before the agent's, with a way to attach it first, if there is one.
fn hidden(order: &Order, place: Place, subject: &Subject) -> Check {
    let own = Hook::Ingress.program();
    let link = &order.link;
    let names: Vec<_> = order.before.iter().map(Other::to_string).collect();
    let finding = format!(
        "{} runs before {own} on {link}: packets that it drops, redirects or passes for good do not reach {own} and \
         are not decided",
        names.join(", ")
    );
    let reattach = "have the agent attach its program again, before the others";
    let is_equal = |other: &Other| other.place == place;
    match place {
        Place::Tcx => {
            let remedy = format!(
                "{reattach}: remove its pin; the agent attaches it at its next resync (--sync-interval)"
            );
            let check = Check::warning(TC, finding, remedy);
            let pins = subject.bpffs.join(Hook::Ingress.pins());
            let pin = pins.join(order.index.to_string());
            if pin.exists() {
                check.with_command(format!("rm {}", pin.display()))
            } else {
                check
            }
        }
        // The kernel puts a new filter before others of its priority.
        Place::Filter(priority) if order.before.iter().all(is_equal) => {
            let handle = ebpf::filter_handle(subject.instance);
            let remedy = format!("{reattach}: remove its filter; the agent attaches it at once");
            Check::warning(TC, finding, remedy).with_command(format!(
                "tc filter del dev {link} ingress protocol all pref {priority} handle {handle:#x} bpf"
            ))
        }
        Place::Filter(priority) => Check::warning(
            TC,
            finding,
            format!(
                "give the others a priority after that of {own}, which is {priority}, or use \
                 --tc-attach=auto, which selects tcx on Linux 6.6 and newer"
            ),
        ),
    }
}

fn connect_checks(subject: &Subject) -> Vec<Check> {
    let services = subject.ending_services();
    if services.is_empty() {
        return vec![Check::not_applicable(
            CONNECT,
            "no Service ends on the proxy",
        )];
    }
    let Some(root) = cgroup::root() else {
        return vec![Check::not_applicable(
            CONNECT,
            "cgroup2 is not mounted here (see cgroup2)",
        )];
    };
    let names = Names::read();
    let mut checks = Vec::new();
    for (hook, attach_type) in CONNECT_TYPES {
        let v4 = hook == SocketHook::Connect4;
        let mut services = services.iter();
        if !services.any(|service| service.cluster_ip.is_ipv4() == v4) {
            continue;
        }
        let attached = File::open(&root)
            .and_then(|cgroup| bpf::attached(cgroup.as_raw_fd().cast_unsigned(), attach_type));
        checks.push(match attached {
            Ok(ids) => named_connect(hook, &ids, &names),
            Err(error) => {
                let what = format!("read the programs of {}", root.display());
                check::unknown(CONNECT, what, &error, "run the doctor as root")
            }
        });
    }
    checks
}

fn named_connect(hook: SocketHook, ids: &[u32], names: &Names) -> Check {
    if let Err(error) = names.check(ids) {
        let what = format!("identify {} among other programs", hook.program());
        return check::unknown(CONNECT, what, &error, "run the doctor as root, or retry");
    }
    let names: Vec<_> = ids.iter().map(|id| names.of(*id)).collect();
    judge_connect(hook, &names)
}

fn judge_connect(hook: SocketHook, programs: &[String]) -> Check {
    let own = hook.program();
    let Some(place) = programs.iter().position(|name| name == own) else {
        return Check::warning(
            CONNECT,
            format!("{own} is missing: connections of the node's processes go through kube-proxy"),
            "start the agent, which attaches it, or check its log",
        );
    };
    if place == 0 {
        return Check::ok(CONNECT, format!("{own} runs first"));
    }
    Check::warning(
        CONNECT,
        format!(
            "{} runs before {own}: connections of the node's processes that it redirects are not redirected by the agent",
            programs[..place].join(", ")
        ),
        "let only one of them redirect the Service: remove it from --service-address, or from the other's \
         socket load balancing (Cilium: socketLB.hostNamespaceOnly)",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proxy_serve::doctor::Verdict;

    #[test]
    fn a_program_whose_name_cannot_be_read_may_be_the_agents() {
        let names = Names::from_list(std::iter::empty());
        let verdict = |ids: &[u32]| named_connect(SocketHook::Connect4, ids, &names).verdict;
        assert_eq!(verdict(&[7]), Verdict::Unknown);
        assert_eq!(verdict(&[]), Verdict::Warning);
    }

    #[test]
    fn the_order_of_connect_programs_counts() {
        let judged = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            judge_connect(SocketHook::Connect4, &names).verdict
        };
        assert_eq!(judged(&["vip_connect4", "cil_sock4_connect"]), Verdict::Ok);
        assert_eq!(
            judged(&["cil_sock4_connect", "vip_connect4"]),
            Verdict::Warning
        );
        assert_eq!(judged(&["cil_sock4_connect"]), Verdict::Warning);
    }
}
