// SPDX-License-Identifier: Apache-2.0

//! The size of conntrack's table in this network namespace, and its statistics, from /proc.

use std::fs;
use std::io;

/// The fill level of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// The number of entries.
    pub count: u64,
    /// The maximum number of entries.
    pub max: u64,
}

/// Counters since the namespace was created, summed over all processors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// The number of entries that could not be added.
    pub insert_failed: u64,
    /// The number of packets that were dropped because the table was full.
    pub drop: u64,
    /// The number of entries that were evicted because the table was full.
    pub early_drop: u64,
}

/// Reads the number of entries and its limit.
///
/// # Errors
///
/// Returns `NotFound` if conntrack is not loaded, and other errors if /proc cannot be read.
pub fn fill() -> io::Result<Fill> {
    Ok(Fill {
        count: number("nf_conntrack_count")?,
        max: number("nf_conntrack_max")?,
    })
}

/// Reads the counters.
///
/// # Errors
///
/// Returns `NotFound` if conntrack is not loaded or the kernel is built without `NF_CONNTRACK_PROCFS`, and other errors
/// if /proc cannot be read.
pub fn statistics() -> io::Result<Statistics> {
    Ok(parse(&fs::read_to_string(
        "/proc/thread-self/net/stat/nf_conntrack",
    )?))
}

/// Reads one of conntrack's settings.
///
/// # Errors
///
/// Returns an error under the same conditions as [`fill`].
pub fn number(name: &str) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/sys/net/netfilter/{name}"))?;
    text.trim().parse().map_err(io::Error::other)
}

/// Sums the relevant columns. The text has a line of names, followed by a line of hexadecimal numbers for each
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

/// Returns true if conntrack picks up an established TCP connection (`nf_conntrack_tcp_loose`), or if the setting
/// cannot be read, for example because connections are not tracked.
#[must_use]
pub fn picks_up() -> bool {
    let loose = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_tcp_loose");
    loose.map_or(true, |loose| loose.trim() != "0")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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

    proptest! {
        #[test]
        fn any_statistics_are_read(text in "(drop|early_drop|[0-9a-f]{1,16}|.| |\n){0,60}") {
            let _ = parse(&text);
        }
    }
}
