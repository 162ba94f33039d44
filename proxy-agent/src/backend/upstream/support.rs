// SPDX-License-Identifier: Apache-2.0

//! Tests whether the kernel supports the rules.

use std::net::SocketAddr;

use proxy_kernel::cgroup::Cgroup;
use proxy_netlink::netfilter::{self, Family, Table};

use super::rules::{self, Desired};
use crate::backend::decisions::of_proxy;
use crate::backend::tables;
use crate::instance::Instance;

/// Capacity of the sets in the test.
const SIZE: u32 = 1024;

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
