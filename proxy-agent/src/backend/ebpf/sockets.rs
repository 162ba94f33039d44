// SPDX-License-Identifier: Apache-2.0

//! Attaches the programs of sockets to the network namespace and to the root cgroup, with pinned links.

use std::fs::{self, File};
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

/// The root of the host's cgroup2 hierarchy, from the mounts of this process.
///
/// Only the root has no `cgroup.events`: a container that sees a part of the hierarchy as its
/// root is told apart by that.
pub fn root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    cgroup2_mounts(&mounts)
        .find(|mount| mount.join("cgroup.procs").exists() && !mount.join("cgroup.events").exists())
}

/// Where cgroup2 is mounted, from the text of /proc/self/mounts (proc(5), fstab(5)).
fn cgroup2_mounts(mounts: &str) -> impl Iterator<Item = PathBuf> + '_ {
    mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (_, directory, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(directory.replace("\\040", " ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup2_is_found_where_it_is_mounted() {
        let unified = "sysfs /sys sysfs rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n";
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
                      none /a\\040b cgroup2 rw 0 0\n";
        let found = |text| cgroup2_mounts(text).collect::<Vec<_>>();
        assert_eq!(found(unified), [PathBuf::from("/sys/fs/cgroup")]);
        assert_eq!(
            found(hybrid),
            [
                PathBuf::from("/sys/fs/cgroup/unified"),
                PathBuf::from("/a b")
            ]
        );
        assert!(found("").is_empty());
        assert!(found("cgroup2\n").is_empty());
    }
}
