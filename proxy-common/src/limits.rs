// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Limits that the programs and the agent must agree on.

use crate::addr::Address;

/// The maximum number of VIPs times ports.
pub const MAX_VIPS: u32 = 256;

/// The maximum number of Services that end on the proxy, including drained ones.
pub const MAX_SERVICES: u32 = 2 * MAX_VIPS;

/// The default size of each table of connections, in entries.
pub const DEFAULT_MAX_CONNECTIONS: u32 = 65_536;

/// The maximum number of counted pairs of a link and a VIP with its port.
pub const MAX_COUNTERS: u32 = 16_384;

/// Returns the bit of a port in the set that lets programs skip most packets at once.
///
/// `port` is in network byte order. Ports that share a bit cost only a look-up.
#[inline(always)]
#[must_use]
pub const fn port_bit(port: u16) -> u64 {
    1 << (u16::from_be(port) & 63)
}

/// Returns the bit of an address, by its last byte, in the set that lets programs skip most packets at once. Addresses
/// that share a bit cost only a look-up.
#[inline(always)]
#[must_use]
pub const fn address_bit(address: &Address) -> u64 {
    1 << (address.words()[3].to_ne_bytes()[3] & 63)
}

/// The maximum number of links whose role the guard stores: guarded ones and ports of bridges.
pub const MAX_GUARD_LINKS: u32 = 16_384;

/// The maximum number of networks whose packets are permitted from outside.
pub const MAX_ALLOWED: u32 = 1024;
