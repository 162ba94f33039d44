// SPDX-License-Identifier: Apache-2.0 OR MIT

//! TC egress of the same links: a net for moments without our rules.
//!
//! Without them conntrack picks a live connection to a Service up half-way, and kube-proxy's DNAT
//! bends it: the client's packet ends at a listener that does not know it and is answered by a RST,
//! or the proxy's reply gets another source port. Neither can be genuine while the proxy has the
//! connection, so neither reaches the client. TCP sends lost segments again.

use aya_ebpf::programs::TcContext;
use proxy_common::{ConnectionKey, CounterKey, Endpoint};

use crate::maps::{services, statistics};
use crate::packet::{self, FromNetworkHeader, Undecided};
use crate::sockets;

/// Drops the packet if it claims to be a reply of a Service and cannot be.
#[inline(always)]
pub fn catch(ctx: &TcContext) -> Result<(), Undecided> {
    let segment = packet::segment::<FromNetworkHeader>(ctx.skb.skb)?;
    let (from, client) = (segment.source(), segment.destination());
    if !services::may_be_address(&from.address()) {
        return Err(Undecided::NotForProxy);
    }
    let ports = services::ports(&from.address())?;
    for port in ports.ports() {
        if *port == 0 {
            break;
        }
        // Its own port: only a RST can be wrong.
        if *port == from.port() && !segment.resets() {
            return Ok(());
        }
        let service = Endpoint::new(from.address(), *port);
        let known = services::get(&service)?;
        // The agent resets the remaining connections when it stops draining. And a Service may have
        // other ports that are none of ours: they are known by there being no such connection.
        if !known.is_draining() && sockets::goes_on(ctx, &ConnectionKey::new(client, service)) {
            statistics::stray_reply(CounterKey::THIS_HOST, known.vip());
            return Err(Undecided::Dropped);
        }
    }
    Ok(())
}
