// SPDX-License-Identifier: Apache-2.0

//! Bounds that the programs and the agent must agree on.

/// VIPs times ports.
pub const MAX_VIPS: u32 = 256;

/// Entries of the map of destinations: VIPs with their ports, and the service addresses that are
/// translated to them, at most one for each.
pub const MAX_DESTINATIONS: u32 = 2 * MAX_VIPS;

/// Decided connections that are remembered unless the agent is told otherwise.
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
