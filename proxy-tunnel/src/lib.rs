// SPDX-License-Identifier: Apache-2.0

//! Konnectivity: the reverse tunnel between a cluster's API server and its nodes.

pub mod agent;
pub mod app;
pub mod channel;
pub mod client;
pub mod cluster;
pub mod destinations;
pub mod flow;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod go_error;
pub mod identifiers;
pub mod metrics;
pub mod pattern;
pub mod server;
pub mod tcp;
pub mod wire;
