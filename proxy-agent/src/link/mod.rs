// SPDX-License-Identifier: Apache-2.0

//! Keeps the VIPs on their link: creates a missing link as a dummy, sets it up, adds the VIPs, and
//! then removes them from everywhere else.
//!
//! A link is ours if it is in the link group that the agent creates its links with; an address is
//! ours if it is a VIP. Nothing else is ever changed or deleted. When to look again is not decided
//! here.

mod apply;
pub mod dump;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod observe;
mod parse;
mod plan;
mod routes;
mod table;
#[cfg(test)]
mod tests;
mod vip;

use std::net::IpAddr;

use apply::Applier;
pub use observe::{ObserveError, ipv4_networks, observe};
use plan::{Desired, Plan, plan, plan_teardown};
pub use routes::uplinks;
use rtnetlink::Handle;
#[cfg(test)]
pub use table::Xdp;
pub use table::{Link, LinkAddress, LinkKind, LinkTable, Prefix};
pub use vip::Vip;

use crate::reconcile::{Mode, Report, carry_out, failed, part};

/// The name of this part in reports and logs.
pub const PART: &str = part::LINK;

/// The VIPs and the link that should carry them.
#[derive(Debug)]
pub struct VipLink {
    desired: Desired,
}

impl VipLink {
    /// `vips` on the link named `interface`. Touches nothing.
    pub fn new(vips: &[IpAddr], interface: &str) -> Self {
        Self {
            desired: Desired {
                vips: vips.to_vec(),
                interface: interface.to_owned(),
            },
        }
    }

    /// Makes the node carry the VIPs as desired, going by `table`, which must be fresh.
    pub async fn reconcile(
        &self,
        handle: &Handle,
        table: &LinkTable,
        mode: Mode,
        report: &mut Report,
    ) {
        self.carry_out(plan(&self.desired, table), handle, table, mode, report)
            .await;
    }

    /// Removes the VIPs from their link, and the link too if the agent created it and nobody else
    /// has put addresses on it.
    pub async fn teardown(&self, handle: &Handle, mode: Mode, report: &mut Report) {
        match observe(&self.desired.vips, &[]).await {
            Ok(table) => {
                let plan = plan_teardown(&self.desired, &table);
                self.carry_out(plan, handle, &table, mode, report).await;
            }
            Err(error) => {
                let what = format!("remove the VIPs from {}", self.desired.interface);
                failed(PART, what, &error, report);
            }
        }
    }

    async fn carry_out(
        &self,
        plan: Plan,
        handle: &Handle,
        table: &LinkTable,
        mode: Mode,
        report: &mut Report,
    ) {
        let mut applier = Applier::new(handle, table);
        carry_out(PART, mode, plan.ops, report, async |op| {
            applier.apply(op).await
        })
        .await;
        for (wanted, refusal) in &plan.refusals {
            failed(PART, wanted, refusal, report);
        }
    }
}
