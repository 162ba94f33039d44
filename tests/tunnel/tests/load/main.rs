// SPDX-License-Identifier: Apache-2.0

//! Many connections, and stalled connections.

mod many;
mod stalled;
