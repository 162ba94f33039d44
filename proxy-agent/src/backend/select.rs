// SPDX-License-Identifier: Apache-2.0

//! Chooses the backend by trying what it needs, replaces it when that changes, and provides one interface for all of them.

mod backoff;
mod choose;

use std::error::Error as StdError;
use std::io;
use std::time::{Duration, Instant};

use proxy_rules::dnat::Finding;
use rtnetlink::Handle;
use tracing::{debug, info, warn};

use self::backoff::{Backoff, Streak};
use super::decisions::collect::{self, Which};
use super::ebpf::{self, Drained, Ebpf, Ids, Tables};
use super::iptables::Iptables;
use super::nftables::Nftables;
use super::upstream::Upstream;
use crate::config::{AcceptRules, BackendChoice, Config, Guard};
use crate::guard;
use crate::link::LinkTable;
use crate::reconcile::trigger::Cause;
use crate::reconcile::{Failure, Mode, Part, Report};
use crate::state::upstream as published;
use crate::state::{Choice, Guarded, GuardedLink};

/// The name of this part in reports and logs.
pub const PART: Part = Part::Backend;

/// Interval of the checks whether connections that another backend has left have ended.
const DRAIN_LOOK: Duration = Duration::from_millis(500);

/// The failed operation if this process may not call bpf(2), while an earlier agent's programs are still active.
const STOP_WITHOUT_RIGHTS: &str = "stop decisions about Services by the programs of an agent with more privileges \
     (give this one the same privileges, or run `proxy-agent cleanup` with them)";

/// The backend in use.
pub struct Backend {
    config: Config,
    kind: Kind,
    /// ACCEPT rules for a backend that has none of its own.
    accept: Option<Iptables>,
    backoff: Backoff,
    streak: Streak,
    /// DNAT to the VIPs whose connections stateless rules break.
    broken: Vec<Finding>,
    /// Objects of other backends are searched for and removed after a successful pass.
    look_for_leftovers: bool,
    /// The cached kernel features are wrong; only a new process can correct them.
    has_stale_features: bool,
    /// The guard's classification of links, as of the last pass that could determine it.
    links: guard::Links,
    /// The guarded links that were published last.
    published_guard: Option<Guarded>,
    /// The proxy's own connections.
    upstream: Upstream,
    /// When connections to Services that another backend has left are reset.
    drained_at: Option<Instant>,
}

enum Kind {
    Ebpf(Box<Ebpf>),
    Nftables(Box<Nftables>),
    Iptables(Box<Iptables>),
    None,
    /// The backend that was requested by name cannot be used.
    Unavailable,
}

impl Kind {
    fn name(&self) -> BackendChoice {
        match self {
            Self::Ebpf(_) => BackendChoice::Ebpf,
            Self::Nftables(_) => BackendChoice::Nftables,
            Self::Iptables(_) => BackendChoice::Iptables,
            Self::None | Self::Unavailable => BackendChoice::None,
        }
    }
}

/// Whether an error says that the kernel, or a seccomp filter, denies a call to this process.
fn is_refused(error: &(dyn StdError + 'static)) -> bool {
    let code = error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::raw_os_error);
    matches!(code, Some(libc::EPERM | libc::EACCES | libc::ENOSYS))
        || error.source().is_some_and(is_refused)
}

impl Backend {
    /// Opens the requested backend, or the first usable one. The data plane is not changed.
    ///
    /// If a backend that was requested by name cannot be used, each pass reports it and each resync retries.
    pub async fn open(config: &Config, mode: Mode) -> Self {
        let mut backend = Self {
            config: config.clone(),
            kind: Kind::Unavailable,
            accept: None,
            backoff: Backoff::default(),
            streak: Streak::default(),
            broken: Vec::new(),
            look_for_leftovers: true,
            has_stale_features: false,
            links: guard::Links::default(),
            published_guard: None,
            upstream: Upstream::open(config),
            drained_at: None,
        };
        match config.backend {
            BackendChoice::Auto => {
                let kind = backend.first_that_works(mode).await;
                if kind.is_none() {
                    warn!(
                        part = PART.name(),
                        "degraded: no backend is usable; the VIP is kept up, its connections are \
                         tracked"
                    );
                }
                backend.take(kind.unwrap_or(Kind::None)).await;
            }
            asked => match backend.try_open(asked, mode).await {
                Ok(kind) => backend.take(kind).await,
                Err(error) => backend.reject(asked, &error),
            },
        }
        backend
    }

    /// The backend in use, with the reasons against others.
    pub fn choice(&self) -> Choice {
        let detail = match &self.kind {
            Kind::Ebpf(ebpf) => format!("attached by {}", ebpf.attach_mode()),
            Kind::Iptables(rules) => match rules.why_stateless() {
                None => "learning with ipset".to_owned(),
                Some(reason) => format!("stateless: {reason}"),
            },
            Kind::Nftables(_) | Kind::None | Kind::Unavailable => String::new(),
        };
        Choice {
            asked: self.config.backend.name().to_owned(),
            backend: self.kind.name().name().to_owned(),
            detail,
            rejected: self.backoff.rejected(),
            breaks: self.broken.iter().map(Finding::to_string).collect(),
        }
    }

    /// Whether connections to Services end on the proxy with the backend in use.
    pub fn ends_services(&self) -> bool {
        matches!(self.kind, Kind::Ebpf(_))
    }

    /// True if the process must be re-executed to detect the kernel's features correctly.
    pub fn has_stale_features(&self) -> bool {
        self.has_stale_features
    }

    /// The guarded links as of the last pass.
    pub fn guarded(&self) -> Guarded {
        self.published_guard.clone().unwrap_or_default()
    }

    /// State of the proxy's own connections as of the last pass.
    pub fn upstream(&self) -> &published::Upstream {
        self.upstream.published()
    }

    /// Whether the data plane depends on the socket on which the proxy listens.
    pub fn follows_proxy(&self) -> bool {
        self.upstream.follows_proxy() || self.ebpf().is_some_and(Ebpf::follows_listeners)
    }

    /// True if the proxy's listener has changed since the last pass, and the data plane depends on it.
    pub fn has_proxy_changed(&self) -> bool {
        self.upstream.has_proxy_changed() || self.ebpf().is_some_and(Ebpf::have_listeners_changed)
    }

    fn ebpf(&self) -> Option<&Ebpf> {
        match &self.kind {
            Kind::Ebpf(ebpf) => Some(ebpf),
            _ => None,
        }
    }

    /// Records and logs the guarded links, if they have changed.
    fn publish_guard(&mut self, table: &LinkTable) {
        let mut notes = self.links.notes.clone();
        let by_rules = |how: &str, links: guard::Links| {
            let links = links.guarded.into_values();
            let link = |link| GuardedLink {
                link,
                how: how.to_owned(),
            };
            links.map(link).collect()
        };
        let links = match &self.kind {
            _ if self.config.guard == Guard::Off => Vec::new(),
            Kind::Ebpf(ebpf) => ebpf.guarded(),
            Kind::Nftables(_) | Kind::Iptables(_) => {
                let (links, ports) = self.links.seen_by_rules(table);
                notes.extend(ports);
                by_rules(&format!("rules of {}", self.kind.name()), links)
            }
            Kind::None | Kind::Unavailable => {
                notes.push("backend none has no guard".to_owned());
                Vec::new()
            }
        };
        let guarded = Guarded { links, notes };
        if self.published_guard.as_ref() == Some(&guarded) {
            return;
        }
        for note in &guarded.notes {
            warn!(part = PART.name(), "not guarded: {note}");
        }
        let links: Vec<_> = guarded
            .links
            .iter()
            .map(|link| format!("{} by {}", link.link, link.how))
            .collect();
        if !links.is_empty() {
            info!(part = PART.name(), "guarded links: {}", links.join(", "));
        }
        self.published_guard = Some(guarded);
    }

    /// One pass over all objects of the backend.
    pub async fn reconcile(
        &mut self,
        handle: &Handle,
        table: &LinkTable,
        (mode, cause): (Mode, Cause),
        report: &mut Report,
    ) {
        if mode == Mode::Apply {
            self.reconsider(cause).await;
        }
        if let Some(links) = guard::choose(&self.config.guard, table) {
            self.links = links;
        }
        let failures = report.failures.len();
        if self.look_for_leftovers
            && mode == Mode::Apply
            && !matches!(self.kind, Kind::Ebpf(_) | Kind::Unavailable)
            && let Err(error) = ebpf::stop_deciding(&self.config)
        {
            let what = if is_refused(&error) {
                STOP_WITHOUT_RIGHTS
            } else {
                "stop decisions about Services"
            };
            report.failed(PART, what, &error);
        }
        let (by_rules, _) = self.links.seen_by_rules(table);
        match &mut self.kind {
            Kind::Ebpf(ebpf) => {
                ebpf.place(self.upstream.known());
                ebpf.reconcile(handle, (table, &self.links), mode, report)
                    .await;
            }
            Kind::Nftables(nftables) => {
                nftables.place(self.upstream.known());
                nftables.reconcile(&by_rules, mode, report).await;
            }
            Kind::Iptables(iptables) => {
                iptables.guard(&by_rules, &self.config);
                iptables.reconcile(mode, report).await;
                if cause == Cause::Resync {
                    self.look_for_dnat(mode).await;
                }
            }
            Kind::None => {}
            Kind::Unavailable => self.report_unavailable(report),
        }
        let decides_natively = matches!(self.kind, Kind::Ebpf(_) | Kind::Nftables(_));
        let unfit = (!decides_natively).then(|| self.kind.name().name());
        self.upstream.prepare(unfit, (mode, cause), report);
        self.reconcile_accept_rules(mode, report).await;
        // After the ACCEPT rules: without them filters may drop what this part untracks.
        self.upstream.reconcile((mode, cause), report).await;
        self.publish_guard(table);
        if report.is_stopped() {
            return;
        }
        // Only after a pass without failures: until then the older backend's objects are better than none.
        let works = report.failures.len() == failures;
        if self.look_for_leftovers && mode == Mode::Apply && works {
            let removed = self.remove_leftovers(handle, table, report).await;
            self.look_for_leftovers = !removed || report.failures.len() > failures;
        }
        if let (Mode::Apply, Cause::Resync, Kind::Ebpf(_) | Kind::Nftables(_)) =
            (mode, cause, &self.kind)
        {
            let over = collect::collect(Which::ToVips, self.config.instance);
            if let Some(over @ 1..) = report.attempt(PART, "remove ended connections", over) {
                debug!(
                    part = PART.name(),
                    "removed {over} ended connections from the tables of decisions"
                );
            }
        }
        if mode == Mode::Apply {
            self.streak.passed(report.failures.len() > failures);
        }
    }

    fn needs_accept_rules(&self) -> bool {
        matches!(self.kind, Kind::Ebpf(_) | Kind::Nftables(_))
    }

    async fn reconcile_accept_rules(&mut self, mode: Mode, report: &mut Report) {
        let is_missing = self.accept.is_none()
            && self.needs_accept_rules()
            && self.config.accept_rules == AcceptRules::Always;
        if is_missing {
            let opened = self.open_iptables(false, AcceptRules::Always, mode).await;
            self.accept = report.attempt(PART, "set ACCEPT rules (--accept-rules=always)", opened);
        }
        if let Some(accept) = self.accept.as_mut() {
            accept.accept_upstream(self.upstream.accepted());
            accept.reconcile(mode, report).await;
        }
    }

    fn report_unavailable(&self, report: &mut Report) {
        for rejected in self.backoff.rejected() {
            let failure = Failure {
                part: PART,
                what: format!("--backend={} cannot be used here", rejected.backend),
                cause: rejected.reason,
            };
            tracing::error!(part = PART.name(), "{failure}");
            report.failures.push(failure);
        }
    }

    /// Removes the objects of other backends. Returns false if open connections to Services delay that.
    async fn remove_leftovers(
        &mut self,
        handle: &Handle,
        table: &LinkTable,
        report: &mut Report,
    ) -> bool {
        let tables = match self.kind {
            Kind::Ebpf(_) | Kind::Unavailable => return true,
            Kind::Nftables(_) => Tables::Keep,
            Kind::Iptables(_) | Kind::None => Tables::Delete,
        };
        let mode = Mode::Apply;
        if tables == Tables::Delete {
            Ebpf::remove_decisions(&self.config, handle, mode, report).await;
        }
        let until = *self
            .drained_at
            .get_or_insert_with(|| Instant::now() + self.config.drain_timeout);
        let services = ebpf::earlier_services(&self.config).unwrap_or_default();
        // `teardown` reports errors.
        if Instant::now() < until && !ebpf::is_drained(&services).unwrap_or(true) {
            report.look_again_after(DRAIN_LOOK);
            return false;
        }
        self.drained_at = None;
        let how = (tables, Drained::Over);
        Ebpf::teardown(&self.config, handle, Some(table), how, mode, report).await;
        if matches!(self.kind, Kind::None) {
            Iptables::remove_everything(self.config.instance, Mode::Apply, report).await;
        }
        true
    }

    /// Ids of the loaded eBPF programs; none with another backend.
    pub fn programs(&self) -> Ids {
        self.ebpf().map_or_else(Ids::new, Ebpf::ids)
    }

    /// For a dry run: assumes the eBPF programs that the running agent has loaded.
    pub fn assume_programs(&mut self, known: Ids) {
        if let Kind::Ebpf(ebpf) = &mut self.kind {
            ebpf.assume_programs(known);
        }
    }

    /// Removes the counters of deleted links.
    pub fn forget_counters(&self, table: &LinkTable) {
        if let Kind::Ebpf(ebpf) = &self.kind
            && let Err(error) = ebpf.forget_counters(table)
        {
            warn!("cannot remove the counters of deleted links: {error}");
        }
    }

    /// Forwards debug lines of the eBPF programs, if there are any.
    pub fn forward_logs(&mut self) {
        if let Kind::Ebpf(ebpf) = &mut self.kind {
            ebpf.forward_logs();
        }
    }
}
