// SPDX-License-Identifier: Apache-2.0

//! The server: it accepts clients on one side and agents on the other, and relays the tunnels between them.
//! `app::server` handles listeners, flags and signals.

pub mod agents;
pub mod authority;
pub mod backend;
pub mod clients;
pub mod frontend;
mod given_up;
pub mod strategies;
pub mod tenants;
pub mod transport;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::sleep;

use self::backend::Backend;
use self::tenants::Tenants;
use crate::cluster::tokens::Reviewer;
use crate::metrics::server::ServerMetrics;

/// The server's state.
#[derive(Debug)]
pub struct Server {
    /// The server's ID, which is sent to agents.
    pub id: String,
    /// The number of servers that this server announces to agents.
    pub count: u32,
    /// The tenants that the server serves, with their agents.
    pub tenants: Tenants,
    /// The server's metrics.
    pub metrics: Arc<ServerMetrics>,
    /// How long an agent may take to answer a dial; `None` means no limit.
    pub dial_timeout: Option<Duration>,
    /// The reviewer that checks the tokens of agents; `None` means that tokens are not checked.
    pub reviewer: Option<Reviewer>,
    /// Whether HTTP clients may also send requests in absolute form.
    pub absolute_form: bool,
    is_leaving: AtomicBool,
}

impl Server {
    /// Creates a server without agents.
    #[must_use]
    pub const fn new(
        id: String,
        count: u32,
        tenants: Tenants,
        metrics: Arc<ServerMetrics>,
        dial_timeout: Option<Duration>,
        reviewer: Option<Reviewer>,
        absolute_form: bool,
    ) -> Self {
        Self {
            id,
            count,
            tenants,
            metrics,
            dial_timeout,
            reviewer,
            absolute_form,
            is_leaving: AtomicBool::new(false),
        }
    }

    /// Waits until the time limit of a dial has passed; waits forever if there is no limit.
    async fn dial_deadline(&self) {
        match self.dial_timeout {
            Some(limit) => sleep(limit).await,
            None => std::future::pending().await,
        }
    }

    fn is_leaving(&self) -> bool {
        self.is_leaving.load(Ordering::Acquire)
    }

    /// Ends the streams of all agents, including those of agents that connect later.
    pub fn cut_agents(&self) {
        self.is_leaving.store(true, Ordering::Release);
        for backend in self.streams() {
            backend.outbox.finish(None);
        }
    }

    /// Returns the streams of all agents of all tenants, so that the caller can end or count them. Dials go through a
    /// [`tenants::tenant::Tenant`].
    #[must_use]
    pub fn streams(&self) -> Vec<Arc<Backend>> {
        let tenants = self.tenants.all().into_iter();
        tenants.flat_map(|tenant| tenant.streams()).collect()
    }

    /// Returns whether any tenant has an agent that the first strategy can choose.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.tenants.all().iter().any(|tenant| tenant.is_ready())
    }
}
