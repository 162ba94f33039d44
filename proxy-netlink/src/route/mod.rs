// SPDX-License-Identifier: Apache-2.0

//! Links, addresses, routes and traffic control of the current network namespace, read over route
//! netlink. Every list is complete or an error. What should be there is not decided here, and nothing
//! is changed.

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
