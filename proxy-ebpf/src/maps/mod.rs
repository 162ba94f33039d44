// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The maps; each module contains all accesses to its maps.

pub mod guard;
pub mod peers;
pub mod services;
pub mod statistics;
