// SPDX-License-Identifier: Apache-2.0

//! How full conntrack's table is, what it has dropped, and whether it picks connections up that it
//! has not seen from their start.

use std::fs;
use std::io;

use super::check::Check;
use super::subject::Subject;

const TABLE: &str = "conntrack";
const LOOSE: &str = "conntrack-loose";

/// From how full on it is worth a warning, in percent.
const NEARLY_FULL: u64 = 90;

/// The table of this network namespace.
#[derive(Debug, Clone, Copy)]
struct Fill {
    count: u64,
    max: u64,
}

/// What happened in this network namespace since it was made, of all processors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Statistics {
    insert_failed: u64,
    drop: u64,
    early_drop: u64,
}

pub fn checks(subject: &Subject) -> Vec<Check> {
    let fill = || {
        Ok(Fill {
            count: number("nf_conntrack_count")?,
            max: number("nf_conntrack_max")?,
        })
    };
    let statistics = fs::read_to_string("/proc/thread-self/net/stat/nf_conntrack");
    let statistics = statistics.map(|text| parse(&text)).unwrap_or_default();
    // Of the ways to the VIP those that are tracked need room in the table.
    let untracked = subject
        .choice()
        .is_some_and(|choice| choice.backend != "none");
    let table = match fill() {
        Ok(fill) => judge(fill, statistics, untracked),
        Err(error) => return absent(&error),
    };
    let loose = match number("nf_conntrack_tcp_loose") {
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
            Check::unknown(id, "read conntrack's settings", error, "mount /proc")
        }
    };
    vec![check(TABLE), check(LOOSE)]
}

fn number(name: &str) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/sys/net/netfilter/{name}"))?;
    text.trim().parse().map_err(io::Error::other)
}

/// Sums the columns that matter: a line of names, then a line of hexadecimal numbers for each
/// processor.
fn parse(text: &str) -> Statistics {
    let mut lines = text.lines();
    let names: Vec<&str> = lines
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let rows: Vec<Vec<&str>> = lines
        .map(|line| line.split_whitespace().collect())
        .collect();
    let sum = |name| {
        let Some(column) = names.iter().position(|of| *of == name) else {
            return 0;
        };
        let cells = rows.iter().filter_map(|row| row.get(column));
        let numbers = cells.filter_map(|cell| u64::from_str_radix(cell, 16).ok());
        numbers.fold(0, u64::wrapping_add)
    };
    Statistics {
        insert_failed: sum("insert_failed"),
        drop: sum("drop"),
        early_drop: sum("early_drop"),
    }
}

fn judge(fill: Fill, statistics: Statistics, untracked: bool) -> Check {
    let Fill { count, max } = fill;
    let Statistics {
        insert_failed,
        drop,
        early_drop,
    } = statistics;
    let finding = format!(
        "{count} of {max} entries; since the start {drop} packets dropped because it was full, \
         {early_drop} entries evicted, {insert_failed} insertions failed"
    );
    let percent = count.saturating_mul(100) / max.max(1);
    if percent < NEARLY_FULL {
        return Check::ok(TABLE, finding);
    }
    let remedy = "raise net.netfilter.nf_conntrack_max (in the initial network namespace), or find who \
                  fills it (conntrack -L) and shorten its time-outs";
    let command = format!(
        "sysctl -w net.netfilter.nf_conntrack_max={}",
        max.saturating_mul(2)
    );
    let check = if count >= max && !untracked {
        let finding =
            format!("the table is full: {finding}; new connections fail, those to the VIP too");
        Check::broken(TABLE, finding, remedy)
    } else {
        let finding = format!("the table is {percent} % full: {finding}");
        Check::warning(TABLE, finding, remedy)
    };
    check.with_command(command)
}

fn judge_loose(loose: bool) -> Check {
    if loose {
        return Check::ok(LOOSE, "conntrack picks up connections that are under way");
    }
    Check::warning(
        LOOSE,
        "net.netfilter.nf_conntrack_tcp_loose is 0: a connection that stops being untracked (the agent \
         is removed, its entry is evicted) is invalid to conntrack, and rules that drop invalid \
         packets end it",
        "set it to 1",
    )
    .with_command("sysctl -w net.netfilter.nf_conntrack_tcp_loose=1")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::doctor::check::Verdict;

    #[test]
    fn columns_are_found_by_name_and_summed() {
        let text = "entries  clashres found new invalid ignore delete chainlength insert insert_failed \
                    drop early_drop icmp_error  expect_new expect_create expect_delete search_restart\n\
                    00000010  00000000 00000000 0 0 0 0 0 00000000 0000000a 00000003 00000001 0 0 0 0 0\n\
                    00000010  00000000 00000000 0 0 0 0 0 00000000 00000010 00000000 00000000 0 0 0 0 0\n";
        let expected = Statistics {
            insert_failed: 26,
            drop: 3,
            early_drop: 1,
        };
        assert_eq!(parse(text), expected);
        assert_eq!(parse(""), Statistics::default());
    }

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

    proptest! {
        #[test]
        fn any_statistics_are_read(text in "(drop|early_drop|[0-9a-f]{1,16}|.| |\n){0,60}") {
            let _ = parse(&text);
        }
    }
}
