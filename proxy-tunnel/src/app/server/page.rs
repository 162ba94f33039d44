// SPDX-License-Identifier: Apache-2.0

//! The web page of `konnectivity-server`: its tenants, agents and tunnels, and the data that is buffered for slow
//! readers. Peers choose the names on the page; `proxy_serve::pages` makes them harmless.

use std::cmp::Ordering;
use std::fmt::{self, Display};
use std::sync::Arc;

use proxy_serve::pages::{Cell, Column, Page, Table, smallest};
use proxy_serve::shutdown::Phase;
use tokio::sync::watch;

use crate::app::health::{Closed, Show};
use crate::flow::Budget;
use crate::identifiers::Identifiers;
use crate::metrics::server::Method;
use crate::server::Server;
use crate::server::backend::Backend;
use crate::server::tenants::Tenants;
use crate::server::tenants::tenant::Tenant;

const TENANTS: [Column; 6] = [
    Column::words("Tenant"),
    Column::numbers("Agents"),
    Column::numbers("Tunnels"),
    Column::numbers("From agents"),
    Column::numbers("To agents"),
    Column::numbers("Waits for clients"),
];

/// The last column is omitted if there is a single tenant.
const AGENTS: [Column; 8] = [
    Column::words("Agent"),
    Column::words("Reaches"),
    Column::numbers("Tunnels"),
    Column::numbers("From agent"),
    Column::numbers("To agent"),
    Column::numbers("Waits for agent"),
    Column::words("State"),
    Column::words("Tenant"),
];

/// The data from which the page is built.
pub struct View {
    /// The server's state.
    pub server: Arc<Server>,
    /// The memory budget for buffered data.
    pub budget: Arc<Budget>,
    /// The phase of the process.
    pub phase: watch::Receiver<Phase>,
}

impl Show for View {
    fn page(&self) -> Page {
        let mut page = Page::named(&self.server.id);
        let tenants = self.server.tenants.all();
        let mut streams: Vec<_> = tenants.iter().flat_map(Stream::all_of).collect();
        self.facts(&mut page, &streams);
        let mut columns = &AGENTS[..];
        if let Tenants::Several(_) = self.server.tenants {
            // The tenants are sorted by name.
            page.table("Tenants", Table::of(&TENANTS, &tenants, tenant_row));
        } else {
            columns = &AGENTS[..AGENTS.len() - 1];
        }
        smallest(&mut streams, Stream::order);
        page.table("Agents", Table::of(columns, &streams, Stream::row));
        page
    }
}

impl View {
    fn facts(&self, page: &mut Page, streams: &[Stream]) {
        let state = if *self.phase.borrow() != Phase::Serving {
            Cell::bad("shutting down")
        } else if self.server.is_ready() {
            Cell::good("ready")
        } else {
            Cell::bad("not ready: no connection to any agent")
        };
        let metrics = &self.server.metrics;
        let sum = Sum::of(streams.iter().map(|stream| &stream.backend));
        page.facts(
            "Server",
            [
                ("State", state),
                ("Servers, as agents are told", Cell::text(self.server.count)),
                ("Streams of agents", Cell::size(streams.len())),
                ("Tunnels", Cell::size(sum.tunnels)),
                ("Dials without an answer", Cell::size(sum.pending)),
                ("From these agents", Cell::bytes(sum.received)),
                ("To these agents", Cell::bytes(sum.sent)),
            ],
        );
        let full = metrics.full(Method::Connect).get();
        let stalled = format!("{full} whose client does not read");
        page.facts(
            "Stalls",
            [
                ("Waits for clients", Cell::bytes(self.budget.used() as u64)),
                ("Tunnels that stand still", Cell::judged(full == 0, stalled)),
                (
                    "Closed for that",
                    Cell::text(Closed(&metrics.closed_tunnels())),
                ),
            ],
        );
    }
}

/// The sums over several streams.
#[derive(Default)]
struct Sum {
    pending: usize,
    tunnels: usize,
    received: u64,
    sent: u64,
}

impl Sum {
    fn of<'a>(backends: impl Iterator<Item = &'a Arc<Backend>>) -> Self {
        backends.fold(Self::default(), |sum, backend| {
            let traffic = backend.traffic();
            Self {
                pending: sum.pending + traffic.pending,
                tunnels: sum.tunnels + traffic.established,
                received: sum.received + traffic.received,
                sent: sum.sent + traffic.sent,
            }
        })
    }
}

fn tenant_row(tenant: &Arc<Tenant>) -> Vec<Cell> {
    let backends = tenant.streams();
    let sum = Sum::of(backends.iter());
    vec![
        Cell::text(tenant.name()),
        Cell::size(backends.len()),
        Cell::size(tenant.tunnels()),
        Cell::bytes(sum.received),
        Cell::bytes(sum.sent),
        Cell::bytes(tenant.buffered() as u64),
    ]
}

/// One stream of an agent.
struct Stream {
    tenant: Arc<Tenant>,
    backend: Arc<Backend>,
}

impl Stream {
    fn all_of(tenant: &Arc<Tenant>) -> impl Iterator<Item = Self> {
        let tenant = Arc::clone(tenant);
        let backends = tenant.streams().into_iter();
        backends.map(move |backend| Self {
            tenant: Arc::clone(&tenant),
            backend,
        })
    }

    fn order(&self, other: &Self) -> Ordering {
        let agents = self.backend.agent_id.cmp(&other.backend.agent_id);
        agents.then_with(|| self.tenant.name().cmp(other.tenant.name()))
    }

    fn row(&self) -> Vec<Cell> {
        let backend = &self.backend;
        let traffic = backend.traffic();
        vec![
            Cell::text(&backend.agent_id),
            Cell::text(Reaches(&backend.identifiers)),
            Cell::size(traffic.established),
            Cell::bytes(traffic.received),
            Cell::bytes(traffic.sent),
            Cell::bytes(traffic.waiting as u64),
            self.state(),
            Cell::text(self.tenant.name()),
        ]
    }

    fn state(&self) -> Cell {
        let (is_silent, ..) = self.backend.load();
        if self.backend.is_draining() {
            Cell::bad("about to leave")
        } else if is_silent {
            Cell::bad("does not answer dials")
        } else {
            Cell::good("ok")
        }
    }
}

/// The destinations that an agent announces.
struct Reaches<'a>(&'a Identifiers);

impl Display for Reaches<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Identifiers {
            hosts,
            cidrs,
            default_route,
            ..
        } = self.0;
        let route = default_route.then_some("default route");
        let names = hosts.iter().chain(cidrs).map(String::as_str).chain(route);
        for (index, name) in names.enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{name}")?;
        }
        Ok(())
    }
}
