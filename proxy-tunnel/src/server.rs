// SPDX-License-Identifier: Apache-2.0

//! The server: clients on one side, agents on the other, and the tunnels between them. Listeners, flags and
//! signals are the program's business (`app::server`).

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
    /// Its name.
    pub id: String,
    /// The number of servers that this server announces to agents.
    pub count: u32,
    /// The tenants that it serves, with their agents.
    pub tenants: Tenants,
    /// The counters.
    pub metrics: Arc<ServerMetrics>,
    /// How long an agent may take to answer a dial; none: for ever.
    pub dial_timeout: Option<Duration>,
    /// Checks the tokens of agents; none: tokens are not checked.
    pub reviewer: Option<Reviewer>,
    /// Whether clients with HTTP may ask in absolute form too.
    pub absolute_form: bool,
    is_leaving: AtomicBool,
}

impl Server {
    /// A server without agents.
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

    /// Ready when an agent has had its time to answer.
    async fn dial_deadline(&self) {
        match self.dial_timeout {
            Some(limit) => sleep(limit).await,
            None => std::future::pending().await,
        }
    }

    fn is_leaving(&self) -> bool {
        self.is_leaving.load(Ordering::Acquire)
    }

    /// Ends the streams of all agents, those that connect later too.
    pub fn cut_agents(&self) {
        self.is_leaving.store(true, Ordering::Release);
        for backend in self.streams() {
            backend.outbox.finish(None);
        }
    }

    /// All streams of agents, whosever they are, to end or to count them. Dials go by a [`tenants::tenant::Tenant`].
    #[must_use]
    pub fn streams(&self) -> Vec<Arc<Backend>> {
        let tenants = self.tenants.all().into_iter();
        tenants.flat_map(|tenant| tenant.streams()).collect()
    }

    /// Whether any tenant has an agent that the first strategy can choose.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.tenants.all().iter().any(|tenant| tenant.is_ready())
    }
}
