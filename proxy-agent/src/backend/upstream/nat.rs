// SPDX-License-Identifier: Apache-2.0

//! Whether the way from the proxy to an endpoint is translated: asked of conntrack, about the connections
//! that the proxy has there and that are tracked.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::backend::live::{self, Connection};
use crate::kernel::cgroup::Cgroup;
use crate::kernel::sock_diag::list;
use crate::netfilter::conntrack::{self, Entry, Status, Tuple};
use crate::netfilter::{self, Socket};

/// Connections to an endpoint that are looked up: one tells about all, and there may be thousands.
const SAMPLE: usize = 16;
/// Connections that are looked up at once: each costs a question to the kernel.
const LOOKS: usize = 512;

/// What the connections to an endpoint show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// Each that is tracked goes as it is, and at least one was answered.
    Free,
    /// One is translated, and how.
    Translated(String),
}

/// Looks at connections of the proxy. An endpoint that is not among the answers: no connection to it is tracked, or
/// none is answered yet.
///
/// # Errors
///
/// If the kernel does not answer.
pub fn ways(connections: &[Connection]) -> Result<BTreeMap<SocketAddr, Way>, netfilter::Error> {
    let mut by_endpoint: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for one in connections {
        let of_endpoint = by_endpoint.entry(one.vip).or_default();
        if of_endpoint.len() < SAMPLE {
            of_endpoint.push(*one);
        }
    }
    let mut ways = BTreeMap::new();
    if by_endpoint.is_empty() {
        return Ok(ways);
    }
    let mut socket = Socket::open()?;
    let mut looks = 0;
    for (endpoint, connections) in by_endpoint {
        looks += connections.len();
        if looks > LOOKS {
            break;
        }
        let mut entries = Vec::new();
        for Connection { client, vip } in connections {
            let entry = conntrack::opened_by(&mut socket, client, vip)?;
            // What others have opened to the proxy is found by its answers.
            entries.extend(entry.filter(|entry| entry.original == Tuple::new(client, vip)));
        }
        if let Some(way) = judge(&entries) {
            ways.insert(endpoint, way);
        }
    }
    Ok(ways)
}

/// The connections of sockets that were made in these cgroups: those that the proxy has opened, and those that it has
/// accepted the other way round.
///
/// # Errors
///
/// If the kernel does not answer.
pub fn connections(cgroups: &[Cgroup]) -> Result<Vec<Connection>, live::Error> {
    let mut connections = Vec::new();
    for cgroup in cgroups {
        let sockets = list::connected_in(cgroup.id).map_err(live::Error::Sockets)?;
        connections.extend(sockets.iter().map(|sock| Connection {
            client: sock.local,
            vip: sock.remote,
        }));
    }
    Ok(connections)
}

fn judge(entries: &[Entry]) -> Option<Way> {
    let is_translated = |entry: &&Entry| entry.reply != entry.original.mirrored();
    if let Some(entry) = entries.iter().find(is_translated) {
        return Some(Way::Translated(format!(
            "NAT: conntrack has {} answered as {}",
            entry.original, entry.reply
        )));
    }
    // Without an answer nothing says that the way works. A health check may be reset right after it.
    let is_answered = |entry: &Entry| entry.status.contains(Status::SeenReply);
    entries.iter().any(is_answered).then_some(Way::Free)
}

#[cfg(test)]
mod tests {
    use super::*;
    fn entry(reply: (&str, &str)) -> Entry {
        let tuple = |source: &str, destination: &str| Tuple {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        };
        Entry {
            original: tuple("192.0.2.10:40000", "192.0.2.1:443"),
            reply: tuple(reply.0, reply.1),
            status: Status::SeenReply,
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
        let mut unanswered = free.clone();
        unanswered.status = Status::empty();
        assert_eq!(judge(std::slice::from_ref(&unanswered)), None);
        assert_eq!(judge(&[unanswered, free.clone()]), Some(Way::Free));
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
