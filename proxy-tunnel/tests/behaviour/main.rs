// SPDX-License-Identifier: Apache-2.0

//! The behaviour of server, agent and client with each other and with peers that speak upstream's
//! protocol: real sockets on loopback, TLS, HTTP/2. Each module names the facts of the protocol, or
//! the defect of upstream, that it tests. `tests/tunnel` tests the programs together with
//! upstream's own.

mod agents;
mod bad_input;
mod client;
mod clocks;
mod cluster;
mod connect;
mod counting;
mod egress;
mod flags;
mod isolation;
mod kills;
mod leaks;
mod lifecycle;
mod loss;
mod metrics;
mod numbers;
mod peers;
mod process;
mod programs;
mod refusals;
mod reports;
mod rig;
mod rolling;
mod rotation;
mod sidecar;
mod sidecar_program;
mod stub;
mod suspended;
mod tenants;
mod tenants_file;
mod wire;
