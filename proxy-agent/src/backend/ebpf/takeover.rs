// SPDX-License-Identifier: Apache-2.0

//! What becomes of decisions when the programs that obey them change: those of another map, those that
//! conntrack contradicts, and connections that others have kept untracked.

use rtnetlink::Handle;
use tracing::warn;

use super::load::Programs;
use super::{Ebpf, Error, PART, Settings, maps, observe};
use crate::backend::live::Live;
use crate::link::LinkTable;
use crate::netfilter;
use crate::reconcile::{Mode, Report, carry_out, failed};

impl Ebpf {
    /// Sees to it that all programs go by one map before one of these is attached. As long as some
    /// decide by another, nothing must: what one translates in one direction, the others would not in
    /// the other. False if that could not be done.
    pub(super) async fn take_over_decisions(
        &mut self,
        handle: &Handle,
        table: &LinkTable,
        report: &mut Report,
    ) -> bool {
        let is_due = |programs: &Programs| !programs.shares_decisions();
        if !self.programs.as_ref().is_some_and(is_due) {
            return true;
        }
        let failures = report.failures.len();
        let deciding = observe::deciding(&self.settings, handle, table, report).await;
        carry_out(PART, Mode::Apply, deciding, report, async |op| {
            self.apply(op, handle).await
        })
        .await;
        if report.failures.len() > failures || report.is_stopped() {
            return false;
        }
        let taken = self.programs.as_mut().map(Programs::take_over_decisions);
        if let Some(Err(error)) = taken {
            failed(
                PART,
                "take over the map of decided connections",
                &error,
                report,
            );
            return false;
        }
        true
    }
}

/// Takes back decisions that conntrack contradicts: while our tables were missing, a connection
/// may have come to the VIP by somebody's DNAT from the client port of an older decision, and
/// nobody has verified its SYN-ACK.
///
/// At a first start there are none, and conntrack is not asked: it walks through its whole table each time.
///
/// Where conntrack cannot be asked, all decisions are taken back: nothing is translated then, but
/// nothing is broken that conntrack knows.
pub(super) fn take_back_contradicted(
    decisions: &mut maps::Decisions,
    settings: &Settings,
) -> Result<(), Error> {
    if decisions.is_empty()? {
        return Ok(());
    }
    let vips: Vec<_> = settings.endpoints().collect();
    let contradicted = netfilter::Socket::open()
        .and_then(|mut socket| netfilter::conntrack::translated_clients(&mut socket, &vips));
    match contradicted {
        Ok(clients) => clients
            .into_iter()
            .try_for_each(|(client, vip)| decisions.take_back(client, vip))?,
        Err(error) => {
            warn!(
                part = PART,
                "conntrack cannot be asked, all decisions are taken back: {error}"
            );
            decisions.forget()?;
        }
    }
    Ok(())
}

/// Decides the connections of the proxy that conntrack does not know: another backend has kept it
/// from seeing them. Where they cannot be listed they become tracked.
pub(super) fn take_over_untracked(
    decisions: &mut maps::Decisions,
    settings: &Settings,
) -> Result<(), Error> {
    let vips: Vec<_> = settings.endpoints().collect();
    match Live::read(&vips) {
        Ok(live) => {
            for connection in live.untracked {
                decisions.take_over(connection.client, connection.vip)?;
            }
        }
        Err(error) => warn!(
            part = PART,
            "connections that are untracked now become tracked: {error}"
        ),
    }
    Ok(())
}
