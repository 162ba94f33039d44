// SPDX-License-Identifier: Apache-2.0

//! Carries plans out.

use std::time::Duration;

use rtnetlink::Handle;
use tokio::time::sleep;
use tracing::warn;

use super::plan::Op;
use super::takeover::{take_back_contradicted, take_over_untracked};
use super::{Ebpf, Error, PART, attach, cgroup, handover, load, maps, xdp};
use crate::backend::tables;
use crate::config::Service;

/// How long the kernel may take to let go of a link whose pin was removed, and how often it is asked,
/// in milliseconds.
const LINGERING: u16 = 500;
const LINGERING_LOOK: u16 = 10;

impl Ebpf {
    /// Carries one step of a plan out.
    pub(super) async fn apply(&mut self, op: &Op, handle: &Handle) -> Result<(), Error> {
        match op {
            Op::PinMap { map, .. } => match &self.programs {
                Some(programs) => Ok(programs.pin_map(map, &self.settings)?),
                None => Ok(()),
            },
            Op::InstallTables { tables, unguarded } => {
                if *unguarded && let Some(programs) = self.programs.as_mut() {
                    take_back_contradicted(&mut programs.decisions, &self.settings)?;
                    // Later on, when somebody has removed the tables, untracked connections cannot
                    // be told from those whose entries somebody has deleted.
                    if self.look_for_leftovers {
                        take_over_untracked(&mut programs.decisions, &self.settings)?;
                    }
                }
                if !self.others.is_empty()
                    && let Some(programs) = self.programs.as_mut()
                {
                    take_over_untracked(&mut programs.decisions, &self.settings)?;
                }
                let tables: Vec<_> = tables.iter().map(|(table, _)| table.clone()).collect();
                Ok(tables::install(&tables)?)
            }
            Op::DeleteTable { table } => Ok(tables::delete(table)?),
            Op::Attach { hook, link, .. } => {
                let Some(programs) = self.programs.as_mut() else {
                    return Ok(());
                };
                let mode = self.attach_mode;
                let mut patience = LINGERING / LINGERING_LOOK;
                loop {
                    match attach::attach(mode, programs, *hook, link, &self.settings) {
                        Err(error) if attach::lingers(&error) && patience > 0 => {
                            patience -= 1;
                            sleep(Duration::from_millis(LINGERING_LOOK.into())).await;
                        }
                        result => return Ok(result?),
                    }
                }
            }
            Op::AttachSocket { hook, .. } => {
                let (Some(programs), Some(root)) = (self.programs.as_mut(), &self.cgroup) else {
                    return Ok(());
                };
                Ok(cgroup::attach(programs, *hook, root, &self.settings)?)
            }
            Op::DetachSocket { hook } => Ok(cgroup::detach(*hook, &self.settings)?),
            Op::HandOver { services } => self.hand_over(services.as_deref()),
            Op::RemovePins { directory } => Ok(load::remove_pins(directory)?),
            Op::Guard { links, .. } => match self.programs.as_mut() {
                Some(programs) => Ok(programs.guard_links.set(links)?),
                None => Ok(()),
            },
            Op::RemoveXdp { index } => Ok(xdp::unpin(*index, &self.settings)?),
            Op::RemovePin { hook, index } => Ok(attach::unpin(*hook, *index, &self.settings)?),
            Op::RemoveFilter { filter, .. } => {
                Ok(attach::remove_filter(filter, &self.settings, handle).await?)
            }
        }
    }

    fn hand_over(&mut self, services: Option<&[Service]>) -> Result<(), Error> {
        let concerns =
            |service: &Service| services.is_none_or(|services| services.contains(service));
        if let Some(programs) = self.programs.as_mut() {
            return Ok(handover::hand_over(&mut programs.decisions, concerns)?);
        }
        match maps::Decisions::pinned(&self.settings) {
            Ok(Some(mut decisions)) => Ok(handover::hand_over(&mut decisions, concerns)?),
            Ok(None) => Ok(()),
            Err(error) if error.is_of_another_layout() => {
                warn!(
                    part = PART,
                    "translated connections cannot be handed over, and end: the map in {} has \
                     another layout",
                    self.settings.bpffs.display()
                );
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}
