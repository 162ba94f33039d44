// SPDX-License-Identifier: Apache-2.0

//! Which connections take which way, and what conntrack knows of them.

mod debug_lines;
mod endpoints;
mod fallback;
mod full_table;
mod isolation;
mod neighbours;
mod one_port;
mod paths;
mod port_reuse;
mod port_reuse_without_proxy;
mod stale;
mod translation;
