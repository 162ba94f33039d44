// SPDX-License-Identifier: Apache-2.0

//! Whether the way from the proxy to an endpoint is translated: asked of conntrack, about the connections
//! that the proxy has there and that are tracked.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::backend::live;
use crate::kernel::cgroup::Cgroup;
use crate::kernel::sock_diag::list::{self, Sock};
use crate::netfilter::Socket;
use crate::netfilter::conntrack::{self, Entry};

/// Connections to an endpoint that are looked up: one tells about all, and there may be thousands.
const SAMPLE: usize = 16;

/// What the connections to an endpoint show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// Each that is tracked goes as it is.
    Free,
    /// One is translated, and how.
    Translated(String),
}

/// Looks at the proxy's connections to these endpoints. No entry: none of them is tracked.
///
/// # Errors
///
/// If the kernel does not answer.
pub fn ways(
    endpoints: &[SocketAddr],
    cgroups: &[Cgroup],
) -> Result<BTreeMap<SocketAddr, Way>, live::Error> {
    let mut ways = BTreeMap::new();
    let mut socket = None;
    for endpoint in endpoints {
        let mut entries = Vec::new();
        for sock in connections(*endpoint, cgroups)?.iter().take(SAMPLE) {
            let socket = match &mut socket {
                Some(socket) => socket,
                none => none.insert(Socket::open()?),
            };
            entries.extend(conntrack::opened_by(socket, sock.local, sock.remote)?);
        }
        if let Some(way) = judge(&entries) {
            ways.insert(*endpoint, way);
        }
    }
    Ok(ways)
}

/// The proxy's connections to an endpoint.
///
/// # Errors
///
/// If the kernel does not answer.
pub fn connections(endpoint: SocketAddr, cgroups: &[Cgroup]) -> Result<Vec<Sock>, live::Error> {
    if cgroups.is_empty() {
        return Ok(Vec::new());
    }
    let is_proxys = |sock: &Sock| cgroups.iter().any(|one| sock.cgroup == Some(one.id));
    let mut sockets = list::connected_to(endpoint.port()).map_err(live::Error::Sockets)?;
    sockets.retain(|sock| sock.remote == endpoint && is_proxys(sock));
    Ok(sockets)
}

fn judge(entries: &[Entry]) -> Option<Way> {
    let translated = entries
        .iter()
        .find(|entry| entry.reply != entry.original.mirrored());
    match translated {
        Some(entry) => Some(Way::Translated(format!(
            "NAT: conntrack has {} answered as {}",
            entry.original, entry.reply
        ))),
        None => (!entries.is_empty()).then_some(Way::Free),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netfilter::conntrack::{Status, Tuple};

    fn entry(reply: (&str, &str)) -> Entry {
        let tuple = |source: &str, destination: &str| Tuple {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        };
        Entry {
            original: tuple("192.0.2.10:40000", "192.0.2.1:443"),
            reply: tuple(reply.0, reply.1),
            status: Status::empty(),
            tcp_state: None,
            liberal: false,
            remaining: None,
            id: 1,
            zone: 0,
        }
    }

    #[test]
    fn any_difference_of_the_reply_is_a_translation() {
        let free = entry(("192.0.2.1:443", "192.0.2.10:40000"));
        assert_eq!(judge(&[]), None);
        assert_eq!(judge(std::slice::from_ref(&free)), Some(Way::Free));
        for reply in [
            ("192.0.2.2:443", "192.0.2.10:40000"),
            ("192.0.2.1:6443", "192.0.2.10:40000"),
            ("192.0.2.1:443", "192.0.2.11:40000"),
            ("192.0.2.1:443", "192.0.2.10:40001"),
        ] {
            let way = judge(&[free.clone(), entry(reply)]);
            assert!(matches!(way, Some(Way::Translated(_))), "{reply:?}");
        }
    }
}
