// SPDX-License-Identifier: Apache-2.0

//! The sets of clients: their definition. `rules/kind.rs` has the rules that use them; `sets/program.rs` runs ipset. A set's
//! name identifies its owner.

mod plan;
mod program;
#[cfg(test)]
mod tests;

use std::fmt::{self, Display};
use std::net::IpAddr;

pub use plan::{Op, plan};
pub use program::{Apply, Ipset};
use proxy_rules::ipset::SavedSet;
use proxy_rules::xtables::Family;

use crate::instance::Instance;

/// Suffix of sets that were being filled, of versions without instances.
const OLD_UNFINISHED: &str = "-new";
/// Infix of test sets of such versions, between mark and process id.
const OLD_PROBE: &str = "-probe-";

/// Client address, client port, VIP.
const TYPE: &str = "hash:ip,port,ip";

/// The content of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Clients whose SYN was addressed to the VIP
    Decided,
    /// Clients that were DNATed to the VIP
    Translated,
}

/// A desired set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Set {
    /// Its owner.
    pub owner: Instance,
    /// Its content.
    pub role: Role,
    /// Its address family.
    pub family: Family,
    /// The proxy's port.
    pub port: u16,
    /// Its capacity.
    pub max_elements: u32,
}

impl Role {
    /// Both roles.
    pub const ALL: [Self; 2] = [Self::Decided, Self::Translated];

    /// The timeout of a client after its last packet, in seconds.
    fn timeout(self) -> u32 {
        match self {
            // The default idle timeout of proxies (Envoy: an hour). Connections that are idle for longer become tracked.
            Self::Decided => 3600,
            // Matters only if the client uses its port for the VIP as well, which is unlikely soon. Until then a connection from
            // that port to the VIP is tracked.
            Self::Translated => 300,
        }
    }
}

/// The name of a set, at most 31 bytes.
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

/// The owner of a set with this name; none if it is foreign.
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

    /// The name under which it is filled before it replaces another one. It has the same length, because an instance's name leaves
    /// no room for a suffix.
    fn unfinished(self) -> String {
        let role = match self.role {
            Role::Decided => 'D',
            Role::Translated => 'N',
        };
        name_as(self.owner, role, self.family, self.port)
    }

    /// The parameters for its creation.
    fn parameters(self) -> String {
        // Rules cannot grow the hash table: a packet that hits a full bucket, of 12 members, is not added. Four members per
        // bucket on average leave room for collisions.
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

    /// True if an existing set has the same type and family, so that both can be swapped.
    fn resembles(self, saved: &SavedSet) -> bool {
        saved.kind == TYPE && saved.family.as_deref() == Some(self.family_name())
    }

    /// True if an existing set has the desired parameters.
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

/// The instance's sets among those that are listed.
pub fn own(mut sets: Vec<SavedSet>, of: Instance) -> Vec<SavedSet> {
    sets.retain(|set| owner(&set.name) == Some(of));
    sets
}
