// SPDX-License-Identifier: Apache-2.0

//! Clients of the server, by the two ways of the flag `--mode`: gRPC and HTTP CONNECT. Both hold one tunnel
//! for each stream or connection and know nothing of other tunnels.

mod answers;
pub mod connect;
pub mod grpc;
pub mod socket;

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::Server;
use super::tenants::limits::Permit;
use super::tenants::peer::Peer;
use super::tenants::rules::NoTenant;
use super::tenants::tenant::{ConnectRefused, Tenant};

/// The client of one connection.
#[derive(Debug, Clone)]
pub struct Client {
    /// The server's state.
    pub server: Arc<Server>,
    /// The client's tenant, by which it dials.
    pub tenant: Arc<Tenant>,
    /// The connection's place among those of the tenant.
    pub place: Arc<Permit>,
}

/// Why a client is not served.
#[derive(Debug, Error)]
pub enum ClientRefused {
    /// It belongs to no tenant.
    #[error(transparent)]
    NoTenant(#[from] NoTenant),
    /// Its tenant has as many connections as it may.
    #[error(transparent)]
    Limit(#[from] ConnectRefused),
}

impl Client {
    /// The client of a new connection.
    ///
    /// # Errors
    /// It is not served.
    pub fn new(server: &Arc<Server>, peer: impl FnOnce() -> Peer) -> Result<Self, ClientRefused> {
        let tenant = server.tenants.of_client(peer)?;
        let place = Arc::new(tenant.connect()?);
        Ok(Self {
            server: Arc::clone(server),
            tenant,
            place,
        })
    }
}

/// How long bytes of a target that speaks first are held back after the answer to the dial, unless the client
/// has sent something meanwhile. Upstream's client library loses bytes that come before it has noted the
/// connection, and kube-apiserver refuses a connection on which bytes follow the 200 in one read.
pub const HOLD: Duration = Duration::from_millis(10);
