// SPDX-License-Identifier: Apache-2.0 OR MIT

//! TC egress of the same links: a safety net for moments without our rules.
//!
//! Without the rules, conntrack starts to track an existing connection to a Service in the middle,
//! and kube-proxy's DNAT translates it: either the client's packet reaches a listener that does not
//! know the connection and replies with a RST, or the proxy's reply is sent with another source
//! port. While the proxy has the connection, neither can be genuine, so this program keeps both
//! from the client. TCP retransmits lost segments.

use aya_ebpf::programs::TcContext;
use proxy_common::{ConnectionKey, CounterKey, Endpoint};

use crate::maps::{services, statistics};
use crate::packet::{self, FromNetworkHeader, Undecided};
use crate::sockets;

/// Drops the packet if it appears to be a reply of a Service and cannot be genuine.
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
        // The packet has the Service's own port, so that only a RST can be wrong.
        if *port == from.port() && !segment.resets() {
            return Ok(());
        }
        let service = Endpoint::new(from.address(), *port);
        let known = services::get(&service)?;
        // The agent resets the remaining connections when it stops draining. A Service may also
        // have other ports, which do not end on the proxy: for these no such connection exists.
        if !known.is_draining() && sockets::goes_on(ctx, &ConnectionKey::new(client, service)) {
            statistics::stray_reply(CounterKey::THIS_HOST, known.vip());
            return Err(Undecided::Dropped);
        }
    }
    Ok(())
}
