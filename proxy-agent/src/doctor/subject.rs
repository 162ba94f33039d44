// SPDX-License-Identifier: Apache-2.0

//! Whom the doctor looks at: the agent of a run directory, as its state file and its lock tell; and
//! what more than one check asks of the node.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use proxy_serve::doctor::Check;

use super::Options;
use crate::backend::iptables;
use crate::backend::iptables::survey::{self, Family, Flavour, SavedTable, Tables};
use crate::config::{self, Service};
use crate::dnat::{self, Findings};
use crate::instance::{Instance, paths};
use crate::link::{self, LinkTable, ObserveError};
use crate::lock;
use crate::state::{self, Choice, State};

/// The proxy's port where neither a flag nor the agent says one.
const DEFAULT_PORT: u16 = 443;

/// What most checks need to know.
#[derive(Debug)]
pub struct Subject {
    /// Which of the agents of this node it is.
    pub instance: Instance,
    /// The agent's run directory.
    pub run_dir: PathBuf,
    /// Where it pins.
    pub bpffs: PathBuf,
    /// What it has told.
    pub state: Result<Option<State>, state::Error>,
    /// Whether one runs.
    pub running: Result<bool, lock::Error>,
    /// The VIPs; empty if nobody says.
    pub vips: Vec<IpAddr>,
    /// The proxy's ports.
    pub ports: Vec<u16>,
    /// The node's links and the VIPs on them.
    pub links: Result<LinkTable, ObserveError>,
    /// The iptables tables.
    pub iptables: Vec<Iptables>,
    /// Who sends connections to the VIPs.
    pub dnat: Findings,
}

/// The iptables tables of a flavour and a family.
#[derive(Debug)]
pub struct Iptables {
    /// The flavour.
    pub flavour: Flavour,
    /// The family.
    pub family: Family,
    /// Those that are there.
    pub tables: Result<Tables, iptables::Error>,
}

impl Iptables {
    /// The program that changes them.
    pub fn program(&self) -> String {
        format!("{}-{}", self.family.program(), self.flavour)
    }

    /// A table, if it is there and can be read.
    pub fn table(&self, name: &str) -> Option<&SavedTable> {
        let (_, table) = self
            .tables
            .as_ref()
            .ok()?
            .iter()
            .find(|(of, _)| of == name)?;
        table.as_ref().ok()
    }

    /// Why a table could not be read, if it could not: it may hold anything then.
    pub fn unread(&self, name: &str) -> Option<&iptables::Error> {
        let tables = match &self.tables {
            Ok(tables) => tables,
            Err(error) => return Some(error),
        };
        let (_, table) = tables.iter().find(|(of, _)| of == name)?;
        table.as_ref().err()
    }
}

impl Subject {
    /// Reads what there is. What cannot be read is for the checks to tell.
    pub async fn observe(options: &Options) -> Self {
        let state = State::load(&options.run_dir);
        let settings = state.as_ref().ok().and_then(Option::as_ref);
        let settings = settings.map(|state| &state.settings);
        let told_or = |given: &[IpAddr]| match settings {
            Some(settings) if given.is_empty() => settings.vips.clone(),
            _ => given.to_vec(),
        };
        let vips = told_or(&options.vips);
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
                    tables: survey::tables(flavour, family).await,
                });
            }
        }
        Self {
            instance,
            iptables,
            dnat: dnat::find(&vips).await,
            links: link::observe(&vips, &services).await,
            running: lock::is_held(&options.run_dir),
            run_dir: options.run_dir.clone(),
            bpffs,
            vips,
            ports,
            state,
        }
    }

    /// What the agent told last, if it could be read.
    pub fn told(&self) -> Option<&State> {
        self.state.as_ref().ok()?.as_ref()
    }

    /// The process of the running agent, as far as it told.
    pub fn pid(&self) -> Option<u32> {
        let running = self.running.as_ref().is_ok_and(|running| *running);
        self.told().filter(|_| running).map(|state| state.pid)
    }

    /// The backend in use, as far as the agent told.
    pub fn choice(&self) -> Option<&Choice> {
        Some(&self.told()?.backend)
    }

    /// True if the agent uses this backend.
    pub fn uses(&self, backend: &str) -> bool {
        self.choice()
            .is_some_and(|choice| choice.backend == backend)
    }

    /// The services that should end on the proxy.
    pub fn services(&self) -> &[Service] {
        self.told().map_or(&[], |state| &state.settings.services)
    }

    /// Those that are left alone, because they are addresses of the node; each with the link that has it.
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

    /// The services that do end on the proxy with this backend, on this node.
    pub fn ending_services(&self) -> Vec<Service> {
        if !self.uses("ebpf") {
            return Vec::new();
        }
        let left = self.left_services();
        let is_left = |service: &Service| left.iter().any(|(left, _)| left == service);
        let services = self.services().iter().copied();
        services.filter(|service| !is_left(service)).collect()
    }

    /// The link that should carry the VIPs, as far as the agent told.
    pub fn interface(&self) -> Option<&str> {
        Some(&self.told()?.settings.interface)
    }

    /// The VIPs with each of the ports.
    pub fn endpoints(&self) -> Vec<SocketAddr> {
        config::endpoints(&self.vips, &self.ports).collect()
    }

    /// Why a check that needs VIPs has none; nothing if it has.
    pub fn without_vips(&self, id: &'static str) -> Option<Check> {
        self.vips.is_empty().then(|| {
            Check::not_applicable(
                id,
                format!(
                    "no VIP is known: no agent has told one in {}; give --ip-address",
                    self.run_dir.display()
                ),
            )
        })
    }

    /// The node's links, for a check that needs VIPs besides.
    ///
    /// # Errors
    ///
    /// What the check is without VIPs, or where the links could not be read.
    pub fn links_for_vips(&self, id: &'static str) -> Result<&LinkTable, Check> {
        self.without_vips(id).map_or_else(|| self.links(id), Err)
    }

    /// The node's links, for a check that needs them.
    ///
    /// # Errors
    ///
    /// What the check is where they could not be read.
    pub fn links(&self, id: &'static str) -> Result<&LinkTable, Check> {
        let why = "the node's links could not be read (see vip)";
        let links = self.links.as_ref();
        links.map_err(|_| Check::not_applicable(id, why))
    }
}
