// SPDX-License-Identifier: Apache-2.0

//! Many connections, and connections that stand still.

mod many;
mod stalled;
