// SPDX-License-Identifier: Apache-2.0

//! Counters of the rules, read from the kernel; no agent needs to run.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use proxy_common::{Counters, Reason, Traffic};
use proxy_netlink::netfilter::{Error, Socket};

use super::Counted;
use crate::backend::tables;
use crate::instance::Instance;

/// Reads an instance's counters for these endpoints; zero for an endpoint without rules.
///
/// Unlike those of the eBPF programs they count every packet of the VIP, including those of tracked connections, and they restart
/// when the tables are replaced.
///
/// # Errors
///
/// The kernel's error.
pub fn read(
    instance: Instance,
    endpoints: &[SocketAddr],
) -> Result<Vec<(SocketAddr, Counters)>, Error> {
    let mut socket = Socket::open()?;
    let mut counts = Vec::new();
    for table in tables::empty(instance) {
        for chain in BTreeSet::from(Counted::ALL.map(Counted::chain)) {
            counts.extend(table.counters(chain, &mut socket)?);
        }
    }
    let of_endpoint = |vip: &SocketAddr| {
        let mut counters = Counters::ZERO;
        for counted in Counted::ALL {
            let purpose = counted.purpose(*vip);
            for count in counts.iter().filter(|count| count.comment == purpose) {
                let traffic = Traffic {
                    packets: count.packets,
                    bytes: count.bytes,
                };
                match counted {
                    Counted::FromElsewhere | Counted::FromHere => counters.requests.add(traffic),
                    Counted::Replies => counters.replies.add(traffic),
                    Counted::Decided => counters.decided += count.packets,
                    Counted::InUse => counters.undecided[Reason::InUse as usize] += count.packets,
                    Counted::NoRoom => {
                        counters.undecided[Reason::MapFull as usize] += count.packets;
                    }
                }
            }
        }
        (*vip, counters)
    };
    Ok(endpoints.iter().map(of_endpoint).collect())
}
