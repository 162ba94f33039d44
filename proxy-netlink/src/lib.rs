// SPDX-License-Identifier: Apache-2.0

//! The kernel's netlink families that the node agent uses, as values. A read is complete or returns an error; a write
//! takes effect as a whole or not at all. This crate does not know which objects are wanted and which belong to the
//! agent.
//!
//! | module | content |
//! |---|---|
//! | [`answer`] | the only reader of responses and dumps, for every family |
//! | [`netfilter`] | nf_tables and conntrack: tables as values, transactions, dumps |
//! | [`route`] | links, addresses, routes, filters and queueing disciplines |
//! | [`sock_diag`] | TCP sockets with their cgroups, and the termination of connections |
//! | [`events`] | notifications of route netlink and nf_tables |
//! | [`actor`] | the process that made a change |

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
