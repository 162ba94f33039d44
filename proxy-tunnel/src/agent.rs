// SPDX-License-Identifier: Apache-2.0

//! The agent: it connects to servers, keeps as many streams as there are servers, and dials the
//! targets that they request. Flags, health and signals are the program's business (`app::agent`).

pub mod connector;
pub mod dial;
pub mod link;
pub mod proxy;
pub mod sync;
