// SPDX-License-Identifier: Apache-2.0

//! The maps, each with every access to it.

pub mod connections;
pub mod destinations;
pub mod guard;
pub mod peers;
pub mod statistics;
