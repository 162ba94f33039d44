// SPDX-License-Identifier: Apache-2.0

//! Keeps the VIPs on their link: creates a missing link as a dummy, sets it up, adds the VIPs, and
//! then removes them from everywhere else.
//!
//! A link is ours if it is in the link group that the agent creates its links with; an address is
//! ours if it is a VIP, or was one of an earlier start on the link on which it is. Nothing else is ever
//! changed or deleted. When the next pass takes place is not decided here.

mod apply;
mod connection;
mod observe;
mod plan;
mod table;
#[cfg(test)]
mod tests;
mod vip;

use std::cell::Cell;
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use apply::Applier;
pub use connection::{connect, report_if_lost};
pub use observe::{ipv4_networks, observe};
pub use plan::Earlier;
use plan::{Desired, Op, Plan, plan, plan_teardown};
use proxy_kernel::sockets;
use rtnetlink::Handle;
pub use table::{LinkTable, is_owned};
#[cfg(test)]
pub use table::{OWN_GROUP, address};
use tracing::info;
pub use vip::Vip;

use crate::config::AddressScope;
use crate::reconcile::{Mode, Part, Report, carry_out};

/// The name of this part in reports and logs.
pub const PART: Part = Part::Link;

/// The VIPs and the link that should carry them.
#[derive(Debug)]
pub struct VipLink {
    desired: Desired,
    /// The postponement of a change of scope was logged.
    has_postponed: Cell<bool>,
}

/// Whether a connection of this node's processes has a VIP as its source because it was masqueraded: then the other end
/// is not a socket of the VIP. The kernel forgets how such a connection is translated when any copy of the address goes
/// (`masq_inet_event` in <https://github.com/torvalds/linux/blob/v6.12/net/netfilter/nf_nat_masquerade.c>).
fn is_translated_source(vip: IpAddr, connections: &HashSet<(SocketAddr, SocketAddr)>) -> bool {
    let mut from_vip = connections.iter().filter(|(_, remote)| remote.ip() == vip);
    from_vip.any(|(local, remote)| !connections.contains(&(*remote, *local)))
}

impl VipLink {
    /// `vips` on the link named `interface`. Touches nothing.
    pub fn new(vips: &[IpAddr], interface: &str) -> Self {
        Self {
            desired: Desired {
                scope: AddressScope::default(),
                vips: vips.to_vec(),
                interface: interface.to_owned(),
                earlier: Earlier::default(),
            },
            has_postponed: Cell::new(false),
        }
    }

    /// Has the VIPs with this scope.
    pub fn with_scope(mut self, scope: AddressScope) -> Self {
        self.desired.scope = scope;
        self
    }

    /// Also removes what earlier starts have put on the node.
    pub fn set_earlier(&mut self, earlier: Earlier) {
        self.desired.earlier = earlier;
    }

    /// Makes the node carry the VIPs as desired. `table` must have been read just now.
    pub async fn reconcile(
        &self,
        handle: &Handle,
        table: &LinkTable,
        mode: Mode,
        report: &mut Report,
    ) {
        let mut plan = plan(&self.desired, table);
        if self.desired.scope == AddressScope::Auto {
            self.postpone(&mut plan, mode);
        }
        self.carry_out(plan, handle, table, mode, report).await;
    }

    /// Takes the changes of scope out of a plan that would end connections, or may.
    fn postpone(&self, plan: &mut Plan, mode: Mode) {
        if plan.rescoped().next().is_none() {
            return;
        }
        let connections = sockets::connections();
        let is_needed = |vip: IpAddr| match &connections {
            Ok(connections) => is_translated_source(vip, connections),
            Err(_) => true,
        };
        let kept: Vec<_> = plan.rescoped().filter(|vip| is_needed(*vip)).collect();
        plan.ops.retain(|op| match op {
            Op::Rescope { old, .. } => !kept.contains(&old.ip),
            _ => true,
        });
        let is_new = !kept.is_empty() && !self.has_postponed.get();
        self.has_postponed.set(!kept.is_empty());
        if is_new && mode == Mode::Apply {
            info!(
                part = PART.name(),
                "the scope of {kept:?} stays until no connection has it as its source by masquerading; \
                 --address-scope=link changes it at once and ends these"
            );
        }
    }

    /// Removes the VIPs from their link, and the link too if the agent created it and it carries no
    /// other addresses.
    pub async fn teardown(&self, handle: &Handle, mode: Mode, report: &mut Report) {
        let table = observe(&self.desired.vips, &[]).await;
        let what = format_args!("remove the VIPs from {}", self.desired.interface);
        if let Some(table) = report.attempt(PART, what, table) {
            let plan = plan_teardown(&self.desired, &table);
            self.carry_out(plan, handle, &table, mode, report).await;
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
        let mut applier = Applier::new(handle, table, self.desired.source(table));
        carry_out(PART, mode, plan.ops, report, async |op| {
            applier.apply(op).await
        })
        .await;
        for (wanted, refusal) in &plan.refusals {
            report.failed(PART, wanted, refusal);
        }
    }
}
