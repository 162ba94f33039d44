// SPDX-License-Identifier: Apache-2.0

//! Whether the backend and the kernel support the rules.

use std::net::SocketAddr;

use proxy_kernel::cgroup::Cgroup;
use proxy_netlink::netfilter::{self, Family, Table};

use super::rules::{self, Desired};
use crate::backend::decisions::of_proxy;
use crate::backend::tables;
use crate::instance::Instance;
use crate::state::upstream::{Reason, Tracked};

/// Capacity of the sets in the test.
const SIZE: u32 = 1024;

/// Why no endpoint can be untracked with a backend without native rules.
pub fn of_backend(backend: &str) -> Tracked {
    // `cgroup_mt_reg` of net/netfilter/xt_cgroup.c: LOCAL_OUT, POST_ROUTING, LOCAL_IN.
    let why = match backend {
        "iptables" => ": with iptables, the cgroup match cannot see answers before conntrack does",
        _ => "",
    };
    let detail = format!("backend {backend} tracks the proxy's own connections{why}");
    Tracked::new(Reason::Backend, detail)
}

/// Lets the kernel check the rules of these families.
///
/// # Errors
///
/// The kernel's error.
pub fn rehearse(
    instance: Instance,
    families: &[Family],
    endpoints: &[SocketAddr],
    learns_in: Vec<Family>,
) -> Result<(), netfilter::Error> {
    let desired = Desired {
        endpoints: endpoints.to_vec(),
        left: Vec::new(),
        cgroups: vec![Cgroup {
            id: 1,
            path: "/".to_owned(),
            levels: vec![1],
        }],
        learns_in,
    };
    let tables = rules::tables(instance, families, &desired).into_iter();
    let with_sets = tables.map(|table| Table {
        sets: of_proxy::sets(SIZE),
        ..table
    });
    tables::rehearse(with_sets.collect())
}

/// Whether the error is permanent, because the kernel lacks a feature.
pub fn is_final(error: &netfilter::Error) -> bool {
    let missing = [
        libc::EOPNOTSUPP,
        libc::ENOENT,
        libc::EINVAL,
        libc::EAFNOSUPPORT,
    ];
    error.errno().is_some_and(|errno| missing.contains(&errno))
}
