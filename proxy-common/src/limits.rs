// SPDX-License-Identifier: Apache-2.0

//! Bounds that the programs and the agent must agree on.

/// Entries of the map of VIPs: addresses times ports.
pub const MAX_VIPS: u32 = 256;

/// Decided connections that are remembered unless the agent is told otherwise.
pub const DEFAULT_MAX_CONNECTIONS: u32 = 65_536;
