// SPDX-License-Identifier: Apache-2.0

//! Tests whether the kernel supports the rules.

use std::net::SocketAddr;

use proxy_kernel::cgroup::Cgroup;
use proxy_netlink::netfilter::{self, Family};

use super::rules::{self, Desired};
use crate::backend::tables;
use crate::instance::Instance;

/// Capacity of the sets in the test.
const SIZE: u32 = 1024;

/// Lets the kernel check the rules.
///
/// # Errors
///
/// The kernel's error.
pub fn rehearse(
    instance: Instance,
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
    tables::rehearse(rules::tables(instance, SIZE, &desired))
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
