// SPDX-License-Identifier: Apache-2.0

//! What the kernel can do, tried in a network namespace of its own that is thrown away. Modules that
//! the kernel loads for that stay loaded.

use std::fmt::Write as _;
use std::io;
use std::thread;

use aya::programs::SchedClassifier;
use aya::programs::tc::qdisc_add_clsact;
use proxy_serve::doctor::Check;

use super::check;
use super::subject::Subject;
use crate::backend::ebpf::Hook;
use crate::backend::tables;
use crate::kernel::capabilities::{self, Capability};
use crate::kernel::netns;
use crate::netfilter::{self, Base, Chain, Family, Rule, Socket, Table, expression};
use crate::reconcile::report::chain;

const NF_TABLES: &str = "nf-tables";
const NFT_SOCKET: &str = "nft-socket";
const TC: &str = "tc";
const ALL: [&str; 3] = [NF_TABLES, NFT_SOCKET, TC];

/// What became of each try; an error tells in words why it failed.
struct Tried {
    nf_tables: Result<(), String>,
    nft_socket: Result<(), String>,
    tcx: bool,
    clsact: Result<(), String>,
}

pub fn checks(subject: &Subject) -> Vec<Check> {
    if !capabilities::has(Capability::SysAdmin).unwrap_or(false) {
        let why = "cannot be tried without SYS_ADMIN, which makes a namespace to try it in; the \
                   agent itself has tried what it needs (see backend)";
        return ALL.map(|id| Check::not_applicable(id, why)).to_vec();
    }
    // A thread has a network namespace of its own if it wants one.
    let tried = thread::spawn(|| {
        netns::enter_new()?;
        Ok(attempt())
    })
    .join()
    .unwrap_or_else(|_| Err(io::Error::other("the thread that tries it panicked")));
    match tried {
        Ok(tried) => judge(&tried, subject.uses("ebpf"), subject.uses("nftables")),
        Err(error) => {
            let (what, remedy) = ("make a network namespace", "run the doctor as root");
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

/// Puts a rule into a table like ours.
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
        }],
    };
    let install = || Table::replace(&[table], &mut Socket::open()?);
    install().map_err(|error| chain(&error))
}

fn judge(tried: &Tried, ebpf: bool, nftables: bool) -> Vec<Check> {
    let rules = match &tried.nf_tables {
        Ok(()) => Check::ok(NF_TABLES, "nf_tables takes a table with a notrack rule"),
        Err(why) => refused(
            NF_TABLES,
            format!("nf_tables takes no notrack rule: {why}"),
            "load or install the modules nf_tables and nft_ct",
            "modprobe -a nf_tables nft_ct",
            ebpf || nftables,
        ),
    };
    let nft_socket = match &tried.nft_socket {
        Ok(()) => Check::ok(NFT_SOCKET, "nf_tables looks sockets up (nft_socket)"),
        Err(why) => refused(
            NFT_SOCKET,
            format!("nf_tables looks no sockets up: {why}"),
            "load or install the module nft_socket: without it no Service ends on the proxy",
            "modprobe nft_socket",
            ebpf,
        ),
    };
    let mut ways = String::new();
    if tried.tcx {
        ways.push_str("tcx");
    }
    if tried.clsact.is_ok() {
        let _ = write!(ways, "{}clsact", if ways.is_empty() { "" } else { " and " });
    }
    let tc = if ways.is_empty() {
        let why = tried.clsact.as_ref().err().map_or("", String::as_str);
        refused(
            TC,
            format!("no program can be attached to links: there is no tcx, and no clsact: {why}"),
            "load or install the modules sch_ingress and cls_bpf",
            "modprobe -a sch_ingress cls_bpf",
            ebpf,
        )
    } else {
        Check::ok(TC, format!("programs are attached to links by {ways}"))
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
    fn what_is_missing_is_worse_where_it_is_used() {
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
