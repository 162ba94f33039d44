// SPDX-License-Identifier: Apache-2.0

//! Live connections on every path to the proxy at once, see [`crate::stream`].

use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::node::Node;
use crate::path::Path;
use crate::stream::Live;
use crate::{Family, client, cmd, conntrack, slow_machine, transfer};

const TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum time for which a stream may stall: lost packets are retransmitted after a delay, which doubles each time
/// and is long on a busy machine.
const STALL: Duration = Duration::from_mins(1);

/// The pause between two chunks of each of very many streams, which results in about 100 KiB/s in each direction.
const SLOWLY: Duration = Duration::from_millis(80);

/// Starts `count` streams, on all paths in turn, each slower than those of [`open`].
///
/// # Errors
/// Returns an error if a path does not work.
pub fn open_many(node: &Node, count: usize) -> Result<Vec<Live>> {
    let paths = node.paths();
    (1..)
        .zip(paths.iter().cycle().take(count))
        .map(|(seed, path)| {
            let stream = client::connect(path.netns, path.destination(), TIMEOUT)
                .with_context(|| path.to_string())?;
            Live::start_at(SLOWLY, &format!("{seed}: {path}"), &stream, seed)
        })
        .collect()
}

/// Starts a stream on every path.
///
/// # Errors
/// Returns an error if a path does not work.
pub fn open(node: &Node) -> Result<Vec<Live>> {
    open_on(node.paths())
}

/// Starts a stream on each of these paths.
///
/// # Errors
/// Returns an error if one of them does not work.
pub fn open_on(paths: Vec<Path<'_>>) -> Result<Vec<Live>> {
    (1..)
        .zip(paths)
        .map(|(seed, path)| {
            let stream = client::connect(path.netns, path.destination(), TIMEOUT)
                .with_context(|| path.to_string())?;
            Live::start(&path.to_string(), &stream, seed)
        })
        .collect()
}

/// Waits until every stream has received more bytes.
///
/// # Errors
/// Returns an error if a stream stalls.
pub fn all_go_on(streams: &[Live]) -> Result<()> {
    let marks: Vec<u64> = streams.iter().map(Live::received).collect();
    for (stream, mark) in streams.iter().zip(marks) {
        // This is more than the number of bytes that may already have been in flight.
        let enough = mark + slow_machine::times(100_000) as u64;
        cmd::wait_until(STALL, "a stream to go on", || {
            Ok((stream.received() > enough).then_some(()))
        })
        .with_context(|| format!("{} after {mark} bytes", stream.name()))?;
    }
    Ok(())
}

/// Ends every stream, and checks that all bytes were correct.
///
/// # Errors
/// Returns an error if a byte was lost or damaged.
pub fn all_end_intact(streams: Vec<Live>) -> Result<()> {
    let mut total = 0;
    for stream in streams {
        total += stream.finish()?;
    }
    println!("{} KiB each way, intact", total / 1024);
    Ok(())
}

/// Connects on every path.
///
/// # Errors
/// Returns an error if a path does not work.
pub fn new_connections_work(node: &Node) -> Result<()> {
    for path in node.paths() {
        let mut stream = client::connect(path.netns, path.destination(), TIMEOUT)
            .with_context(|| format!("{path}: connecting anew"))?;
        transfer::exchange(&mut stream, 100_000, 1).with_context(|| path.to_string())?;
    }
    Ok(())
}

/// Returns the conntrack entries of the proxy's connections, in both families.
///
/// # Errors
/// Returns an error if conntrack(8) fails.
pub fn entries(node: &Node) -> Result<Vec<conntrack::Entry>> {
    let mut entries = Vec::new();
    for family in Family::ALL {
        entries.extend(conntrack::list(&node.netns, family)?);
    }
    Ok(entries)
}

/// Checks that no connection to a VIP itself is tracked.
///
/// # Errors
/// Returns an error if one is tracked, or if conntrack(8) fails.
pub fn vip_is_untracked(node: &Node) -> Result<()> {
    let entries = entries(node)?;
    let vips = Family::ALL.map(Family::vip_socket);
    let wrong = |entry: &&conntrack::Entry| vips.contains(&entry.destination);
    if let Some(entry) = entries.iter().find(wrong) {
        bail!("a connection to the VIP is tracked: {entry:#?}");
    }
    Ok(())
}
