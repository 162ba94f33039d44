// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Definitions that the eBPF programs and the agent share: the layout of map keys and values, the
//! headers that the programs read, and the pure rules that decide a connection.
//!
//! Everything here compiles for the BPF targets and for the host, so the rules are tested on the
//! host. Nothing here calls the kernel.

#![no_std]
#![expect(
    clippy::inline_always,
    reason = "each program is one function to the verifier, and small: a call costs more than it saves"
)]

#[cfg(test)]
extern crate std;

pub mod addr;
pub mod connection;
pub mod guard;
pub mod limits;
pub mod packet;
pub mod service;
pub mod statistics;

pub use addr::{Address, Endpoint};
pub use connection::ConnectionKey;
pub use packet::{Ipv4Tcp, Ipv6Tcp, Segment, Unreadable};
pub use service::{Service, ServicePorts};
pub use statistics::{CounterKey, Counters, Reason, Traffic};
