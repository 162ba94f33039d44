// SPDX-License-Identifier: Apache-2.0

//! Directories of pinned links, below that of the maps.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use aya::programs::links::FdLink;
use proxy_kernel::bpffs;

use super::attachment::AttachError;
use super::hook::Hook;
use super::{layout, maps};
use crate::config::Config;
use crate::instance::Instance;

/// The directory of socket programs' links, with the program's name as file name.
pub const SOCKETS: &str = "sockets";
/// The directory of XDP links, with the ifindex as file name.
pub const XDP: &str = "xdp";

/// The directory of tcx links, with the ifindex as file name.
pub fn links_dir(hook: Hook, config: &Config) -> PathBuf {
    config.bpffs.join(hook.pins())
}

/// The directory of socket programs' links.
pub fn sockets_dir(config: &Config) -> PathBuf {
    config.bpffs.join(SOCKETS)
}

/// The directory of XDP links.
pub fn xdp_dir(config: &Config) -> PathBuf {
    config.bpffs.join(XDP)
}

/// Pins a link, replacing an older one atomically: the old one stays attached until the new one is.
pub fn pin(link: FdLink, path: &Path) -> Result<(), AttachError> {
    bpffs::replace(path, |fresh| Ok(link.pin(fresh).map(drop)?))
}

/// Removes a directory of pins. If its name is no version of the layout, only the agent's pins are removed: it may contain pins
/// of others.
///
/// # Errors
///
/// The kernel's error.
pub fn remove(directory: &Path) -> Result<(), bpffs::Error> {
    if layout::is_version(directory) {
        bpffs::remove_dir(directory)?;
    }
    for map in maps::PINNED {
        bpffs::unpin(&directory.join(map))?;
        bpffs::unpin(&bpffs::unfinished(&directory.join(map)))?;
        bpffs::unpin(&maps::old_pin(map, directory))?;
    }
    for pins in Hook::ALL.map(Hook::pins).iter().chain(&[SOCKETS, XDP]) {
        bpffs::remove_dir(&directory.join(pins))?;
    }
    bpffs::remove_empty_dir(directory)?;
    // The parent directory belongs to the agent if it has the name of an instance.
    let is_ours = |name: &OsStr| Instance::of_mark(&name.to_string_lossy()).is_some();
    match directory.parent() {
        Some(parent) if parent.file_name().is_some_and(is_ours) => bpffs::remove_empty_dir(parent),
        _ => Ok(()),
    }
}
