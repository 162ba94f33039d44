// SPDX-License-Identifier: Apache-2.0

//! The conntrack entries of a namespace, as conntrack(8) lists them.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use anyhow::{Context as _, Result};

use crate::Family;
use crate::netns::Netns;

/// A tracked TCP connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The source of the first packet that was tracked.
    pub source: SocketAddr,
    /// The address to which that packet was sent, before any translation.
    pub destination: SocketAddr,
    /// The source of the replies.
    pub reply_source: SocketAddr,
    /// The whole line of conntrack(8).
    pub line: String,
}

impl Entry {
    /// Returns true if one of the connection's ends, in either role, is the proxy, under the address of the VIP or the
    /// ClusterIP.
    #[must_use]
    pub fn is_proxy(&self, family: Family) -> bool {
        [self.source, self.destination, self.reply_source]
            .iter()
            .any(|end| *end == family.vip_socket() || *end == family.cluster_ip_socket())
    }
}

impl FromStr for Entry {
    type Err = anyhow::Error;

    /// `tcp 6 119 TIME_WAIT src=… dst=… sport=… dport=… src=… dst=… sport=… dport=… [ASSURED] …`
    fn from_str(line: &str) -> Result<Self> {
        let nth = |key: &str, n: usize| {
            line.split_whitespace()
                .filter_map(|word| word.strip_prefix(key))
                .nth(n)
                .with_context(|| format!("no {key} in {line:?}"))
        };
        let end = |address: &str, port: &str, n: usize| -> Result<SocketAddr> {
            let address: IpAddr = nth(address, n)?.parse()?;
            Ok(SocketAddr::new(address, nth(port, n)?.parse()?))
        };
        Ok(Self {
            source: end("src=", "sport=", 0)?,
            destination: end("dst=", "dport=", 0)?,
            reply_source: end("src=", "sport=", 1)?,
            line: line.to_owned(),
        })
    }
}

/// Returns the tracked TCP connections of the proxy.
///
/// # Errors
/// Returns an error if conntrack(8) fails or its output cannot be parsed.
pub fn list(netns: &Netns, family: Family) -> Result<Vec<Entry>> {
    let mut entries = list_all(netns, family)?;
    entries.retain(|entry| entry.is_proxy(family));
    Ok(entries)
}

/// Returns all tracked TCP connections.
///
/// # Errors
/// Returns the same errors as [`list`].
pub fn list_all(netns: &Netns, family: Family) -> Result<Vec<Entry>> {
    let name = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    netns
        .exec(&format!("conntrack -L -f {name} -p tcp"))?
        .lines()
        .map(str::parse)
        .collect()
}

/// Returns the entries of one client in such a list: those with its address and port as the source, and those for which
/// conntrack took the proxy's replies for a connection of its own.
#[must_use]
pub fn of_client(entries: &[Entry], client: SocketAddr) -> Vec<&Entry> {
    entries
        .iter()
        .filter(|entry| entry.source == client || entry.destination == client)
        .collect()
}

/// Deletes every conntrack entry.
///
/// # Errors
/// Returns an error if conntrack(8) fails.
pub fn flush(netns: &Netns) -> Result<()> {
    netns.exec("conntrack -F").map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_parsed() {
        let entry: Entry =
            "tcp      6 431999 ESTABLISHED src=10.244.0.10 dst=10.96.0.1 sport=4711 \
                            dport=443 src=10.96.0.2 dst=10.244.0.10 sport=443 dport=4711 [ASSURED] \
                            mark=0 use=1"
                .parse()
                .expect("a line of conntrack -L");
        assert_eq!(entry.source.to_string(), "10.244.0.10:4711");
        assert_eq!(entry.destination, Family::V4.cluster_ip_socket());
        assert_eq!(entry.reply_source, Family::V4.vip_socket());
        assert!(entry.is_proxy(Family::V4));
        assert_eq!(
            of_client(std::slice::from_ref(&entry), entry.source).len(),
            1
        );
    }
}
