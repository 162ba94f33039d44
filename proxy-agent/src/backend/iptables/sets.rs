// SPDX-License-Identifier: Apache-2.0

//! The sets that remember clients: what they are, and what ipset says is there. What the rules do
//! with them is in `rules/kind.rs`; `sets/program.rs` runs ipset.
//!
//! Ownership lives here: whose a set is, its name says.

mod plan;
mod program;
#[cfg(test)]
mod tests;

use std::fmt::{self, Display};
use std::net::IpAddr;

pub use plan::{Op, plan};
pub use program::{Apply, Ipset};

use super::observe::ParseError;
use super::rules::Family;
use crate::instance::Instance;

/// Endings of names that only versions without instances gave: sets that were being filled.
const OLD_UNFINISHED: &str = "-new";
/// What such a version tried whether sets can be made, behind its mark, before its process id.
const OLD_PROBE: &str = "-probe-";

/// Client address, client port, VIP.
const TYPE: &str = "hash:ip,port,ip";

/// What a set holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Clients whose SYN was addressed to the VIP
    Decided,
    /// Clients that somebody's DNAT brought to the VIP
    Translated,
}

/// A set as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Set {
    /// Whose it is.
    pub owner: Instance,
    /// What it holds.
    pub role: Role,
    /// Of which family.
    pub family: Family,
    /// The port of the proxy.
    pub port: u16,
    /// How many clients it can hold.
    pub max_elements: u32,
}

/// A set of ours as ipset lists it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SavedSet {
    /// Its name.
    pub name: String,
    /// `hash:ip,port,ip`
    pub kind: String,
    /// `inet` or `inet6`, where the type has one
    pub family: Option<String>,
    /// Default timeout in seconds, if members expire.
    pub timeout: Option<u32>,
    /// How many members it can have, where the type has a limit.
    pub max_elements: Option<u32>,
}

impl Role {
    /// Both roles.
    pub const ALL: [Self; 2] = [Self::Decided, Self::Translated];

    /// For how many seconds after its last packet a client is remembered.
    fn timeout(self) -> u32 {
        match self {
            // What proxies let connections be idle for by default (Envoy: an hour). One that is
            // idle for longer is tracked from then on.
            Self::Decided => 3600,
            // Only matters if the client uses its port for the VIP as well, which it will hardly do
            // at once. Until then a connection from that port to the VIP is tracked.
            Self::Translated => 300,
        }
    }
}

/// The name of a set, at most 31 bytes long.
pub fn name(owner: Instance, role: Role, family: Family, port: u16) -> String {
    let role = match role {
        Role::Decided => 'd',
        Role::Translated => 'n',
    };
    name_as(owner, role, family, port)
}

fn name_as(owner: Instance, role: char, family: Family, port: u16) -> String {
    let family = match family {
        Family::V4 => '4',
        Family::V6 => '6',
    };
    format!("{}-{role}{family}-{port}", owner.mark())
}

/// Whose a set of this name is; none if it is foreign.
pub fn owner(name: &str) -> Option<Instance> {
    let is_number = |text: &str| text.parse::<u32>().is_ok();
    let default = Instance::default();
    let probe = name.strip_prefix(&default.mark());
    if probe
        .and_then(|rest| rest.strip_prefix(OLD_PROBE))
        .is_some_and(is_number)
    {
        return Some(default);
    }
    let finished = name.strip_suffix(OLD_UNFINISHED);
    let (rest, port) = finished.unwrap_or(name).rsplit_once('-')?;
    let (mark, set) = rest.rsplit_once('-')?;
    let roles = ["d4", "d6", "n4", "n6", "D4", "D6", "N4", "N6"];
    if !roles.contains(&set) || !is_number(port) {
        return None;
    }
    Instance::of_mark(mark).filter(|owner| finished.is_none() || *owner == default)
}

/// The sets for the families of these VIPs and for each port.
pub fn desired(owner: Instance, vips: &[IpAddr], ports: &[u16], max_elements: u32) -> Vec<Set> {
    let mut sets = Vec::new();
    for family in Family::ALL {
        if !vips.iter().any(|vip| Family::of(*vip) == family) {
            continue;
        }
        for &port in ports {
            sets.extend(Role::ALL.map(|role| Set {
                owner,
                role,
                family,
                port,
                max_elements,
            }));
        }
    }
    sets
}

impl Set {
    /// Its name.
    pub fn name(self) -> String {
        name(self.owner, self.role, self.family, self.port)
    }

    /// The name under which it is filled before it takes the place of another one. As long as its
    /// name: no more fits behind that of an instance.
    fn unfinished(self) -> String {
        let role = match self.role {
            Role::Decided => 'D',
            Role::Translated => 'N',
        };
        name_as(self.owner, role, self.family, self.port)
    }

    /// What stands behind its name when it is created.
    fn parameters(self) -> String {
        // Rules cannot make the table larger: a packet that finds a full bucket, of 12 members, is
        // not remembered. Four members for each bucket leave room for chance.
        let buckets = (self.max_elements / 4).next_power_of_two().max(1024);
        format!(
            "{TYPE} family {} hashsize {buckets} maxelem {} timeout {}",
            self.family_name(),
            self.max_elements,
            self.role.timeout(),
        )
    }

    fn family_name(self) -> &'static str {
        match self.family {
            Family::V4 => "inet",
            Family::V6 => "inet6",
        }
    }

    /// True if a set of this name is of the same type and family: only then can it be swapped.
    fn resembles(self, saved: &SavedSet) -> bool {
        saved.kind == TYPE && saved.family.as_deref() == Some(self.family_name())
    }

    /// True if a set of this name is as it should be.
    fn is(self, saved: &SavedSet) -> bool {
        self.resembles(saved)
            && saved.timeout == Some(self.role.timeout())
            && saved.max_elements == Some(self.max_elements)
    }
}

impl Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.parameters())
    }
}

/// Reads what `ipset list -terse` prints; leaves out what is not the instance's.
///
/// # Errors
/// A set is printed without its parameters.
pub fn parse(text: &str, of: Instance) -> Result<Vec<SavedSet>, ParseError> {
    let mut sets: Vec<SavedSet> = Vec::new();
    let mut open: Option<SavedSet> = None;
    let cut_off = |set: SavedSet| ParseError::Set { name: set.name };
    for line in text.lines() {
        let Some((key, value)) = line.split_once(": ") else {
            continue;
        };
        match (key, &mut open) {
            ("Name", _) => {
                let begun = SavedSet {
                    name: value.trim().to_owned(),
                    ..SavedSet::default()
                };
                if let Some(unfinished) = open.replace(begun) {
                    return Err(cut_off(unfinished));
                }
            }
            ("Type", Some(set)) => value.trim().clone_into(&mut set.kind),
            ("Header", Some(set)) => set.read_header(value),
            // Behind the parameters, in every version.
            ("References", _) => sets.extend(open.take()),
            _ => {}
        }
    }
    if let Some(unfinished) = open {
        return Err(cut_off(unfinished));
    }
    sets.retain(|set| owner(&set.name) == Some(of));
    Ok(sets)
}

impl SavedSet {
    /// Reads `family inet hashsize 1024 maxelem 65536 timeout 300 …`.
    fn read_header(&mut self, header: &str) {
        let mut words = header.split_whitespace();
        while let Some(word) = words.next() {
            match word {
                "family" => self.family = words.next().map(str::to_owned),
                "timeout" => self.timeout = words.next().and_then(|word| word.parse().ok()),
                "maxelem" => self.max_elements = words.next().and_then(|word| word.parse().ok()),
                _ => {}
            }
        }
    }
}
