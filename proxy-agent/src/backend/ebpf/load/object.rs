// SPDX-License-Identifier: Apache-2.0

//! Loads the object into the kernel, program by program.

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
use proxy_kernel::netns;
use tracing::warn;

use super::{LoadError, OBJECT};
use crate::backend::ebpf::PART;
use crate::backend::ebpf::attachment::AttachError;
use crate::backend::ebpf::hook::{SocketHook, XDP_PROGRAM};
use crate::backend::ebpf::maps::{GUARD_LINKS, LISTENERS, OPENING, PEERS, STATISTICS};
use crate::config::{Config, Guard, ProxyListener, Service};
use crate::features;
use crate::reconcile::report::chain;

/// The map of debug lines, and its size in bytes while they are disabled.
const LOGS: &str = "AYA_LOGS";
const LOGS_OFF: u32 = 4096;

/// The programs' constant that says whether the agent stores the proxy's listeners.
pub const KEPT_BY_AGENT: &str = "KEPT_BY_AGENT";

/// Who stores the proxy's listeners for the socket lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeper {
    /// `vip_ingress`, at each SYN.
    Program,
    /// The agent, if the kernel does not allow the program to (since Linux 7.3).
    Agent,
    /// Nobody: there are no Services.
    None,
}

/// Opens the object with its maps. `draining` are Services being drained; `lru_size` is the size of LRU maps.
pub fn load_object(
    config: &Config,
    draining: &[Service],
    lru_size: u32,
    cgroup: Option<&Path>,
    keeper: Keeper,
) -> Result<Ebpf, LoadError> {
    let level = if config.debugs_programs() {
        aya_log::Level::Debug as u8
    } else {
        0
    };
    let services = config.services.iter().chain(draining);
    let services: Vec<_> = services.map(|service| service.cluster_ip).collect();
    let all = config.endpoints().chain(services.iter().copied());
    let ports = all.fold(0, |ports, endpoint| {
        ports | port_bit(endpoint.port().to_be())
    });
    let bits = |ip| address_bit(&Address::from(ip));
    let guarded = config.endpoints().filter(|_| config.guard != Guard::Off);
    let addresses = guarded.fold(0_u64, |all, vip| all | bits(vip.ip()));
    let service_addresses = services.iter().fold(0_u64, |all, end| all | bits(end.ip()));
    let allows = u8::from(!config.allow_from.is_empty());
    let any_listener = u8::from(config.proxy_listener == ProxyListener::Any);
    let kept_by_agent = u8::from(keeper != Keeper::Program);
    let host = netns::cookie(cgroup);
    let mut loader = EbpfLoader::new();
    loader
        // No relocation needs the kernel's BTF. aya has read it nevertheless; `None` frees it before other memory is
        // allocated.
        .btf(None)
        .map_pin_path(OPENING, config.bpffs.join(OPENING))
        .map_pin_path(LISTENERS, config.bpffs.join(LISTENERS))
        .map_pin_path(PEERS, config.bpffs.join(PEERS))
        .map_pin_path(STATISTICS, config.bpffs.join(STATISTICS))
        .map_pin_path(GUARD_LINKS, config.bpffs.join(GUARD_LINKS))
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
    if !config.debugs_programs() {
        loader.map_max_entries(LOGS, LOGS_OFF);
    }
    loader.load(OBJECT).map_err(LoadError::Object)
}

/// Maps a failure to load this program.
fn refused(program: &'static str) -> impl Fn(ProgramError) -> LoadError + Copy {
    move |source| LoadError::Program { program, source }
}

/// The result of loading a program that is optional on kernels that do not support it. Transient errors (no memory) are errors.
fn if_taken<T>(
    program: &'static str,
    answer: Result<T, ProgramError>,
) -> Result<Result<T, ProgramError>, LoadError> {
    match answer {
        Err(source) if features::is_transient(&source) => Err(refused(program)(source)),
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
    ebpf.program_mut(XDP_PROGRAM)
        .expect("the object has this program")
        .try_into()
        .expect("it is an XDP program")
}

/// Loads the XDP program. If the kernel does not support it, the guard is in TC only.
pub fn load_xdp(ebpf: &mut Ebpf) -> Result<Result<u32, String>, LoadError> {
    let program = xdp_program(ebpf);
    let loaded = program.load().and_then(|()| Ok(program.info()?.id()));
    Ok(if_taken(XDP_PROGRAM, loaded)?.map_err(|error| chain(&error)))
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

/// Attaches a program of sockets; it stays attached as long as the link is held or pinned.
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

/// Loads a program of links; returns its id.
pub fn load_classifier(ebpf: &mut Ebpf, name: &'static str) -> Result<u32, LoadError> {
    let failed = refused(name);
    let program = classifier(ebpf, name);
    program.load().map_err(failed)?;
    Ok(program.info().map_err(failed)?.id())
}

/// Loads the programs of sockets. Optional ones may be missing if the kernel does not support their type.
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
                    part = PART.name(),
                    "processes on the host see the VIP as their peer: the kernel does not support {}: {}",
                    hook.program(),
                    chain(&error)
                );
            }
            Err(error) => return Err(refused(hook.program())(error)),
        }
    }
    Ok(loaded)
}
