// SPDX-License-Identifier: Apache-2.0

//! The server's clients, in the two modes of the flag `--mode`: gRPC and HTTP CONNECT. Each stream (gRPC) or connection
//! (HTTP CONNECT) holds one tunnel and has no access to other tunnels.

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

/// The client on one connection.
#[derive(Debug, Clone)]
pub struct Client {
    /// The server's state.
    pub server: Arc<Server>,
    /// The client's tenant, through which the client dials.
    pub tenant: Arc<Tenant>,
    /// The connection's permit from the tenant's connection limit.
    pub place: Arc<Permit>,
}

/// Why a client is refused.
#[derive(Debug, Error)]
pub enum ClientRefused {
    /// The client belongs to no tenant.
    #[error(transparent)]
    NoTenant(#[from] NoTenant),
    /// The tenant's connection limit is reached.
    #[error(transparent)]
    Limit(#[from] ConnectRefused),
}

impl Client {
    /// Creates the client of a new connection.
    ///
    /// # Errors
    /// Returns an error if the client belongs to no tenant, or if the tenant's connection limit is reached.
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

/// How long the first bytes of a target that speaks first are held back after the dial's answer, unless the client
/// sends something earlier. Upstream's client library loses bytes that arrive before it has registered the connection,
/// and kube-apiserver refuses a connection if a read returns further bytes together with the 200.
pub const HOLD: Duration = Duration::from_millis(10);
