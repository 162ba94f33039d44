// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Bounds that the programs and the agent must agree on.

use crate::addr::Address;

/// VIPs times ports.
pub const MAX_VIPS: u32 = 256;

/// Services that end on the proxy, those that are drained included.
pub const MAX_SERVICES: u32 = 2 * MAX_VIPS;

/// Default number of connections that each table of connections has room for.
pub const DEFAULT_MAX_CONNECTIONS: u32 = 65_536;

/// Pairs of a link and a VIP with its port that are counted.
pub const MAX_COUNTERS: u32 = 16_384;

/// The bit that stands for a port in the set by which programs leave most packets alone at once.
///
/// `port` is in network byte order. Ports that share a bit cost a look-up, nothing more.
#[inline(always)]
#[must_use]
pub const fn port_bit(port: u16) -> u64 {
    1 << (u16::from_be(port) & 63)
}

/// The bit that stands for an address in the set by which programs leave most packets alone at once:
/// that of its last byte. Addresses that share a bit cost a look-up, nothing more.
#[inline(always)]
#[must_use]
pub const fn address_bit(address: &Address) -> u64 {
    1 << (address.words()[3].to_ne_bytes()[3] & 63)
}

/// Links that the guard knows something about: guarded ones and ports of bridges.
pub const MAX_GUARD_LINKS: u32 = 16_384;

/// Networks whose packets may come from outside.
pub const MAX_ALLOWED: u32 = 1024;
