// SPDX-License-Identifier: Apache-2.0

//! The cgroup2 hierarchy of the host: its mount point, and the directory that belongs to an id that the kernel reports.

use std::fs;
use std::io;
use std::os::unix::fs::{DirEntryExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The id of the root, which is the inode number of its directory (`KERNFS_ROOT_INO`). Every process is below it.
pub const ROOT_ID: u64 = 1;

/// A cgroup other than the root.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cgroup {
    /// The id that the kernel reports (`INET_DIAG_CGROUP_ID`). It is never reused.
    pub id: u64,
    /// The path relative to the root of the hierarchy, with a leading slash.
    pub path: String,
    /// The levels at which nf_tables may find the cgroup: kernels count from the host's root, or from that of the
    /// agent's cgroup namespace.
    pub levels: Vec<u8>,
}

/// Finds the root of the host's cgroup2 hierarchy among the mounts of this process.
///
/// Only the root has no `cgroup.events`. With this criterion, a part of the hierarchy that appears as the root in a
/// container is not mistaken for it.
#[must_use]
pub fn root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    cgroup2_mounts(&mounts)
        .find(|mount| mount.join("cgroup.procs").exists() && !mount.join("cgroup.events").exists())
}

/// Returns the name of a cgroup directly below a cgroup's directory, if there is one.
///
/// # Errors
///
/// Returns an error if the directory cannot be read.
pub fn any_below(directory: &Path) -> io::Result<Option<String>> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            return Ok(Some(entry.file_name().display().to_string()));
        }
    }
    Ok(None)
}

/// Finds the cgroup with this id below `root`, level by level. Returns `None` if it no longer exists.
///
/// The id of a cgroup is the inode number of its directory on 64-bit kernels since 5.5 (`kernfs_ino` of
/// `linux/kernfs.h`), and directory entries contain the inode number, so no directory has to be opened for the
/// comparison.
///
/// # Errors
///
/// Returns an error if the hierarchy cannot be read. Directories that disappear in the meantime are skipped.
pub fn find(root: &Path, id: u64) -> io::Result<Option<Cgroup>> {
    let mut level: Vec<PathBuf> = vec![root.to_owned()];
    let mut depth = 0_usize;
    while !level.is_empty() {
        depth += 1;
        let mut next = Vec::new();
        for directory in level {
            let entries = match fs::read_dir(&directory) {
                Ok(entries) => entries,
                Err(error) if depth > 1 && error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            for entry in entries {
                // A directory that is removed while it is read ends its list of entries.
                let Ok(entry) = entry else { break };
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                let path = entry.path();
                if entry.ino() == id {
                    let below = path.strip_prefix(root).unwrap_or(&path);
                    return Ok(Some(Cgroup {
                        id,
                        path: format!("/{}", below.display()),
                        levels: levels(depth, namespace_depth(root)),
                    }));
                }
                next.push(path);
            }
        }
        level = next;
    }
    Ok(None)
}

/// Returns true if a cgroup still exists, by its directory below `root`.
#[must_use]
pub fn is_there(root: &Path, cgroup: &Cgroup) -> bool {
    let directory = root.join(cgroup.path.trim_start_matches('/'));
    fs::metadata(directory).is_ok_and(|found| found.ino() == cgroup.id)
}

/// Returns the levels at which a rule of nf_tables may find a cgroup that is `depth` levels below the host's root, for
/// an agent whose cgroup namespace begins `namespace` levels below it.
///
/// Older kernels count from the host's root, newer ones from the root of the cgroup namespace of the process that
/// creates the rule (`nft_socket_cgroup_subtree_level` of `net/netfilter/nft_socket.c`, Linux 6.11 and stable
/// releases). A rule with the wrong level matches nothing, since it compares the id of an ancestor, and no two cgroups
/// have the same id: so a rule for each level can be installed. The list is empty if newer kernels cannot express the
/// level, because the cgroup is nearer to the host's root than the namespace.
fn levels(depth: usize, namespace: usize) -> Vec<u8> {
    let Some(relative) = depth.checked_sub(namespace) else {
        return Vec::new();
    };
    let mut levels: Vec<u8> = [depth, relative]
        .into_iter()
        .filter_map(|level| u8::try_from(level).ok())
        .collect();
    levels.dedup();
    levels
}

/// Returns the number of levels between the host's root and the root of this process's cgroup namespace: in mountinfo,
/// the root of a mount of the host's root contains one `..` for each level (`cgroup_namespaces(7)`).
fn namespace_depth(root: &Path) -> usize {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    depth_in(&mounts, root)
}

fn depth_in(mountinfo: &str, root: &Path) -> usize {
    let shown = mountinfo.lines().find_map(|line| {
        // ID PARENT MAJOR:MINOR ROOT MOUNT-POINT … (proc(5))
        let mut fields = line.split(' ').skip(3);
        let (shown, point) = (fields.next()?, fields.next()?);
        (Path::new(&unescaped(point)) == root).then_some(shown)
    });
    let parts = shown.unwrap_or_default().split('/');
    parts.filter(|part| *part == "..").count()
}

/// Returns the mount points of cgroup2 in the text of /proc/self/mounts (proc(5), fstab(5)).
fn cgroup2_mounts(mounts: &str) -> impl Iterator<Item = PathBuf> + '_ {
    mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (_, directory, kind) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(unescaped(directory)))
    })
}

fn unescaped(directory: &str) -> String {
    directory.replace("\\040", " ")
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

    #[test]
    fn levels_are_those_of_either_way_to_count() {
        assert_eq!(levels(2, 0), [2]);
        assert_eq!(levels(4, 3), [4, 1]);
        // The agent's container and the proxy's are siblings, so the level is that of the namespace's root itself.
        assert_eq!(levels(4, 4), [4, 0]);
        assert!(levels(1, 4).is_empty());
        assert_eq!(levels(300, 299), [1]);
    }

    #[test]
    fn a_namespace_shows_how_deep_it_is() {
        let root = Path::new("/host/cgroup");
        let line = |shown: &str| {
            format!(
                "21 1 0:5 / /proc rw - proc proc rw\n30 21 0:26 {shown} /host/cgroup rw - cgroup2 c rw"
            )
        };
        assert_eq!(depth_in(&line("/"), root), 0);
        assert_eq!(depth_in(&line("/../../.."), root), 3);
        assert_eq!(depth_in("", root), 0);
    }

    /// The test works on any file system.
    #[test]
    fn a_directory_is_found_by_its_inode_number() {
        let root = std::env::temp_dir().join(format!("proxy-agent-cgroup-{}", std::process::id()));
        let deep = root.join("a/b/c");
        fs::create_dir_all(&deep).unwrap();
        fs::create_dir_all(root.join("d")).unwrap();
        let id = fs::metadata(&deep).unwrap().ino();
        let found = find(&root, id).unwrap().unwrap();
        assert_eq!((&*found.path, &found.levels[..]), ("/a/b/c", &[3][..]));
        assert!(is_there(&root, &found));
        fs::remove_dir(&deep).unwrap();
        assert!(!is_there(&root, &found));
        assert_eq!(find(&root, id).unwrap(), None);
        fs::remove_dir_all(&root).unwrap();
        assert!(find(&root, id).is_err());
    }
}
