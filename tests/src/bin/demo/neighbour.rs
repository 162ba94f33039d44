// SPDX-License-Identifier: Apache-2.0

//! A neighbour that routes the VIP to the node, and the answers that it gets.

use std::fmt::{self, Display};
use std::time::Duration;

use anyhow::Result;
use tests::node::{Node, uplink_address};
use tests::{Family, client, status};

/// Long enough for an answer, and for one SYN that is sent again.
const TIMEOUT: Duration = Duration::from_millis(1500);

/// The answers that a neighbour got.
pub struct Neighbour {
    answered: usize,
    /// Packets that status says were dropped; none without an agent that counts.
    dropped: Option<u64>,
}

/// Connects from the other end of the uplink, once in each family. `counts`: the agent counts the
/// packets it drops.
pub fn measure(node: &Node, counts: bool) -> Result<Neighbour> {
    let mut answered = 0;
    for family in Family::ALL {
        let (vip, length) = (family.vip(), family.host_prefix());
        let to = uplink_address(family);
        node.uplink
            .ip(&format!("route replace {vip}/{length} via {to}\n"))?;
        let answer = client::connect(&node.uplink, family.vip_socket(), TIMEOUT);
        answered += usize::from(answer.is_ok());
    }
    let dropped = counts.then(|| status::dropped(node, "outside"));
    Ok(Neighbour {
        answered,
        dropped: dropped.transpose()?,
    })
}

impl Neighbour {
    /// The error, where the link is guarded: an answer, or no counted drop.
    pub fn mistake(&self) -> Option<String> {
        let is_right = self.answered == 0 && self.dropped.is_some_and(|count| count > 0);
        (!is_right).then(|| format!("a neighbour that routes the VIP to the node: {self}"))
    }
}

impl Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.answered, self.dropped) {
            (0, Some(dropped)) => write!(f, "no answer, {dropped} packets dropped"),
            (0, None) => f.write_str("no answer"),
            (answered, _) => write!(f, "connected {answered} times of 2"),
        }
    }
}
