// SPDX-License-Identifier: Apache-2.0

//! Effect of DNAT to the VIPs: none with stateful backends; with stateless rules, which untrack every reply, such connections
//! time out.

use proxy_rules::dnat::Findings;
use proxy_serve::doctor::Check;

use super::check;
use super::subject::Subject;
use crate::state::Choice;

const ID: &str = "dnat";

pub fn checks(subject: &Subject) -> Vec<Check> {
    if let Some(check) = subject.without_vips(ID) {
        return vec![check];
    }
    judge(&subject.dnat, subject.choice())
}

/// Whether replies are untracked regardless of how their connection was decided.
fn is_stateless(choice: Option<&Choice>) -> bool {
    choice.is_some_and(|choice| choice.backend == "iptables" && !choice.learns())
}

fn judge(findings: &Findings, choice: Option<&Choice>) -> Vec<Check> {
    let stateless = is_stateless(choice);
    let mut checks: Vec<_> = findings
        .found
        .iter()
        .map(|found| {
            if stateless {
                Check::broken(
                    ID,
                    format!(
                        "{found}: these connections time out, because the stateless rules of backend iptables \
                         untrack their replies"
                    ),
                    "use --backend=ebpf or --backend=nftables, or install ipset for backend iptables; \
                     --backend=none keeps all connections tracked",
                )
            } else {
                Check::ok(ID, found.to_string())
            }
        })
        .collect();
    checks.extend(findings.unread.iter().map(|unread| {
        let what = format!("search for DNAT in {}", unread.source);
        let remedy = "run the doctor as root in the agent's container";
        check::unknown(ID, what, &*unread.error, remedy)
    }));
    if checks.is_empty() {
        checks.push(Check::ok(ID, "no rule DNATs connections to the VIPs"));
    }
    checks
}

#[cfg(test)]
mod tests {
    use proxy_rules::dnat::{Finding, Unread};

    use super::*;
    use proxy_serve::doctor::Verdict;

    #[test]
    fn only_stateless_rules_break_it() {
        let findings = Findings {
            found: vec![Finding {
                place: "somewhere".to_owned(),
                vip: [10, 96, 0, 2].into(),
                port: Some(443),
            }],
            unread: Vec::new(),
        };
        let judged = |backend: &str, detail: &str| {
            let choice = Choice {
                backend: backend.to_owned(),
                detail: detail.to_owned(),
                ..Choice::default()
            };
            judge(&findings, Some(&choice))[0].verdict
        };
        assert_eq!(judged("iptables", ""), Verdict::Broken);
        assert_eq!(judged("iptables", "stateless: no ipset"), Verdict::Broken);
        assert_eq!(judged("iptables", "learning with ipset"), Verdict::Ok);
        assert_eq!(judged("ebpf", "attached by tcx"), Verdict::Ok);
        assert_eq!(judged("none", ""), Verdict::Ok);
        assert_eq!(judge(&Findings::default(), None)[0].verdict, Verdict::Ok);
        let unread = Findings {
            found: Vec::new(),
            unread: vec![Unread {
                source: "IPVS".to_owned(),
                error: "no".into(),
            }],
        };
        assert_eq!(judge(&unread, None)[0].verdict, Verdict::Unknown);
    }
}
