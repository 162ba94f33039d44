// SPDX-License-Identifier: Apache-2.0

//! Has the kernel take the object, program by program.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use aya::programs::links::FdLink;
use aya::programs::{
    CgroupAttachMode, CgroupSockAddr, ProgramError, SchedClassifier, SkLookup, Xdp,
};
use aya::{Ebpf, EbpfLoader};
use proxy_common::Address;
use proxy_common::limits::{address_bit, port_bit};
use tracing::warn;

use super::{LoadError, OBJECT};
use crate::backend::ebpf::attach::AttachError;
use crate::backend::ebpf::hook::SocketHook;
use crate::backend::ebpf::maps::{GUARD_LINKS, LISTENERS, OPENING, PEERS};
use crate::backend::ebpf::statistics::STATISTICS;
use crate::backend::ebpf::{PART, Settings, xdp};
use crate::config::{ProxyListener, Service};
use crate::kernel::{features, netns};
use crate::reconcile::report::chain;

/// The map that carries debug lines, and its size in bytes while nobody asked for them.
const LOGS: &str = "AYA_LOGS";
const LOGS_OFF: u32 = 4096;

/// The programs' constant that says who keeps the proxy's listeners.
pub const KEPT_BY_AGENT: &str = "KEPT_BY_AGENT";

/// Who keeps the proxy's listeners for the socket look-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeper {
    /// `vip_ingress`, at each SYN.
    Program,
    /// The agent, where the kernel refuses that (since Linux 7.3).
    Agent,
    /// There is no Service, and no listener to be kept.
    Nobody,
}

/// Opens the object with its maps, set up as asked for. `draining`: Services that are given up; `lru_size`:
/// the size of maps that forget the oldest.
pub fn load_object(
    settings: &Settings,
    draining: &[Service],
    lru_size: u32,
    cgroup: Option<&Path>,
    keeper: Keeper,
) -> Result<Ebpf, LoadError> {
    let level = if settings.debug {
        aya_log::Level::Debug as u8
    } else {
        0
    };
    let services = settings.services.iter().chain(draining);
    let services: Vec<_> = services.map(|service| service.cluster_ip).collect();
    let all = settings.endpoints().chain(services.iter().copied());
    let ports = all.fold(0, |ports, endpoint| {
        ports | port_bit(endpoint.port().to_be())
    });
    let bits = |ip| address_bit(&Address::from(ip));
    let guarded = settings.endpoints().filter(|_| settings.guard);
    let addresses = guarded.fold(0_u64, |all, vip| all | bits(vip.ip()));
    let service_addresses = services.iter().fold(0_u64, |all, end| all | bits(end.ip()));
    let allows = u8::from(!settings.allow_from.is_empty());
    let any_listener = u8::from(settings.proxy_listener == ProxyListener::Any);
    let kept_by_agent = u8::from(keeper != Keeper::Program);
    let host = netns::cookie(cgroup);
    let mut loader = EbpfLoader::new();
    loader
        // Nothing is relocated against the kernel's types. aya has read them all the same: they are
        // let go of, before anything else takes memory.
        .btf(None)
        .map_pin_path(OPENING, settings.bpffs.join(OPENING))
        .map_pin_path(LISTENERS, settings.bpffs.join(LISTENERS))
        .map_pin_path(PEERS, settings.bpffs.join(PEERS))
        .map_pin_path(STATISTICS, settings.bpffs.join(STATISTICS))
        .map_pin_path(GUARD_LINKS, settings.bpffs.join(GUARD_LINKS))
        .map_max_entries(OPENING, lru_size)
        .map_max_entries(PEERS, lru_size)
        .override_global(aya_log::LEVEL, &level, true)
        .override_global("PORTS", &ports, true)
        .override_global("ADDRESSES", &addresses, true)
        .override_global("ALLOWS", &allows, true)
        .override_global("SERVICE_ADDRESSES", &service_addresses, true)
        .override_global("ANY_LISTENER", &any_listener, true)
        .override_global(KEPT_BY_AGENT, &kept_by_agent, true)
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

fn of_cgroup(ebpf: &mut Ebpf, hook: SocketHook) -> &mut CgroupSockAddr {
    ebpf.program_mut(hook.program())
        .expect("the object has this program")
        .try_into()
        .expect("it is a program for the addresses of sockets")
}

fn of_namespace(ebpf: &mut Ebpf, hook: SocketHook) -> &mut SkLookup {
    ebpf.program_mut(hook.program())
        .expect("the object has this program")
        .try_into()
        .expect("it is a program for the socket look-up")
}

/// Attaches a program of sockets to its place; it stays there as long as the link is held or pinned.
pub fn attach_socket(
    ebpf: &mut Ebpf,
    hook: SocketHook,
    place: File,
) -> Result<FdLink, AttachError> {
    Ok(if hook.is_of_cgroup() {
        let program = of_cgroup(ebpf, hook);
        let id = program.attach(place, CgroupAttachMode::Single)?;
        program.take_link(id)?.try_into()?
    } else {
        let program = of_namespace(ebpf, hook);
        let id = program.attach(place)?;
        program.take_link(id)?.into()
    })
}

/// Loads a program on links; its id.
pub fn load_classifier(ebpf: &mut Ebpf, name: &'static str) -> Result<u32, LoadError> {
    let failed = refused(name);
    let program = classifier(ebpf, name);
    program.load().map_err(failed)?;
    Ok(program.info().map_err(failed)?.id())
}

/// Loads the programs of sockets. One that connections do not need may be missing, if it is the
/// kernel that does not know its kind.
pub fn load_sockets(ebpf: &mut Ebpf) -> Result<BTreeMap<SocketHook, u32>, LoadError> {
    let mut loaded = BTreeMap::new();
    for hook in SocketHook::ALL {
        let answer = if hook.is_of_cgroup() {
            let program = of_cgroup(ebpf, hook);
            program.load().and_then(|()| Ok(program.info()?.id()))
        } else {
            let program = of_namespace(ebpf, hook);
            program.load().and_then(|()| Ok(program.info()?.id()))
        };
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
