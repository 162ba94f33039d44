// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The maps, each with every access to it.

pub mod guard;
pub mod peers;
pub mod services;
pub mod statistics;
