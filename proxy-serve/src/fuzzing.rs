// SPDX-License-Identifier: Apache-2.0

//! The fuzz targets of this crate, collected for the package `fuzz`: functions that accept arbitrary bytes and panic if
//! these reveal a fault. Each is defined beside the parser that it tests.

pub use crate::log::fuzzing::{klog, written as written_log};
