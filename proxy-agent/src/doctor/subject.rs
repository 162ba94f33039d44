// SPDX-License-Identifier: Apache-2.0

//! The subject of the diagnosis: the agent of a run directory, by its state file and its lock, and facts about the node that
//! several checks need.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use proxy_netlink::route;
use proxy_rules::dnat::{self, Findings};
use proxy_rules::xtables::{self, Family, Flavour, SavedTable, Tables};
use proxy_serve::doctor::Check;

use super::Options;
use crate::config::{self, Service};
use crate::instance::{Instance, paths};
use crate::link::{self, LinkTable};
use crate::lock;
use crate::ownership::MARKS;
use crate::state::{self, Choice, State};

/// The proxy's port if neither an option nor the state file has one.
const DEFAULT_PORT: u16 = 443;

/// Facts that several checks need.
#[derive(Debug)]
pub struct Subject {
    /// The name of the agent.
    pub instance: Instance,
    /// The agent's run directory.
    pub run_dir: PathBuf,
    /// Directory of the pins.
    pub bpffs: PathBuf,
    /// Its state file.
    pub state: Result<Option<State>, state::Error>,
    /// Whether it runs.
    pub running: Result<bool, lock::Error>,
    /// The VIPs; empty if they are unknown.
    pub vips: Vec<IpAddr>,
    /// The proxy's ports.
    pub ports: Vec<u16>,
    /// The node's links and the VIPs on them.
    pub links: Result<LinkTable, route::Error>,
    /// The iptables tables.
    pub iptables: Vec<Iptables>,
    /// DNAT to the VIPs.
    pub dnat: Findings,
}

/// The iptables tables of a flavour and a family.
#[derive(Debug)]
pub struct Iptables {
    /// The flavour.
    pub flavour: Flavour,
    /// The family.
    pub family: Family,
    /// The existing tables.
    pub tables: Result<Tables, xtables::Error>,
}

impl Iptables {
    /// The name of the program that manages them.
    pub fn program(&self) -> String {
        format!("{}-{}", self.family.program(), self.flavour)
    }

    /// A table, if it exists and could be read.
    pub fn table(&self, name: &str) -> Option<&SavedTable> {
        let (_, table) = self
            .tables
            .as_ref()
            .ok()?
            .iter()
            .find(|(of, _)| of == name)?;
        table.as_ref().ok()
    }

    /// Why a table could not be read; it may hold any rules then.
    pub fn unread(&self, name: &str) -> Option<&xtables::Error> {
        let tables = match &self.tables {
            Ok(tables) => tables,
            Err(error) => return Some(error),
        };
        let (_, table) = tables.iter().find(|(of, _)| of == name)?;
        table.as_ref().err()
    }
}

impl Subject {
    /// Reads all facts. The checks report what could not be read.
    pub async fn observe(options: &Options) -> Self {
        let state = State::load(&options.run_dir);
        let settings = state.as_ref().ok().and_then(Option::as_ref);
        let settings = settings.map(|state| &state.settings);
        let vips = match settings {
            Some(settings) if options.vips.is_empty() => settings.vips.clone(),
            _ => options.vips.clone(),
        };
        let ports = match settings {
            _ if !options.ports.is_empty() => options.ports.clone(),
            Some(settings) => settings.ports.clone(),
            None => vec![DEFAULT_PORT],
        };
        let instance = settings.map_or(options.instance, |settings| settings.instance);
        let bpffs = match (&options.bpffs, settings) {
            (Some(given), _) => given.clone(),
            (None, Some(settings)) => settings.bpffs.clone(),
            (None, None) => paths::bpffs(instance),
        };
        let services: Vec<_> = settings
            .map_or(&[][..], |settings| &settings.services)
            .iter()
            .map(|service| service.cluster_ip.ip())
            .collect();
        let mut iptables = Vec::new();
        for flavour in Flavour::ALL {
            for family in Family::ALL {
                iptables.push(Iptables {
                    flavour,
                    family,
                    tables: xtables::tables(flavour, family).await,
                });
            }
        }
        Self {
            instance,
            iptables,
            dnat: dnat::find(&vips, MARKS).await,
            links: link::observe(&vips, &services).await,
            running: lock::is_held(&options.run_dir),
            run_dir: options.run_dir.clone(),
            bpffs,
            vips,
            ports,
            state,
        }
    }

    /// The agent's state file, if it could be read.
    pub fn published(&self) -> Option<&State> {
        self.state.as_ref().ok()?.as_ref()
    }

    /// The pid of the running agent, if known.
    pub fn pid(&self) -> Option<u32> {
        let running = self.running.as_ref().is_ok_and(|running| *running);
        self.published().filter(|_| running).map(|state| state.pid)
    }

    /// The backend in use, if known.
    pub fn choice(&self) -> Option<&Choice> {
        Some(&self.published()?.backend)
    }

    /// True if the agent uses this backend.
    pub fn uses(&self, backend: &str) -> bool {
        self.choice()
            .is_some_and(|choice| choice.backend == backend)
    }

    /// The Services that should end on the proxy.
    pub fn services(&self) -> &[Service] {
        self.published()
            .map_or(&[], |state| &state.settings.services)
    }

    /// Services that do not end on the proxy because they are addresses of the node, with the link.
    pub fn left_services(&self) -> Vec<(Service, String)> {
        let Ok(table) = &self.links else {
            return Vec::new();
        };
        let services = self.services().iter();
        services
            .filter_map(|service| {
                let index = table.services.get(&service.cluster_ip.ip())?;
                Some((*service, table.name_of(*index)))
            })
            .collect()
    }

    /// Services that end on the proxy of this node with this backend.
    pub fn ending_services(&self) -> Vec<Service> {
        if !self.uses("ebpf") {
            return Vec::new();
        }
        let left = self.left_services();
        let is_left = |service: &Service| left.iter().any(|(left, _)| left == service);
        let services = self.services().iter().copied();
        services.filter(|service| !is_left(service)).collect()
    }

    /// The link that should carry the VIPs, if known.
    pub fn interface(&self) -> Option<&str> {
        Some(&self.published()?.settings.interface)
    }

    /// Every VIP with every port.
    pub fn endpoints(&self) -> Vec<SocketAddr> {
        config::endpoints(&self.vips, &self.ports).collect()
    }

    /// The result of a check that needs VIPs if none are known.
    pub fn without_vips(&self, id: &'static str) -> Option<Check> {
        self.vips.is_empty().then(|| {
            Check::not_applicable(
                id,
                format!(
                    "no VIP is known: {} has no state file of an agent; use --ip-address",
                    self.run_dir.display()
                ),
            )
        })
    }

    /// The node's links, for a check that needs VIPs too.
    ///
    /// # Errors
    ///
    /// The result of the check if no VIPs are known or the links could not be read.
    pub fn links_for_vips(&self, id: &'static str) -> Result<&LinkTable, Check> {
        self.without_vips(id).map_or_else(|| self.links(id), Err)
    }

    /// The node's links.
    ///
    /// # Errors
    ///
    /// The result of the check if they could not be read.
    pub fn links(&self, id: &'static str) -> Result<&LinkTable, Check> {
        let why = "the node's links could not be read (see vip)";
        let links = self.links.as_ref();
        links.map_err(|_| Check::not_applicable(id, why))
    }
}
