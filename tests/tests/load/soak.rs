// SPDX-License-Identifier: Apache-2.0

//! The short form of `cargo xtask soak`: growth that appears in half an hour is mostly visible in half a minute.

use std::time::Duration;

use tests::node::{Node, Topology};
use tests::soak;

const TIME: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::ZERO;

#[test]
fn flat() {
    let topology = Topology::Veth;
    Node::test(topology, |node| {
        let samples = soak::soak(node, topology, (TIME, PAUSE), |_| {})?;
        println!("{}", soak::table(&samples));
        soak::is_flat(&samples)
    });
}
