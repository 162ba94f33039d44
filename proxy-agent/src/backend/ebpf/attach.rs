// SPDX-License-Identifier: Apache-2.0

//! Attaches programs to links: by pinned tcx links (Linux 6.6), or as filters on the clsact qdisc.
//!
//! At ingress the agent's program is first on a link, because it must see packets before any NAT; at egress it is last, where
//! packets are as they will be sent. It never ends the chain, so other programs see every packet.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact,
};
use aya::programs::{LinkOrder, ProgramError};
use proxy_kernel::{bpf, bpffs};
use rtnetlink::Handle;

use super::attachment::{AttachError, AttachMode, Filter, PRIORITIES, filter_handle};
use super::hook::{Hook, Target};
use super::load::Programs;
use super::pins::{links_dir, pin};
use super::qdisc;
use crate::config::Config;

/// Delay before a clsact qdisc is added to a new link: the bandwidth plugin adds an `ingress` qdisc while a pod is set up, which
/// fails if there is a clsact.
const SETTLE: Duration = Duration::from_secs(2);

/// Age of links.
#[derive(Debug, Default)]
pub struct LinkAges {
    /// When each link was seen first; links of the first observation count as old.
    seen: Option<BTreeMap<u32, Instant>>,
}

impl LinkAges {
    /// Removes links that are too ages from `links`, except guarded ones; returns the delay until the next one is old enough.
    pub fn defer_new(
        &mut self,
        links: &mut BTreeMap<u32, String>,
        guarded: &BTreeMap<u32, String>,
    ) -> Option<Duration> {
        let now = Instant::now();
        let Some(seen) = self.seen.as_mut() else {
            let old = now.checked_sub(SETTLE).unwrap_or(now);
            self.seen = Some(links.keys().map(|index| (*index, old)).collect());
            return None;
        };
        seen.retain(|index, _| links.contains_key(index));
        let mut wait = None;
        links.retain(|index, _| {
            let since = *seen.entry(*index).or_insert(now);
            let left = SETTLE.saturating_sub(now - since);
            if left.is_zero() || guarded.contains_key(index) {
                return true;
            }
            wait = Some(wait.map_or(left, |wait: Duration| wait.min(left)));
            false
        });
        wait
    }
}

fn pin_path(hook: Hook, index: u32, config: &Config) -> PathBuf {
    links_dir(hook, config).join(index.to_string())
}

/// Whether any tcx link is pinned.
pub fn any_pins(config: &Config) -> bool {
    let pins = bpffs::names(&links_dir(Hook::Ingress, config));
    pins.is_ok_and(|names| !names.is_empty())
}

/// Attaches the loaded program to a link. An older program of the agent is replaced atomically.
pub fn attach(
    mode: AttachMode,
    programs: &mut Programs,
    hook: Hook,
    link: &Target,
    config: &Config,
) -> Result<(), AttachError> {
    match mode {
        AttachMode::Tcx => attach_tcx(programs, hook, link, config),
        AttachMode::Clsact => attach_clsact(programs, hook, link, config),
    }
}

/// Checks that a program can be attached by tcx. It uses no real link, because each attachment and detachment takes an RCU grace
/// period.
pub fn try_tcx(programs: &mut Programs) -> Result<(), AttachError> {
    let program = programs.classifier(Hook::Ingress);
    bpf::attach_nowhere(program.fd()?.as_fd()).map_err(AttachError::Refused)
}

/// Attaches a program as a filter to a temporary link, and detaches it again.
pub fn try_clsact(programs: &mut Programs, link: &str) -> Result<(), AttachError> {
    let hook = Hook::Ingress;
    let program = programs.classifier(hook);
    qdisc_add_clsact(link).map_err(AttachError::Qdisc)?;
    let options = TcAttachOptions::Netlink(NlOptions::default());
    let id = program.attach_with_options(link, hook.attach_type(), options)?;
    Ok(program.detach(id)?)
}

/// Removes the pin of a link, which detaches its program.
pub fn unpin(hook: Hook, index: u32, config: &Config) -> Result<(), AttachError> {
    Ok(bpffs::unpin(&pin_path(hook, index, config))?)
}

/// Whether the program is still attached by a link whose pin was removed: the kernel detaches such a link asynchronously.
pub fn lingers(error: &AttachError) -> bool {
    matches!(
        error,
        AttachError::Program(ProgramError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::EEXIST)
    )
}

fn attach_tcx(
    programs: &mut Programs,
    hook: Hook,
    link: &Target,
    config: &Config,
) -> Result<(), AttachError> {
    let path = pin_path(hook, link.index, config);
    // Others may have removed the directory.
    bpffs::create_dir(&links_dir(hook, config))?;
    let program = programs.classifier(hook);
    let id = program.info()?.id();
    if path.exists() {
        let pinned: SchedClassifierLink = FdLink::from(PinnedLink::from_pin(&path)?).try_into()?;
        // Fails if the hook that the link was attached to is gone; a new link is created then.
        if let Ok(updated) = program.attach_to_link(pinned) {
            // The pin keeps it attached.
            drop(program.take_link(updated)?);
            let attached = bpf::attached(link.index, hook.tcx_type());
            if attached.is_ok_and(|attached| attached.contains(&id)) {
                return Ok(());
            }
        }
    }
    let order = match hook {
        Hook::Ingress => LinkOrder::first(),
        Hook::Egress => LinkOrder::last(),
    };
    let id = program.attach_with_options(
        &link.name,
        hook.attach_type(),
        TcAttachOptions::TcxOrder(order),
    )?;
    pin(program.take_link(id)?.try_into()?, &path)
}

fn attach_clsact(
    programs: &mut Programs,
    hook: Hook,
    link: &Target,
    config: &Config,
) -> Result<(), AttachError> {
    qdisc::ensure(link, config)?;
    let program = programs.classifier(hook);
    for priority in PRIORITIES {
        let options = |priority| NlOptions {
            priority,
            handle: TcHandle::from(filter_handle(config.instance)),
            classid: None,
        };
        let created = program.attach_with_options(
            &link.name,
            hook.attach_type(),
            TcAttachOptions::Netlink(options(priority)),
        );
        let attached = match created {
            Err(error) if refused_with(&error, libc::EEXIST) => {
                // An older filter of the agent: its program is replaced atomically.
                program.attach_to_link(existing_filter(hook, &link.name, priority, config)?)?
            }
            // Another kind of classifier uses this priority.
            Err(error) if refused_with(&error, libc::EINVAL) => continue,
            result => result?,
        };
        // Dropping it would remove the filter, which must outlive the process.
        std::mem::forget(program.take_link(attached)?);
        return Ok(());
    }
    Err(AttachError::NoPriority)
}

/// The agent's filter on a link as a link of aya. Dropping it removes the filter.
fn existing_filter(
    hook: Hook,
    link: &str,
    priority: u16,
    config: &Config,
) -> Result<SchedClassifierLink, AttachError> {
    SchedClassifierLink::attached(
        link,
        hook.attach_type(),
        priority,
        TcHandle::from(filter_handle(config.instance)),
        None,
    )
    .map_err(|error| AttachError::Qdisc(TcError::IoError(error)))
}

fn refused_with(error: &ProgramError, errno: i32) -> bool {
    matches!(
        error,
        ProgramError::TcError(TcError::NetlinkError(answer)) | ProgramError::NetlinkError(answer)
            if answer.raw_os_error() == Some(errno)
    )
}

/// Removes the agent's filter, and the clsact qdisc if the agent has created it and it is unused.
pub async fn remove_filter(
    filter: &Filter,
    config: &Config,
    handle: &Handle,
) -> Result<(), AttachError> {
    let attached = existing_filter(filter.hook, &filter.link.name, filter.priority, config)?;
    aya::programs::links::Link::detach(attached)?;
    qdisc::remove_unused(filter.link.index, config, handle).await
}
