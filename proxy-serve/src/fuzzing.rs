// SPDX-License-Identifier: Apache-2.0

//! The fuzz targets of this crate, gathered for the package `fuzz`: functions that take any bytes and panic
//! if these show a fault. Each stands beside the parser that it is about.

pub use crate::log::fuzzing::{klog, written as written_log};
