// SPDX-License-Identifier: Apache-2.0

//! Kernel features, tried in a temporary network namespace. Modules that the kernel loads for that stay loaded.

use std::io;
use std::thread;

use aya::programs::SchedClassifier;
use aya::programs::tc::qdisc_add_clsact;
use proxy_kernel::capabilities::{self, Capability};
use proxy_kernel::netns;
use proxy_netlink::netfilter::{self, Base, Chain, Family, Rule, Socket, Table, expression};
use proxy_serve::doctor::Check;

use super::check;
use super::subject::Subject;
use crate::backend::ebpf::Hook;
use crate::backend::tables;
use crate::reconcile::report::chain;

const NF_TABLES: &str = "nf-tables";
const NFT_SOCKET: &str = "nft-socket";
const TC: &str = "tc";
const ALL: [&str; 3] = [NF_TABLES, NFT_SOCKET, TC];

/// The result of each try, with the error as text.
struct Tried {
    nf_tables: Result<(), String>,
    nft_socket: Result<(), String>,
    tcx: bool,
    clsact: Result<(), String>,
}

pub fn checks(subject: &Subject) -> Vec<Check> {
    if !capabilities::has(Capability::SysAdmin).unwrap_or(false) {
        let why = "cannot be tried without SYS_ADMIN, which is needed for a temporary network namespace; the \
                   agent itself has tried what it needs (see backend)";
        return ALL.map(|id| Check::not_applicable(id, why)).to_vec();
    }
    // Network namespaces are per thread.
    let tried = thread::spawn(|| {
        netns::enter_new()?;
        Ok(attempt())
    })
    .join()
    .unwrap_or_else(|_| Err(io::Error::other("the thread that tries it panicked")));
    match tried {
        Ok(tried) => judge(&tried, subject.uses("ebpf"), subject.uses("nftables")),
        Err(error) => {
            let (what, remedy) = ("create a network namespace", "run the doctor as root");
            ALL.map(|id| check::unknown(id, what, &error, remedy))
                .to_vec()
        }
    }
}

fn attempt() -> Tried {
    Tried {
        nf_tables: install(&[expression::notrack()]),
        nft_socket: install(&[&expression::has_socket()[..], &[expression::notrack()]].concat()),
        tcx: SchedClassifier::query_tcx("lo", Hook::Ingress.attach_type()).is_ok(),
        clsact: qdisc_add_clsact("lo").map_err(|error| chain(&error)),
    }
}

/// Installs a table with one rule, like those of the agent.
fn install(expressions: &[netlink_packet_netfilter::nftables::Expressions]) -> Result<(), String> {
    let table = Table {
        family: Family::IPv4,
        name: tables::REHEARSAL.to_owned(),
        sets: Vec::new(),
        chains: vec![Chain {
            name: "prerouting",
            base: Some(Base {
                hook: netfilter::Hook::Prerouting,
                priority: tables::PRIORITY_RAW,
            }),
            rules: vec![Rule {
                purpose: "try".to_owned(),
                expressions: expressions.to_vec(),
            }],
            is_filled_later: false,
        }],
    };
    let install = || Table::replace(&[table], &mut Socket::open()?);
    install().map_err(|error| chain(&error))
}

fn judge(tried: &Tried, ebpf: bool, nftables: bool) -> Vec<Check> {
    let rules = match &tried.nf_tables {
        Ok(()) => Check::ok(NF_TABLES, "nf_tables accepts a table with a notrack rule"),
        Err(why) => refused(
            NF_TABLES,
            format!("nf_tables rejects a notrack rule: {why}"),
            "load or install the modules nf_tables and nft_ct",
            "modprobe -a nf_tables nft_ct",
            ebpf || nftables,
        ),
    };
    let nft_socket = match &tried.nft_socket {
        Ok(()) => Check::ok(NFT_SOCKET, "nf_tables supports socket lookups (nft_socket)"),
        Err(why) => refused(
            NFT_SOCKET,
            format!("nf_tables does not support socket lookups: {why}"),
            "load or install the module nft_socket: without it no Service can end on the proxy",
            "modprobe nft_socket",
            ebpf,
        ),
    };
    let mut supported = Vec::new();
    if tried.tcx {
        supported.push("tcx");
    }
    if tried.clsact.is_ok() {
        supported.push("clsact");
    }
    let tc = if supported.is_empty() {
        let why = tried.clsact.as_ref().err().map_or("", String::as_str);
        refused(
            TC,
            format!(
                "programs cannot be attached to links: neither tcx nor clsact is available: {why}"
            ),
            "load or install the modules sch_ingress and cls_bpf",
            "modprobe -a sch_ingress cls_bpf",
            ebpf,
        )
    } else {
        Check::ok(
            TC,
            format!(
                "programs can be attached to links by {}",
                supported.join(" and ")
            ),
        )
    };
    vec![rules, nft_socket, tc]
}

fn refused(id: &'static str, finding: String, remedy: &str, command: &str, in_use: bool) -> Check {
    let check = if in_use {
        Check::broken(id, finding, remedy)
    } else {
        Check::warning(id, finding, remedy)
    };
    check.with_command(command)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proxy_serve::doctor::Verdict;

    #[test]
    fn a_missing_feature_is_worse_if_it_is_used() {
        let no = || Err("no".to_owned());
        let none = Tried {
            nf_tables: no(),
            nft_socket: no(),
            tcx: false,
            clsact: no(),
        };
        let verdicts = |tried: &Tried, ebpf, nftables| {
            let checks = judge(tried, ebpf, nftables);
            [0, 1, 2].map(|at: usize| checks[at].verdict)
        };
        let (broken, warning) = (Verdict::Broken, Verdict::Warning);
        assert_eq!(verdicts(&none, true, false), [broken; 3]);
        assert_eq!(verdicts(&none, false, true), [broken, warning, warning]);
        assert_eq!(verdicts(&none, false, false), [warning; 3]);
        let old = Tried {
            nf_tables: Ok(()),
            nft_socket: Ok(()),
            tcx: false,
            clsact: Ok(()),
        };
        assert_eq!(verdicts(&old, true, false), [Verdict::Ok; 3]);
    }
}
