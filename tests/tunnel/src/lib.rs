// SPDX-License-Identifier: Apache-2.0

//! The tunnel beside upstream's programs: code that its interoperation tests and its demo share.
//! Network namespaces, processes and leftovers of killed runs are handled by the package `tests`.

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
