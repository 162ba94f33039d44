// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Services whose connections end on the proxy: the values of their maps, and the rule by which TC egress recognises
//! replies that cannot be genuine.

use crate::addr::Endpoint;

/// The maximum number of ports of one Service address that end on the proxy.
pub const MAX_SERVICE_PORTS: usize = 4;

/// The data of a Service's address and port; the value of a map whose key is that endpoint.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Service {
    vip: Endpoint,
    draining: u32,
}

/// The ports of one Service address that end on the proxy, in network byte order; zero marks an unused entry.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServicePorts([u16; MAX_SERVICE_PORTS]);

impl Service {
    /// Creates a Service that ends on the listener of `vip`. While it is `draining`, no new connection is decided.
    #[must_use]
    pub const fn new(vip: Endpoint, draining: bool) -> Self {
        Self {
            vip,
            draining: draining as u32,
        }
    }

    /// Returns the VIP and the port whose listener accepts the connections.
    #[inline(always)]
    #[must_use]
    pub const fn vip(&self) -> Endpoint {
        self.vip
    }

    /// Returns whether new connections use the path that they would use without the agent.
    #[inline(always)]
    #[must_use]
    pub const fn is_draining(&self) -> bool {
        self.draining != 0
    }
}

impl ServicePorts {
    /// Adds a port. Returns false if there is no room.
    pub fn add(&mut self, port: u16) -> bool {
        match self.0.iter_mut().find(|place| **place == 0) {
            Some(place) => {
                *place = port;
                true
            }
            None => false,
        }
    }

    /// Returns the ports; zero marks an unused entry.
    #[inline(always)]
    #[must_use]
    pub const fn ports(&self) -> &[u16; MAX_SERVICE_PORTS] {
        &self.0
    }
}

/// States of a TCP socket (`include/net/tcp_states.h`; part of the kernel's ABI for eBPF).
pub mod state {
    /// The socket waits for late packets of a connection that has ended.
    pub const TIME_WAIT: u32 = 6;
    /// The socket is closed.
    pub const CLOSE: u32 = 7;
    /// The socket listens.
    pub const LISTEN: u32 = 10;
}

/// Returns whether a connection in this state has not ended, so that its end cannot have sent a RST.
#[inline(always)]
#[must_use]
pub const fn goes_on(state: u32) -> bool {
    !matches!(state, state::TIME_WAIT | state::CLOSE | state::LISTEN)
}

// SAFETY: `repr(C)`, integers only, no padding (see the layout test), any bit pattern is valid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Service {}

// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for ServicePorts {}

#[cfg(test)]
mod tests {
    use core::mem::{align_of, size_of};

    use super::*;

    #[test]
    fn nothing_has_padding() {
        assert_eq!(size_of::<Service>(), size_of::<Endpoint>() + 4);
        assert_eq!(align_of::<Service>(), 4);
        assert_eq!(size_of::<ServicePorts>(), 2 * MAX_SERVICE_PORTS);
    }

    #[test]
    fn ports_are_added_until_there_is_no_room() {
        let mut ports = ServicePorts::default();
        for port in 1..=4 {
            assert!(ports.add(port));
        }
        assert!(!ports.add(5));
        assert_eq!(ports.ports(), &[1, 2, 3, 4]);
    }

    #[test]
    fn only_connections_that_are_over_may_be_reset() {
        const ESTABLISHED: u32 = 1;
        const SYN_RECV: u32 = 3;
        const NEW_SYN_RECV: u32 = 12;
        for live in [ESTABLISHED, SYN_RECV, NEW_SYN_RECV] {
            assert!(goes_on(live));
        }
        for over in [state::TIME_WAIT, state::CLOSE, state::LISTEN] {
            assert!(!goes_on(over));
        }
    }
}
