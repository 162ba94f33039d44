// SPDX-License-Identifier: Apache-2.0

//! The server: clients on one side, agents on the other, and the tunnels between them.

pub mod backend;
pub mod strategies;
pub mod tunnel;
