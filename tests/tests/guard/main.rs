// SPDX-License-Identifier: Apache-2.0

//! Who must get no answer from the VIP.

mod guard;
mod guard_frames;
