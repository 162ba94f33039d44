// SPDX-License-Identifier: Apache-2.0

//! Counts the BPF objects that an agent has in the kernel, including those that should have been released.
//!
//! The kernel lists the programs, maps and links of the whole machine, and other tests create some at the same time.
//! The maps of a program show which agent it belongs to: every program of ours uses a map that is, or was, pinned by
//! its agent.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::bpf::{Attr, bpf, info, set_pointer};
use crate::node::Node;

// These constants are from the kernel's include/uapi/linux/bpf.h.
const BPF_OBJ_GET: u32 = 7;
const BPF_PROG_GET_NEXT_ID: u32 = 11;
const BPF_MAP_GET_NEXT_ID: u32 = 12;
const BPF_PROG_GET_FD_BY_ID: u32 = 13;
const BPF_MAP_GET_FD_BY_ID: u32 = 14;
const BPF_LINK_GET_FD_BY_ID: u32 = 30;
const BPF_LINK_GET_NEXT_ID: u32 = 31;

/// A number that is larger than the number of maps of any program of ours.
const MAX_MAPS: usize = 64;

/// The numbers of BPF objects of a node's agents.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Counts {
    /// The number of programs, by name.
    pub programs: BTreeMap<String, usize>,
    /// The number of maps, by name.
    pub maps: BTreeMap<String, usize>,
    /// The number of links that hold programs, by the program's name.
    pub links: BTreeMap<String, usize>,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, counts) in [
            ("program", &self.programs),
            ("map", &self.maps),
            ("link", &self.links),
        ] {
            for (name, count) in counts {
                writeln!(f, "{kind} {name}: {count}")?;
            }
        }
        Ok(())
    }
}

/// Counts the objects of one node's agents.
#[derive(Debug, Default)]
pub struct BpfObjects {
    /// The IDs of the maps that the node's agents have pinned so far.
    pinned: BTreeSet<u32>,
}

impl BpfObjects {
    /// Records which maps are pinned now: programs that use them belong to the node.
    ///
    /// # Errors
    /// Returns an error if a pin cannot be opened.
    pub fn note(&mut self, node: &Node) -> Result<()> {
        for pin in files_below(&node.agent_bpffs()) {
            if let Some(id) = pinned_map(&pin)? {
                self.pinned.insert(id);
            }
        }
        Ok(())
    }

    /// Counts the objects of the node's agents.
    ///
    /// # Errors
    /// Returns an error if the kernel does not list its objects.
    pub fn take(&mut self, node: &Node) -> Result<Counts> {
        self.note(node)?;
        let mut counts = Counts::default();
        let mut programs = BTreeMap::new();
        let mut maps = self.pinned.clone();
        each(BPF_PROG_GET_NEXT_ID, BPF_PROG_GET_FD_BY_ID, |id, fd| {
            let program = Program::read(fd).context("asking about a program")?;
            if program.maps.is_disjoint(&self.pinned) {
                return Ok(());
            }
            *counts.programs.entry(program.name.clone()).or_default() += 1;
            maps.extend(program.maps);
            programs.insert(id, program.name);
            Ok(())
        })?;
        each(BPF_MAP_GET_NEXT_ID, BPF_MAP_GET_FD_BY_ID, |id, fd| {
            if maps.contains(&id) {
                // type, id, key_size, value_size, max_entries, map_flags, name
                let info = info(fd, [0; 10]).context("asking about a map")?;
                *counts.maps.entry(name(&info[6..10])).or_default() += 1;
            }
            Ok(())
        })?;
        each(BPF_LINK_GET_NEXT_ID, BPF_LINK_GET_FD_BY_ID, |_, fd| {
            // type, id, prog_id
            let [.., program] = info(fd, [0; 3]).context("asking about a link")?;
            if let Some(program) = programs.get(&program) {
                *counts.links.entry(program.clone()).or_default() += 1;
            }
            Ok(())
        })?;
        Ok(counts)
    }
}

struct Program {
    name: String,
    maps: BTreeSet<u32>,
}

impl Program {
    fn read(fd: &OwnedFd) -> io::Result<Self> {
        let mut maps = [0_u32; MAX_MAPS];
        // type, id, tag (8 bytes), 2 lengths, 2 pointers, load_time, created_by_uid, nr_map_ids,
        // map_ids, name (16 bytes)
        let mut asked = Attr([0; 32]);
        asked.0[13] = u32::try_from(MAX_MAPS).expect("a small number");
        set_pointer(&mut asked, 14, maps.as_mut_ptr().cast_const().cast());
        let words: [u32; 20] = asked.0[..20].try_into().expect("20 of 32");
        let info = info(fd, words)?;
        let count = usize::try_from(info[13]).unwrap_or(MAX_MAPS).min(MAX_MAPS);
        Ok(Self {
            name: name(&info[16..20]),
            maps: maps[..count].iter().copied().collect(),
        })
    }
}

/// Calls `f` for each existing object of a kind.
fn each(next: u32, by_id: u32, mut f: impl FnMut(u32, &OwnedFd) -> Result<()>) -> Result<()> {
    let mut id = 0;
    loop {
        // start_id, next_id
        let mut attr = Attr([0; 32]);
        attr.0[0] = id;
        match bpf(next, &mut attr) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            result => result.context("walking the BPF objects")?,
        };
        id = attr.0[1];
        let mut attr = Attr([0; 32]);
        attr.0[0] = id;
        match bpf(by_id, &mut attr) {
            // SAFETY: the descriptor is new and has no other owner.
            Ok(fd) => f(id, &unsafe { OwnedFd::from_raw_fd(fd) })?,
            // The object has been deleted meanwhile; the kernel returns EAGAIN for a link that is being created.
            Err(error)
                if [Some(libc::ENOENT), Some(libc::EAGAIN)].contains(&error.raw_os_error()) => {}
            Err(error) => return Err(error).context("opening a BPF object"),
        }
    }
}

fn name(words: &[u32]) -> String {
    let bytes: Vec<u8> = words
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .take_while(|byte| *byte != 0)
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Returns the ID of the map that is pinned there, or `None` if the pinned object is not a map or the pin is gone.
fn pinned_map(pin: &Path) -> Result<Option<u32>> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let mut get = Attr([0; 32]);
    set_pointer(&mut get, 0, path.as_ptr().cast());
    let fd = match bpf(BPF_OBJ_GET, &mut get) {
        // SAFETY: the descriptor is new and has no other owner.
        Ok(fd) => unsafe { OwnedFd::from_raw_fd(fd) },
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("opening {}", pin.display())),
    };
    let about = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    let id = about.lines().find_map(|line| line.strip_prefix("map_id:"));
    Ok(id.map(|id| id.trim().parse()).transpose()?)
}

/// Returns the files below a directory, sorted, or none if the directory does not exist.
#[must_use]
pub fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            files.extend(files_below(&entry.path()));
        } else {
            files.push(entry.path());
        }
    }
    files.sort_unstable();
    files
}
