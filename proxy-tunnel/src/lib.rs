// SPDX-License-Identifier: Apache-2.0

//! Konnectivity: the reverse tunnel between a cluster's API server and its nodes.

pub mod agent;
pub mod app;
pub mod channel;
pub mod client;
pub mod cluster;
pub mod destinations;
pub mod flow;
pub mod forward;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod go_error;
pub mod identifiers;
pub mod metrics;
pub mod pattern;
mod rewound;
pub mod server;
pub mod sidecar;
pub mod tcp;
pub mod wire;
mod writes;
