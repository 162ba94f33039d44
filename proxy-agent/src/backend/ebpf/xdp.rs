// SPDX-License-Identifier: Apache-2.0

//! The guard as an XDP program before the TC program, on guarded links, with `--guard-mode=xdp`: by pinned links (Linux 5.9), in
//! driver mode if supported, else in generic mode. A link that cannot have it is guarded by TC alone, which is logged.

use std::collections::BTreeMap;
use std::path::PathBuf;

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{XdpLink, XdpMode};
use proxy_kernel::bpffs;
use proxy_netlink::route::Link;
use tracing::{info, warn};

use super::attachment::AttachError;
use super::hook::{Target, XDP_PROGRAM};
use super::load::Programs;
use super::pins::{self, xdp_dir};
use super::{Ebpf, Error, PART};
use crate::config::{Config, GuardMode};
use crate::guard::carries_vlan;
use crate::link::LinkTable;
use crate::reconcile::report::chain;
use crate::reconcile::{Mode, Report};
use crate::state::GuardedLink;

/// State of the guarded links.
#[derive(Debug, Default)]
pub struct Front {
    /// Links whose attachment failed, with the reason and the program that was attached.
    refused: BTreeMap<u32, (String, Option<u32>)>,
    /// Links with the program: true in driver mode.
    native: BTreeMap<u32, bool>,
    /// Why links are guarded by TC alone.
    without: BTreeMap<u32, String>,
}

fn pin_path(index: u32, config: &Config) -> PathBuf {
    xdp_dir(config).join(index.to_string())
}

/// The ids of the programs that pinned links hold, by ifindex.
///
/// # Errors
///
/// The kernel's answer.
pub fn pinned(config: &Config) -> Result<BTreeMap<u32, u32>, Error> {
    let mut found = BTreeMap::new();
    for name in bpffs::names(&xdp_dir(config))? {
        if let Ok(index) = name.parse() {
            let pin = PinnedLink::from_pin(pin_path(index, config)).map_err(AttachError::from)?;
            let info = FdLink::from(pin).info().map_err(AttachError::from)?;
            found.insert(index, info.program_id());
        }
    }
    Ok(found)
}

/// The links with a pin of any program.
///
/// # Errors
///
/// If the directory could not be read.
pub fn pinned_links(config: &Config) -> Result<Vec<u32>, bpffs::Error> {
    let names = bpffs::names(&xdp_dir(config))?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}

/// Removes the pin of a link, which detaches its program.
pub fn unpin(index: u32, config: &Config) -> Result<(), AttachError> {
    Ok(bpffs::unpin(&pin_path(index, config))?)
}

/// Attaches the loaded program; an older one is replaced atomically. Returns true for driver mode, false for generic mode; none if
/// the mode of the replaced program is kept.
fn attach(
    programs: &mut Programs,
    link: &Target,
    config: &Config,
) -> Result<Option<bool>, AttachError> {
    let path = pin_path(link.index, config);
    bpffs::create_dir(&xdp_dir(config))?;
    let program = programs.xdp();
    if path.exists() {
        let pinned: XdpLink = FdLink::from(PinnedLink::from_pin(&path)?).try_into()?;
        // Fails if the hook that the link was attached to is gone; a new link is created then.
        if let Ok(updated) = program.attach_to_link(pinned) {
            // The pin keeps it attached.
            drop(program.take_link(updated)?);
            return Ok(None);
        }
        bpffs::unpin(&path)?;
    }
    let mut attach = |mode| -> Result<(), AttachError> {
        let id = program.attach_to_if_index(link.index, mode)?;
        // Fails before Linux 5.9, where an attachment has no link that could be pinned and ends with the descriptor.
        pins::pin(program.take_link(id)?.try_into()?, &path)
    };
    match attach(XdpMode::Driver) {
        Ok(()) => Ok(Some(true)),
        Err(_) => attach(XdpMode::Skb).map(|()| Some(false)),
    }
}

/// Why a link cannot have the program; none if it can. `ours`: the attached program is the agent's.
fn obstacle(link: &Link, ours: bool, table: &LinkTable) -> Option<String> {
    if !link.ethernet {
        return Some("its packets have no Ethernet headers".to_owned());
    }
    // The hardware may remove the VLAN tag before XDP sees the packet.
    if carries_vlan(link, table) {
        return Some("VLAN links are on top of it".to_owned());
    }
    match link.xdp {
        Some(_) if !ours => Some("another XDP program is attached".to_owned()),
        _ => None,
    }
}

impl Ebpf {
    /// Attaches the XDP program to guarded links and detaches it from others.
    pub(super) fn reconcile_xdp(&mut self, table: &LinkTable, mode: Mode, report: &mut Report) {
        let pinned = pinned(&self.config);
        let Some(pinned) = report.attempt(PART, "read the pinned XDP links", pinned) else {
            return;
        };
        let (wanted, without) = self.wanted_xdp(table, &pinned);
        for (index, why) in &without {
            if self.front.without.get(index) != Some(why) {
                let name = table.name_of(*index);
                warn!(
                    part = PART.name(),
                    "link {name} is guarded by TC alone: {why}"
                );
            }
        }
        self.front.without = without;
        self.front
            .native
            .retain(|index, _| wanted.contains_key(index));
        for index in pinned.keys().filter(|index| !wanted.contains_key(index)) {
            let what = format!("remove the pinned link of {XDP_PROGRAM}, ifindex {index}");
            let done = match mode {
                Mode::Apply => unpin(*index, &self.config),
                Mode::DryRun => Ok(()),
            };
            report_change(what, done, mode, report);
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
            let what = format!("attach {XDP_PROGRAM} to link {link} by XDP: {reason}");
            let (Mode::Apply, Some(programs)) = (mode, self.programs.as_mut()) else {
                report.changed(PART, what);
                continue;
            };
            match attach(programs, &link, &self.config) {
                Ok(native) => {
                    let native = native.or(found.map(|found| found.native));
                    self.front.native.insert(index, native.unwrap_or(false));
                    report_change(what, Ok(()), mode, report);
                }
                Err(error) => {
                    let why = chain(&error);
                    warn!(
                        part = PART.name(),
                        "link {link} is guarded by TC alone: {why}"
                    );
                    self.front.without.insert(index, why.clone());
                    let there = found.map(|found| found.program);
                    self.front.refused.insert(index, (why, there));
                }
            }
        }
    }

    /// The guarded links that should have the program, and the reasons why others cannot.
    fn wanted_xdp(
        &mut self,
        table: &LinkTable,
        pinned: &BTreeMap<u32, u32>,
    ) -> (BTreeMap<u32, String>, BTreeMap<u32, String>) {
        let (mut wanted, mut without) = (BTreeMap::new(), BTreeMap::new());
        if self.config.guard_mode != GuardMode::Xdp {
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
            // A failed attachment is retried when the attached program has changed.
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
            None => self.known.get(XDP_PROGRAM).copied(),
        }
    }

    /// The guarded links with their mechanisms.
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

/// Records and logs the result of an operation.
fn report_change(what: String, done: Result<(), AttachError>, mode: Mode, report: &mut Report) {
    if report.attempt(PART, &what, done).is_none() {
        return;
    }
    if mode == Mode::Apply {
        info!(part = PART.name(), "{what}");
    }
    report.changed(PART, &what);
    report.mark_routine(PART, &[what]);
}
