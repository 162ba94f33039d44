// SPDX-License-Identifier: Apache-2.0

//! The parts of a serving program that the programs of this workspace share. Code that only one program needs does not
//! belong here.
//!
//! | module | content |
//! |---|---|
//! | [`value`] | flag values in Go's syntax: booleans, durations, lists |
//! | [`flags`] | command lines with pflag's syntax; exit codes after wrong usage |
//! | [`klog`] | klog's flags, in each program's spelling |
//! | [`log`] | the log: levels, formats, files with rotation |
//! | [`reminder`] | at most one log record in ten seconds about events that peers cause |
//! | [`listen`] | TCP and Unix listeners; accepting a limited number of connections |
//! | [`budget`], [`memory`] | limits on the sum that tasks use; an allocator that returns memory to the kernel |
//! | [`quantity`] | numbers in a readable form |
//! | [`reload`] | files that are replaced while the process runs |
//! | [`shutdown`] | the phases of a process that shuts down, and the signals that start them |
//! | `doctor` | findings of a doctor, their output and exit code (feature `doctor`) |
//! | `http` | the endpoint for health and metrics (feature `http`) |
//! | `pages` | the endpoint's pages for people: `/`, `/statusz`, `/flagz` (feature `http`) |
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
pub mod reminder;
pub mod shutdown;
#[cfg(feature = "tls")]
pub mod tls;
pub mod value;
