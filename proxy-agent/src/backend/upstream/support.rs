// SPDX-License-Identifier: Apache-2.0

//! Whether the kernel takes the rules.

use std::net::SocketAddr;

use super::rules::{self, Desired};
use crate::backend::tables;
use crate::instance::Instance;
use crate::kernel::cgroup::Cgroup;
use crate::netfilter::{self, Family, Socket, Table};

/// Room in the sets, for the trial.
const SIZE: u32 = 1024;

/// Has the kernel check the rules.
///
/// # Errors
///
/// The kernel's answer.
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
    let mut socket = Socket::open()?;
    for table in rules::tables(instance, SIZE, &desired) {
        if table.chains.is_empty() {
            continue;
        }
        let rehearsal = Table {
            name: tables::REHEARSAL.to_owned(),
            ..table
        };
        rehearsal.rehearse(&mut socket)?;
    }
    Ok(())
}

/// Whether the kernel's answer is about what it has, and will be the same next time.
pub fn is_final(error: &netfilter::Error) -> bool {
    let missing = [
        libc::EOPNOTSUPP,
        libc::ENOENT,
        libc::EINVAL,
        libc::EAFNOSUPPORT,
    ];
    error.errno().is_some_and(|errno| missing.contains(&errno))
}
