// SPDX-License-Identifier: Apache-2.0

//! The fuzz targets. Targets of the agent, its crates and the tunnel stand in their crates
//! (`fuzzing.rs` there), those of `proxy-common` here. docs/fuzzing.md describes how to run them.

mod packet;

use proxy_agent::fuzzing;
use proxy_netlink::fuzzing as netlink;
use proxy_rules::fuzzing as rules;
use proxy_tunnel::fuzzing as tunnel;

/// Something that takes any bytes, and panics if they show a fault.
#[derive(Debug)]
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// The parser or rule that the target covers.
    pub about: &'static str,
    /// Runs it once.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    target(
        "command_line",
        "the command line, one word a line",
        fuzzing::command_line,
    ),
    target(
        "values",
        "values of flags: durations, addresses, names",
        fuzzing::values,
    ),
    target("klog", "--vmodule and the modules it names", fuzzing::klog),
    target(
        "route",
        "links and addresses from route netlink",
        netlink::route,
    ),
    target("events", "the kernel's notifications", netlink::events),
    target(
        "nf_tables",
        "tables, sets, chains and rules of nf_tables",
        netlink::nf_tables,
    ),
    target(
        "conntrack",
        "entries of connection tracking",
        netlink::conntrack,
    ),
    target("dnat", "rules that send connections to a VIP", rules::dnat),
    target(
        "firewall",
        "rules that drop packets of a VIP",
        rules::firewall,
    ),
    target(
        "iptables_save",
        "what iptables-save prints",
        fuzzing::iptables_save,
    ),
    target("ipset_list", "what ipset list prints", fuzzing::ipset_list),
    target("state", "the state file", fuzzing::state),
    target("tunnel_packet", "one packet of the tunnel", tunnel::packet),
    target(
        "tunnel_server",
        "what an agent and its clients send, in any order",
        tunnel::server,
    ),
    target(
        "tunnel_head",
        "heads of requests to a proxy and their answers",
        tunnel::head,
    ),
    target(
        "tunnel_absolute",
        "requests in absolute form and their answers, a field a line",
        tunnel::absolute,
    ),
    target(
        "tunnel_sidecar",
        "the file of a sidecar's tenants",
        tunnel::sidecar_tenants,
    ),
    target(
        "tunnel_frames",
        "frames of HTTP/2 with a client's `:authority`",
        tunnel::frames,
    ),
    target(
        "tunnel_names",
        "identifiers of agents, labels, addresses of targets",
        tunnel::names,
    ),
    target(
        "tunnel_flags",
        "the command lines of the tunnel's programs",
        tunnel::flags,
    ),
    target(
        "tunnel_tenants",
        "rules of tenants and who belongs to them",
        tunnel::tenants,
    ),
    target("tunnel_lease", "leases of servers", tunnel::lease),
    target("packet", "headers of packets", packet::packet),
    target(
        "decision",
        "the rules that decide connections",
        fuzzing::decision,
    ),
];

const fn target(name: &'static str, about: &'static str, run: fn(&[u8])) -> Target {
    Target { name, about, run }
}
