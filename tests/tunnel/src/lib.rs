// SPDX-License-Identifier: Apache-2.0

//! Tests of the tunnel with upstream's programs: code that the interoperation tests and the demo
//! share. The package `tests` handles network namespaces, processes and leftovers of killed runs.

pub mod api_server;
pub mod certs;
pub mod cluster;
pub mod load;
pub mod pod;
pub mod program;
pub mod prometheus;
pub mod soak;
pub mod target;
pub mod tunnel;
