// SPDX-License-Identifier: Apache-2.0

//! A neighbouring host that routes the VIP to the node, and the replies that it receives.

use std::fmt::{self, Display};
use std::time::Duration;

use anyhow::Result;
use tests::node::{Node, uplink_address};
use tests::{Family, client, status};

/// Long enough for a reply, and for one retransmitted SYN.
const TIMEOUT: Duration = Duration::from_millis(1500);

/// The replies that the neighbour received.
pub struct Neighbour {
    answered: usize,
    /// The number of dropped packets that `status` reports; `None` without an agent that counts them.
    dropped: Option<u64>,
}

/// Connects from the other end of the uplink, once in each family. `counts` is true if the agent counts the packets
/// that it drops.
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
    /// Returns the error on a guarded link: the neighbour got a reply, or no dropped packet was counted.
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
