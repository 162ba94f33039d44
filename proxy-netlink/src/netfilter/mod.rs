// SPDX-License-Identifier: Apache-2.0

//! netfilter over netlink, without external programs: a table of nf_tables is described as a value, written in one
//! atomic batch and read back; entries of connection tracking are read and changed. This module does not know the
//! intended content of a table or which entries are wrong.

pub mod conntrack;
mod elements;
pub mod expression;
mod members;
pub mod set;
mod socket;
pub mod table;

pub use elements::{Element, elements_in, fold_elements};
pub use netlink_packet_netfilter::NetfilterProtoFamily as Family;
pub(crate) use socket::object;
pub use socket::{Error, Message, Socket};
pub use table::{Base, Chain, Hook, Outline, Rule, Table, has_table};

/// Returns a table's family and name in nft's notation.
fn title(family: Family, table: &str) -> String {
    let family = match family {
        Family::IPv4 => "ip",
        Family::IPv6 => "ip6",
        _ => "inet",
    };
    format!("{family} {table}")
}
