// SPDX-License-Identifier: Apache-2.0

//! The `nftables` backend: rules and sets of `nf_tables` decide each connection at its SYN. It needs neither programs nor bpffs, and
//! only the capability `NET_ADMIN`. Its tables outlive the agent.

mod guard;
pub mod statistics;
#[cfg(test)]
mod tests;

use proxy_netlink::netfilter::{self, Socket};

use super::decisions::of_proxy::{self, Known};
use super::live::Live;
use super::{decisions, tables};
use crate::config::Config;
use crate::guard::Links;
use crate::reconcile::{Mode, Part, Report, carry_out};

/// The name of this part in reports and logs.
pub const PART: Part = Part::Nftables;

/// The backend.
pub struct Nftables {
    config: Config,
    /// Nothing was installed yet: connections that are untracked now were decided by another backend.
    takes_over: bool,
    /// For tables that are installed.
    of_proxy: Known,
    /// The guard's classification of links.
    links: Links,
}

impl Nftables {
    /// Lets the kernel check the rules. Nothing is installed.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn open(config: &Config, mode: Mode) -> Result<Self, netfilter::Error> {
        Socket::open()?;
        if mode == Mode::Apply {
            let of_vips = of_proxy::without(config);
            tables::rehearse(decisions::tables(&of_vips, &Live::default()))?;
        }
        Ok(Self {
            config: config.clone(),
            takes_over: true,
            of_proxy: Known::default(),
            links: Links::default(),
        })
    }

    /// Sets what is known of the proxy's own connections, for tables that are installed.
    pub fn place(&mut self, known: Known) {
        self.of_proxy = known;
    }

    /// One pass, for the guard's classification of links.
    pub async fn reconcile(&mut self, links: &Links, mode: Mode, report: &mut Report) {
        let follows = self.links != *links;
        self.links.clone_from(links);
        let guard = guard::tables(&self.config, links);
        let desired = [
            decisions::tables(&self.config, &Live::default()),
            guard.clone(),
        ]
        .concat();
        let observed = tables::read(PART, &desired, report);
        let ops = tables::plan(&desired, &observed);
        let of_guard = |op: &&tables::Op| follows && op.is_about(&guard);
        let routine: Vec<_> = ops
            .iter()
            .filter(of_guard)
            .map(ToString::to_string)
            .collect();
        carry_out(PART, mode, ops, report, async |op| {
            decisions::apply(&self.config, self.takes_over, &self.of_proxy, op)
        })
        .await;
        report.mark_routine(PART, &routine);
        if mode == Mode::Apply {
            self.takes_over = false;
        }
    }
}
