// SPDX-License-Identifier: Apache-2.0

//! Chooses the backend by trying what it needs, and gives all of them one face.

use rtnetlink::Handle;
use tracing::{debug, info, warn};

use super::ebpf::{self, Ebpf, Ids};
use super::iptables::{self, Iptables, Scope};
use crate::config::{AcceptRules, BackendChoice, Config};
use crate::link::LinkTable;
use crate::reconcile::{Mode, Report};
use crate::state::{Choice, Rejected};

/// Why the backend that was asked for cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `--backend=ebpf`.
    #[error("--backend=ebpf cannot be used here")]
    Ebpf(#[source] ebpf::Error),
    /// `--backend=iptables`.
    #[error("--backend=iptables cannot be used here")]
    Iptables(#[source] iptables::Error),
    /// `--accept-rules=always`.
    #[error("--accept-rules=always cannot be kept here")]
    AcceptRules(#[source] iptables::Error),
}

/// The backend in use.
pub struct Backend {
    kind: Kind,
    /// Why it is this one.
    rejected: Vec<Rejected>,
    asked: BackendChoice,
    /// The ACCEPT rules that the `ebpf` backend keeps beside its own objects.
    accept: Option<Iptables>,
    settings: ebpf::Settings,
    /// What other backends of an earlier agent left is removed once this one works.
    look_for_leftovers: bool,
}

enum Kind {
    Ebpf(Box<Ebpf>),
    Iptables(Box<Iptables>),
    None,
}

impl Backend {
    /// Opens the backend asked for, or the first that works. Nothing of the data plane is changed.
    ///
    /// # Errors
    ///
    /// If the one that was asked for by name cannot be used.
    pub async fn open(config: &Config, mode: Mode) -> Result<Self, Error> {
        let settings = ebpf::Settings::from(config);
        let mut rejected = Vec::new();
        let kind = match config.backend {
            BackendChoice::Ebpf => open_ebpf(&settings, mode).map_err(Error::Ebpf)?,
            BackendChoice::Iptables => open_iptables(config).await.map_err(Error::Iptables)?,
            BackendChoice::None => Kind::None,
            BackendChoice::Auto => first_that_works(config, &settings, mode, &mut rejected).await,
        };
        let accept = match kind {
            Kind::Ebpf(_) => open_accept_rules(config).await?,
            Kind::Iptables(_) | Kind::None => None,
        };
        warn_of_limits(&kind, config);
        let backend = Self {
            kind,
            rejected,
            asked: config.backend,
            accept,
            settings,
            look_for_leftovers: true,
        };
        info!("backend {}", backend.choice());
        Ok(backend)
    }

    /// The backend in use and why, as `status` tells it.
    pub fn choice(&self) -> Choice {
        let (backend, detail) = match &self.kind {
            Kind::Ebpf(ebpf) => ("ebpf", format!("attached by {}", ebpf.attach_mode())),
            Kind::Iptables(_) => ("iptables", String::new()),
            Kind::None => ("none", String::new()),
        };
        Choice {
            asked: self.asked.name().to_owned(),
            backend: backend.to_owned(),
            detail,
            rejected: self.rejected.clone(),
        }
    }

    /// One pass over everything the backend keeps.
    pub async fn reconcile(
        &mut self,
        handle: &Handle,
        table: &LinkTable,
        mode: Mode,
        report: &mut Report,
    ) {
        let failures = report.failures.len();
        match &mut self.kind {
            Kind::Ebpf(ebpf) => ebpf.reconcile(handle, table, mode, report).await,
            Kind::Iptables(iptables) => iptables.reconcile(mode, report).await,
            Kind::None => {}
        }
        if let Some(accept) = self.accept.as_mut() {
            accept.reconcile(mode, report).await;
        }
        // Only once this backend stands: until then what an older one does is better than nothing.
        if self.look_for_leftovers && mode == Mode::Apply && report.failures.len() == failures {
            self.remove_leftovers(handle, table, report).await;
            self.look_for_leftovers = report.failures.len() > failures;
        }
    }

    async fn remove_leftovers(&mut self, handle: &Handle, table: &LinkTable, report: &mut Report) {
        if !matches!(self.kind, Kind::Ebpf(_)) {
            Ebpf::teardown(&self.settings, handle, Some(table), report).await;
        }
        if matches!(self.kind, Kind::None)
            && let Some(mut rules) = any_rules(&self.settings).await
        {
            rules.teardown(report).await;
        }
    }

    /// Removes everything of ours, of whichever backend.
    pub async fn teardown(
        &mut self,
        handle: &Handle,
        table: Option<&LinkTable>,
        report: &mut Report,
    ) {
        match &mut self.kind {
            Kind::Iptables(iptables) => iptables.teardown(report).await,
            Kind::Ebpf(_) | Kind::None => {}
        }
        if let Some(accept) = self.accept.as_mut() {
            accept.teardown(report).await;
        }
        Ebpf::teardown(&self.settings, handle, table, report).await;
    }

    /// Ids of the loaded eBPF programs; none with another backend.
    pub fn programs(&self) -> Ids {
        match &self.kind {
            Kind::Ebpf(ebpf) => ebpf.ids(),
            Kind::Iptables(_) | Kind::None => Ids::new(),
        }
    }

    /// In a dry run: goes by the eBPF programs that another agent has loaded.
    pub fn go_by(&mut self, known: Ids) {
        if let Kind::Ebpf(ebpf) = &mut self.kind {
            ebpf.go_by(known);
        }
    }

    /// Lets go of counters of links that are gone.
    pub fn forget_counters(&self, table: &LinkTable) {
        if let Kind::Ebpf(ebpf) = &self.kind
            && let Err(error) = ebpf.forget_counters(table)
        {
            warn!("counters of links that are gone stay: {error}");
        }
    }

    /// Passes debug lines of the programs on, if there are any.
    pub fn forward_logs(&mut self) {
        if let Kind::Ebpf(ebpf) = &mut self.kind {
            ebpf.forward_logs();
        }
    }
}

fn open_ebpf(settings: &ebpf::Settings, mode: Mode) -> Result<Kind, ebpf::Error> {
    Ok(Kind::Ebpf(Box::new(Ebpf::open(settings.clone(), mode)?)))
}

async fn open_iptables(config: &Config) -> Result<Kind, iptables::Error> {
    let scope = Scope {
        notrack: true,
        accept: config.accept_rules,
    };
    let rules = Iptables::open(&config.vips, &config.ports, scope).await?;
    Ok(Kind::Iptables(Box::new(rules)))
}

/// The ACCEPT rules beside the `ebpf` backend. Where iptables is not installed nothing of it can
/// drop a packet.
async fn open_accept_rules(config: &Config) -> Result<Option<Iptables>, Error> {
    let scope = Scope {
        notrack: false,
        accept: config.accept_rules,
    };
    match Iptables::open(&config.vips, &config.ports, scope).await {
        Ok(rules) => Ok(Some(rules)),
        Err(error) if config.accept_rules == AcceptRules::Always => Err(Error::AcceptRules(error)),
        Err(error) => {
            debug!("no ACCEPT rules are kept: {error}");
            Ok(None)
        }
    }
}

/// Rules of any scope, to remove them; none where iptables is not installed.
async fn any_rules(settings: &ebpf::Settings) -> Option<Iptables> {
    let scope = Scope {
        notrack: true,
        accept: AcceptRules::Never,
    };
    Iptables::open(&settings.vips, &settings.ports, scope)
        .await
        .ok()
}

async fn first_that_works(
    config: &Config,
    settings: &ebpf::Settings,
    mode: Mode,
    rejected: &mut Vec<Rejected>,
) -> Kind {
    match open_ebpf(settings, mode) {
        Ok(kind) => return kind,
        Err(error) => rejected.push(reject("ebpf", &error)),
    }
    match open_iptables(config).await {
        Ok(kind) => return kind,
        Err(error) => rejected.push(reject("iptables", &error)),
    }
    warn!("degraded: no backend works here; the VIP is kept, its connections are tracked");
    Kind::None
}

/// Tells what the chosen backend cannot do, where that may surprise.
fn warn_of_limits(kind: &Kind, config: &Config) {
    if matches!(kind, Kind::Iptables(_)) {
        warn!(
            "the rules of the iptables backend untrack every reply of the VIP: connections to a \
             ClusterIP that kube-proxy DNATs to the VIP time out; use --backend=ebpf, or \
             --backend=none to leave everything tracked"
        );
    }
    // Where another backend was asked for by name, the command line has told.
    let fell_back = config.backend == BackendChoice::Auto && !matches!(kind, Kind::Ebpf(_));
    if fell_back && !config.services.is_empty() {
        warn!("nothing is translated: --service-address needs the ebpf backend");
    }
}

fn reject(backend: &str, error: &dyn std::error::Error) -> Rejected {
    let failure = crate::reconcile::Failure::new("backend", format!("backend {backend}"), error);
    warn!("{failure}");
    Rejected {
        backend: backend.to_owned(),
        reason: failure.cause,
    }
}
