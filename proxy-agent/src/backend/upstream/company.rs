// SPDX-License-Identifier: Apache-2.0

//! Whether a cgroup holds more than the proxy: what other processes connect to says nothing about the API servers.
//!
//! Neither the id of the proxy's process nor a look at the sockets of processes is needed. Processes of pid namespaces
//! that the agent does not see count as the proxy's: a container's cgroup is its own.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use crate::kernel::cgroup::{self, Cgroup};

/// A process of a cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Process {
    pid: u32,
    parent: u32,
    /// As /proc has it: at most 15 bytes of the name of its program.
    name: String,
}

/// Why one of these cgroups may hold more than the proxy, if it may.
pub fn found_in(cgroups: &[Cgroup]) -> Option<String> {
    let root = cgroup::root();
    cgroups.iter().find_map(|cgroup| {
        let Some(root) = &root else {
            return Some("the host's cgroup2 hierarchy is not mounted here".to_owned());
        };
        look(root, cgroup).unwrap_or_else(|error| {
            // One that has just gone is reported by what looks for the proxy.
            (error.kind() != io::ErrorKind::NotFound)
                .then(|| format!("cannot look into cgroup {}: {error}", cgroup.path))
        })
    })
}

fn look(root: &Path, cgroup: &Cgroup) -> io::Result<Option<String>> {
    let directory = root.join(cgroup.path.trim_start_matches('/'));
    for entry in fs::read_dir(&directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            return Ok(Some(format!(
                "the proxy's cgroup {} has others below it, as {}: rules for it are for their processes too",
                cgroup.path,
                entry.file_name().display()
            )));
        }
    }
    let pids = fs::read_to_string(directory.join("cgroup.procs"))?;
    // Zero stands for each process that is not seen from here.
    let pids = pids.lines().filter_map(|line| line.parse().ok());
    let processes: Vec<_> = pids.filter(|pid| *pid != 0).filter_map(process).collect();
    Ok(several_programs(&processes).map(|names| {
        format!(
            "more than the proxy runs in cgroup {}: {}",
            cgroup.path,
            names.join(", ")
        )
    }))
}

/// None: it has ended.
fn process(pid: u32) -> Option<Process> {
    parse(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Of the text of /proc/PID/stat (proc(5)): the name stands in parentheses and may hold any byte.
fn parse(pid: u32, stat: &str) -> Option<Process> {
    let (_, rest) = stat.split_once('(')?;
    let (name, rest) = rest.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    Some(Process {
        pid,
        parent: fields.nth(1)?.parse().ok()?,
        name: name.to_owned(),
    })
}

/// The names of several programs, if several run. A process that has others of these as its children only starts and
/// watches them (`tini`, Envoy's hot restarter, a shell, HAProxy's master).
fn several_programs(processes: &[Process]) -> Option<Vec<String>> {
    let parents: BTreeSet<_> = processes.iter().map(|process| process.parent).collect();
    let leaves = processes
        .iter()
        .filter(|process| !parents.contains(&process.pid));
    let names: BTreeSet<_> = leaves.map(|process| process.name.clone()).collect();
    (names.len() > 1).then(|| names.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn processes(list: &[(u32, u32, &str)]) -> Vec<Process> {
        let process = |(pid, parent, name): &(u32, u32, &str)| Process {
            pid: *pid,
            parent: *parent,
            name: (*name).to_owned(),
        };
        list.iter().map(process).collect()
    }

    #[test]
    fn what_starts_the_proxy_is_no_company() {
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
    fn a_name_may_hold_anything() {
        let read = parse(7, "7 (a) R (1) S 3 7 7 0 -1 4194560").unwrap();
        assert_eq!((read.parent, &*read.name), (3, "a) R (1"));
        assert_eq!(parse(7, "7 (a"), None);
        let own = process(std::process::id()).unwrap();
        assert_eq!(own.parent, std::os::unix::process::parent_id());
    }

    #[test]
    fn cgroups_below_it_are_company() {
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

    proptest! {
        #[test]
        fn any_text_is_read(text: String) {
            let _ = parse(7, &text);
        }
    }
}
