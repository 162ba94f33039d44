// SPDX-License-Identifier: Apache-2.0

//! Chooses the backend by trying what it needs, changes it when that is no longer so, and gives all
//! of them one face.

mod choose;
mod trials;

use std::error::Error as StdError;
use std::io;
use std::time::{Duration, Instant};

use rtnetlink::Handle;
use tracing::{debug, info, warn};

use self::trials::{Streak, Trials};
use super::decisions::collect::{self, Which};
use super::ebpf::{self, Drained, Ebpf, Ids, Tables};
use super::iptables::Iptables;
use super::nftables::Nftables;
use super::upstream::Upstream;
use crate::config::{AcceptRules, BackendChoice, Config, Guard};
use crate::dnat::Finding;
use crate::guard;
use crate::link::LinkTable;
use crate::reconcile::trigger::Cause;
use crate::reconcile::{Failure, Mode, Report, failed, part};
use crate::state::upstream as published;
use crate::state::{Choice, Guarded, GuardedLink};

/// The name of this part in reports and logs.
pub const PART: &str = part::BACKEND;

/// How often it is looked whether connections have ended that another backend has left.
const DRAIN_LOOK: Duration = Duration::from_millis(500);

/// What fails where this agent may not call bpf(2) and an earlier one could.
const STOP_WITHOUT_RIGHTS: &str = "decide no more connections to Services, which an agent with more rights has set up \
     (give this one its rights, or run `proxy-agent cleanup` with them)";

/// The backend in use.
pub struct Backend {
    config: Config,
    settings: ebpf::Settings,
    kind: Kind,
    /// The ACCEPT rules beside a backend that has none of its own.
    accept: Option<Iptables>,
    trials: Trials,
    streak: Streak,
    /// Who sends connections to the VIP that stateless rules break.
    broken: Vec<Finding>,
    /// What other backends have left is removed once this one works.
    look_for_leftovers: bool,
    /// Only a new process can judge the kernel anew.
    misjudged: bool,
    /// What the links are to the guard, as of the last pass that knew it.
    links: guard::Links,
    /// What was told of it.
    told: Option<Guarded>,
    /// The proxy's own connections.
    upstream: Upstream,
    /// When connections to Services are reset that another backend has left.
    drained_at: Option<Instant>,
}

enum Kind {
    Ebpf(Box<Ebpf>),
    Nftables(Box<Nftables>),
    Iptables(Box<Iptables>),
    None,
    /// The one that was asked for by name cannot be used.
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

/// Whether the kernel, or a seccomp filter, refuses what was asked for to this process.
fn is_refused(error: &(dyn StdError + 'static)) -> bool {
    let code = error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::raw_os_error);
    matches!(code, Some(libc::EPERM | libc::EACCES | libc::ENOSYS))
        || error.source().is_some_and(is_refused)
}

impl Backend {
    /// Opens the backend asked for, or the first that works. Nothing of the data plane is changed.
    ///
    /// One that was asked for by name and cannot be used is told by each pass, and tried again.
    pub async fn open(config: &Config, mode: Mode) -> Self {
        let mut backend = Self {
            config: config.clone(),
            settings: ebpf::Settings::from(config),
            kind: Kind::Unavailable,
            accept: None,
            trials: Trials::default(),
            streak: Streak::default(),
            broken: Vec::new(),
            look_for_leftovers: true,
            misjudged: false,
            links: guard::Links::default(),
            told: None,
            upstream: Upstream::open(config),
            drained_at: None,
        };
        match config.backend {
            BackendChoice::Auto => {
                let kind = backend.first_that_works(mode).await;
                if kind.is_none() {
                    warn!(
                        part = PART,
                        "degraded: no backend works here; the VIP is kept, its connections are \
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

    /// The backend in use and why, as `status` tells it.
    pub fn choice(&self) -> Choice {
        let detail = match &self.kind {
            Kind::Ebpf(ebpf) => format!("attached by {}", ebpf.attach_mode()),
            Kind::Iptables(rules) => match rules.why_classic() {
                None => "learning with ipset".to_owned(),
                Some(reason) => format!("stateless: {reason}"),
            },
            Kind::Nftables(_) | Kind::None | Kind::Unavailable => String::new(),
        };
        Choice {
            asked: self.config.backend.name().to_owned(),
            backend: self.kind.name().name().to_owned(),
            detail,
            rejected: self.trials.rejected(),
            breaks: self.broken.iter().map(Finding::to_string).collect(),
        }
    }

    /// Whether connections to Services end on the proxy with the backend in use.
    pub fn ends_services(&self) -> bool {
        matches!(self.kind, Kind::Ebpf(_))
    }

    /// Whether the agent has to be started again to see what the kernel can do.
    pub fn misjudges_kernel(&self) -> bool {
        self.misjudged
    }

    /// Where packets for the VIPs are dropped as of the last pass, and where not.
    pub fn guarded(&self) -> Guarded {
        self.told.clone().unwrap_or_default()
    }

    /// What has become of the proxy's own connections as of the last pass.
    pub fn upstream(&self) -> &published::Upstream {
        self.upstream.published()
    }

    /// Whether it matters by which socket the proxy listens.
    pub fn follows_proxy(&self) -> bool {
        self.upstream.follows_proxy() || self.ebpf().is_some_and(Ebpf::follows_listeners)
    }

    /// Whether the proxy listens by another socket than before the last pass, where that matters.
    pub fn has_proxy_changed(&self) -> bool {
        self.upstream.has_proxy_changed() || self.ebpf().is_some_and(Ebpf::have_listeners_changed)
    }

    fn ebpf(&self) -> Option<&Ebpf> {
        match &self.kind {
            Kind::Ebpf(ebpf) => Some(ebpf),
            _ => None,
        }
    }

    /// Notes and logs what is guarded, where that has changed.
    fn tell_guard(&mut self, table: &LinkTable) {
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
                notes.push("backend none guards nothing".to_owned());
                Vec::new()
            }
        };
        let guarded = Guarded { links, notes };
        if self.told.as_ref() == Some(&guarded) {
            return;
        }
        for note in &guarded.notes {
            warn!(part = PART, "not guarded: {note}");
        }
        let links: Vec<_> = guarded
            .links
            .iter()
            .map(|link| format!("{} by {}", link.link, link.how))
            .collect();
        if !links.is_empty() {
            info!(part = PART, "guarded: {}", links.join(", "));
        }
        self.told = Some(guarded);
    }

    /// One pass over everything the backend keeps.
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
            && let Err(error) = self.settings.stop_deciding()
        {
            let what = if is_refused(&error) {
                STOP_WITHOUT_RIGHTS
            } else {
                "decide no more connections to Services"
            };
            failed(PART, what, &error, report);
        }
        let (by_rules, _) = self.links.seen_by_rules(table);
        match &mut self.kind {
            Kind::Ebpf(ebpf) => {
                ebpf.reconcile(handle, (table, &self.links), mode, report)
                    .await;
            }
            Kind::Nftables(nftables) => nftables.reconcile(&by_rules, mode, report).await,
            Kind::Iptables(iptables) => {
                iptables.guard(&by_rules, &self.config);
                iptables.reconcile(mode, report).await;
                if cause == Cause::Resync {
                    self.look_for_dnat(mode).await;
                }
            }
            Kind::None => {}
            Kind::Unavailable => self.tell_unavailable(report),
        }
        let decides_natively = matches!(self.kind, Kind::Ebpf(_) | Kind::Nftables(_));
        let unfit = (!decides_natively).then(|| self.kind.name().name());
        self.upstream.prepare(unfit, (mode, cause), report);
        self.reconcile_accept_rules(mode, report).await;
        // After the ACCEPT rules, without which filters may drop what it untracks.
        self.upstream.reconcile((mode, cause), report).await;
        self.tell_guard(table);
        if report.is_stopped() {
            return;
        }
        // Only once this backend stands: until then what an older one does is better than nothing.
        let works = report.failures.len() == failures;
        if self.look_for_leftovers && mode == Mode::Apply && works {
            let removed = self.remove_leftovers(handle, table, report).await;
            self.look_for_leftovers = !removed || report.failures.len() > failures;
        }
        if let (Mode::Apply, Cause::Resync, Kind::Ebpf(_) | Kind::Nftables(_)) =
            (mode, cause, &self.kind)
        {
            match collect::collect(Which::ToVips, self.config.instance) {
                Ok(0) => {}
                Ok(over) => debug!(part = PART, "{over} decided connections were over"),
                Err(error) => failed(PART, "forget connections that are over", &error, report),
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
            match self.open_iptables(false, AcceptRules::Always, mode).await {
                Ok(rules) => self.accept = Some(rules),
                Err(error) => failed(PART, "keep --accept-rules=always", &error, report),
            }
        }
        if let Some(accept) = self.accept.as_mut() {
            accept.accept_upstream(self.upstream.accepted());
            accept.reconcile(mode, report).await;
        }
    }

    fn tell_unavailable(&self, report: &mut Report) {
        for rejected in self.trials.rejected() {
            let failure = Failure {
                part: PART,
                what: format!("--backend={} cannot be used here", rejected.backend),
                cause: rejected.reason,
            };
            tracing::error!(part = PART, "{failure}");
            report.failures.push(failure);
        }
    }

    /// Removes what other backends have left. False if that has to wait for connections to Services to end.
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
            Ebpf::remove_decisions(&self.settings, handle, mode, report).await;
        }
        let until = *self
            .drained_at
            .get_or_insert_with(|| Instant::now() + self.settings.drain_timeout);
        let services = self.settings.earlier_services().unwrap_or_default();
        // An error is told by what follows.
        if Instant::now() < until && !ebpf::is_drained(&services).unwrap_or(true) {
            report.look_again_after(DRAIN_LOOK);
            return false;
        }
        self.drained_at = None;
        let how = (tables, Drained::Over);
        Ebpf::teardown(&self.settings, handle, Some(table), how, mode, report).await;
        if matches!(self.kind, Kind::None) {
            Iptables::remove_everything(self.config.instance, Mode::Apply, report).await;
        }
        true
    }

    /// Ids of the loaded eBPF programs; none with another backend.
    pub fn programs(&self) -> Ids {
        self.ebpf().map_or_else(Ids::new, Ebpf::ids)
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
