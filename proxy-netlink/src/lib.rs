// SPDX-License-Identifier: Apache-2.0

//! The kernel's netlink families that the node agent uses, as values: what is read is complete or an
//! error, what is written takes effect as a whole or not at all. Which objects are wanted, and which
//! belong to the agent, is not known here.
//!
//! | module | holds |
//! |---|---|
//! | [`answer`] | the one reader of answers and dumps, for every family |
//! | [`netfilter`] | nf_tables and conntrack: tables as values, transactions, dumps |
//! | [`route`] | links, addresses, routes, filters and queueing disciplines |
//! | [`sock_diag`] | TCP sockets with their cgroups, and how to end a connection |
//! | [`events`] | notifications of route netlink and nf_tables |
//! | [`actor`] | which process made a change |

#![cfg_attr(
    feature = "fuzzing",
    expect(
        clippy::missing_panics_doc,
        reason = "a fuzz target reports a fault by a panic"
    )
)]

pub mod actor;
pub mod answer;
pub mod events;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod netfilter;
pub mod route;
pub mod sock_diag;
mod wire;

pub use netlink_packet_netfilter::nftables;
pub use wire::{Message, decode, messages, request};
