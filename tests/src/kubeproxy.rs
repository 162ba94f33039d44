// SPDX-License-Identifier: Apache-2.0

//! The rules that kube-proxy and kubelet set up for the `kubernetes` Service, whose only endpoint is the VIP unless a
//! test sets another one: the DNAT from ClusterIP:443, in the three forms that kube-proxy supports.

use std::net::SocketAddr;

use anyhow::Result;

use crate::netns::Netns;
use crate::setting::Setting;
use crate::{Family, PORT};

/// The form in which kube-proxy programs the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KubeProxy {
    /// `--proxy-mode=iptables` with iptables-legacy
    IptablesLegacy,
    /// `--proxy-mode=iptables` with iptables-nft
    IptablesNft,
    /// `--proxy-mode=nftables`
    Nftables,
}

impl KubeProxy {
    /// All forms.
    pub const ALL: [Self; 3] = [Self::IptablesLegacy, Self::IptablesNft, Self::Nftables];

    /// Sets up the rules of both families in a node.
    ///
    /// # Errors
    /// Returns an error if a tool fails.
    pub fn install(self, node: &Netns) -> Result<()> {
        self.install_as(node, Family::pod_cidr, Family::vip_socket)
    }

    /// Sets up the same rules with the node's addresses counted among the pods': the node's own connections keep their
    /// source address and port, as they do without `--cluster-cidr`.
    ///
    /// # Errors
    /// Returns an error if a tool fails.
    pub fn install_without_masquerade(self, node: &Netns) -> Result<()> {
        self.install_as(node, node_cidr, Family::vip_socket)
    }

    /// Sets up the same rules with another endpoint of the Service than the VIP.
    ///
    /// # Errors
    /// Returns an error if a tool fails.
    pub fn install_to(self, node: &Netns, endpoint: fn(Family) -> SocketAddr) -> Result<()> {
        self.install_as(node, node_cidr, endpoint)
    }

    /// Sets up the same rules in nftables mode, with kube-proxy's check of unallocated addresses: it drops new tracked
    /// connections to addresses of the Service range that no Service has.
    ///
    /// # Errors
    /// Returns an error if a tool fails.
    pub fn install_with_service_range(node: &Netns) -> Result<()> {
        install_native(node, node_cidr, Family::vip_socket, true)
    }

    fn install_as(
        self,
        node: &Netns,
        pods: fn(Family) -> &'static str,
        endpoint: fn(Family) -> SocketAddr,
    ) -> Result<()> {
        let checks_range = Setting::current() == Setting::ServiceRange;
        let flavour = match self {
            Self::IptablesLegacy if !checks_range => "legacy",
            Self::IptablesNft if !checks_range => "nft",
            _ => return install_native(node, pods, endpoint, checks_range),
        };
        for (family, program) in [(Family::V4, "iptables"), (Family::V6, "ip6tables")] {
            let line = format!("{program}-{flavour}-restore --noflush --wait=10");
            let rules = iptables_rules(family, pods(family), endpoint(family));
            node.feed(&line, &rules)?;
        }
        Ok(())
    }
}

fn install_native(
    node: &Netns,
    pods: fn(Family) -> &'static str,
    endpoint: fn(Family) -> SocketAddr,
    checks_range: bool,
) -> Result<()> {
    let mut rules = String::new();
    for family in Family::ALL {
        rules += &nftables_table(family, pods(family), endpoint(family));
        if checks_range {
            rules += &service_range_check(family);
        }
    }
    node.feed("nft -f -", &rules).map(drop)
}

fn node_cidr(family: Family) -> &'static str {
    match family {
        Family::V4 => "192.168.100.0/24",
        Family::V6 => "fd00:100::/64",
    }
}

/// Returns the rules as kube-proxy writes them with `--cluster-cidr`: connections to the ClusterIP that do not come
/// from a pod are masqueraded, and so is the endpoint's connection to itself.
fn iptables_rules(family: Family, pods: &str, target: SocketAddr) -> String {
    let (endpoint, service) = (target.ip(), family.cluster_ip());
    let len = family.host_prefix();
    let loopback = match family {
        Family::V4 => "127.0.0.0/8",
        Family::V6 => "::1/128",
    };
    format!(
        r#"*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SEP-VBJ4PXQQXDDRBWSN - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-SERVICES -d {service}/{len} -p tcp -m comment --comment "default/kubernetes:https cluster IP" -m tcp --dport {PORT} -j KUBE-SVC-NPX46M4PTMTKRN6Y
-A KUBE-SVC-NPX46M4PTMTKRN6Y ! -s {pods} -d {service}/{len} -p tcp -m comment --comment "default/kubernetes:https cluster IP" -m tcp --dport {PORT} -j KUBE-MARK-MASQ
-A KUBE-SVC-NPX46M4PTMTKRN6Y -m comment --comment "default/kubernetes:https" -j KUBE-SEP-VBJ4PXQQXDDRBWSN
-A KUBE-SEP-VBJ4PXQQXDDRBWSN -s {endpoint}/{len} -m comment --comment "default/kubernetes:https" -j KUBE-MARK-MASQ
-A KUBE-SEP-VBJ4PXQQXDDRBWSN -p tcp -m comment --comment "default/kubernetes:https" -m tcp -j DNAT --to-destination {target}
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A OUTPUT -j KUBE-FIREWALL
-A INPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL ! -s {loopback} -d {loopback} -m comment --comment "block incoming localnet connections" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"#
    )
}

/// Returns the check that kube-proxy adds if it knows the Service range, in the hooks after DNAT.
fn service_range_check(family: Family) -> String {
    let (ip, address, range, reject) = match family {
        Family::V4 => ("ip", "ipv4_addr", "10.96.0.0/12", "icmp"),
        // Two ServiceCIDR objects result in an anonymous set, while a single range would result in a comparison.
        Family::V6 => ("ip6", "ipv6_addr", "fd00:96::/112, fd00:98::/112", "icmpv6"),
    };
    let service = family.cluster_ip();
    format!(
        r"table {ip} kube-proxy {{
    set cluster-ips {{
        type {address}
        elements = {{ {service} }}
    }}
    chain cluster-ips-check {{
        {ip} daddr @cluster-ips reject with {reject} type port-unreachable
        {ip} daddr {{ {range} }} drop
    }}
    chain filter-forward {{
        type filter hook forward priority filter; policy accept;
        ct state new jump cluster-ips-check
    }}
    chain filter-output {{
        type filter hook output priority filter; policy accept;
        ct state new jump cluster-ips-check
    }}
}}
"
    )
}

fn nftables_table(family: Family, pods: &str, target: SocketAddr) -> String {
    let (endpoint, service) = (target.ip(), family.cluster_ip());
    let (ip, address) = match family {
        Family::V4 => ("ip", "ipv4_addr"),
        Family::V6 => ("ip6", "ipv6_addr"),
    };
    let service_chain = "service-2QRHZV4L-default/kubernetes/tcp/https";
    let endpoint_chain = format!(
        "endpoint-KLP6FPW4-default/kubernetes/tcp/https__{endpoint}/{}",
        target.port()
    )
    .replace(':', ".");
    format!(
        r#"table {ip} kube-proxy {{
    comment "rules for kube-proxy"
    map service-ips {{
        type {address} . inet_proto . inet_service : verdict
    }}
    chain mark-for-masquerade {{
        meta mark set meta mark or 0x4000
    }}
    chain masquerading {{
        meta mark and 0x4000 == 0 return
        meta mark set meta mark xor 0x4000
        masquerade fully-random
    }}
    chain {endpoint_chain} {{
        {ip} saddr {endpoint} jump mark-for-masquerade
        meta l4proto tcp dnat to {target}
    }}
    chain {service_chain} {{
        {ip} daddr {service} tcp dport {PORT} {ip} saddr != {pods} jump mark-for-masquerade
        numgen random mod 1 vmap {{ 0 : goto {endpoint_chain} }}
    }}
    chain services {{
        {ip} daddr . meta l4proto . th dport vmap @service-ips
    }}
    chain nat-prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
        jump services
    }}
    chain nat-output {{
        type nat hook output priority -100; policy accept;
        jump services
    }}
    chain nat-postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        jump masquerading
    }}
}}
add element {ip} kube-proxy service-ips {{ {service} . tcp . {PORT} : goto {service_chain} }}
"#
    )
}
