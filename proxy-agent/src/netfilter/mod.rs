// SPDX-License-Identifier: Apache-2.0

//! netfilter over netlink, without any binary: a table of nf_tables described as a value, written in
//! one atomic batch and read back; and entries of connection tracking. What a table holds and which
//! entries are wrong is the business of others.

pub mod conntrack;
pub mod expression;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod members;
pub mod set;
mod socket;
pub mod table;

pub use netlink_packet_netfilter::NetfilterProtoFamily as Family;
pub use socket::{Error, Socket};
pub use table::{Base, Chain, Hook, Outline, Rule, Table};
