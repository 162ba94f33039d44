// SPDX-License-Identifier: Apache-2.0

//! The fuzz targets of this crate, which the package `fuzz` runs. Each is defined beside its parser.

pub use crate::dnat::fuzzing::dnat;
pub use crate::filters::fuzzing::firewall;
