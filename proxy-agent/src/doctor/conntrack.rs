// SPDX-License-Identifier: Apache-2.0

//! How full the conntrack table is, what it has dropped, and whether conntrack accepts connections from the middle
//! (`nf_conntrack_tcp_loose`).

use std::io;

use proxy_kernel::conntrack::{self, Fill, Statistics};
use proxy_serve::doctor::Check;

use super::check;
use super::subject::Subject;

const TABLE: &str = "conntrack";
const LOOSE: &str = "conntrack-loose";

/// Fill level that is worth a warning, in percent.
const NEARLY_FULL: u64 = 90;

pub fn checks(subject: &Subject) -> Vec<Check> {
    let statistics = conntrack::statistics().unwrap_or_default();
    // Only tracked connections to the VIP need entries.
    let untracked = subject
        .choice()
        .is_some_and(|choice| choice.backend != "none");
    let table = match conntrack::fill() {
        Ok(fill) => judge(fill, statistics, untracked),
        Err(error) => return absent(&error),
    };
    let loose = match conntrack::number("nf_conntrack_tcp_loose") {
        Ok(loose) => judge_loose(loose != 0),
        Err(error) => return absent(&error),
    };
    vec![table, loose]
}

fn absent(error: &io::Error) -> Vec<Check> {
    let check = |id| {
        if error.kind() == io::ErrorKind::NotFound {
            Check::not_applicable(id, "conntrack is not loaded")
        } else {
            check::unknown(id, "read conntrack's settings", error, "mount /proc")
        }
    };
    vec![check(TABLE), check(LOOSE)]
}

fn judge(fill: Fill, statistics: Statistics, untracked: bool) -> Check {
    let Fill { count, max } = fill;
    let Statistics {
        insert_failed,
        drop,
        early_drop,
    } = statistics;
    let finding = format!(
        "{count} of {max} entries; since boot {drop} packets dropped because it was full, \
         {early_drop} entries evicted, {insert_failed} insertions failed"
    );
    let percent = count.saturating_mul(100) / max.max(1);
    if percent < NEARLY_FULL {
        return Check::ok(TABLE, finding);
    }
    let remedy = "raise net.netfilter.nf_conntrack_max (in the initial network namespace), or find the source of \
                  the entries (conntrack -L) and reduce its time-outs";
    let command = format!(
        "sysctl -w net.netfilter.nf_conntrack_max={}",
        max.saturating_mul(2)
    );
    let check = if count >= max && !untracked {
        let finding = format!(
            "the table is full: {finding}; new connections fail, including those to the VIP"
        );
        Check::broken(TABLE, finding, remedy)
    } else {
        let finding = format!("the table is {percent} % full: {finding}");
        Check::warning(TABLE, finding, remedy)
    };
    check.with_command(command)
}

fn judge_loose(loose: bool) -> Check {
    if loose {
        return Check::ok(
            LOOSE,
            "conntrack accepts established connections without their start",
        );
    }
    Check::warning(
        LOOSE,
        "net.netfilter.nf_conntrack_tcp_loose is 0: a connection that is no longer untracked (the agent \
         is removed, its entry is evicted) becomes invalid to conntrack, and rules that drop invalid \
         packets break it",
        "set it to 1",
    )
    .with_command("sysctl -w net.netfilter.nf_conntrack_tcp_loose=1")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proxy_serve::doctor::Verdict;

    #[test]
    fn a_full_table_is_worse_where_the_vip_is_tracked() {
        let judged = |count, untracked| {
            judge(Fill { count, max: 100 }, Statistics::default(), untracked).verdict
        };
        assert_eq!(judged(89, false), Verdict::Ok);
        assert_eq!(judged(90, false), Verdict::Warning);
        assert_eq!(judged(100, false), Verdict::Broken);
        assert_eq!(judged(100, true), Verdict::Warning);
        assert_eq!(judge_loose(false).verdict, Verdict::Warning);
    }
}
