// SPDX-License-Identifier: Apache-2.0

//! Whether there is NAT on the path from the proxy to an endpoint, according to conntrack's entries of the proxy's tracked
//! connections.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use proxy_netlink::netfilter::conntrack::{self, Entry, Status, Tuple};
use proxy_netlink::netfilter::{self, Socket};

use crate::backend::live::Connection;

/// Maximum number of connections to look up per endpoint: all have the same path, and there may be thousands.
const SAMPLE: usize = 16;
/// Maximum number of lookups in one call; each is a request to the kernel.
const LOOKS: usize = 512;

/// The path to an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NatPath {
    /// No tracked connection is translated, and at least one was answered.
    Free,
    /// A connection is translated; with a description.
    Translated(String),
}

/// Looks up connections of the proxy. Endpoints are left out if no connection to them is tracked, or none was answered yet.
///
/// # Errors
///
/// If a query fails.
pub fn paths(
    connections: &[Connection],
) -> Result<BTreeMap<SocketAddr, NatPath>, netfilter::Error> {
    let mut by_endpoint: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for one in connections {
        let of_endpoint = by_endpoint.entry(one.vip).or_default();
        if of_endpoint.len() < SAMPLE {
            of_endpoint.push(*one);
        }
    }
    let mut paths = BTreeMap::new();
    if by_endpoint.is_empty() {
        return Ok(paths);
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
            // The answers of connections that others have opened to the proxy have entries too.
            entries.extend(entry.filter(|entry| entry.original == Tuple::new(client, vip)));
        }
        if let Some(path) = judge(&entries) {
            paths.insert(endpoint, path);
        }
    }
    Ok(paths)
}

fn judge(entries: &[Entry]) -> Option<NatPath> {
    let is_translated = |entry: &&Entry| entry.reply != entry.original.mirrored();
    if let Some(entry) = entries.iter().find(is_translated) {
        return Some(NatPath::Translated(format!(
            "NAT: conntrack expects the answer to {} as {}",
            entry.original, entry.reply
        )));
    }
    // A path counts as working only after an answer. A health check may be reset right after it.
    let is_answered = |entry: &Entry| entry.status.contains(Status::SeenReply);
    entries.iter().any(is_answered).then_some(NatPath::Free)
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
        assert_eq!(judge(std::slice::from_ref(&free)), Some(NatPath::Free));
        let mut unanswered = free.clone();
        unanswered.status = Status::empty();
        assert_eq!(judge(std::slice::from_ref(&unanswered)), None);
        assert_eq!(judge(&[unanswered, free.clone()]), Some(NatPath::Free));
        for reply in [
            ("192.0.2.2:443", "192.0.2.10:40000"),
            ("192.0.2.1:6443", "192.0.2.10:40000"),
            ("192.0.2.1:443", "192.0.2.11:40000"),
            ("192.0.2.1:443", "192.0.2.10:40001"),
        ] {
            let path = judge(&[free.clone(), entry(reply)]);
            assert!(matches!(path, Some(NatPath::Translated(_))), "{reply:?}");
        }
    }
}
