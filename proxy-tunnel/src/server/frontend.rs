// SPDX-License-Identifier: Apache-2.0

//! Clients of the server, by the two ways of the flag `--mode`: gRPC and HTTP CONNECT. Both hold one tunnel
//! for each stream or connection and know nothing of other tunnels.

mod absolute;
mod answers;
pub mod connect;
pub mod grpc;
pub mod socket;

use std::sync::Arc;
use std::time::Duration;

use super::Server;
use super::tenants::tenant::Tenant;

/// The client of one connection.
#[derive(Debug, Clone)]
pub struct Client {
    /// The server's state.
    pub server: Arc<Server>,
    /// The client's tenant, by which it dials.
    pub tenant: Arc<Tenant>,
}

/// How long bytes of a target that speaks first are held back after the answer to the dial, unless the client
/// has sent something meanwhile. Upstream's client library loses bytes that come before it has noted the
/// connection, and kube-apiserver refuses a connection on which bytes follow the 200 in one read.
pub const HOLD: Duration = Duration::from_millis(10);
