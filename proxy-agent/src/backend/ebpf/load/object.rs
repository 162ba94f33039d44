// SPDX-License-Identifier: Apache-2.0

//! Has the kernel take the object, program by program.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use aya::programs::{CgroupSockAddr, ProgramError, SchedClassifier, SocketFilter, Xdp};
use aya::{Ebpf, EbpfLoader};
use proxy_common::Address;
use proxy_common::limits::{address_bit, port_bit};
use tracing::warn;

use super::{LoadError, OBJECT, SERVICE, TRANSLATED_REPLY, Translation};
use crate::backend::ebpf::hook::SocketHook;
use crate::backend::ebpf::maps::{CONNECTIONS, GUARD_LINKS, PEERS};
use crate::backend::ebpf::ruleset::Verdict;
use crate::backend::ebpf::statistics::STATISTICS;
use crate::backend::ebpf::{PART, Settings, xdp};
use crate::kernel::{features, netns};
use crate::reconcile::report::chain;

/// The map that carries debug lines, and its size in bytes while nobody asked for them.
const LOGS: &str = "AYA_LOGS";
const LOGS_OFF: u32 = 4096;

/// Opens the object with its maps, set up as asked for.
pub fn load_object(settings: &Settings, cgroup: Option<&Path>) -> Result<Ebpf, LoadError> {
    let level = if settings.debug {
        aya_log::Level::Debug as u8
    } else {
        0
    };
    let ports = settings
        .endpoints()
        .chain(settings.services.iter().map(|service| service.cluster_ip))
        .fold(0, |ports, endpoint| {
            ports | port_bit(endpoint.port().to_be())
        });
    let addresses = settings.endpoints().filter(|_| settings.guard);
    let addresses = addresses.fold(0_u64, |bits, vip| {
        bits | address_bit(&Address::from(vip.ip()))
    });
    let allows = u8::from(!settings.allow_from.is_empty());
    let translate = u8::from(!settings.services.is_empty());
    let host = netns::cookie(cgroup);
    let mut loader = EbpfLoader::new();
    loader
        // Nothing is relocated against the kernel's types. aya has read them all the same: they are
        // let go of, before anything else takes memory.
        .btf(None)
        .map_pin_path(CONNECTIONS, settings.bpffs.join(CONNECTIONS))
        .map_pin_path(PEERS, settings.bpffs.join(PEERS))
        .map_pin_path(STATISTICS, settings.bpffs.join(STATISTICS))
        .map_pin_path(GUARD_LINKS, settings.bpffs.join(GUARD_LINKS))
        .map_max_entries(CONNECTIONS, settings.max_connections)
        .map_max_entries(PEERS, settings.max_connections)
        .override_global(aya_log::LEVEL, &level, true)
        .override_global("PORTS", &ports, true)
        .override_global("ADDRESSES", &addresses, true)
        .override_global("ALLOWS", &allows, true)
        .override_global("TRANSLATE", &translate, true)
        .override_global("HOST_NETNS", &host, true);
    if !settings.debug {
        loader.map_max_entries(LOGS, LOGS_OFF);
    }
    loader.load(OBJECT).map_err(LoadError::Object)
}

/// The error of a program that the kernel refused.
fn refused(program: &'static str) -> impl Fn(ProgramError) -> LoadError + Copy {
    move |source| LoadError::Program { program, source }
}

/// The answer to loading a program that may be missing where the kernel does not take it. Want of memory
/// is no such answer, and an error.
fn if_taken<T>(
    program: &'static str,
    answer: Result<T, ProgramError>,
) -> Result<Result<T, ProgramError>, LoadError> {
    match answer {
        Err(source) if features::may_come(&source) => Err(refused(program)(source)),
        answer => Ok(answer),
    }
}

/// A program on links.
pub fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut SchedClassifier {
    ebpf.program_mut(name)
        .expect("the object has this program")
        .try_into()
        .expect("it is a classifier")
}

/// The XDP program.
pub fn xdp_program(ebpf: &mut Ebpf) -> &mut Xdp {
    ebpf.program_mut(xdp::PROGRAM)
        .expect("the object has this program")
        .try_into()
        .expect("it is an XDP program")
}

/// Loads the XDP program. Where the kernel does not take it, the guard stands where it stands otherwise.
pub fn load_xdp(ebpf: &mut Ebpf) -> Result<Result<u32, String>, LoadError> {
    let program = xdp_program(ebpf);
    let loaded = program.load().and_then(|()| Ok(program.info()?.id()));
    Ok(if_taken(xdp::PROGRAM, loaded)?.map_err(|error| chain(&error)))
}

/// A program of the root cgroup.
pub fn socket(ebpf: &mut Ebpf, hook: SocketHook) -> &mut CgroupSockAddr {
    ebpf.program_mut(hook.program())
        .expect("the object has this program")
        .try_into()
        .expect("it is a program for sockets")
}

/// Loads a program on links; its id.
pub fn load_classifier(ebpf: &mut Ebpf, name: &'static str) -> Result<u32, LoadError> {
    let failed = refused(name);
    let program = classifier(ebpf, name);
    program.load().map_err(failed)?;
    Ok(program.info().map_err(failed)?.id())
}

/// Loads the programs that rules which translate run.
pub fn load_translation(ebpf: &mut Ebpf) -> Result<Translation, LoadError> {
    Ok(Translation {
        service: load_verdict(ebpf, SERVICE)?,
        reply: load_verdict(ebpf, TRANSLATED_REPLY)?,
    })
}

/// Loads the programs of the root cgroup. One that connections do not need may be missing, if it is the
/// kernel that does not know its kind.
pub fn load_sockets(ebpf: &mut Ebpf) -> Result<BTreeMap<SocketHook, u32>, LoadError> {
    let mut loaded = BTreeMap::new();
    for hook in SocketHook::ALL {
        let program = socket(ebpf, hook);
        let answer = program.load().and_then(|()| Ok(program.info()?.id()));
        match if_taken(hook.program(), answer)? {
            Ok(id) => {
                loaded.insert(hook, id);
            }
            Err(error) if hook.is_optional() => {
                warn!(
                    part = PART,
                    "processes on the host see the VIP as their peer: the kernel does not take {}: {}",
                    hook.program(),
                    chain(&error)
                );
            }
            Err(error) => return Err(refused(hook.program())(error)),
        }
    }
    Ok(loaded)
}

/// Loads a program that rules run.
pub fn load_verdict(ebpf: &mut Ebpf, name: &'static str) -> Result<Verdict, LoadError> {
    let failed = refused(name);
    let program: &mut SocketFilter = ebpf
        .program_mut(name)
        .expect("the object has this program")
        .try_into()
        .expect("it is a socket filter");
    program.load().map_err(failed)?;
    Ok(Verdict {
        id: program.info().map_err(failed)?.id(),
        fd: program.fd().map_err(failed)?.as_fd().as_raw_fd(),
    })
}
