// SPDX-License-Identifier: Apache-2.0

//! Counters of the guard's rules, read from the kernel; no agent needs to run.

use std::net::SocketAddr;

use proxy_common::guard::Cause;
use proxy_netlink::netfilter::{Error, Socket};

use super::guard;
use crate::backend::tables;
use crate::instance::Instance;

/// Reads the number of packets to each endpoint that an instance's rules have dropped, by cause. They restart when the tables are
/// replaced.
///
/// # Errors
///
/// The kernel's error.
pub fn dropped(
    instance: Instance,
    endpoints: &[SocketAddr],
) -> Result<Vec<(SocketAddr, Cause, u64)>, Error> {
    let mut socket = Socket::open()?;
    let mut counts = Vec::new();
    for table in tables::empty_guard(instance) {
        for chain in [guard::ALL, guard::ADDRESSED] {
            counts.extend(table.counters(chain, &mut socket)?);
        }
    }
    let mut dropped = Vec::new();
    for vip in endpoints {
        let first = endpoints.iter().find(|endpoint| endpoint.ip() == vip.ip());
        for count in &counts {
            if let Some(cause) = guard::cause(&count.comment, *vip, first == Some(vip)) {
                dropped.push((*vip, cause, count.packets));
            }
        }
    }
    Ok(dropped)
}
