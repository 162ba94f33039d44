// SPDX-License-Identifier: Apache-2.0

//! Server, agent and clients with each other, ours and upstream's: the wire protocol, flags, metrics, and ends that
//! vanish.

mod cut;
mod flags;
mod half_open;
mod interop;
mod metrics;
mod mixed_pairs;
