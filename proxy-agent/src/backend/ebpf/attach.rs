// SPDX-License-Identifier: Apache-2.0

//! Attaches programs to links: as pinned tcx links (Linux 6.6), or as filters on the clsact qdisc.
//!
//! At ingress ours goes in front of other programs of a link, because it must see packets before
//! any NAT; at egress behind them, where packets are as they will leave. It never ends the chain:
//! others see every packet as if it were not there.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aya::pin::PinError;
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact,
};
use aya::programs::{LinkOrder, ProgramError};
use rtnetlink::Handle;

use super::Settings;
use super::hook::Hook;
use super::load::Programs;
use super::plan::Target;
use super::qdisc;
use crate::config::TcAttach;
use crate::instance::Instance;
use crate::kernel::{bpf, bpffs, features};
use crate::link::dump::DumpError;

/// The handle of the default instance's filters.
const FILTER_HANDLE: u32 = u32::from_be_bytes(*b"\0pxa");
/// Handles of filters have 24 bits here: a hash of the name.
const HANDLE_MASK: u32 = 0x00ff_ffff;
/// Priorities that are tried in turn, the first comes first on the link. Another classifier may
/// own one of them.
const PRIORITIES: std::ops::RangeInclusive<u16> = 1..=8;
/// `lo` is the first link of every network namespace.
const LOOPBACK: u32 = 1;
/// How programs are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachMode {
    /// BPF links of the tcx hook.
    Tcx,
    /// Filters on the clsact qdisc.
    Clsact,
}

/// A filter of ours as it is on a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// In which direction.
    pub hook: Hook,
    /// The link.
    pub link: Target,
    /// Its priority.
    pub priority: u16,
    /// Id of its program.
    pub program: u32,
}

/// Why a program could not be attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The kernel refused.
    #[error("the kernel refused the program")]
    Program(#[from] ProgramError),
    /// The kernel refused a trial.
    #[error("the kernel refused the program")]
    Refused(#[source] io::Error),
    /// Tcx was asked for.
    #[error(
        "this kernel has no tcx, which is in Linux 6.6 and newer; --tc-attach=auto takes what it has"
    )]
    NoTcx(#[source] io::Error),
    /// The kernel refused the qdisc or the filter.
    #[error("the kernel refused the clsact qdisc")]
    Qdisc(#[source] TcError),
    /// A pinned link could not be opened.
    #[error("cannot use the pinned link")]
    Link(#[from] LinkError),
    /// A link could not be pinned.
    #[error("cannot pin the link")]
    Pin(#[from] PinError),
    /// A pin or a note could not be changed.
    #[error("cannot change {path}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A pin could not be removed.
    #[error(transparent)]
    Bpffs(#[from] bpffs::Error),
    /// rtnetlink refused.
    #[error("the kernel refused to remove the clsact qdisc")]
    Route(#[source] rtnetlink::Error),
    /// The filters on a qdisc could not be read to their end: it stays.
    #[error("cannot read what is attached to the clsact qdisc; it stays")]
    Filters(#[from] DumpError),
    /// Every priority is taken.
    #[error(
        "priorities {first} to {last} of the link's ingress are all taken by other classifiers",
        first = PRIORITIES.start(), last = PRIORITIES.end()
    )]
    NoPriority,
}

/// How long a new link is left to others that put a qdisc on it: the bandwidth plugin adds `ingress` while a
/// pod is set up, and fails where a clsact is there already.
const SETTLE: Duration = Duration::from_secs(2);

/// When links were first seen.
#[derive(Debug, Default)]
pub struct Young {
    /// Since the first look; those that were there then are old.
    seen: Option<BTreeMap<u32, Instant>>,
}

impl Young {
    /// Takes links away that are too young, but for those that have to be guarded; returns when the next one
    /// will be old enough.
    pub fn hold_back(
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

impl AttachMode {
    /// The mode asked for, or the best this kernel has.
    ///
    /// # Errors
    ///
    /// If tcx is asked for by name and this kernel does not have it.
    pub fn choose(wanted: TcAttach) -> Result<Self, AttachError> {
        if wanted == TcAttach::Clsact {
            return Ok(Self::Clsact);
        }
        // The query is refused by a kernel that does not know the hook. Want of memory is no such answer:
        // what is attached next tells.
        match bpf::attached(LOOPBACK, bpf::TCX_INGRESS) {
            Err(answer) if !features::may_come(&answer) => match wanted {
                TcAttach::Tcx => Err(AttachError::NoTcx(answer)),
                TcAttach::Auto | TcAttach::Clsact => Ok(Self::Clsact),
            },
            _ => Ok(Self::Tcx),
        }
    }
}

/// The handle of an instance's filters. Together with the program's name it tells them from others'.
/// Two instances may have the same one: see [`crate::claims`].
pub fn filter_handle(instance: Instance) -> u32 {
    if instance == Instance::default() {
        return FILTER_HANDLE;
    }
    // FNV-1a: it must be the same in every version.
    let hash = instance.name().bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    match (hash ^ (hash >> 24)) & HANDLE_MASK {
        // The kernel chooses one itself where zero is asked for.
        0 => HANDLE_MASK,
        FILTER_HANDLE => FILTER_HANDLE + 1,
        handle => handle,
    }
}

/// Where tcx links are pinned, each under its ifindex.
pub fn links_dir(hook: Hook, settings: &Settings) -> PathBuf {
    settings.bpffs.join(hook.pins())
}

fn pin_path(hook: Hook, index: u32, settings: &Settings) -> PathBuf {
    links_dir(hook, settings).join(index.to_string())
}

/// Pins a link, in the place of an older one at once: the one is attached until the other is.
pub fn pin(link: FdLink, path: &Path) -> Result<(), AttachError> {
    bpffs::replace(path, |fresh| Ok(link.pin(fresh).map(drop)?))
}

/// Whether any link is pinned.
pub fn any_pins(settings: &Settings) -> bool {
    let pins = bpffs::names(&links_dir(Hook::Ingress, settings));
    pins.is_ok_and(|names| !names.is_empty())
}

/// Attaches the loaded program to a link. One that is there from us is replaced in place.
pub fn attach(
    mode: AttachMode,
    programs: &mut Programs,
    hook: Hook,
    link: &Target,
    settings: &Settings,
) -> Result<(), AttachError> {
    match mode {
        AttachMode::Tcx => attach_tcx(programs, hook, link, settings),
        AttachMode::Clsact => attach_clsact(programs, hook, link, settings),
    }
}

/// Tries to attach a program by tcx. No link is touched: each time a program comes and each time it goes
/// takes an RCU grace period.
pub fn try_tcx(programs: &mut Programs) -> Result<(), AttachError> {
    let program = programs.classifier(Hook::Ingress);
    bpf::attach_nowhere(program.fd()?.as_fd()).map_err(AttachError::Refused)
}

/// Attaches a program as a filter to a link that is there for this only, and detaches it again.
pub fn try_clsact(programs: &mut Programs, link: &str) -> Result<(), AttachError> {
    let hook = Hook::Ingress;
    let program = programs.classifier(hook);
    qdisc_add_clsact(link).map_err(AttachError::Qdisc)?;
    let options = TcAttachOptions::Netlink(NlOptions::default());
    let id = program.attach_with_options(link, hook.attach_type(), options)?;
    Ok(program.detach(id)?)
}

/// Removes the pin of a link, which detaches its program.
pub fn unpin(hook: Hook, index: u32, settings: &Settings) -> Result<(), AttachError> {
    Ok(bpffs::unpin(&pin_path(hook, index, settings))?)
}

/// Whether the program is still attached by a link whose pin somebody has removed: the kernel takes
/// such a link away a moment later.
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
    settings: &Settings,
) -> Result<(), AttachError> {
    let path = pin_path(hook, link.index, settings);
    // Somebody may have taken the directory away.
    bpffs::create_dir(&links_dir(hook, settings))?;
    let program = programs.classifier(hook);
    let id = program.info()?.id();
    if path.exists() {
        let pinned: SchedClassifierLink = FdLink::from(PinnedLink::from_pin(&path)?).try_into()?;
        // Refused if what the link was attached to is gone: then a new one takes its place.
        if let Ok(updated) = program.attach_to_link(pinned) {
            // The pin keeps it attached; the descriptor is not needed.
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
    settings: &Settings,
) -> Result<(), AttachError> {
    qdisc::ensure(link, settings)?;
    let program = programs.classifier(hook);
    for priority in PRIORITIES {
        let options = |priority| NlOptions {
            priority,
            handle: TcHandle::from(filter_handle(settings.instance)),
            classid: None,
        };
        let created = program.attach_with_options(
            &link.name,
            hook.attach_type(),
            TcAttachOptions::Netlink(options(priority)),
        );
        let attached = match created {
            Err(error) if refused_with(&error, libc::EEXIST) => {
                // Ours, with an older program: replaced in place.
                program.attach_to_link(existing_filter(hook, &link.name, priority, settings)?)?
            }
            // Another kind of classifier has this priority.
            Err(error) if refused_with(&error, libc::EINVAL) => continue,
            result => result?,
        };
        // Dropping it would remove the filter, which must outlive the agent.
        std::mem::forget(program.take_link(attached)?);
        return Ok(());
    }
    Err(AttachError::NoPriority)
}

/// Our filter on a link, as aya knows it. Dropping it removes the filter.
fn existing_filter(
    hook: Hook,
    link: &str,
    priority: u16,
    settings: &Settings,
) -> Result<SchedClassifierLink, AttachError> {
    SchedClassifierLink::attached(
        link,
        hook.attach_type(),
        priority,
        TcHandle::from(filter_handle(settings.instance)),
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

/// Removes our filter, and the clsact qdisc if it is ours and nothing is left on it.
pub async fn remove_filter(
    filter: &Filter,
    settings: &Settings,
    handle: &Handle,
) -> Result<(), AttachError> {
    let attached = existing_filter(filter.hook, &filter.link.name, filter.priority, settings)?;
    aya::programs::links::Link::detach(attached)?;
    qdisc::remove_unused(filter.link.index, settings, handle).await
}

impl Display for AttachMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::instance;

    proptest! {
        #[test]
        fn only_the_default_has_its_handle(instance in instance::any_instance()) {
            let handle = filter_handle(instance);
            prop_assert!(handle != 0 && handle <= HANDLE_MASK);
            prop_assert_eq!(handle == FILTER_HANDLE, instance == Instance::default());
        }
    }

    #[test]
    fn handles_are_the_same_in_every_version() {
        let handle = |name: &str| filter_handle(name.parse().unwrap());
        assert_eq!(handle(""), 0x0070_7861);
        assert_eq!(handle("b"), 0x000c_2d02);
    }
}
