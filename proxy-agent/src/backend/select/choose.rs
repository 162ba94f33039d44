// SPDX-License-Identifier: Apache-2.0

//! Tries what backends need, selects the best usable one, and replaces one that fails permanently.

use proxy_netlink::netfilter;
use proxy_rules::dnat::{self, Finding};
use proxy_rules::xtables;
use tracing::{debug, info, warn};

use super::{Backend, Kind, PART};
use crate::backend::ebpf::{self, Ebpf};
use crate::backend::iptables::{self, Iptables, Scope};
use crate::backend::nftables::Nftables;
use crate::config::{AcceptRules, BackendChoice, Config};
use crate::ownership::MARKS;
use crate::reconcile::report::chain;
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
        "its rules would be stateless and break connections sent to a VIP by {0} \
         (--backend=iptables uses them nevertheless)"
    )]
    WouldBreak(String),
}

impl Backend {
    /// Replaces the backend if the one in use keeps failing or a preferred one has become usable.
    pub(super) async fn reconsider(&mut self, cause: Cause) {
        let is_auto = self.config.backend == BackendChoice::Auto;
        let current = self.kind.name();
        if matches!(self.kind, Kind::Unavailable) {
            if cause == Cause::Resync {
                self.try_and_take(self.config.backend).await;
            }
        } else if self.streak.is_over() && current != BackendChoice::None {
            info!(
                part = PART.name(),
                "backend {current} failed in several passes in a row: reopening it"
            );
            if !self.try_and_take(current).await
                && is_auto
                && let Some(kind) = self.first_that_works(Mode::Apply).await
            {
                self.take(kind).await;
            }
        } else if is_auto && cause == Cause::Resync {
            for better in self.backoff.due(current) {
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

    /// The first usable backend, of those that `auto` tries.
    pub(super) async fn first_that_works(&mut self, mode: Mode) -> Option<Kind> {
        for backend in self.backoff.candidates() {
            match self.try_open(backend, mode).await {
                Ok(kind) => return Some(kind),
                Err(error) => self.reject(backend, &error),
            }
        }
        None
    }

    /// Opens a backend without selecting it.
    pub(super) async fn try_open(&self, backend: BackendChoice, mode: Mode) -> Result<Kind, Error> {
        Ok(match backend {
            BackendChoice::Ebpf => {
                let mut ebpf = Ebpf::open(self.config.clone(), mode)?;
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

    /// Records that a backend cannot be used; logs it if the reason is new.
    pub(super) fn reject(&mut self, backend: BackendChoice, error: &Error) {
        self.has_stale_features |= matches!(error, Error::Ebpf(ebpf::Error::StaleFeatures));
        let failure = Failure::new(
            PART,
            format!("backend {backend} cannot be used here"),
            error,
        );
        let text = failure.to_string();
        if self.backoff.reject(backend, failure.cause) && self.config.backend == BackendChoice::Auto
        {
            warn!(part = PART.name(), "{text}");
        }
    }

    /// Selects an opened backend.
    pub(super) async fn take(&mut self, kind: Kind) {
        self.backoff.accept(kind.name());
        self.kind = kind;
        self.look_for_leftovers = true;
        self.accept = None;
        if self.needs_accept_rules() {
            let accept = self.config.accept_rules;
            match self.open_iptables(false, accept, Mode::Apply).await {
                Ok(rules) => self.accept = Some(rules),
                // Without iptables programs no rule of iptables can drop packets.
                Err(error @ iptables::Error::Tables(xtables::Error::Missing { .. })) => {
                    debug!(part = PART.name(), "no ACCEPT rules are set: {error}");
                }
                Err(error) => {
                    let failure = Failure::new(PART, "cannot set ACCEPT rules", &error);
                    warn!(
                        part = PART.name(),
                        "{failure}; --accept-rules=never disables them"
                    );
                }
            }
        }
        info!("backend {}", self.choice());
        self.warn_of_limits();
    }

    /// Logs DNAT to the VIPs while stateless rules untrack the replies of all connections. `auto` deselects such rules:
    /// tracking all connections breaks none.
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
                part = PART.name(),
                "connections sent to the VIP by {finding} time out: the stateless rules \
                 untrack their replies (use --backend=nftables, install ipset, or use --backend=none)"
            );
        }
        self.broken = found;
    }

    /// DNAT whose connections the rules break.
    async fn broken_by(&self, rules: &Iptables) -> Vec<Finding> {
        if rules.learns() {
            return Vec::new();
        }
        let findings = dnat::find(&self.config.vips, MARKS).await;
        for unread in &findings.unread {
            debug!(
                part = PART.name(),
                "cannot determine whether {} sends connections to the VIP: {}",
                unread.source,
                chain(&*unread.error)
            );
        }
        findings.found
    }

    /// Opens rules of iptables: those that untrack, or the ACCEPT rules only.
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

    /// Logs limitations of the backend in use.
    fn warn_of_limits(&self) {
        if let Kind::Iptables(rules) = &self.kind
            && let Some(reason) = rules.why_stateless()
        {
            warn!(
                "the iptables rules untrack every reply of the VIP: connections to a ClusterIP that \
                 kube-proxy DNATs to the VIP time out; use --backend=nftables or --backend=ebpf, \
                 install ipset, or keep all connections tracked with --backend=none \
                 ({reason})"
            );
        }
        // If a backend was requested by name, the command line has logged this.
        let fell_back =
            self.config.backend == BackendChoice::Auto && !matches!(self.kind, Kind::Ebpf(_));
        if fell_back && !self.config.services.is_empty() {
            warn!("no Service ends on the proxy: --service-address needs the ebpf backend");
        }
    }
}
