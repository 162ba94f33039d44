// SPDX-License-Identifier: Apache-2.0

//! Tries what backends need, takes the best that works, and gives one up that fails for good.

use tracing::{debug, info, warn};

use super::{Backend, Kind, PART};
use crate::backend::ebpf::{self, Ebpf};
use crate::backend::iptables::{self, Iptables, Scope};
use crate::backend::nftables::Nftables;
use crate::config::{AcceptRules, BackendChoice, Config};
use crate::dnat::{self, Finding};
use crate::netfilter;
use crate::reconcile::trigger::Cause;
use crate::reconcile::{Failure, Mode};

/// Why a backend cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Ebpf(#[from] ebpf::Error),
    #[error(transparent)]
    Nftables(#[from] netfilter::Error),
    #[error(transparent)]
    Iptables(#[from] iptables::Error),
    #[error(
        "its rules would be stateless here and break the connections that are sent to a VIP by \
         {0} (--backend=iptables takes them all the same)"
    )]
    WouldBreak(String),
}

impl Backend {
    /// Changes the backend, if the one in use fails for good or a better one works now.
    pub(super) async fn reconsider(&mut self, cause: Cause) {
        let is_auto = self.config.backend == BackendChoice::Auto;
        let current = self.kind.name();
        if matches!(self.kind, Kind::Unavailable) {
            if cause == Cause::Resync {
                self.try_and_take(self.config.backend).await;
            }
        } else if self.streak.is_over() && current != BackendChoice::None {
            info!(
                part = PART,
                "{current} fails again and again: it is opened anew"
            );
            if !self.try_and_take(current).await
                && is_auto
                && let Some(kind) = self.first_that_works(Mode::Apply).await
            {
                self.take(kind).await;
            }
        } else if is_auto && cause == Cause::Resync {
            for better in self.trials.due(current) {
                if self.try_and_take(better).await {
                    return;
                }
            }
        }
    }

    async fn try_and_take(&mut self, backend: BackendChoice) -> bool {
        match self.try_open(backend, Mode::Apply).await {
            Ok(kind) => {
                self.take(kind).await;
                true
            }
            Err(error) => {
                self.reject(backend, &error);
                false
            }
        }
    }

    /// The first that works, of those that `auto` tries.
    pub(super) async fn first_that_works(&mut self, mode: Mode) -> Option<Kind> {
        for backend in self.trials.candidates() {
            match self.try_open(backend, mode).await {
                Ok(kind) => return Some(kind),
                Err(error) => self.reject(backend, &error),
            }
        }
        None
    }

    /// Opens a backend, without taking it.
    pub(super) async fn try_open(&self, backend: BackendChoice, mode: Mode) -> Result<Kind, Error> {
        Ok(match backend {
            BackendChoice::Ebpf => {
                let mut ebpf = Ebpf::open(self.settings.clone(), mode)?;
                if self.config.backend == BackendChoice::Auto {
                    ebpf.probe()?;
                }
                Kind::Ebpf(Box::new(ebpf))
            }
            BackendChoice::Nftables => {
                Kind::Nftables(Box::new(Nftables::open(&self.config, mode)?))
            }
            BackendChoice::Iptables => {
                let accept = self.config.accept_rules;
                let rules = self.open_iptables(true, accept, mode).await?;
                if self.config.backend == BackendChoice::Auto
                    && let Some(finding) = self.broken_by(&rules).await.first()
                {
                    return Err(Error::WouldBreak(finding.to_string()));
                }
                Kind::Iptables(Box::new(rules))
            }
            BackendChoice::None | BackendChoice::Auto => Kind::None,
        })
    }

    /// Notes that a backend cannot be used, and says so where that is news.
    pub(super) fn reject(&mut self, backend: BackendChoice, error: &Error) {
        self.misjudged |= matches!(error, Error::Ebpf(ebpf::Error::Misjudged));
        let failure = Failure::new(
            PART,
            format!("backend {backend} cannot be used here"),
            error,
        );
        let told = failure.to_string();
        if self.trials.reject(backend, failure.cause) && self.config.backend == BackendChoice::Auto
        {
            warn!(part = PART, "{told}");
        }
    }

    /// Makes a backend the one in use.
    pub(super) async fn take(&mut self, kind: Kind) {
        self.trials.accept(kind.name());
        self.kind = kind;
        self.look_for_leftovers = true;
        self.accept = None;
        if self.needs_accept_rules() {
            let accept = self.config.accept_rules;
            match self.open_iptables(false, accept, Mode::Apply).await {
                Ok(rules) => self.accept = Some(rules),
                // Where iptables is not installed nothing of it can drop a packet.
                Err(error @ iptables::Error::Missing { .. }) => {
                    debug!(part = PART, "no ACCEPT rules are kept: {error}");
                }
                Err(error) => {
                    let failure = Failure::new(PART, "no ACCEPT rules are kept", &error);
                    warn!(part = PART, "{failure}; --accept-rules=never needs none");
                }
            }
        }
        info!("backend {}", self.choice());
        self.warn_of_limits();
    }

    /// Says who sends connections to the VIP, while the rules untrack the answers to all of them.
    /// `auto` gives such rules up: to track everything breaks nothing.
    pub(super) async fn look_for_dnat(&mut self, mode: Mode) {
        let found = match &self.kind {
            Kind::Iptables(rules) => self.broken_by(rules).await,
            _ => Vec::new(),
        };
        if self.config.backend == BackendChoice::Auto
            && mode == Mode::Apply
            && let Some(finding) = found.first()
        {
            let error = Error::WouldBreak(finding.to_string());
            self.reject(BackendChoice::Iptables, &error);
            self.take(Kind::None).await;
            return;
        }
        for finding in found
            .iter()
            .filter(|finding| !self.broken.contains(finding))
        {
            warn!(
                part = PART,
                "connections time out that are sent to the VIP by {finding}: the stateless rules \
                 untrack their answers (--backend=nftables, ipset, or --backend=none)"
            );
        }
        self.broken = found;
    }

    /// Whose connections the rules break.
    async fn broken_by(&self, rules: &Iptables) -> Vec<Finding> {
        if rules.learns() {
            return Vec::new();
        }
        let findings = dnat::find(&self.config.vips).await;
        for unread in &findings.unread {
            debug!(
                part = PART,
                "not known whether it sends connections to the VIP: {}: {}",
                unread.source,
                unread.why
            );
        }
        findings.found
    }

    /// Opens rules of iptables: those that untrack, or only those that accept.
    pub(super) async fn open_iptables(
        &self,
        notrack: bool,
        accept: AcceptRules,
        mode: Mode,
    ) -> Result<Iptables, iptables::Error> {
        let scope = Scope {
            owner: self.config.instance,
            notrack,
            accept,
        };
        let Config { vips, ports, .. } = &self.config;
        let rules = Iptables::open(vips, ports, scope, self.config.max_connections, mode).await?;
        let services = self.config.services.iter();
        let ending_here = services.filter(|_| matches!(self.kind, Kind::Ebpf(_)));
        Ok(rules.accepting(ending_here.map(|service| service.cluster_ip)))
    }

    /// Tells what the backend in use cannot do, where that may surprise.
    fn warn_of_limits(&self) {
        if let Kind::Iptables(rules) = &self.kind
            && let Some(reason) = rules.why_classic()
        {
            warn!(
                "the rules of the iptables backend untrack every reply of the VIP: connections to \
                 a ClusterIP that kube-proxy DNATs to the VIP time out; use --backend=nftables or \
                 --backend=ebpf, install ipset, or leave everything tracked with --backend=none \
                 ({reason})"
            );
        }
        // Where another backend was asked for by name, the command line has told.
        let fell_back =
            self.config.backend == BackendChoice::Auto && !matches!(self.kind, Kind::Ebpf(_));
        if fell_back && !self.config.services.is_empty() {
            warn!("no Service ends on the proxy: --service-address needs the ebpf backend");
        }
    }
}
