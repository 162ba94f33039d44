// SPDX-License-Identifier: Apache-2.0

//! netfilter over netlink, without any program: a table of nf_tables described as a value, written in
//! one atomic batch and read back; and entries of connection tracking. What a table should hold, and
//! which entries are wrong, is not known here.

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

/// A table's family and name, as nft writes them.
fn title(family: Family, table: &str) -> String {
    let family = match family {
        Family::IPv4 => "ip",
        Family::IPv6 => "ip6",
        _ => "inet",
    };
    format!("{family} {table}")
}
