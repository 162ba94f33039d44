// SPDX-License-Identifier: Apache-2.0

//! Settings for the nodes of a whole run that a plain node does not have: those of hardened hosts and of other
//! clusters, under which the same tests must pass. `PROXY_AGENT_TEST_NODE` selects one; `cargo xtask test --node NAME`
//! sets it.

use std::sync::OnceLock;

use anyhow::{Result, bail};

use crate::netns::Netns;

/// The variable that selects the setting of a run.
pub const VARIABLE: &str = "PROXY_AGENT_TEST_NODE";

/// The setting of the nodes of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// The kernel's defaults, and a kube-proxy without the check of the Service range.
    Plain,
    /// `strict-conntrack`: conntrack does not start to track established connections (`nf_conntrack_tcp_loose=0`).
    StrictConntrack,
    /// `strict-rp-filter`: the kernel drops a packet unless the route to its source uses the link on which it arrived
    /// (`rp_filter=1`).
    StrictRpFilter,
    /// `service-range`: kube-proxy runs in nftables mode, whichever mode a test requests, and drops packets to
    /// addresses of the Service range that no Service has. The VIPs are the ones that docs/operations.md recommends,
    /// outside of that range.
    ServiceRange,
}

impl Setting {
    /// Returns the setting of this run.
    ///
    /// # Panics
    /// Panics if the variable's value is not a setting.
    #[must_use]
    pub fn current() -> Self {
        static CURRENT: OnceLock<Setting> = OnceLock::new();
        *CURRENT.get_or_init(|| {
            let name = std::env::var(VARIABLE).unwrap_or_default();
            Self::named(&name).expect("a setting of nodes")
        })
    }

    fn named(name: &str) -> Result<Self> {
        Ok(match name {
            "" => Self::Plain,
            "strict-conntrack" => Self::StrictConntrack,
            "strict-rp-filter" => Self::StrictRpFilter,
            "service-range" => Self::ServiceRange,
            _ => bail!(
                "{VARIABLE}={name}: strict-conntrack, strict-rp-filter and service-range are known"
            ),
        })
    }

    /// Applies the setting's sysctls to a node.
    ///
    /// # Errors
    /// Returns an error if the kernel does not have one of them.
    pub(crate) fn apply(self, node: &Netns) -> Result<()> {
        match self {
            Self::Plain | Self::ServiceRange => Ok(()),
            Self::StrictConntrack => node.sysctl("net/netfilter/nf_conntrack_tcp_loose", "0"),
            // The kernel uses the larger of the link's own value and that of `all`.
            Self::StrictRpFilter => node.sysctl("net/ipv4/conf/all/rp_filter", "1"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_is_an_error() {
        assert_eq!(
            Setting::named("service-range").unwrap(),
            Setting::ServiceRange
        );
        assert_eq!(Setting::named("").unwrap(), Setting::Plain);
        let error = Setting::named("strict").unwrap_err().to_string();
        assert!(
            error.starts_with("PROXY_AGENT_TEST_NODE=strict:"),
            "{error}"
        );
    }
}
