// SPDX-License-Identifier: Apache-2.0

//! The VIP is reachable from the node and its pods, and from no other host.

mod guard;
mod guard_frames;
