// SPDX-License-Identifier: Apache-2.0

//! Links, addresses, routes and traffic control of the current network namespace, read over route netlink. Every list
//! is complete or an error. This module does not decide which objects should exist, and it changes nothing.

mod address;
mod attribute;
mod destinations;
mod dump;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod link;
pub mod traffic_control;
mod unicast;
mod uplinks;

pub use address::{Address, AddressFamily, Prefix, addresses, of_family};
pub use destinations::destinations;
pub use dump::{DumpError, Error};
pub use link::{Link, LinkKind, Xdp, links};
pub use uplinks::uplinks;
