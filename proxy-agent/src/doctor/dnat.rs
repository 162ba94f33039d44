// SPDX-License-Identifier: Apache-2.0

//! What it means that somebody sends connections to the VIPs: nothing to backends that decide each
//! connection, time-outs to rules that untrack every reply.

use proxy_serve::doctor::Check;

use super::check;
use super::subject::Subject;
use crate::dnat::Findings;
use crate::state::Choice;

const ID: &str = "dnat";

pub fn checks(subject: &Subject) -> Vec<Check> {
    if let Some(check) = subject.without_vips(ID) {
        return vec![check];
    }
    judge(&subject.dnat, subject.choice())
}

/// Whether replies are untracked whatever brought their connection.
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
                        "{found}: these connections time out, because the rules of backend iptables \
                         untrack their replies"
                    ),
                    "use --backend=ebpf or --backend=nftables, or install ipset for backend iptables; \
                     --backend=none leaves everything tracked",
                )
            } else {
                Check::ok(ID, found.to_string())
            }
        })
        .collect();
    checks.extend(findings.unread.iter().map(|unread| {
        let error = std::io::Error::other(unread.why.clone());
        let what = format!("look for DNAT in {}", unread.source);
        let remedy = "run the doctor as root in the agent's container";
        check::unknown(ID, what, &error, remedy)
    }));
    if checks.is_empty() {
        checks.push(Check::ok(
            ID,
            "nobody sends connections to the VIPs by DNAT",
        ));
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dnat::{Finding, Unread};
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
                why: "no".to_owned(),
            }],
        };
        assert_eq!(judge(&unread, None)[0].verdict, Verdict::Unknown);
    }
}
