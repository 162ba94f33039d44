// SPDX-License-Identifier: Apache-2.0

//! The path of each kind of connection, and its conntrack entries.

mod bpf_coexistence;
mod debug_lines;
mod endpoints;
mod full_table;
mod isolation;
mod one_port;
mod paths;
mod port_reuse;
mod port_reuse_without_proxy;
mod proxy_down;
mod stale;
mod translation;
