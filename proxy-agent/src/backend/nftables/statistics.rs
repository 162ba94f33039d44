// SPDX-License-Identifier: Apache-2.0

//! What the rules that guard have dropped, read from the kernel without the agent that made them.

use std::net::SocketAddr;

use proxy_common::guard::Cause;

use super::guard;
use crate::backend::tables;
use crate::instance::Instance;
use crate::netfilter::{Error, Socket};

/// Reads how many packets to each endpoint an instance's rules have dropped, by cause; they count anew when
/// the tables are put in place anew.
///
/// # Errors
///
/// If the kernel does not answer.
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
