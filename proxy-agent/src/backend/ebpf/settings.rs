// SPDX-License-Identifier: Apache-2.0

//! Settings of the backend.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use proxy_common::limits::DEFAULT_MAX_CONNECTIONS;
use proxy_kernel::bpffs;

use super::{PART, layout};
use crate::backend::decisions;
use crate::config::{self, Config, Guard, GuardMode, ProxyListener, Service, TcAttach};
use crate::instance::Instance;
use crate::reconcile::{Report, failed};
use crate::state::owned::Owned;

/// Settings of the backend.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The owner of tables, filters and pins.
    pub instance: Instance,
    /// The VIPs.
    pub vips: Vec<IpAddr>,
    /// Ports of the proxy.
    pub ports: Vec<u16>,
    /// The Services that end on the proxy.
    pub services: Vec<Service>,
    /// Which listener counts as the proxy.
    pub proxy_listener: ProxyListener,
    /// How long open connections to a Service may continue after the Service is no longer handled.
    pub drain_timeout: Duration,
    /// Directory of the pins.
    pub bpffs: PathBuf,
    /// Run directory, with the notes about clsact qdiscs.
    pub run_dir: PathBuf,
    /// Capacity of sets and maps.
    pub max_connections: u32,
    /// How programs are attached.
    pub tc_attach: TcAttach,
    /// Whether more passes will follow, so that attachments can be deferred.
    pub goes_on: bool,
    /// Whether there is a guard.
    pub guard: bool,
    /// By which hook it drops packets.
    pub guard_mode: GuardMode,
    /// Source networks that are not dropped.
    pub allow_from: Vec<IpNet>,
    /// Whether the programs log debug lines.
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
    /// Settings for the removal of everything that is pinned in a directory.
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

    /// Settings for the pins of earlier starts: other layouts beside this one, and other directories.
    ///
    /// # Errors
    ///
    /// The kernel's error.
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

    /// The same; a failure is recorded in the report.
    pub fn other_layouts_or(&self, report: &mut Report) -> Vec<Self> {
        self.other_layouts().unwrap_or_else(|error| {
            failed(PART, "search for other layouts of pins", &error, report);
            Vec::new()
        })
    }

    /// The settings of the tables of decisions.
    pub fn decisions(&self) -> decisions::Settings {
        decisions::Settings {
            instance: self.instance,
            endpoints: self.endpoints().collect(),
            max_connections: self.max_connections,
        }
    }

    /// Every VIP with every port.
    pub fn endpoints(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        config::endpoints(&self.vips, &self.ports)
    }
}
