// SPDX-License-Identifier: Apache-2.0

//! BPF programs on links and on connect(2): whether ours are there, and who else's come before them
//! (Cilium, Calico, service meshes), where they can take packets and connections away.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::AsRawFd as _;

use aya::programs::{ProgramInfo, SchedClassifier, loaded_programs};
use futures_util::TryStreamExt as _;
use rtnetlink::Handle;
use rtnetlink::packet_route::tc::{TcAttribute, TcFilterBpfOption, TcMessage, TcOption};

use super::check::Check;
use super::subject::Subject;
use crate::backend::ebpf::{self, Hook, SocketHook};
use crate::kernel::{bpf, cgroup};

const TC: &str = "tc-programs";
const CONNECT: &str = "connect-programs";

/// `BPF_CGROUP_INET4_CONNECT` and `BPF_CGROUP_INET6_CONNECT` of linux/bpf.h.
const CONNECT_TYPES: [(SocketHook, u32); 2] =
    [(SocketHook::Connect4, 10), (SocketHook::Connect6, 11)];
/// How many links are named in a finding.
const NAMED: usize = 5;

/// The classifiers of a link at ingress in the order in which they run.
#[derive(Debug, Default)]
struct AtLink {
    index: u32,
    name: String,
    programs: Vec<String>,
}

pub async fn checks(subject: &Subject) -> Vec<Check> {
    if !subject.uses("ebpf") {
        let why = "only backend ebpf attaches programs";
        return [TC, CONNECT]
            .map(|id| Check::not_applicable(id, why))
            .to_vec();
    }
    let mut checks = match &subject.links {
        Ok(table) => {
            let mut links = Vec::new();
            let handle = connect();
            for (index, name) in ebpf::attachable(table) {
                links.extend(at_link(index, name, handle.as_ref()).await);
            }
            tc(&links, subject)
        }
        Err(_) => vec![Check::not_applicable(
            TC,
            "the node's links could not be read (see vip)",
        )],
    };
    checks.extend(connect_checks(subject));
    checks
}

fn connect() -> Option<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection().ok()?;
    tokio::spawn(connection);
    Some(handle)
}

/// None if the link has gone meanwhile. Programs of tcx come before filters of clsact.
async fn at_link(index: u32, name: String, handle: Option<&Handle>) -> Option<AtLink> {
    let tcx = SchedClassifier::query_tcx(&name, Hook::Ingress.attach_type());
    let mut programs: Vec<_> = match tcx {
        Ok((_, programs)) => programs.iter().map(name_of).collect(),
        Err(_) => Vec::new(),
    };
    if let Some(handle) = handle {
        let mut filters = handle.traffic_filter(index.cast_signed());
        let dump = filters.get().ingress().execute().try_collect::<Vec<_>>();
        if let Ok(messages) = dump.await {
            let mut filters: Vec<_> = messages.iter().filter_map(filter).collect();
            filters.sort();
            programs.extend(filters.into_iter().map(|(_, name)| name));
        }
    }
    Some(AtLink {
        index,
        name,
        programs,
    })
}

fn name_of(program: &ProgramInfo) -> String {
    match program.name_as_str() {
        Some(name) if !name.is_empty() => name.to_owned(),
        _ => format!("program {}", program.id()),
    }
}

/// Priority and name of a filter; none of the messages that only name a priority.
fn filter(message: &TcMessage) -> Option<(u32, String)> {
    let mut kind = None;
    let mut program = None;
    let mut has_options = false;
    for attribute in &message.attributes {
        match attribute {
            TcAttribute::Kind(name) => kind = Some(name.clone()),
            TcAttribute::Options(options) => {
                has_options |= !options.is_empty();
                for option in options {
                    if let TcOption::Bpf(TcFilterBpfOption::ProgName(name)) = option {
                        program = Some(name.clone());
                    }
                }
            }
            _ => {}
        }
    }
    let name = program.or_else(|| Some(format!("a filter of kind {}", kind?)))?;
    // The upper half is the priority, the lower one the protocol.
    has_options.then_some((message.header.info >> 16, name))
}

fn tc(links: &[AtLink], subject: &Subject) -> Vec<Check> {
    let own = Hook::Ingress.program();
    let mut checks = Vec::new();
    let mut missing = Vec::new();
    let mut behind = BTreeSet::new();
    for link in links {
        let Some(place) = link.programs.iter().position(|name| name == own) else {
            missing.push(link.name.as_str());
            continue;
        };
        let (before, after) = link.programs.split_at(place);
        behind.extend(after.iter().skip(1).map(String::as_str));
        if before.is_empty() {
            continue;
        }
        let check = Check::warning(
            TC,
            format!(
                "{} comes before {own} on {}: packets that it takes away or redirects are not decided",
                before.join(", "),
                link.name
            ),
            "have the agent attach its program anew, in front: remove its pin, and the agent does so \
             at its next pass (--sync-interval)",
        );
        let pin = subject
            .bpffs
            .join(Hook::Ingress.pins())
            .join(link.index.to_string());
        checks.push(if pin.exists() {
            check.with_command(format!("rm {}", pin.display()))
        } else {
            check
        });
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
            "start the agent, which attaches it, or look into its log",
        ));
    }
    if checks.is_empty() {
        let others = if behind.is_empty() {
            String::new()
        } else {
            let names: Vec<_> = behind.into_iter().collect();
            format!("; behind it: {}", names.join(", "))
        };
        let count = links.len();
        checks.push(Check::ok(
            TC,
            format!("{own} comes first on all {count} links{others}"),
        ));
    }
    checks
}

fn connect_checks(subject: &Subject) -> Vec<Check> {
    if subject.services().is_empty() {
        return vec![Check::not_applicable(
            CONNECT,
            "no service ends on the proxy",
        )];
    }
    let Some(root) = cgroup::root() else {
        return vec![Check::not_applicable(
            CONNECT,
            "cgroup2 is not mounted here (see cgroup2)",
        )];
    };
    let names: BTreeMap<_, _> = loaded_programs()
        .flatten()
        .map(|program| (program.id(), name_of(&program)))
        .collect();
    let mut checks = Vec::new();
    for (hook, attach_type) in CONNECT_TYPES {
        let v4 = hook == SocketHook::Connect4;
        let mut services = subject.services().iter();
        if !services.any(|service| service.cluster_ip.is_ipv4() == v4) {
            continue;
        }
        let attached = File::open(&root)
            .and_then(|cgroup| bpf::attached(cgroup.as_raw_fd().cast_unsigned(), attach_type));
        checks.push(match attached {
            Ok(ids) => {
                let name = |id: &u32| match names.get(id) {
                    Some(name) => name.clone(),
                    None => format!("program {id}"),
                };
                judge_connect(hook, &ids.iter().map(name).collect::<Vec<_>>())
            }
            Err(error) => {
                let what = format!("read the programs of {}", root.display());
                Check::unknown(CONNECT, what, &error, "run the doctor as root")
            }
        });
    }
    checks
}

fn judge_connect(hook: SocketHook, programs: &[String]) -> Check {
    let own = hook.program();
    let Some(place) = programs.iter().position(|name| name == own) else {
        return Check::warning(
            CONNECT,
            format!("{own} is missing: connections of the node's processes go kube-proxy's way"),
            "start the agent, which attaches it, or look into its log",
        );
    };
    if place == 0 {
        return Check::ok(CONNECT, format!("{own} comes first"));
    }
    Check::warning(
        CONNECT,
        format!(
            "{} comes before {own}: what it redirects of the node's processes, the agent does not",
            programs[..place].join(", ")
        ),
        "let one of them redirect the service: leave it out of --service-address, or out of the other's \
         socket load balancing (Cilium: socketLB.hostNamespaceOnly)",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Verdict;

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
