// SPDX-License-Identifier: Apache-2.0

//! The running kernel's verifier statistics for each program.

use std::io;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::{Program, ProgramError};
use aya::{Btf, EbpfLoader, VerifierLogLevel};
use proxy_kernel::{bpffs, memory, netns};

use super::listeners;
use super::load::{self, KEPT_BY_AGENT, Keeper};

/// The verifier's statistics for one program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The program's name.
    pub program: String,
    /// Number of instructions processed, over all paths.
    pub instructions: u64,
    /// Peak number of states.
    pub states: u64,
}

/// Verifies each program, with all features that make it larger. Programs whose hook this kernel does not have are left out. Nothing
/// is attached. Some maps need a pin: `directory` is created for that and removed afterwards.
///
/// # Errors
///
/// If the directory exists or is not on a BPF file system, or if the verifier rejects a program; the error has its log.
pub fn measure(directory: &Path) -> Result<Vec<Verified>> {
    ensure!(
        !directory.exists(),
        "{} exists; nothing was done",
        directory.display()
    );
    let in_directory = |keeper| {
        bpffs::create_dir(directory)?;
        let verified = measure_all(directory, keeper);
        bpffs::remove_dir(directory)?;
        verified
    };
    in_directory(Keeper::Program)
        .or_else(|refused| in_directory(Keeper::Agent).map_err(|_| refused))
}

fn measure_all(directory: &Path, keeper: Keeper) -> Result<Vec<Verified>> {
    memory::allow_locking();
    let kept_by_agent = u8::from(keeper == Keeper::Agent);
    let host = netns::cookie(None);
    let mut loader = EbpfLoader::new();
    loader
        .btf(None)
        .default_map_pin_directory(directory)
        .verifier_log_level(VerifierLogLevel::STATS)
        .override_global(aya_log::LEVEL, &0_u8, true)
        .override_global("PORTS", &u64::MAX, true)
        .override_global("ADDRESSES", &u64::MAX, true)
        .override_global("ALLOWS", &1_u8, true)
        .override_global("SERVICE_ADDRESSES", &u64::MAX, true)
        .override_global("ANY_LISTENER", &1_u8, true)
        .override_global(KEPT_BY_AGENT, &kept_by_agent, true)
        .override_global("HOST_NETNS", &host, true);
    let mut ebpf = loader
        .load(load::OBJECT)
        .context("creating the eBPF maps")?;
    let types = (keeper == Keeper::Agent).then(Btf::from_sys_fs);
    let types = types.transpose().context("reading the kernel's types")?;
    // aya returns the verifier's summary with an error only. So the limit of open files makes the kernel refuse the file
    // descriptor, which it creates after the verification.
    let before = no_more_files(0)?;
    let verified = ebpf
        .programs_mut()
        .filter_map(|(name, program)| verify(name, program, types.as_ref()).transpose())
        .collect();
    no_more_files(before)?;
    verified
}

fn verify(name: &str, program: &mut Program, types: Option<&Btf>) -> Result<Option<Verified>> {
    let loaded = match program {
        Program::SchedClassifier(program) => program.load(),
        Program::SkLookup(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::Xdp(program) => program.load(),
        Program::Iter(program) => match types {
            Some(types) => program.load(listeners::SOCKETS, types),
            // Not needed on this kernel.
            None => return Ok(None),
        },
        _ => bail!("{name} has a type that is not supported here"),
    };
    let Err(ProgramError::LoadError {
        io_error,
        verifier_log,
    }) = loaded
    else {
        bail!("{name}: expected the kernel to refuse a file descriptor, got {loaded:?}");
    };
    let log = verifier_log.to_string();
    match io_error.raw_os_error() {
        Some(libc::EMFILE) => {}
        // Rejected before verification: the kernel does not have the hook.
        Some(libc::EINVAL) if log.is_empty() => return Ok(None),
        _ => bail!("{name}: {io_error}\n{log}"),
    }
    let number = |before: &str| -> Option<u64> {
        let (_, rest) = log.split_once(before)?;
        rest.split_whitespace().next()?.parse().ok()
    };
    let (Some(instructions), Some(states)) = (number("processed "), number("peak_states ")) else {
        bail!("{name}: no summary in {log:?}");
    };
    Ok(Some(Verified {
        program: name.to_owned(),
        instructions,
        states,
    }))
}

/// Sets the limit of open files of this process, and returns the previous one.
fn no_more_files(count: libc::rlim_t) -> Result<libc::rlim_t> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointers refer to a valid structure.
    let done = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && {
            let before = limit.rlim_cur;
            limit.rlim_cur = count;
            let set = libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) == 0;
            limit.rlim_cur = before;
            set
        }
    };
    if !done {
        return Err(io::Error::last_os_error()).context("setting the limit of open files");
    }
    Ok(limit.rlim_cur)
}
