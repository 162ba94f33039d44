// SPDX-License-Identifier: Apache-2.0

//! Carries out the operations of a plan.

use std::time::Duration;

use rtnetlink::Handle;
use tokio::time::sleep;

use super::plan::Op;
use super::{Ebpf, Error, attach, pins, routes, sockets, xdp};
use crate::backend::decisions;

/// How long the kernel may take to detach a link whose pin was removed, and the interval of retries, both in milliseconds.
const LINGERING: u16 = 500;
const LINGERING_LOOK: u16 = 10;

impl Ebpf {
    /// Carries out one operation.
    pub(super) async fn apply(&mut self, op: &Op, handle: &Handle) -> Result<(), Error> {
        match op {
            Op::PinMap { map, .. } => match &self.programs {
                Some(programs) => Ok(programs.pin_map(map, &self.config)?),
                None => Ok(()),
            },
            Op::Tables(op) => {
                let known = &self.of_proxy;
                Ok(decisions::apply(&self.config, self.is_first, known, op)?)
            }
            Op::Attach {
                hook, link, mode, ..
            } => {
                let Some(programs) = self.programs.as_mut() else {
                    return Ok(());
                };
                let mut patience = LINGERING / LINGERING_LOOK;
                loop {
                    match attach::attach(*mode, programs, *hook, link, &self.config) {
                        Err(error) if attach::lingers(&error) && patience > 0 => {
                            patience -= 1;
                            sleep(Duration::from_millis(LINGERING_LOOK.into())).await;
                        }
                        result => return Ok(result?),
                    }
                }
            }
            Op::AttachSocket { hook, .. } => {
                let Some(programs) = self.programs.as_mut() else {
                    return Ok(());
                };
                let root = self.cgroup.as_deref();
                Ok(sockets::attach(programs, *hook, root, &self.config)?)
            }
            Op::DetachSocket { hook } => Ok(sockets::detach(*hook, &self.config)?),
            Op::AddRoute {
                address, source, ..
            } => routes::add(handle, *address, *source)
                .await
                .map_err(Error::Route),
            Op::RemoveRoute { address } => {
                routes::remove(handle, *address).await.map_err(Error::Route)
            }
            Op::RemovePins { directory } => Ok(pins::remove(directory)?),
            Op::Guard { links, .. } => match self.programs.as_mut() {
                Some(programs) => Ok(programs.guard_links.set(links)?),
                None => Ok(()),
            },
            Op::RemoveXdp { index } => Ok(xdp::unpin(*index, &self.config)?),
            Op::RemovePin { hook, index } => Ok(attach::unpin(*hook, *index, &self.config)?),
            Op::RemoveFilter { filter, .. } => {
                Ok(attach::remove_filter(filter, &self.config, handle).await?)
            }
        }
    }
}
