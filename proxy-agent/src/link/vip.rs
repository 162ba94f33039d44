// SPDX-License-Identifier: Apache-2.0

//! The state of a VIP, for status, metrics and health.

use std::net::IpAddr;

use serde::Serialize;

use super::table::LinkTable;

/// A VIP as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Vip {
    /// The VIP.
    pub ip: IpAddr,
    /// The link that should carry it.
    pub link: String,
    /// That link was set up.
    pub link_up: bool,
    /// It is on that link, and can be used.
    pub present: bool,
    /// Other links that carry it too.
    pub elsewhere: Vec<String>,
}

impl Vip {
    /// Where it is and whether it works, in words.
    pub fn state(&self) -> String {
        let state = match (self.present, self.link_up) {
            (true, true) => "up",
            (true, false) => "there, but its link is down",
            (false, _) => "missing",
        };
        if self.elsewhere.is_empty() {
            return state.to_owned();
        }
        format!("{state}; also on {}", self.elsewhere.join(", "))
    }
}

impl LinkTable {
    /// Where each of `vips` is and whether it works; `interface` should carry them all.
    pub fn vips(&self, vips: &[IpAddr], interface: &str) -> Vec<Vip> {
        let target = self.by_name(interface);
        let vip = |ip| {
            let copies = || self.addresses.iter().filter(move |copy| copy.ip == ip);
            let is_here = |index| target.is_some_and(|target| target.index == index);
            Vip {
                ip,
                link: interface.to_owned(),
                link_up: target.is_some_and(|target| target.up),
                present: copies().any(|copy| is_here(copy.index) && !copy.unusable),
                elsewhere: copies()
                    .filter(|copy| !is_here(copy.index))
                    .map(|copy| self.name_of(copy.index))
                    .collect(),
            }
        };
        vips.iter().copied().map(vip).collect()
    }
}
