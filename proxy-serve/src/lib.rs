// SPDX-License-Identifier: Apache-2.0

//! The parts of a serving program that the programs of this workspace share, and nothing that only one of them
//! needs.
//!
//! | module | holds |
//! |---|---|
//! | [`value`] | values of flags as Go writes them: booleans, durations, lists |
//! | [`flags`] | command lines as pflag reads them; exit codes of bad usage |
//! | [`klog`] | klog's flags, spelled as the program spells them |
//! | [`log`] | the log: levels, formats, files with rotation |
//! | [`listen`] | TCP and Unix listeners; accepting a bounded number of connections |
//! | [`budget`], [`memory`] | bounds on the sum that tasks take; an allocator that gives memory
//! back |
//! | [`quantity`] | numbers as people read them |
//! | [`reload`] | files that are exchanged while the process runs |
//! | [`shutdown`] | the phases of a process that ends, and the signals that begin them |
//! | `doctor` | findings of a doctor, their printing and exit code (feature `doctor`) |
//! | `http` | the endpoint for health and metrics (feature `http`) |
//! | `pages` | what an endpoint shows to people: `/`, `/statusz`, `/flagz` (feature `http`) |
//! | `connection` | time limits of an HTTP connection (feature `connection`) |
//! | `tls` | certificates from files, and their subjects (feature `tls`) |

#![cfg_attr(
    feature = "fuzzing",
    expect(
        clippy::missing_panics_doc,
        reason = "a fuzz target reports a fault by a panic"
    )
)]

pub mod budget;
#[cfg(feature = "connection")]
pub mod connection;
#[cfg(feature = "doctor")]
pub mod doctor;
pub mod flags;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "http")]
pub mod http;
pub mod klog;
pub mod listen;
pub mod log;
pub mod memory;
#[cfg(feature = "http")]
pub mod pages;
pub mod quantity;
pub mod reload;
pub mod shutdown;
#[cfg(feature = "tls")]
pub mod tls;
pub mod value;
