// SPDX-License-Identifier: Apache-2.0

//! Who listens on the VIPs' ports: the proxy, nobody, or somebody who listens on all addresses and
//! keeps the proxy from its port.

use std::net::SocketAddr;

use super::check::Check;
use super::processes;
use super::subject::Subject;
use crate::kernel::sockets::{self, Listener};

const ID: &str = "listener";

pub fn checks(subject: &Subject) -> Vec<Check> {
    if let Some(check) = subject.without_vips(ID) {
        return vec![check];
    }
    let listeners = match sockets::listeners() {
        Ok(listeners) => listeners,
        Err(error) => {
            let what = "read the list of listening sockets";
            return vec![Check::unknown(ID, what, &error, "mount /proc")];
        }
    };
    let endpoints = subject.endpoints();
    let relevant = |listener: &&Listener| {
        let address = listener.address;
        endpoints
            .iter()
            .any(|endpoint| endpoint.port() == address.port())
    };
    let inodes: Vec<_> = listeners
        .iter()
        .filter(relevant)
        .map(|found| found.inode)
        .collect();
    let holders = processes::holders(&inodes);
    let name = |listener: &Listener| match holders.get(&listener.inode) {
        Some((pid, name)) => format!("{name} (pid {pid})"),
        None => "a process that cannot be seen from here".to_owned(),
    };
    endpoints
        .iter()
        .map(|endpoint| judge(*endpoint, &listeners, name))
        .collect()
}

fn judge(
    endpoint: SocketAddr,
    listeners: &[Listener],
    name: impl Fn(&Listener) -> String,
) -> Check {
    let exact = listeners.iter().find(|found| found.address == endpoint);
    if let Some(listener) = exact {
        return Check::ok(ID, format!("{} listens on {endpoint}", name(listener)));
    }
    if let Some(listener) = listeners.iter().find(|found| found.takes(endpoint)) {
        let (name, address) = (name(listener), listener.address);
        return Check::warning(
            ID,
            format!(
                "{name} listens on {address}: it gets the connections to {endpoint}, and the proxy \
                 cannot listen there"
            ),
            format!(
                "if that is not the proxy, have it listen on the node's own addresses only, or on \
                 another port than {}; then start the proxy",
                endpoint.port()
            ),
        );
    }
    Check::warning(
        ID,
        format!("nobody listens on {endpoint}: connections to it are refused"),
        "start the proxy, and look into its log for why it does not listen there",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Verdict;

    #[test]
    fn the_listener_of_the_vip_comes_before_that_of_all_addresses() {
        let judged = |endpoint: &str, listeners: &[&str]| {
            let listeners: Vec<_> = listeners
                .iter()
                .map(|address| Listener {
                    address: address.parse().unwrap(),
                    inode: 1,
                })
                .collect();
            let check = judge(endpoint.parse().unwrap(), &listeners, |_| "x".to_owned());
            (check.verdict, check.finding.contains("nobody"))
        };
        let (ok, taken, nobody) = (
            (Verdict::Ok, false),
            (Verdict::Warning, false),
            (Verdict::Warning, true),
        );
        let vip = "10.96.0.2:443";
        assert_eq!(judged(vip, &["0.0.0.0:443", "10.96.0.2:443"]), ok);
        assert_eq!(judged(vip, &["0.0.0.0:443"]), taken);
        assert_eq!(judged(vip, &["[::]:443"]), taken);
        assert_eq!(judged(vip, &["0.0.0.0:8443", "10.0.0.1:443"]), nobody);
        assert_eq!(judged("[fd00::2]:443", &["0.0.0.0:443"]), nobody);
        assert_eq!(judged("[fd00::2]:443", &["[::]:443"]), taken);
    }
}
