// SPDX-License-Identifier: Apache-2.0

//! The endpoints to which the proxy connects: named on the command line, or learned from its connections. Pure.
//!
//! An endpoint is learned from an answered connection of the proxy without NAT according to conntrack. One with NAT becomes known
//! too, and stays tracked. A learned endpoint without connections expires: API servers behind a load balancer change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use proxy_netlink::netfilter::Family;

use super::nat::NatPath;
use crate::backend::tables::family_of;
use crate::config::{Config, ProxyUpstream};
use crate::state::upstream::{Reason, Upstream};

/// Maximum number of learned endpoints: each adds rules that packets of the node traverse.
pub const MAX_LEARNED: usize = 32;
/// Time without connections after which a learned endpoint expires.
const FORGOTTEN_AFTER: Duration = Duration::from_hours(1);

/// The endpoints, with the state of the paths to them.
#[derive(Debug)]
pub struct Endpoints {
    /// None: endpoints are learned.
    named: Option<Vec<SocketAddr>>,
    /// Learned endpoints, with the time at which connections to each were last seen.
    learned: BTreeMap<SocketAddr, Instant>,
    /// Addresses that are never learned: VIPs and ClusterIPs.
    never: BTreeSet<IpAddr>,
    /// Families of the VIPs, the only ones that the kernel certainly supports.
    families: Vec<Family>,
    /// Endpoints with NAT on the path, with a description of it.
    translated: BTreeMap<SocketAddr, String>,
    /// Endpoints whose untracked packets a filter drops, with a description of it.
    filtered: BTreeMap<SocketAddr, String>,
    /// Endpoints that were in one of the two maps before.
    freed: BTreeSet<SocketAddr>,
}

impl Endpoints {
    /// Endpoints for a configuration; those that an earlier agent has learned (`earlier`) are kept.
    pub fn open(config: &Config, earlier: &Upstream, now: Instant) -> Self {
        let named = match &config.proxy_upstream {
            ProxyUpstream::Auto => None,
            ProxyUpstream::Off => Some(Vec::new()),
            ProxyUpstream::Named(endpoints) => Some(endpoints.clone()),
        };
        let learned = earlier.endpoints.iter().map(|known| (known.endpoint, now));
        let learned = learned.filter(|_| named.is_none() && earlier.learns);
        let repaired = config.repair.iter().map(SocketAddr::ip);
        let never = config.vips.iter().copied().chain(config.service_ips());
        let mut endpoints = Self {
            learned: learned.collect(),
            never: never.chain(repaired).collect(),
            families: [Family::IPv4, Family::IPv6]
                .into_iter()
                .filter(|family| config.vips.iter().any(|vip| family_of(*vip) == *family))
                .collect(),
            named,
            translated: BTreeMap::new(),
            filtered: BTreeMap::new(),
            freed: BTreeSet::new(),
        };
        // Addresses of the current configuration may have been learned before.
        let Self { learned, never, .. } = &mut endpoints;
        learned.retain(|endpoint, _| !never.contains(&endpoint.ip()));
        for known in &earlier.endpoints {
            let Some(tracked) = &known.tracked else {
                continue;
            };
            let paths = match tracked.reason {
                Reason::Nat => &mut endpoints.translated,
                Reason::Filter => &mut endpoints.filtered,
                _ => continue,
            };
            paths.insert(known.endpoint, tracked.detail.clone());
        }
        let all: BTreeSet<_> = endpoints.all().into_iter().collect();
        for paths in [&mut endpoints.translated, &mut endpoints.filtered] {
            paths.retain(|endpoint, _| all.contains(endpoint));
        }
        endpoints
    }

    /// Whether the proxy's own connections are not handled at all.
    pub fn are_off(&self) -> bool {
        self.named.as_ref().is_some_and(Vec::is_empty)
    }

    /// Whether endpoints are learned.
    pub fn are_learned(&self) -> bool {
        self.named.is_none()
    }

    /// Whether the maximum number of learned endpoints is reached.
    pub fn are_full(&self) -> bool {
        self.learned.len() >= MAX_LEARNED
    }

    /// All known endpoints, including those with NAT on the path.
    pub fn all(&self) -> Vec<SocketAddr> {
        match &self.named {
            Some(named) => named.clone(),
            None => self.learned.keys().copied().collect(),
        }
    }

    /// Whether an endpoint is known.
    pub fn knows(&self, endpoint: SocketAddr) -> bool {
        match &self.named {
            Some(named) => named.contains(&endpoint),
            None => self.learned.contains_key(&endpoint),
        }
    }

    /// Whether an unknown endpoint may be learned.
    pub fn may_learn(&self, endpoint: SocketAddr) -> bool {
        let ip = endpoint.ip();
        let is_link_local = match ip {
            IpAddr::V4(_) => false,
            // A link-local address is ambiguous without its link.
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        let is_unfit = ip.is_loopback() || ip.is_multicast() || ip.is_unspecified();
        self.are_learned()
            && !self.are_full()
            && !self.knows(endpoint)
            && self.families.contains(&family_of(ip))
            && !(is_unfit || is_link_local || self.never.contains(&ip))
    }

    /// Records the observed paths. Unknown endpoints are learned if `learn` is set.
    pub fn record(&mut self, paths: BTreeMap<SocketAddr, NatPath>, learn: bool, now: Instant) {
        for (endpoint, path) in paths {
            if !self.knows(endpoint) {
                if !learn || !self.may_learn(endpoint) {
                    continue;
                }
                self.learned.insert(endpoint, now);
            }
            match path {
                NatPath::Free => {
                    if self.translated.remove(&endpoint).is_some() {
                        self.freed.insert(endpoint);
                    }
                }
                // The first description is kept, because they differ for each connection.
                NatPath::Translated(how) => {
                    self.translated.entry(endpoint).or_insert(how);
                }
            }
        }
    }

    /// Records the endpoints with open connections, and removes learned ones that have expired.
    pub fn expire(&mut self, used: &BTreeSet<SocketAddr>, now: Instant) {
        self.learned.retain(|endpoint, last| {
            if used.contains(endpoint) {
                *last = now;
            }
            now.saturating_duration_since(*last) < FORGOTTEN_AFTER
        });
        if self.are_learned() {
            let learned = &self.learned;
            for paths in [&mut self.translated, &mut self.filtered] {
                paths.retain(|endpoint, _| learned.contains_key(endpoint));
            }
        }
    }

    /// Records the endpoints whose untracked packets a filter drops.
    pub fn filter(&mut self, filtered: BTreeMap<SocketAddr, String>) {
        let before = std::mem::replace(&mut self.filtered, filtered);
        let passed = before.into_keys();
        let passed = passed.filter(|endpoint| !self.filtered.contains_key(endpoint));
        self.freed.extend(passed);
    }

    /// The address families in which endpoints are learned; empty if they are not.
    pub fn learned_in(&self) -> Vec<Family> {
        if self.are_learned() {
            self.families.clone()
        } else {
            Vec::new()
        }
    }

    /// Endpoints that stay tracked because of NAT or a filter on the path.
    pub fn left(&self) -> Vec<SocketAddr> {
        let left = self.translated.keys().chain(self.filtered.keys());
        let left: BTreeSet<_> = left.copied().collect();
        left.into_iter().collect()
    }

    /// Endpoints with NAT on the path, with a description of it.
    pub fn translated(&self) -> &BTreeMap<SocketAddr, String> {
        &self.translated
    }

    /// Endpoints behind a filter that drops untracked packets, with a description of it.
    pub fn filtered(&self) -> &BTreeMap<SocketAddr, String> {
        &self.filtered
    }

    /// Takes the endpoints that have left [`Endpoints::left`] since the last call.
    pub fn take_freed(&mut self) -> BTreeSet<SocketAddr> {
        std::mem::take(&mut self.freed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli;
    use crate::state::upstream::{Endpoint, Tracked};

    fn endpoint(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn config(flags: &[&str]) -> Config {
        let line = ["proxy-agent", "--ip-address=10.96.0.2"];
        match cli::try_parse_from(line.iter().chain(flags)) {
            Ok(cli::Invocation::Run(config)) => *config,
            other => panic!("{other:?}"),
        }
    }

    fn learning(flags: &[&str]) -> Endpoints {
        Endpoints::open(&config(flags), &Upstream::default(), Instant::now())
    }

    fn free(endpoints: &[&str]) -> BTreeMap<SocketAddr, NatPath> {
        let paths = endpoints.iter().map(|text| (endpoint(text), NatPath::Free));
        paths.collect()
    }

    #[test]
    fn only_what_can_be_an_api_server_is_learned() {
        let flags = ["--service-address=10.96.0.1", "--backend=ebpf"];
        let endpoints = learning(&flags);
        assert!(endpoints.may_learn(endpoint("192.0.2.1:443")));
        for other in [
            "10.96.0.2:443",
            "10.96.0.2:8443",
            "10.96.0.1:443",
            "127.0.0.1:443",
            "224.0.0.1:443",
            "0.0.0.0:443",
            // No VIP has this address family.
            "[2001:db8::1]:443",
        ] {
            assert!(!endpoints.may_learn(endpoint(other)), "{other}");
        }
        let six = learning(&["--ip-address=fd00::2"]);
        assert!(six.may_learn(endpoint("[2001:db8::1]:443")));
        assert!(!six.may_learn(endpoint("[fe80::1]:443")));
    }

    #[test]
    fn nothing_is_learned_beside_named_endpoints_or_in_doubt() {
        let now = Instant::now();
        for flag in ["--proxy-upstream=192.0.2.9", "--proxy-upstream=off"] {
            let mut endpoints = learning(&[flag]);
            let before = endpoints.all();
            endpoints.record(free(&["192.0.2.1:443"]), true, now);
            assert_eq!(endpoints.all(), before);
        }
        let mut endpoints = learning(&[]);
        endpoints.record(free(&["192.0.2.1:443"]), false, now);
        assert!(endpoints.all().is_empty());
    }

    #[test]
    fn a_learned_endpoint_is_kept_while_it_is_used() {
        let start = Instant::now();
        let after = |minutes| start + Duration::from_mins(minutes);
        let one = endpoint("192.0.2.1:443");
        let mut endpoints = learning(&[]);
        endpoints.record(free(&["192.0.2.1:443", "192.0.2.2:443"]), true, start);
        endpoints.expire(&BTreeSet::from([one]), after(50));
        endpoints.expire(&BTreeSet::new(), after(70));
        assert_eq!(endpoints.all(), [one]);
        endpoints.expire(&BTreeSet::new(), after(111));
        assert!(endpoints.all().is_empty());
    }

    #[test]
    fn there_is_a_limit() {
        let mut endpoints = learning(&[]);
        for host in 1..=u8::try_from(MAX_LEARNED + 1).unwrap() {
            let text = format!("192.0.2.{host}:443");
            endpoints.record(free(&[&text]), true, Instant::now());
        }
        assert_eq!(endpoints.all().len(), MAX_LEARNED);
        assert!(endpoints.are_full());
    }

    #[test]
    fn an_endpoint_with_nat_stays_known_until_it_is_free() {
        let now = Instant::now();
        let one = endpoint("192.0.2.1:443");
        let mut endpoints = learning(&[]);
        let path = NatPath::Translated("so".to_owned());
        endpoints.record(BTreeMap::from([(one, path)]), true, now);
        assert_eq!(endpoints.all(), [one]);
        assert_eq!(endpoints.translated().get(&one).unwrap(), "so");
        assert!(endpoints.take_freed().is_empty());
        endpoints.record(free(&["192.0.2.1:443"]), true, now);
        assert!(endpoints.translated().is_empty());
        assert_eq!(endpoints.take_freed(), BTreeSet::from([one]));
        assert!(endpoints.take_freed().is_empty());
    }

    #[test]
    fn a_filter_that_is_gone_frees_an_endpoint() {
        let one = endpoint("192.0.2.1:443");
        let mut endpoints = learning(&[]);
        endpoints.record(free(&["192.0.2.1:443"]), true, Instant::now());
        endpoints.filter(BTreeMap::from([(one, "so".to_owned())]));
        assert_eq!(endpoints.left(), [one]);
        endpoints.filter(BTreeMap::new());
        assert!(endpoints.left().is_empty());
        assert_eq!(endpoints.take_freed(), BTreeSet::from([one]));
    }

    #[test]
    fn endpoints_learned_by_an_earlier_agent_are_kept() {
        let known = |text: &str, tracked| Endpoint {
            endpoint: endpoint(text),
            tracked,
        };
        let mut earlier = Upstream {
            learns: true,
            endpoints: vec![
                known("192.0.2.1:443", None),
                known("192.0.2.2:443", Some(Tracked::new(Reason::Nat, "so"))),
                known("10.96.0.2:6443", None),
            ],
            ..Upstream::default()
        };
        let now = Instant::now();
        let endpoints = Endpoints::open(&config(&[]), &earlier, now);
        let expected = ["192.0.2.1:443", "192.0.2.2:443"].map(endpoint);
        assert_eq!(endpoints.all(), expected);
        assert_eq!(endpoints.translated().len(), 1);
        // Named endpoints of the earlier agent are no evidence.
        earlier.learns = false;
        assert!(
            Endpoints::open(&config(&[]), &earlier, now)
                .all()
                .is_empty()
        );
        let named = config(&["--proxy-upstream=192.0.2.2"]);
        let endpoints = Endpoints::open(&named, &earlier, now);
        assert_eq!(endpoints.translated().len(), 1);
    }
}
