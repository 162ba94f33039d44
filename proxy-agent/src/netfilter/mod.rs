// SPDX-License-Identifier: Apache-2.0

//! nf_tables over netlink: a table of ours described as a value, written in one atomic batch and
//! read back. No binary is run. What a table holds is each backend's business.

pub mod expression;
mod socket;
pub mod table;

pub use netlink_packet_netfilter::NetfilterProtoFamily as Family;
pub use socket::{Error, Socket};
pub use table::{Chain, Hook, Outline, Rule, Table};
