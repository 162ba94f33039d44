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
pub mod transport;
pub mod tunnel;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::sleep;

use self::backend::Shared;
use self::strategies::Agents;
use crate::cluster::tokens::Reviewer;

/// The server's state.
#[derive(Debug)]
pub struct Server {
    /// Its name.
    pub id: String,
    /// How many servers there are, as agents are told.
    pub count: u32,
    /// Connected agents.
    pub agents: Agents,
    /// What all streams of agents share.
    pub shared: Arc<Shared>,
    /// How long an agent may take to answer a dial; none: for ever.
    pub dial_timeout: Option<Duration>,
    /// Who checks tokens of agents; none: certificates are enough.
    pub reviewer: Option<Reviewer>,
    is_leaving: AtomicBool,
}

impl Server {
    /// A server without agents.
    #[must_use]
    pub const fn new(
        id: String,
        count: u32,
        agents: Agents,
        shared: Arc<Shared>,
        dial_timeout: Option<Duration>,
        reviewer: Option<Reviewer>,
    ) -> Self {
        Self {
            id,
            count,
            agents,
            shared,
            dial_timeout,
            reviewer,
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
        for backend in self.agents.all() {
            backend.outbox.finish(None);
        }
    }
}
