// SPDX-License-Identifier: Apache-2.0

//! Attaches the programs of sockets to the network namespace and to the root cgroup, with pinned links.

use std::fs::File;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, PinnedLink};

use super::Settings;
use super::attach::{self, AttachError};
use super::hook::SocketHook;
use super::load::Programs;
use crate::kernel::bpffs;

/// The directory where the links are pinned, each under the name of its program.
pub const PINS: &str = "sockets";

/// The network namespace that the agent works in.
const NETNS: &str = "/proc/thread-self/ns/net";

/// Where that directory is.
pub fn pins_dir(settings: &Settings) -> PathBuf {
    settings.bpffs.join(PINS)
}

fn pin_path(hook: SocketHook, settings: &Settings) -> PathBuf {
    pins_dir(settings).join(hook.program())
}

/// Whether a link is pinned.
pub fn is_pinned(hook: SocketHook, settings: &Settings) -> bool {
    pin_path(hook, settings).exists()
}

/// The id of the program that a pinned link holds; none if there is no such pin.
///
/// # Errors
///
/// The kernel's answer.
pub fn attached(hook: SocketHook, settings: &Settings) -> Result<Option<u32>, AttachError> {
    if !is_pinned(hook, settings) {
        return Ok(None);
    }
    let link = FdLink::from(PinnedLink::from_pin(pin_path(hook, settings))?);
    Ok(Some(link.info()?.program_id()))
}

/// Attaches the loaded program. An older one of ours is there until the new one is. `root`: that of the
/// cgroup2 hierarchy, for programs that go there.
pub fn attach(
    programs: &mut Programs,
    hook: SocketHook,
    root: Option<&Path>,
    settings: &Settings,
) -> Result<(), AttachError> {
    bpffs::create_dir(&pins_dir(settings))?;
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
    attach::pin(link, &pin_path(hook, settings))
}

/// Detaches a program.
pub fn detach(hook: SocketHook, settings: &Settings) -> Result<(), AttachError> {
    Ok(bpffs::unpin(&pin_path(hook, settings))?)
}
