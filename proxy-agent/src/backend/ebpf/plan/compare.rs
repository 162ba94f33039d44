// SPDX-License-Identifier: Apache-2.0

//! Compares the observed with the desired state, and determines which links are deferred. Pure.

use std::collections::BTreeSet;

use super::super::attachment::AttachMode;
use super::super::desired::Desired;
use super::super::hook::{Hook, SocketHook};
use super::super::observe::Observed;

impl Observed {
    /// The reason to attach the desired program to a link in this mode; none if it is attached.
    pub fn attachment_fault(
        &self,
        mode: AttachMode,
        hook: Hook,
        index: u32,
        desired: &Desired,
    ) -> Option<&'static str> {
        match mode {
            AttachMode::Tcx => match self.by_tcx(hook, index, desired)? {
                (true, true) => None,
                (true, false) => Some("its pin is missing"),
                (false, true) => Some(OLDER),
                (false, false) => Some(MISSING),
            },
            AttachMode::Clsact => {
                let filter = self.filters.get(&(hook, index));
                fault(filter.map(|filter| filter.program), desired.program(hook))
            }
        }
    }

    /// Whether the desired program is attached to a link by tcx, and whether a link of the agent is pinned for it; none if that could
    /// not be read.
    pub fn by_tcx(&self, hook: Hook, index: u32, desired: &Desired) -> Option<(bool, bool)> {
        let programs = self.programs.get(&(hook, index))?;
        let wanted = desired.program(hook);
        let is_attached = wanted.is_some_and(|id| programs.contains(&id));
        Some((is_attached, self.pins.contains(&(hook, index))))
    }

    /// The reason to pin the desired map; none if it is pinned.
    pub fn map_fault(&self, name: &str, desired: &Desired) -> Option<&'static str> {
        let wanted = desired.maps.get(name)?;
        match (self.maps.get(name)?, wanted) {
            (None, _) => Some("its pin is missing"),
            (Some(pinned), Some(wanted)) if pinned != wanted => Some("another map is pinned there"),
            (Some(_), _) => None,
        }
    }

    /// The reason to attach the desired program to its hook of sockets; none if it is attached.
    pub fn socket_fault(&self, hook: SocketHook, desired: &Desired) -> Option<&'static str> {
        let wanted = desired.sockets.get(&hook).copied().flatten();
        fault(self.sockets.get(&hook).copied(), wanted)
    }
}

const MISSING: &str = "it is not attached";
const OLDER: &str = "an older program is attached";

fn fault(attached: Option<u32>, wanted: Option<u32>) -> Option<&'static str> {
    match attached {
        None => Some(MISSING),
        Some(_) if attached == wanted => None,
        Some(_) => Some(OLDER),
    }
}

/// The links that a later pass handles; until then they have a filter instead of their tcx program. Guarded links are never
/// deferred.
pub fn waiting(desired: &Desired, observed: &Observed) -> BTreeSet<u32> {
    let Some(pace) = desired.pace else {
        return BTreeSet::new();
    };
    let is_missing =
        |hook: &Hook, index| observed.by_tcx(*hook, index, desired) == Some((false, false));
    let has_filter = |index| {
        Hook::ALL
            .iter()
            .any(|hook| observed.filters.contains_key(&(*hook, index)))
    };
    let unguarded = desired.links.keys().copied();
    unguarded
        .filter(|index| !desired.guarded.contains_key(index))
        .filter(|index| pace.is_first || has_filter(*index))
        .filter(|index| desired.hooks.keys().any(|hook| is_missing(hook, *index)))
        .skip(pace.at_once)
        .collect()
}
