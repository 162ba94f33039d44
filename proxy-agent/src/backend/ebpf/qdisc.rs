// SPDX-License-Identifier: Apache-2.0

//! The clsact qdisc, which filters need: added to links without one, and removed if the agent has added it and no longer uses it. A
//! qdisc cannot carry a mark, so the agent writes a note into the run directory. `attach.rs` manages the filters.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::programs::tc::{TcError, qdisc_add_clsact};
use proxy_kernel::bpffs;
use proxy_netlink::route::traffic_control;
use rtnetlink::Handle;
use rtnetlink::packet_route::tc::TcHandle as QdiscHandle;
use tracing::info;

use super::attachment::AttachError;
use super::hook::Target;
use super::{PART, filters};
use crate::config::Config;
use crate::link::LinkTable;

/// Parent of the clsact qdisc (`TC_H_CLSACT` in `linux/pkt_sched.h`).
const CLSACT: QdiscHandle = QdiscHandle {
    major: 0xffff,
    minor: 0xfff1,
};

/// Adds a clsact qdisc to a link without one; the note is written before.
pub fn ensure(link: &Target, config: &Config) -> Result<(), AttachError> {
    let note = note_path(link.index, config);
    let failed = |source| AttachError::File {
        path: note.clone(),
        source,
    };
    let noted = note.exists();
    if !noted {
        fs::create_dir_all(notes_dir(&config.run_dir)).map_err(failed)?;
        fs::write(&note, link.name.as_bytes()).map_err(failed)?;
    }
    match qdisc_add_clsact(&link.name) {
        Ok(()) => Ok(()),
        Err(TcError::NetlinkError(answer)) if answer.raw_os_error() == Some(libc::EEXIST) => {
            if noted {
                Ok(())
            } else {
                // The qdisc belongs to others.
                fs::remove_file(&note).map_err(failed)
            }
        }
        Err(error) => Err(AttachError::Qdisc(error)),
    }
}

/// Removes the qdisc if the agent has added it and nothing is attached to it.
///
/// # Errors
///
/// The kernel's error.
pub async fn remove_unused(
    index: u32,
    config: &Config,
    handle: &Handle,
) -> Result<(), AttachError> {
    if !note_path(index, config).exists() {
        return Ok(());
    }
    // It may have been replaced by an `ingress` qdisc of others, which has the same parent.
    if traffic_control::has_clsact(index).await? != Some(true) {
        return forget(index, config);
    }
    if !filters::are_none(index).await? {
        return Ok(());
    }
    let mut request = handle.qdisc().del(index.cast_signed());
    let header = &mut request.message_mut().header;
    header.parent = CLSACT;
    header.handle = QdiscHandle {
        major: 0xffff,
        minor: 0,
    };
    match request.execute().await {
        // The qdisc was noted but not created, or others have removed it.
        Err(rtnetlink::Error::NetlinkError(error))
            if [-libc::ENOENT, -libc::EINVAL].contains(&error.raw_code()) => {}
        result => result.map_err(AttachError::Route)?,
    }
    forget(index, config)
}

/// Removes the notes about qdiscs of links that are gone: another link may get the ifindex, with a qdisc of others. If `unused`,
/// also removes qdiscs to which a killed agent had not attached anything yet.
///
/// # Errors
///
/// The kernel's error.
pub async fn tidy(
    config: &Config,
    table: &LinkTable,
    unused: bool,
    handle: &Handle,
) -> Result<(), AttachError> {
    for name in bpffs::names(&notes_dir(&config.run_dir))? {
        let Ok(index) = name.parse() else {
            continue;
        };
        if table.by_index(index).is_none() {
            forget(index, config)?;
        } else if unused {
            remove_unused(index, config, handle).await?;
        }
    }
    Ok(())
}

fn forget(index: u32, config: &Config) -> Result<(), AttachError> {
    let path = note_path(index, config);
    fs::remove_file(&path).map_err(|source| AttachError::File { path, source })
}

/// Removes all notes. An existing qdisc is kept then, because others have attached programs to it, perhaps another instance, which
/// has no note of it.
///
/// # Errors
///
/// The kernel's error.
pub fn forget_all(config: &Config, table: Option<&LinkTable>) -> Result<(), AttachError> {
    let directory = notes_dir(&config.run_dir);
    let failed = |source| AttachError::File {
        path: directory.clone(),
        source,
    };
    let notes = match fs::read_dir(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        notes => notes.map_err(failed)?,
    };
    for note in notes {
        let index = note.map_err(failed)?.file_name();
        let index = index.to_str().and_then(|index| index.parse().ok());
        if let Some(link) = index.and_then(|index| table?.by_index(index)) {
            info!(
                part = PART.name(),
                "keeping the clsact qdisc of link {}: others have attached programs to it",
                link.name
            );
        }
    }
    fs::remove_dir_all(&directory).map_err(failed)
}

/// The directory of the notes, with the ifindex as file name.
pub fn notes_dir(run_dir: &Path) -> PathBuf {
    run_dir.join("clsact")
}

fn note_path(index: u32, config: &Config) -> PathBuf {
    notes_dir(&config.run_dir).join(index.to_string())
}
