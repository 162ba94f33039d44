// SPDX-License-Identifier: Apache-2.0

//! The listeners of the VIPs' ports: the proxy, none, or a process on the wildcard address that keeps the proxy from its port.

use std::net::SocketAddr;

use proxy_kernel::processes;
use proxy_kernel::sockets::{self, Listener};
use proxy_serve::doctor::Check;

use super::check;
use super::subject::Subject;
use crate::config::ProxyListener;

const ID: &str = "listener";

pub fn checks(subject: &Subject) -> Vec<Check> {
    if let Some(check) = subject.without_vips(ID) {
        return vec![check];
    }
    let listeners = match sockets::listeners() {
        Ok(listeners) => listeners,
        Err(error) => {
            let what = "read the list of listening sockets";
            return vec![check::unknown(ID, what, &error, "mount /proc")];
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
        None => "a process that is not visible from here".to_owned(),
    };
    endpoints
        .iter()
        .map(|endpoint| judge(*endpoint, &listeners, role(*endpoint, subject), name))
        .collect()
}

/// The role of a listener on the wildcard address for an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// It receives the endpoint's connections.
    Taker,
    /// It receives those, but not connections to Services that end on the endpoint.
    NotTheProxy,
    /// It counts as the proxy, by `--proxy-listener=any`.
    Proxy,
}

fn role(endpoint: SocketAddr, subject: &Subject) -> Role {
    let services = subject.ending_services();
    let mut services = services.iter();
    match subject
        .published()
        .map(|state| state.settings.proxy_listener)
    {
        Some(ProxyListener::Any) => Role::Proxy,
        Some(ProxyListener::Vip) if services.any(|service| service.vip == endpoint) => {
            Role::NotTheProxy
        }
        Some(ProxyListener::Vip) | None => Role::Taker,
    }
}

fn judge(
    endpoint: SocketAddr,
    listeners: &[Listener],
    role: Role,
    name: impl Fn(&Listener) -> String,
) -> Check {
    let exact = listeners.iter().find(|found| found.address == endpoint);
    if let Some(listener) = exact {
        return Check::ok(ID, format!("{} listens on {endpoint}", name(listener)));
    }
    if let Some(listener) = listeners.iter().find(|found| found.takes(endpoint)) {
        let (name, address) = (name(listener), listener.address);
        if role == Role::Proxy {
            let finding = format!(
                "{name} listens on {address}, which counts as the proxy by --proxy-listener=any"
            );
            return Check::ok(ID, finding);
        }
        let mut finding = format!(
            "{name} listens on {address}: it receives the connections to {endpoint}, and the proxy \
             cannot listen there"
        );
        let mut remedy = format!(
            "if it is not the proxy, let it listen on the node's own addresses only, or on \
             another port than {}; then start the proxy",
            endpoint.port()
        );
        if role == Role::NotTheProxy {
            finding += "; connections to Services go through kube-proxy, because with --proxy-listener=vip a \
                        listener on all addresses does not count as the proxy";
            remedy = format!(
                "{remedy}; if it is the proxy, bind it to {endpoint}, or set --proxy-listener=any"
            );
        }
        return Check::warning(ID, finding, remedy);
    }
    Check::warning(
        ID,
        format!("no process listens on {endpoint}: connections to it are refused"),
        "start the proxy, and check its log for the reason why it does not listen there",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proxy_serve::doctor::Verdict;

    #[test]
    fn a_listener_on_the_vip_precedes_one_on_all_addresses() {
        let judged = |endpoint: &str, listeners: &[&str]| {
            let listeners: Vec<_> = listeners
                .iter()
                .map(|address| Listener {
                    address: address.parse().unwrap(),
                    inode: 1,
                })
                .collect();
            let endpoint = endpoint.parse().unwrap();
            let check = judge(endpoint, &listeners, Role::Taker, |_| "x".to_owned());
            (check.verdict, check.finding.contains("no process"))
        };
        let (ok, taken, none) = (
            (Verdict::Ok, false),
            (Verdict::Warning, false),
            (Verdict::Warning, true),
        );
        let vip = "10.96.0.2:443";
        assert_eq!(judged(vip, &["0.0.0.0:443", "10.96.0.2:443"]), ok);
        assert_eq!(judged(vip, &["0.0.0.0:443"]), taken);
        assert_eq!(judged(vip, &["[::]:443"]), taken);
        assert_eq!(judged(vip, &["0.0.0.0:8443", "10.0.0.1:443"]), none);
        assert_eq!(judged("[fd00::2]:443", &["0.0.0.0:443"]), none);
        assert_eq!(judged("[fd00::2]:443", &["[::]:443"]), taken);
    }

    #[test]
    fn a_wildcard_listener_is_judged_by_its_role() {
        let wildcard = [Listener {
            address: "[::]:443".parse().unwrap(),
            inode: 1,
        }];
        let judged = |role| {
            let vip = "10.96.0.2:443".parse().unwrap();
            judge(vip, &wildcard, role, |_| "x".to_owned())
        };
        assert_eq!(judged(Role::Proxy).verdict, Verdict::Ok);
        for (role, names_the_flag) in [(Role::Taker, false), (Role::NotTheProxy, true)] {
            let check = judged(role);
            assert_eq!(check.verdict, Verdict::Warning);
            let text = format!("{check:?}");
            assert_eq!(
                text.contains("--proxy-listener=any"),
                names_the_flag,
                "{text}"
            );
        }
    }
}
