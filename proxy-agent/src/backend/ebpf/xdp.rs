// SPDX-License-Identifier: Apache-2.0

//! The guard as an XDP program in front of the one in TC, on guarded links, with `--guard-mode=xdp`: as
//! pinned links (Linux 5.9), in the driver where that can, otherwise in the stack. A link that cannot
//! have it is guarded by TC alone, and that is told.

use std::collections::BTreeMap;
use std::path::PathBuf;

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{XdpLink, XdpMode};
use tracing::{info, warn};

use super::attach::{self, AttachError};
use super::load::Programs;
use super::plan::Target;
use super::{Ebpf, Error, PART, Settings};
use crate::config::GuardMode;
use crate::guard::carries_vlan;
use crate::kernel::bpffs;
use crate::link::{Link, LinkTable};
use crate::reconcile::report::chain;
use crate::reconcile::{Mode, Report, failed};
use crate::state::GuardedLink;

/// The directory of pinned links, each under its ifindex.
pub const PINS: &str = "xdp";
/// The name of the program.
pub const PROGRAM: &str = "vip_guard";

/// What became of the guarded links.
#[derive(Debug, Default)]
pub struct Front {
    /// Where it could not be attached, and why; with the program that was there.
    refused: BTreeMap<u32, (String, Option<u32>)>,
    /// Where it is attached: true if the driver runs it.
    native: BTreeMap<u32, bool>,
    /// Why links are guarded by TC alone.
    without: BTreeMap<u32, String>,
}

/// Where the links are pinned.
pub fn pins_dir(settings: &Settings) -> PathBuf {
    settings.bpffs.join(PINS)
}

fn pin_path(index: u32, settings: &Settings) -> PathBuf {
    pins_dir(settings).join(index.to_string())
}

/// The ids of the programs that pinned links hold, by ifindex.
///
/// # Errors
///
/// The kernel's answer.
pub fn pinned(settings: &Settings) -> Result<BTreeMap<u32, u32>, Error> {
    let mut found = BTreeMap::new();
    for name in bpffs::names(&pins_dir(settings))? {
        if let Ok(index) = name.parse() {
            let pin = PinnedLink::from_pin(pin_path(index, settings)).map_err(AttachError::from)?;
            let info = FdLink::from(pin).info().map_err(AttachError::from)?;
            found.insert(index, info.program_id());
        }
    }
    Ok(found)
}

/// The links with a pin, whatever it is of.
///
/// # Errors
///
/// If the directory could not be read.
pub fn pinned_links(settings: &Settings) -> Result<Vec<u32>, bpffs::Error> {
    let names = bpffs::names(&pins_dir(settings))?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}

/// Removes the pin of a link, which detaches its program.
pub fn unpin(index: u32, settings: &Settings) -> Result<(), AttachError> {
    Ok(bpffs::unpin(&pin_path(index, settings))?)
}

/// Attaches the loaded program; one of ours is replaced in place. True if the driver runs it; none if
/// it does what the one before did.
fn attach(
    programs: &mut Programs,
    link: &Target,
    settings: &Settings,
) -> Result<Option<bool>, AttachError> {
    let path = pin_path(link.index, settings);
    bpffs::create_dir(&pins_dir(settings))?;
    let program = programs.xdp();
    if path.exists() {
        let pinned: XdpLink = FdLink::from(PinnedLink::from_pin(&path)?).try_into()?;
        // Refused if what the link was attached to is gone: then a new one takes its place.
        if let Ok(updated) = program.attach_to_link(pinned) {
            // The pin keeps it attached; the descriptor is not needed.
            drop(program.take_link(updated)?);
            return Ok(None);
        }
        bpffs::unpin(&path)?;
    }
    let mut attach = |mode| -> Result<(), AttachError> {
        let id = program.attach_to_if_index(link.index, mode)?;
        // A link that can be pinned; what the kernel has before 5.9 goes with the descriptor.
        attach::pin(program.take_link(id)?.try_into()?, &path)
    };
    match attach(XdpMode::Driver) {
        Ok(()) => Ok(Some(true)),
        Err(_) => attach(XdpMode::Skb).map(|()| Some(false)),
    }
}

/// Why a link cannot have the program; none if it can. `ours`: the program there is ours.
fn obstacle(link: &Link, ours: bool, table: &LinkTable) -> Option<String> {
    if !link.ethernet {
        return Some("its packets have no Ethernet headers".to_owned());
    }
    // The hardware may have taken a tag off that XDP then does not see.
    if carries_vlan(link, table) {
        return Some("VLAN links sit on it".to_owned());
    }
    match link.xdp {
        Some(_) if !ours => Some("another XDP program is there".to_owned()),
        _ => None,
    }
}

impl Ebpf {
    /// Puts the XDP program on guarded links and takes it from others.
    pub(super) fn reconcile_xdp(&mut self, table: &LinkTable, mode: Mode, report: &mut Report) {
        let pinned = match pinned(&self.settings) {
            Ok(pinned) => pinned,
            Err(error) => return failed(PART, "read the pinned XDP links", &error, report),
        };
        let (wanted, without) = self.wanted_xdp(table, &pinned);
        for (index, why) in &without {
            if self.front.without.get(index) != Some(why) {
                let name = table.name_of(*index);
                warn!(part = PART, "link {name} is guarded by TC alone: {why}");
            }
        }
        self.front.without = without;
        self.front
            .native
            .retain(|index, _| wanted.contains_key(index));
        for index in pinned.keys().filter(|index| !wanted.contains_key(index)) {
            let what = format!("remove the pinned link of {PROGRAM}, ifindex {index}");
            let done = match mode {
                Mode::Apply => unpin(*index, &self.settings),
                Mode::DryRun => Ok(()),
            };
            tell(what, done, mode, report);
        }
        let id = self.xdp_id();
        for (index, name) in wanted {
            let found = table.by_index(index).and_then(|link| link.xdp);
            let reason = match (found, pinned.get(&index)) {
                (Some(found), Some(_)) if Some(found.program) == id => {
                    self.front.native.insert(index, found.native);
                    continue;
                }
                (_, Some(_)) => "an older program is attached",
                (_, None) => "it is not attached",
            };
            let link = Target { index, name };
            let what = format!("attach {PROGRAM} to link {link} by XDP: {reason}");
            let (Mode::Apply, Some(programs)) = (mode, self.programs.as_mut()) else {
                report.changed(PART, what);
                continue;
            };
            match attach(programs, &link, &self.settings) {
                Ok(native) => {
                    let native = native.or(found.map(|found| found.native));
                    self.front.native.insert(index, native.unwrap_or(false));
                    tell(what, Ok(()), mode, report);
                }
                Err(error) => {
                    let why = chain(&error);
                    warn!(part = PART, "link {link} is guarded by TC alone: {why}");
                    self.front.without.insert(index, why.clone());
                    let there = found.map(|found| found.program);
                    self.front.refused.insert(index, (why, there));
                }
            }
        }
    }

    /// The guarded links that are to have the program, and why others are not.
    fn wanted_xdp(
        &mut self,
        table: &LinkTable,
        pinned: &BTreeMap<u32, u32>,
    ) -> (BTreeMap<u32, String>, BTreeMap<u32, String>) {
        let (mut wanted, mut without) = (BTreeMap::new(), BTreeMap::new());
        if self.settings.guard_mode != GuardMode::Xdp {
            return (wanted, without);
        }
        let loaded = self.programs.as_ref().and_then(Programs::xdp_id);
        let unloaded = match loaded {
            Some(Err(why)) => Some(why.clone()),
            _ => None,
        };
        for (index, name) in &self.links.guarded {
            let Some(link) = table.by_index(*index) else {
                continue;
            };
            let there = link.xdp.map(|xdp| xdp.program);
            // Tried again when something has changed there.
            self.front
                .refused
                .retain(|of, (_, before)| of != index || *before == there);
            let ours = pinned.get(index).is_some_and(|id| Some(*id) == there);
            let refused = self.front.refused.get(index).map(|(why, _)| why.clone());
            let why = unloaded.clone().or(obstacle(link, ours, table)).or(refused);
            match why {
                Some(why) => without.insert(*index, why),
                None => wanted.insert(*index, name.clone()),
            };
        }
        (wanted, without)
    }

    fn xdp_id(&self) -> Option<u32> {
        match &self.programs {
            Some(programs) => programs.xdp_id()?.as_ref().ok().copied(),
            None => self.known.get(PROGRAM).copied(),
        }
    }

    /// The guarded links, and by what.
    pub fn guarded(&self) -> Vec<GuardedLink> {
        let links = self.links.guarded.iter();
        let how = |index: &u32| match (self.front.native.get(index), self.front.without.get(index))
        {
            (Some(true), _) => "xdp, native, and tc".to_owned(),
            (Some(false), _) => "xdp, generic, and tc".to_owned(),
            (None, Some(why)) => format!("tc ({why})"),
            (None, None) => "tc".to_owned(),
        };
        links
            .map(|(index, name)| GuardedLink {
                link: name.clone(),
                how: how(index),
            })
            .collect()
    }
}

/// Records and logs what became of a change.
fn tell(what: String, done: Result<(), AttachError>, mode: Mode, report: &mut Report) {
    match done {
        Ok(()) => {
            if mode == Mode::Apply {
                info!(part = PART, "{what}");
            }
            report.changed(PART, &what);
            report.mark_routine(PART, &[what]);
        }
        Err(error) => failed(PART, what, &error, report),
    }
}
