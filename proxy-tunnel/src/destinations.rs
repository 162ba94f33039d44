// SPDX-License-Identifier: Apache-2.0

//! The targets that may be connected to: `--allow-destination` of an agent and of a sidecar. An agent checks the
//! address that it connects to, after it has resolved the name, because an allowed name may resolve to other addresses
//! later. A sidecar cannot resolve names, since only agents can, so it checks the names themselves.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use thiserror::Error;

use crate::go_error;
use crate::pattern::HostPattern;

/// Address ranges that belong to a host or a link and not to a network: loopback, link-local (with the metadata
/// services of clouds), and the unspecified address, which Linux treats as the local host.
const LOCAL: [IpNet; 6] = [
    v4([127, 0, 0, 0], 8),
    v4([169, 254, 0, 0], 16),
    v4([0, 0, 0, 0], 8),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::LOCALHOST, 128)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 128)),
    IpNet::V6(Ipv6Net::new_assert(
        Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0),
        10,
    )),
];

const fn v4([a, b, c, d]: [u8; 4], length: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length))
}

/// The error for an entry that cannot be parsed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{entry:?} {problem}; give ADDRESS, CIDR or NAME, with :PORT or :FIRST-LAST behind it if not for all ports, IPv6 in brackets then"
)]
pub struct DestinationError {
    entry: String,
    problem: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    Network(IpNet),
    Name(HostPattern),
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    host: Host,
    ports: RangeInclusive<u16>,
}

impl FromStr for Destination {
    type Err = DestinationError;

    fn from_str(entry: &str) -> Result<Self, DestinationError> {
        let wrong = |problem| DestinationError {
            entry: entry.to_owned(),
            problem,
        };
        let (host, ports) = match entry.strip_prefix('[') {
            Some(rest) => {
                let (host, rest) = rest.split_once(']').ok_or(wrong("has no `]`"))?;
                match rest.strip_prefix(':') {
                    None if rest.is_empty() => (host, None),
                    None => return Err(wrong("has something behind `]` that is no port")),
                    ports => (host, ports),
                }
            }
            None if network(entry).is_some() => (entry, None),
            None => entry
                .rsplit_once(':')
                .map_or((entry, None), |(host, ports)| (host, Some(ports))),
        };
        let ports = ports.map_or(Some(0..=u16::MAX), self::ports);
        let host = match network(host) {
            Some(network) if network.addr() != network.network() => {
                return Err(wrong("is an address within a network, not a network"));
            }
            Some(network) => Host::Network(network),
            None => {
                let pattern = HostPattern::new(host);
                // The C library would parse some of these names as addresses.
                let last = host.rsplit('.').next().unwrap_or(host);
                let is_name = !last.bytes().all(|byte| byte.is_ascii_digit());
                Host::Name(pattern.filter(|_| is_name).ok_or(wrong("has no host"))?)
            }
        };
        Ok(Self {
            host,
            ports: ports.ok_or(wrong("has no ports that can be"))?,
        })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Network(network) => write!(f, "[{network}]")?,
            Host::Name(name) => write!(f, "{name}")?,
        }
        match (self.ports.start(), self.ports.end()) {
            (0, &u16::MAX) => Ok(()),
            (first, last) if first == last => write!(f, ":{first}"),
            (first, last) => write!(f, ":{first}-{last}"),
        }
    }
}

fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| {
        let address: IpAddr = text.parse().ok()?;
        Some(address.into())
    })
}

fn ports(text: &str) -> Option<RangeInclusive<u16>> {
    let number = |text: &str| {
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| text.parse::<u16>().ok()).flatten()
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = number(first)?..=number(last)?;
    (*range.start() > 0 && !range.is_empty()).then_some(range)
}

/// Returns true if an address is in one of the [`LOCAL`] ranges.
fn is_local(address: IpAddr) -> bool {
    LOCAL.iter().any(|network| network.contains(&address))
}

/// The set of targets that may be connected to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Destinations(Vec<Destination>);

impl Destinations {
    /// Allows only these entries, or all targets if there are no entries.
    #[must_use]
    pub const fn new(entries: Vec<Destination>) -> Self {
        Self(entries)
    }

    /// Returns true if a name may be resolved: either the name itself is allowed, or one of its addresses may be.
    #[must_use]
    pub fn may_resolve(&self, name: &str, port: u16) -> bool {
        self.0.is_empty()
            || self
                .0
                .iter()
                .filter(|entry| entry.ports.contains(&port))
                .any(|entry| match &entry.host {
                    Host::Network(_) => true,
                    Host::Name(pattern) => pattern.matches(name),
                })
    }

    /// Returns true if an address may be connected to. `name` is the name in the request, if the request contained one.
    /// Loopback and link-local addresses are allowed only by an entry for a network of such addresses, never by a name
    /// or by a network that also contains others.
    #[must_use]
    pub fn permits(&self, name: Option<&str>, address: SocketAddr) -> bool {
        if self.0.is_empty() {
            return true;
        }
        // `::ffff:127.0.0.1` connects to 127.0.0.1.
        let ip = address.ip().to_canonical();
        let is_local = is_local(ip);
        let mut entries = self
            .0
            .iter()
            .filter(|entry| entry.ports.contains(&address.port()));
        entries.any(|entry| match &entry.host {
            Host::Network(network) if is_local => {
                let is_meant = LOCAL.iter().any(|local| local.contains(network));
                is_meant && network.contains(&ip)
            }
            Host::Network(network) => network.contains(&ip),
            Host::Name(pattern) => !is_local && name.is_some_and(|name| pattern.matches(name)),
        })
    }

    /// Returns true if a client may request a target, given as `host:port`. An address is allowed by an entry that
    /// contains it, a name only by an entry for that name.
    #[must_use]
    pub fn permit_target(&self, target: &str) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let Ok((host, port)) = go_error::split_host_port(target) else {
            return false;
        };
        let Ok(port) = port.parse() else {
            return false;
        };
        if let Ok(address) = host.parse::<IpAddr>() {
            return self.permits(None, SocketAddr::new(address, port));
        }
        self.0.iter().any(|entry| match &entry.host {
            Host::Network(_) => false,
            Host::Name(pattern) => entry.ports.contains(&port) && pattern.matches(host),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[&str]) -> Destinations {
        let entries = entries.iter().map(|entry| entry.parse().unwrap());
        Destinations::new(entries.collect())
    }

    fn permits(entries: &[&str], name: Option<&str>, address: &str) -> bool {
        list(entries).permits(name, address.parse().unwrap())
    }

    #[test]
    fn without_entries_everything_is_allowed() {
        for address in ["127.0.0.1:1", "169.254.169.254:80", "[::1]:1", "10.0.0.1:1"] {
            assert!(permits(&[], None, address));
        }
        assert!(list(&[]).may_resolve("a", 1));
    }

    #[test]
    fn networks_addresses_and_ports() {
        for (entry, good, bad) in [
            ("10.0.0.0/8", "10.9.9.9:1", "11.0.0.1:1"),
            ("10.0.0.1", "10.0.0.1:9", "10.0.0.2:9"),
            ("10.0.0.0/8:443", "10.0.0.1:443", "10.0.0.1:444"),
            ("10.0.0.1:80-90", "10.0.0.1:85", "10.0.0.1:91"),
            ("fd00::/8", "[fd00::1]:1", "[fe00::1]:1"),
            ("[fd00::1]:443", "[fd00::1]:443", "[fd00::1]:80"),
            ("[fd00::/8]", "[fd00::1]:80", "10.0.0.1:80"),
            ("10.0.0.0/8", "[::ffff:10.0.0.1]:1", "[::ffff:11.0.0.1]:1"),
        ] {
            assert!(permits(&[entry], None, good), "{entry}");
            assert!(!permits(&[entry], None, bad), "{entry}");
            // These entries apply to the addresses of a name, not to the name.
            assert!(permits(&[entry], Some("x"), good), "{entry}");
            assert!(!permits(&[entry], Some("x"), bad), "{entry}");
        }
    }

    #[test]
    fn names_and_the_addresses_that_they_may_have() {
        let entries = ["*.nodes.example:10250", "web"];
        assert!(permits(&entries, Some("a.nodes.example"), "10.0.0.1:10250"));
        assert!(permits(&entries, Some("WEB."), "10.0.0.1:1"));
        for (name, address) in [
            (Some("a.nodes.example"), "10.0.0.1:10251"),
            (Some("a.b.nodes.example"), "10.0.0.1:10250"),
            (None, "10.0.0.1:10250"),
            // Such an address means that the name now refers to another host.
            (Some("web"), "127.0.0.1:1"),
            (Some("web"), "169.254.169.254:80"),
            (Some("web"), "[::ffff:127.0.0.1]:80"),
            (Some("web"), "[fe80::1]:80"),
            (Some("web"), "0.0.0.0:80"),
        ] {
            assert!(!permits(&entries, name, address), "{name:?} {address}");
        }
        let names = list(&entries);
        assert!(names.may_resolve("web", 1) && !names.may_resolve("other", 1));
        assert!(list(&["10.0.0.0/8:1"]).may_resolve("other", 1));
        assert!(!list(&["10.0.0.0/8:1"]).may_resolve("other", 2));
    }

    #[test]
    fn targets_that_are_asked_for() {
        let entries = list(&["10.0.0.0/8:9100", "*.nodes.example:10250", "[fd00::/8]"]);
        for (target, want) in [
            ("10.0.0.1:9100", true),
            ("10.0.0.1:9101", false),
            ("[fd00::1]:1", true),
            ("[fe80::1]:1", false),
            ("a.nodes.example:10250", true),
            ("a.nodes.example:1", false),
            // The name may resolve to an allowed address, or to another one.
            ("web:9100", false),
            ("web", false),
            ("10.0.0.1:x", false),
            ("", false),
        ] {
            assert_eq!(entries.permit_target(target), want, "{target}");
            assert!(list(&[]).permit_target(target), "{target}");
        }
    }

    #[test]
    fn loopback_and_link_local_addresses_are_meant_or_not() {
        let everything = ["0.0.0.0/0", "::/0"];
        for (address, entry) in [
            ("127.0.0.1:1", "127.0.0.1"),
            ("127.9.9.9:1", "127.0.0.0/8"),
            ("[::1]:1", "::1"),
            ("169.254.169.254:80", "169.254.169.254:80"),
            ("[fe80::1]:1", "fe80::/10"),
            ("[::ffff:127.0.0.1]:1", "127.0.0.0/8"),
        ] {
            assert!(!permits(&everything, None, address), "{address}");
            assert!(permits(&[entry], None, address), "{address}");
        }
        assert!(permits(&everything, None, "10.0.0.1:1"));
        assert!(permits(&everything, None, "[fd00::1]:1"));
    }

    #[test]
    fn entries_that_cannot_be_read() {
        for entry in [
            "",
            ":1",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "10.0.0.1:",
            "10.0.0.1:0",
            "10.0.0.1:2-1",
            "10.0.0.1:1-",
            "10.0.0.1:+1",
            "10.0.0.1:65536",
            "[fd00::1",
            "[fd00::1]443",
            "127.1",
            "a b",
            "*",
            "http://a",
            "a/b:1",
            "1.2.3.4.5",
        ] {
            let error = entry.parse::<Destination>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{entry:?} ")), "{error}");
        }
        for entry in ["[10.0.0.0/8]:443", "[fd00::/8]", "*.a.example:1-2", "name"] {
            assert_eq!(entry.parse::<Destination>().unwrap().to_string(), entry);
        }
    }
}
