// SPDX-License-Identifier: Apache-2.0

//! A live stream on every way to the proxy, and what is asserted of all of them while something
//! happens to the node.

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::node::Node;
use crate::stream::Live;
use crate::{client, cmd};

const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a stream may stand still: what is lost is sent again after a while.
const STALL: Duration = Duration::from_secs(15);

/// Starts a stream on every way.
///
/// # Errors
/// When one of the ways does not work.
pub fn open(node: &Node) -> Result<Vec<Live>> {
    (1..)
        .zip(node.paths())
        .map(|(seed, path)| {
            let stream = client::connect(path.netns, path.destination(), TIMEOUT)
                .with_context(|| path.to_string())?;
            Live::start(&path.to_string(), &stream, seed)
        })
        .collect()
}

/// Waits until more has come back on every stream.
///
/// # Errors
/// When one of them stands still.
pub fn all_go_on(streams: &[Live]) -> Result<()> {
    let marks: Vec<u64> = streams.iter().map(Live::received).collect();
    for (stream, mark) in streams.iter().zip(marks) {
        // More than may have been on its way already.
        let enough = mark + 100_000;
        cmd::wait_until(STALL, "a stream to go on", || {
            Ok((stream.received() > enough).then_some(()))
        })
        .with_context(|| format!("{} after {mark} bytes", stream.name()))?;
    }
    Ok(())
}

/// Ends the streams, and checks that everything has come back as it was sent.
///
/// # Errors
/// When one of them was cut off or has lost something.
pub fn all_end_intact(streams: Vec<Live>) -> Result<()> {
    let mut total = 0;
    for stream in streams {
        total += stream.finish()?;
    }
    println!("{} KiB each way, intact", total / 1024);
    Ok(())
}
