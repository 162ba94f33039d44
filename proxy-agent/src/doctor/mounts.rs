// SPDX-License-Identifier: Apache-2.0

//! File systems that the `ebpf` backend needs: bpffs for pinned objects, and the root of cgroup2, to which the programs for
//! connect(2) are attached.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use proxy_kernel::{bpffs, cgroup};
use proxy_serve::doctor::Check;

use super::check;
use super::subject::Subject;
use crate::reconcile::report::chain;

const BPFFS: &str = "bpffs";
const CGROUP: &str = "cgroup2";

/// The usual mount point of the BPF file system.
const USUAL: &str = "/sys/fs/bpf";

pub fn checks(subject: &Subject) -> Vec<Check> {
    let path = &subject.bpffs;
    let wanted = subject
        .choice()
        .is_some_and(|choice| choice.backend == "ebpf" || choice.asked == "ebpf");
    let mount = match is_read_only(path) {
        Ok(read_only) => judge_bpffs(path, bpffs::check(path), read_only, wanted),
        Err(error) => check::unknown(BPFFS, "read the list of mounts", &error, "mount /proc"),
    };
    vec![mount, cgroup(subject)]
}

fn judge_bpffs(
    path: &Path,
    mounted: Result<(), bpffs::Error>,
    read_only: bool,
    wanted: bool,
) -> Check {
    let at = mount_point(path);
    let place = at.display();
    let (finding, remedy, command) = match mounted {
        Ok(()) if !read_only => {
            return Check::ok(BPFFS, format!("{} is on a BPF file system", path.display()));
        }
        Ok(()) => (
            format!(
                "{} is on a BPF file system that is mounted read-only",
                path.display()
            ),
            "mount it writable, in Kubernetes without readOnly at the volume mount",
            format!("mount -o remount,rw {place}"),
        ),
        Err(error) => (
            chain(&error),
            "mount one, in Kubernetes as a hostPath volume of /sys/fs/bpf",
            format!("mkdir -p {place} && mount -t bpf bpf {place}"),
        ),
    };
    let check = if wanted {
        Check::broken(BPFFS, finding, remedy)
    } else {
        Check::warning(BPFFS, format!("{finding}; backend ebpf needs one"), remedy)
    };
    check.with_command(command)
}

/// Where to mount: the usual mount point, else the nearest existing directory.
fn mount_point(path: &Path) -> PathBuf {
    if path.starts_with(USUAL) {
        return PathBuf::from(USUAL);
    }
    let existing = path.ancestors().find(|ancestor| ancestor.exists());
    match existing {
        Some(existing) if existing != Path::new("/") => existing.to_owned(),
        _ => path.to_owned(),
    }
}

/// Whether the file system of a path is mounted read-only, from the mounts of this process.
fn is_read_only(path: &Path) -> io::Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    Ok(read_only_in(&mounts, path))
}

fn read_only_in(mounts: &str, path: &Path) -> bool {
    let above = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (_, directory, _, options) = (
            fields.next()?,
            fields.next()?,
            fields.next()?,
            fields.next()?,
        );
        path.starts_with(directory)
            .then_some((directory.len(), options))
    });
    // The longest mount point contains the path; of equal ones the last is on top.
    let last = above.max_by_key(|(length, _)| *length);
    last.is_some_and(|(_, options)| options.split(',').any(|option| option == "ro"))
}

fn cgroup(subject: &Subject) -> Check {
    if subject.ending_services().is_empty() {
        return Check::not_applicable(CGROUP, "no Service ends on the proxy");
    }
    match cgroup::root() {
        Some(root) => Check::ok(
            CGROUP,
            format!("the root of cgroup2 is mounted at {}", root.display()),
        ),
        None => Check::warning(
            CGROUP,
            "the root of the host's cgroup2 hierarchy is not mounted here: connections of the node's processes \
             are not redirected, those of pods are",
            "mount /sys/fs/cgroup of the host, in Kubernetes as a hostPath volume",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proxy_serve::doctor::Verdict;

    #[test]
    fn the_mount_that_contains_the_path_counts() {
        let mounts =
            "bpf /sys/fs/bpf bpf rw,nosuid 0 0\nbpf /x bpf ro,nosuid 0 0\n/ / ext4 rw 0 0\n";
        assert!(!read_only_in(
            mounts,
            Path::new("/sys/fs/bpf/proxy-agent/v2")
        ));
        assert!(read_only_in(mounts, Path::new("/x/v1")));
        assert!(!read_only_in("", Path::new("/x")));
    }

    #[test]
    fn a_missing_mount_is_worse_if_it_is_used() {
        let path = Path::new("/sys/fs/bpf/proxy-agent/v2");
        let missing = || {
            Err(bpffs::Error::NotBpffs {
                path: path.to_owned(),
            })
        };
        assert_eq!(judge_bpffs(path, Ok(()), false, true).verdict, Verdict::Ok);
        assert_eq!(
            judge_bpffs(path, Ok(()), true, true).verdict,
            Verdict::Broken
        );
        assert_eq!(
            judge_bpffs(path, missing(), false, false).verdict,
            Verdict::Warning
        );
        let check = judge_bpffs(path, missing(), false, true);
        assert_eq!(check.verdict, Verdict::Broken);
        assert_eq!(
            check.command.as_deref(),
            Some("mkdir -p /sys/fs/bpf && mount -t bpf bpf /sys/fs/bpf")
        );
    }
}
