// SPDX-License-Identifier: Apache-2.0

//! Attachment modes, the identification of attached programs, and errors.

use std::fmt::{self, Display};
use std::io;
use std::path::PathBuf;

use aya::pin::PinError;
use aya::programs::ProgramError;
use aya::programs::links::LinkError;
use aya::programs::tc::TcError;
use proxy_kernel::{bpf, bpffs};
use proxy_netlink::route::DumpError;

use super::hook::{Hook, Target};
use crate::config::TcAttach;
use crate::features;
use crate::instance::Instance;

/// The handle of the default instance's filters.
const FILTER_HANDLE: u32 = u32::from_be_bytes(*b"\0pxa");
/// Handles are hashes of the instance's name, with 24 bits.
const HANDLE_MASK: u32 = 0x00ff_ffff;
/// Candidate priorities; the lowest runs first on a link. Other classifiers may use some of them.
pub const PRIORITIES: std::ops::RangeInclusive<u16> = 1..=8;
/// Ifindex of `lo`, the first link of every network namespace.
const LOOPBACK: u32 = 1;

/// How programs are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachMode {
    /// BPF links of the tcx hook.
    Tcx,
    /// Filters on the clsact qdisc.
    Clsact,
}

/// A filter of the agent on a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// The direction.
    pub hook: Hook,
    /// The link.
    pub link: Target,
    /// Its priority.
    pub priority: u16,
    /// Id of its program.
    pub program: u32,
}

/// Failure to attach or detach a program.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The kernel rejected the program.
    #[error("the kernel refused the program")]
    Program(#[from] ProgramError),
    /// The kernel rejected a trial.
    #[error("the kernel refused the program")]
    Refused(#[source] io::Error),
    /// tcx was requested but is not available.
    #[error(
        "this kernel has no tcx, which needs Linux 6.6; --tc-attach=auto selects what is available"
    )]
    NoTcx(#[source] io::Error),
    /// The kernel rejected the qdisc or the filter.
    #[error("the kernel refused the clsact qdisc")]
    Qdisc(#[source] TcError),
    /// A pinned link could not be opened.
    #[error("cannot use the pinned link")]
    Link(#[from] LinkError),
    /// A link could not be pinned.
    #[error("cannot pin the link")]
    Pin(#[from] PinError),
    /// A pin or a note could not be changed.
    #[error("cannot change {path}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// A pin could not be removed.
    #[error(transparent)]
    Bpffs(#[from] bpffs::Error),
    /// rtnetlink returned an error.
    #[error("the kernel refused to remove the clsact qdisc")]
    Route(#[source] rtnetlink::Error),
    /// The filters on a qdisc could not be read completely, so the qdisc is kept.
    #[error("cannot read what is attached to the clsact qdisc; keeping it")]
    Filters(#[from] DumpError),
    /// All priorities are in use.
    #[error(
        "priorities {first} to {last} of the link's ingress are all in use by other classifiers",
        first = PRIORITIES.start(), last = PRIORITIES.end()
    )]
    NoPriority,
}

impl AttachMode {
    /// The requested mode, or the best one that this kernel has.
    ///
    /// # Errors
    ///
    /// If tcx was requested by name and this kernel does not have it.
    pub fn choose(wanted: TcAttach) -> Result<Self, AttachError> {
        if wanted == TcAttach::Clsact {
            return Ok(Self::Clsact);
        }
        // A kernel without the hook rejects the query. A transient error (no memory) proves nothing; the next attachment
        // shows whether tcx works.
        match bpf::attached(LOOPBACK, bpf::TCX_INGRESS) {
            Err(answer) if !features::is_transient(&answer) => match wanted {
                TcAttach::Tcx => Err(AttachError::NoTcx(answer)),
                TcAttach::Auto | TcAttach::Clsact => Ok(Self::Clsact),
            },
            _ => Ok(Self::Tcx),
        }
    }
}

/// The handle of an instance's filters, which identifies them together with the program's name. Handles of two instances may
/// collide: see [`crate::claims`].
pub fn filter_handle(instance: Instance) -> u32 {
    if instance == Instance::default() {
        return FILTER_HANDLE;
    }
    // FNV-1a: the hash must be the same in every version.
    let hash = instance.name().bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    match (hash ^ (hash >> 24)) & HANDLE_MASK {
        // With handle zero the kernel would choose one.
        0 => HANDLE_MASK,
        FILTER_HANDLE => FILTER_HANDLE + 1,
        handle => handle,
    }
}

impl Display for AttachMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::instance;

    proptest! {
        #[test]
        fn only_the_default_has_its_handle(instance in instance::any_instance()) {
            let handle = filter_handle(instance);
            prop_assert!(handle != 0 && handle <= HANDLE_MASK);
            prop_assert_eq!(handle == FILTER_HANDLE, instance == Instance::default());
        }
    }

    #[test]
    fn handles_are_the_same_in_every_version() {
        let handle = |name: &str| filter_handle(name.parse().unwrap());
        assert_eq!(handle(""), 0x0070_7861);
        assert_eq!(handle("b"), 0x000c_2d02);
    }
}
