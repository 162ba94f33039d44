// SPDX-License-Identifier: Apache-2.0

//! Whether a cgroup holds other processes than the proxy, whose connections are no evidence of API servers.
//!
//! This needs neither the proxy's pid nor the owners of sockets. Processes in PID namespaces that the agent cannot see count as the
//! proxy's, because a container's cgroup is its own.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use proxy_kernel::cgroup::{self, Cgroup};
use proxy_kernel::processes::{self, Member};

/// Why one of these cgroups may hold other processes than the proxy.
pub fn found_in(cgroups: &[Cgroup]) -> Option<String> {
    let root = cgroup::root();
    cgroups.iter().find_map(|cgroup| {
        let Some(root) = &root else {
            return Some("the host's cgroup2 hierarchy is not mounted here".to_owned());
        };
        look(root, cgroup).unwrap_or_else(|error| {
            // If it is gone, the search for the proxy's cgroup reports it.
            (error.kind() != io::ErrorKind::NotFound)
                .then(|| format!("cannot read cgroup {}: {error}", cgroup.path))
        })
    })
}

fn look(root: &Path, cgroup: &Cgroup) -> io::Result<Option<String>> {
    let directory = root.join(cgroup.path.trim_start_matches('/'));
    if let Some(below) = cgroup::any_below(&directory)? {
        return Ok(Some(format!(
            "the proxy's cgroup {} has child cgroups such as {below}, and its rules apply to their processes too",
            cgroup.path
        )));
    }
    let processes = processes::in_cgroup(&directory)?;
    Ok(several_programs(&processes).map(|names| {
        format!(
            "other processes than the proxy run in cgroup {}: {}",
            cgroup.path,
            names.join(", ")
        )
    }))
}

/// The names of the programs, if there are several. A parent of other processes of the cgroup is assumed to start and supervise
/// them (`tini`, Envoy's hot restarter, a shell, HAProxy's master) and does not count.
fn several_programs(processes: &[Member]) -> Option<Vec<String>> {
    let parents: BTreeSet<_> = processes.iter().map(|process| process.parent).collect();
    let leaves = processes
        .iter()
        .filter(|process| !parents.contains(&process.pid));
    let names: BTreeSet<_> = leaves.map(|process| process.name.clone()).collect();
    (names.len() > 1).then(|| names.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn processes(list: &[(u32, u32, &str)]) -> Vec<Member> {
        let process = |(pid, parent, name): &(u32, u32, &str)| Member {
            pid: *pid,
            parent: *parent,
            name: (*name).to_owned(),
        };
        list.iter().map(process).collect()
    }

    #[test]
    fn a_supervisor_of_the_proxy_does_not_count() {
        for alone in [
            &[][..],
            &[(7, 1, "haproxy")],
            &[(7, 1, "haproxy"), (8, 7, "haproxy"), (9, 7, "haproxy")],
            &[(7, 1, "tini"), (8, 7, "python3"), (9, 8, "envoy")],
            &[(7, 1, "envoy"), (9, 2, "envoy")],
        ] {
            assert_eq!(several_programs(&processes(alone)), None, "{alone:?}");
        }
        for several in [
            &[(7, 1, "haproxy"), (8, 1, "curl")][..],
            &[(7, 1, "bash"), (8, 7, "haproxy"), (9, 7, "curl")],
        ] {
            let names = ["curl", "haproxy"].map(str::to_owned).to_vec();
            let found = several_programs(&processes(several));
            assert_eq!(found, Some(names), "{several:?}");
        }
    }

    #[test]
    fn child_cgroups_count_as_other_processes() {
        let root = std::env::temp_dir().join(format!("proxy-agent-company-{}", std::process::id()));
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/cgroup.procs"), "0\n").unwrap();
        fs::write(root.join("a/b/cgroup.procs"), "0\n").unwrap();
        let cgroup = |path: &str| Cgroup {
            id: 7,
            path: path.to_owned(),
            levels: vec![1],
        };
        assert!(look(&root, &cgroup("/a")).unwrap().is_some());
        assert_eq!(look(&root, &cgroup("/a/b")).unwrap(), None);
        let gone = look(&root, &cgroup("/c")).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
        fs::remove_dir_all(&root).unwrap();
    }
}
