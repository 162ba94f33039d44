// SPDX-License-Identifier: Apache-2.0

//! Attaches the programs of sockets to the network namespace and to the root cgroup, by pinned links.

use std::fs::File;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, PinnedLink};
use proxy_kernel::bpffs;

use super::attachment::AttachError;
use super::hook::SocketHook;
use super::load::Programs;
use super::pins::{self, sockets_dir};
use crate::config::Config;

/// The network namespace of this thread.
const NETNS: &str = "/proc/thread-self/ns/net";

fn pin_path(hook: SocketHook, config: &Config) -> PathBuf {
    sockets_dir(config).join(hook.program())
}

/// Whether the program's link is pinned.
pub fn is_pinned(hook: SocketHook, config: &Config) -> bool {
    pin_path(hook, config).exists()
}

/// The id of the program that a pinned link holds; none without a pin.
///
/// # Errors
///
/// The kernel's answer.
pub fn attached(hook: SocketHook, config: &Config) -> Result<Option<u32>, AttachError> {
    if !is_pinned(hook, config) {
        return Ok(None);
    }
    let link = FdLink::from(PinnedLink::from_pin(pin_path(hook, config))?);
    Ok(Some(link.info()?.program_id()))
}

/// Attaches the loaded program; an older one stays attached until then. `root` is that of the cgroup2 hierarchy, for programs that
/// are attached there.
pub fn attach(
    programs: &mut Programs,
    hook: SocketHook,
    root: Option<&Path>,
    config: &Config,
) -> Result<(), AttachError> {
    bpffs::create_dir(&sockets_dir(config))?;
    let place = match (hook.is_of_cgroup(), root) {
        (true, Some(root)) => root,
        (true, None) => return Ok(()),
        (false, _) => Path::new(NETNS),
    };
    let place = File::open(place).map_err(|source| AttachError::File {
        path: place.to_owned(),
        source,
    })?;
    let link = programs.attach_socket(hook, place)?;
    pins::pin(link, &pin_path(hook, config))
}

/// Detaches a program.
pub fn detach(hook: SocketHook, config: &Config) -> Result<(), AttachError> {
    Ok(bpffs::unpin(&pin_path(hook, config))?)
}
