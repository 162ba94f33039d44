// SPDX-License-Identifier: Apache-2.0

//! The web page of `konnectivity-agent`: the servers to which it is connected, and the traffic on these streams.

use std::sync::Arc;

use proxy_serve::pages::{Cell, Column, Page, Table, smallest};

use super::Ready;
use crate::agent::link::Link;
use crate::app::health::{Closed, Show};
use crate::flow::Budget;
use crate::metrics::agent::AgentMetrics;

const SERVERS: [Column; 6] = [
    Column::words("Server"),
    Column::numbers("Connections"),
    Column::numbers("Dials"),
    Column::numbers("From server"),
    Column::numbers("To server"),
    Column::numbers("Waits for server"),
];

/// The data from which the page is built.
pub struct View {
    /// The agent's ID.
    pub agent_id: String,
    /// The streams to servers, which are set after the start.
    pub streams: Ready,
    /// The agent's metrics.
    pub metrics: Arc<AgentMetrics>,
    /// The memory budget for buffered data.
    pub budget: Arc<Budget>,
}

impl Show for View {
    fn page(&self) -> Page {
        let mut page = Page::named(&self.agent_id);
        let sync = self.streams.0.get();
        let (there, wanted) = sync.map_or((0, 1), |sync| sync.connected());
        let is_draining = sync.is_some_and(|sync| sync.is_draining());
        let state = if is_draining {
            Cell::bad("about to leave: servers choose other agents")
        } else if there == 0 {
            Cell::bad("not ready: no connection to any server")
        } else {
            Cell::judged(there >= wanted, "ready")
        };
        let metrics = &self.metrics;
        page.facts(
            "Agent",
            [
                ("State", state),
                (
                    "Servers",
                    Cell::judged(there >= wanted, format_args!("{there} of {wanted}")),
                ),
                (
                    "Connections to targets",
                    Cell::text(metrics.endpoint_connections.get()),
                ),
            ],
        );
        page.facts(
            "Stalls",
            [
                ("Waits for targets", Cell::bytes(self.budget.used() as u64)),
                (
                    "Closed because their target did not read",
                    Cell::text(Closed(&metrics.closed_tunnels())),
                ),
            ],
        );
        let mut streams = sync.map(|sync| sync.streams()).unwrap_or_default();
        smallest(&mut streams, |one, other| {
            one.server_id.cmp(&other.server_id)
        });
        page.table("Servers", Table::of(&SERVERS, &streams, row));
        page
    }
}

fn row(link: &Arc<Link>) -> Vec<Cell> {
    let traffic = link.traffic();
    vec![
        Cell::text(&link.server_id),
        Cell::size(traffic.established),
        Cell::size(traffic.pending),
        Cell::bytes(traffic.received),
        Cell::bytes(traffic.sent),
        Cell::bytes(traffic.waiting as u64),
    ]
}
