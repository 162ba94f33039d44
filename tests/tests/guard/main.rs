// SPDX-License-Identifier: Apache-2.0

//! The VIP answers the node and its pods, and no other host.

mod guard;
mod guard_frames;
