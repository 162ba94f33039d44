// SPDX-License-Identifier: Apache-2.0

//! Identifies the proxy's connections: those of processes in the cgroup in which a listener of a VIP was created.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;

use proxy_kernel::cgroup::{self, Cgroup};
use proxy_netlink::sock_diag::list::{self, Sock};

use crate::state::upstream::{Reason, Tracked};

/// The listeners of the VIPs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listeners {
    /// The cgroups of listeners bound to a VIP; none if the kernel does not report it.
    cgroups: BTreeSet<Option<u64>>,
    /// A listener on the wildcard address that receives connections to a VIP.
    wildcard: Option<SocketAddr>,
}

/// The cgroups of the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proxy {
    /// The proxy listens in these.
    In(Vec<Cgroup>),
    /// The proxy does not listen. Its last cgroups may still hold connections, or the restarted proxy.
    Away,
    /// The cgroups cannot be used, with the reason.
    Unusable(Tracked),
}

impl Listeners {
    /// Reads all listeners of these endpoints.
    ///
    /// # Errors
    ///
    /// If the kernel's answer is incomplete.
    pub fn read(vips: &[SocketAddr]) -> io::Result<Self> {
        let ports: BTreeSet<_> = vips.iter().map(SocketAddr::port).collect();
        let mut sockets = Vec::new();
        for port in ports {
            sockets.extend(list::listeners(port)?);
        }
        Ok(Self::among(vips, &sockets))
    }

    fn among(vips: &[SocketAddr], sockets: &[Sock]) -> Self {
        let exact = |sock: &&Sock| vips.contains(&sock.local);
        let takes = |sock: &&Sock| {
            let is_of = |vip: &SocketAddr| {
                vip.port() == sock.local.port() && (vip.is_ipv4() || sock.local.is_ipv6())
            };
            sock.local.ip().is_unspecified() && vips.iter().any(is_of)
        };
        let cgroups: BTreeSet<_> = sockets
            .iter()
            .filter(exact)
            .map(|sock| sock.cgroup)
            .collect();
        let wildcard = sockets.iter().find(takes).map(|sock| sock.local);
        Self {
            wildcard: wildcard.filter(|_| cgroups.is_empty()),
            cgroups,
        }
    }
}

/// The sockets that receive connections to these endpoints now, to detect changes: cheaper than [`Listeners::read`], but only one
/// for each endpoint.
///
/// # Errors
///
/// If a query fails.
pub fn glance(vips: &[SocketAddr]) -> io::Result<Vec<Option<Sock>>> {
    vips.iter().map(|vip| list::listener(*vip)).collect()
}

/// Whether a cgroup was removed; false if that cannot be determined.
pub fn is_gone(cgroup: &Cgroup) -> bool {
    cgroup::root().is_some_and(|root| !cgroup::is_there(&root, cgroup))
}

/// Finds the cgroups of the listeners. `known` caches those that were found.
pub fn find(listeners: &Listeners, known: &mut BTreeMap<u64, Cgroup>) -> Proxy {
    if listeners.cgroups.is_empty() {
        return match listeners.wildcard {
            None => Proxy::Away,
            Some(address) => Proxy::Unusable(Tracked::new(
                Reason::Wildcard,
                format!(
                    "the listener is bound to {address} instead of the VIP, so it may be another process \
                     than the proxy"
                ),
            )),
        };
    }
    let mut found = Vec::new();
    let mut flaw = None;
    for id in &listeners.cgroups {
        match locate(*id, known) {
            Ok(cgroup) => found.push(cgroup),
            Err(text) => flaw = Some(Tracked::new(Reason::Cgroup, text)),
        }
    }
    match flaw {
        Some(flaw) if found.is_empty() => Proxy::Unusable(flaw),
        _ => Proxy::In(found),
    }
}

fn locate(id: Option<u64>, known: &mut BTreeMap<u64, Cgroup>) -> Result<Cgroup, String> {
    let Some(id) = id else {
        return Err(
            "the kernel does not report the cgroup of a socket, which needs Linux 5.9".to_owned(),
        );
    };
    if id == cgroup::ROOT_ID {
        return Err(
            "the proxy runs in the root cgroup (cgroup v2), which other processes may use too; start it in a \
             cgroup of its own, as systemd and container runtimes do"
                .to_owned(),
        );
    }
    if let Some(cgroup) = known.get(&id) {
        return Ok(cgroup.clone());
    }
    let Some(root) = cgroup::root() else {
        return Err(
            "the root of the host's cgroup2 hierarchy is not mounted here (in Kubernetes mount \
             /sys/fs/cgroup as a hostPath volume)"
                .to_owned(),
        );
    };
    let cgroup = match cgroup::find(&root, id) {
        Ok(Some(cgroup)) => cgroup,
        Ok(None) => {
            return Err(format!(
                "no cgroup below {} has the id {id} of the proxy's cgroup",
                root.display()
            ));
        }
        Err(error) => return Err(format!("cannot read {}: {error}", root.display())),
    };
    if cgroup.levels.is_empty() {
        return Err(format!(
            "the proxy's cgroup {} is outside of the agent's cgroup namespace and has no name there",
            cgroup.path
        ));
    }
    known.insert(id, cgroup.clone());
    Ok(cgroup)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sock(local: &str, cgroup: u64) -> Sock {
        Sock {
            local: local.parse().unwrap(),
            remote: "0.0.0.0:0".parse().unwrap(),
            is_connecting: false,
            cgroup: Some(cgroup),
            cookie: 0,
        }
    }

    fn among(sockets: &[Sock]) -> Listeners {
        let vips = ["10.96.0.2:443", "[fd00::2]:443"].map(|vip| vip.parse().unwrap());
        Listeners::among(&vips, sockets)
    }

    #[test]
    fn listeners_of_the_vips_count_and_others_do_not() {
        let found = among(&[
            sock("10.96.0.2:443", 7),
            sock("[fd00::2]:443", 7),
            sock("10.96.0.2:443", 8),
            sock("10.96.0.3:443", 9),
            sock("0.0.0.0:443", 10),
        ]);
        assert_eq!(found.cgroups, BTreeSet::from([Some(7), Some(8)]));
        assert_eq!(found.wildcard, None);
    }

    #[test]
    fn a_wildcard_listener_is_not_the_proxy() {
        let mut known = BTreeMap::new();
        for address in ["0.0.0.0:443", "[::]:443"] {
            let found = find(&among(&[sock(address, 7)]), &mut known);
            assert!(
                matches!(&found, Proxy::Unusable(why) if why.reason == Reason::Wildcard),
                "{found:?}"
            );
        }
        assert_eq!(
            find(&among(&[sock("10.0.0.1:443", 7)]), &mut known),
            Proxy::Away
        );
    }

    #[test]
    fn the_root_cgroup_is_unusable() {
        let mut known = BTreeMap::new();
        let unusable =
            |found: Proxy| matches!(found, Proxy::Unusable(why) if why.reason == Reason::Cgroup);
        assert!(unusable(find(
            &among(&[sock("10.96.0.2:443", cgroup::ROOT_ID)]),
            &mut known
        )));
        let mut unknown = sock("10.96.0.2:443", 7);
        unknown.cgroup = None;
        assert!(unusable(find(&among(&[unknown]), &mut known)));
    }

    #[test]
    fn found_cgroups_are_cached() {
        let cgroup = Cgroup {
            id: 7,
            path: "/a".to_owned(),
            levels: vec![1],
        };
        let mut known = BTreeMap::from([(7, cgroup.clone())]);
        // Together with one that cannot be used.
        let listeners = among(&[
            sock("10.96.0.2:443", 7),
            sock("10.96.0.2:443", cgroup::ROOT_ID),
        ]);
        assert_eq!(find(&listeners, &mut known), Proxy::In(vec![cgroup]));
    }
}
