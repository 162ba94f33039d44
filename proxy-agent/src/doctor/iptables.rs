// SPDX-License-Identifier: Apache-2.0

//! The flavours of iptables in use, and the programs that the `iptables` backend needs.

use std::env;

use proxy_rules::xtables::Flavour;
use proxy_serve::doctor::{Check, Verdict};

use super::check;
use super::subject::{Iptables, Subject};
use crate::ownership::MARKS;
use crate::state::Choice;

const FLAVOUR: &str = "iptables-flavour";
const IPSET: &str = "ipset";

pub fn checks(subject: &Subject) -> Vec<Check> {
    let mut checks = flavours(&subject.iptables);
    checks.push(match subject.choice() {
        Some(choice) if choice.backend == "iptables" => ipset(choice, is_installed("ipset")),
        _ => Check::not_applicable(IPSET, "used by backend iptables only"),
    });
    checks
}

fn flavours(found: &[Iptables]) -> Vec<Check> {
    let mut checks = Vec::new();
    for found in found {
        let program = found.program();
        match &found.tables {
            Err(error) => checks.push(unreadable(&program, error)),
            Ok(tables) => {
                let errors = tables.iter().filter_map(|(_, table)| table.as_ref().err());
                checks.extend(errors.map(|error| unreadable(&program, error)));
            }
        }
    }
    // A table that could not be read may be in use too, so the flavour is not reported as good.
    let is_complete = checks.is_empty();
    let flavour = flavour(found);
    checks.extend((is_complete || flavour.verdict != Verdict::Ok).then_some(flavour));
    checks
}

fn unreadable(program: &str, error: &dyn std::error::Error) -> Check {
    let what = format!("read the tables of {program}");
    let remedy =
        format!("install {program}-save, or run the doctor as root in the agent's container");
    check::unknown(FLAVOUR, what, error, remedy)
}

fn flavour(found: &[Iptables]) -> Check {
    let in_use = |flavour| {
        let of_flavour = found.iter().filter(move |found| found.flavour == flavour);
        let tables = of_flavour
            .filter_map(|found| found.tables.as_ref().ok())
            .flatten();
        let full = tables.filter(|(_, table)| {
            table
                .as_ref()
                .is_ok_and(|table| table.has_foreign_content(MARKS))
        });
        let mut names: Vec<_> = full.map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    };
    let (nft, legacy) = (in_use(Flavour::Nft), in_use(Flavour::Legacy));
    match (nft.is_empty(), legacy.is_empty()) {
        (true, true) => Check::ok(FLAVOUR, "no program has rules in iptables tables"),
        (false, true) => Check::ok(
            FLAVOUR,
            format!("nft is in use (tables {})", nft.join(", ")),
        ),
        (true, false) => Check::ok(
            FLAVOUR,
            format!("legacy is in use (tables {})", legacy.join(", ")),
        ),
        (false, false) => Check::warning(
            FLAVOUR,
            format!(
                "both flavours are in use, nft (tables {}) and legacy (tables {}): packets traverse \
                 both, and each program shows only its own rules",
                nft.join(", "),
                legacy.join(", ")
            ),
            "configure kube-proxy, the CNI and the firewall for one flavour; iptables-legacy-save and \
             iptables-nft-save show which program has rules where; then flush the tables of the other one",
        ),
    }
}

fn ipset(choice: &Choice, installed: bool) -> Check {
    if choice.learns() {
        return Check::ok(IPSET, "backend iptables uses it to distinguish connections");
    }
    let without = "backend iptables cannot distinguish connections and untracks all of them";
    if !installed {
        return Check::warning(
            IPSET,
            format!("ipset is not installed: {without}"),
            "install the package ipset in the agent's container, or use --backend=nftables",
        );
    }
    let detail = &choice.detail;
    Check::warning(
        IPSET,
        format!("ipset is installed but not used: {without} ({detail})"),
        "load or install the modules ip_set_hash_ipport and xt_set, and restart the agent",
    )
}

/// Whether a program is in one of the directories that the agent searches.
fn is_installed(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(Into::into);
    env::split_paths(&path)
        .chain(system)
        .any(|directory| directory.join(name).is_file())
}

#[cfg(test)]
mod tests {
    use proxy_rules::xtables::{self, Family, SavedRule, SavedTable};

    use super::*;

    fn tables(flavour: Flavour, owned: &[bool]) -> Iptables {
        let rule = |owned: &bool| SavedRule {
            chain: "INPUT".to_owned(),
            spec: if *owned {
                "-m comment --comment \"proxy-agent: answer\" -j ACCEPT".to_owned()
            } else {
                "-j ACCEPT".to_owned()
            },
        };
        let table = SavedTable {
            chains: Vec::new(),
            rules: owned.iter().map(rule).collect(),
        };
        Iptables {
            flavour,
            family: Family::V4,
            tables: Ok(vec![("filter".to_owned(), Ok(table))]),
        }
    }

    #[test]
    fn the_agents_own_rules_do_not_count_as_use() {
        let judged = |nft: &[bool], legacy: &[bool]| {
            flavour(&[tables(Flavour::Nft, nft), tables(Flavour::Legacy, legacy)]).verdict
        };
        assert_eq!(judged(&[], &[]), Verdict::Ok);
        assert_eq!(judged(&[false], &[]), Verdict::Ok);
        assert_eq!(judged(&[true], &[false]), Verdict::Ok);
        assert_eq!(judged(&[false], &[true, false]), Verdict::Warning);
    }

    #[test]
    fn tables_that_cannot_be_read_make_the_result_unknown() {
        let error = || xtables::Error::Unreadable {
            programs: "iptables-legacy-save".to_owned(),
        };
        let whole = Iptables {
            tables: Err(error()),
            ..tables(Flavour::Legacy, &[])
        };
        let one = Iptables {
            tables: Ok(vec![("raw".to_owned(), Err(error()))]),
            ..tables(Flavour::Legacy, &[])
        };
        assert!(one.unread("raw").is_some() && one.unread("filter").is_none());
        assert!(whole.unread("raw").is_some() && whole.table("raw").is_none());
        assert!(tables(Flavour::Nft, &[]).unread("filter").is_none());
        let verdicts = |found: &[Iptables]| {
            let checks = flavours(found).into_iter();
            checks.map(|check| check.verdict).collect::<Vec<_>>()
        };
        let nft = || tables(Flavour::Nft, &[false]);
        assert_eq!(verdicts(&[nft(), whole]), [Verdict::Unknown]);
        assert_eq!(verdicts(&[nft(), one]), [Verdict::Unknown]);
        assert_eq!(verdicts(&[nft()]), [Verdict::Ok]);
    }

    #[test]
    fn ipset_must_be_used_and_not_only_installed() {
        let judged = |detail: &str, installed| {
            let choice = Choice {
                detail: detail.to_owned(),
                ..Choice::default()
            };
            ipset(&choice, installed).verdict
        };
        assert_eq!(judged("learning with ipset", true), Verdict::Ok);
        assert_eq!(judged("stateless: no xt_set", true), Verdict::Warning);
        assert_eq!(judged("", false), Verdict::Warning);
    }
}
