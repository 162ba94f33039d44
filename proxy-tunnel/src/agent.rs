// SPDX-License-Identifier: Apache-2.0

//! The agent connects to servers, keeps as many streams as there are servers, and dials the targets that the servers
//! request. Flags, health and signals are handled by the program (`app::agent`).

pub mod answer;
pub mod connector;
pub mod dial;
pub mod link;
pub mod proxy;
pub mod sync;
