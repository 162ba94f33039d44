// SPDX-License-Identifier: Apache-2.0

//! What the backend works from.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use proxy_common::limits::DEFAULT_MAX_CONNECTIONS;

use super::{PART, layout, maps};
use crate::backend::decisions;
use crate::config::{self, Config, Guard, GuardMode, ProxyListener, Service, TcAttach};
use crate::instance::Instance;
use crate::kernel::bpffs;
use crate::reconcile::{Report, failed};
use crate::state::owned::Owned;

/// What the backend works from.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Whose tables, filters and pins they are.
    pub instance: Instance,
    /// The VIPs.
    pub vips: Vec<IpAddr>,
    /// The proxy's ports.
    pub ports: Vec<u16>,
    /// The Services that end on the proxy.
    pub services: Vec<Service>,
    /// Which listener counts as the proxy.
    pub proxy_listener: ProxyListener,
    /// How long live connections to a Service that is given up may go on.
    pub drain_timeout: Duration,
    /// Where maps and links are pinned.
    pub bpffs: PathBuf,
    /// Where it is noted which clsact qdiscs are ours.
    pub run_dir: PathBuf,
    /// How many connections the sets and maps have room for.
    pub max_connections: u32,
    /// How programs are attached.
    pub tc_attach: TcAttach,
    /// Whether there will be another pass, in which links can have their turn.
    pub goes_on: bool,
    /// Anything is guarded.
    pub guard: bool,
    /// How.
    pub guard_mode: GuardMode,
    /// Networks that may come from outside.
    pub allow_from: Vec<IpNet>,
    /// Whether the programs write debug lines.
    pub debug: bool,
}

impl From<&Config> for Settings {
    fn from(config: &Config) -> Self {
        Self {
            instance: config.instance,
            vips: config.vips.clone(),
            ports: config.ports.clone(),
            services: config.services.clone(),
            proxy_listener: config.proxy_listener,
            drain_timeout: config.drain_timeout,
            bpffs: config.bpffs.clone(),
            run_dir: config.run_dir.clone(),
            max_connections: config.max_connections,
            tc_attach: config.tc_attach,
            goes_on: config.daemon,
            guard: config.guard != Guard::Off,
            guard_mode: config.guard_mode,
            allow_from: config.allow_from.clone(),
            debug: config.debugs_programs(),
        }
    }
}

impl Settings {
    /// The settings with which everything is removed that is pinned in a directory.
    pub fn to_remove(
        instance: Instance,
        bpffs: &Path,
        run_dir: &Path,
        drain_timeout: Duration,
    ) -> Self {
        Self {
            instance,
            vips: Vec::new(),
            ports: Vec::new(),
            services: Vec::new(),
            proxy_listener: ProxyListener::Vip,
            drain_timeout,
            bpffs: bpffs.to_owned(),
            run_dir: run_dir.to_owned(),
            max_connections: DEFAULT_MAX_CONNECTIONS,
            tc_attach: TcAttach::Auto,
            goes_on: false,
            guard: false,
            guard_mode: GuardMode::Tc,
            allow_from: Vec::new(),
            debug: false,
        }
    }

    /// The settings for what earlier starts have pinned elsewhere: other layouts beside this one, and
    /// directories of other names.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn other_layouts(&self) -> Result<Vec<Self>, bpffs::Error> {
        let mut others = layout::others(&self.bpffs)?;
        for former in Owned::load(&self.run_dir).bpffs {
            if former != self.bpffs && former.is_dir() && !others.contains(&former) {
                others.push(former);
            }
        }
        let others = others.into_iter();
        let other = |bpffs: PathBuf| {
            Self::to_remove(self.instance, &bpffs, &self.run_dir, self.drain_timeout)
        };
        Ok(others.map(other).collect())
    }

    /// The same; an error goes to the report.
    pub fn other_layouts_or(&self, report: &mut Report) -> Vec<Self> {
        self.other_layouts().unwrap_or_else(|error| {
            failed(PART, "look for other layouts of pins", &error, report);
            Vec::new()
        })
    }

    /// The Services that an earlier agent had end on the proxy, of whichever layout.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn earlier_services(&self) -> Result<Vec<Service>, maps::Error> {
        let mut found = Vec::new();
        for settings in [vec![self.clone()], self.other_layouts()?].concat() {
            found.extend(maps::earlier_services(&settings.bpffs)?);
        }
        found.sort_by_key(|service| service.cluster_ip);
        found.dedup_by_key(|service| service.cluster_ip);
        Ok(found)
    }

    /// Has the programs of an earlier agent decide no connection to a Service any more, of whichever layout.
    ///
    /// # Errors
    ///
    /// The kernel's answer.
    pub fn stop_deciding(&self) -> Result<(), maps::Error> {
        let all = [vec![self.clone()], self.other_layouts()?].concat();
        all.iter()
            .map(|settings| maps::stop_deciding(&settings.bpffs))
            .fold(Ok(()), Result::and)
    }

    /// What the tables of decisions are made from.
    pub fn decisions(&self) -> decisions::Settings {
        decisions::Settings {
            instance: self.instance,
            endpoints: self.endpoints().collect(),
            max_connections: self.max_connections,
        }
    }

    /// The VIPs with each of the ports.
    pub fn endpoints(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        config::endpoints(&self.vips, &self.ports)
    }
}
